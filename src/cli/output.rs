//! Results on stdout: for people as plain lines and tables, for programs as JSON.

use super::exit::{Failure, Result};
use serde::Serialize;
use std::io::{self, BufWriter, Write};

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// One JSON value: an object, or an array of them.
    Json,
    /// Plain lines, and tables with a header.
    Table,
}

/// Rows that are laid out together: a list of any length takes no more memory than these.
const ROWS_TOGETHER: usize = 1_000;

/// Where results go.
pub(crate) struct Output<W: Write> {
    format: Format,
    out: BufWriter<W>,
}

impl Output<io::Stdout> {
    /// Results to stdout.
    pub(crate) fn stdout(format: Format) -> Output<io::Stdout> {
        Output::new(format, io::stdout())
    }
}

impl<W: Write> Output<W> {
    fn new(format: Format, out: W) -> Output<W> {
        Output { format, out: BufWriter::new(out) }
    }

    /// Writes one result: `plain` for people, nothing if that is empty.
    pub(crate) fn one<T: Serialize>(mut self, value: &T, plain: &str) -> Result<()> {
        match self.format {
            Format::Json => {
                serde_json::to_writer(&mut self.out, value).map_err(io::Error::from)?;
                self.out.write_all(b"\n")?;
            }
            Format::Table if plain.is_empty() => {}
            Format::Table => writeln!(self.out, "{plain}")?,
        }
        Ok(self.out.flush()?)
    }

    /// Writes texts, one a line, without a header: for `while read`.
    pub(crate) fn lines<E: Into<Failure>>(
        mut self,
        texts: impl Iterator<Item = std::result::Result<String, E>>,
        limit: Option<u64>,
    ) -> Result<()> {
        for text in texts.take(items_at_most(limit)) {
            writeln!(self.out, "{}", printable(&text.map_err(Into::into)?))?;
        }
        Ok(self.out.flush()?)
    }

    /// Writes bytes as they are.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.out.write_all(bytes)?)
    }

    /// Sends on what was written so far.
    pub(crate) fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }

    /// Writes a list as it comes, at most `limit` items of it.
    pub(crate) fn list<T: Serialize, E: Into<Failure>>(
        self,
        header: &[&str],
        items: impl Iterator<Item = std::result::Result<T, E>>,
        limit: Option<u64>,
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        let limit = items_at_most(limit);
        match self.format {
            Format::Json => self.json_list(items.take(limit)),
            Format::Table => self.table(header, items.take(limit), row),
        }
    }

    fn json_list<T: Serialize, E: Into<Failure>>(
        mut self,
        items: impl Iterator<Item = std::result::Result<T, E>>,
    ) -> Result<()> {
        let mut before = "[";
        for item in items {
            let item = item.map_err(Into::into)?;
            self.out.write_all(before.as_bytes())?;
            serde_json::to_writer(&mut self.out, &item).map_err(io::Error::from)?;
            before = ",\n";
        }
        self.out.write_all(if before == "[" { b"[]\n" } else { b"]\n" })?;
        Ok(self.out.flush()?)
    }

    /// A header and rows in columns. The columns are measured anew for each thousand rows.
    fn table<T, E: Into<Failure>>(
        mut self,
        header: &[&str],
        items: impl Iterator<Item = std::result::Result<T, E>>,
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<()> {
        let mut rows: Vec<Vec<String>> = vec![header.iter().map(|&title| title.into()).collect()];
        for item in items {
            let item = match item {
                Ok(item) => item,
                Err(error) => {
                    // What came before the error is shown, the error after it.
                    self.lay_out(&rows)?;
                    return Err(error.into());
                }
            };
            rows.push(row(&item).iter().map(|cell| printable(cell)).collect());
            if rows.len() >= ROWS_TOGETHER {
                self.lay_out(&rows)?;
                rows.clear();
            }
        }
        self.lay_out(&rows)
    }

    fn lay_out(&mut self, rows: &[Vec<String>]) -> Result<()> {
        let columns = rows.first().map_or(0, Vec::len);
        let widths: Vec<usize> = (0..columns)
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in rows {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(self.out.flush()?)
    }
}

/// A limit as iterators take it.
pub(crate) fn items_at_most(limit: Option<u64>) -> usize {
    limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// Text from elsewhere for a terminal: what could move the cursor or hide a line is shown as its number.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                shown.extend(c.escape_unicode());
            }
            c if c.is_control() => shown.extend(c.escape_unicode()),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::exit::REFUSED;
    use serde_json::{Value, json};

    type Item = std::result::Result<Value, Failure>;

    fn list(format: Format, items: Vec<Item>, limit: Option<u64>) -> (String, Result<()>) {
        let mut bytes = Vec::new();
        let done = Output::new(format, &mut bytes).list(&["KEY", "N"], items.into_iter(), limit, |item| {
            vec![item["k"].to_string(), item["n"].to_string()]
        });
        (String::from_utf8(bytes).unwrap(), done)
    }

    fn items() -> Vec<Item> {
        vec![Ok(json!({"k": "long name", "n": 1})), Ok(json!({"k": "b", "n": 22}))]
    }

    #[test]
    fn a_table_has_a_header_and_columns_that_line_up() {
        let (text, done) = list(Format::Table, items(), None);
        done.unwrap();
        assert_eq!(text, "KEY          N\n\"long name\"  1\n\"b\"          22\n");
    }

    #[test]
    fn a_json_list_is_one_array_also_when_empty_or_limited() {
        for (items, limit, count) in
            [(items(), None, 2), (items(), Some(1), 1), (vec![], None, 0), (items(), Some(0), 0)]
        {
            let (text, done) = list(Format::Json, items, limit);
            done.unwrap();
            let value: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(value.as_array().unwrap().len(), count, "{text}");
        }
    }

    #[test]
    fn what_came_before_an_error_is_shown() {
        let mut items = items();
        items.push(Err(Failure::new(REFUSED, "no more")));
        let (text, done) = list(Format::Table, items, None);
        assert_eq!(done.unwrap_err().code, REFUSED);
        assert_eq!(text.lines().count(), 3);
    }

    #[test]
    fn a_list_longer_than_what_is_laid_out_together_comes_whole() {
        let items = (0..2_500).map(|n| Ok(json!({"k": "k", "n": n}))).collect();
        let (text, done) = list(Format::Table, items, None);
        done.unwrap();
        assert_eq!(text.lines().count(), 2_501);
    }

    #[test]
    fn one_result_is_plain_for_people_and_an_object_for_programs() {
        for (format, plain, expected) in
            [(Format::Table, "7", "7\n"), (Format::Table, "", ""), (Format::Json, "7", "{\"token\":7}\n")]
        {
            let mut bytes = Vec::new();
            Output::new(format, &mut bytes).one(&json!({"token": 7}), plain).unwrap();
            assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn text_from_elsewhere_cannot_drive_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c\u{202e}"), "a\\u{1b}[2Jb\\u{9b}c\\u{202e}");
        assert_eq!(printable("schlüssel キー"), "schlüssel キー");
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        struct Gone;
        impl Write for Gone {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for format in [Format::Json, Format::Table] {
            let failure = Output::new(format, Gone).one(&json!({}), "x").unwrap_err();
            assert_eq!((failure.code, failure.sentence.as_str()), (0, ""));
        }
    }
}
