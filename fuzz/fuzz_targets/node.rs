#![no_main]

#[path = "../targets/node.rs"]
mod node;
#[path = "../../tests/model/mod.rs"]
mod reference;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| node::run(bytes));
