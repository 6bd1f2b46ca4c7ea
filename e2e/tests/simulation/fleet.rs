//! One run: two controls, two edges and a client, what happens to them, and what must hold.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use control::bus::{Bus, InProcessBus};
use control::carrier::Carrier;
use control::change::Expected;
use control::lead::Lead;
use control::publisher::Publisher;
use control::refusal::Refusal;
use control::relay::{self, Doorbell};
use control::store::query::{query_as, query_scalar};
use control::store::{Database, Store};
use control::{audit, configs, environments, flags, reconciler};
use edge::simulated::{Node, Serving};
use futures_util::FutureExt as _;
use rules::head::{PublicKey, Version};
use sandbox::{Sandbox, SandboxConfig};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::network::{Front, Served, SimBroker, SimFeed, Watcher};
use crate::oracle::{Change, Intent, Name, Values, Write};
use crate::sim::{EVENTS, Natural, Process, Scheduler, Sim, Stepped};
use crate::template::{self, ENVIRONMENTS, FLAGS, NAMESPACES, Template};

const LEASE: Duration = Duration::from_secs(6);
const RELAY_TICK: Duration = Duration::from_secs(2);
const RECONCILE: Duration = Duration::from_secs(5);
const BROKER_TICK: Duration = Duration::from_secs(30);
/// Of an edge, as in production: heads are asked for within 45 s whatever happens.
const ANTI_ENTROPY: Duration = Duration::from_secs(30);
/// After the last fault: a request that began to stall just before it (10 s), then a round of
/// anti-entropy, if the news of meanwhile were lost (45 s).
pub const HEALED_WITHIN: Duration = Duration::from_secs(60);
/// A run that goes on for longer than this turns in a circle.
const STEPS_MAX: u64 = 200_000;
/// Events among steps, while there are any: one in so many.
const EVENT_EVERY: usize = 130;

#[derive(Debug, Clone)]
pub struct Outcome {
    pub violation: Option<String>,
    pub hash: u64,
    pub counts: BTreeMap<&'static str, u64>,
    pub lines: Vec<String>,
    pub healed: Duration,
    pub steps: u64,
    pub virtual_time: Duration,
}

struct ControlProcess {
    process: Process,
    /// None: it is dead.
    doorbell: Option<Doorbell>,
    lead: Option<Arc<Lead>>,
    bus: Option<Arc<dyn Bus>>,
    /// Heads that it was seen to serve in this life.
    heads: usize,
    starts_at: Option<Instant>,
}

struct EdgeProcess {
    process: Process,
    id: &'static str,
    key: String,
    namespaces: Option<BTreeSet<String>>,
    folder: PathBuf,
    node: Arc<Mutex<Option<Arc<Node>>>>,
    watcher: Option<Arc<Watcher>>,
    starts_at: Option<Instant>,
    /// What it served when it was last looked at, in this life.
    seen: Vec<Serving>,
    looked: bool,
    /// What a start has to come back to at least: the newest that was served and is on its disk.
    floor: BTreeMap<Name, Version>,
}

pub struct Fleet {
    sim: Arc<Sim>,
    scheduler: Scheduler,
    store: Store,
    template: Arc<Template>,
    broker: Arc<SimBroker>,
    front: Arc<Front>,
    controls: Vec<ControlProcess>,
    edges: Vec<EdgeProcess>,
    next_write: Instant,
    writes_left: usize,
    made_flags: Vec<Vec<String>>,
    /// What decides whether all is settled has changed since it was last asked.
    looked_again: bool,
    broker_written: Option<u64>,
}

/// One for all runs of the process: compiling the evaluator takes a second.
fn sandbox() -> Arc<Sandbox> {
    static SANDBOX: OnceLock<Arc<Sandbox>> = OnceLock::new();
    let config = SandboxConfig {
        // Real time, in which nothing else here is measured.
        deadline: Duration::from_secs(60),
        cache_dir: e2e::run::compiled_dir(),
        ..SandboxConfig::default()
    };
    SANDBOX.get_or_init(|| Sandbox::new(config).expect("`cargo xtask wasm` first")).clone()
}

