//! What an edge loads: one environment, compiled. Content-addressed by SHA-256, never changed.
//!
//! A blob is a frame with two parts: the manifest, which is the edge's business (key hashes,
//! stream secret, id lists, time boundaries), and the ruleset, which alone enters the evaluator.
//! Each is a frame of its own: `magic [u8; 4], format u16, min_reader u16, length u32, body,
//! xxh3-64 of all before`. Any flipped, missing or surplus byte is an error.
//!
//! No revision inside: the same state gives the same bytes, also when it comes back later.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::frame::{Body, CHECKSUM_BYTES, Frame, HEADER_BYTES, RULESET};
// Whoever reads and writes blobs finds here what it needs for that.
pub use crate::frame::{FORMAT, LoadError, MIN_READER, decode_ruleset, decode_unchecked};
use crate::keys::KeyRecord;
use crate::ruleset::Ruleset;

/// SHA-256 of a blob; its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct DigestError;

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
    /// Policies by the index that the ruleset uses. Since format 2; see `Frame::padded`.
    pub policies: Vec<PolicyPin>,
    /// What holds for some of the keys, sorted by key. Since format 3, and only where there is one: a
    /// snapshot whose keys have no terms is what format 2 says, byte for byte, and older edges read
    /// it. One that they cannot read they refuse, rather than serve a key for too long.
    pub terms: Vec<KeyTerms>,
}

/// Of one key: how long and how often it may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyTerms {
    /// Index into the manifest's keys.
    pub key: u32,
    /// From then on nobody gets in with it; milliseconds since the epoch.
    pub expires_at_ms: Option<i64>,
    /// Requests in a second at one edge, instead of what that edge allows every key.
    pub per_second: Option<NonZeroU32>,
}

/// A policy of the environment: a wasm module that travels as a blob of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PolicyPin {
    pub name: String,
    pub version: PolicyBlob,
    /// Runs beside the pinned version, on a share of its calls; nothing that it says is served.
    pub shadow: Option<Shadow>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyBlob {
    pub digest: Digest,
    pub bytes: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    pub version: PolicyBlob,
    /// Of 100,000 calls, as weights are.
    pub share: u32,
}

impl Manifest {
    /// The oldest reader that understands it.
    pub fn min_reader(&self) -> u16 {
        self.frame().format
    }

    fn frame(&self) -> Frame {
        match self.terms.is_empty() {
            true => Frame { format: 2, ..MANIFEST },
            false => MANIFEST,
        }
    }

    /// The keys, each with its terms if it has any.
    pub fn keys(&self) -> impl Iterator<Item = (&KeyRecord, Option<&KeyTerms>)> {
        let mut terms = self.terms.iter().peekable();
        self.keys.iter().enumerate().map(move |(index, key)| {
            let is_its = |of: &&KeyTerms| usize::try_from(of.key) == Ok(index);
            (key, terms.next_if(is_its))
        })
    }

    /// What the snapshot needs beside itself: id lists and policies, each once.
    pub fn blobs(&self) -> Vec<Digest> {
        let versions = self.policies.iter().flat_map(|pin| {
            let shadow = pin.shadow.map(|shadow| shadow.version.digest);
            std::iter::once(pin.version.digest).chain(shadow)
        });
        let mut blobs: Vec<Digest> =
            self.lists.iter().map(|list| list.digest).chain(versions).collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }
}

/// An id list's blob.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ListRef {
    pub digest: Digest,
    pub bytes: u64,
    pub ids: u32,
}

const BLOB: Frame = Frame { part: "blob", magic: *b"TGSN", format: 2, added: [0, 0] };
const MANIFEST: Frame = Frame { part: "manifest", magic: *b"TGMF", format: 3, added: [1, 1] };
/// Lists are as in format 1, and say so: a list that nobody changed keeps its bytes and its name.
const ID_LIST: Frame = Frame { part: "id list", magic: *b"TGIL", format: 1, added: [0, 0] };

/// Postcard allocates for a sequence what the bytes at hand can fill, whatever length they claim, so
/// a lying length costs nothing.
fn parse_manifest(body: Body<'_>) -> Result<Manifest, LoadError> {
    let padded = MANIFEST.padded(body);
    let bytes = padded.as_deref().unwrap_or(body.bytes);
    let (value, rest) = postcard::take_from_bytes::<Manifest>(bytes)
        .map_err(|error| MANIFEST.malformed(error.to_string()))?;
    MANIFEST.nothing_left(rest)?;
    let in_order = value.terms.is_sorted_by(|one, next| one.key < next.key);
    let last = value.terms.last().and_then(|last| usize::try_from(last.key).ok());
    if !in_order || last.is_some_and(|last| last >= value.keys.len()) {
        return Err(MANIFEST.malformed("terms are not of its keys, in their order".to_owned()));
    }
    Ok(value)
}

