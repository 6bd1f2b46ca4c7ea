//! The compact context: JSON decoded once by the host, then read in place, by the evaluator
//! natively and in the guest, without a copy or an allocation.
//!
//! Layout, little endian: a header of 16 bytes (`magic u16, version u16, cell_count u32,
//! root_start u32, root_count u32`), then cells of 20 bytes, then the text of every key and
//! string. A cell is `key_hash u32, key_start u32, key_len u24 and tag u8, payload u64`; the
//! payload of a container is `start u32, count u32` in cells. Children lie before their parent,
//! so a reader that only looks backwards ends on any bytes. An object of more than
//! `LINEAR_MAX` entries is preceded by its entries' numbers in the order of hash and key.
//! The exact layout is private to this file; hosts only copy the bytes.
//!
//! Entries keep the document's order; of duplicate keys the last value counts, at the first's
//! place.

#[cfg(feature = "full")]
mod json;

use alloc::vec::Vec;

use crate::limits;
use crate::ruleset::{Attr, Ruleset, slice};
#[cfg(feature = "full")]
pub use json::ContextError;

const MAGIC: u16 = 0x7443;
const VERSION: u16 = 1;
const HEADER: usize = 16;
const CELL: usize = 20;

/// Objects up to this size are searched in a row, larger ones through their index: ten to twenty
/// hashes are compared faster than a binary search predicts its branches.
const LINEAR_MAX: usize = 32;

const TAG_NULL: u8 = 0;
const TAG_BOOL: u8 = 1;
const TAG_INT: u8 = 2;
const TAG_FLOAT: u8 = 3;
const TAG_STR: u8 = 4;
const TAG_ARRAY: u8 = 5;
const TAG_OBJECT: u8 = 6;

type Cell = [u8; CELL];

/// A context in its compact form, owned; made once per request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContextBuf {
    bytes: Vec<u8>,
}

/// A view of a compact context.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    root: Items<'a>,
}

/// One value of a context.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    /// An integer that fits; JSON numbers with a fraction or exponent are `Float`.
    Int(i64),
    Float(f64),
    Str(&'a str),
    Array(Items<'a>),
    Object(Items<'a>),
}

/// A cell of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) u32);

/// Elements of an array, or entries of an object.
#[derive(Debug, Clone, Copy)]
pub struct Items<'a> {
    /// The cells before this container's own; its children are among them.
    below: &'a [Cell],
    own: &'a [Cell],
    text: &'a str,
}

impl ContextBuf {
    pub fn view(&self) -> Context<'_> {
        Context::from_bytes(&self.bytes)
    }

    /// What a host copies into the guest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<'a> Context<'a> {
    /// From bytes that a host made; malformed ones read as an empty context, never a panic.
    pub fn from_bytes(bytes: &'a [u8]) -> Context<'a> {
        Context::from_bytes_with(bytes, |text| core::str::from_utf8(text).ok())
    }

    /// As `from_bytes`, for a host that has a quicker way to see that bytes are text.
    pub fn from_bytes_with(
        bytes: &'a [u8],
        as_text: impl FnOnce(&'a [u8]) -> Option<&'a str>,
    ) -> Context<'a> {
        Context { root: read_root(bytes, as_text).unwrap_or(Items::EMPTY) }
    }

    /// The attribute's value, if the context has it: the whole path as a literal key first, then
    /// segment by segment.
    #[inline]
    pub fn get(&self, rules: &Ruleset, attr: &Attr) -> Option<Value<'a>> {
        self.at(self.find(rules, attr)?)
    }

    /// Where `get` finds it. Values are too large to be handed from function to function, so they are
    /// read once, at the end.
    #[inline]
    pub(crate) fn find(&self, rules: &Ruleset, attr: &Attr) -> Option<Place> {
        let found = self.root.find(attr.path_hash, rules.str(attr.path));
        if found.is_some() || attr.parts.len < 2 {
            return found;
        }
        self.find_nested(rules, attr)
    }

    #[inline(never)]
    fn find_nested(&self, rules: &Ruleset, attr: &Attr) -> Option<Place> {
        let (first, rest) = slice(&rules.attr_parts, attr.parts).split_first()?;
        let mut found = self.root.find(attr.first_hash, rules.str(*first))?;
        for part in rest {
            let Value::Object(items) = self.at(found)? else { return None };
            found = items.find_text(rules.str(*part))?;
        }
        Some(found)
    }

    /// The value there.
    #[inline]
    pub(crate) fn at(&self, place: Place) -> Option<Value<'a>> {
        let Items { below, own, .. } = self.root;
        let place = place.0 as usize;
        let cell = match place.checked_sub(below.len()) {
            Some(own_place) => own.get(own_place)?,
            None => below.get(place)?,
        };
        Some(self.root.value(cell))
    }

    /// The whole context.
    pub fn root(&self) -> Items<'a> {
        self.root
    }

    /// As `get`, for a path that no compiler saw.
    pub fn get_path(&self, path: &str) -> Option<Value<'a>> {
        if let Some(value) = self.root.get(path) {
            return Some(value);
        }
        let mut parts = path.split('.');
        let mut value = self.root.get(parts.next()?)?;
        for part in parts {
            let Value::Object(items) = value else { return None };
            value = items.get(part)?;
        }
        Some(value)
    }
}

