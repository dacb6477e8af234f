//! Which locks a command asks for, and in which modes.

use super::exit::{Failure, Result, USAGE};
use tenure::client::Mode;

/// The locks that a command is about, and how they are to be held.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Asked {
    /// The locks: all of them are acquired, under one token, or none.
    #[arg(value_name = "NAME", required_unless_present = "lock")]
    names: Vec<String>,
    /// One more lock, with a mode of its own: `-l db=shared`, `-l pool=1/8`. May be given several times.
    #[arg(short, long, env = "TENURE_LOCK", value_name = "NAME=MODE", value_parser = parse_lock)]
    lock: Vec<(String, Mode)>,
    #[command(flatten)]
    how: How,
}

/// How locks are to be held that were given no mode of their own.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct How {
    /// How they are held: `exclusive`, `shared`, or slots as in `1/8`, one of eight.
    #[arg(long, env = "TENURE_MODE", value_name = "MODE", value_parser = parse_mode)]
    mode: Option<Mode>,
    /// Shared: --mode shared. Beside others that are shared.
    #[arg(short, long, conflicts_with_all = ["exclusive", "slots"])]
    shared: bool,
    /// Exclusive: --mode exclusive. The default.
    #[arg(short = 'x', long, conflicts_with = "slots")]
    exclusive: bool,
    /// One of so many slots: --mode 1/N. All who ask must say the same number.
    #[arg(long, value_name = "N")]
    slots: Option<u32>,
    /// So many of the slots: --mode K/N.
    #[arg(long, value_name = "K", requires = "slots")]
    weight: Option<u32>,
}

/// The flags of [`How`] that say the same as `--mode`.
pub(crate) const SHORTHANDS: [&str; 4] = ["shared", "exclusive", "slots", "weight"];

impl Asked {
    /// The locks with their modes, in the order of their names.
    pub(crate) fn locks(&self) -> Result<Vec<(String, Mode)>> {
        let mode = self.how.mode()?;
        let mut locks: Vec<_> = self.names.iter().map(|name| (name.clone(), mode)).collect();
        locks.extend(self.lock.iter().cloned());
        locks.sort_by(|a, b| a.0.cmp(&b.0));
        match locks.windows(2).find(|two| two[0].0 == two[1].0) {
            None => Ok(locks),
            Some(two) => Err(Failure::new(USAGE, format!("{:?} is named twice", two[0].0))),
        }
    }
}

impl How {
    /// The flags win over the variable.
    fn mode(&self) -> Result<Mode> {
        let mode = match (self.shared, self.exclusive, self.slots, self.mode) {
            (true, ..) => Mode::Shared,
            (false, true, ..) => Mode::Exclusive,
            (false, false, Some(slots), _) => Mode::Slot { slots, weight: self.weight.unwrap_or(1) },
            (false, false, None, mode) => mode.unwrap_or(Mode::Exclusive),
        };
        within(mode).map_err(|sentence| Failure::new(USAGE, sentence))
    }
}

/// A mode: `exclusive`, `shared`, or slots as in `1/8`.
fn parse_mode(text: &str) -> std::result::Result<Mode, String> {
    match text {
        "exclusive" => return Ok(Mode::Exclusive),
        "shared" => return Ok(Mode::Shared),
        _ => {}
    }
    let slots = text.split_once('/').and_then(|(weight, slots)| {
        Some(Mode::Slot { slots: slots.parse().ok()?, weight: weight.parse().ok()? })
    });
    within(slots.ok_or("a mode is exclusive, shared, or slots as in 1/8, one of eight")?)
}

/// A lock with its mode. The last `=` divides them, so a name may have others.
fn parse_lock(text: &str) -> std::result::Result<(String, Mode), String> {
    let (name, mode) = text.rsplit_once('=').ok_or("write it as NAME=MODE, as in db=shared")?;
    Ok((name.into(), parse_mode(mode)?))
}

fn within(mode: Mode) -> std::result::Result<Mode, String> {
    match mode {
        Mode::Slot { slots, weight } if weight == 0 || weight > slots => {
            Err(format!("a weight goes from 1 to the number of slots, and {weight} of {slots} does not"))
        }
        Mode::Exclusive | Mode::Shared | Mode::Slot { .. } => Ok(mode),
    }
}

/// Names as a sentence lists them: `"a", "b"`.
pub(crate) fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_a_word_or_a_part_of_the_slots() {
        assert_eq!(parse_mode("shared"), Ok(Mode::Shared));
        assert_eq!(parse_mode("2/8"), Ok(Mode::Slot { slots: 8, weight: 2 }));
        for bad in ["", "share", "8", "/8", "0/8", "9/8", "1/0", "1/x", "-1/8"] {
            assert!(parse_mode(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_equals_sign_divides_a_name_from_its_mode() {
        assert_eq!(parse_lock("a=b=1/3"), Ok(("a=b".into(), Mode::Slot { slots: 3, weight: 1 })));
        assert!(parse_lock("a").is_err() && parse_lock("a=b").is_err());
    }
}
