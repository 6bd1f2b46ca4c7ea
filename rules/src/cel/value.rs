//! CEL's values, as far as JSON has them, with timestamps and durations.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use serde_json::{Value as Json, json};

use super::time;
use crate::clause::compare_mixed;
use crate::context::{Items, Value};

/// Nesting that an expression may build on top of its context's.
const BUILT_DEPTH_MAX: u16 = 64;
/// Values that `to_json` writes; shared parts count each time.
const JSON_VALUES_MAX: u32 = 10_000;

/// A value at run time. Cloning is cheap unless it is a text that the expression built.
#[derive(Debug, Clone)]
pub enum Val<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Double(f64),
    Str(Cow<'a, str>),
    List(List<'a>),
    Map(Map<'a>),
    /// Nanoseconds since the epoch.
    Timestamp(i128),
    /// Nanoseconds.
    Duration(i128),
}

#[derive(Debug, Clone)]
pub enum List<'a> {
    Context(Items<'a>),
    Built(Rc<Built<Val<'a>>>),
}

#[derive(Debug, Clone)]
pub enum Map<'a> {
    Context(Items<'a>),
    Built(Rc<Built<(Val<'a>, Val<'a>)>>),
}

#[derive(Debug)]
pub struct Built<T> {
    items: Vec<T>,
    depth: u16,
}

impl<'a> Val<'a> {
    pub(super) fn from_context(value: Value<'a>) -> Val<'a> {
        match value {
            Value::Null => Val::Null,
            Value::Bool(value) => Val::Bool(value),
            Value::Int(number) => Val::Int(number),
            Value::Float(number) => Val::Double(number),
            Value::Str(text) => Val::Str(Cow::Borrowed(text)),
            Value::Array(items) => Val::List(List::Context(items)),
            Value::Object(items) => Val::Map(Map::Context(items)),
        }
    }

    /// `None` where it would be nested too deep.
    pub(super) fn list(items: Vec<Val<'a>>) -> Option<Val<'a>> {
        let depth = deeper(items.iter())?;
        Some(Val::List(List::Built(Rc::new(Built { items, depth }))))
    }

    pub(super) fn map(items: Vec<(Val<'a>, Val<'a>)>) -> Option<Val<'a>> {
        let depth = deeper(items.iter().map(|(_, value)| value))?;
        Some(Val::Map(Map::Built(Rc::new(Built { items, depth }))))
    }

    pub(super) fn text(text: String) -> Val<'a> {
        Val::Str(Cow::Owned(text))
    }

    fn built_depth(&self) -> u16 {
        match self {
            Val::List(List::Built(list)) => list.depth,
            Val::Map(Map::Built(map)) => map.depth,
            _ => 0,
        }
    }

    pub fn type_name(&self) -> &'static str {
        match self {
            Val::Null => "null",
            Val::Bool(_) => "bool",
            Val::Int(_) => "int",
            Val::Double(_) => "double",
            Val::Str(_) => "string",
            Val::List(_) => "list",
            Val::Map(_) => "map",
            Val::Timestamp(_) => "timestamp",
            Val::Duration(_) => "duration",
        }
    }

    /// `None` where they have no order.
    pub(super) fn order(&self, other: &Val<'_>) -> Option<Ordering> {
        match (self, other) {
            (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
            (Val::Int(a), Val::Int(b)) => Some(a.cmp(b)),
            (Val::Double(a), Val::Double(b)) => a.partial_cmp(b),
            (Val::Int(a), Val::Double(b)) => compare_mixed(*a, *b),
            (Val::Double(a), Val::Int(b)) => compare_mixed(*b, *a).map(Ordering::reverse),
            (Val::Str(a), Val::Str(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
            (Val::Timestamp(a), Val::Timestamp(b)) | (Val::Duration(a), Val::Duration(b)) => {
                Some(a.cmp(b))
            }
            _ => None,
        }
    }

    /// As JSON; timestamps and durations as their texts, what JSON cannot write as null.
    pub fn to_json(&self) -> Json {
        self.to_json_within(&mut JSON_VALUES_MAX.clone())
    }

    fn to_json_within(&self, left: &mut u32) -> Json {
        let Some(fewer) = left.checked_sub(1) else { return Json::Null };
        *left = fewer;
        match self {
            Val::Null => Json::Null,
            Val::Bool(value) => json!(value),
            Val::Int(number) => json!(number),
            Val::Double(number) => json!(number),
            Val::Str(text) => json!(text),
            Val::Timestamp(nanos) => json!(time::timestamp_text(*nanos)),
            Val::Duration(nanos) => json!(time::duration_text(*nanos)),
            Val::List(List::Context(items)) => Value::Array(*items).to_json(),
            Val::Map(Map::Context(items)) => Value::Object(*items).to_json(),
            Val::List(list) => {
                Json::Array(list.iter().map(|item| item.to_json_within(left)).collect())
            }
            Val::Map(map) => {
                let mut out = serde_json::Map::new();
                for (key, value) in map.entries() {
                    let key = match key {
                        Val::Str(text) => text.into_owned(),
                        key => key.to_json_within(left).to_string(),
                    };
                    out.insert(key, value.to_json_within(left));
                }
                Json::Object(out)
            }
        }
    }
}

fn deeper<'v, 'a: 'v>(values: impl Iterator<Item = &'v Val<'a>>) -> Option<u16> {
    let depth = values.map(Val::built_depth).max().unwrap_or(0).saturating_add(1);
    (depth <= BUILT_DEPTH_MAX).then_some(depth)
}

impl<'a> List<'a> {
    pub fn len(&self) -> usize {
        match self {
            List::Context(items) => items.len(),
            List::Built(list) => list.items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn at(&self, index: usize) -> Option<Val<'a>> {
        match self {
            List::Context(items) => items.at(index).map(Val::from_context),
            List::Built(list) => list.items.get(index).cloned(),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Val<'a>> + '_ {
        (0..self.len()).filter_map(|index| self.at(index))
    }
}

impl<'a> Map<'a> {
    pub fn len(&self) -> usize {
        match self {
            Map::Context(items) => items.len(),
            Map::Built(map) => map.items.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry at a place, in the order of writing.
    pub fn entry(&self, index: usize) -> Option<(Val<'a>, Val<'a>)> {
        match self {
            Map::Context(items) => {
                let (key, value) = items.entry_at(index)?;
                Some((Val::Str(Cow::Borrowed(key)), Val::from_context(value)))
            }
            Map::Built(map) => map.items.get(index).cloned(),
        }
    }

    pub fn entries(&self) -> impl Iterator<Item = (Val<'a>, Val<'a>)> + '_ {
        (0..self.len()).filter_map(|index| self.entry(index))
    }

    pub(super) fn field(&self, name: &str) -> Option<Val<'a>> {
        match self {
            Map::Context(items) => items.get(name).map(Val::from_context),
            Map::Built(map) => map
                .items
                .iter()
                .find(|(key, _)| matches!(key, Val::Str(key) if key == name))
                .map(|(_, value)| value.clone()),
        }
    }

    /// Keys are equal as numbers are: 1.0 finds 1.
    pub(super) fn get(&self, key: &Val<'_>) -> Option<Val<'a>> {
        match (self, key) {
            (_, Val::Str(name)) => self.field(name),
            (Map::Context(_), _) => None,
            (Map::Built(map), key) => map
                .items
                .iter()
                .find(|(known, _)| known.order(key) == Some(Ordering::Equal))
                .map(|(_, value)| value.clone()),
        }
    }
}
