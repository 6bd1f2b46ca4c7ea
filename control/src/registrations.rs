//! Which edges have registered in etcd, as far as this control knows: shown to people beside what
//! receipts say, and nothing is decided by it. `etcd.rs` fills it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rules::etcd::Registration;
use serde_json::{Value, json};

use crate::store::{now_us, rfc3339};

/// Further ones are not shown. As many as one edge key may name in receipts.
pub const REGISTRATIONS_MAX: usize = 10_000;
/// An edge that is gone for longer is forgotten, as its receipts are.
const LAPSED_US: i64 = 24 * 60 * 60 * 1_000_000;

/// An edge's name and its key's id.
pub type EdgeName = (String, String);

/// Shared by whoever fills it and whoever shows it.
#[derive(Debug, Clone, Default)]
pub struct Registrations(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    /// False without an etcd, and while it cannot be read.
    known: bool,
    edges: BTreeMap<EdgeName, State>,
}

#[derive(Debug)]
enum State {
    Registered(Registration),
    /// Since then, by this control's clock.
    Lapsed(i64),
}

impl Registrations {
    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that are registered now; who was and is not among them has lapsed.
    pub fn replace(&self, found: BTreeMap<EdgeName, Registration>) {
        let now = now_us();
        let mut table = self.table();
        table.known = true;
        for (edge, state) in &mut table.edges {
            if matches!(state, State::Registered(_)) && !found.contains_key(edge) {
                *state = State::Lapsed(now);
            }
        }
        for (edge, said) in found {
            table.insert(edge, said);
        }
        table.edges.retain(|_, state| !matches!(state, State::Lapsed(at) if *at < now - LAPSED_US));
    }

    pub fn put(&self, edge: EdgeName, said: Registration) {
        self.table().insert(edge, said);
    }

    pub fn lapsed(&self, edge: &EdgeName) {
        if let Some(state) = self.table().edges.get_mut(edge) {
            *state = State::Lapsed(now_us());
        }
    }

    /// etcd cannot be read. False if that was known.
    pub fn forget(&self) -> bool {
        std::mem::replace(&mut self.table().known, false)
    }

    /// The first edges after `after` that are registered or were lately.
    pub fn after(&self, after: &EdgeName, count: usize) -> Vec<EdgeName> {
        use std::ops::Bound::{Excluded, Unbounded};
        let table = self.table();
        if !table.known {
            return Vec::new();
        }
        let edges = table.edges.range((Excluded(after.clone()), Unbounded));
        edges.take(count).map(|(edge, _)| edge.clone()).collect()
    }

    /// As the API shows it; null if it is not known.
    pub fn state(&self, edge: &EdgeName) -> Value {
        let table = self.table();
        if !table.known {
            return Value::Null;
        }
        match table.edges.get(edge) {
            None => json!({ "registered": false, "since": null }),
            Some(State::Lapsed(at)) => json!({ "registered": false, "since": rfc3339(*at) }),
            Some(State::Registered(said)) => json!({ "registered": true,
                "since": rfc3339(said.registered_at_us), "startedAt": rfc3339(said.started_at_us),
                "version": said.version, "address": said.address }),
        }
    }
}

impl Table {
    fn insert(&mut self, edge: EdgeName, said: Registration) {
        if self.edges.len() >= REGISTRATIONS_MAX && !self.edges.contains_key(&edge) {
            let gone = self.edges.iter().find(|(_, state)| matches!(state, State::Lapsed(_)));
            let Some(gone) = gone.map(|(edge, _)| edge.clone()) else { return };
            self.edges.remove(&gone);
        }
        self.edges.insert(edge, State::Registered(said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(at: i64) -> Registration {
        Registration {
            version: "0.1.0".to_owned(),
            address: None,
            started_at_us: at,
            registered_at_us: at,
        }
    }

    fn edge(number: usize) -> EdgeName {
        (format!("edge-{number:05}"), "key".to_owned())
    }

    #[test]
    fn nothing_is_claimed_that_is_not_known() {
        let registrations = Registrations::default();
        assert_eq!(registrations.state(&edge(1)), Value::Null);
        registrations.replace([(edge(1), said(5))].into());
        assert_eq!(registrations.state(&edge(1))["registered"], true);
        assert!(registrations.forget(), "it was known until now");
        assert!(!registrations.forget());
        assert_eq!(registrations.state(&edge(1)), Value::Null);
        assert!(registrations.after(&edge(0), 10).is_empty());
        registrations.replace(BTreeMap::new());
        let state = registrations.state(&edge(1));
        assert!(state["registered"] == false && state["since"].is_string(), "{state}");
    }

    #[test]
    fn a_full_table_gives_up_who_lapsed_and_nobody_else() {
        let registrations = Registrations::default();
        registrations.replace((0..REGISTRATIONS_MAX).map(|n| (edge(n), said(1))).collect());
        registrations.put(edge(REGISTRATIONS_MAX), said(1));
        assert_eq!(registrations.state(&edge(REGISTRATIONS_MAX))["registered"], false);
        registrations.lapsed(&edge(7));
        registrations.put(edge(REGISTRATIONS_MAX), said(1));
        assert_eq!(registrations.state(&edge(REGISTRATIONS_MAX))["registered"], true);
        assert_eq!(registrations.state(&edge(7))["since"], Value::Null, "it made room");
        assert_eq!(registrations.after(&edge(9_998), 10), [edge(9_999), edge(10_000)]);
    }
}
