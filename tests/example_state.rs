//! `server_state.json.example` is a real snapshot: it loads, and is written back byte for byte.

use tenure::snapshot::{self, Snapshot};
use tenure::state::State;

#[test]
fn the_example_state_loads_and_is_written_back_byte_for_byte() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/server_state.json.example");
    let bytes = std::fs::read(path).unwrap();
    let Snapshot { server, clean, parts, redo } =
        snapshot::decode(&bytes).map_err(|fault| fault.to_string()).unwrap();
    let state = State::from_parts(parts).unwrap();
    assert!(state.op() > 0 && clean, "the example is that of a server that was used and stopped cleanly");
    let mut again = Vec::new();
    snapshot::encode(&Snapshot { server, clean, parts: state.parts(), redo }, &mut again).unwrap();
    assert_eq!(String::from_utf8(again).unwrap(), String::from_utf8(bytes).unwrap());
}
