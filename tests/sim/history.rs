//! Histories as files: JSON lines, and EDN as Jepsen's checkers read it.

use crate::client::Line;
use std::fmt::Write;
use std::path::Path;

/// Writes `<seed>.jsonl` and `<seed>.edn`.
pub(crate) fn write(dir: &Path, seed: u64, lines: &[Line]) {
    std::fs::create_dir_all(dir).expect("the directory for histories");
    let (mut json, mut edn) = (String::new(), String::new());
    for (index, line) in lines.iter().enumerate() {
        let value = serde_json::json!({
            "index": index,
            "time_us": line.at,
            "process": line.process,
            "type": line.kind,
            "f": line.what,
            "value": line.value,
        });
        let _ = writeln!(json, "{value}");
        let _ = writeln!(
            edn,
            "{{:index {index}, :time {}, :process {}, :type :{}, :f :{}, :value {:?}}}",
            line.at * 1_000,
            line.process,
            line.kind,
            line.what.replace('_', "-"),
            line.value
        );
    }
    std::fs::write(dir.join(format!("{seed}.jsonl")), json).expect("the history is written");
    std::fs::write(dir.join(format!("{seed}.edn")), edn).expect("the history is written");
}
