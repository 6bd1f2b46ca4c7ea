//! One thread, one thing at a time, in an order that a seed decides.
//!
//! What the product does is done by actors: futures of its own code. An actor runs until it waits at
//! a gate (`Sim::gate`: a question to the bus, to control, to the database) or for time to pass; work
//! of SQLite's threads is waited for, and nobody runs meanwhile. Who goes on is drawn.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use seam::FileStep;
use tokio::time::Instant;

use crate::disk::Disks;
use crate::oracle::Oracle;

/// A process of the simulated fleet.
pub type Process = usize;

/// The wall clock at the start of every run: 2026-01-01.
const BEGAN_US: i64 = 1_767_225_600_000_000;

/// SplitMix64 (Steele, Lea and Flood 2014): enough for drawing lots.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Faults that a drawn lot lets happen where something is asked, per 10,000, in foul weather.
pub const FAULTS: &[(&str, u64)] = &[
    ("database: a read fails", 150),
    ("database: a write cannot begin", 150),
    ("database: a commit fails", 200),
    ("database: a commit's answer is lost", 200),
    ("broker: a request is lost", 300),
    ("broker: an answer is lost", 300),
    ("broker: a write comes late", 300),
    ("broker: a write comes twice", 300),
    ("broker: a read gives what was", 300),
    ("broker: a blob is damaged", 200),
    ("news: lost", 1_500),
    ("news: doubled", 700),
    ("news: reordered", 700),
    ("news: forged", 200),
    ("http: a request is lost", 300),
    ("http: an answer is lost", 300),
    ("http: an answer takes for ever", 100),
    ("http: a blob is damaged", 200),
    ("signal: lost", 3_000),
    ("disk: a step fails", 150),
    ("disk: power is cut while writing", 60),
];

/// What happens to processes and stores, drawn between two steps; weights.
pub const EVENTS: &[(&str, u64)] = &[
    ("control killed", 4),
    ("control paused", 4),
    ("edge killed", 3),
    ("edge paused", 2),
    ("edge: power cut", 3),
    ("edge: newest file damaged, then started", 2),
    ("broker down", 2),
    ("broker wiped", 1),
    ("broker rolled back", 3),
    ("database away from one control", 2),
    ("a clock jumps", 3),
];

struct GateState {
    process: Process,
    name: &'static str,
    waker: Option<Waker>,
    open: bool,
}

pub struct ProcessState {
    pub name: String,
    pub paused_until: Option<Instant>,
    pub no_database_until: Option<Instant>,
    pub skew_us: i64,
    /// Its power was cut in the middle of a step: nothing that it does from now on counts.
    pub dark: bool,
}

pub struct Inner {
    pub rng: Rng,
    entropy: Rng,
    gates: BTreeMap<u64, GateState>,
    next_gate: u64,
    pub current: Option<Process>,
    /// Whether the actor that runs writes only as a leader.
    pub current_leads: bool,
    pub processes: Vec<ProcessState>,
    weather: BTreeMap<&'static str, u64>,
    pub calm: bool,
    pub counts: BTreeMap<&'static str, u64>,
    hash: u64,
    lines: VecDeque<String>,
    lines_max: usize,
    pub steps: u64,
    pub violation: Option<String>,
    pub oracle: Oracle,
    pub disks: Disks,
    /// A write that only a leader may make was committed; by whom.
    pub led_commit: Option<Process>,
}

pub struct Sim {
    inner: Mutex<Inner>,
    began: Instant,
}

impl Sim {
    /// `lines_max`: of the trace, those that are kept for a reader.
    pub fn new(seed: u64, lines_max: usize) -> Arc<Sim> {
        let mut rng = Rng::new(seed);
        let entropy = Rng::new(rng.next());
        let mut weather = BTreeMap::new();
        for (name, rate) in FAULTS {
            // Foul in some ways and fair in others: a rare fault is not hidden by frequent ones.
            let strength = [0, 0, 1, 1, 3][rng.below(5)];
            weather.insert(*name, rate * strength);
        }
        let inner = Inner {
            rng,
            entropy,
            gates: BTreeMap::new(),
            next_gate: 0,
            current: None,
            current_leads: false,
            processes: Vec::new(),
            weather,
            calm: false,
            counts: BTreeMap::new(),
            hash: 0xcbf2_9ce4_8422_2325,
            lines: VecDeque::new(),
            lines_max,
            steps: 0,
            violation: None,
            oracle: Oracle::default(),
            disks: Disks::default(),
            led_commit: None,
        };
        Arc::new(Sim { inner: Mutex::new(inner), began: Instant::now() })
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add_process(&self, name: &str) -> Process {
        let mut inner = self.lock();
        inner.processes.push(ProcessState {
            name: name.to_owned(),
            paused_until: None,
            no_database_until: None,
            skew_us: 0,
            dark: false,
        });
        inner.processes.len() - 1
    }

    pub fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Something happened: it counts in the trace's hash, and is kept for whoever reads the trace.
    pub fn trace(&self, line: impl FnOnce() -> String) {
        let at = self.began.elapsed();
        self.lock().trace(at, line);
    }

    pub fn count(&self, what: &'static str) {
        *self.lock().counts.entry(what).or_default() += 1;
    }

    pub fn violated(&self, what: String) {
        let mut inner = self.lock();
        if inner.violation.is_none() {
            inner.violation = Some(what.clone());
        }
        let at = self.began.elapsed();
        inner.trace(at, || format!("VIOLATION {what}"));
    }

    /// Whether the fault happens now.
    pub fn fault(&self, name: &'static str) -> bool {
        let at = self.began.elapsed();
        self.lock().fault(at, name)
    }

    pub fn draw(&self, bound: usize) -> usize {
        self.lock().rng.below(bound)
    }

    /// Waits for its turn.
    pub fn gate(self: &Arc<Sim>, name: &'static str) -> Gate {
        let process = self.lock().current.unwrap_or_default();
        Gate { sim: self.clone(), name, process, id: None }
    }

    pub fn hash(&self) -> u64 {
        self.lock().hash
    }

    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }
}

