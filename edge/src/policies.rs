//! Wasm policies of what is served: compiled before they are needed, called under a breaker,
//! counted.
//!
//! A version of a policy has one `Slot` for as long as some snapshot calls it, so its counts and its
//! breaker outlive the swap of a snapshot. A slot without a compiled module answers `unavailable`, and
//! the rule serves its fallback: a cold start does not wait for a compiler, and a module that cannot
//! be compiled takes nothing along but its own rules. It is tried again, ever more rarely.
//!
//! A shadow runs on a thread of its own, after the answer was given, and only while that thread
//! keeps up.

mod workers;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rules::blob::{Digest, LoadError, PolicyPin, Shadow, lists::IdList};
use rules::eval::Host;
use rules::head::{PolicyHealth, PolicyReport, ShadowReport};
use rules::policy::PolicyFault;
use sandbox::policy::{Policies as Engine, Policy, PolicyConfig};
use tokio::sync::Semaphore;

use crate::metrics::{Metrics, PolicyMetrics};
use crate::state::Name;
use crate::sync::lock;

use workers::Workers;
pub use workers::count as workers;

/// Faults in a row that open the breaker.
const FAULTS_IN_A_ROW: u32 = 5;
/// More than one in a hundred of so many calls open it too.
const WINDOW_CALLS: u32 = 1_000;
const WINDOW_FAULTS_MAX: u32 = 10;
/// How long it stays open; twice as long each time that the trial call fails.
const OPEN_FIRST: Duration = Duration::from_secs(30);
const OPEN_MAX: Duration = Duration::from_secs(600);
/// Shadow calls that wait; the next ones are dropped, and counted.
const SHADOWS_WAITING_MAX: usize = 64;
/// What a first snapshot waits for its policies: a hit in the cache of compiled code takes less.
pub const COLD_WAIT: Duration = Duration::from_millis(250);
/// What any later snapshot waits for them: nobody's kill switch waits longer for somebody's policy.
pub const WARM_WAIT: Duration = Duration::from_secs(10);
/// Until a policy that could not be compiled is tried again; twice as long after each failure.
const AGAIN_FIRST: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(600);

/// All policies of this edge.
pub struct Policies {
    config: PolicyConfig,
    /// Made with the first policy: an edge without any has neither its engine nor its thread.
    engine: OnceLock<Option<Arc<Engine>>>,
    slots: Mutex<HashMap<(Name, String, Digest), Weak<Slot>>>,
    metrics: Metrics,
    shadows: OnceLock<SyncSender<ShadowCall>>,
    workers: Workers,
    /// Compilers wait here for each other: the helper takes one module at a time and refuses a crowd,
    /// and an environment may bring a hundred.
    compiler: Semaphore,
    /// Before that, each waits in its environment's line, and only the first of a line goes on: the
    /// hundred of one do not stand in front of another's one.
    lines: Mutex<HashMap<Name, Weak<Semaphore>>>,
    /// A breaker or a late compiler changed what the next receipt says.
    news: Arc<AtomicBool>,
}

/// The flags of a snapshot that may call policies, and where they are evaluated.
pub struct Callers {
    flags: HashSet<String>,
    all: Arc<Policies>,
}

impl Callers {
    /// By the snapshot's ruleset.
    pub fn of(ruleset: &[u8], all: Arc<Policies>) -> Result<Callers, LoadError> {
        let rules = rules::blob::decode_ruleset(ruleset)?;
        let flags = rules.policy_callers().into_iter().map(str::to_owned).collect();
        Ok(Callers { flags, all })
    }

    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// See `Workers::run`.
    pub async fn run<T: Send + 'static>(
        &self,
        evaluate: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        self.all.workers.run(evaluate).await
    }
}

impl std::fmt::Debug for Callers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Callers").field(&self.flags.len()).finish()
    }
}

/// One version of one policy of one environment.
pub struct Slot {
    pub name: String,
    pub digest: Digest,
    module: OnceLock<Arc<Policy>>,
    breaker: Mutex<Breaker>,
    counts: Counts,
    metrics: PolicyMetrics,
    shadow: Mutex<Option<Arc<ShadowSlot>>>,
    /// One compiler at a time.
    compiling: tokio::sync::Mutex<()>,
    line: Arc<Semaphore>,
    again: Mutex<Again>,
    news: Arc<AtomicBool>,
}

