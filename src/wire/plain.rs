//! Texts and numbers that stand in JSON as they are.

use serde::Serialize;

/// How many bytes stand before the first quote, backslash or control character, looked at eight by eight.
pub(super) fn plain_bytes(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    let mut at = 0;
    while let Some(chunk) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*chunk);
        // The high bit of each byte that is below this one; also, by the borrow, of some behind the first such byte.
        let below = |word: u64, byte: u8| word.wrapping_sub(ONES * u64::from(byte)) & !word & HIGH;
        let is = |byte: u8| below(word ^ (ONES * u64::from(byte)), 1);
        let found = is(b'"') | is(b'\\') | below(word, b' ');
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let ends = bytes[at..].iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '));
    ends.map_or(bytes.len(), |ends| at + ends)
}

/// Appends a number.
pub(super) fn write_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends a string.
pub(super) fn write_text(out: &mut Vec<u8>, text: &str) {
    if plain_bytes(text.as_bytes()) < text.len() {
        return write_json(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Appends whatever there is.
pub(super) fn write_json<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(out, value).expect("results are plain data, and a Vec takes any number of bytes");
}
