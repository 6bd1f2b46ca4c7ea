//! What an edge counts, for Prometheus.
//!
//! The recorder is this edge's own and not the process's: `tidegate dev` runs control beside it,
//! and tests run many edges. Counters of the hot path are looked up once per environment and then
//! are one atomic addition each.

use std::sync::Arc;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Recorder as _};
use metrics_exporter_prometheus::{
    BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder,
};
use rules::policy::PolicyFault;

const METADATA: Metadata<'static> = Metadata::new("edge", Level::INFO, None);

/// Upper bounds in seconds: an evaluation takes microseconds, a bulk one tens to hundreds.
const LATENCY_BUCKETS: [f64; 14] = [
    0.000_005, 0.000_01, 0.000_02, 0.000_05, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01,
    0.05, 0.1, 1.0,
];

#[derive(Debug, Clone)]
pub struct Metrics {
    recorder: Arc<PrometheusRecorder>,
    handle: PrometheusHandle,
    pub streams: Gauge,
    pub connections: Gauge,
    pub connections_refused: Counter,
    pub denied: Counter,
    pub not_ready: Counter,
    pub feed_failures: Counter,
    pub feed_contact_s: Gauge,
    pub disk_failures: Counter,
    pub usage_reports: Counter,
    pub usage_failures: Counter,
    pub quarantined: Counter,
    pub verifications: Counter,
    pub rotted_in_memory: Counter,
    pub rotted_on_disk: Counter,
}

/// Of one environment; every series exists from the start, so that a rate has a zero to begin at.
#[derive(Debug)]
pub struct EnvironmentMetrics {
    /// In the order of `REASONS`, then not found, bad request, failed.
    single: [Counter; 9],
    pub bulk: Counter,
    pub bulk_not_modified: Counter,
    pub bulk_failed: Counter,
    pub limited: Counter,
    pub usage_dropped: Counter,
    pub traps: Counter,
    pub events: Counter,
    pub latency: Histogram,
    pub latency_bulk: Histogram,
    revision: Gauge,
    generation: Gauge,
    flags: Gauge,
    age_s: Gauge,
    applied: Counter,
    older: Counter,
    refused: Counter,
    failed: Counter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncResult {
    Applied,
    /// A head older than what is served, ignored.
    Older,
    /// Never to be loaded.
    Refused,
    /// Worth another try.
    Failed,
}

const REASONS: [&str; 6] = ["STATIC", "DEFAULT", "TARGETING_MATCH", "SPLIT", "DISABLED", "UNKNOWN"];

impl Metrics {
    pub fn new() -> Result<Metrics, BuildError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(
                Matcher::Full("tidegate_edge_request_seconds".to_owned()),
                &LATENCY_BUCKETS,
            )?
            .set_buckets_for_metric(
                Matcher::Full("tidegate_edge_policy_seconds".to_owned()),
                &LATENCY_BUCKETS,
            )?
            .build_recorder();
        describe(&recorder);
        let gauge = |name| recorder.register_gauge(&Key::from_static_name(name), &METADATA);
        let counter = |name| recorder.register_counter(&Key::from_static_name(name), &METADATA);
        let rotted = |place| {
            let labels = vec![Label::from_static_parts("place", place)];
            let key = Key::from_parts("tidegate_edge_rotted_total", labels);
            recorder.register_counter(&key, &METADATA)
        };
        Ok(Metrics {
            handle: recorder.handle(),
            streams: gauge("tidegate_edge_event_streams"),
            connections: gauge("tidegate_edge_connections"),
            connections_refused: counter("tidegate_edge_connections_refused_total"),
            denied: counter("tidegate_edge_requests_denied_total"),
            not_ready: counter("tidegate_edge_requests_not_ready_total"),
            feed_failures: counter("tidegate_edge_feed_failures_total"),
            feed_contact_s: gauge("tidegate_edge_feed_contact_timestamp_seconds"),
            disk_failures: counter("tidegate_edge_disk_failures_total"),
            usage_reports: counter("tidegate_edge_usage_reports_total"),
            usage_failures: counter("tidegate_edge_usage_failures_total"),
            quarantined: counter("tidegate_edge_snapshots_quarantined_total"),
            verifications: counter("tidegate_edge_verifications_total"),
            rotted_in_memory: rotted("memory"),
            rotted_on_disk: rotted("disk"),
            recorder: Arc::new(recorder),
        })
    }

