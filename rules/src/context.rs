//! The compact context: JSON decoded once by the host, then read in place, by the evaluator
//! natively and in the guest, without a copy or an allocation.
//!
//! Layout (little endian; offsets count from the first byte of the whole):
//! `magic u16, version u16, entry_count u32`, then the root object's entries, each 20 bytes
//! `key_hash u32, key_start u32, key_len u32, payload …`, then nested arenas and string bytes.
//! The exact layout is private to this file; hosts only copy the bytes.

use crate::ruleset::{Attr, Ruleset};

/// A context in its compact form, owned; made once per request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ContextBuf {
    bytes: Vec<u8>,
}

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

/// A view of a compact context.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    bytes: &'a [u8],
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

/// Elements of an array, or entries of an object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Items<'a> {
    bytes: &'a [u8],
    start: u32,
    len: u32,
}

impl ContextBuf {
    /// From the JSON of an OFREP `context` member. Empty input and `null` are the empty context.
    pub fn from_json(_json: &[u8]) -> Result<ContextBuf, ContextError> {
        Ok(ContextBuf::default())
    }

    pub fn view(&self) -> Context<'_> {
        Context { bytes: &self.bytes }
    }

    /// What a host copies into the guest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<'a> Context<'a> {
    /// From bytes that a host made; malformed ones read as an empty context, never a panic.
    pub fn from_bytes(bytes: &'a [u8]) -> Context<'a> {
        Context { bytes }
    }

    /// The attribute's value, if the context has it.
    pub fn get(&self, _rules: &Ruleset, _attr: &Attr) -> Option<Value<'a>> {
        let _ = self.bytes;
        None
    }
}

/// The hash by which keys are found; xxh3, folded to 32 bits.
pub fn key_hash(key: &str) -> u32 {
    xxhash_rust::xxh3::xxh3_64(key.as_bytes()) as u32
}