/// When a module that could not be compiled is tried again.
#[derive(Debug, Default)]
struct Again {
    failures: u32,
    /// Of tokio, whose time a simulation moves.
    not_before: Option<tokio::time::Instant>,
}

impl Again {
    fn failed(&mut self, now: tokio::time::Instant) {
        let wait = AGAIN_FIRST.saturating_mul(1 << self.failures.min(16)).min(AGAIN_MAX);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + wait);
    }

    fn is_due(&self, now: tokio::time::Instant) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }
}

#[derive(Default)]
struct Counts {
    calls: AtomicU64,
    fuel: AtomicU64,
    micros: AtomicU64,
    /// In the order of `PolicyFault::ALL`.
    faults: [AtomicU64; PolicyFault::ALL.len()],
}

struct ShadowSlot {
    digest: Digest,
    share: u32,
    module: OnceLock<Arc<Policy>>,
    seen: AtomicU64,
    same: AtomicU64,
    different: AtomicU64,
    faults: AtomicU64,
    dropped: AtomicU64,
}

struct ShadowCall {
    slot: Arc<ShadowSlot>,
    metrics: PolicyMetrics,
    input: Vec<u8>,
    answer: Vec<u8>,
}

/// What a snapshot's evaluator asks.
pub struct SnapshotHost {
    pub lists: Vec<Arc<IdList>>,
    pub policies: Vec<Arc<Slot>>,
    pub all: Arc<Policies>,
}

impl Host for SnapshotHost {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        self.lists.get(list as usize).is_some_and(|list| list.contains(id))
    }

    fn policy(&self, policy: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
        let slot = self.policies.get(policy as usize).ok_or(PolicyFault::Unavailable)?;
        slot.call(input, out, &self.all)
    }

    fn policy_refused(&self, policy: u32) {
        if let Some(slot) = self.policies.get(policy as usize) {
            slot.refused();
        }
    }
}

impl Policies {
    pub fn new(config: PolicyConfig, metrics: Metrics) -> Policies {
        Policies {
            config,
            engine: OnceLock::new(),
            slots: Mutex::default(),
            metrics,
            shadows: OnceLock::new(),
            workers: Workers::new(),
            compiler: Semaphore::new(1),
            lines: Mutex::default(),
            news: Arc::default(),
        }
    }

    /// Whether receipts say something else than when this was last asked.
    pub fn has_news(&self) -> bool {
        self.news.swap(false, Ordering::AcqRel)
    }