fn read_root<'a>(
    bytes: &'a [u8],
    as_text: impl FnOnce(&'a [u8]) -> Option<&'a str>,
) -> Option<Items<'a>> {
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let (words, _) = header.as_chunks::<4>();
    let [mark, cell_count, root_start, root_count] = words else { return None };
    if u32::from_le_bytes(*mark) != u32::from(VERSION) << 16 | u32::from(MAGIC) {
        return None;
    }
    let cells_len = (u32::from_le_bytes(*cell_count) as usize).checked_mul(CELL)?;
    let (cells, text) = rest.split_at_checked(cells_len)?;
    let (cells, _) = cells.as_chunks::<CELL>();
    let all = Items { below: cells, own: &[], text: as_text(text)? };
    all.container(u32::from_le_bytes(*root_start), u32::from_le_bytes(*root_count))
}

impl<'a> Items<'a> {
    pub const EMPTY: Items<'static> = Items { below: &[], own: &[], text: "" };

    pub fn len(&self) -> usize {
        self.own.len()
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_empty()
    }

    /// The values, in the document's order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = Value<'a>> + Clone {
        self.own.iter().map(move |cell| self.value(cell))
    }

    /// Keys and values of an object; the keys of an array are empty.
    pub fn entries(self) -> impl ExactSizeIterator<Item = (&'a str, Value<'a>)> + Clone {
        self.own.iter().map(move |cell| (self.key(cell), self.value(cell)))
    }

    /// The entry at `index`.
    pub fn entry_at(&self, index: usize) -> Option<(&'a str, Value<'a>)> {
        self.own.get(index).map(|cell| (self.key(cell), self.value(cell)))
    }

    /// The element at `index`.
    pub fn at(&self, index: usize) -> Option<Value<'a>> {
        self.own.get(index).map(|cell| self.value(cell))
    }

    /// An object's value by its key.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let place = self.position_of_text(key)?;
        self.own.get(place).map(|cell| self.value(cell))
    }

    fn find_text(&self, key: &str) -> Option<Place> {
        self.position_of_text(key).map(|position| self.place(position))
    }

    #[inline]
    fn find(&self, hash: u32, key: &str) -> Option<Place> {
        self.position(hash, key).map(|position| self.place(position))
    }

    /// An own cell, as everybody counts them.
    #[inline]
    fn place(&self, position: usize) -> Place {
        Place(self.below.len().wrapping_add(position) as u32)
    }

    fn position_of_text(&self, key: &str) -> Option<usize> {
        if self.own.len() > LINEAR_MAX {
            return self.position_by_index(key_hash(key), key);
        }
        // Without the hash: nested objects are small, and comparing lengths first is as good.
        self.own.iter().position(|cell| same_text(self.key(cell), key))
    }

    #[inline]
    fn position(&self, hash: u32, key: &str) -> Option<usize> {
        if self.own.len() > LINEAR_MAX {
            return self.position_by_index(hash, key);
        }
        let mut cells = self.own.iter().enumerate();
        loop {
            let (position, cell) = cells.find(|(_, cell)| hash_of(cell) == hash)?;
            if same_text(self.key(cell), key) {
                return Some(position);
            }
        }
    }

    #[inline(never)]
    fn position_by_index(&self, hash: u32, key: &str) -> Option<usize> {
        let index_cells = self.own.len().div_ceil(CELL / 4);
        let index = self.below.get(self.below.len().checked_sub(index_cells)?..)?;
        let (index, _) = index.as_flattened().as_chunks::<4>();
        let index = index.get(..self.own.len())?;
        let at = |entry: &[u8; 4]| {
            let position = u32::from_le_bytes(*entry) as usize;
            Some((position, self.own.get(position)?))
        };
        let is_before = |entry: &[u8; 4]| at(entry).is_some_and(|(_, cell)| hash_of(cell) < hash);
        let first = index.partition_point(is_before);
        index
            .get(first..)?
            .iter()
            .map_while(at)
            .take_while(|(_, cell)| hash_of(cell) == hash)
            .find(|(_, cell)| self.key(cell) == key)
            .map(|(position, _)| position)
    }

    #[inline]
    fn key(&self, cell: &Cell) -> &'a str {
        let [_, _, _, _, a, b, c, d, l, m, h, ..] = *cell;
        self.text_at(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([l, m, h, 0]))
    }

    #[inline]
    fn text_at(&self, start: u32, len: u32) -> &'a str {
        let start = start as usize;
        start.checked_add(len as usize).and_then(|end| self.text.get(start..end)).unwrap_or("")
    }

    #[inline]
    fn value(&self, cell: &Cell) -> Value<'a> {
        let [_, _, _, _, _, _, _, _, _, _, _, tag, payload @ ..] = *cell;
        let [a, b, c, d, e, f, g, h] = payload;
        let pair = || (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
        match tag {
            TAG_BOOL => Value::Bool(a != 0),
            TAG_INT => Value::Int(i64::from_le_bytes(payload)),
            TAG_FLOAT => Value::Float(f64::from_le_bytes(payload)),
            TAG_STR => {
                let (start, len) = pair();
                Value::Str(self.text_at(start, len))
            }
            TAG_ARRAY | TAG_OBJECT => {
                let (start, count) = pair();
                match self.container(start, count) {
                    Some(items) if tag == TAG_ARRAY => Value::Array(items),
                    Some(items) => Value::Object(items),
                    None => Value::Null,
                }
            }
            _ => Value::Null,
        }
    }

    /// No more cells than these can be under this container, unless malformed bytes name some
    /// twice: whoever walks down stops there, or would walk for ever.
    fn cells_max(&self) -> usize {
        self.below.len().saturating_add(self.own.len())
    }

    fn container(&self, start: u32, count: u32) -> Option<Items<'a>> {
        let start = start as usize;
        let own = self.below.get(start..start.checked_add(count as usize)?)?;
        Some(Items { below: self.below.get(..start)?, own, text: self.text })
    }
}

