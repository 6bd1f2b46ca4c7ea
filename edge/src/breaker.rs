//! Breaks boot loops: a snapshot that brought this process down twice is set aside for a while, and
//! the one before is served.
//!
//! Before a snapshot is loaded its digest is written down as being loaded, then as being served;
//! once it has been served for long enough it is proven, and never suspected again. A start that
//! finds some being loaded blames those; if there are none, those that were being served unproven.
//! After a crash snapshots are loaded one by one, so that the next one has a single suspect. An
//! orderly end blames nobody. Who kills a process cannot be known, so two kills shortly after one
//! new snapshot count as two crashes; the quarantine ends by itself, and a lone snapshot is served
//! all the same: better to try than to have nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Duration;

use rules::blob::Digest;
use tokio::time::Instant;

use crate::disk::Disk;
use crate::state::Name;
use crate::sync::lock;

const CRASHES_MAX: u32 = 2;
/// Then it is tried again, and one more crash sets it aside again.
const QUARANTINE_MS: i64 = 10 * 60 * 1_000;
/// Of each kind of line; the oldest are forgotten first, which costs a new proof.
const PROVEN_MAX: usize = 4_096;
const FILE: &str = "breaker";

#[derive(Debug, Default, PartialEq)]
struct Record {
    /// Oldest first.
    proven: Vec<Digest>,
    attempts: BTreeMap<Digest, Attempt>,
    /// Until when, in milliseconds since the epoch.
    quarantined: BTreeMap<Digest, i64>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Attempt {
    stage: Stage,
    /// That it was blamed for so far.
    crashes: u32,
}

impl Attempt {
    const NEW: Attempt = Attempt { stage: Stage::Idle, crashes: 0 };
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    /// Not in this process yet.
    Idle,
    Loading,
    Serving,
}

#[derive(Debug)]
pub struct Breaker {
    disk: Option<Disk>,
    healthy_after: Duration,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    record: Record,
    /// What is served, unproven, and since when.
    unproven: HashMap<Name, (Digest, Instant)>,
    /// The record differs from the file.
    dirty: bool,
}

impl Breaker {
    /// Reads what the last process left.
    pub fn open(disk: Option<Disk>, healthy_after: Duration, now_ms: i64) -> Breaker {
        let text = disk.as_ref().and_then(|disk| disk.note(FILE).ok()).unwrap_or_default();
        let mut record = Record::parse(&text);
        record.quarantined.retain(|_, until| *until > now_ms);
        let loading = record.attempts.values().any(|attempt| attempt.stage == Stage::Loading);
        let blamed = if loading { Stage::Loading } else { Stage::Serving };
        for (digest, attempt) in &mut record.attempts {
            attempt.crashes += u32::from(attempt.stage == blamed);
            attempt.stage = Stage::Idle;
            if attempt.crashes >= CRASHES_MAX {
                tracing::error!(
                    %digest,
                    "a snapshot brought this edge down twice; it is set aside for ten minutes"
                );
                record.quarantined.insert(*digest, now_ms.saturating_add(QUARANTINE_MS));
                attempt.crashes = CRASHES_MAX - 1;
            }
        }
        record.attempts.retain(|_, attempt| attempt.crashes > 0);
        let inner = Inner { record, dirty: true, ..Inner::default() };
        Breaker { disk, healthy_after, inner: Mutex::new(inner) }
    }

    pub fn allows(&self, digest: Digest, now_ms: i64) -> bool {
        lock(&self.inner).record.quarantined.get(&digest).is_none_or(|until| *until <= now_ms)
    }

    /// Something is suspected of a crash: load one at a time.
    pub fn is_wary(&self) -> bool {
        !lock(&self.inner).record.attempts.is_empty()
    }

    /// Before it is loaded. On disk when this returns, unless the disk fails.
    pub fn begin(&self, digest: Digest) {
        let mut inner = lock(&self.inner);
        let trusting = self.disk.is_none() || self.healthy_after.is_zero();
        if trusting || inner.record.proven.contains(&digest) {
            return;
        }
        inner.record.attempts.entry(digest).or_insert(Attempt::NEW).stage = Stage::Loading;
        inner.dirty = true;
        self.write(&mut inner);
    }

