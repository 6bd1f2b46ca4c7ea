//! Counts uses of flags, by environment, flag, variant, source and minute, and reports them to control.
//!
//! Counted is what was used: single evaluations here, and what browsers say that they used. Bulk
//! answers are not, since they are fetched ahead. A count is worth less than an answer: beyond the
//! bounds it is dropped, and the drop is counted. A report that control did not take is sent again
//! under its number before anything newer is, and until it is taken counts go on adding up here.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rules::keys::KeyKind;
use rules::usage::{
    EnvironmentUsage, KeyUse, REPORT_ENTRIES_MAX, Source, TrackCount, UsageReport, UseCount,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, FeedError, jittered};
use crate::metrics::Metrics;
use crate::state::State;
use crate::sync::{chain, lock};

/// Requests of one environment must not stand in line for one lock.
const SHARDS: usize = 16;
/// Of one environment, of flags, variants and minutes together: an hour of control being away, with a
/// thousand flags in use.
const CELLS_MAX: usize = 60_000;
/// Names that browsers make up.
const TRACKS_MAX: usize = 2_000;
const SEND_TIMEOUT: Duration = Duration::from_secs(10);
/// At a shutdown, which waits for it.
const LAST_TIMEOUT: Duration = Duration::from_secs(8);

/// Of one environment, since the last report.
#[derive(Debug)]
pub struct Usage {
    shards: [Mutex<HashMap<Box<str>, Vec<Cell>>>; SHARDS],
    tracks: Mutex<Tracks>,
    cells: AtomicUsize,
    dropped: metrics::Counter,
}

/// Count and sum, by name and minute.
type Tracks = BTreeMap<(Box<str>, i64), (u64, f64)>;

#[derive(Debug)]
struct Cell {
    minute: i64,
    source: Source,
    variant: Option<Box<str>>,
    count: u64,
}

impl Usage {
    pub fn new(dropped: metrics::Counter) -> Usage {
        Usage {
            shards: Default::default(),
            tracks: Mutex::default(),
            cells: AtomicUsize::new(0),
            dropped,
        }
    }

    pub fn count(&self, flag: &str, variant: Option<&str>, source: Source, minute: i64, by: u64) {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(flag);
        let mut shard = lock(&self.shards[hash as usize % SHARDS]);
        let is = |cell: &&mut Cell| {
            cell.minute == minute && cell.source == source && cell.variant.as_deref() == variant
        };
        // The newest last, and it is asked for most.
        let known = shard.get_mut(flag).and_then(|cells| cells.iter_mut().rev().find(is));
        if let Some(cell) = known {
            cell.count = cell.count.saturating_add(by);
            return;
        }
        if self.cells.fetch_add(1, Ordering::Relaxed) >= CELLS_MAX {
            self.cells.fetch_sub(1, Ordering::Relaxed);
            self.dropped.increment(by);
            return;
        }
        let cell = Cell { minute, source, variant: variant.map(Box::from), count: by };
        match shard.get_mut(flag) {
            Some(cells) => cells.push(cell),
            None => drop(shard.insert(Box::from(flag), vec![cell])),
        }
    }

    /// False if there are too many names.
    pub fn track(&self, name: &str, minute: i64, by: u64, sum: f64) -> bool {
        let mut tracks = lock(&self.tracks);
        let key = (Box::from(name), minute);
        if tracks.len() >= TRACKS_MAX && !tracks.contains_key(&key) {
            self.dropped.increment(by);
            return false;
        }
        let (count, of) = tracks.entry(key).or_default();
        *count = count.saturating_add(by);
        *of += sum;
        true
    }

    fn take(&self) -> (Vec<UseCount>, Vec<TrackCount>) {
        let mut uses = Vec::new();
        for shard in &self.shards {
            let taken = std::mem::take(&mut *lock(shard));
            for (flag, cells) in taken {
                self.cells.fetch_sub(cells.len(), Ordering::Relaxed);
                uses.extend(cells.into_iter().map(|cell| UseCount {
                    flag: flag.to_string(),
                    variant: cell.variant.map(String::from),
                    source: cell.source,
                    minute: cell.minute,
                    count: cell.count,
                }));
            }
        }
        let tracks = std::mem::take(&mut *lock(&self.tracks));
        let tracks = tracks.into_iter().map(|((name, minute), (count, sum))| TrackCount {
            name: String::from(name),
            minute,
            count,
            sum,
        });
        (uses, tracks.collect())
    }
}

/// Whom a key's holder is counted as.
pub fn source_of(kind: KeyKind) -> Source {
    match kind {
        KeyKind::Browser => Source::Browser,
        _ => Source::Server,
    }
}

/// The variant of a single OFREP answer that is no error; None where the caller's default is served.
/// Read from its bytes, as `metrics::reason_of` does and for the same reason.
pub fn variant_of(body: &[u8]) -> Option<Cow<'_, str>> {
    const MARK: &[u8] = b",\"variant\":";
    const END: &[u8] = b",\"reason\":\"";
    let find =
        |within: &[u8], mark: &[u8]| within.windows(mark.len()).rposition(|window| window == mark);
    let before = &body[..find(body, END)?];
    let quoted = &before[find(before, MARK)? + MARK.len()..];
    let plain = quoted.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    let variant = match plain {
        Some(plain) if !plain.contains(&b'\\') => Cow::Borrowed(std::str::from_utf8(plain).ok()?),
        _ => Cow::Owned(serde_json::from_slice(quoted).ok()?),
    };
    (!variant.is_empty()).then_some(variant)
}

pub struct Reporter {
    pub edge_id: String,
    pub every: Duration,
    pub feed: Arc<dyn Feed>,
    pub state: Arc<State>,
    pub metrics: Metrics,
}

