//! How a command fails: one line that says what and how to mend it, and an exit code that a script
//! can tell apart. The codes are a promise; they are in the help and in docs/CLI.md.

use std::fmt;

use serde_json::{Value, json};

/// Why a command failed; the discriminant is the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Refused = 4,
    Conflict = 5,
    Unreachable = 6,
}

pub const EXIT_CODES: &str = "\
Exit codes:
  0  it worked
  1  it failed for another reason (not allowed, the server failed, a file cannot be read)
  2  the command line is wrong
  3  the namespace, environment, flag or other thing does not exist
  4  refused by validation; nothing of what was refused was written
  5  conflict: somebody else changed it meanwhile, or it exists already
  6  the server cannot be reached";

/// One place in what was sent, and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// RFC 6901.
    pub pointer: String,
    pub message: String,
}

#[derive(Debug, Clone)]
pub struct Failure {
    pub exit: Exit,
    pub message: String,
    pub places: Vec<Place>,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Failure {
    pub fn new(exit: Exit, message: impl Into<String>) -> Failure {
        Failure { exit, message: message.into(), places: Vec::new(), mend: None }
    }

    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(Exit::Usage, message)
    }

    pub fn mend(mut self, mend: impl Into<String>) -> Failure {
        self.mend = Some(mend.into());
        self
    }

    pub fn json(&self) -> Value {
        let places: Vec<Value> = self
            .places
            .iter()
            .map(|place| json!({"pointer": place.pointer, "message": place.message}))
            .collect();
        json!({"error": {
            "exitCode": self.exit as u8,
            "message": self.message,
            "mend": self.mend,
            "errors": places,
        }})
    }
}

/// `error: …`, then one line per place, then the mend.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        if let [only] = self.places.as_slice()
            && only.message == self.message
        {
            if !only.pointer.is_empty() {
                write!(f, "\n  at {}", only.pointer)?;
            }
            return self.mend.iter().try_for_each(|mend| write!(f, "\n  {mend}"));
        }
        let width = self.places.iter().map(|place| place.pointer.chars().count()).max();
        for place in &self.places {
            let pointer = if place.pointer.is_empty() { "(whole)" } else { &place.pointer };
            write!(f, "\n  {pointer:<width$}  {}", place.message, width = width.unwrap_or(0))?;
        }
        if let Some(mend) = &self.mend {
            write!(f, "\n  {mend}")?;
        }
        Ok(())
    }
}

/// Everything without a kind of its own; the causes follow, joined.
impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::new(Exit::Failed, format!("{error:#}"))
    }
}