impl Inner {
    pub fn trace(&mut self, at: Duration, line: impl FnOnce() -> String) {
        // The text is what counts, so it is made whether or not anybody reads it: a run that
        // differs from its replay in anything that is told shows.
        let who = self.current.map_or("-", |process| self.processes[process].name.as_str());
        let line = format!("{:>10.3} {who:<10} {}", at.as_secs_f64(), line());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if self.lines_max > 0 {
            if self.lines.len() == self.lines_max {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }

    pub fn fault(&mut self, at: Duration, name: &'static str) -> bool {
        if self.calm {
            return false;
        }
        let rate = self.weather.get(name).copied().unwrap_or_else(|| panic!("no fault {name}"));
        let happens = rate > 0 && (self.rng.below(10_000) as u64) < rate;
        if happens {
            *self.counts.entry(name).or_default() += 1;
            self.trace(at, || name.to_owned());
        }
        happens
    }

    fn may_run(&self, process: Process) -> bool {
        self.processes[process].paused_until.is_none()
    }
}

pub struct Gate {
    sim: Arc<Sim>,
    name: &'static str,
    process: Process,
    id: Option<u64>,
}

impl Future for Gate {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let sim = self.sim.clone();
        let mut inner = sim.lock();
        match self.id {
            None => {
                let id = inner.next_gate;
                inner.next_gate += 1;
                let waker = Some(cx.waker().clone());
                let (process, name) = (self.process, self.name);
                inner.gates.insert(id, GateState { process, name, waker, open: false });
                self.id = Some(id);
                Poll::Pending
            }
            Some(id) => match inner.gates.get_mut(&id) {
                Some(gate) if !gate.open => {
                    gate.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                _ => {
                    inner.gates.remove(&id);
                    self.id = None;
                    Poll::Ready(())
                }
            },
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.sim.lock().gates.remove(&id);
        }
    }
}

/// The world as the product's code sees it.
pub struct Natural(pub Arc<Sim>);

impl seam::World for Natural {
    fn now_us(&self) -> i64 {
        let inner = self.0.lock();
        let skew = inner.current.map_or(0, |process| inner.processes[process].skew_us);
        drop(inner);
        self.shared_now_us() + skew
    }

    fn shared_now_us(&self) -> i64 {
        BEGAN_US + self.0.elapsed().as_micros() as i64
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut inner = self.0.lock();
        for byte in bytes {
            *byte = inner.entropy.next() as u8;
        }
    }

    fn step(&self, name: &'static str) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        let sim = self.0.clone();
        if name == "database committed" {
            let mut inner = sim.lock();
            if inner.current_leads {
                inner.led_commit = inner.current;
            }
            let problem = inner.oracle.committed();
            drop(inner);
            if let Some(problem) = problem {
                sim.violated(problem);
            }
        }
        let process = sim.lock().current.unwrap_or_default();
        Box::pin(async move {
            sim.gate(name).await;
            let fault = match name {
                "database read" => "database: a read fails",
                "database write" => "database: a write cannot begin",
                "database committed" => "database: a commit's answer is lost",
                _ => return Err(io::Error::other(format!("no step {name}"))),
            };
            let away = sim.lock().processes[process].no_database_until.is_some();
            match away || sim.fault(fault) {
                true => Err(io::ErrorKind::ConnectionReset.into()),
                false => Ok(()),
            }
        })
    }

    fn fault(&self, _: &'static str) -> io::Result<()> {
        match self.0.fault("database: a commit fails") {
            true => {
                self.0.lock().oracle.not_committed();
                Err(io::ErrorKind::ConnectionReset.into())
            }
            false => Ok(()),
        }
    }

    fn file(&self, step: FileStep, path: &Path) -> io::Result<()> {
        let at = self.0.elapsed();
        let mut inner = self.0.lock();
        let Some(process) = inner.current else { return Ok(()) };
        if inner.processes[process].dark {
            return Err(io::Error::other("no power"));
        }
        if inner.fault(at, "disk: a step fails") {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        if inner.fault(at, "disk: power is cut while writing") {
            inner.processes[process].dark = true;
            return Err(io::Error::other("no power"));
        }
        inner.disks.done(step, path);
        Ok(())
    }
}

/// Remembers that its actor was woken, and wakes whoever waits for that.
struct Flag {
    woken: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }
}

struct Actor {
    process: Process,
    what: &'static str,
    leads: bool,
    future: Pin<Box<dyn Future<Output = ()>>>,
    flag: Arc<Flag>,
}

pub struct Scheduler {
    pub sim: Arc<Sim>,
    actors: BTreeMap<u64, Actor>,
    next_actor: u64,
    quiet: Duration,
}

/// Who did something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stepped {
    Ran { process: Process, actor: u64 },
    Ended { process: Process, actor: u64 },
    Opened,
    Waited,
}

/// Time passes in steps that double up to this, until somebody has something to do.
const QUIET_MAX: Duration = Duration::from_millis(256);

impl Scheduler {
    pub fn new(sim: Arc<Sim>) -> Scheduler {
        Scheduler { sim, actors: BTreeMap::new(), next_actor: 0, quiet: Duration::from_millis(1) }
    }