    pub fn environment(&self, namespace: &str, environment: &str) -> EnvironmentMetrics {
        let labels = |more: &[(&'static str, &'static str)]| {
            let mut labels = vec![
                Label::new("namespace", namespace.to_owned()),
                Label::new("environment", environment.to_owned()),
            ];
            labels.extend(more.iter().map(|(name, value)| Label::from_static_parts(name, value)));
            labels
        };
        let counter = |name: &'static str, more: &[(&'static str, &'static str)]| {
            self.recorder.register_counter(&Key::from_parts(name, labels(more)), &METADATA)
        };
        let gauge = |name: &'static str| {
            self.recorder.register_gauge(&Key::from_parts(name, labels(&[])), &METADATA)
        };
        let latency = |kind: &'static str| {
            let key = Key::from_parts("tidegate_edge_request_seconds", labels(&[("kind", kind)]));
            self.recorder.register_histogram(&key, &METADATA)
        };
        let single = |reason: &'static str, outcome: &'static str| {
            counter("tidegate_edge_evaluations_total", &[("reason", reason), ("outcome", outcome)])
        };
        let bulk =
            |outcome| counter("tidegate_edge_bulk_evaluations_total", &[("outcome", outcome)]);
        let sync = |result| counter("tidegate_edge_sync_total", &[("result", result)]);
        let [a, b, c, d, e, f] = REASONS;
        EnvironmentMetrics {
            single: [
                single(a, "ok"),
                single(b, "ok"),
                single(c, "ok"),
                single(d, "ok"),
                single(e, "ok"),
                single(f, "ok"),
                single("ERROR", "not_found"),
                single("ERROR", "bad_request"),
                single("ERROR", "failed"),
            ],
            bulk: bulk("ok"),
            bulk_not_modified: bulk("not_modified"),
            bulk_failed: bulk("failed"),
            limited: counter("tidegate_edge_requests_limited_total", &[]),
            usage_dropped: counter("tidegate_edge_usage_dropped_total", &[]),
            traps: counter("tidegate_edge_sandbox_traps_total", &[]),
            events: counter("tidegate_edge_events_total", &[]),
            latency: latency("one"),
            latency_bulk: latency("bulk"),
            revision: gauge("tidegate_edge_snapshot_revision"),
            generation: gauge("tidegate_edge_snapshot_generation"),
            flags: gauge("tidegate_edge_snapshot_flags"),
            age_s: gauge("tidegate_edge_snapshot_age_seconds"),
            applied: sync("applied"),
            older: sync("older"),
            refused: sync("refused"),
            failed: sync("failed"),
        }
    }

    pub fn policy(&self, namespace: &str, environment: &str, policy: &str) -> PolicyMetrics {
        let labels = |more: Option<(&'static str, &'static str)>| {
            let mut labels = vec![
                Label::new("namespace", namespace.to_owned()),
                Label::new("environment", environment.to_owned()),
                Label::new("policy", policy.to_owned()),
            ];
            labels.extend(more.map(|(name, value)| Label::from_static_parts(name, value)));
            labels
        };
        let counter = |name: &'static str, more: Option<(&'static str, &'static str)>| {
            self.recorder.register_counter(&Key::from_parts(name, labels(more)), &METADATA)
        };
        let gauge = |name: &'static str| {
            self.recorder.register_gauge(&Key::from_parts(name, labels(None)), &METADATA)
        };
        let shadow =
            |result| counter("tidegate_edge_policy_shadow_total", Some(("result", result)));
        let fault = |fault: &PolicyFault| {
            counter("tidegate_edge_policy_faults_total", Some(("fault", fault.name())))
        };
        let seconds = Key::from_parts("tidegate_edge_policy_seconds", labels(None));
        PolicyMetrics {
            calls: counter("tidegate_edge_policy_calls_total", None),
            fuel: counter("tidegate_edge_policy_fuel_total", None),
            seconds: self.recorder.register_histogram(&seconds, &METADATA),
            loaded: gauge("tidegate_edge_policy_loaded"),
            open: gauge("tidegate_edge_policy_breaker_open"),
            shadow_same: shadow("same"),
            shadow_different: shadow("different"),
            shadow_faults: shadow("fault"),
            shadow_dropped: shadow("dropped"),
            faults: PolicyFault::ALL.iter().map(fault).collect(),
        }
    }

    /// Histograms keep samples until this is called; whoever runs the edge calls it every second.
    pub fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    pub fn render<'a>(
        &self,
        served: impl Iterator<Item = &'a Arc<crate::state::Served>>,
        now_ms: i64,
    ) -> String {
        for served in served {
            let metrics = &served.tenant.metrics;
            metrics.revision.set(served.version.revision as f64);
            metrics.generation.set(served.version.generation as f64);
            metrics.flags.set(f64::from(served.manifest.flag_count));
            metrics.age_s.set(now_ms.saturating_sub(served.issued_at_ms).max(0) as f64 / 1000.0);
        }
        self.handle.render()
    }
}

/// Of one policy of one environment; there are at most a hundred of these.
#[derive(Debug, Clone)]
pub struct PolicyMetrics {
    pub calls: Counter,
    pub fuel: Counter,
    pub seconds: Histogram,
    pub loaded: Gauge,
    pub open: Gauge,
    pub shadow_same: Counter,
    pub shadow_different: Counter,
    pub shadow_faults: Counter,
    pub shadow_dropped: Counter,
    /// In the order of `PolicyFault::ALL`.
    faults: Vec<Counter>,
}