    /// The slot of what a snapshot pins, with the shadow that it names.
    pub fn slot(&self, name: &Name, pin: &PolicyPin) -> Arc<Slot> {
        let digest = pin.version.digest;
        let line = self.line(name);
        let mut slots = lock(&self.slots);
        slots.retain(|_, slot| slot.strong_count() > 0);
        let key = (name.clone(), pin.name.clone(), digest);
        let slot = slots.get(&key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let made = Arc::new(Slot {
                name: pin.name.clone(),
                digest,
                module: OnceLock::new(),
                breaker: Mutex::default(),
                counts: Counts::default(),
                metrics: self.metrics.policy(&name.0, &name.1, &pin.name),
                shadow: Mutex::default(),
                compiling: tokio::sync::Mutex::default(),
                line,
                again: Mutex::default(),
                news: self.news.clone(),
            });
            slots.insert(key, Arc::downgrade(&made));
            made
        });
        drop(slots);
        slot.set_shadow(pin.shadow);
        slot
    }

    fn line(&self, name: &Name) -> Arc<Semaphore> {
        let mut lines = lock(&self.lines);
        lines.retain(|_, line| line.strong_count() > 0);
        if let Some(line) = lines.get(name).and_then(Weak::upgrade) {
            return line;
        }
        let line = Arc::new(Semaphore::new(1));
        lines.insert(name.clone(), Arc::downgrade(&line));
        line
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        let make = || {
            let made = Engine::new(self.config.clone());
            made.inspect_err(|error| tracing::error!(%error, "policies cannot be run here")).ok()
        };
        self.engine.get_or_init(make).clone()
    }

    /// Compiles what the slot lacks, in the helper process. What fails is tried again later, and with
    /// the next snapshot.
    pub async fn compile(self: Arc<Self>, slot: Arc<Slot>, wasm: Bytes, shadow: Option<Bytes>) {
        let _turn = slot.compiling.lock().await;
        if slot.module.get().is_none() {
            match self.load(&slot.line, slot.digest, wasm).await {
                Ok(module) => {
                    drop(slot.module.set(module));
                    self.news.store(true, Ordering::Release);
                }
                Err(why) => {
                    lock(&slot.again).failed(tokio::time::Instant::now());
                    tracing::error!(policy = slot.name, digest = %slot.digest, why,
                        "a policy cannot be compiled; its rules serve their fallback");
                }
            }
        }
        slot.show();
        let beside = lock(&slot.shadow).clone();
        if let (Some(beside), Some(wasm)) = (beside, shadow)
            && beside.module.get().is_none()
        {
            match self.load(&slot.line, beside.digest, wasm).await {
                Ok(module) => drop(beside.module.set(module)),
                Err(why) => {
                    lock(&slot.again).failed(tokio::time::Instant::now());
                    tracing::error!(policy = slot.name, digest = %beside.digest, why,
                        "a shadow cannot be compiled");
                }
            }
        }
    }

    async fn load(
        self: &Arc<Self>,
        line: &Semaphore,
        digest: Digest,
        wasm: Bytes,
    ) -> Result<Arc<Policy>, String> {
        let _place = line.acquire().await.map_err(|error| error.to_string())?;
        let _turn = self.compiler.acquire().await.map_err(|error| error.to_string())?;
        let own = self.clone();
        let loaded = seam::blocking(move || {
            let engine = own.engine().ok_or_else(|| "there is no engine".to_owned())?;
            engine.load(digest, &wasm).map_err(|error| crate::sync::chain(&error))
        });
        loaded.await.unwrap_or_else(|error| Err(error.to_string()))
    }

    /// Whether it was taken.
    fn shadow(&self, call: ShadowCall) -> bool {
        let start = || {
            let (sender, receiver) = sync_channel(SHADOWS_WAITING_MAX);
            let run = move || run_shadows(&receiver);
            // Without the thread the receiver is gone, and every call counts as dropped.
            let started = std::thread::Builder::new().name("policy-shadows".to_owned()).spawn(run);
            if let Err(error) = started {
                tracing::error!(%error, "no thread for shadows");
            }
            sender
        };
        self.shadows.get_or_init(start).try_send(call).is_ok()
    }
}

fn run_shadows(calls: &Receiver<ShadowCall>) {
    workers::give_way();
    while let Ok(ShadowCall { slot, metrics, input, answer }) = calls.recv() {
        let Some(module) = slot.module.get() else { continue };
        let (count, counter) = match module.call(&input).outcome {
            Err(_) => (&slot.faults, &metrics.shadow_faults),
            Ok(other) if is_same(&answer, &other) => (&slot.same, &metrics.shadow_same),
            Ok(_) => (&slot.different, &metrics.shadow_different),
        };
        count.fetch_add(1, Ordering::Relaxed);
        counter.increment(1);
    }
}

/// As decisions: the reason's text may differ, and how the JSON is written.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    let decision = |bytes: &[u8]| {
        let mut answer: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        answer.as_object_mut()?.shift_remove("reason");
        Some(answer)
    };
    match (decision(one), decision(other)) {
        (Some(one), Some(other)) => one == other,
        _ => false,
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).field("digest", &self.digest).finish()
    }
}

impl Slot {
    pub fn is_absent(&self) -> bool {
        self.module.get().is_none()
    }

    /// Whether it is time to compile what could not be compiled before, its shadow included. Nobody is
    /// compiling it now.
    pub fn is_due(&self) -> bool {
        let is_shadow_absent =
            || lock(&self.shadow).as_ref().is_some_and(|shadow| shadow.module.get().is_none());
        (self.is_absent() || is_shadow_absent())
            && self.compiling.try_lock().is_ok()
            && lock(&self.again).is_due(tokio::time::Instant::now())
    }

