//! Parameters of all methods, read strictly: by name, each once, of its type, never `null` by accident.
//!
//! One struct holds every parameter that any method takes. [`Params::only`] then refuses what the method at hand does not
//! take, so that a misspelt or misplaced parameter is an error and never a request that means something else.

use crate::command::Mode;
use crate::identity::{INTEGER_MAX, Nonce, SessionId};
use crate::kind::{Kind, Refusal};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::value::RawValue;
use std::fmt;

/// An integer on the wire: 0 to 2^53 - 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Int(pub u64);

impl Serialize for Int {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Int {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Int, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Int;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an integer from 0 to {INTEGER_MAX}")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Int, E> {
                if number > INTEGER_MAX {
                    return Err(E::invalid_value(de::Unexpected::Unsigned(number), &self));
                }
                Ok(Int(number))
            }
        }
        deserializer.deserialize_u64(Visitor)
    }
}

/// `wait_ms`: a number of milliseconds, or `null` to wait without limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WaitMs(pub Option<Int>);

/// An element of `keys`: a name, or a name with its own mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum KeyAsk {
    /// A name, in the mode of the request.
    Name(String),
    /// A name with its own mode.
    Mode(KeyMode),
}

/// A name with its own mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyMode {
    /// The lock.
    pub key: String,
    /// `exclusive` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How many slots the lock has, for the mode `slot`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<Int>,
    /// How many of them the asker takes; 1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Int>,
}

impl KeyMode {
    /// A name with a mode, as the wire writes it.
    pub fn new(key: String, mode: Mode) -> KeyMode {
        let int = |number: u32| Some(Int(number.into()));
        match mode {
            Mode::Exclusive => KeyMode { key, mode: Some("exclusive".into()), slots: None, weight: None },
            Mode::Shared => KeyMode { key, mode: Some("shared".into()), slots: None, weight: None },
            Mode::Slot { slots, weight } => {
                KeyMode { key, mode: Some("slot".into()), slots: int(slots), weight: int(weight) }
            }
        }
    }
}

impl From<&str> for KeyAsk {
    fn from(name: &str) -> KeyAsk {
        KeyAsk::Name(name.into())
    }
}

impl From<String> for KeyAsk {
    fn from(name: String) -> KeyAsk {
        KeyAsk::Name(name)
    }
}

impl<K: Into<String>> From<(K, Mode)> for KeyAsk {
    fn from((name, mode): (K, Mode)) -> KeyAsk {
        KeyAsk::Mode(KeyMode::new(name.into(), mode))
    }
}

/// An element of `compare`: a key, and the version that it must have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompareAsk {
    /// The key.
    pub key: String,
    /// The version; 0: it must not exist.
    pub version: Int,
}

/// An element of `apply`: a key, and the value that it gets, or that it is deleted.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangeAsk {
    /// The key.
    pub key: String,
    /// Any JSON.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub value: Option<Box<RawValue>>,
    /// Whether it is deleted instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delete: Option<bool>,
    /// How long it lives, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<Int>,
    /// Whether it goes with the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<bool>,
}

/// Reads a parameter that is present: `null` is a value like any other and not its absence.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

macro_rules! params {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// Every parameter that any method takes; `None` where it was not given.
        #[derive(Clone, Debug, Default, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Params {
            $(
                $(#[$doc])*
                #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
                pub $name: Option<$type>,
            )*
        }

        impl Params {
            /// The name of every parameter.
            pub const NAMES: &[&str] = &[$(stringify!($name),)*];

            /// The names of the parameters that were given.
            fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
                [$((stringify!($name), self.$name.is_some()),)*]
                    .into_iter()
                    .filter_map(|(name, given)| given.then_some(name))
            }
        }
    };
}

