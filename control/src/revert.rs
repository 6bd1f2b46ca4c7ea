//! When control goes back to the version of a policy that was pinned before, without being asked.
//!
//! It decides by what all edges that were heard of lately counted of the pinned version together,
//! and never by one edge's word where others call it too: an edge may be broken, or lie. It goes
//! back once per pin, since the version before may be no better, and somebody who pins again begins
//! anew. What only says how busy a machine is counts for nothing here. Run by `reconciler.rs`.

use std::collections::BTreeMap;

use rules::head::{PolicyHealth, PolicyReport};
use rules::policy::PolicyFault;

use crate::fleet::HEARD_US;
use crate::policies;
use crate::refusal::{Refusal, stored};
use crate::store::query::query_as;
use crate::store::{Store, now_us};

/// As many as open a breaker: an edge that has opened it calls no more, so a version that always
/// fails may never show more than these.
const CALLS_MIN: u64 = 5;
/// More than this many in a hundred of all calls have to fail; a breaker opens at the same share.
const FAULTS_PER_HUNDRED_MAX: u64 = 1;
/// Of one pass; what is left waits for the next.
const SUSPECTS_MAX: i64 = 100;
/// An edge key may name more edges than this only by lying.
const REPORTS_MAX: i64 = 10_000;

/// The text is only a first sieve: what it says is read before it is believed.
const SUSPECTS: &str = "SELECT s.key, e.id, e.key, p.name, n.digest, n.updated_at FROM policy_pin n \
    JOIN environment e ON e.id = n.environment_id JOIN namespace s ON s.id = e.namespace_id \
    JOIN policy p ON p.id = n.policy_id \
    WHERE n.previous_digest IS NOT NULL AND n.reverted IS NULL AND EXISTS (SELECT 1 \
    FROM policy_report r WHERE r.environment_id = e.id AND r.name = p.name \
    AND r.received_at >= $1 AND r.received_at >= n.updated_at AND r.report LIKE '%\"state\":\"open\"%') \
    ORDER BY e.id, p.name LIMIT $2";
const REPORTS: &str = "SELECT report, received_at FROM policy_report WHERE environment_id = $1 AND name = $2 \
    AND received_at >= $3 ORDER BY edge, edge_key_id LIMIT $4";

/// What edges counted of one version, all together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Seen {
    /// That called it.
    edges: u64,
    /// That have said nothing of it since it was pinned: a rollout may not have come to them.
    waiting: u64,
    /// Of them, those whose breaker is open.
    open: u64,
    calls: u64,
    /// The policy's own, by name.
    faults: BTreeMap<&'static str, u64>,
}

/// Whether a fault is the policy's own, and not its machine's or its host's.
fn is_own(fault: PolicyFault) -> bool {
    match fault {
        PolicyFault::Trap
        | PolicyFault::Fuel
        | PolicyFault::Memory
        | PolicyFault::Input
        | PolicyFault::Output
        | PolicyFault::Answer => true,
        PolicyFault::Deadline
        | PolicyFault::Busy
        | PolicyFault::Open
        | PolicyFault::Unavailable
        | PolicyFault::Calls => false,
    }
}

impl Seen {
    fn add(&mut self, report: &PolicyReport) {
        if report.calls == 0 {
            return;
        }
        self.edges = self.edges.saturating_add(1);
        self.open = self.open.saturating_add(u64::from(report.state == PolicyHealth::Open));
        self.calls = self.calls.saturating_add(report.calls);
        // Who reports more faults than calls is believed in his calls.
        let mut left = report.calls;
        for fault in PolicyFault::ALL.into_iter().filter(|fault| is_own(*fault)) {
            let count = report.faults.get(fault.name()).copied().unwrap_or(0).min(left);
            left -= count;
            if count > 0 {
                let all = self.faults.entry(fault.name()).or_default();
                *all = all.saturating_add(count);
            }
        }
    }

