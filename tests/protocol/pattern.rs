//! JSON with placeholders: `"$name"` stands for a text, `$name` for anything but a text, `$_` for anything of that sort.

use serde_json::Value;
use std::collections::BTreeMap;

/// What the placeholders stand for so far, by name.
pub(crate) type Bindings = BTreeMap<String, Value>;

/// Marks a placeholder that stood outside a string; no JSON text of the document has it.
const BARE: char = '\u{1}';

/// Puts the values of placeholders into a text that is to be sent.
///
/// # Errors
/// A sentence, if a placeholder stands for nothing yet.
pub(crate) fn fill(text: &str, bindings: &Bindings) -> Result<String, String> {
    let mut filled = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => filled.push_str(text),
            Piece::Placeholder { name, quoted } => match (bindings.get(name), quoted) {
                (None, _) => return Err(format!("${name} is sent before it was seen")),
                (Some(Value::String(text)), true) => {
                    let json = Value::from(text.as_str()).to_string();
                    filled.push_str(&json[1..json.len() - 1]);
                }
                (Some(value), _) => filled.push_str(&value.to_string()),
            },
        }
    }
    Ok(filled)
}

/// Reads an expected JSON text: placeholders outside strings become strings that begin with [`BARE`].
///
/// # Errors
/// A sentence, if it is not JSON.
pub(crate) fn parse(text: &str) -> Result<Value, String> {
    let mut json = String::new();
    for piece in pieces(text) {
        match piece {
            Piece::Text(text) => json.push_str(text),
            Piece::Placeholder { name, quoted: true } => json.push_str(&format!("${name}")),
            Piece::Placeholder { name, quoted: false } => json.push_str(&format!("\"\\u0001{name}\"")),
        }
    }
    serde_json::from_str(&json).map_err(|error| format!("not JSON: {error}"))
}

/// Compares what came with what is expected, and binds the placeholders that are new. Nothing is bound on a mismatch.
///
/// # Errors
/// Where they differ and how.
pub(crate) fn matches(expected: &Value, actual: &Value, bindings: &mut Bindings) -> Result<(), String> {
    let mut tried = bindings.clone();
    match_at("$", expected, actual, &mut tried)?;
    *bindings = tried;
    Ok(())
}

fn match_at(path: &str, expected: &Value, actual: &Value, bindings: &mut Bindings) -> Result<(), String> {
    match (expected, actual) {
        (Value::String(text), _) if text.starts_with(BARE) => match actual {
            Value::String(_) => Err(format!("{path}: a text came where the document has no quotes")),
            _ => bind(path, &text[1..], actual, bindings),
        },
        (Value::String(text), Value::String(came)) => match_text(path, text, came, bindings),
        (Value::Array(expected), Value::Array(actual)) => {
            if expected.len() != actual.len() {
                return Err(format!("{path}: {} elements, not {}", actual.len(), expected.len()));
            }
            let mut pairs = expected.iter().zip(actual).enumerate();
            pairs.try_for_each(|(at, (one, other))| match_at(&format!("{path}[{at}]"), one, other, bindings))
        }
        (Value::Object(expected), Value::Object(actual)) => {
            if let Some(missing) = expected.keys().find(|name| !actual.contains_key(*name)) {
                return Err(format!("{path}: `{missing}` is missing"));
            }
            if let Some(extra) = actual.keys().find(|name| !expected.contains_key(*name)) {
                return Err(format!("{path}: `{extra}` is not in the document"));
            }
            let mut names = expected.iter();
            names
                .try_for_each(|(name, one)| match_at(&format!("{path}.{name}"), one, &actual[name], bindings))
        }
        _ if expected == actual => Ok(()),
        _ => Err(format!("{path}: {actual}, not {expected}")),
    }
}

/// A text with at most one placeholder in it.
fn match_text(path: &str, expected: &str, came: &str, bindings: &mut Bindings) -> Result<(), String> {
    let mismatch = || Err(format!("{path}: {came:?}, not {expected:?}"));
    let quoted = Value::from(expected).to_string();
    let placeholder = pieces(&quoted).find_map(|piece| match piece {
        Piece::Placeholder { name, .. } => Some(name.to_owned()),
        Piece::Text(_) => None,
    });
    let Some(name) = placeholder else {
        return if expected == came { Ok(()) } else { mismatch() };
    };
    let mark = format!("${name}");
    let (before, after) = expected.split_once(&mark).unwrap_or((expected, ""));
    match came.strip_prefix(before).and_then(|rest| rest.strip_suffix(after)) {
        Some(text) => bind(path, &name, &Value::from(text), bindings),
        None => mismatch(),
    }
}