impl PolicyMetrics {
    pub fn count_fault(&self, place: usize) {
        if let Some(faults) = self.faults.get(place) {
            faults.increment(1);
        }
    }
}

impl EnvironmentMetrics {
    pub fn count_one(&self, status: u16, body: &[u8], took: Duration) {
        let index = match status {
            200 => reason_of(body),
            404 => 6,
            400 => 7,
            _ => 8,
        };
        self.single[index].increment(1);
        self.latency.record(took.as_secs_f64());
    }

    pub fn count_sync(&self, result: SyncResult) {
        match result {
            SyncResult::Applied => &self.applied,
            SyncResult::Older => &self.older,
            SyncResult::Refused => &self.refused,
            SyncResult::Failed => &self.failed,
        }
        .increment(1);
    }
}

/// The index into `REASONS` of an answer's reason, read from its bytes: the evaluator answers
/// bytes, and parsing them again would cost more than evaluating did. Answers end with reason and
/// metadata, so the search is from the end, and bounded.
fn reason_of(body: &[u8]) -> usize {
    const MARK: &[u8] = b",\"reason\":\"";
    const UNKNOWN: usize = 5;
    let tail = &body[body.len().saturating_sub(4096)..];
    let Some(at) = tail.windows(MARK.len()).rposition(|window| window == MARK) else {
        return UNKNOWN;
    };
    let rest = &tail[at + MARK.len()..];
    REASONS
        .iter()
        .position(|reason| {
            rest.strip_prefix(reason.as_bytes()).is_some_and(|rest| rest.starts_with(b"\""))
        })
        .unwrap_or(UNKNOWN)
}

fn describe(recorder: &PrometheusRecorder) {
    for (name, text) in [
        ("tidegate_edge_evaluations_total", "Single evaluations by reason and outcome."),
        ("tidegate_edge_bulk_evaluations_total", "Bulk evaluations by outcome."),
        ("tidegate_edge_requests_limited_total", "Requests answered 429."),
        ("tidegate_edge_requests_denied_total", "Requests answered 401 or 403."),
        ("tidegate_edge_requests_not_ready_total", "Requests while there was no snapshot."),
        ("tidegate_edge_connections_refused_total", "Connections closed over the cap."),
        ("tidegate_edge_sandbox_traps_total", "Evaluations that the sandbox gave up."),
        ("tidegate_edge_events_total", "Change events written to streams."),
        ("tidegate_edge_policy_calls_total", "Calls of a policy."),
        ("tidegate_edge_policy_faults_total", "Calls that served a rule's fallback, by fault."),
        ("tidegate_edge_policy_fuel_total", "Fuel that a policy's calls used."),
        ("tidegate_edge_policy_shadow_total", "Calls of a shadow, by how it compares."),
        ("tidegate_edge_sync_total", "What became of heads, by result."),
        ("tidegate_edge_feed_failures_total", "Failed requests to control."),
        ("tidegate_edge_usage_reports_total", "Reports of usage that control took."),
        ("tidegate_edge_usage_failures_total", "Reports of usage that control did not take."),
        ("tidegate_edge_usage_dropped_total", "Uses that were not counted: too many at once."),
        ("tidegate_edge_disk_failures_total", "Snapshots that could not be written or read."),
        ("tidegate_edge_snapshots_quarantined_total", "Snapshot files set aside as bad."),
        ("tidegate_edge_verifications_total", "Times that all was hashed again."),
        ("tidegate_edge_rotted_total", "What was found to have other bytes than it came with."),
    ] {
        recorder.describe_counter(name.into(), None, text.into());
    }
    for (name, text) in [
        ("tidegate_edge_event_streams", "Open event streams."),
        ("tidegate_edge_connections", "Open connections."),
        ("tidegate_edge_feed_contact_timestamp_seconds", "When control last answered."),
        ("tidegate_edge_snapshot_revision", "Revision that is served."),
        ("tidegate_edge_snapshot_generation", "Generation that is served."),
        ("tidegate_edge_snapshot_flags", "Flags of the snapshot that is served."),
        ("tidegate_edge_snapshot_age_seconds", "Since the served snapshot was issued."),
    ] {
        recorder.describe_gauge(name.into(), None, text.into());
    }
    recorder.describe_histogram(
        "tidegate_edge_request_seconds".into(),
        Some(metrics::Unit::Seconds),
        "From a request's headers to its answer, by kind.".into(),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_answers_own_and_not_one_inside_its_value() {
        let body = br#"{"key":"a","value":{"x":1,"reason":"SPLIT"},"variant":"v","reason":"DISABLED","metadata":{}}"#;
        assert_eq!(REASONS[reason_of(body)], "DISABLED");
        assert_eq!(REASONS[reason_of(b"{}")], "UNKNOWN");
        assert_eq!(REASONS[reason_of(b"")], "UNKNOWN");
    }
}
