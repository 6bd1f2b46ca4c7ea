//! What an edge loads: one environment, compiled. Content-addressed by SHA-256, never changed.
//!
//! A blob is a frame with two parts: the manifest, which is the edge's business (key hashes,
//! stream secret, id lists, time boundaries), and the ruleset, which alone enters the evaluator.
//! Each is a frame of its own: `magic [u8; 4], format u16, min_reader u16, length u32, body,
//! xxh3-64 of all before`. Any flipped, missing or surplus byte is an error.
//!
//! No revision inside: the same state gives the same bytes, also when it comes back later.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::keys::KeyRecord;
use crate::ruleset::Ruleset;

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u16 = 1;
/// The oldest reader that understands what this build writes.
pub const MIN_READER: u16 = 1;

/// SHA-256 of a blob; its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct DigestError;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    #[error("the {part} is cut short: {have} bytes of {want}")]
    Truncated { part: &'static str, have: usize, want: usize },
    #[error("the {part} does not begin with its magic number")]
    NotOurs { part: &'static str },
    #[error("the {part} needs reader {needs}, this is reader {FORMAT}")]
    TooNew { part: &'static str, needs: u16 },
    #[error("the {part}'s checksum does not match its bytes")]
    Corrupt { part: &'static str },
    #[error("the {part} is over its limit: {what}")]
    OverLimit { part: &'static str, what: String },
    #[error("the {part} is malformed: {what}")]
    Malformed { part: &'static str, what: String },
}

/// The edge's part of a blob.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub namespace: String,
    pub environment: String,
    /// Sorted by id.
    pub keys: Vec<KeyRecord>,
    /// HMAC-SHA256 key of this environment's stream tokens.
    pub stream_secret: [u8; 32],
    /// Id lists by the index that the ruleset uses.
    pub lists: Vec<ListRef>,
    /// Times (ms since the epoch, sorted) at which answers can change without a new snapshot.
    pub boundaries_ms: Vec<i64>,
    pub flag_count: u32,
}

/// An id list's blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListRef {
    pub digest: Digest,
    pub bytes: u64,
    pub ids: u32,
}

pub fn encode_blob(_manifest: &Manifest, _ruleset: &[u8]) -> Vec<u8> {
    Vec::new()
}

/// The manifest and the still framed ruleset.
pub fn decode_blob(_bytes: &[u8]) -> Result<(Manifest, &[u8]), LoadError> {
    Err(LoadError::NotOurs { part: "blob" })
}

pub fn encode_ruleset(_rules: &Ruleset) -> Vec<u8> {
    Vec::new()
}

/// Decodes and checks every invariant of `ruleset.rs`.
pub fn decode_ruleset(_bytes: &[u8]) -> Result<Ruleset, LoadError> {
    Err(LoadError::NotOurs { part: "ruleset" })
}

/// The blob of an id list: sorted, unique 128-bit hashes (`lists::id_hash`) in a frame.
pub mod lists {
    use super::LoadError;

    /// The first 16 bytes of the id's SHA-256, big endian. Not a secret: ids can be guessed.
    pub fn id_hash(id: &str) -> u128 {
        use sha2::Digest as _;
        let digest: [u8; 32] = sha2::Sha256::digest(id.as_bytes()).into();
        let mut first = [0u8; 16];
        for (to, from) in first.iter_mut().zip(digest) {
            *to = from;
        }
        u128::from_be_bytes(first)
    }

    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct IdList {
        sorted: Vec<u128>,
    }

    impl IdList {
        pub fn from_ids<'a>(ids: impl IntoIterator<Item = &'a str>) -> IdList {
            let mut sorted: Vec<u128> = ids.into_iter().map(id_hash).collect();
            sorted.sort_unstable();
            sorted.dedup();
            IdList { sorted }
        }

        pub fn encode(&self) -> Vec<u8> {
            Vec::new()
        }

        pub fn decode(_bytes: &[u8]) -> Result<IdList, LoadError> {
            Err(LoadError::NotOurs { part: "id list" })
        }

        pub fn contains(&self, id: &str) -> bool {
            self.sorted.binary_search(&id_hash(id)).is_ok()
        }

        pub fn len(&self) -> usize {
            self.sorted.len()
        }

        pub fn is_empty(&self) -> bool {
            self.sorted.is_empty()
        }
    }
}

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let hex = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte.wrapping_sub(b'0')),
            b'a'..=b'f' => Ok(byte.wrapping_sub(b'a').wrapping_add(10)),
            _ => Err(DigestError),
        };
        let mut digest = [0u8; 32];
        if text.len() != 64 {
            return Err(DigestError);
        }
        for (to, pair) in digest.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return Err(DigestError) };
            *to = hex(*high)? << 4 | hex(*low)?;
        }
        Ok(Digest(digest))
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