fn bind(path: &str, name: &str, actual: &Value, bindings: &mut Bindings) -> Result<(), String> {
    if name == "_" {
        return Ok(());
    }
    match bindings.get(name) {
        Some(bound) if bound != actual => Err(format!("{path}: {actual}, but ${name} was {bound} before")),
        Some(_) => Ok(()),
        None => {
            bindings.insert(name.to_owned(), actual.clone());
            Ok(())
        }
    }
}

/// A part of a text with placeholders.
enum Piece<'a> {
    Text(&'a str),
    Placeholder { name: &'a str, quoted: bool },
}

/// Cuts a JSON text at its placeholders, and knows which of them stand inside a string.
fn pieces(text: &str) -> impl Iterator<Item = Piece<'_>> {
    let (mut rest, mut quoted, mut escaped) = (text, false, false);
    std::iter::from_fn(move || {
        if let Some((name, after)) = rest.strip_prefix('$').and_then(split_name) {
            rest = after;
            return Some(Piece::Placeholder { name, quoted });
        }
        let mut end = rest.len();
        for (at, character) in rest.char_indices() {
            if character == '$' && split_name(&rest[at + 1..]).is_some() {
                end = at;
                break;
            }
            (quoted, escaped) = match character {
                _ if escaped => (quoted, false),
                '\\' => (quoted, true),
                '"' => (!quoted, false),
                _ => (quoted, false),
            };
        }
        let (head, after) = rest.split_at(end);
        rest = after;
        (!head.is_empty()).then_some(Piece::Text(head))
    })
}

/// The name at the beginning of a text and what follows it; `None` if there is none.
fn split_name(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compare(expected: &str, actual: &str, bindings: &mut Bindings) -> Result<(), String> {
        matches(&parse(expected).unwrap(), &serde_json::from_str(actual).unwrap(), bindings)
    }

    #[test]
    fn a_placeholder_binds_on_first_use_and_must_agree_later() {
        let mut bindings = Bindings::new();
        compare(r#"{"token":$t,"session":"$s"}"#, r#"{"session":"ab","token":7}"#, &mut bindings).unwrap();
        compare(r#"[$t,"$s"]"#, r#"[7,"ab"]"#, &mut bindings).unwrap();
        assert!(compare("[$t]", "[8]", &mut bindings).unwrap_err().contains("was 7"));
        assert_eq!(fill(r#"{"a":$t,"b":"$s"}"#, &bindings).unwrap(), r#"{"a":7,"b":"ab"}"#);
        assert!(fill("$unknown", &bindings).is_err());
    }

    #[test]
    fn anything_is_still_of_its_sort_and_binds_nothing() {
        let mut bindings = Bindings::new();
        compare(r#"["$_",$_,$_,$_]"#, r#"["x",1,{"a":2},null]"#, &mut bindings).unwrap();
        assert!(compare("[$_]", r#"["x"]"#, &mut bindings).is_err());
        assert!(compare(r#"["$_"]"#, "[1]", &mut bindings).is_err());
        assert!(bindings.is_empty());
    }

    #[test]
    fn a_placeholder_may_stand_inside_a_text() {
        let mut bindings = Bindings::new();
        compare(r#""127.0.0.1:$port""#, r#""127.0.0.1:5625""#, &mut bindings).unwrap();
        assert_eq!(bindings["port"], "5625");
        assert!(compare(r#""10.0.0.1:$_""#, r#""127.0.0.1:5625""#, &mut bindings).is_err());
        assert_eq!(fill(r#"{"a":"x-$port"}"#, &bindings).unwrap(), r#"{"a":"x-5625"}"#);
    }

    #[test]
    fn fields_that_are_missing_or_not_in_the_document_are_mismatches() {
        let mut bindings = Bindings::new();
        assert!(compare(r#"{"a":$a}"#, r#"{"a":1,"b":2}"#, &mut bindings).unwrap_err().contains("`b`"));
        assert!(compare(r#"{"a":1,"b":$b}"#, r#"{"b":2}"#, &mut bindings).unwrap_err().contains("`a`"));
        assert!(compare(r#"{"a":[1]}"#, r#"{"a":[1,2]}"#, &mut bindings).unwrap_err().contains("$.a"));
        assert!(bindings.is_empty(), "a mismatch binds nothing");
    }

    #[test]
    fn quotes_and_dollars_inside_texts_do_not_confuse() {
        let mut bindings = Bindings::new();
        compare(r#"{"a":"\"$s\"","b":"5 $","c":$n}"#, r#"{"a":"\"x\"","b":"5 $","c":1}"#, &mut bindings)
            .unwrap();
        assert_eq!((bindings["s"].as_str(), bindings["n"].as_u64()), (Some("x"), Some(1)));
    }
}
