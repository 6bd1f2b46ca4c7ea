//! Everything real and everything dying: PostgreSQL, NATS, etcd, two controls and two edges as
//! processes, with a proxy on every link to PostgreSQL, to NATS and from edges to control; one writer,
//! and a seed that says what is killed, paused, robbed of its store or cut off next. Of three seeds one
//! goes without etcd, by the lease in the database.
//!
//! What must hold (RELIABILITY, section 6): a running edge always answers, with nothing but values
//! that were written, and never an older one than before, also across its own restarts (I1, I2, I5);
//! an acknowledged write is never lost (I4); when the faults stop, both edges come to the last write
//! within 10 s (I6), not counting time in which the machine ran nothing of ours; the audit chain holds
//! (I8). Faults last for as long as the writer needs for some attempts: nothing here waits for a time.
//! `cargo xtask chaos --runs N` runs more seeds; a failing one is printed, and `TIDEGATE_CHAOS_SEED`
//! runs it again.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use e2e::etcd::EtcdServer;
use e2e::http::{Admin, Ofrep, client, until};
use e2e::nats::NatsServer;
use e2e::ofrep_schema::OfrepSchema;
use e2e::ports;
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::proxy::{Link, Proxy};
use e2e::world::{ENVIRONMENT, NAMESPACE, furnish, set_up};
use serde_json::{Value, json};

const FAULTS: usize = 8;
/// After the last fault, NATS being there. Ten seconds are the promise; beside other tests the same work
/// takes longer.
fn healed_max() -> Duration {
    let alone = std::env::var_os("TIDEGATE_CHAOS_RUNS").is_some();
    Duration::from_secs(if alone { 10 } else { 45 })
}
const CONTROLS: usize = 2;
const EDGES: usize = 2;

/// SplitMix64 (Steele, Lea, Flood 2014): small, and the same everywhere.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

fn flag(n: i64) -> Value {
    json!({ "key": "n", "type": "integer", "variants": { "n": n } })
}

/// What the writer and the watchers know of each other.
#[derive(Default)]
struct Known {
    stop: AtomicBool,
    attempts: AtomicI64,
    /// The highest value that was sent, acknowledged or not.
    sent: AtomicI64,
    acknowledged: AtomicI64,
    all_acknowledged: Mutex<BTreeSet<i64>>,
}

struct World {
    folder: tempfile::TempDir,
    postgres: PostgresServer,
    to_postgres: Proxy,
    nats: NatsServer,
    to_nats: Proxy,
    /// None where the database's lease elects.
    etcd: Option<EtcdServer>,
    /// One before each control, for edges.
    to_control: Vec<Proxy>,
    control_at: Vec<SocketAddr>,
    controls: Vec<Option<Process>>,
    edge_at: Vec<SocketAddr>,
    edges: Vec<Option<Process>>,
    token: String,
    server_key: String,
    edge_key: String,
    trust: String,
    log: Vec<String>,
}