/// Runs one seed from its beginning to its end.
pub fn run(seed: u64, lines_max: usize, template: &Arc<Template>, folder: &Path) -> Outcome {
    let folder = folder.join(format!("seed-{seed}"));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("a folder");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime");
    let outcome = runtime.block_on(async {
        // While work is under way on another thread tokio does not let time pass by itself.
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let holding = tokio::task::spawn_blocking(move || held.recv());
        let sim = Sim::new(seed, lines_max);
        let outcome = Fleet::new(sim, template.clone(), &folder).await.live().await;
        seam::enter(None);
        drop(hold);
        let _ = holding.await;
        outcome
    });
    drop(runtime);
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

impl Fleet {
    async fn new(sim: Arc<Sim>, template: Arc<Template>, folder: &Path) -> Fleet {
        let path = folder.join("control.sqlite");
        std::fs::write(&path, &template.database).expect("the database");
        let store = Store::open(&Database::Sqlite(path)).await.expect("a store");
        sim.lock().oracle.environments = template.truth().collect();
        let broker = SimBroker::new(sim.clone());
        let controls = ["control-1", "control-2"].map(|name| ControlProcess {
            process: sim.add_process(name),
            doorbell: None,
            lead: None,
            bus: None,
            heads: 0,
            starts_at: Some(Instant::now()),
        });
        let narrow = BTreeSet::from([NAMESPACES[0].to_owned()]);
        let edges =
            [("narrow", &template.narrow_key, Some(narrow)), ("wide", &template.wide_key, None)]
                .map(|(id, key, namespaces)| EdgeProcess {
                    process: sim.add_process(id),
                    id,
                    key: key.clone(),
                    namespaces,
                    folder: folder.join(id),
                    node: Arc::default(),
                    watcher: None,
                    starts_at: Some(Instant::now()),
                    seen: Vec::new(),
                    looked: false,
                    floor: BTreeMap::new(),
                });
        let writes_left = 4 + sim.draw(6);
        let mut fleet = Fleet {
            scheduler: Scheduler::new(sim.clone()),
            front: Arc::default(),
            store,
            broker,
            controls: controls.into(),
            edges: edges.into(),
            next_write: Instant::now(),
            writes_left,
            made_flags: vec![Vec::new(); template.scopes.len()],
            looked_again: true,
            broker_written: None,
            template,
            sim,
        };
        fleet.enter();
        fleet.start_what_is_due();
        fleet
    }

    fn enter(&self) {
        seam::enter(Some(Arc::new(Natural(self.sim.clone()))));
    }

    async fn live(mut self) -> Outcome {
        self.be_foul().await;
        let mut healed = Duration::ZERO;
        if !self.failed() {
            healed = self.heal().await;
        }
        if !self.failed() {
            self.check_the_end().await;
        }
        seam::enter(None);
        let outcome = {
            let inner = self.sim.lock();
            (inner.violation.clone(), inner.counts.clone(), inner.steps)
        };
        Outcome {
            violation: outcome.0,
            counts: outcome.1,
            steps: outcome.2,
            hash: self.sim.hash(),
            lines: self.sim.lines(),
            healed,
            virtual_time: self.sim.elapsed(),
        }
    }

    fn failed(&self) -> bool {
        let inner = self.sim.lock();
        inner.violation.is_some()
    }

    async fn be_foul(&mut self) {
        while !self.failed() && self.writes_left > 0 {
            self.start_what_is_due();
            self.write_when_due();
            if self.sim.draw(EVENT_EVERY) == 0 {
                self.event();
            }
            self.step().await;
        }
    }

    /// No more faults: everybody runs, and in time everybody has the same.
    async fn heal(&mut self) -> Duration {
        let now = Instant::now();
        self.sim.trace(|| "no more faults".to_owned());
        {
            let mut inner = self.sim.lock();
            inner.calm = true;
            for process in &mut inner.processes {
                process.paused_until = None;
                process.no_database_until = None;
            }
        }
        self.broker.calm();
        let waiting = self.controls.iter_mut().map(|control| &mut control.starts_at);
        for starts_at in waiting.chain(self.edges.iter_mut().map(|edge| &mut edge.starts_at)) {
            if starts_at.is_some() {
                *starts_at = Some(now);
            }
        }
        let mut settled = false;
        while !self.failed() {
            self.start_what_is_due();
            self.step().await;
            if self.looked_again || self.broker_written != self.broker.writes() {
                (self.looked_again, self.broker_written) = (false, self.broker.writes());
                settled = self.is_settled();
            }
            if settled && self.is_marked().await {
                return now.elapsed();
            }
            if now.elapsed() > HEALED_WITHIN {
                let state = self.unsettled();
                self.sim.violated(format!("I6: not healed after {HEALED_WITHIN:?}: {state}"));
            }
        }
        now.elapsed()
    }

    async fn step(&mut self) {
        let stepped = self.scheduler.step().await;
        if let Stepped::Ran { process, .. } | Stepped::Ended { process, .. } = stepped {
            if let Some(index) = self.edges.iter().position(|edge| edge.process == process) {
                self.look_at(index);
                let dark = self.sim.lock().processes[process].dark;
                if dark {
                    self.cut_power(index);
                }
            }
            self.count_heads(process);
            let led = self.sim.lock().led_commit.take();
            if let Some(by) = led {
                self.check_leader(by).await;
            }
        }
        if stepped == Stepped::Waited {
            self.time_passed();
        }
        let leads = |control: &&ControlProcess| {
            control.lead.as_ref().is_some_and(|lead| lead.epoch().is_some())
        };
        if self.controls.iter().filter(leads).count() > 1 {
            self.sim.violated("two controls believe that they lead".to_owned());
        }
        let steps = self.sim.lock().steps;
        if steps > STEPS_MAX {
            self.sim.violated(format!("it did not end within {STEPS_MAX} steps"));
        }
    }

    /// No environment is ever deleted, so no control ever stops serving one.
    fn count_heads(&mut self, process: Process) {
        let Some(control) = self.controls.iter_mut().find(|control| control.process == process)
        else {
            return;
        };
        let Some(Some(Ok(heads))) = control.bus.as_ref().map(|bus| bus.heads().now_or_never())
        else {
            return;
        };
        if heads.len() < control.heads {
            let problem = format!("a control served {} heads, now {}", control.heads, heads.len());
            self.sim.violated(problem);
        }
        control.heads = heads.len();
    }

    fn time_passed(&mut self) {
        let now = Instant::now();
        let mut inner = self.sim.lock();
        for process in &mut inner.processes {
            process.paused_until = process.paused_until.filter(|until| *until > now);
            process.no_database_until = process.no_database_until.filter(|until| *until > now);
        }
        drop(inner);
        self.broker.upkeep(now);
    }

    fn start_what_is_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.controls.len() {
            if self.controls[index].starts_at.is_some_and(|at| at <= now) {
                self.start_control(index);
            }
        }
        for index in 0..self.edges.len() {
            if self.edges[index].starts_at.is_some_and(|at| at <= now) {
                self.start_edge(index);
            }
        }
    }

    /// As `control::start` does.
    fn start_control(&mut self, index: usize) {
        let control = &mut self.controls[index];
        let process = control.process;
        control.starts_at = None;
        let name = self.sim.lock().processes[process].name.clone();
        self.sim.trace(|| format!("{name} starts"));
        let store = self.store.clone();
        let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
        let lead = Arc::new(Lead::new(store.clone(), name, LEASE));
        let key = template::signing_key();
        let publisher = Arc::new(Publisher::new(store.clone(), bus.clone(), key, lead.clone()));
        let doorbell = Doorbell::default();
        control.doorbell = Some(doorbell.clone());
        control.lead = Some(lead.clone());
        control.bus = Some(bus.clone());
        control.heads = 0;
        let (started, stop) = (CancellationToken::new(), CancellationToken::new());

        let (restored, front, is_up) = (publisher.clone(), self.front.clone(), started.clone());
        self.scheduler.spawn(process, "start", true, async move {
            let _ = restored.restore().await;
            let mut controls = front.controls.lock().unwrap_or_else(PoisonError::into_inner);
            controls.insert(process, Served { process, store, bus, parsed: Arc::default() });
            is_up.cancel();
        });
        let (campaign, up, until) = (lead, started.clone(), stop.clone());
        self.scheduler.spawn(process, "lead", false, async move {
            up.cancelled().await;
            campaign.run(until).await;
        });
        let (relayed, up, until) = (publisher.clone(), started.clone(), stop.clone());
        self.scheduler.spawn(process, "relay", true, async move {
            up.cancelled().await;
            relay::run(relayed, doorbell, RELAY_TICK, until).await;
        });
        let (reconciled, up, until) = (publisher.clone(), started.clone(), stop.clone());
        self.scheduler.spawn(process, "reconciler", true, async move {
            up.cancelled().await;
            reconciler::run(reconciled, RECONCILE, until).await;
        });
        let carrier = Carrier::new(publisher, self.broker.clone());
        self.scheduler.spawn(process, "carrier", true, async move {
            started.cancelled().await;
            carrier.run(BROKER_TICK, stop).await;
        });
    }

    fn start_edge(&mut self, index: usize) {
        let edge = &mut self.edges[index];
        edge.starts_at = None;
        edge.node = Arc::default();
        edge.seen.clear();
        edge.looked = false;
        let watcher = self.broker.watch(edge.namespaces.clone());
        edge.watcher = Some(watcher.clone());
        let feed = SimFeed {
            sim: self.sim.clone(),
            front: self.front.clone(),
            broker: self.broker.clone(),
            watcher,
            key: edge.key.clone(),
        };
        let trusted = vec![PublicKey::of(&template::signing_key())];
        let listen = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
        let mut config = edge::config::Config::new(listen, edge.id, trusted);
        config.anti_entropy = ANTI_ENTROPY;
        // A kill is not the snapshot's fault here; `edge/src/breaker.rs` tests when it is.
        config.healthy_after = Duration::ZERO;
        let (slot, folder, sim) = (edge.node.clone(), edge.folder.clone(), self.sim.clone());
        let id = edge.id;
        self.sim.trace(|| format!("{id} starts"));
        self.scheduler.spawn(edge.process, "edge", false, async move {
            match Node::start(sandbox(), &config, &folder, Arc::new(feed)).await {
                Ok(node) => {
                    let node = Arc::new(node);
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(node.clone());
                    node.follow(CancellationToken::new()).await;
                }
                Err(error) => sim.violated(format!("an edge does not start: {error}")),
            }
        });
    }

    fn after(&self, most_ms: usize) -> Instant {
        Instant::now() + Duration::from_millis(1 + self.sim.draw(most_ms) as u64)
    }

    fn kill_control(&mut self, index: usize) {
        let starts_at = self.after(8_000);
        let control = &mut self.controls[index];
        self.scheduler.kill(control.process);
        self.front.controls.lock().unwrap_or_else(PoisonError::into_inner).remove(&control.process);
        control.doorbell = None;
        control.lead = None;
        control.bus = None;
        control.starts_at = Some(starts_at);
        self.sim.lock().processes[control.process].paused_until = None;
    }

    fn kill_edge(&mut self, index: usize) {
        let starts_at = self.after(8_000);
        let edge = &mut self.edges[index];
        self.scheduler.kill(edge.process);
        if let Some(watcher) = edge.watcher.take() {
            self.broker.unwatch(&watcher);
        }
        edge.node = Arc::default();
        edge.starts_at = Some(starts_at);
        let mut inner = self.sim.lock();
        inner.processes[edge.process].paused_until = None;
        inner.processes[edge.process].dark = false;
    }

    fn cut_power(&mut self, index: usize) {
        self.kill_edge(index);
        let folder = self.edges[index].folder.clone();
        self.sim.lock().disks.cut_power(&folder);
    }

    /// One byte of the newest file of one environment.
    fn damage(&mut self, index: usize) -> bool {
        let edge = &mut self.edges[index];
        let Ok(files) = std::fs::read_dir(&edge.folder) else { return false };
        let mut newest: BTreeMap<Name, (Version, PathBuf)> = BTreeMap::new();
        for file in files.flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let parts: Vec<&str> = name.split('.').collect();
            let ["snapshot", namespace, environment, generation, revision] = parts[..] else {
                continue;
            };
            let (Ok(generation), Ok(revision)) = (generation.parse(), revision.parse()) else {
                continue;
            };
            let version = Version { generation, revision };
            let at = newest
                .entry((namespace.to_owned(), environment.to_owned()))
                .or_insert((version, file.path()));
            if at.0 <= version {
                *at = (version, file.path());
            }
        }
        if newest.is_empty() {
            return false;
        }
        let drawn = self.sim.draw(newest.len());
        let Some((name, (_, path))) = newest.into_iter().nth(drawn) else { return false };
        let Ok(mut bytes) = std::fs::read(&path) else { return false };
        if bytes.is_empty() {
            return false;
        }
        let at = self.sim.draw(bytes.len());
        bytes[at] ^= 1 << self.sim.draw(8);
        std::fs::write(&path, bytes).expect("a file");
        // It falls back to the one before, which nobody has noted here.
        edge.floor.remove(&name);
        true
    }

    fn event(&mut self) {
        let all: u64 = EVENTS.iter().map(|(_, weight)| weight).sum();
        let mut drawn = self.sim.draw(all as usize) as u64;
        let mut name = EVENTS[0].0;
        for (event, weight) in EVENTS {
            if drawn < *weight {
                name = event;
                break;
            }
            drawn -= weight;
        }
        let control = self.sim.draw(self.controls.len());
        let edge = self.sim.draw(self.edges.len());
        let process = self.controls[control].process;
        let control_lives = self.controls[control].starts_at.is_none();
        let edge_lives = self.edges[edge].starts_at.is_none();
        let until = self.after(20_000);
        let happened = match name {
            "control killed" if control_lives => {
                self.kill_control(control);
                true
            }
            "control paused" if control_lives => {
                self.sim.lock().processes[process].paused_until = Some(until);
                true
            }
            "edge killed" if edge_lives => {
                self.kill_edge(edge);
                true
            }
            "edge paused" if edge_lives => {
                let process = self.edges[edge].process;
                self.sim.lock().processes[process].paused_until = Some(until);
                true
            }
            "edge: power cut" if edge_lives => {
                self.cut_power(edge);
                true
            }
            "edge: newest file damaged, then started" if edge_lives => {
                self.kill_edge(edge);
                self.damage(edge)
            }
            "broker down" => {
                self.broker.go_down(self.after(40_000));
                true
            }
            "broker wiped" => {
                self.broker.wipe();
                true
            }
            "broker rolled back" => self.broker.roll_back(1 + self.sim.draw(6)),
            "database away from one control" => {
                self.sim.lock().processes[process].no_database_until = Some(until);
                true
            }
            "a clock jumps" => {
                let by = (self.sim.draw(7_200) as i64 - 3_600) * 1_000_000;
                let process = match self.sim.draw(2) {
                    0 => process,
                    _ => self.edges[edge].process,
                };
                self.sim.lock().processes[process].skew_us = by;
                true
            }
            _ => false,
        };
        if happened {
            self.sim.count(name);
            self.sim.trace(|| format!("EVENT {name}, control {control}, edge {edge}"));
        }
    }

    fn write_when_due(&mut self) {
        let now = Instant::now();
        if now < self.next_write {
            return;
        }
        self.next_write = self.after(3_000);
        let live: Vec<usize> = (0..self.controls.len())
            .filter(|index| self.controls[*index].doorbell.is_some())
            .collect();
        let Some(by) = live.get(self.sim.draw(live.len().max(1))).copied() else { return };
        self.writes_left -= 1;
        let index = self.sim.lock().oracle.writes.len();
        let at = self.sim.draw(self.template.scopes.len());
        let scope = self.template.scopes[at].clone();
        let namespace = scope.key().to_owned();
        let environment = ENVIRONMENTS[self.sim.draw(ENVIRONMENTS.len())].to_owned();
        let change = match self.sim.draw(10) {
            0 => {
                let flag = format!("made-{index}");
                self.made_flags[at].push(flag.clone());
                Change::Create { flag }
            }
            1 => Change::Publish,
            2 if !self.made_flags[at].is_empty() => {
                let drawn = self.sim.draw(self.made_flags[at].len());
                Change::Delete { flag: self.made_flags[at].swap_remove(drawn) }
            }
            _ => Change::Set {
                environment: (namespace.clone(), environment.clone()),
                flag: FLAGS[self.sim.draw(FLAGS.len())].to_owned(),
                value: index as i64 + 1,
            },
        };
        let (action, target, mark) = match &change {
            Change::Set { flag, value, .. } => {
                ("config.set", flag.clone(), format!("\"v{value}\""))
            }
            Change::Create { flag } => ("flag.create", flag.clone(), String::new()),
            Change::Delete { flag } => ("flag.delete", flag.clone(), String::new()),
            Change::Publish => ("environment.publish", environment.clone(), String::new()),
        };
        let write = Write { namespace, action, target, mark, ..Write::default() };
        self.sim.trace(|| format!("write {index} is sent to control {by}: {write:?}"));
        self.sim.lock().oracle.writes.push(write);
        let doorbell = self.controls[by].doorbell.clone();
        let others: Vec<Doorbell> = self
            .controls
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != by)
            .filter_map(|(_, control)| control.doorbell.clone())
            .collect();
        let (sim, store) = (self.sim.clone(), self.store.clone());
        let process = self.controls[by].process;
        self.scheduler.spawn(process, "write", false, async move {
            let done = async {
                let mut tx = store.write().await?;
                match &change {
                    Change::Set { flag, value, .. } => {
                        let config = template::config(*value);
                        let any = Expected::Any;
                        configs::set(&mut tx, &scope, &environment, flag, any, &config).await?;
                    }
                    Change::Create { flag } => {
                        flags::create(&mut tx, &scope, &template::definition(flag)).await?;
                    }
                    Change::Delete { flag } => {
                        flags::delete(&mut tx, &scope, flag, Expected::Any).await?;
                    }
                    Change::Publish => {
                        environments::publish(&mut tx, &scope, &environment, false).await?;
                    }
                }
                let touched = tx.touched.clone();
                sim.lock().oracle.about_to_commit(Intent { write: index, touched, change });
                tx.commit().await?;
                Ok::<(), Refusal>(())
            };
            match done.await {
                Ok(()) => {
                    sim.lock().oracle.writes[index].acknowledged = true;
                    sim.count("write acknowledged");
                    if let Some(doorbell) = doorbell {
                        doorbell.ring();
                    }
                    for other in others {
                        if !sim.fault("signal: lost") {
                            other.ring_here();
                        }
                    }
                }
                Err(Refusal::NotFound("flag")) => sim.count("write of a flag that was not made"),
                Err(Refusal::Store(_)) => sim.count("write failed"),
                Err(refusal) => sim.violated(format!("write {index} is refused: {refusal}")),
            }
        });
    }

    fn look_at(&mut self, index: usize) {
        let edge = &mut self.edges[index];
        let node = edge.node.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(node) = node else { return };
        let serving = node.serving();
        if edge.looked && serving == edge.seen {
            return;
        }
        self.looked_again = true;
        let id = edge.id;
        let find = |list: &[Serving], name: &Name| {
            list.iter().find(|serving| serving.name == *name).cloned()
        };
        let mut problems = Vec::new();
        if !edge.looked {
            edge.looked = true;
            for (name, version) in &edge.floor {
                let found = find(&serving, name).map(|serving| serving.version);
                if found.is_none_or(|found| found < *version) {
                    problems.push(format!(
                        "I1: {id} served {name:?} {version:?} from its disk and starts with {found:?}"
                    ));
                }
            }
            if !serving.is_empty() {
                self.sim.count("edge serves from its disk");
            }
        }
        for before in &edge.seen {
            match find(&serving, &before.name) {
                None => {
                    problems.push(format!("I5: {id} does not serve {:?} any more", before.name))
                }
                Some(now) if now.version < before.version => problems.push(format!(
                    "I1: {id} went from {:?} back to {:?} of {:?}",
                    before.version, now.version, before.name
                )),
                Some(_) => {}
            }
        }
        for now in &serving {
            if edge.namespaces.as_ref().is_some_and(|seen| !seen.contains(&now.name.0)) {
                problems.push(format!("I7: {id} serves {:?}", now.name));
            }
            if !now.unsaved {
                edge.floor.insert(now.name.clone(), now.version);
            }
            if find(&edge.seen, &now.name)
                .is_some_and(|before| before.version == now.version && before.digest == now.digest)
            {
                continue;
            }
            match node.answers(&now.name.0, &now.name.1) {
                Some(Ok(answers)) => {
                    let checked = match values(&answers) {
                        Some(values) => self.sim.lock().oracle.check_served(
                            &now.name,
                            now.version,
                            now.digest,
                            &values,
                        ),
                        None => Err("I5: an answer is no JSON of flags".to_owned()),
                    };
                    problems.extend(checked.err().map(|problem| format!("{id}: {problem}")));
                    self.sim.count("snapshot served and compared");
                }
                other => problems.push(format!("I5: {id} does not answer: {other:?}")),
            }
            self.sim.trace(|| format!("{id} serves {:?} {:?}", now.name, now.version));
        }
        edge.seen = serving;
        for problem in problems {
            self.sim.violated(problem);
        }
    }

    /// Nothing has run since the commit: who the database says leads is who led then.
    async fn check_leader(&mut self, by: Process) {
        seam::enter(None);
        let holder: Option<String> = {
            let mut read = self.store.read().await.expect("a read");
            query_scalar("SELECT holder FROM leader").fetch_optional(&mut read).await.expect("one")
        };
        self.enter();
        let name = self.sim.lock().processes[by].name.clone();
        self.sim.count("write of a leader");
        if holder.as_deref() != Some(name.as_str()) {
            self.sim.violated(format!("{name} wrote as the leader while {holder:?} led"));
        }
    }

    /// Whether the database says of everything that it is published. That comes after the head, and
    /// from the next leader if the one that moved the head died.
    async fn is_marked(&self) -> bool {
        const BEHIND: &str = "SELECT COUNT(*) FROM environment e LEFT JOIN publication p \
            ON p.environment_id = e.id AND p.generation = e.generation AND p.revision = e.revision \
            WHERE p.environment_id IS NULL";
        seam::enter(None);
        let behind: i64 = {
            let mut read = self.store.read().await.expect("a read");
            query_scalar(BEHIND).fetch_one(&mut read).await.expect("a count")
        };
        self.enter();
        behind == 0
    }

    fn is_settled(&self) -> bool {
        let inner = self.sim.lock();
        let newest: BTreeMap<&Name, Version> = inner
            .oracle
            .environments
            .iter()
            .map(|(name, environment)| (name, environment.newest()))
            .collect();
        let edges = self.edges.iter().all(|edge| {
            let mine = newest.iter().filter(|(name, _)| {
                edge.namespaces.as_ref().is_none_or(|seen| seen.contains(&name.0))
            });
            let mut count = 0;
            let mut mine_are_there = true;
            for (name, version) in mine {
                count += 1;
                mine_are_there &= edge
                    .seen
                    .iter()
                    .any(|serving| serving.name == **name && serving.version == *version);
            }
            mine_are_there && edge.seen.len() == count
        });
        // The cheaper question first: this is asked after every step.
        edges && {
            let there = self.broker.versions();
            newest.iter().all(|(name, version)| there.get(*name) == Some(version))
        }
    }

    fn unsettled(&self) -> String {
        let inner = self.sim.lock();
        let newest: Vec<_> = inner
            .oracle
            .environments
            .iter()
            .map(|(name, environment)| (name.clone(), environment.newest()))
            .collect();
        drop(inner);
        let served: Vec<_> = self
            .edges
            .iter()
            .map(|edge| {
                let seen = edge.seen.iter().map(|seen| (seen.name.clone(), seen.version.revision));
                (edge.id, seen.collect::<Vec<_>>())
            })
            .collect();
        format!("newest {newest:?}, served {served:?}, broker {:?}", self.broker.versions())
    }

    async fn check_the_end(&mut self) {
        seam::enter(None);
        let mut problems = Vec::new();
        let writes = self.sim.lock().oracle.writes.clone();
        let mut read = self.store.read().await.expect("a read");
        for (scope, base) in self.template.scopes.iter().zip(&self.template.audit_rows) {
            let mine = |write: &&Write| write.namespace == scope.key() && write.committed;
            let committed = writes.iter().filter(mine).count() as i64;
            match audit::verify(&mut read, scope.id()).await.expect("a read") {
                Ok(rows) if rows == base + committed => {}
                Ok(rows) => problems.push(format!(
                    "I8: {committed} writes were committed to {}, {} are in its audit log",
                    scope.key(),
                    rows - base
                )),
                Err(row) => problems.push(format!("I8: row {row} of {} is broken", scope.key())),
            }
            let rows =
                audit::page(&mut read, scope.id(), &audit::Filter::default(), i64::MAX, 1_000)
                    .await
                    .expect("a read");
            for write in writes.iter().filter(|write| write.namespace == scope.key()) {
                if write.acknowledged && !write.committed {
                    problems.push(format!("I4: {write:?} was acknowledged and never committed"));
                }
                if write.mark.is_empty() {
                    continue;
                }
                let found = rows.iter().filter(|row| {
                    row.action == write.action
                        && row.target == write.target
                        && row.after.as_ref().is_some_and(|after| after.contains(&write.mark))
                });
                let found = found.count();
                if found != usize::from(write.committed) {
                    problems.push(format!("I8: {write:?} is in the audit log {found} times"));
                }
            }
        }
        let lost: i64 = query_scalar("SELECT COUNT(*) FROM drift WHERE kind = 'unpublished'")
            .fetch_one(&mut read)
            .await
            .expect("a read");
        if lost > 0 {
            problems.push(format!("{lost} committed changes were in no outbox"));
        }
        let rows: Vec<(String, i64, i64, i64, i64)> = query_as(
            "SELECT e.id, e.generation, e.revision, p.generation, p.revision FROM environment e \
             LEFT JOIN publication p ON p.environment_id = e.id ORDER BY e.id",
        )
        .fetch_all(&mut read)
        .await
        .expect("a read");
        let inner = self.sim.lock();
        for (id, generation, revision, of_generation, of_revision) in rows {
            let newest = inner
                .oracle
                .environments
                .values()
                .find(|environment| environment.id == id)
                .map(|environment| environment.newest());
            let there = Version { generation: generation as u64, revision: revision as u64 };
            if newest != Some(there) || (generation, revision) != (of_generation, of_revision) {
                problems.push(format!(
                    "I4: {id} is at {newest:?}, the database says {there:?}, published is \
                     {of_generation}.{of_revision}"
                ));
            }
        }
        drop(inner);
        drop(read);
        for problem in problems {
            self.sim.violated(problem);
        }
    }
}

/// Flags with their values, out of a bulk answer.
fn values(answers: &[u8]) -> Option<Values> {
    let answers: serde_json::Value = serde_json::from_slice(answers).ok()?;
    answers["flags"]
        .as_array()?
        .iter()
        .map(|flag| Some((flag["key"].as_str()?.to_owned(), flag["value"].as_i64())))
        .collect()
}