    fn failed(&self) -> u64 {
        self.faults.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Enough calls, too many faults among all of them, and more than one witness: a second edge
    /// whose breaker is open, or, of several that call it, more than half of everybody's calls. An
    /// edge that is alone is believed; one that a rollout came to first is not alone for long.
    fn is_broken(&self) -> bool {
        let failed = self.failed();
        let share = u128::from(failed) * 100;
        let witnessed = match self.edges {
            1 => self.waiting == 0,
            _ => self.open >= 2 || u128::from(failed) * 2 > u128::from(self.calls),
        };
        self.open >= 1
            && self.calls >= CALLS_MIN
            && share > u128::from(self.calls) * u128::from(FAULTS_PER_HUNDRED_MAX)
            && witnessed
    }

    fn told(&self) -> String {
        let faults: Vec<String> =
            self.faults.iter().map(|(fault, count)| format!("{count} {fault}")).collect();
        format!(
            "{} of {} calls failed ({}); the breaker is open at {} of {} edges that call it",
            self.failed(),
            self.calls,
            faults.join(", "),
            self.open,
            self.edges
        )
    }
}

/// What it did, for the log.
pub async fn pass(store: &Store) -> Result<Vec<String>, Refusal> {
    let since = now_us() - HEARD_US;
    let mut read = store.read().await?;
    let suspects: Vec<(String, String, String, String, String, i64)> =
        query_as(SUSPECTS).bind(since).bind(SUSPECTS_MAX).fetch_all(&mut read).await?;
    let mut broken = Vec::new();
    for (namespace, id, environment, name, digest, pinned_at) in suspects {
        let reports: Vec<(String, i64)> = query_as(REPORTS)
            .bind(id)
            .bind(&name)
            .bind(since)
            .bind(REPORTS_MAX)
            .fetch_all(&mut read)
            .await?;
        let mut seen = Seen::default();
        for (report, received_at) in &reports {
            let report: PolicyReport = stored("report", report)?;
            // What was said before the pin was about an earlier one, if of the same version.
            match report.digest.to_string() == digest && *received_at >= pinned_at {
                true => seen.add(&report),
                false => seen.waiting = seen.waiting.saturating_add(1),
            }
        }
        if seen.is_broken() {
            broken.push((namespace, environment, name, digest, seen.told()));
        }
    }
    drop(read);
    let mut reverted = Vec::new();
    for (namespace, environment, name, digest, why) in broken {
        if policies::revert(store, &namespace, &environment, &name, &digest, &why).await? {
            reverted.push(format!("{namespace}/{environment}: {name}: {why}"));
        }
    }
    Ok(reverted)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An edge that called it `calls` times with these faults.
    fn edge(state: PolicyHealth, calls: u64, faults: &[(&str, u64)]) -> PolicyReport {
        PolicyReport {
            name: "guard".to_owned(),
            digest: rules::blob::Digest([1; 32]),
            state,
            calls,
            faults: faults.iter().map(|(fault, count)| ((*fault).to_owned(), *count)).collect(),
            fuel: 0,
            micros: 0,
            shadow: None,
        }
    }

    #[test]
    fn it_goes_back_by_what_all_edges_counted_together() {
        use PolicyHealth::{Absent, Open, Running};
        let trap = |count| [("trap", count)];
        let table = [
            ("nobody calls it", vec![], false),
            ("one edge alone, whose breaker opened at once", vec![edge(Open, 5, &trap(5))], true),
            ("as many faults, and it still runs", vec![edge(Running, 500, &trap(400))], false),
            ("too few calls to say anything", vec![edge(Open, 4, &trap(4))], false),
            ("one in a hundred", vec![edge(Open, 1_000, &trap(10))], false),
            ("more than one in a hundred", vec![edge(Open, 1_000, &trap(11))], true),
            (
                "one broken edge among two",
                vec![edge(Open, 5, &trap(5)), edge(Running, 300, &[])],
                false,
            ),
            (
                "one broken edge among many that are busy",
                vec![edge(Open, 5, &trap(5)), edge(Running, 90_000, &[])],
                false,
            ),
            (
                "two of three",
                vec![edge(Open, 5, &trap(5)), edge(Open, 6, &trap(6)), edge(Running, 100, &[])],
                true,
            ),
            (
                "two of three, and what they saw is lost among all calls",
                vec![edge(Open, 5, &trap(5)), edge(Open, 5, &trap(5)), edge(Running, 9_000, &[])],
                false,
            ),
            (
                "one of two, and it has most of the calls",
                vec![edge(Open, 500, &trap(400)), edge(Running, 100, &[])],
                true,
            ),
            (
                "exactly half of all calls is not most of them",
                vec![edge(Open, 5, &trap(5)), edge(Running, 5, &[])],
                false,
            ),
            (
                "edges that do not call it say nothing",
                vec![edge(Open, 5, &trap(5)), edge(Running, 0, &[]), edge(Absent, 0, &[])],
                true,
            ),
            (
                "each kind of fault counts",
                vec![edge(Open, 6, &[("fuel", 1), ("memory", 2), ("answer", 1), ("output", 2)])],
                true,
            ),
            (
                "a busy machine is not the policy's fault",
                vec![edge(Open, 100, &[("deadline", 90), ("busy", 80), ("open", 5_000)])],
                false,
            ),
            (
                "more faults than calls, and an unknown fault",
                vec![edge(Open, 1, &[("trap", u64::MAX), ("meteor", 9)])],
                false,
            ),
            (
                "numbers that no edge can have",
                vec![edge(Open, u64::MAX, &trap(u64::MAX)), edge(Open, u64::MAX, &trap(u64::MAX))],
                true,
            ),
        ];
        for (case, reports, goes_back) in table {
            let mut seen = Seen::default();
            reports.iter().for_each(|report| seen.add(report));
            assert_eq!(seen.is_broken(), goes_back, "{case}: {}", seen.told());
            // A rollout that has not come to all changes nothing but for an edge that is alone.
            seen.waiting = 3;
            assert_eq!(seen.is_broken(), goes_back && seen.edges > 1, "{case}: {}", seen.told());
        }
    }
}