    /// The gauges are the policy's, whatever version it is: the one that is served says what they are.
    pub fn show(&self) {
        self.metrics.loaded.set(if self.is_absent() { 0.0 } else { 1.0 });
        self.metrics.open.set(if lock(&self.breaker).is_open() { 1.0 } else { 0.0 });
    }

    fn set_shadow(&self, wanted: Option<Shadow>) {
        let mut shadow = lock(&self.shadow);
        let is_there = match (&*shadow, wanted) {
            (None, None) => true,
            (Some(there), Some(wanted)) => {
                there.digest == wanted.version.digest && there.share == wanted.share
            }
            _ => false,
        };
        if is_there {
            return;
        }
        *shadow = wanted.map(|wanted| {
            Arc::new(ShadowSlot {
                digest: wanted.version.digest,
                share: wanted.share,
                module: OnceLock::new(),
                seen: AtomicU64::new(0),
                same: AtomicU64::new(0),
                different: AtomicU64::new(0),
                faults: AtomicU64::new(0),
                dropped: AtomicU64::new(0),
            })
        });
    }

    fn call(&self, input: &[u8], out: &mut Vec<u8>, all: &Policies) -> Result<(), PolicyFault> {
        let Some(module) = self.module.get() else {
            return Err(self.fault(PolicyFault::Unavailable));
        };
        if workers::are_busy() {
            return Err(self.fault(PolicyFault::Busy));
        }
        if !lock(&self.breaker).allows(Instant::now) {
            return Err(self.fault(PolicyFault::Open));
        }
        let called = module.call(input);
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        self.counts.fuel.fetch_add(called.fuel, Ordering::Relaxed);
        let micros = u64::try_from(called.took.as_micros()).unwrap_or(u64::MAX);
        self.counts.micros.fetch_add(micros, Ordering::Relaxed);
        self.metrics.calls.increment(1);
        self.metrics.fuel.increment(called.fuel);
        self.metrics.seconds.record(called.took.as_secs_f64());
        match called.outcome {
            Ok(answer) => {
                self.mark(Breaker::answered);
                out.extend_from_slice(&answer);
                self.beside(input, answer, all);
                Ok(())
            }
            Err(fault) => {
                tracing::debug!(policy = self.name, %fault, log = called.log, "a policy failed");
                let kind = self.fault(fault.kind());
                // That everything is busy says nothing of this policy.
                if kind == PolicyFault::Busy {
                    self.mark(Breaker::abandoned);
                } else {
                    self.mark(|breaker| breaker.failed(Instant::now()));
                }
                Err(kind)
            }
        }
    }

    fn refused(&self) {
        self.fault(PolicyFault::Answer);
        self.mark(|breaker| breaker.refused(Instant::now()));
    }

    fn mark(&self, change: impl FnOnce(&mut Breaker)) {
        let mut breaker = lock(&self.breaker);
        let before = breaker.is_open();
        change(&mut breaker);
        let after = breaker.is_open();
        drop(breaker);
        if before != after {
            self.metrics.open.set(if after { 1.0 } else { 0.0 });
            self.news.store(true, Ordering::Release);
            tracing::warn!(policy = self.name, digest = %self.digest, open = after, "breaker");
        }
    }

    fn fault(&self, fault: PolicyFault) -> PolicyFault {
        let place = PolicyFault::ALL.iter().position(|known| *known == fault).unwrap_or(0);
        if let Some(count) = self.counts.faults.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.metrics.count_fault(place);
        fault
    }

    /// Each share-th call evenly, without asking for randomness.
    fn beside(&self, input: &[u8], answer: Vec<u8>, all: &Policies) {
        let Some(slot) = lock(&self.shadow).clone() else { return };
        if slot.module.get().is_none() {
            return;
        }
        let seen = slot.seen.fetch_add(1, Ordering::Relaxed);
        let reached = |calls: u64| {
            let share = calls.wrapping_mul(u64::from(slot.share));
            share / u64::from(rules::limits::SPLIT_TOTAL)
        };
        if reached(seen) == reached(seen.wrapping_add(1)) {
            return;
        }
        let (input, metrics) = (input.to_vec(), self.metrics.clone());
        let call = ShadowCall { slot: slot.clone(), metrics, input, answer };
        if !all.shadow(call) {
            slot.dropped.fetch_add(1, Ordering::Relaxed);
            self.metrics.shadow_dropped.increment(1);
        }
    }

