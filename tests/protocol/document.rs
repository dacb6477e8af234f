//! The document as the test sees it: blocks of examples, tables, sections.

use std::time::Duration;

/// One thing that an example does or expects.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// `-> `: a datagram of the client, as written.
    Send(String),
    /// `<- `: a datagram of the server; and its checksum, if it is to have one.
    Expect(String, Option<String>),
    /// `<- nothing`: no datagram comes for a while.
    Nothing,
    /// `-- advance 300ms`
    Advance(Duration),
    /// `-- as B`
    As(String),
    /// `-- restart`
    Restart,
    /// `-- check $a > $b`
    Greater(String, String),
}

/// A step and the number of its line, from 1.
pub(crate) type Line = (usize, Step);

/// Examples that share a server, sockets and placeholders.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// The number of the line where its first block begins.
    pub(crate) line: usize,
    /// Whether the client has an address that is not a loopback address.
    pub(crate) outside: bool,
    /// The steps, in order.
    pub(crate) steps: Vec<Line>,
}

/// Reads the examples: a scope begins with the first block after a heading of level 1 or 2, and with a block that is marked
/// `fresh` or `outside`.
///
/// # Errors
/// A sentence with the number of the line.
pub(crate) fn examples(text: &str) -> Result<Vec<Scope>, String> {
    let mut scopes: Vec<Scope> = Vec::new();
    let (mut new_scope, mut fence): (bool, Option<&str>) = (true, None);
    for (line, text) in (1..).zip(text.lines()) {
        match (fence, text.strip_prefix("```")) {
            (None, Some(info)) => {
                fence = Some(info);
                let mut words = info.split_whitespace();
                if words.next() != Some("jsonrpc") {
                    continue;
                }
                let (mut fresh, mut outside) = (new_scope, false);
                for word in words {
                    match word {
                        "fresh" => fresh = true,
                        "outside" => (fresh, outside) = (true, true),
                        _ => {
                            return Err(format!(
                                "line {line}: a block of examples cannot be marked {word:?}"
                            ));
                        }
                    }
                }
                if fresh {
                    scopes.push(Scope { line, outside, steps: Vec::new() });
                }
                new_scope = false;
            }
            (Some(_), Some(_)) => fence = None,
            (Some(info), None) if info.starts_with("jsonrpc") => {
                let scope = scopes.last_mut().expect("a block of examples has its scope");
                read_line(&mut scope.steps, line, text).map_err(|error| format!("line {line}: {error}"))?;
            }
            (Some(_), None) => {}
            (None, None) => new_scope |= text.starts_with("# ") || text.starts_with("## "),
        }
    }
    match fence {
        None => Ok(scopes),
        Some(info) => Err(format!("a block {info:?} has no end")),
    }
}

fn read_line(steps: &mut Vec<Line>, line: usize, text: &str) -> Result<(), String> {
    if let Some(sent) = text.strip_prefix("-> ") {
        steps.push((line, Step::Send(sent.into())));
    } else if text == "<- nothing" {
        steps.push((line, Step::Nothing));
    } else if let Some(expected) = text.strip_prefix("<- ") {
        steps.push((line, Step::Expect(expected.into(), None)));
    } else if let Some(directive) = text.strip_prefix("-- ") {
        steps.push((line, read_directive(directive)?));
    } else if text.starts_with(' ') {
        continue_line(steps.last_mut().map(|(_, step)| step), text.trim())?;
    } else if !text.is_empty() {
        return Err("a line of an example begins with `-> `, `<- `, `-- ` or a blank".into());
    }
    Ok(())
}

/// A line that goes on belongs to the datagram above it. The text of a checksum is known by its form.
fn continue_line(above: Option<&mut Step>, text: &str) -> Result<(), String> {
    match above {
        Some(Step::Send(sent)) => {
            sent.push('\n');
            sent.push_str(text);
        }
        Some(Step::Expect(_, checksum @ None)) if is_checksum(text) => *checksum = Some(text.into()),
        Some(Step::Expect(expected, None)) => {
            expected.push('\n');
            expected.push_str(text);
        }
        _ => return Err("there is nothing that this line could continue".into()),
    }
    Ok(())
}

fn is_checksum(text: &str) -> bool {
    let is_hex = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_name = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_hex || text.strip_prefix('$').is_some_and(is_name)
}

