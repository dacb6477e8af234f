#![no_main]

#[path = "../targets/name.rs"]
mod name;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| name::run(bytes));
