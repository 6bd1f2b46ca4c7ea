//! The compact context from JSON, which servers do; in browsers `npm/src/context.ts` does it.

use std::cmp::Ordering;

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};

use super::*;

/// What was wrong with a context; the caller answers INVALID_CONTEXT or PARSE_ERROR.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ContextError {
    #[error("the context is not valid JSON: {0}")]
    Json(String),
    #[error("the context must be an object, not {0}")]
    NotAnObject(&'static str),
    #[error("the context is nested deeper than {} levels", crate::limits::NESTING_MAX)]
    TooDeep,
    #[error("the context is {bytes} bytes long, the limit is {}", crate::limits::CONTEXT_BYTES_MAX)]
    TooLong { bytes: usize },
}

impl ContextBuf {
    /// From the JSON of an OFREP `context` member. Empty input and `null` are the empty context.
    pub fn from_json(json: &[u8]) -> Result<ContextBuf, ContextError> {
        if json.len() > limits::CONTEXT_BYTES_MAX {
            return Err(ContextError::TooLong { bytes: json.len() });
        }
        if json.trim_ascii().is_empty() {
            return Ok(ContextBuf::default());
        }
        // Once for the whole: serde_json would check each string of a slice by itself.
        let text = std::str::from_utf8(json).map_err(|e| ContextError::Json(e.to_string()))?;
        let mut writer = Writer::for_json_of(json.len());
        let mut from = serde_json::Deserializer::from_str(text);
        let seed = ValueSeed { writer: &mut writer, depth: 0 };
        let read = seed.deserialize(&mut from).and_then(|root| from.end().map(|()| root));
        let root = match read {
            Ok(root) => root,
            Err(_) if writer.too_deep => return Err(ContextError::TooDeep),
            Err(error) => return Err(ContextError::Json(error.to_string())),
        };
        match root.tag {
            TAG_OBJECT => Ok(ContextBuf { bytes: writer.finish(root.payload) }),
            TAG_NULL => Ok(ContextBuf::default()),
            TAG_BOOL => Err(ContextError::NotAnObject("a boolean")),
            TAG_STR => Err(ContextError::NotAnObject("a string")),
            TAG_ARRAY => Err(ContextError::NotAnObject("an array")),
            _ => Err(ContextError::NotAnObject("a number")),
        }
    }
}

/// Writes cells while serde_json reads. Entries of open containers wait in `open`.
struct Writer {
    cells: Vec<Cell>,
    open: Vec<Cell>,
    text: String,
    too_deep: bool,
}

#[derive(Clone, Copy)]
struct Written {
    tag: u8,
    payload: [u8; 8],
}

#[derive(Clone, Copy, Default)]
struct Key {
    hash: u32,
    start: u32,
    len: u32,
}

impl Writer {
    fn for_json_of(len: usize) -> Writer {
        // One cell per 16 bytes of JSON is what ordinary contexts have.
        let cells = len / 16;
        Writer {
            cells: Vec::with_capacity(cells),
            open: Vec::with_capacity(cells),
            text: String::with_capacity(len),
            too_deep: false,
        }
    }

    /// The limit on a context's bytes keeps every offset inside of 24 bits.
    fn store(&mut self, text: &str) -> (u32, u32) {
        let start = self.text.len() as u32;
        self.text.push_str(text);
        (start, text.len() as u32)
    }

    fn key(&self, cell: &Cell) -> &str {
        Items { below: &[], own: &[], text: &self.text }.key(cell)
    }

    fn push(&mut self, mark: usize, key: Key, value: Written) {
        let [a, b, c, d] = key.hash.to_le_bytes();
        let [e, f, g, h] = key.start.to_le_bytes();
        let [i, j, k, _] = key.len.to_le_bytes();
        let [p, q, r, s, t, u, v, w] = value.payload;
        let cell = [a, b, c, d, e, f, g, h, i, j, k, value.tag, p, q, r, s, t, u, v, w];
        self.open.push(cell);
        let Some((_, before)) = self.open.get(mark..).and_then(|own| own.split_last()) else {
            return;
        };
        // Beyond that many entries `close` finds duplicates, in n log n.
        if before.len() >= LINEAR_MAX {
            return;
        }
        let same = before
            .iter()
            .position(|other| hash_of(other) == key.hash && self.key(other) == self.key(&cell));
        if let Some(place) = same
            && let Some(first) = self.open.get_mut(mark.saturating_add(place))
        {
            *first = cell;
            self.open.pop();
        }
    }

    fn push_item(&mut self, value: Written) {
        let [p, q, r, s, t, u, v, w] = value.payload;
        self.open.push([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, value.tag, p, q, r, s, t, u, v, w]);
    }