fn read_directive(text: &str) -> Result<Step, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words[..] {
        ["restart"] => Ok(Step::Restart),
        ["as", socket] => Ok(Step::As(socket.into())),
        ["advance", time] => {
            let ms = time.strip_suffix("ms").and_then(|ms| ms.parse().ok());
            let ms = ms.ok_or_else(|| format!("{time:?} is no time; write 300ms"))?;
            Ok(Step::Advance(Duration::from_millis(ms)))
        }
        ["check", greater, ">", smaller] => match (greater.strip_prefix('$'), smaller.strip_prefix('$')) {
            (Some(greater), Some(smaller)) => Ok(Step::Greater(greater.into(), smaller.into())),
            _ => Err("`check` compares two placeholders".into()),
        },
        _ => Err(format!("{text:?} is not known; there are advance, as, restart and check")),
    }
}

/// The rows of every table whose first column has this heading: trimmed cells, the backquotes of the first one taken off.
pub(crate) fn rows<'a>(text: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let (mut found, mut inside) = (Vec::new(), false);
    for line in text.lines() {
        let Some(row) = line.trim().strip_prefix('|').and_then(|row| row.strip_suffix('|')) else {
            inside = false;
            continue;
        };
        let mut cells: Vec<&str> = row.split('|').map(str::trim).collect();
        if cells[0] == heading {
            inside = true;
        } else if inside && !cells[0].starts_with("---") {
            cells[0] = cells[0].trim_matches('`');
            found.push(cells);
        }
    }
    found
}

/// What stands under a heading of the third level whose text is this name in backquotes.
pub(crate) fn section<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let heading = format!("\n### `{name}`\n");
    let begin = text.find(&heading)? + heading.len();
    let rest = &text[begin..];
    let end = ["\n### ", "\n## "].iter().filter_map(|next| rest.find(next)).min();
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// The content of the first block of this language.
pub(crate) fn block<'a>(text: &'a str, language: &str) -> Option<&'a str> {
    let fence = format!("\n```{language}\n");
    let begin = text.find(&fence)? + fence.len();
    let rest = &text[begin..];
    Some(&rest[..rest.find("```")?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Title\n\n## One\n\n```jsonrpc\n-> {\"a\":\n   1}\n<- {}\n   $sum\n```\n\n### Deeper\n\n\
        ```jsonrpc\n-- as B\n<- nothing\n```\n\n```sh\n-> not an example\n```\n\n## Two\n\n```jsonrpc\n-- advance 300ms\n\
        -- check $b > $a\n-- restart\n```\n\n```jsonrpc outside\n-> []\n   00112233\n```\n";

    #[test]
    fn scopes_begin_at_headings_and_marks_and_go_on_under_deeper_headings() {
        let scopes = examples(TEXT).unwrap();
        let lines: Vec<_> = scopes.iter().map(|scope| (scope.line, scope.outside)).collect();
        assert_eq!(lines, [(5, false), (25, false), (31, true)]);
        let steps: Vec<&Line> = scopes.iter().flat_map(|scope| &scope.steps).collect();
        let expected = [
            (6, Step::Send("{\"a\":\n1}".into())),
            (8, Step::Expect("{}".into(), Some("$sum".into()))),
            (15, Step::As("B".into())),
            (16, Step::Nothing),
            (26, Step::Advance(Duration::from_millis(300))),
            (27, Step::Greater("b".into(), "a".into())),
            (28, Step::Restart),
            (32, Step::Send("[]\n00112233".into())),
        ];
        assert_eq!(steps, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn what_is_no_example_is_refused_with_its_line() {
        let block = |text: &str| examples(&format!("```jsonrpc\n{text}\n```\n"));
        for bad in ["{}", "-- advance soon", "-- sleep 5ms", "-- check 1 > $a", "   continues nothing"] {
            assert!(block(bad).unwrap_err().starts_with("line 2: "), "{bad}");
        }
        assert!(examples("```jsonrpc fresher\n```\n").is_err());
        assert!(examples("```jsonrpc\n-> {}\n").is_err(), "a block without an end");
    }

    #[test]
    fn tables_sections_and_blocks_are_found() {
        let text = "\n### `get`\n\n| param | type |\n| --- | --- |\n| `key` | text |\n\n| result | x |\n| --- | --- |\n\
            | `found` | y |\n\n```py\nx\n```\n\n### `set`\n\n| param |\n| --- |\n| `value` |\n## Next\n";
        assert_eq!(rows(section(text, "get").unwrap(), "param"), [["key", "text"]]);
        assert_eq!(rows(section(text, "set").unwrap(), "param"), [["value"]]);
        assert_eq!(rows(text, "result"), [["found", "y"]]);
        assert_eq!((section(text, "delete"), block(text, "py")), (None, Some("x\n")));
    }
}
