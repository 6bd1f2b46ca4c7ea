//! Bodies of the policy routes, as OpenAPI describes them. What is stored as JSON (a verdict, an
//! edge's report) is read into these before it is shown, so the description cannot say less.

use std::collections::BTreeMap;

use rules::head::PolicyReport;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::policies::{PinState, PolicyRow, Reported, Shown, VersionRow};
use crate::refusal::{Refusal, stored};
use crate::store::rfc3339;

/// A policy of a namespace.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    name: String,
    created_at: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyPage {
    items: Vec<Policy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_cursor: Option<String>,
}

/// With its versions, newest first, and where it is pinned.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyWithVersions {
    name: String,
    created_at: String,
    versions: Vec<PolicyVersion>,
    pins: Vec<PolicyPinnedAt>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyPinnedAt {
    environment: String,
    digest: String,
}

/// A module that was admitted; it never changes.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyVersion {
    /// SHA-256 of the module, hexadecimal.
    digest: String,
    bytes: i64,
    /// Dotted paths that it declares to read.
    attributes: Vec<String>,
    uploaded_by: String,
    uploaded_at: String,
    verdict: PolicyVerdict,
}

/// Of a version's last admission.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyVerdict {
    admitted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<PolicyRefused>,
    attributes: Vec<String>,
    compile_ms: u64,
    code_bytes: u64,
    #[serde(default)]
    peak_bytes: u64,
    vectors: Vec<PolicyVectorResult>,
    /// The engine that it was admitted with.
    engine: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyRefused {
    /// Of docs/POLICIES.md.
    rule: String,
    /// The byte of the module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    message: String,
}

#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct PolicyVectorResult {
    name: String,
    passed: bool,
    fuel: u64,
    took_us: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Value>,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    log: String,
}

/// At most 100.
#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "a description of `sandbox::policy::Vector`, which is what is read")]
pub struct PolicyVectors {
    vectors: Vec<PolicyVector>,
}

#[derive(Debug, ToSchema)]
#[allow(dead_code, reason = "as above")]
pub struct PolicyVector {
    name: String,
    /// The ABI's document; what it leaves out gets a default.
    #[schema(required = false)]
    input: Value,
    /// The answer; without it any will do that the flag accepts.
    expect: Option<Value>,
}

#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyPins {
    items: Vec<PolicyPinWithCounts>,
}

/// What an environment pins, and what the edges counted there.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyPinWithCounts {
    #[serde(flatten)]
    pin: PinState,
    edges: Vec<PolicyCounts>,
}

/// One edge's report. Counts are since it loaded the version.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyCounts {
    edge: String,
    received_at: String,
    name: String,
    digest: String,
    state: PolicyState,
    calls: u64,
    /// By kind; only what happened.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    faults: BTreeMap<String, u64>,
    /// Of all calls together.
    fuel: u64,
    micros: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<PolicyShadowCounts>,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum PolicyState {
    Running,
    /// Its breaker is open: it failed too often, and its rules serve their fallback.
    Open,
    /// It is not compiled yet, or cannot be.
    Absent,
}

/// How the answers of the shadow compare with those that were served.
#[derive(Debug, Serialize, ToSchema)]
pub struct PolicyShadowCounts {
    digest: String,
    same: u64,
    different: u64,
    faults: u64,
    /// Calls that were not run, because those before were not done.
    dropped: u64,
}

impl Policy {
    pub fn of(row: &PolicyRow) -> Policy {
        Policy { name: row.name.clone(), created_at: rfc3339(row.created_at) }
    }
}

impl PolicyPage {
    pub fn of(paged: crate::page::Paged<PolicyRow>) -> PolicyPage {
        let items = paged.items.iter().map(Policy::of).collect();
        PolicyPage { items, next_cursor: paged.next_cursor }
    }
}

impl PolicyWithVersions {
    pub fn of(shown: &Shown) -> Result<PolicyWithVersions, Refusal> {
        let Policy { name, created_at } = Policy::of(&shown.policy);
        let pinned = |(environment, digest): &(String, String)| PolicyPinnedAt {
            environment: environment.clone(),
            digest: digest.clone(),
        };
        Ok(PolicyWithVersions {
            name,
            created_at,
            versions: shown.versions.iter().map(PolicyVersion::of).collect::<Result<_, _>>()?,
            pins: shown.pins.iter().map(pinned).collect(),
        })
    }
}

impl PolicyVersion {
    pub fn of(row: &VersionRow) -> Result<PolicyVersion, Refusal> {
        Ok(PolicyVersion {
            digest: row.digest.clone(),
            bytes: row.bytes,
            attributes: stored("list of attributes", &row.attributes)?,
            uploaded_by: row.uploaded_by.clone(),
            uploaded_at: rfc3339(row.uploaded_at),
            verdict: stored("verdict", &row.verdict)?,
        })
    }
}

impl PolicyPins {
    pub fn of(pins: Vec<(PinState, Vec<Reported>)>) -> PolicyPins {
        let each = |(pin, edges): (PinState, Vec<Reported>)| {
            let edges = edges.into_iter().map(PolicyCounts::of).collect();
            PolicyPinWithCounts { pin, edges }
        };
        PolicyPins { items: pins.into_iter().map(each).collect() }
    }
}

impl PolicyCounts {
    fn of(Reported { edge, report, received_at }: Reported) -> PolicyCounts {
        let PolicyReport { name, digest, state, calls, faults, fuel, micros, shadow } = report;
        PolicyCounts {
            edge,
            received_at: rfc3339(received_at),
            name,
            digest: digest.to_string(),
            state: match state {
                rules::head::PolicyHealth::Running => PolicyState::Running,
                rules::head::PolicyHealth::Open => PolicyState::Open,
                rules::head::PolicyHealth::Absent => PolicyState::Absent,
            },
            calls,
            faults,
            fuel,
            micros,
            shadow: shadow.map(|shadow| PolicyShadowCounts {
                digest: shadow.digest.to_string(),
                same: shadow.same,
                different: shadow.different,
                faults: shadow.faults,
                dropped: shadow.dropped,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox::policy::{Refused, VectorResult, Verdict};

    /// The sandbox's own type is what is stored; nothing of it may be lost on the way out.
    #[test]
    fn a_verdict_is_shown_whole() {
        let vector = VectorResult {
            name: "a".to_owned(),
            passed: true,
            fuel: 1,
            took_us: 2,
            answer: Some(Value::Bool(true)),
            fault: Some("f".to_owned()),
            log: "l".to_owned(),
        };
        let refused =
            Refused { rule: "size".into(), offset: Some(7), message: "too large".to_owned() };
        let verdict = Verdict {
            admitted: true,
            refused: Some(refused),
            attributes: vec!["a.b".to_owned()],
            compile_ms: 3,
            code_bytes: 4,
            peak_bytes: 5,
            vectors: vec![vector],
            engine: "e".to_owned(),
        };
        let stored = serde_json::to_value(&verdict).unwrap();
        let shown: PolicyVerdict = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(serde_json::to_value(&shown).unwrap(), stored);
    }
}