impl World {
    async fn start(with_etcd: bool) -> World {
        let folder = tempfile::tempdir().unwrap();
        let postgres = PostgresServer::start(&folder.path().join("postgres")).unwrap();
        let nats = NatsServer::start().await;
        let mut at = Vec::new();
        for _ in 0..CONTROLS + EDGES {
            at.push(ports::free().expect("a free port"));
        }
        let edge_at = at.split_off(CONTROLS);
        let to_postgres = Proxy::before(([127, 0, 0, 1], postgres.port()).into()).await;
        let nats_at = nats.url().trim_start_matches("nats://").parse().unwrap();
        let to_nats = Proxy::before(nats_at).await;
        let mut to_control = Vec::new();
        for address in &at {
            to_control.push(Proxy::before(*address).await);
        }
        let etcd = with_etcd.then(|| EtcdServer::start(&folder.path().join("etcd")).unwrap());
        let mut world = World {
            folder,
            postgres,
            to_postgres,
            nats,
            to_nats,
            etcd,
            to_control,
            control_at: at,
            controls: (0..CONTROLS).map(|_| None).collect(),
            edge_at,
            edges: (0..EDGES).map(|_| None).collect(),
            token: String::new(),
            server_key: String::new(),
            edge_key: String::new(),
            trust: String::new(),
            log: Vec::new(),
        };
        for which in 0..CONTROLS {
            world.start_control(which).await;
        }
        let first = world.controls[0].as_ref().unwrap();
        world.trust = first.text("public_key");
        // Whichever was first has made it.
        let made = world.controls.iter().flatten();
        let mut made = made.filter_map(|control| control.announced["setup_token_file"].as_str());
        let file = PathBuf::from(made.next().expect("a setup token"));
        world.token = set_up(&first.text("control_url"), &file).await;
        let admin = world.admin(0);
        let (server_key, _, edge_key) = furnish(&admin).await;
        (world.server_key, world.edge_key) = (server_key, edge_key);
        let on = json!({ "enabled": true, "fallthrough": { "variant": "n" } });
        admin.flag(&flag(0), &on).await;
        for which in 0..EDGES {
            world.start_edge(which).await;
            world.ofrep(which).serves("n", &json!({}), &json!(0)).await;
        }
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    async fn start_control(&mut self, which: usize) {
        let data = self.path(&format!("control-{which}"));
        let (key, listen) = (self.path("signing-key"), self.control_at[which].to_string());
        let arguments = [
            "control",
            "--listen",
            &listen,
            "--data-dir",
            text(&data),
            "--signing-key-file",
            text(&key),
            "--lease-seconds",
            "1",
            // Stages too, short enough for the time that a fleet has to come together in.
            "--rollout-stages",
            "one:200ms,50%:300ms",
        ];
        let direct = format!("127.0.0.1:{}/", self.postgres.port());
        let database = self.postgres.url("postgres");
        let database = database.replace(&direct, &format!("{}/", self.to_postgres.address));
        assert!(database.contains(&self.to_postgres.address.to_string()), "{database}");
        let broker = format!("nats://{}", self.to_nats.address);
        let etcd = self.etcd.as_ref().map(EtcdServer::url);
        let mut settings = vec![
            ("TIDEGATE_DATABASE_URL", database.as_str()),
            ("TIDEGATE_NATS_URL", broker.as_str()),
            ("TIDEGATE_LOG", "off"),
        ];
        if let Some(etcd) = &etcd {
            settings.push(("TIDEGATE_ETCD_ENDPOINTS", etcd));
        }
        self.controls[which] = Some(Process::start(&arguments, &settings).await);
    }

    async fn start_edge(&mut self, which: usize) {
        let (data, listen) = (self.path(&format!("edge-{which}")), self.edge_at[which].to_string());
        let control = format!("http://{}", self.to_control[which % CONTROLS].address);
        let name = format!("edge-{which}");
        let broker = format!("nats://{}", self.to_nats.address);
        let arguments = [
            "edge",
            "--listen",
            &listen,
            "--control-url",
            &control,
            "--trust",
            &self.trust,
            "--data-dir",
            text(&data),
            "--edge-id",
            &name,
            "--anti-entropy-seconds",
            "1",
        ];
        let settings = [
            ("TIDEGATE_EDGE_KEY", self.edge_key.as_str()),
            ("TIDEGATE_NATS_URL", broker.as_str()),
            ("TIDEGATE_NATS_NAMESPACES", NAMESPACE),
            ("TIDEGATE_LOG", "off"),
            // Kills are the test's own, and no snapshot is to blame.
            ("TIDEGATE_HEALTHY_AFTER_SECONDS", "0"),
        ];
        self.edges[which] = Some(Process::start(&arguments, &settings).await);
    }

    fn admin(&self, which: usize) -> Admin {
        Admin {
            url: format!("http://{}", self.control_at[which]),
            token: self.token.clone(),
            namespace: NAMESPACE.to_owned(),
            environment: ENVIRONMENT.to_owned(),
            http: client(),
        }
    }

    fn ofrep(&self, which: usize) -> Ofrep {
        Ofrep::new(&format!("http://{}", self.edge_at[which]), &self.server_key)
    }

    async fn leader(&self) -> usize {
        for which in 0..CONTROLS {
            let url = format!("http://{}/readyz", self.control_at[which]);
            let asked = client().get(url).timeout(Duration::from_secs(2)).send().await;
            if let Ok(answer) = asked
                && answer.json::<Value>().await.is_ok_and(|body| body["leading"] == true)
            {
                return which;
            }
        }
        0
    }

    /// One fault, for as long as the writer needs for some attempts, and its end.
    async fn fault(&mut self, chance: &mut Chance, known: &Known) {
        let lasts = 2 + chance.below(6) as i64;
        match chance.below(12) {
            0 => {
                self.log.push("nats is killed".to_owned());
                self.nats.kill().await;
                attempts(known, lasts).await;
                self.nats.run().await;
            }
            1 => {
                self.log.push("nats loses its store".to_owned());
                self.nats.kill().await;
                self.nats.wipe();
                attempts(known, lasts).await;
                self.nats.run().await;
            }
            2 => {
                self.log.push("nats goes back to an older store".to_owned());
                self.nats.kill().await;
                let kept = self.nats.keep_store();
                self.nats.run().await;
                attempts(known, lasts).await;
                self.nats.kill().await;
                self.nats.roll_back(kept.path());
                self.nats.run().await;
            }
            3 => {
                self.log.push("postgres is killed".to_owned());
                self.postgres.kill();
                attempts(known, lasts).await;
                self.postgres.restart().unwrap();
            }
            4 => {
                let leader = self.leader().await;
                self.log.push(format!("control {leader}, which leads, is killed"));
                self.controls[leader].take().unwrap().kill().await;
                attempts(known, lasts).await;
                self.start_control(leader).await;
            }
            5 => {
                let leader = self.leader().await;
                self.log.push(format!("control {leader}, which leads, is paused"));
                self.controls[leader].as_ref().unwrap().signal("STOP");
                let paused = Instant::now();
                // For longer than its lease, by the writer's pace.
                while paused.elapsed() < Duration::from_secs(2) {
                    attempts(known, 1).await;
                }
                self.controls[leader].as_ref().unwrap().signal("CONT");
            }
            6 => {
                let which = chance.below(EDGES);
                self.log.push(format!("edge {which} is killed"));
                self.edges[which].take().unwrap().kill().await;
                attempts(known, lasts).await;
                self.start_edge(which).await;
            }
            7 => {
                let leader = self.leader().await;
                let which = chance.below(EDGES);
                self.log.push(format!(
                    "nats, postgres, etcd, control {leader}, which leads, and edge {which} are \
                     killed together"
                ));
                self.nats.kill().await;
                self.postgres.kill();
                if let Some(etcd) = &mut self.etcd {
                    etcd.kill();
                }
                self.controls[leader].take().unwrap().kill().await;
                self.edges[which].take().unwrap().kill().await;
                attempts(known, lasts).await;
                // The edge comes back to nobody: it has its disk.
                self.start_edge(which).await;
                let ofrep = self.ofrep(which);
                until("an edge that answers from its disk", async || {
                    let answer = ofrep.one("n", &json!({})).await;
                    if answer.status == 200 { Ok(()) } else { Err(answer.text) }
                })
                .await;
                self.nats.run().await;
                self.postgres.restart().unwrap();
                if let Some(etcd) = &mut self.etcd {
                    etcd.run().unwrap();
                }
                self.start_control(leader).await;
            }
            8 => {
                self.log.push("etcd is killed".to_owned());
                if let Some(etcd) = &mut self.etcd {
                    etcd.kill();
                    attempts(known, lasts).await;
                    etcd.run().unwrap();
                }
            }
            9 => {
                self.log.push("etcd is paused".to_owned());
                if let Some(etcd) = &self.etcd {
                    etcd.signal("STOP");
                    attempts(known, lasts).await;
                    etcd.signal("CONT");
                }
            }
            cut => {
                let links = match chance.below(3) {
                    0 => [&self.to_postgres].to_vec(),
                    1 => [&self.to_nats].to_vec(),
                    _ => self.to_control.iter().collect(),
                };
                let whose = match links.as_slice() {
                    [one] if one.address == self.to_nats.address => "to nats",
                    [_] => "to postgres",
                    _ => "from edges to control",
                };
                let link = match (cut, chance.below(2)) {
                    (10, 0) => Link::Slow(Duration::from_millis(200)),
                    (10, _) => Link::Broken,
                    _ => Link::Deaf,
                };
                self.log.push(format!("links {whose} are {link:?}"));
                links.iter().for_each(|proxy| proxy.set(link));
                attempts(known, lasts).await;
                links.iter().for_each(|proxy| proxy.set(Link::Whole));
            }
        }
        attempts(known, 1).await;
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// Until the writer has tried so many times more.
async fn attempts(known: &Known, more: i64) {
    let until_attempt = known.attempts.load(Ordering::SeqCst) + more;
    until("the writer going on", async || {
        let now = known.attempts.load(Ordering::SeqCst);
        if now >= until_attempt { Ok(()) } else { Err(format!("{now} of {until_attempt}")) }
    })
    .await;
}

/// Writes 1, 2, 3 …, through either control; what fails may have been done or not.
async fn write(admins: Vec<Admin>, known: Arc<Known>) {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
    let mut n = 0;
    while !known.stop.load(Ordering::SeqCst) {
        n += 1;
        let admin = &admins[n as usize % admins.len()];
        known.sent.store(n, Ordering::SeqCst);
        let request = admin.request(http::Method::PUT, &path).header("if-match", "*");
        let sent = request.json(&flag(n)).timeout(Duration::from_secs(1)).send().await;
        match sent {
            Ok(answer) if answer.status().is_success() => {
                known.acknowledged.store(n, Ordering::SeqCst);
                known.all_acknowledged.lock().unwrap().insert(n);
            }
            Ok(answer) => {
                let status = answer.status();
                assert!(status.is_server_error(), "a write was refused with {status}");
            }
            Err(_) => {}
        }
        known.attempts.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Asks an edge all the time. An edge that is not there is the test's doing; one that answers has to
/// answer right.
async fn watch(ofrep: Ofrep, which: usize, known: Arc<Known>) -> (usize, BTreeSet<i64>) {
    let (mut highest, mut answers, mut seen) = (-1, 0, BTreeSet::new());
    let url = format!("{}/ofrep/v1/evaluate/flags/n", ofrep.url);
    while !known.stop.load(Ordering::SeqCst) {
        let request = ofrep.http.post(&url).bearer_auth(&ofrep.key).body("{}");
        let Ok(answer) = request.timeout(Duration::from_secs(5)).send().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let status = answer.status();
        let Ok(body) = answer.text().await else { continue };
        assert_eq!(status, 200, "edge {which}: {body}");
        let path = "/ofrep/v1/evaluate/flags/n";
        let checked = OfrepSchema::shared().check(path, "POST", 200, body.as_bytes());
        checked.unwrap_or_else(|why| panic!("edge {which}: {why}"));
        let value = serde_json::from_str::<Value>(&body).unwrap()["value"].as_i64().unwrap();
        assert!(value >= highest, "edge {which} went back from {highest} to {value}");
        let sent = known.sent.load(Ordering::SeqCst);
        assert!(value <= sent, "edge {which} serves {value}, {sent} was sent last");
        highest = value;
        answers += 1;
        seen.insert(value);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (answers, seen)
}

/// A control whose database was away may say for a while that it is.
async fn answered(admin: &Admin, path: &str) -> Value {
    let body = std::cell::RefCell::new(Value::Null);
    until("an answer of control", async || match admin.get(path).await {
        answer if answer.status == 200 => {
            body.replace(answer.json());
            Ok(())
        }
        answer => Err(format!("{}: {}", answer.status, answer.text)),
    })
    .await;
    body.into_inner()
}

/// Every value that was committed, by the audit log: a row for each write, in its transaction.
async fn committed(admin: &Admin) -> Vec<i64> {
    let mut values = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/audit?limit=200{cursor}");
        let page = answered(admin, &path).await;
        for row in page["items"].as_array().expect("rows") {
            if row["target"] == "n" && row["action"] != "config.set" {
                values.push(row["after"]["variants"]["n"].as_i64().expect("a value"));
            }
        }
        match page["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return values,
        }
    }
}

/// For how long this machine let nothing of ours run: by how much a thread that wants to run every few
/// milliseconds, and needs no time itself, came too late. It is less than what the edges and controls lost
/// to a machine that is only busy, so what takes too long on one of those still fails.
struct Stalls {
    total_us: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
}

impl Stalls {
    const EVERY: Duration = Duration::from_millis(5);

    fn measure() -> Stalls {
        let stalls = Stalls { total_us: Arc::default(), stop: Arc::default() };
        let (total_us, stop) = (stalls.total_us.clone(), stalls.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                let began = Instant::now();
                std::thread::park_timeout(Stalls::EVERY);
                let late = began.elapsed().saturating_sub(Stalls::EVERY);
                // What a timer's own coarseness costs is no stall.
                if late > Stalls::EVERY {
                    total_us.fetch_add(late.as_micros() as i64, Ordering::SeqCst);
                }
            }
        });
        stalls
    }

    fn total(self) -> Duration {
        Duration::from_micros(self.total_us.load(Ordering::SeqCst) as u64)
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
    }
}

async fn run(seed: u64) {
    let mut chance = Chance(seed);
    let mut world = World::start(!seed.is_multiple_of(3)).await;
    let known = Arc::new(Known::default());
    let admins = (0..CONTROLS).map(|which| world.admin(which)).collect();
    let writer = tokio::spawn(write(admins, known.clone()));
    let watchers: Vec<_> = (0..EDGES)
        .map(|which| tokio::spawn(watch(world.ofrep(which), which, known.clone())))
        .collect();
    for _ in 0..FAULTS {
        world.fault(&mut chance, &known).await;
        let failed = writer.is_finished() || watchers.iter().any(|watcher| watcher.is_finished());
        if failed {
            break;
        }
    }
    // The faults are over. The last write that is acknowledged now has to arrive.
    let acknowledged = known.acknowledged.load(Ordering::SeqCst);
    let went_on = !writer.is_finished();
    if went_on {
        until("a write being acknowledged again", async || {
            let now = known.acknowledged.load(Ordering::SeqCst);
            if now > acknowledged { Ok(()) } else { Err(format!("still {now}")) }
        })
        .await;
    }
    known.stop.store(true, Ordering::SeqCst);
    writer.await.expect("the writer");
    let healed = Instant::now();
    let stalls = Stalls::measure();
    let last = known.acknowledged.load(Ordering::SeqCst);
    for which in 0..EDGES {
        let ofrep = world.ofrep(which);
        until(&format!("edge {which} serving {last} or what was sent after it"), async || {
            let answer = ofrep.one("n", &json!({})).await;
            let value = answer.json()["value"].as_i64().unwrap_or(-1);
            if value >= last { Ok(()) } else { Err(format!("{value}; {:?}", world.log)) }
        })
        .await;
    }
    let (took, stalled) = (healed.elapsed(), stalls.total());
    let log = &world.log;
    assert!(took <= healed_max() + stalled, "healed after {took:?}, {stalled:?} stalled; {log:?}");
    let committed = committed(&world.admin(0)).await;
    let unique: BTreeSet<i64> = committed.iter().copied().collect();
    assert_eq!(unique.len(), committed.len(), "a write was done twice; {:?}", world.log);
    let acknowledged = known.all_acknowledged.lock().unwrap().clone();
    let lost: Vec<_> = acknowledged.difference(&unique).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}; {:?}", world.log);
    let mut answers = 0;
    for watcher in watchers {
        let watched = watcher.await.unwrap_or_else(|error| panic!("{error}; {:?}", world.log));
        answers += watched.0;
        let never: Vec<_> = watched.1.difference(&unique).collect();
        assert!(never.is_empty(), "served and never committed: {never:?}; {:?}", world.log);
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/audit/verify");
    let audit = answered(&world.admin(0), &path).await;
    assert_eq!(audit["valid"], true, "{audit}");
    println!(
        "seed {seed}: {last} of {} writes acknowledged last, {answers} answers, healed in {} ms: {}",
        known.sent.load(Ordering::SeqCst),
        took.as_millis(),
        world.log.join("; "),
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_dies_edges_answer_with_what_was_written_and_come_to_the_last_of_it() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let runs = setting("TIDEGATE_CHAOS_RUNS").unwrap_or(10);
    let first = setting("TIDEGATE_CHAOS_SEED").unwrap_or(1);
    for seed in first..first + runs {
        println!("seed {seed} begins: TIDEGATE_CHAOS_SEED={seed} TIDEGATE_CHAOS_RUNS=1 repeats it");
        run(seed).await;
    }
}