impl Reporter {
    /// Until told to stop; then once more.
    pub async fn run(self, stop: CancellationToken) {
        let run = seam::now_us();
        let mut sequence = 0;
        let mut waiting: VecDeque<UsageReport> = VecDeque::new();
        loop {
            let until = Instant::now() + jittered(self.every);
            let last = tokio::select! {
                () = stop.cancelled() => true,
                () = tokio::time::sleep_until(until) => false,
            };
            if waiting.is_empty() {
                self.collect(run, &mut sequence, &mut waiting);
            }
            let limit = if last { LAST_TIMEOUT } else { SEND_TIMEOUT };
            while let Some(report) = waiting.front() {
                let sent = tokio::time::timeout(limit, self.feed.usage(report.clone())).await;
                match sent {
                    Ok(Ok(())) => {
                        self.metrics.usage_reports.increment(1);
                        waiting.pop_front();
                    }
                    // It will not be taken later either, as by a control of before.
                    Ok(Err(FeedError::Status { status }))
                        if (400..500).contains(&status) && !matches!(status, 408 | 429) =>
                    {
                        self.metrics.usage_failures.increment(1);
                        tracing::warn!(status, "control refuses a report of usage; it is dropped");
                        waiting.pop_front();
                    }
                    // The next tick tries the same again.
                    Ok(Err(error)) => {
                        self.metrics.usage_failures.increment(1);
                        tracing::debug!(reason = chain(&error), "usage was not taken");
                        break;
                    }
                    Err(_) => {
                        self.metrics.usage_failures.increment(1);
                        break;
                    }
                }
            }
            if last {
                return;
            }
        }
    }

    fn collect(&self, run: i64, sequence: &mut u64, reports: &mut VecDeque<UsageReport>) {
        let table = self.state.table();
        for served in table.environments() {
            let (uses, tracks) = served.tenant.usage.take();
            let (mut uses, mut tracks) = (uses.into_iter(), tracks.into_iter());
            // Fewer than entries may be, by the limit of keys.
            let mut keys: Vec<KeyUse> = table
                .grants()
                .filter(|grant| Arc::ptr_eq(&grant.served, served))
                .filter_map(|grant| {
                    let minute = grant.key.take_use()?;
                    Some(KeyUse { id: grant.key.record.id.clone(), minute })
                })
                .collect();
            loop {
                let part = EnvironmentUsage {
                    namespace: served.tenant.name.0.clone(),
                    environment: served.tenant.name.1.clone(),
                    uses: uses.by_ref().take(REPORT_ENTRIES_MAX).collect(),
                    tracks: tracks.by_ref().take(REPORT_ENTRIES_MAX).collect(),
                    keys: std::mem::take(&mut keys),
                };
                if part.uses.is_empty() && part.tracks.is_empty() && part.keys.is_empty() {
                    break;
                }
                *sequence += 1;
                reports.push_back(UsageReport {
                    edge: self.edge_id.clone(),
                    run,
                    sequence: *sequence,
                    environments: vec![part],
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> Usage {
        Usage::new(metrics::Counter::noop())
    }

    #[test]
    fn uses_of_one_minute_variant_and_source_add_up_and_are_taken_once() {
        let usage = usage();
        for (variant, source, minute) in [
            (Some("on"), Source::Server, 7),
            (Some("on"), Source::Server, 7),
            (Some("on"), Source::Browser, 7),
            (Some("off"), Source::Server, 7),
            (None, Source::Server, 7),
            (Some("on"), Source::Server, 8),
        ] {
            usage.count("flag", variant, source, minute, 2);
        }
        let (uses, _) = usage.take();
        let counts: Vec<u64> = uses.iter().map(|one| one.count).collect();
        assert_eq!(counts, [4, 2, 2, 2, 2], "{uses:?}");
        assert_eq!(usage.take().0, []);
        assert_eq!(usage.cells.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn beyond_the_bound_only_what_is_known_counts() {
        let usage = usage();
        for minute in 0..CELLS_MAX as i64 + 10 {
            usage.count(&format!("flag-{}", minute % 1_000), None, Source::Browser, minute, 1);
        }
        usage.count("flag-0", None, Source::Browser, 0, 5);
        let (uses, _) = usage.take();
        assert_eq!(uses.len(), CELLS_MAX);
        assert_eq!(uses.iter().map(|one| one.count).sum::<u64>(), CELLS_MAX as u64 + 5);
        for name in 0..TRACKS_MAX + 5 {
            assert_eq!(usage.track(&name.to_string(), 1, 1, 0.5), name < TRACKS_MAX);
        }
        assert!(usage.track("0", 1, 1, 0.5));
        assert_eq!(usage.take().1.len(), TRACKS_MAX);
    }

    #[test]
    fn the_variant_is_read_from_the_answer_whatever_its_value_says() {
        for (body, variant) in [
            (
                r#"{"key":"a","value":true,"variant":"on","reason":"STATIC","metadata":{}}"#,
                Some("on"),
            ),
            (r#"{"key":"a","variant":"","reason":"DEFAULT","metadata":{}}"#, None),
            (
                r#"{"key":"a","value":1,"variant":"a\"b","reason":"STATIC","metadata":{}}"#,
                Some("a\"b"),
            ),
            (
                r#"{"key":"a","value":{"x":1,"variant":"no","reason":"no"},"variant":"yes","reason":"SPLIT","metadata":{}}"#,
                Some("yes"),
            ),
            (r#"{"key":"a","errorCode":"GENERAL"}"#, None),
            ("", None),
        ] {
            assert_eq!(variant_of(body.as_bytes()).as_deref(), variant, "{body}");
        }
    }
}
