//! flagd's flag document in and out (INTEROP 2.1 and 2.2).

use serde_json::Value;

use crate::compile::FlagState;
use crate::model::{Fractional, Metadata, Segment};

#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// What `fractional` means in this document; stored with each rule.
    pub fractional: Fractional,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Imported {
    /// In the document's order.
    pub flags: Vec<FlagState>,
    /// Flags that cannot be taken over, and why. The others can.
    pub refused: Vec<Refused>,
    /// The flag set's metadata.
    pub metadata: Metadata,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub flag: String,
    /// Into the document, RFC 6901.
    pub pointer: String,
    pub reason: String,
}

/// The document as a whole cannot be read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} (at {pointer:?})")]
pub struct ImportError {
    pub pointer: String,
    pub message: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Exported {
    pub document: Value,
    /// Flags that flagd cannot express (a regular expression, an id list …).
    pub refused: Vec<Refused>,
}

pub fn import(_document: &[u8], _options: ImportOptions) -> Result<Imported, ImportError> {
    Err(ImportError { pointer: String::new(), message: String::new() })
}

/// A document that evaluates equal.
pub fn export(_flags: &[FlagState], _segments: &[Segment], _metadata: &Metadata) -> Exported {
    Exported { document: Value::Null, refused: Vec::new() }
}
