//! OFREP answers as bytes, from parts that the compiler rendered (INTEROP 1.3).
//!
//! Success `{key, value, variant, reason, metadata}`; the caller's default is the same without
//! `value`, `variant` empty; errors `{key, errorCode, errorDetails, metadata}`.

use crate::eval::{ErrorCode, Evaluator, FlagId, Input, Outcome, Scratch};

/// Which flags a caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// A server key: every flag.
    Server,
    /// A browser key: flags whose `clients` is not `none`; the others do not exist.
    Browser,
}

/// What the HTTP status of a single answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    Ok = 200,
    BadRequest = 400,
    NotFound = 404,
    Failed = 500,
}

/// Evaluates one flag and appends the OFREP body to `out`.
pub fn write_one(
    _evaluator: &Evaluator,
    _key: &str,
    _audience: Audience,
    _input: &Input<'_>,
    _scratch: &mut Scratch,
    _out: &mut Vec<u8>,
) -> Status {
    Status::NotFound
}

/// Evaluates every flag that the audience may see, in key order, and appends
/// `{"flags":[…],"metadata":{…}}` to `out`.
pub fn write_all(
    _evaluator: &Evaluator,
    _audience: Audience,
    _input: &Input<'_>,
    _scratch: &mut Scratch,
    _out: &mut Vec<u8>,
) {
}

/// Appends the answer for an outcome that is already there.
pub fn write_outcome(
    _evaluator: &Evaluator,
    _flag: FlagId,
    _outcome: &Outcome,
    _out: &mut Vec<u8>,
) -> Status {
    Status::Failed
}

/// Appends `{key, errorCode, errorDetails, metadata:{}}` for a flag that could not be evaluated
/// (unknown, or the sandbox failed).
pub fn write_error(_key: &str, _code: ErrorCode, _details: &str, _out: &mut Vec<u8>) -> Status {
    Status::Failed
}