params! {
    /// The session that asks.
    session: SessionId,
    /// Ids below this are never sent again, waits excepted.
    ack: Int,
    /// Ids of waits whose replies have arrived.
    got: Vec<Int>,
    /// The proof of address.
    cookie: String,
    /// The session whose grant `token` is.
    holder: SessionId,
    /// The grant.
    token: Int,
    /// The nonce of a session to open.
    nonce: Nonce,
    /// A name for people.
    name: String,
    /// A note for people.
    label: String,
    /// TTL of a session or key, in milliseconds.
    ttl_ms: Int,
    /// The `op` up to which the client knows.
    after: Int,
    /// A key or lock.
    key: String,
    /// Several locks.
    keys: Vec<KeyAsk>,
    /// `exclusive`, `shared` or `slot`.
    mode: String,
    /// How many slots the lock has.
    slots: Int,
    /// How many of them the asker takes.
    weight: Int,
    /// How long to stand in line, in milliseconds.
    wait_ms: WaitMs,
    /// The grant's own lease, in milliseconds.
    lease_ms: Int,
    /// The owner inside the session.
    owner: String,
    /// Whether writes under the grant are staged until release.
    atomic: bool,
    /// For how long the locks stay closed after any end of the grant but a release, in milliseconds.
    lock_delay_ms: Int,
    /// After how long the grant ends whatever is renewed, in milliseconds.
    max_hold_ms: Int,
    /// The id of a wait.
    wait: Int,
    /// A value: any JSON.
    value: Box<RawValue>,
    /// The version that a key must have.
    if_version: Int,
    /// First key of a range.
    from: String,
    /// Last key of a range; new name of a file.
    to: String,
    /// What names begin with.
    prefix: String,
    /// Where the page before ended.
    cursor: String,
    /// Most items, or bytes, of a page.
    limit: Int,
    /// A file.
    file: String,
    /// Text to append.
    data: String,
    /// Bytes to append, in base64.
    data_b64: String,
    /// Where to read, in bytes.
    offset: Int,
    /// The number of a session.
    client: Int,
    /// Whether a key goes with the session that set it.
    bound: bool,
    /// Why a grant is broken or asked back.
    reason: String,
    /// When a grant that is asked back is broken, in milliseconds.
    deadline_ms: Int,
    /// What keys must be for a transaction to take effect.
    compare: Vec<CompareAsk>,
    /// What a transaction changes.
    apply: Vec<ChangeAsk>,
}

impl Params {
    /// Refuses parameters that `method` does not take. `session`, `got` and `cookie` belong to every method.
    ///
    /// # Errors
    /// `invalid_params` naming the parameter and what the method takes.
    pub fn only(&self, method: &str, takes: &[&str]) -> Result<(), Refusal> {
        const ALWAYS: [&str; 4] = ["session", "ack", "got", "cookie"];
        match self.names().find(|name| !ALWAYS.contains(name) && !takes.contains(name)) {
            None => Ok(()),
            Some(name) if takes.is_empty() => {
                Err(Refusal::new(Kind::InvalidParams, format!("{method} takes no parameter `{name}`")))
            }
            Some(name) => Err(Refusal::new(
                Kind::InvalidParams,
                format!("{method} takes no parameter `{name}`; it takes {}", takes.join(", ")),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Params, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn a_misspelt_parameter_is_refused_by_name() {
        assert!(read(r#"{"tokn": 7}"#).unwrap_err().contains("tokn"));
        let params = read(r#"{"key": "a", "lease_ms": 5}"#).unwrap();
        let refusal = params.only("get", &["key"]).unwrap_err();
        assert!(refusal.message.contains("lease_ms"), "{refusal}");
    }

    #[test]
    fn null_is_not_absence_so_a_null_token_is_no_unfenced_write() {
        assert!(read(r#"{"token": null}"#).is_err());
        assert!(read(r#"{"if_version": null}"#).is_err());
        assert_eq!(read(r#"{"wait_ms": null}"#).unwrap().wait_ms, Some(WaitMs(None)));
        assert_eq!(read(r#"{"value": null}"#).unwrap().value.unwrap().get(), "null");
    }

    #[test]
    fn numbers_are_integers_that_every_reader_can_hold() {
        assert_eq!(read(r#"{"token": 9007199254740991}"#).unwrap().token, Some(Int(INTEGER_MAX)));
        for bad in ["9007199254740992", "-1", "1.5", "1e3", "\"1\"", "18446744073709551616", "NaN"] {
            assert!(read(&format!("{{\"token\": {bad}}}")).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn a_parameter_given_twice_is_refused() {
        assert!(read(r#"{"key": "a", "key": "b"}"#).unwrap_err().contains("duplicate"));
    }
}