/// Writing into memory fails only where memory does; an empty body is refused by every reader.
fn body_of<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

/// `ruleset` is framed already: `encode_ruleset`.
pub fn encode_blob(manifest: &Manifest, ruleset: &[u8]) -> Vec<u8> {
    let (frame, mut written) = (manifest.frame(), body_of(manifest));
    if frame.format < MANIFEST.format {
        // The empty sequence of terms, which that format has not.
        written.pop();
    }
    let mut body = frame.write(&written);
    body.extend_from_slice(ruleset);
    BLOB.write(&body)
}

/// The manifest and the still framed ruleset, whose frame is checked too.
pub fn decode_blob(bytes: &[u8]) -> Result<(Manifest, &[u8]), LoadError> {
    BLOB.within_limit(bytes)?;
    let body = BLOB.read(bytes)?.bytes;
    let (manifest, ruleset) = MANIFEST.read_first(body)?;
    let manifest = parse_manifest(manifest)?;
    RULESET.read(ruleset)?;
    Ok((manifest, ruleset))
}

/// How long `encode_ruleset`'s answer will be.
pub fn encoded_bytes(rules: &Ruleset) -> usize {
    postcard::experimental::serialized_size(rules)
        .unwrap_or(usize::MAX)
        .saturating_add(HEADER_BYTES + CHECKSUM_BYTES)
}

pub fn encode_ruleset(rules: &Ruleset) -> Vec<u8> {
    RULESET.write(&body_of(rules))
}

/// Why a snapshot needs an explicit override before it replaces its predecessor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Growth {
    #[error("the snapshot would more than double, from {from} to {to} flags")]
    Doubles { from: u32, to: u32 },
    #[error("the snapshot would more than halve, from {from} to {to} flags")]
    Halves { from: u32, to: u32 },
    #[error("the snapshot would lose all of its {from} flags")]
    Empties { from: u32 },
}

/// Snapshots up to this many flags may change as they like: there, large factors are daily work.
pub const GROWTH_FREE_FLAGS: u32 = 100;

/// Holds up a change that is more likely an accident (a wrong import, a lost table) than a wish.
pub fn growth(previous_flags: u32, next_flags: u32) -> Result<(), Growth> {
    let (from, to) = (previous_flags, next_flags);
    if from <= GROWTH_FREE_FLAGS {
        return Ok(());
    }
    if to == 0 {
        return Err(Growth::Empties { from });
    }
    if to > from.saturating_mul(2) {
        return Err(Growth::Doubles { from, to });
    }
    if to.saturating_mul(2) < from {
        return Err(Growth::Halves { from, to });
    }
    Ok(())
}

/// The blob of an id list: sorted, unique 128-bit hashes (`lists::id_hash`) in a frame.
pub mod lists {
    use super::{ID_LIST, LoadError};
    use crate::limits::SEGMENT_IDS_MAX;

    const HASH_BYTES: usize = 16;

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
            let mut body = Vec::with_capacity(self.sorted.len().saturating_mul(HASH_BYTES));
            for hash in &self.sorted {
                body.extend_from_slice(&hash.to_be_bytes());
            }
            ID_LIST.write(&body)
        }

        pub fn decode(bytes: &[u8]) -> Result<IdList, LoadError> {
            let body = ID_LIST.read(bytes)?.bytes;
            let (hashes, rest) = body.as_chunks::<HASH_BYTES>();
            let malformed =
                |what: &str| LoadError::Malformed { part: ID_LIST.part, what: what.to_owned() };
            if !rest.is_empty() {
                return Err(malformed("its length is no multiple of a hash's"));
            }
            if hashes.len() > SEGMENT_IDS_MAX {
                return Err(LoadError::OverLimit {
                    part: ID_LIST.part,
                    what: format!("{} ids, the limit is {SEGMENT_IDS_MAX}", hashes.len()),
                });
            }
            let sorted: Vec<u128> = hashes.iter().map(|hash| u128::from_be_bytes(*hash)).collect();
            if !sorted.is_sorted_by(|one, next| one < next) {
                return Err(malformed("its hashes are not sorted and unique"));
            }
            Ok(IdList { sorted })
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
