//! From what authors wrote to a ruleset: resolves, checks, interns, renders. Deterministic: the
//! same state gives the same arenas, whatever order it was read in.
//!
//! Every problem is found, not only the first, and names its place as a JSON pointer.

use crate::model::{FlagConfig, FlagDefinition, Metadata, Segment};
use crate::ruleset::Ruleset;

/// Everything that one environment's ruleset is made of.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EnvironmentState {
    pub flags: Vec<FlagState>,
    pub segments: Vec<SegmentState>,
    /// The flag set's metadata.
    pub metadata: Metadata,
}

#[derive(Debug, Clone, PartialEq)]
pub struct FlagState {
    pub definition: FlagDefinition,
    pub config: FlagConfig,
}

#[derive(Debug, Clone, PartialEq)]
pub struct SegmentState {
    pub segment: Segment,
    /// Whether it has such a list; the compiler numbers the lists, the caller knows their blobs.
    pub has_included: bool,
    pub has_excluded: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Compiled {
    pub ruleset: Ruleset,
    /// `Manifest::boundaries_ms`.
    pub boundaries_ms: Vec<i64>,
    /// The segment and list of each list index, in order.
    pub lists: Vec<ListUse>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUse {
    pub segment: String,
    pub kind: ListKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListKind {
    Included,
    Excluded,
}

/// One thing that is wrong, where, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// RFC 6901, from the root `{"flags": {key: {"definition": …, "config": …}}, "segments":
    /// {key: …}}`: `/flags/checkout/config/rules/2/when/value`.
    pub pointer: String,
    /// A lower-case fragment: what is wrong and what would be right.
    pub message: String,
}

pub fn compile(_state: &EnvironmentState) -> Result<Compiled, Vec<Problem>> {
    Err(Vec::new())
}