    /// It was refused, which brought nothing down.
    pub fn refused(&self, digest: Digest) {
        let mut inner = lock(&self.inner);
        if let Some(attempt) = inner.record.attempts.get_mut(&digest) {
            attempt.stage = Stage::Idle;
            inner.record.attempts.retain(|_, attempt| *attempt != Attempt::NEW);
            inner.dirty = true;
        }
    }

    /// It is served from now on, and what was served before it is suspected no longer.
    pub fn served(&self, name: &Name, digest: Digest) {
        let mut inner = lock(&self.inner);
        let before = match inner.record.attempts.get_mut(&digest) {
            Some(attempt) => {
                attempt.stage = Stage::Serving;
                inner.unproven.insert(name.clone(), (digest, Instant::now()))
            }
            None => inner.unproven.remove(name),
        };
        if let Some((before, _)) = before.filter(|(before, _)| *before != digest) {
            inner.record.attempts.remove(&before);
        }
        inner.dirty = true;
    }

    /// Takes note of what has been served for long enough. Call it now and then.
    pub fn upkeep(&self) {
        let mut inner = lock(&self.inner);
        let Inner { record, unproven, dirty } = &mut *inner;
        unproven.retain(|_, (digest, since)| {
            if since.elapsed() < self.healthy_after {
                return true;
            }
            record.attempts.remove(digest);
            record.quarantined.remove(digest);
            record.proven.push(*digest);
            *dirty = true;
            false
        });
        let surplus = record.proven.len().saturating_sub(PROVEN_MAX);
        record.proven.drain(..surplus);
        self.write(&mut inner);
    }

    /// An orderly end: whatever is being tried did not bring the process down.
    pub fn end(&self) {
        let mut inner = lock(&self.inner);
        inner.record.attempts.clear();
        inner.dirty = true;
        self.write(&mut inner);
    }

    fn write(&self, inner: &mut Inner) {
        let Some(disk) = self.disk.as_ref().filter(|_| inner.dirty) else { return };
        match disk.write_note(FILE, inner.record.text().as_bytes()) {
            Ok(()) => inner.dirty = false,
            // A snapshot is served whether or not its attempt could be written down.
            Err(error) => tracing::warn!(%error, "attempts could not be written down"),
        }
    }
}

impl Record {
    fn text(&self) -> String {
        let mut text = String::new();
        for digest in &self.proven {
            let _ = writeln!(text, "proven {digest}");
        }
        for (digest, Attempt { stage, crashes }) in &self.attempts {
            let stage = match stage {
                Stage::Idle => "idle",
                Stage::Loading => "loading",
                Stage::Serving => "serving",
            };
            let _ = writeln!(text, "{stage} {digest} {crashes}");
        }
        for (digest, until) in &self.quarantined {
            let _ = writeln!(text, "quarantined {digest} {until}");
        }
        text
    }

