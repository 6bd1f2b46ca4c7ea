//! What a change set has come to, and what may follow on what.
//!
//! Nothing is read or written here. Next: `change_sets.rs` (the steps).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::refusal::Refusal;

/// What a change set has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is written.
    Draft,
    /// It waits for approvals.
    Review,
    /// It can be applied.
    Approved,
    /// It is applied when its time comes.
    Scheduled,
    Applied,
    /// Somebody said no; it can be edited, or submitted again.
    Rejected,
    /// What it was made on has changed meanwhile; it can be rebased, or edited.
    Conflict,
    /// It could not be applied when its time had come.
    Failed,
    Cancelled,
}

/// What is done to a change set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    Edit,
    Rebase,
    /// `enough`: all approvals that are needed are there, if only because none is.
    Submit {
        enough: bool,
    },
    Approve {
        enough: bool,
    },
    Reject,
    Schedule,
    Unschedule,
    Apply,
    /// It was to be applied, and what it was made on has changed.
    Collide,
    /// It was due and could not be applied.
    Fail,
    Cancel,
    Comment,
}

impl State {
    pub const ALL: [State; 9] = [
        State::Draft,
        State::Review,
        State::Approved,
        State::Scheduled,
        State::Applied,
        State::Rejected,
        State::Conflict,
        State::Failed,
        State::Cancelled,
    ];

    pub fn name(self) -> &'static str {
        match self {
            State::Draft => "draft",
            State::Review => "review",
            State::Approved => "approved",
            State::Scheduled => "scheduled",
            State::Applied => "applied",
            State::Rejected => "rejected",
            State::Conflict => "conflict",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        }
    }

    pub(super) fn parse(name: &str) -> Result<State, Refusal> {
        let state = State::ALL.into_iter().find(|state| state.name() == name);
        state.ok_or_else(|| Refusal::Internal(format!("a change set is stored as {name:?}")))
    }

    /// The whole of what may follow on what. None: not from here.
    pub fn after(self, step: Step) -> Option<State> {
        use State::{
            Applied, Approved, Cancelled, Conflict, Draft, Failed, Rejected, Review, Scheduled,
        };
        match (self, step) {
            (state, Step::Comment) => Some(state),
            // What is over stays as it is.
            (Applied | Cancelled, _) => None,
            // Whatever was approved was something else.
            (_, Step::Edit | Step::Rebase) => Some(Draft),
            (_, Step::Cancel) => Some(Cancelled),
            (Draft | Rejected, Step::Submit { enough }) => {
                Some(if enough { Approved } else { Review })
            }
            (Review, Step::Approve { enough }) => Some(if enough { Approved } else { Review }),
            // More than are needed: some may not count any more when it is applied.
            (Approved | Scheduled | Failed, Step::Approve { .. }) => Some(self),
            (Review | Approved | Scheduled | Failed, Step::Reject) => Some(Rejected),
            (Approved | Scheduled | Failed, Step::Schedule) => Some(Scheduled),
            (Scheduled, Step::Unschedule) => Some(Approved),
            (Approved | Scheduled | Failed, Step::Apply) => Some(Applied),
            (Approved | Scheduled | Failed, Step::Collide) => Some(Conflict),
            (Scheduled, Step::Fail) => Some(Failed),
            (
                Draft | Review | Approved | Scheduled | Rejected | Conflict | Failed,
                Step::Submit { .. }
                | Step::Approve { .. }
                | Step::Reject
                | Step::Schedule
                | Step::Unschedule
                | Step::Apply
                | Step::Collide
                | Step::Fail,
            ) => None,
        }
    }
}

impl Step {
    /// As in "it cannot be …", and in the list of what was done.
    pub fn name(self) -> &'static str {
        match self {
            Step::Edit => "edited",
            Step::Rebase => "rebased",
            Step::Submit { .. } => "submitted",
            Step::Approve { .. } => "approved",
            Step::Reject => "rejected",
            Step::Schedule => "scheduled",
            Step::Unschedule => "unscheduled",
            Step::Apply => "applied",
            Step::Collide => "conflicted",
            Step::Fail => "failed",
            Step::Cancel => "cancelled",
            Step::Comment => "commented",
        }
    }

    pub(super) fn action(self) -> &'static str {
        match self {
            Step::Edit => "change-set.edit",
            Step::Rebase => "change-set.rebase",
            Step::Submit { .. } => "change-set.submit",
            Step::Approve { .. } => "change-set.approve",
            Step::Reject => "change-set.reject",
            Step::Schedule => "change-set.schedule",
            Step::Unschedule => "change-set.unschedule",
            Step::Apply => "change-set.apply",
            Step::Collide => "change-set.conflict",
            Step::Fail => "change-set.fail",
            Step::Cancel => "change-set.cancel",
            Step::Comment => "change-set.comment",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_follow_on_what_is_this_and_nothing_else() {
        let (no, yes) = (false, true);
        let steps = [
            Step::Edit,
            Step::Rebase,
            Step::Submit { enough: no },
            Step::Submit { enough: yes },
            Step::Approve { enough: no },
            Step::Approve { enough: yes },
            Step::Reject,
            Step::Schedule,
            Step::Unschedule,
            Step::Apply,
            Step::Collide,
            Step::Fail,
            Step::Cancel,
            Step::Comment,
        ];
        // One letter a step: the state that follows, or a dot.
        let letter = |state: State| match state {
            State::Draft => 'd',
            State::Review => 'r',
            State::Approved => 'a',
            State::Scheduled => 's',
            State::Applied => 'A',
            State::Rejected => 'j',
            State::Conflict => 'c',
            State::Failed => 'f',
            State::Cancelled => 'x',
        };
        let table: Vec<String> = State::ALL
            .into_iter()
            .map(|state| {
                let after = steps.map(|step| state.after(step).map_or('.', letter));
                format!("{} {}", letter(state), after.iter().collect::<String>())
            })
            .collect();
        assert_eq!(
            table,
            [
                "d ddra........xd",
                "r dd..raj.....xr",
                "a dd..aajs.Ac.xa",
                "s dd..ssjsaAcfxs",
                "A .............A",
                "j ddra........xj",
                "c dd..........xc",
                "f dd..ffjs.Ac.xf",
                "x .............x",
            ]
        );
    }
}
