//! Names of locks, keys and files: one alphabet for all three, since lock N guards key N and file N.

use crate::kind::{Kind, Refusal};
use arcstr::ArcStr;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;

/// The longest name, in bytes.
pub const NAME_MAX: usize = 256;

/// The longest component of a file name, in bytes: what Linux file systems hold (`NAME_MAX` in `limits.h`).
pub const COMPONENT_MAX: usize = 255;

/// A name that has been checked: 1 to [`NAME_MAX`] bytes of UTF-8 without control characters or direction overrides.
///
/// Cheap to clone. The order is that of the bytes, which is what `range` and `prefix` show.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(ArcStr);

impl Name {
    /// Checks a name of a lock or key.
    ///
    /// # Errors
    /// `bad_name` with what is wrong. Nothing has changed.
    pub fn new(text: &str) -> Result<Name, Refusal> {
        check(text).map_err(|fault| Refusal::new(Kind::BadName, fault))?;
        Ok(Name(ArcStr::from(text)))
    }

    /// Checks a name of a file: a relative path in normal form, on top of what [`Name::new`] asks.
    ///
    /// # Errors
    /// `bad_name` with what is wrong. Nothing has changed.
    pub fn file(text: &str) -> Result<Name, Refusal> {
        check(text).and_then(|()| check_path(text)).map_err(|fault| Refusal::new(Kind::BadName, fault))?;
        Ok(Name(ArcStr::from(text)))
    }

    /// Whether [`Name::new`] would take the text.
    pub fn allows(text: &str) -> bool {
        check(text).is_ok()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The names of the directories above this file, from the top: `a/b/c` gives `a` and `a/b`.
    pub fn parents(&self) -> impl Iterator<Item = &str> {
        self.0.match_indices('/').map(|(at, _)| &self.0[..at])
    }
}

/// What is wrong with the name, as a sentence; `Ok` if nothing is.
fn check(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("a name must not be empty".into());
    }
    if text.len() > NAME_MAX {
        return Err(format!("the name has {} bytes; at most {NAME_MAX} are allowed", text.len()));
    }
    // Nearly all names are so plain, and this is seen many bytes at a time.
    if text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    match text.chars().find(|&c| c.is_control() || is_invisible_control(c)) {
        Some(c) => {
            Err(format!("the name has the control character U+{:04X}, which is not allowed", c as u32))
        }
        None => Ok(()),
    }
}

/// Marks that change the direction of text or break lines without showing: a name with one could pass for another.
/// (Unicode Standard Annex 9, section 2, and the line separators U+2028 and U+2029.)
fn is_invisible_control(c: char) -> bool {
    matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

/// What is wrong with the name as a path, as a sentence; `Ok` if nothing is.
fn check_path(text: &str) -> Result<(), String> {
    if text.starts_with('/') {
        return Err("a file name is relative to the server's files; it must not start with '/'".into());
    }
    for component in text.split('/') {
        match component {
            "" => return Err("a file name must not have an empty component ('//' or a trailing '/')".into()),
            "." | ".." => return Err(format!("a file name must not have a component '{component}'")),
            _ if component.len() > COMPONENT_MAX => {
                return Err(format!(
                    "a component of the file name has {} bytes; at most {COMPONENT_MAX} are allowed",
                    component.len()
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

impl Deref for Name {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Name::new(&text).map_err(|refusal| de::Error::custom(refusal.message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_colons_slashes_and_unicode_are_allowed() {
        for text in ["a", "a b", "a:b", "/a//b/", "schlüssel", "キー", "..", &"x".repeat(NAME_MAX)] {
            assert_eq!(Name::new(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn names_that_could_deceive_or_overflow_are_refused() {
        for text in ["", "a\0b", "a\nb", "\x1b[31m", "\u{202E}abc", "\u{2066}", &"x".repeat(NAME_MAX + 1)] {
            assert_eq!(Name::new(text).unwrap_err().kind, Kind::BadName, "{text:?}");
        }
    }

    #[test]
    fn file_names_are_relative_paths_in_normal_form() {
        for text in ["file_0", "logs/app.log", "a b/c", ".hidden", "a/..b", &format!("a/{}", "x".repeat(200))]
        {
            assert!(Name::file(text).is_ok(), "{text:?} was refused");
        }
        let component = "x".repeat(COMPONENT_MAX + 1);
        for text in ["../x", "/etc/x", "a/../../x", "a//b", ".", "a/.", "a/", "", &component, "a/\nb"] {
            assert_eq!(Name::file(text).unwrap_err().kind, Kind::BadName, "{text:?}");
        }
    }

    #[test]
    fn parents_go_from_the_top() {
        let name = Name::file("a/b/c").unwrap();
        assert_eq!(name.parents().collect::<Vec<_>>(), ["a", "a/b"]);
    }
}
