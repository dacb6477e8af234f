//! `shell`: the same commands, one a line.
//!
//! Each line is a command of its own with a client of its own, so a server that was restarted meanwhile is no matter.

use super::context::Context;
use super::exit::{Failure, REFUSED, Result, USAGE};
use super::{Cli, Command};
use clap::Parser;
use std::io::{self, BufRead, IsTerminal};

/// `tenure shell`: reads commands until the end of stdin or `quit`. Gives the failure of the last one, if it failed.
pub(crate) fn shell(context: &Context, run: impl Fn(Cli) -> Result<()>) -> Result<()> {
    let stdin = io::stdin();
    let by_hand = stdin.is_terminal();
    let mut last = Ok(());
    loop {
        if by_hand {
            eprint!("tenure> ");
        }
        let mut line = String::new();
        let read = stdin.lock().read_line(&mut line);
        if read.map_err(|error| Failure::new(REFUSED, format!("stdin could not be read: {error}")))? == 0 {
            return last;
        }
        let words = match words(&line) {
            Ok(words) if words.is_empty() || line.trim_start().starts_with('#') => continue,
            Ok(words) if matches!(words[0].to_lowercase().as_str(), "quit" | "exit") => return last,
            Ok(words) => words,
            Err(sentence) => {
                last = Err(Failure::new(USAGE, sentence));
                report(&last);
                continue;
            }
        };
        last = one(context, words, &run);
        report(&last);
    }
}

fn report(done: &Result<()>) {
    if let Err(failure) = done {
        // The exit code is for the end; here only the sentence counts.
        let _ = failure.report();
    }
}

/// Runs one line, under the flags that the shell itself was given.
fn one(context: &Context, mut words: Vec<String>, run: &impl Fn(Cli) -> Result<()>) -> Result<()> {
    // Commands in capitals, as the shells of other stores have them.
    words[0] = words[0].to_lowercase();
    let line = ["tenure".to_owned()].into_iter().chain(context.flags()).chain(words);
    match Cli::try_parse_from(line) {
        Ok(Cli { command: Command::Shell | Command::Serve(_), .. }) => {
            Err(Failure::new(USAGE, "that is no command inside the shell"))
        }
        Ok(cli) => run(cli),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { Err(Failure::new(USAGE, "")) } else { Ok(()) }
        }
    }
}

/// The words of a line: parted by blanks, kept together by '...' and "...", where a backslash takes the next character as
/// it is, outside of '...'.
fn words(line: &str) -> std::result::Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => {
                let next = chars.next().ok_or("the line ends with a backslash")?;
                word.get_or_insert_default().push(next);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(open) = quote {
        return Err(format!("a quote {open} is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_parted_by_blanks_and_kept_together_by_quotes() {
        for (line, expected) in [
            ("  get  a\n", vec!["get", "a"]),
            (r#"set k '{"a": 1}'"#, vec!["set", "k", r#"{"a": 1}"#]),
            (r#"set k "\"a b\"""#, vec!["set", "k", r#""a b""#]),
            (r"get a\ b", vec!["get", "a b"]),
            ("set -s k ''", vec!["set", "-s", "k", ""]),
            ("", vec![]),
        ] {
            assert_eq!(words(line).unwrap(), expected, "{line}");
        }
        assert!(words("get 'a").is_err());
        assert!(words("get a\\").is_err());
    }
}
