//! What every write does around its change: the locks in their one order before it, the check of
//! what it means, the audit row and the outbox rows after it.

use std::sync::Arc;

use rules::compile::Problem;
use serde_json::Value;

use crate::audit;
use crate::authorize::NamespaceScope;
use crate::authorize::callers::Caller;
use crate::environments::{self, Read};
use crate::outbox::{self, Raised};
use crate::protection;
use crate::refusal::Refusal;
use crate::store::{Touched, Tx, now_us};

/// The version that a change says it is made on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Unsaid,
    Any,
    Version(i64),
}

impl Expected {
    /// A lost race is told with the state that won.
    pub fn check(self, version: i64, current: impl FnOnce() -> Value) -> Result<(), Refusal> {
        match self {
            Expected::Any => Ok(()),
            Expected::Version(expected) if expected == version => Ok(()),
            Expected::Version(_) => Err(Refusal::Stale { version, current: current() }),
            // What is not there yet has no version to be named.
            Expected::Unsaid if version == 0 => Ok(()),
            Expected::Unsaid => Err(Refusal::VersionRequired { current: version }),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Touches<'a> {
    Nothing,
    /// An environment by its id.
    One(&'a str),
    /// Environments by their ids, in ascending order: it is the order of locks.
    Some(&'a [String]),
    All,
}

/// By what right a change comes past an environment that takes changes after approval only. What is
/// not named here does not come past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passage {
    /// By none.
    Gated,
    /// It asks `Change::gate` itself, once it knows what becomes different where.
    Judged,
    /// Who may ask there, not what they are answered.
    Keys,
    /// What is there already comes to edges anew, or in other stages.
    Publish,
    /// Nobody asks there any more: it is deleted.
    Gone,
    /// A flag is turned off in an emergency, by whoever was given that right.
    Kill,
    /// Control goes back to the policy that was approved before.
    Revert,
    /// The change set was approved as the environment demands.
    Approved,
}

/// A write under way: its locks are held.
pub struct Change {
    head: audit::Head,
    pub raised: Vec<Raised>,
    caller: Arc<Caller>,
    trace_context: Option<String>,
    pub at: i64,
    /// The change set that it applies, by its number.
    pub change_set: Option<i64>,
}

impl Change {
    /// Refused where an environment that it touches takes changes after approval only.
    pub async fn begin(
        tx: &mut Tx,
        scope: &NamespaceScope,
        touches: Touches<'_>,
    ) -> Result<Change, Refusal> {
        Change::begin_by(tx, scope, touches, Passage::Gated).await
    }

    pub async fn begin_by(
        tx: &mut Tx,
        scope: &NamespaceScope,
        touches: Touches<'_>,
        passage: Passage,
    ) -> Result<Change, Refusal> {
        let at = now_us();
        let head = audit::lock(tx, scope.id()).await?;
        let ids = match touches {
            Touches::Nothing => Vec::new(),
            Touches::One(id) => vec![id.to_owned()],
            Touches::Some(ids) => ids.to_vec(),
            Touches::All => environments::ids(tx, scope).await?,
        };
        let raised = outbox::raise(tx, &ids, at).await?;
        let change = Change {
            head,
            raised,
            caller: scope.caller().clone(),
            trace_context: scope.trace_context().map(str::to_owned),
            at,
            change_set: None,
        };
        if passage == Passage::Gated {
            change.gate_all(tx).await?;
        }
        Ok(change)
    }

    /// Refused if the environment, one of those that it has raised, takes changes after approval
    /// only. The protection is read under the namespace's lock, which changes of it take too.
    pub async fn gate(&self, tx: &mut Tx, environment_id: &str) -> Result<(), Refusal> {
        let Some(raised) = self.raised.iter().find(|one| one.environment_id == environment_id)
        else {
            return Err(Refusal::Internal(
                "an environment was changed without its lock".to_owned(),
            ));
        };
        match protection::approvals(tx, environment_id).await? {
            0 => Ok(()),
            approvals => {
                Err(Refusal::ApprovalRequired { environment: raised.key.clone(), approvals })
            }
        }
    }

    pub async fn gate_all(&self, tx: &mut Tx) -> Result<(), Refusal> {
        for raised in &self.raised {
            self.gate(tx, &raised.environment_id).await?;
        }
        Ok(())
    }

    pub fn actor(&self) -> &str {
        &self.caller.name
    }

    /// Number of the audit row that comes next.
    pub fn audit_sequence(&self) -> i64 {
        self.head.next_sequence()
    }

    /// The change set that all rows of this change are a part of.
    pub fn of_change_set(&mut self, reference: &str) {
        self.head.change_set = Some(reference.to_owned());
    }

    /// An audit row before the one that `finish` writes, for a change of several things.
    pub async fn record(&mut self, tx: &mut Tx, entry: audit::Entry) -> Result<(), Refusal> {
        audit::append(tx, &mut self.head, &self.caller, self.at, entry).await
    }

    /// As `finish`, for environments that are going away: there is nothing left to compile.
    pub async fn finish_deleting(
        mut self,
        tx: &mut Tx,
        entry: audit::Entry,
    ) -> Result<(), Refusal> {
        self.record(tx, entry).await?;
        for raised in &self.raised {
            outbox::add(tx, raised, self.trace_context.as_deref(), self.at).await?;
        }
        Ok(())
    }

    /// The audit row and the outbox rows, once what the change means is known to load at an edge.
    pub async fn finish(self, tx: &mut Tx, entry: audit::Entry) -> Result<Vec<Raised>, Refusal> {
        for raised in &self.raised {
            check(tx, &raised.environment_id).await?;
        }
        self.finish_checked(tx, entry).await
    }

    /// As `finish`, for who has asked `check` about all that it raised, to say more of what is wrong.
    pub async fn finish_checked(
        self,
        tx: &mut Tx,
        entry: audit::Entry,
    ) -> Result<Vec<Raised>, Refusal> {
        let raised = self.raised.clone();
        tx.touched.extend(raised.iter().map(|raised| Touched {
            environment_id: raised.environment_id.clone(),
            generation: raised.generation,
            revision: raised.revision,
        }));
        self.finish_deleting(tx, entry).await?;
        Ok(raised)
    }
}

/// Refuses a change after which the environment would not load at an edge. Problems that were
/// there before (stored by an older build) are not held against it.
pub async fn check(tx: &mut Tx, environment_id: &str) -> Result<(), Refusal> {
    let parsed = tx.parsed();
    let state = environments::load(tx, &parsed, Read::Own, environment_id).await?.state;
    let compiled = environments::try_compile(parsed.clone(), environment_id, state).await?;
    let Err(problems) = compiled else { return Ok(()) };
    let before = {
        let mut committed = tx.committed().await?;
        match environments::load(&mut committed, &parsed, Read::Committed, environment_id).await {
            Ok(loaded) => {
                let compiled =
                    environments::try_compile(parsed, environment_id, loaded.state).await?;
                compiled.err().unwrap_or_default()
            }
            // Made by this very transaction.
            Err(Refusal::NotFound(_)) => Vec::new(),
            Err(refusal) => return Err(refusal),
        }
    };
    let new: Vec<Problem> =
        problems.into_iter().filter(|problem| !before.contains(problem)).collect();
    match new.is_empty() {
        true => Ok(()),
        false => Err(Refusal::Invalid(new)),
    }
}

/// Problems of the compiler as the author of one part sees them: pointers from that part's root.
pub fn relative(refusal: Refusal, prefix: &str) -> Refusal {
    let Refusal::Invalid(problems) = refusal else { return refusal };
    let own = |problem: Problem| match problem.pointer.strip_prefix(prefix) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => {
            Problem { pointer: rest.to_owned(), message: problem.message }
        }
        // Elsewhere: the place is part of the message, since the body has no such place.
        _ => Problem {
            message: format!("at {}: {}", problem.pointer, problem.message),
            pointer: String::new(),
        },
    };
    Refusal::Invalid(problems.into_iter().map(own).collect())
}

/// Problems of a part, with where that part is.
pub fn within(refusal: Refusal, place: &str) -> Refusal {
    match refusal {
        Refusal::Invalid(mut problems) => {
            for problem in &mut problems {
                problem.pointer.insert_str(0, place);
            }
            Refusal::Invalid(problems)
        }
        refusal => refusal,
    }
}

/// A key as one segment of a JSON pointer.
pub fn pointer_segment(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}