/// Equal as JSON values: objects in any order, 3 and 3.0 are different.
impl PartialEq for Items<'_> {
    fn eq(&self, other: &Items<'_>) -> bool {
        fn equal(a: Items<'_>, b: Items<'_>, depth: usize, left: &mut usize) -> bool {
            a.len() == b.len()
                && depth <= limits::NESTING_MAX
                && a.entries().enumerate().all(|(index, (key, value))| {
                    let Some(less) = left.checked_sub(1) else { return false };
                    *left = less;
                    let other = if key.is_empty() { b.at(index) } else { b.get(key) };
                    match (value, other) {
                        (Value::Array(x), Some(Value::Array(y)))
                        | (Value::Object(x), Some(Value::Object(y))) => {
                            equal(x, y, depth.saturating_add(1), left)
                        }
                        (x, Some(y)) => x == y,
                        (_, None) => false,
                    }
                })
        }
        equal(*self, *other, 0, &mut self.cells_max())
    }
}

impl Value<'_> {
    /// For traces and for what JSONLogic returns; numbers that JSON cannot write become null.
    #[cfg(feature = "full")]
    pub fn to_json(&self) -> serde_json::Value {
        fn convert(value: &Value<'_>, depth: usize, left: &mut usize) -> serde_json::Value {
            use serde_json::Value as Json;
            let deeper = depth.saturating_add(1);
            let Some(less) = left.checked_sub(1) else { return Json::Null };
            *left = less;
            match value {
                Value::Array(_) | Value::Object(_) if depth > limits::NESTING_MAX => Json::Null,
                Value::Null => Json::Null,
                Value::Bool(value) => Json::Bool(*value),
                Value::Int(value) => Json::from(*value),
                Value::Float(value) => Json::from(*value),
                Value::Str(value) => Json::from(*value),
                Value::Array(items) => {
                    Json::Array(items.iter().map(|item| convert(&item, deeper, left)).collect())
                }
                Value::Object(items) => Json::Object(
                    items
                        .entries()
                        .map(|(key, value)| (key.to_owned(), convert(&value, deeper, left)))
                        .collect(),
                ),
            }
        }
        let cells_max = match self {
            Value::Array(items) | Value::Object(items) => items.cells_max(),
            _ => 0,
        };
        convert(self, 0, &mut cells_max.saturating_add(1))
    }

    /// The JSON type's name, as `type_is` and messages say it.
    pub fn type_name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Int(_) | Value::Float(_) => "number",
            Value::Str(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }
}

/// `a == b` for keys and other short texts: two or three loads in place of a call that compares
/// bytes, which in the guest goes one byte at a time.
#[inline]
pub(crate) fn same_text(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    if a.len() > 16 {
        return a == b;
    }
    // Where the text is shorter than both, the first and the last eight bytes overlap.
    if let (Some(x), Some(y)) = (a.first_chunk::<8>(), b.first_chunk::<8>()) {
        return x == y && a.last_chunk::<8>() == b.last_chunk::<8>();
    }
    if let (Some(x), Some(y)) = (a.first_chunk::<4>(), b.first_chunk::<4>()) {
        return x == y && a.last_chunk::<4>() == b.last_chunk::<4>();
    }
    a.iter().zip(b).all(|(x, y)| x == y)
}

#[inline]
fn hash_of(cell: &Cell) -> u32 {
    let [a, b, c, d, ..] = *cell;
    u32::from_le_bytes([a, b, c, d])
}

/// The hash by which keys are found; xxh3, folded to 32 bits.
pub fn key_hash(key: &str) -> u32 {
    xxhash_rust::xxh3::xxh3_64(key.as_bytes()) as u32
}
