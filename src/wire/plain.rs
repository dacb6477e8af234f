//! Texts and numbers that stand in JSON as they are.

use serde::Serialize;

/// Eight bytes that are one each.
const ONES: u64 = u64::from_ne_bytes([1; 8]);
/// The high bit of each of eight bytes.
const HIGH: u64 = ONES << 7;

/// How many bytes stand before the first quote, backslash or control character, looked at eight by eight.
pub(super) fn plain_bytes(bytes: &[u8]) -> usize {
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

/// Ten to the power of each index.
const POWERS: [u64; 9] = [1, 10, 100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000];

/// Digits that are read as one number at most: those of [`INTEGER_MAX`](crate::identity::INTEGER_MAX).
const INTEGER_DIGITS: usize = 16;

/// The number that the bytes begin with, and how many digits it has: 16 of them at most, or none.
#[inline]
pub(super) fn leading_number(bytes: &[u8]) -> (u64, usize) {
    let (mut number, mut digits) = (0, 0);
    while digits < INTEGER_DIGITS
        && let Some(chunk) = bytes[digits..].first_chunk()
    {
        // What each byte is above '0': up to 9 if it is a digit. The first of them is the lowest byte of the word.
        let word = u64::from_le_bytes(*chunk) ^ (ONES * u64::from(b'0'));
        let others = (((word & !HIGH) + ONES * (0x80 - 10)) | word) & HIGH;
        let here = others.trailing_zeros() / 8;
        if here == 0 {
            return (number, digits);
        }
        // The digits move to the end, with zeros before them; then neighbours are joined, in pairs, fours and eights.
        let ones = word << (64 - 8 * here);
        let pairs = (ones * 10 + (ones >> 8)) & 0x00ff_00ff_00ff_00ff;
        let fours = (pairs * 100 + (pairs >> 16)) & 0x0000_ffff_0000_ffff;
        let eight = (fours * 10_000 + (fours >> 32)) & 0xffff_ffff;
        number = number * POWERS[here as usize] + eight;
        digits += here as usize;
        if here < 8 {
            return (number, digits);
        }
    }
    for byte in bytes[digits..].iter().take(INTEGER_DIGITS - digits).take_while(|byte| byte.is_ascii_digit())
    {
        number = 10 * number + u64::from(byte - b'0');
        digits += 1;
    }
    (number, digits)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_read_as_far_as_its_digits_go() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..50_000 {
            let mut text: Vec<u8> = (0..random.usize(..20)).map(|_| random.u8(b'0'..=b'9')).collect();
            let others = (0..random.usize(..12)).map(|_| random.u8(..));
            text.extend(others);
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count().min(INTEGER_DIGITS);
            let number = std::str::from_utf8(&text[..digits]).unwrap().parse().unwrap_or(0);
            assert_eq!(leading_number(&text), (number, digits), "{}", text.escape_ascii());
        }
    }
}