    /// `leads`: every write of it is one that only a leader may make.
    pub fn spawn(
        &mut self,
        process: Process,
        what: &'static str,
        leads: bool,
        future: impl Future<Output = ()> + 'static,
    ) -> u64 {
        let id = self.next_actor;
        self.next_actor += 1;
        let flag = Arc::new(Flag { woken: AtomicBool::new(true), waiter: Mutex::default() });
        // Without tokio's budget, which is one for all actors and says "later" when it is used up.
        let future = Box::pin(tokio::task::unconstrained(future));
        self.actors.insert(id, Actor { process, what, leads, future, flag });
        id
    }

    /// What it was about to do it never does.
    pub fn kill(&mut self, process: Process) {
        self.actors.retain(|_, actor| actor.process != process);
    }

    pub async fn step(&mut self) -> Stepped {
        enum Turn {
            Actor(u64),
            Gate(u64),
        }
        let turn = {
            let mut inner = self.sim.lock();
            inner.steps += 1;
            let mut turns: Vec<Turn> = Vec::with_capacity(16);
            for (id, actor) in &self.actors {
                if actor.flag.woken.load(Ordering::Acquire) && inner.may_run(actor.process) {
                    turns.push(Turn::Actor(*id));
                }
            }
            for (id, gate) in &inner.gates {
                if !gate.open && inner.may_run(gate.process) {
                    turns.push(Turn::Gate(*id));
                }
            }
            // What is asked takes time, too.
            match turns.is_empty() || inner.rng.below(40) == 0 {
                true => None,
                false => {
                    let drawn = inner.rng.below(turns.len());
                    Some(turns.swap_remove(drawn))
                }
            }
        };
        match turn {
            None => {
                tokio::time::advance(self.quiet).await;
                self.quiet = (self.quiet * 2).min(QUIET_MAX);
                Stepped::Waited
            }
            Some(Turn::Gate(id)) => {
                self.quiet = Duration::from_millis(1);
                let at = self.sim.elapsed();
                let mut inner = self.sim.lock();
                let Some(gate) = inner.gates.get_mut(&id) else { return Stepped::Opened };
                gate.open = true;
                let (waker, process, name) = (gate.waker.take(), gate.process, gate.name);
                inner.current = Some(process);
                inner.trace(at, || name.to_owned());
                inner.current = None;
                drop(inner);
                if let Some(waker) = waker {
                    waker.wake();
                }
                Stepped::Opened
            }
            Some(Turn::Actor(id)) => {
                self.quiet = Duration::from_millis(1);
                self.run(id).await
            }
        }
    }

    async fn run(&mut self, id: u64) -> Stepped {
        let Some(actor) = self.actors.get_mut(&id) else { return Stepped::Opened };
        let process = actor.process;
        {
            let what = actor.what;
            let at = self.sim.elapsed();
            let mut inner = self.sim.lock();
            inner.current = Some(process);
            inner.current_leads = actor.leads;
            inner.trace(at, || format!("runs {what}"));
        }
        let waker = Waker::from(actor.flag.clone());
        let ended = loop {
            actor.flag.woken.store(false, Ordering::Release);
            let polled = actor.future.as_mut().poll(&mut Context::from_waker(&waker));
            if polled.is_ready() {
                break true;
            }
            if seam::is_busy() {
                let flag = &actor.flag;
                std::future::poll_fn(|cx| {
                    *flag.waiter.lock().unwrap_or_else(PoisonError::into_inner) =
                        Some(cx.waker().clone());
                    match flag.woken.load(Ordering::Acquire) {
                        true => Poll::Ready(()),
                        false => Poll::Pending,
                    }
                })
                .await;
            } else if !actor.flag.woken.load(Ordering::Acquire) {
                break false;
            }
        };
        {
            let mut inner = self.sim.lock();
            inner.current = None;
            inner.current_leads = false;
        }
        match ended {
            true => {
                self.actors.remove(&id);
                Stepped::Ended { process, actor: id }
            }
            false => Stepped::Ran { process, actor: id },
        }
    }
}
