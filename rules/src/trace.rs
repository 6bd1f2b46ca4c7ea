//! The explanation of one evaluation: what was looked at, in order, and what came of it. Made only
//! when asked for; serialized as JSON for the admin API, the CLI and the console.

use serde::Serialize;
use serde_json::Value;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    pub flag: String,
    /// The time that the evaluation took as now, in milliseconds since the epoch.
    pub now_ms: i64,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "step", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Step {
    /// The flag is off here.
    Disabled,
    Prerequisite {
        flag: String,
        wanted: Vec<String>,
        got: Option<String>,
        reason: &'static str,
        satisfied: bool,
    },
    /// A rule was reached; the steps until its `RuleEnd` are its own.
    Rule {
        id: String,
        index: usize,
    },
    /// Outside of its window.
    Inactive {
        from_ms: Option<i64>,
        to_ms: Option<i64>,
    },
    Clause {
        attribute: String,
        op: &'static str,
        negated: bool,
        /// What the context had; absent if nothing.
        #[serde(skip_serializing_if = "Option::is_none")]
        actual: Option<Value>,
        expected: Vec<Value>,
        result: bool,
    },
    Segment {
        key: String,
        /// `excluded`, `included`, `rule` or `none`.
        by: &'static str,
        result: bool,
    },
    /// A part of a CEL condition that no clause can say, with the attributes that it asks for and the
    /// context has.
    Cel {
        expression: String,
        attributes: serde_json::Map<String, Value>,
        result: bool,
        /// Why it has no result; it then counts as false.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    /// A JSONLogic tree's result.
    Logic {
        result: Value,
    },
    Split {
        /// The attribute that gave the unit.
        by: Option<String>,
        unit: Option<String>,
        /// The projected hash.
        bucket: f64,
        /// Of integer splits.
        total: u32,
        arm: Option<usize>,
        /// Share reached by the ramp, of 100,000.
        #[serde(skip_serializing_if = "Option::is_none")]
        ramp: Option<u32>,
    },
    /// A rule asked its policy.
    Policy {
        name: String,
        /// Of the version that is pinned.
        digest: String,
        /// What it was given.
        input: Value,
        /// What it answered; absent if it did not, or with nothing that is JSON.
        #[serde(skip_serializing_if = "Option::is_none")]
        answer: Option<Value>,
        /// The policy's own words.
        #[serde(skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
        /// Why the rule's fallback is served: a name of `PolicyFault`.
        #[serde(skip_serializing_if = "Option::is_none")]
        fault: Option<&'static str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        details: Option<String>,
        /// What the call used, the same in every run; absent if the clock cut it off.
        #[serde(skip_serializing_if = "Option::is_none")]
        fuel: Option<u64>,
        #[serde(skip_serializing_if = "String::is_empty")]
        log: String,
    },
    RuleEnd {
        id: String,
        matched: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    Fallthrough,
}
