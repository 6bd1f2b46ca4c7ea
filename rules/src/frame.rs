//! Frames, which everything that is loaded comes in, and the ruleset's way out of one.
//!
//! `magic [u8; 4], format u16, min_reader u16, length u32, body, xxh3-64 of all before`, little
//! endian. Any flipped, missing or surplus byte is an error. What the frames are for: `blob.rs`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::FULL;
use crate::decimal;
use crate::limits::SNAPSHOT_BYTES_MAX;
use crate::ruleset::{Ruleset, Tier};
use crate::wire::{self, Stop};

/// The newest format that this build reads, and writes where something needs it.
pub const FORMAT: u16 = 3;
/// The oldest reader that understands what this build writes where nothing needs a newer one
/// (`Manifest::min_reader`).
pub const MIN_READER: u16 = 2;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    Truncated {
        part: &'static str,
        have: usize,
        want: usize,
    },
    NotOurs {
        part: &'static str,
    },
    TooNew {
        part: &'static str,
        needs: u16,
    },
    Corrupt {
        part: &'static str,
    },
    OverLimit {
        part: &'static str,
        what: String,
    },
    Malformed {
        part: &'static str,
        what: String,
    },
    /// A ruleset of the full tier, for a build that has only the core (`ruleset::Tier`).
    Tier,
}

impl LoadError {
    /// The message, put together without `fmt`, which a browser would download for this alone.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let (LoadError::Truncated { part, .. }
        | LoadError::NotOurs { part }
        | LoadError::TooNew { part, .. }
        | LoadError::Corrupt { part }
        | LoadError::OverLimit { part, .. }
        | LoadError::Malformed { part, .. }) = self
        else {
            out.extend_from_slice(b"the ruleset needs the full evaluator, this one is the core");
            return;
        };
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
            LoadError::Tier => {}
        }
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = Vec::new();
        self.write_to(&mut text);
        f.write_str(core::str::from_utf8(&text).unwrap_or_default())
    }
}

impl core::error::Error for LoadError {}

/// `magic, format, min_reader, length`, and after the body the checksum.
pub(crate) const HEADER_BYTES: usize = 12;
pub(crate) const CHECKSUM_BYTES: usize = 8;

/// One kind of frame. Numbers are little endian.
pub(crate) struct Frame {
    pub(crate) part: &'static str,
    pub(crate) magic: [u8; 4],
    /// What is written, and what a reader has to understand.
    pub(crate) format: u16,
    /// Sequences at the end of the body that format 2 brought, and those that format 3 brought.
    pub(crate) added: [usize; 2],
}

/// What a frame holds, and the format that its writer had.
#[derive(Clone, Copy)]
pub(crate) struct Body<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) format: u16,
}

impl Frame {
    pub(crate) fn write(&self, body: &[u8]) -> Vec<u8> {
        let mut frame =
            Vec::with_capacity(body.len().saturating_add(HEADER_BYTES + CHECKSUM_BYTES));
        frame.extend_from_slice(&self.magic);
        frame.extend_from_slice(&self.format.to_le_bytes());
        // What is written here, every reader of that format needs to understand.
        frame.extend_from_slice(&self.format.to_le_bytes());
        // A body of 4 GiB would be cut here and then refused by every reader, this build's too.
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(body);
        let checksum = xxhash_rust::xxh3::xxh3_64(&frame);
        frame.extend_from_slice(&checksum.to_le_bytes());
        frame
    }

    /// The body of the frame at the start of `bytes`, and what follows it.
    pub(crate) fn read_first<'a>(
        &self,
        bytes: &'a [u8],
    ) -> Result<(Body<'a>, &'a [u8]), LoadError> {
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

    pub(crate) fn read<'a>(&self, bytes: &'a [u8]) -> Result<Body<'a>, LoadError> {
        let (body, rest) = self.read_first(bytes)?;
        self.nothing_left(rest)?;
        Ok(body)
    }

    pub(crate) fn nothing_left(&self, rest: &[u8]) -> Result<(), LoadError> {
        match rest.len() {
            0 => Ok(()),
            surplus => {
                let mut what = Vec::new();
                decimal::write(surplus as i64, &mut what);
                what.extend_from_slice(b" bytes follow its end");
                Err(self.malformed(String::from_utf8(what).unwrap_or_default()))
            }
        }
    }

    pub(crate) fn malformed(&self, what: String) -> LoadError {
        LoadError::Malformed { part: self.part, what }
    }

    /// Fields are written without their names, one after the other, and an empty sequence as one
    /// zero: so much is what a body of an older format lacks.
    pub(crate) fn padded(&self, body: Body<'_>) -> Option<Vec<u8>> {
        let [by_2, by_3] = self.added;
        let added = match body.format {
            0 | 1 => by_2.saturating_add(by_3),
            2 => by_3,
            _ => 0,
        };
        (added > 0).then(|| {
            let mut padded = body.bytes.to_vec();
            padded.resize(body.bytes.len().saturating_add(added), 0);
            padded
        })
    }

    pub(crate) fn within_limit(&self, bytes: &[u8]) -> Result<(), LoadError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            let mut what = Vec::new();
            decimal::write(bytes.len() as i64, &mut what);
            what.extend_from_slice(b" bytes, the limit is ");
            decimal::write(SNAPSHOT_BYTES_MAX as i64, &mut what);
            let what = String::from_utf8(what).unwrap_or_default();
            return Err(LoadError::OverLimit { part: self.part, what });
        }
        Ok(())
    }
}

pub(crate) const RULESET: Frame =
    Frame { part: "ruleset", magic: *b"TGRS", format: 2, added: [4, 0] };

/// Decodes, and checks every invariant of `ruleset.rs`.
///
/// The core only decodes. What it gets was signed by control, which checked it, and the check would
/// be a fifth of the download; `decode_unchecked` says why it needs none to stay alive.
pub fn decode_ruleset(bytes: &[u8]) -> Result<Ruleset, LoadError> {
    let rules = decode_unchecked(bytes)?;
    if FULL {
        rules.check()?;
    } else if rules.tier() == Tier::Full {
        return Err(LoadError::Tier);
    }
    Ok(rules)
}

/// As `decode_ruleset`, believing what indices say. An evaluation then still ends and does not
/// panic, whatever the bytes are: arenas are read with `get`, and where the invariants would bound
/// work, `eval.rs` counts. It may answer nonsense. For the core, and for the test of this claim.
pub fn decode_unchecked(bytes: &[u8]) -> Result<Ruleset, LoadError> {
    RULESET.within_limit(bytes)?;
    let body = RULESET.read(bytes)?;
    let padded = RULESET.padded(body);
    let bytes = padded.as_deref().unwrap_or(body.bytes);
    let (rules, rest) = wire::read::<Ruleset>(bytes).map_err(|stop| match stop {
        Stop::Tier => LoadError::Tier,
        Stop::Malformed(what) => RULESET.malformed(what.into()),
    })?;
    RULESET.nothing_left(rest)?;
    Ok(rules)
}
