//! The locks that somebody asks for or holds, each with its mode.

use crate::command::Ask;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::{Deref, DerefMut};

/// Locks with their modes. One lock, which is what most ask for, takes no memory of its own.
#[derive(Clone, PartialEq, Eq)]
pub struct Asks(Form);

/// `Box<Vec<_>>` and not `Box<[_]>`: one word fits beside the name in [`Ask`], so that a grant is a word smaller.
#[derive(Clone, PartialEq, Eq)]
#[expect(clippy::box_collection)]
enum Form {
    One(Ask),
    Many(Box<Vec<Ask>>),
}

impl Deref for Asks {
    type Target = [Ask];

    fn deref(&self) -> &[Ask] {
        match &self.0 {
            Form::One(ask) => std::slice::from_ref(ask),
            Form::Many(asks) => asks,
        }
    }
}

impl DerefMut for Asks {
    fn deref_mut(&mut self) -> &mut [Ask] {
        match &mut self.0 {
            Form::One(ask) => std::slice::from_mut(ask),
            Form::Many(asks) => asks,
        }
    }
}

impl From<Ask> for Asks {
    fn from(ask: Ask) -> Asks {
        Asks(Form::One(ask))
    }
}

impl From<&[Ask]> for Asks {
    fn from(asks: &[Ask]) -> Asks {
        match asks {
            [ask] => Asks(Form::One(ask.clone())),
            asks => Asks(Form::Many(Box::new(asks.to_vec()))),
        }
    }
}

impl From<Vec<Ask>> for Asks {
    fn from(mut asks: Vec<Ask>) -> Asks {
        match (asks.len(), asks.pop()) {
            (1, Some(ask)) => Asks(Form::One(ask)),
            (_, last) => {
                asks.extend(last);
                Asks(Form::Many(Box::new(asks)))
            }
        }
    }
}

impl FromIterator<Ask> for Asks {
    fn from_iter<I: IntoIterator<Item = Ask>>(asks: I) -> Asks {
        Asks::from(Vec::from_iter(asks))
    }
}

impl<'a> IntoIterator for &'a Asks {
    type Item = &'a Ask;
    type IntoIter = std::slice::Iter<'a, Ask>;

    fn into_iter(self) -> std::slice::Iter<'a, Ask> {
        self.iter()
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Serialize for Asks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.deref().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Asks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Asks, D::Error> {
        Vec::deserialize(deserializer).map(Asks::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Mode;
    use crate::name::Name;

    #[test]
    fn any_number_of_locks_stays_what_it_is() {
        let all: Vec<Ask> =
            ["a", "b", "c"].map(|key| Ask { key: Name::new(key).unwrap(), mode: Mode::Shared }).to_vec();
        for count in 0..=3 {
            let few = &all[..count];
            let asks = Asks::from(few);
            assert_eq!((&*asks, &*Asks::from(few.to_vec())), (few, few));
            assert_eq!(postcard::to_stdvec(&asks), postcard::to_stdvec(few));
            let text = serde_json::to_string(&asks).unwrap();
            assert_eq!(serde_json::from_str::<Asks>(&text).unwrap(), asks);
        }
        assert_eq!(size_of::<Asks>(), size_of::<Ask>());
    }
}