    /// Moves the entries since `mark` to the cells.
    fn close(&mut self, mark: usize, tag: u8) -> Written {
        if tag == TAG_OBJECT && self.open.len().saturating_sub(mark) > LINEAR_MAX {
            self.sort_out(mark);
        }
        let start = self.cells.len() as u32;
        let own = self.open.get(mark..).unwrap_or(&[]);
        let count = own.len() as u32;
        self.cells.extend_from_slice(own);
        self.open.truncate(mark);
        let [a, b, c, d] = start.to_le_bytes();
        let [e, f, g, h] = count.to_le_bytes();
        Written { tag, payload: [a, b, c, d, e, f, g, h] }
    }

    /// Drops duplicates of a large object and writes its index.
    fn sort_out(&mut self, mark: usize) {
        let own = self.open.get(mark..).unwrap_or(&[]);
        let by_key = |a: &Cell, b: &Cell| -> Ordering {
            hash_of(a).cmp(&hash_of(b)).then_with(|| self.key(a).cmp(self.key(b)))
        };
        let mut order: Vec<(u32, Cell)> = (0u32..).zip(own.iter().copied()).collect();
        // Stable: of equal keys the last one in the document stays last.
        order.sort_by(|(_, a), (_, b)| by_key(a, b));
        let mut kept: Vec<(u32, Cell)> = Vec::with_capacity(order.len());
        for (place, cell) in order {
            match kept.last_mut() {
                Some((_, last)) if by_key(last, &cell).is_eq() => *last = cell,
                _ => kept.push((place, cell)),
            }
        }
        kept.sort_by_key(|(place, _)| *place);
        let entries: Vec<Cell> = kept.into_iter().map(|(_, cell)| cell).collect();
        if entries.len() > LINEAR_MAX {
            let mut index: Vec<(u32, &Cell)> = (0u32..).zip(&entries).collect();
            index.sort_by(|(_, a), (_, b)| by_key(a, b));
            let mut bytes: Vec<u8> = index.iter().flat_map(|(at, _)| at.to_le_bytes()).collect();
            bytes.resize(bytes.len().next_multiple_of(CELL), 0);
            self.cells.extend_from_slice(bytes.as_chunks::<CELL>().0);
        }
        self.open.truncate(mark);
        self.open.extend(entries);
    }

    fn finish(self, root: [u8; 8]) -> Vec<u8> {
        let cells = self.cells.as_flattened();
        let len = HEADER.saturating_add(cells.len()).saturating_add(self.text.len());
        let mut bytes = Vec::with_capacity(len);
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.cells.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&root);
        bytes.extend_from_slice(cells);
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }
}

struct ValueSeed<'w> {
    writer: &'w mut Writer,
    depth: usize,
}

