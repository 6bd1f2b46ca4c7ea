//! Why an operation on the state was not done. What HTTP makes of it is `http/problem.rs`.
//!
//! One enum for the domain files, because their one kind of caller treats them all alike.

use rules::compile::Problem;
use serde_json::Value;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Not there, or not for this caller: the two are told apart by nobody.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    #[error("this takes the permission {needed:?}, which {who} does not have there")]
    Forbidden { needed: &'static str, who: String },
    /// They are known, by something that is not enough for this.
    #[error("this takes {0}; sign in")]
    NoSession(&'static str),
    #[error("the last {what} stays; make somebody else one first")]
    Last { what: &'static str },
    #[error("there is a {what} with the key {key:?} already")]
    Exists { what: &'static str, key: String },
    #[error("the change must name the version that it is made on")]
    VersionRequired { current: i64 },
    #[error("it was changed by someone else, it is at version {version} now")]
    Stale { version: i64, current: Value },
    #[error("what was sent is not valid")]
    Invalid(Vec<Problem>),
    #[error("flagd cannot express {} of the flags; `partial` leaves them out", .0.len())]
    Inexpressible(Vec<Problem>),
    #[error("its keys are still valid; revoke them first, so that edges stop answering: {}", keys.join(", "))]
    KeysLeft { keys: Vec<String> },
    #[error(
        "{environment:?} is at revision {revision}, which is not served everywhere yet; edges that lag would keep answering for revoked keys"
    )]
    NotLive { environment: String, revision: i64 },
    #[error("two keys of this line are valid already: {}; delete one, or wait until one expires", keys.join(", "))]
    TwoLive { keys: Vec<String> },
    #[error("the key has expired; make a new one")]
    Expired,
    #[error(
        "{environment:?} takes changes after {approvals} {} only: make a change set and have it approved",
        if *approvals == 1 { "approval" } else { "approvals" }
    )]
    ApprovalRequired { environment: String, approvals: i64 },
    #[error("it was approved {given} times for {environment:?}, which takes {needed}")]
    ApprovalsLacking { environment: String, needed: i64, given: i64 },
    #[error("it is {state}, and what is {state} cannot be {step}")]
    WrongState { state: &'static str, step: &'static str },
    #[error("{why}")]
    MayNotApprove { why: String },
    /// Of a change set: what it was made on is not what is there now.
    #[error("what it was made on has changed since: {}", of.join(", "))]
    Conflict { of: Vec<String> },
    #[error("it is needed by {}", by.join(", "))]
    InUse { by: Vec<String> },
    #[error("there are {max} {what} already, which is the limit")]
    TooMany { what: &'static str, max: usize },
    /// Nothing is to be done; no failure, but the end of the write. As the state is shown.
    #[error("it is so already")]
    Already(Value),
    #[error("the flag {flag:?} is archived; take it back first (unarchive)")]
    Archived { flag: String },
    #[error("the idempotency key was used for another request")]
    KeyReused,
    #[error("the store failed")]
    Store(#[from] sqlx::Error),
    /// Stored state that this build cannot read, or the system's random source.
    #[error("control failed: {0}")]
    Internal(String),
}

impl Refusal {
    pub fn invalid(pointer: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal::Invalid(vec![Problem { pointer: pointer.into(), message: message.into() }])
    }
}

/// Reads JSON that this program wrote.
pub fn stored<T: serde::de::DeserializeOwned>(what: &str, json: &str) -> Result<T, Refusal> {
    serde_json::from_str(json)
        .map_err(|error| Refusal::Internal(format!("a stored {what} cannot be read: {error}")))
}

pub fn written<T: serde::Serialize>(what: &str, value: &T) -> Result<String, Refusal> {
    serde_json::to_string(value)
        .map_err(|error| Refusal::Internal(format!("a {what} cannot be written: {error}")))
}

/// A key of a namespace, an environment, a flag or a segment. Flags and segments may have any
/// characters; what stands in URLs of people is a slug.
pub fn check_slug(pointer: &str, key: &str) -> Result<(), Refusal> {
    let fits = (1..=64).contains(&key.len())
        && key.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.'))
        && key.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    match fits {
        true => Ok(()),
        false => Err(Refusal::invalid(
            pointer,
            "a key is 1 to 64 of a-z, 0-9, '-', '_' and '.', and begins with a letter or a digit",
        )),
    }
}

pub fn check_name(pointer: &str, name: &str) -> Result<(), Refusal> {
    match name.len() {
        0..=256 => Ok(()),
        bytes => Err(Refusal::invalid(pointer, format!("{bytes} bytes, the limit is 256"))),
    }
}

/// What PostgreSQL cannot keep.
pub fn check_zero(pointer: &str, text: &str) -> Result<(), Refusal> {
    match text.contains('\0') {
        true => Err(Refusal::invalid(pointer, "a zero byte")),
        false => Ok(()),
    }
}
