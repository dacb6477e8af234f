//! Times and sizes, as people write and read them.

use std::time::Duration;

/// Units of time with their milliseconds.
const TIMES: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 60 * 60_000), ("d", 24 * 60 * 60_000)];

/// Units of size with their bytes.
const SIZES: [(&str, u64); 5] =
    [("", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("TiB", 1 << 40)];

/// Reads a duration such as `500ms`, `10s`, `1.5m` or `3h`.
///
/// A bare number is refused: ten what? The neighbours of this program disagree (`flock` means seconds, the wire
/// milliseconds).
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text);
    if unit.is_empty() && !number.is_empty() {
        return Err(format!(
            "a duration needs a unit: write {number}s for seconds, or {number}ms, {number}m, {number}h"
        ));
    }
    let millis = times(number, unit, &TIMES)
        .ok_or_else(|| format!("{text:?} is no duration; write it as in 500ms, 10s, 1.5m, 3h or 1d"))?;
    Ok(Duration::from_millis(millis))
}

/// Reads a size in bytes: a number, or one with `KiB`, `MiB`, `GiB` or `TiB`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    times(number, unit, &SIZES)
        .ok_or_else(|| format!("{text:?} is no size; write it as in 65536, 64KiB or 16MiB"))
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    text.split_at(text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len()))
}

/// A decimal number times its unit, if that is a whole number.
fn times(number: &str, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, scale) = units.iter().find(|(name, _)| *name == unit)?;
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    if [whole, part]
        .iter()
        .any(|digits| digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()))
    {
        return None;
    }
    let tenths = 10_u64.checked_pow(u32::try_from(part.len()).ok()?)?;
    let part = part.parse::<u64>().ok()?.checked_mul(*scale)?;
    if part % tenths != 0 {
        return None;
    }
    whole.parse::<u64>().ok()?.checked_mul(*scale)?.checked_add(part / tenths)
}

/// A time in milliseconds for people: two units at most.
pub(crate) fn show_ms(millis: u64) -> String {
    let (seconds, minutes, hours) = (millis / 1_000, millis / 60_000, millis / 3_600_000);
    match millis {
        0..1_000 => format!("{millis}ms"),
        1_000..60_000 if millis % 1_000 < 100 => format!("{seconds}s"),
        1_000..60_000 => format!("{seconds}.{}s", millis % 1_000 / 100),
        60_000..3_600_000 => format!("{minutes}m {}s", seconds % 60),
        3_600_000..86_400_000 => format!("{hours}h {}m", minutes % 60),
        _ => format!("{}d {}h", hours / 24, hours % 24),
    }
}

/// A time in microseconds for people.
pub(crate) fn show_us(micros: u64) -> String {
    match micros {
        0..1_000 => format!("{micros}us"),
        1_000..100_000 => format!("{}.{}ms", micros / 1_000, micros % 1_000 / 100),
        _ => show_ms(micros / 1_000),
    }
}

/// A duration for people.
pub(crate) fn show(duration: Duration) -> String {
    show_ms(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_may_have_a_fraction() {
        for (text, millis) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("1.5m", 90_000),
            ("0.25s", 250),
            ("3h", 10_800_000),
            ("1d", 86_400_000),
            ("0s", 0),
            (" 2s ", 2_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_refused_with_what_to_write_instead() {
        assert!(parse_duration("10").unwrap_err().contains("10s"));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in [
            "",
            "s",
            "ms",
            "-1s",
            "1e3s",
            ".5s",
            "5.s",
            "1.2.3s",
            "10 s",
            "10S",
            "1.0001s",
            "99999999999999999999s",
            "18446744073709551615h",
            "0.00000000000000000000001s",
        ] {
            assert!(parse_duration(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn sizes_are_bytes_or_have_a_binary_unit() {
        assert_eq!(parse_bytes("48"), Ok(48));
        assert_eq!(parse_bytes("1.5KiB"), Ok(1_536));
        assert_eq!(parse_bytes("16MiB"), Ok(16 << 20));
        for text in ["", "KiB", "1kb", "0.3", "-1"] {
            assert!(parse_bytes(text).is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn times_are_shown_in_two_units_at_most() {
        let shown: Vec<String> =
            [0, 999, 1_050, 2_149, 59_999, 61_000, 3_661_000, 90_000_000].into_iter().map(show_ms).collect();
        assert_eq!(shown, ["0ms", "999ms", "1s", "2.1s", "59.9s", "1m 1s", "1h 1m", "1d 1h"]);
    }
}
