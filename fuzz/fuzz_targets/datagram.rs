#![no_main]

#[path = "../targets/datagram.rs"]
mod datagram;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| datagram::run(bytes));
