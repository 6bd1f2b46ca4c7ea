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

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::decimal;
use crate::keys::KeyRecord;
use crate::limits::SNAPSHOT_BYTES_MAX;
use crate::ruleset::Ruleset;

/// The format that this build writes, and the newest that it reads.
pub const FORMAT: u16 = 2;
/// The oldest reader that understands what this build writes.
pub const MIN_READER: u16 = 2;

/// SHA-256 of a blob; its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("a digest is 64 lower-case hexadecimal digits")]
pub struct DigestError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    Truncated { part: &'static str, have: usize, want: usize },
    NotOurs { part: &'static str },
    TooNew { part: &'static str, needs: u16 },
    Corrupt { part: &'static str },
    OverLimit { part: &'static str, what: String },
    Malformed { part: &'static str, what: String },
}

impl LoadError {
    /// The message, put together without `fmt`, which a browser would download for this alone.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let (LoadError::Truncated { part, .. }
        | LoadError::NotOurs { part }
        | LoadError::TooNew { part, .. }
        | LoadError::Corrupt { part }
        | LoadError::OverLimit { part, .. }
        | LoadError::Malformed { part, .. }) = self;
        let mut add = |text: &str| out.extend_from_slice(text.as_bytes());
        add("the ");
        add(part);
        match self {
            LoadError::Truncated { have, want, .. } => {
                add(" is cut short: ");
                decimal::write(*have as i64, out);
                out.extend_from_slice(b" bytes of ");
                decimal::write(*want as i64, out);
            }
            LoadError::NotOurs { .. } => add(" does not begin with its magic number"),
            LoadError::TooNew { needs, .. } => {
                add(" needs reader ");
                decimal::write(i64::from(*needs), out);
                out.extend_from_slice(b", this is reader ");
                decimal::write(i64::from(FORMAT), out);
            }
            LoadError::Corrupt { .. } => add("'s checksum does not match its bytes"),
            LoadError::OverLimit { what, .. } => {
                add(" is over its limit: ");
                add(what);
            }
            LoadError::Malformed { what, .. } => {
                add(" is malformed: ");
                add(what);
            }
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write_to(&mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl std::error::Error for LoadError {}

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
    /// Policies by the index that the ruleset uses. Since format 2; see `Frame::parse`.
    pub policies: Vec<PolicyPin>,
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

const BLOB: Frame = Frame { part: "blob", magic: *b"TGSN", format: FORMAT, added: 0 };
const MANIFEST: Frame = Frame { part: "manifest", magic: *b"TGMF", format: FORMAT, added: 1 };
const RULESET: Frame = Frame { part: "ruleset", magic: *b"TGRS", format: FORMAT, added: 4 };
/// Lists are as in format 1, and say so: a list that nobody changed keeps its bytes and its name.
const ID_LIST: Frame = Frame { part: "id list", magic: *b"TGIL", format: 1, added: 0 };

/// `magic, format, min_reader, length`, and after the body the checksum.
const HEADER_BYTES: usize = 12;
const CHECKSUM_BYTES: usize = 8;

/// One kind of frame. Numbers are little endian.
struct Frame {
    part: &'static str,
    magic: [u8; 4],
    /// What is written, and what a reader has to understand.
    format: u16,
    /// Sequences that format 2 has at the end of the body and format 1 has not.
    added: usize,
}

/// What a frame holds, and the format that its writer had.
#[derive(Clone, Copy)]
struct Body<'a> {
    bytes: &'a [u8],
    format: u16,
}

impl Frame {
    fn write(&self, body: &[u8]) -> Vec<u8> {
        let mut frame =
            Vec::with_capacity(body.len().saturating_add(HEADER_BYTES + CHECKSUM_BYTES));
        frame.extend_from_slice(&self.magic);
        frame.extend_from_slice(&self.format.to_le_bytes());
        frame.extend_from_slice(&self.format.min(MIN_READER).to_le_bytes());
        // A body of 4 GiB would be cut here and then refused by every reader, this build's too.
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(body);
        let checksum = xxhash_rust::xxh3::xxh3_64(&frame);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame
    }

    /// The body of the frame at the start of `bytes`, and what follows it.
    fn read_first<'a>(&self, bytes: &'a [u8]) -> Result<(Body<'a>, &'a [u8]), LoadError> {
        let part = self.part;
        let cut = |want: usize| LoadError::Truncated { part, have: bytes.len(), want };
        let (header, rest) =
            bytes.split_first_chunk::<HEADER_BYTES>().ok_or(cut(HEADER_BYTES + CHECKSUM_BYTES))?;
        let [m0, m1, m2, m3, f0, f1, r0, r1, l0, l1, l2, l3] = *header;
        if [m0, m1, m2, m3] != self.magic {
            return Err(LoadError::NotOurs { part });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let want = length.saturating_add(HEADER_BYTES + CHECKSUM_BYTES);
        let (body, rest) = rest.split_at_checked(length).ok_or(cut(want))?;
        let (checksum, rest) = rest.split_first_chunk::<CHECKSUM_BYTES>().ok_or(cut(want))?;
        let covered = bytes.get(..length.saturating_add(HEADER_BYTES)).unwrap_or_default();
        if xxhash_rust::xxh3::xxh3_64(covered) != u64::from_le_bytes(*checksum) {
            return Err(LoadError::Corrupt { part });
        }
        // Only now: a flipped bit in the version is corruption, not a newer format.
        let needs = u16::from_le_bytes([r0, r1]);
        if needs > FORMAT {
            return Err(LoadError::TooNew { part, needs });
        }
        Ok((Body { bytes: body, format: u16::from_le_bytes([f0, f1]) }, rest))
    }

    fn read<'a>(&self, bytes: &'a [u8]) -> Result<Body<'a>, LoadError> {
        let (body, rest) = self.read_first(bytes)?;
        self.nothing_left(rest)?;
        Ok(body)
    }

    fn nothing_left(&self, rest: &[u8]) -> Result<(), LoadError> {
        match rest.len() {
            0 => Ok(()),
            surplus => Err(LoadError::Malformed {
                part: self.part,
                what: format!("{surplus} bytes follow its end"),
            }),
        }
    }

    /// Postcard allocates for a sequence what the bytes at hand can fill, whatever length they
    /// claim, so a lying length costs nothing. It writes fields without their names, one after the
    /// other, and an empty sequence as one zero: so much is what a body of format 1 lacks.
    fn parse<T: DeserializeOwned>(&self, body: Body<'_>) -> Result<T, LoadError> {
        let padded: Vec<u8>;
        let bytes = match body.format {
            0 | 1 if self.added > 0 => {
                padded = [body.bytes, &vec![0; self.added]].concat();
                &padded
            }
            _ => body.bytes,
        };
        let (value, rest) = postcard::take_from_bytes::<T>(bytes)
            .map_err(|error| LoadError::Malformed { part: self.part, what: error.to_string() })?;
        self.nothing_left(rest)?;
        Ok(value)
    }

    fn within_limit(&self, bytes: &[u8]) -> Result<(), LoadError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(LoadError::OverLimit {
                part: self.part,
                what: format!("{} bytes, the limit is {SNAPSHOT_BYTES_MAX}", bytes.len()),
            });
        }
        Ok(())
    }
}

/// Writing into memory fails only where memory does; an empty body is refused by every reader.
fn body_of<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).unwrap_or_default()
}

/// `ruleset` is framed already: `encode_ruleset`.
pub fn encode_blob(manifest: &Manifest, ruleset: &[u8]) -> Vec<u8> {
    let mut body = MANIFEST.write(&body_of(manifest));
    body.extend_from_slice(ruleset);
    BLOB.write(&body)
}

/// The manifest and the still framed ruleset, whose frame is checked too.
pub fn decode_blob(bytes: &[u8]) -> Result<(Manifest, &[u8]), LoadError> {
    BLOB.within_limit(bytes)?;
    let body = BLOB.read(bytes)?.bytes;
    let (manifest, ruleset) = MANIFEST.read_first(body)?;
    let manifest: Manifest = MANIFEST.parse(manifest)?;
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

/// Decodes and checks every invariant of `ruleset.rs`.
pub fn decode_ruleset(bytes: &[u8]) -> Result<Ruleset, LoadError> {
    RULESET.within_limit(bytes)?;
    let rules: Ruleset = RULESET.parse(RULESET.read(bytes)?)?;
    rules.check()?;
    Ok(rules)
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
