#![no_main]

#[path = "../../tests/model/mod.rs"]
mod reference;
#[path = "../targets/state.rs"]
mod state;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| state::run(bytes));