    pub fn report(&self) -> PolicyReport {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let faults: BTreeMap<String, u64> = PolicyFault::ALL
            .iter()
            .zip(&self.counts.faults)
            .map(|(fault, count)| (fault.name().to_owned(), load(count)))
            .filter(|(_, count)| *count > 0)
            .collect();
        let state = match (self.is_absent(), lock(&self.breaker).is_open()) {
            (true, _) => PolicyHealth::Absent,
            (false, true) => PolicyHealth::Open,
            (false, false) => PolicyHealth::Running,
        };
        let shadow = lock(&self.shadow).clone();
        PolicyReport {
            name: self.name.clone(),
            digest: self.digest,
            state,
            calls: load(&self.counts.calls),
            faults,
            fuel: load(&self.counts.fuel),
            micros: load(&self.counts.micros),
            shadow: shadow.map(|shadow| ShadowReport {
                digest: shadow.digest,
                same: load(&shadow.same),
                different: load(&shadow.different),
                faults: load(&shadow.faults),
                dropped: load(&shadow.dropped),
            }),
        }
    }
}

/// Keeps calling what always fails from costing every request its budget.
#[derive(Debug, Default)]
struct Breaker {
    in_a_row: u32,
    /// What `in_a_row` was before the last answer, which may yet be refused.
    before: u32,
    calls: u32,
    faults: u32,
    open: Option<Open>,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    until: Instant,
    lasting: Duration,
    /// The one trial call is under way.
    trying: bool,
}

impl Breaker {
    fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// `now` is asked for only while it is open.
    fn allows(&mut self, now: impl FnOnce() -> Instant) -> bool {
        let Some(open) = &mut self.open else { return true };
        if open.trying || now() < open.until {
            return false;
        }
        open.trying = true;
        true
    }

    fn answered(&mut self) {
        self.before = self.in_a_row;
        self.in_a_row = 0;
        self.counted(0);
        match &mut self.open {
            // The answer may yet be refused: then it opens again, as after faults in a row.
            Some(open) if open.trying => self.open = None,
            _ => {}
        }
    }

    fn counted(&mut self, faults: u32) {
        self.calls += 1;
        self.faults += faults;
        if self.calls >= WINDOW_CALLS && self.faults <= WINDOW_FAULTS_MAX {
            (self.calls, self.faults) = (0, 0);
        }
    }

    fn failed(&mut self, now: Instant) {
        self.in_a_row += 1;
        self.counted(1);
        self.trip(now);
    }

    /// The last answer was none.
    fn refused(&mut self, now: Instant) {
        self.in_a_row = self.before + 1;
        self.faults += 1;
        self.trip(now);
    }

    /// A trial that did not come to anything: the next call is one.
    fn abandoned(&mut self) {
        if let Some(open) = &mut self.open {
            open.trying = false;
        }
    }

