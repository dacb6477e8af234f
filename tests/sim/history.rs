//! Histories as files: JSON lines, and EDN as Jepsen's checkers read it.

use crate::client::Line;
use serde_json::Value;
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
            "{{:index {index}, :time {}, :process {}, :type :{}, :f :{}, :value {}}}",
            line.at * 1_000,
            line.process,
            line.kind,
            line.what.replace('_', "-"),
            to_edn(&line.value)
        );
    }
    std::fs::write(dir.join(format!("{seed}.jsonl")), json).expect("the history is written");
    std::fs::write(dir.join(format!("{seed}.edn")), edn).expect("the history is written");
}

/// EDN has other maps than JSON, `nil`, and no comma.
fn to_edn(value: &Value) -> String {
    match value {
        Value::Null => "nil".into(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string(),
        Value::Array(items) => format!("[{}]", items.iter().map(to_edn).collect::<Vec<_>>().join(" ")),
        Value::Object(parts) => {
            let parts =
                parts.iter().map(|(name, value)| format!(":{} {}", name.replace('_', "-"), to_edn(value)));
            format!("{{{}}}", parts.collect::<Vec<_>>().join(" "))
        }
    }
}