    /// Lines that make no sense are passed over: the worst is a snapshot that has to prove itself.
    fn parse(text: &str) -> Record {
        let mut record = Record::default();
        for line in text.lines() {
            let mut words = line.split(' ');
            let (kind, digest) = (words.next(), words.next().and_then(|word| word.parse().ok()));
            let (Some(digest), number) = (digest, words.next()) else { continue };
            match (kind, number) {
                (Some("proven"), None) => record.proven.push(digest),
                (Some(stage @ ("idle" | "loading" | "serving")), Some(number)) => {
                    let stage = match stage {
                        "idle" => Stage::Idle,
                        "loading" => Stage::Loading,
                        _ => Stage::Serving,
                    };
                    if let Ok(crashes) = number.parse() {
                        record.attempts.insert(digest, Attempt { stage, crashes });
                    }
                }
                (Some("quarantined"), Some(number)) => {
                    if let Ok(until) = number.parse() {
                        record.quarantined.insert(digest, until);
                    }
                }
                _ => {}
            }
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_000_000;
    const LONG: Duration = Duration::from_secs(3_600);

    fn open(dir: &std::path::Path, healthy_after: Duration, now_ms: i64) -> Breaker {
        Breaker::open(Some(Disk::open(dir).unwrap()), healthy_after, now_ms)
    }

    fn name() -> Name {
        ("shop".to_owned(), "production".to_owned())
    }

    #[test]
    fn two_crashes_set_a_snapshot_aside_until_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let bad = Digest::of(b"bad");
        for crash in 0..CRASHES_MAX {
            let breaker = open(dir.path(), LONG, NOW);
            assert!(breaker.allows(bad, NOW), "after {crash} crashes");
            breaker.begin(bad);
            breaker.served(&name(), bad);
            // The process ends here, without a word.
        }
        let breaker = open(dir.path(), LONG, NOW);
        assert!(!breaker.allows(bad, NOW));
        assert!(breaker.allows(Digest::of(b"good"), NOW), "others are not suspected");
        assert!(breaker.allows(bad, NOW + QUARANTINE_MS));
        // Once more, and it is set aside again at once.
        breaker.begin(bad);
        assert!(
            !open(dir.path(), LONG, NOW + QUARANTINE_MS + 1).allows(bad, NOW + QUARANTINE_MS + 2)
        );
    }

    #[test]
    fn a_crash_while_loading_is_not_blamed_on_what_was_being_served() {
        let dir = tempfile::tempdir().unwrap();
        let (neighbour, bad) = (Digest::of(b"neighbour"), Digest::of(b"bad"));
        let of = |name: &str| ("shop".to_owned(), name.to_owned());
        for _ in 0..CRASHES_MAX {
            let breaker = open(dir.path(), LONG, NOW);
            breaker.begin(neighbour);
            breaker.served(&of("one"), neighbour);
            breaker.begin(bad);
        }
        let breaker = open(dir.path(), LONG, NOW);
        assert!(breaker.is_wary());
        assert!(!breaker.allows(bad, NOW));
        assert!(breaker.allows(neighbour, NOW));
    }

    #[test]
    fn what_was_served_long_enough_or_ended_in_order_is_not_suspected() {
        let dir = tempfile::tempdir().unwrap();
        let good = Digest::of(b"good");
        for _ in 0..5 {
            let breaker = open(dir.path(), LONG, NOW);
            breaker.begin(good);
            breaker.served(&name(), good);
            breaker.end();
        }
        assert!(open(dir.path(), LONG, NOW).allows(good, NOW));
        let breaker = open(dir.path(), Duration::from_nanos(1), NOW);
        breaker.begin(good);
        breaker.served(&name(), good);
        breaker.upkeep();
        for _ in 0..5 {
            let breaker = open(dir.path(), LONG, NOW);
            breaker.begin(good);
            assert!(breaker.allows(good, NOW), "it is proven");
        }
    }

    #[test]
    fn what_was_replaced_or_refused_is_not_suspected() {
        let dir = tempfile::tempdir().unwrap();
        let (old, refused, new) = (Digest::of(b"old"), Digest::of(b"no"), Digest::of(b"new"));
        for _ in 0..3 {
            let breaker = open(dir.path(), LONG, NOW);
            breaker.begin(old);
            breaker.served(&name(), old);
            breaker.begin(refused);
            breaker.refused(refused);
            breaker.begin(new);
            breaker.served(&name(), new);
            breaker.upkeep();
        }
        let breaker = open(dir.path(), LONG, NOW);
        assert!(breaker.allows(old, NOW) && breaker.allows(refused, NOW));
        assert!(!breaker.allows(new, NOW));
    }

    #[test]
    fn a_damaged_record_is_no_record() {
        let digest = Digest::of(b"x");
        let record = Record {
            proven: vec![digest],
            attempts: BTreeMap::from([(digest, Attempt { stage: Stage::Serving, crashes: 1 })]),
            quarantined: BTreeMap::from([(digest, 5)]),
        };
        assert_eq!(Record::parse(&record.text()), record);
        for text in
            ["proven", "proven zz", "loading", "serving x y", "\u{0}\n\n  ", "quarantined 1 2"]
        {
            assert_eq!(Record::parse(text), Record::default(), "{text:?}");
        }
    }
}
