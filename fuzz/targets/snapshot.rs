//! Snapshots: whatever the bytes are, they are refused or make a state that gives the same bytes again.
//!
//! A random change never has the right checksum, so the bytes are read twice: as they are, and with a last line that is
//! right for them.

use tenure::snapshot::{self, Snapshot};
use tenure::state::State;

/// Bytes of the last line, which has the checksum.
const LAST_LINE: usize = 21;

/// Takes bytes as a snapshot.
pub(crate) fn run(bytes: &[u8]) {
    if let Ok(snapshot) = snapshot::decode(bytes) {
        let (body, last) = bytes.split_at(bytes.len() - LAST_LINE);
        assert_eq!(last, last_line(body), "a snapshot with a wrong checksum was taken");
        check(&snapshot);
    }
    let body = match bytes.windows(10).rposition(|window| window == b"\"crc32c\":\"") {
        Some(at) => &bytes[..at],
        None => bytes,
    };
    if let Ok(snapshot) = snapshot::decode(&[body, &last_line(body)].concat()) {
        check(&snapshot);
    }
}

fn last_line(body: &[u8]) -> Vec<u8> {
    format!("\"crc32c\":\"{:08x}\"}}\n", crc32c::crc32c(body)).into_bytes()
}

fn check(snapshot: &Snapshot) {
    let once = encoded(snapshot);
    let again = snapshot::decode(&once)
        .unwrap_or_else(|fault| panic!("what was read is written, but not read: {fault}"));
    assert!(once == encoded(&again), "a snapshot that was written and read is written otherwise");
    let Ok(state) = State::from_parts(snapshot.parts.clone()) else { return };
    let rebuilt = Snapshot { parts: state.parts(), ..snapshot.clone() };
    let bytes = encoded(&rebuilt);
    assert!(
        once == bytes,
        "the parts that made a state are others than those it gives:\n{}\n{}",
        String::from_utf8_lossy(&once),
        String::from_utf8_lossy(&bytes)
    );
}

fn encoded(snapshot: &Snapshot) -> Vec<u8> {
    let mut bytes = Vec::new();
    snapshot::encode(snapshot, &mut bytes).expect("memory takes everything");
    bytes
}