impl ValueSeed<'_> {
    fn descend<E: serde::de::Error>(&mut self) -> Result<usize, E> {
        let depth = self.depth.saturating_add(1);
        if depth > limits::NESTING_MAX {
            self.writer.too_deep = true;
            return Err(E::custom("nested too deep"));
        }
        Ok(depth)
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_> {
    type Value = Written;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Written, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_> {
    type Value = Written;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Written, E> {
        Ok(Written { tag: TAG_NULL, payload: [0; 8] })
    }

    fn visit_bool<E>(self, value: bool) -> Result<Written, E> {
        Ok(Written { tag: TAG_BOOL, payload: u64::from(value).to_le_bytes() })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Written, E> {
        Ok(Written { tag: TAG_INT, payload: value.to_le_bytes() })
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Written, E> {
        match i64::try_from(value) {
            Ok(value) => self.visit_i64(value),
            Err(_) => self.visit_f64(value as f64),
        }
    }

    fn visit_f64<E>(self, value: f64) -> Result<Written, E> {
        Ok(Written { tag: TAG_FLOAT, payload: value.to_le_bytes() })
    }

    fn visit_str<E>(self, value: &str) -> Result<Written, E> {
        let (start, len) = self.writer.store(value);
        let [a, b, c, d] = start.to_le_bytes();
        let [e, f, g, h] = len.to_le_bytes();
        Ok(Written { tag: TAG_STR, payload: [a, b, c, d, e, f, g, h] })
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Written, A::Error> {
        let depth = self.descend()?;
        let mark = self.writer.open.len();
        while let Some(value) = seq.next_element_seed(ValueSeed { writer: self.writer, depth })? {
            self.writer.push_item(value);
        }
        Ok(self.writer.close(mark, TAG_ARRAY))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Written, A::Error> {
        let depth = self.descend()?;
        let mark = self.writer.open.len();
        while let Some(key) = map.next_key_seed(KeySeed(self.writer))? {
            let value = map.next_value_seed(ValueSeed { writer: self.writer, depth })?;
            self.writer.push(mark, key, value);
        }
        Ok(self.writer.close(mark, TAG_OBJECT))
    }
}

struct KeySeed<'w>(&'w mut Writer);

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = Key;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Key, D::Error> {
        from.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        let (start, len) = self.0.store(key);
        Ok(Key { hash: key_hash(key), start, len })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::ruleset::{Span, Text};

    /// Looks `path` up in `context` both ways: as compiled attribute and as text.
    #[track_caller]
    fn check(context: &str, path: &str, wanted: Option<serde_json::Value>) {
        let buffer = ContextBuf::from_json(context.as_bytes()).unwrap();
        let mut rules = Ruleset { text: path.to_owned(), ..Ruleset::default() };
        let mut start = 0;
        for part in path.split('.') {
            rules.attr_parts.push(Text { start, len: part.len() as u32 });
            start += part.len() as u32 + 1;
        }
        let attr = Attr {
            path: Text { start: 0, len: path.len() as u32 },
            path_hash: key_hash(path),
            parts: Span { start: 0, len: rules.attr_parts.len() as u32 },
            first_hash: key_hash(path.split('.').next().unwrap()),
        };
        // What the guest sees is a copy of the bytes, at any address.
        let copy = [&[0], buffer.as_bytes()].concat();
        let view = Context::from_bytes(&copy[1..]);
        let found = view.get(&rules, &attr).map(|value| value.to_json());
        assert_eq!(found, wanted, "{path} of {context}");
        let found = view.get_path(path).map(|value| value.to_json());
        assert_eq!(found, wanted, "{path} of {context}, as text");
    }

    fn nested(levels: usize) -> String {
        format!("{}1{}", r#"{"a":"#.repeat(levels), "}".repeat(levels))
    }

    #[test]
    fn a_literal_dotted_key_is_found_before_the_path() {
        check(r#"{"a.b":1,"a":{"b":2}}"#, "a.b", Some(json!(1)));
        check(r#"{"a":{"b":2}}"#, "a.b", Some(json!(2)));
        check(r#"{"a":{"b.c":2}}"#, "a.b.c", None);
        check(r#"{"a":{"b":{"c":null}}}"#, "a.b.c", Some(json!(null)));
        check(r#"{"a":[{"b":2}]}"#, "a.b", None);
        check(r#"{"":1,"a":{"":2}}"#, "a.", Some(json!(2)));
        check(r#"{"a":1}"#, "A", None);
    }

    #[test]
    fn of_duplicate_keys_the_last_counts_in_small_and_large_objects() {
        check(r#"{"a":1,"b":2,"a":{"c":3}}"#, "a.c", Some(json!(3)));
        for size in [LINEAR_MAX - 1, LINEAR_MAX, LINEAR_MAX + 1, 3 * LINEAR_MAX] {
            let mut entries: Vec<String> = (0..size).map(|n| format!(r#""key{n}":{n}"#)).collect();
            entries.extend((0..size).step_by(3).map(|n| format!(r#""key{n}":"again{n}""#)));
            let text = format!("{{\"in\":{{{}}}}}", entries.join(","));
            let buffer = ContextBuf::from_json(text.as_bytes()).unwrap();
            let Some(Value::Object(items)) = buffer.view().get_path("in") else { panic!() };
            assert_eq!(items.len(), size);
            let keys: Vec<_> = items.entries().map(|(key, _)| key.to_owned()).collect();
            let wanted: Vec<_> = (0..size).map(|n| format!("key{n}")).collect();
            assert_eq!(keys, wanted, "the document's order");
            for n in 0..size {
                let wanted = if n % 3 == 0 { json!(format!("again{n}")) } else { json!(n) };
                check(&text, &format!("in.key{n}"), Some(wanted.clone()));
                let flat = format!("{{{}}}", entries.join(","));
                check(&flat, &format!("key{n}"), Some(wanted));
            }
            check(&text, "in.key", None);
        }
    }

    #[test]
    fn numbers_keep_their_kind_and_value() {
        let buffer =
            ContextBuf::from_json(br#"[3,3.0,1e2,-0,9223372036854775807,9223372036854775808]"#);
        assert_eq!(buffer, Err(ContextError::NotAnObject("an array")));
        let text = r#"{"n":[3,3.0,1e2,-7,9223372036854775807,9223372036854775808]}"#;
        let buffer = ContextBuf::from_json(text.as_bytes()).unwrap();
        let Some(Value::Array(items)) = buffer.view().get_path("n") else { panic!() };
        let found: Vec<Value<'_>> = items.iter().collect();
        let wanted = [
            Value::Int(3),
            Value::Float(3.0),
            Value::Float(100.0),
            Value::Int(-7),
            Value::Int(i64::MAX),
            Value::Float(9_223_372_036_854_775_808.0),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn nothing_and_null_are_the_empty_context_and_no_other_type_is_one() {
        for text in ["", " \n", "null", "{}"] {
            assert!(ContextBuf::from_json(text.as_bytes()).unwrap().view().root().is_empty());
        }
        for (text, name) in [("1", "a number"), ("\"x\"", "a string"), ("true", "a boolean")] {
            let found = ContextBuf::from_json(text.as_bytes());
            assert_eq!(found, Err(ContextError::NotAnObject(name)));
        }
        for text in ["{", "{}x", r#"{"a":}"#, "{\"a\":\"\\ud800\"}", "{\"a\":\"\u{1}\"}"] {
            let found = ContextBuf::from_json(text.as_bytes());
            assert!(matches!(found, Err(ContextError::Json(_))), "{text}: {found:?}");
        }
        let found = ContextBuf::from_json(b"{\"a\":\"\xff\"}");
        assert!(matches!(found, Err(ContextError::Json(_))));
    }

    #[test]
    fn a_context_at_its_limits_passes_and_one_more_is_an_error_that_names_them() {
        let levels = limits::NESTING_MAX;
        let path = vec!["a"; levels].join(".");
        check(&nested(levels), &path, Some(json!(1)));
        let found = ContextBuf::from_json(nested(levels + 1).as_bytes());
        assert_eq!(found, Err(ContextError::TooDeep));
        let found = ContextBuf::from_json(nested(10_000).as_bytes());
        assert_eq!(found, Err(ContextError::TooDeep), "long before any stack ends");

        let fill = limits::CONTEXT_BYTES_MAX - r#"{"a":""}"#.len();
        let at = |len: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(len));
        check(&at(fill), "a", Some(json!("x".repeat(fill))));
        let found = ContextBuf::from_json(at(fill + 1).as_bytes());
        assert_eq!(found, Err(ContextError::TooLong { bytes: limits::CONTEXT_BYTES_MAX + 1 }));
    }

    #[test]
    fn a_full_context_of_tiny_entries_is_decoded_in_time() {
        // Quadratic work on duplicates would take seconds here.
        let entries: Vec<String> = (0..7_000).map(|n| format!("\"{n:x}\":1")).collect();
        let text = format!("{{{}}}", entries.join(","));
        let buffer = ContextBuf::from_json(text.as_bytes());
        assert_eq!(buffer.unwrap().view().root().len(), 7_000);
    }

    /// Everything that can be read of a context.
    fn read_all(context: Context<'_>) -> usize {
        let keys = ["", "a", "key0", "key40", "in"];
        let found = keys.iter().filter(|key| context.get_path(key).is_some()).count();
        let (root, same) = (Value::Object(context.root()), Value::Object(context.root()));
        found + usize::from(root == same) + root.to_json().to_string().len()
    }

    fn any_json(depth: u32) -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|v| json!(v)),
            any::<i64>().prop_map(|v| json!(v)),
            any::<f64>().prop_map(|v| json!(v)),
            ".{0,8}".prop_map(|v| json!(v)),
        ];
        leaf.prop_recursive(depth, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(|v| json!(v)),
                proptest::collection::btree_map(".{0,3}", inner, 0..4).prop_map(|v| json!(v)),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_read_back_is_what_was_written(
            entries in proptest::collection::btree_map(".{0,4}", any_json(3), 0..40),
        ) {
            let json = json!(entries);
            let text = json.to_string();
            let buffer = ContextBuf::from_json(text.as_bytes()).unwrap();
            let back = Value::Object(buffer.view().root()).to_json();
            prop_assert_eq!(back, serde_json::from_str::<serde_json::Value>(&text).unwrap());
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in any::<Vec<u8>>(), near in "[{}\\[\\]\",:a0-9. ]{0,40}") {
            let _ = ContextBuf::from_json(&text);
            let _ = ContextBuf::from_json(near.as_bytes());
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in any::<Vec<u8>>(),
            entries in proptest::collection::btree_map("[a-k]{0,2}", any_json(2), 0..40),
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let _ = read_all(Context::from_bytes(&bytes));
            let buffer = ContextBuf::from_json(json!(entries).to_string().as_bytes()).unwrap();
            let mut bytes = buffer.as_bytes().to_vec();
            for (at, value) in flips {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            let _ = read_all(Context::from_bytes(&bytes));
            let _ = read_all(Context::from_bytes(&bytes[..cut.index(bytes.len())]));
        }
    }
}