    fn trip(&mut self, now: Instant) {
        let lasting = match &self.open {
            Some(open) if open.trying => (open.lasting * 2).min(OPEN_MAX),
            // It came in before the breaker opened.
            Some(_) => return,
            None if self.in_a_row >= FAULTS_IN_A_ROW || self.faults > WINDOW_FAULTS_MAX => {
                OPEN_FIRST
            }
            None => return,
        };
        (self.calls, self.faults) = (0, 0);
        self.open = Some(Open { until: now + lasting, lasting, trying: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_faults_in_a_row_open_it_and_one_good_call_later_it_is_closed() {
        let start = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..4 {
            breaker.failed(start);
        }
        breaker.answered();
        for _ in 0..4 {
            breaker.failed(start);
            assert!(breaker.allows(|| start));
        }
        breaker.failed(start);
        assert!(!breaker.allows(|| start));
        assert!(!breaker.allows(|| start + OPEN_FIRST - Duration::from_millis(1)));
        let later = start + OPEN_FIRST;
        assert!(breaker.allows(|| later));
        assert!(!breaker.allows(|| later), "one call tries, not all of them");
        breaker.failed(later);
        assert!(!breaker.allows(|| later + OPEN_FIRST), "it stays open twice as long");
        assert!(breaker.allows(|| later + OPEN_FIRST * 2));
        breaker.answered();
        assert!(breaker.allows(|| later) && !breaker.is_open());
    }

    #[test]
    fn more_than_one_in_a_hundred_open_it_and_one_in_a_hundred_do_not() {
        let now = Instant::now();
        let run = |faults_per_thousand: usize| {
            let mut breaker = Breaker::default();
            for call in 0..5_000 {
                match call % 1_000 % 50 == 0 && call % 1_000 / 50 < faults_per_thousand {
                    true => breaker.failed(now),
                    false => breaker.answered(),
                }
            }
            breaker.is_open()
        };
        assert!(!run(10));
        assert!(run(11));
    }

    /// How many thousand bytes were compiled one after the other, by a helper that writes that down
    /// and fails.
    async fn compiled_in_turn() -> Vec<usize> {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        // One process: none that is stopped leaves a child behind, which would write later.
        let script = "exec /usr/bin/wc -c >> \"$0\"".to_owned();
        let arguments = vec!["-c".to_owned(), script, log.to_string_lossy().into_owned()];
        let helper = sandbox::policy::helper::Helper { program: "/bin/sh".into(), arguments };
        let metrics = Metrics::new().expect("metrics");
        let all = Policies::new(PolicyConfig { helper, cache_dir: None }, metrics);
        let all = Arc::new(all);
        let mut compiling = Vec::new();
        // Told apart by their lengths.
        for (environment, bytes) in [("many", 1), ("many", 2), ("many", 3), ("many", 4), ("one", 5)]
        {
            let wasm = Bytes::from(vec![0; bytes * 1_000]);
            let digest = Digest::of(&wasm);
            let version = rules::blob::PolicyBlob { digest, bytes: wasm.len() as u32 };
            let pin = PolicyPin { name: format!("p{bytes}"), version, shadow: None };
            let slot = all.slot(&("demo".to_owned(), environment.to_owned()), &pin);
            compiling.push(tokio::spawn(all.clone().compile(slot, wasm, None)));
        }
        futures_util::future::join_all(compiling).await;
        // There is none if all of them were too late.
        let log = std::fs::read_to_string(log).unwrap_or_default();
        let thousands = |bytes: &str| Some(bytes.parse::<usize>().ok()? / 1_000);
        log.split_whitespace().filter_map(thousands).collect()
    }

    #[tokio::test]
    async fn one_policy_of_an_environment_does_not_wait_for_all_those_of_another() {
        let expected: [usize; 5] = [1, 5, 2, 3, 4];
        let mut order = Vec::new();
        // A helper that a busy machine made late was stopped before it wrote.
        for _ in 0..5 {
            order = compiled_in_turn().await;
            if order.len() == expected.len() {
                break;
            }
        }
        assert_eq!(order, expected);
    }

    #[test]
    fn what_cannot_be_compiled_is_tried_again_ever_more_rarely() {
        let now = tokio::time::Instant::now();
        let mut again = Again::default();
        assert!(again.is_due(now));
        for wait in [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600] {
            again.failed(now);
            assert!(!again.is_due(now + Duration::from_secs(wait) - Duration::from_millis(1)));
            assert!(again.is_due(now + Duration::from_secs(wait)), "{wait}");
        }
    }

    #[test]
    fn answers_that_the_evaluator_refuses_count_in_a_row_too() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        for _ in 0..FAULTS_IN_A_ROW {
            assert!(breaker.allows(|| now));
            breaker.answered();
            breaker.refused(now);
        }
        assert!(!breaker.allows(|| now));
    }

    #[test]
    fn decisions_are_compared_and_not_their_text() {
        assert!(is_same(
            br#"{"variant":"a","reason":"x"}"#,
            br#"{ "reason": "y", "variant": "a" }"#
        ));
        assert!(!is_same(br#"{"variant":"a"}"#, br#"{"variant":"b"}"#));
        assert!(!is_same(b"nonsense", b"nonsense"));
    }
}
