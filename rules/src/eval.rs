//! One flag for one context: the evaluator. Pure; reads arenas, writes nothing but scratch.

use crate::blob::LoadError;
use crate::context::Context;
use crate::ruleset::Ruleset;
use crate::trace::Trace;

/// A loaded ruleset with what is derived from it once: the key index and compiled patterns.
#[derive(Debug)]
pub struct Evaluator {
    rules: Ruleset,
}

/// An index into `Ruleset::flags`, checked at look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlagId(pub u32);

/// Membership in id lists, which the host keeps outside of the evaluator.
pub trait Lists {
    /// Whether `id` is in list `list` of this ruleset.
    fn contains(&self, list: u32, id: &str) -> bool;
}

/// A host without lists: every list is empty.
#[derive(Debug, Clone, Copy)]
pub struct NoLists;

impl Lists for NoLists {
    fn contains(&self, _list: u32, _id: &str) -> bool {
        false
    }
}

pub struct Input<'a> {
    pub context: Context<'a>,
    /// Milliseconds since the epoch.
    pub now_ms: i64,
    pub lists: &'a dyn Lists,
}

/// Buffers that are reused from one evaluation to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Static,
    Default,
    TargetingMatch,
    Split,
    Disabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    FlagNotFound,
    ParseError,
    TargetingKeyMissing,
    InvalidContext,
    TypeMismatch,
    General,
}

/// The answer, before it is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// An absolute index into `Ruleset::variants`.
    Variant {
        variant: u32,
        reason: Reason,
    },
    /// The caller's own default.
    CodeDefault {
        reason: Reason,
    },
    Error {
        code: ErrorCode,
        details: String,
    },
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Static => "STATIC",
            Reason::Default => "DEFAULT",
            Reason::TargetingMatch => "TARGETING_MATCH",
            Reason::Split => "SPLIT",
            Reason::Disabled => "DISABLED",
        }
    }
}

impl ErrorCode {
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::FlagNotFound => "FLAG_NOT_FOUND",
            ErrorCode::ParseError => "PARSE_ERROR",
            ErrorCode::TargetingKeyMissing => "TARGETING_KEY_MISSING",
            ErrorCode::InvalidContext => "INVALID_CONTEXT",
            ErrorCode::TypeMismatch => "TYPE_MISMATCH",
            ErrorCode::General => "GENERAL",
        }
    }
}

impl Evaluator {
    /// From the bytes of a ruleset (`blob::encode_ruleset`): checks the frame and every index,
    /// compiles patterns and builds the key index. Any flipped byte is an error.
    pub fn load(bytes: &[u8]) -> Result<Evaluator, LoadError> {
        Evaluator::new(crate::blob::decode_ruleset(bytes)?)
    }

    pub fn new(rules: Ruleset) -> Result<Evaluator, LoadError> {
        Ok(Evaluator { rules })
    }

    pub fn rules(&self) -> &Ruleset {
        &self.rules
    }

    pub fn flag(&self, _key: &str) -> Option<FlagId> {
        None
    }

    pub fn evaluate(&self, _flag: FlagId, _input: &Input<'_>, _scratch: &mut Scratch) -> Outcome {
        Outcome::Error { code: ErrorCode::General, details: String::new() }
    }

    /// As `evaluate`, with the explanation.
    pub fn explain(
        &self,
        _flag: FlagId,
        _input: &Input<'_>,
        _scratch: &mut Scratch,
    ) -> (Outcome, Trace) {
        (Outcome::Error { code: ErrorCode::General, details: String::new() }, Trace::default())
    }
}
