//! JSON objects that name an entry twice. Readers of maps silently keep the last one, and an
//! author who wrote a variant or a weight twice did not mean that.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::Problem;
use super::place::Place;

/// The first of them. What is no JSON is not this function's business.
pub fn first(json: &[u8]) -> Option<Problem> {
    let found = RefCell::new(None);
    let scan = Scan { at: Place::Root, found: &found };
    let _ = scan.deserialize(&mut serde_json::Deserializer::from_slice(json));
    found.into_inner()
}

/// serde_json bounds the depth.
struct Scan<'p, 'f> {
    at: Place<'p>,
    found: &'f RefCell<Option<Problem>>,
}

impl<'de> DeserializeSeed<'de> for Scan<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Scan<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let mut index = 0usize;
        while items
            .next_element_seed(Scan { at: self.at.index(index), found: self.found })?
            .is_some()
        {
            index = index.saturating_add(1);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            let at = self.at.key(&key);
            if keys.contains(&key) {
                let message = format!("{key:?} is given twice in the same object");
                self.found.replace(Some(Problem { pointer: at.pointer(), message }));
                return Err(A::Error::custom("given twice"));
            }
            entries.next_value_seed(Scan { at, found: self.found })?;
            keys.insert(key);
        }
        Ok(())
    }
}
