//! Two controls on one PostgreSQL that an etcd elects between, as processes: whatever becomes of the
//! leader and of etcd, at most one of them writes, edges never go back, and nothing is lost.

use std::path::Path;
use std::time::{Duration, Instant};

use e2e::etcd::EtcdServer;
use e2e::http::{Admin, DEADLINE, Ofrep, client, until};
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, edge_of, furnish, replica};
use e2e::writes::{Watcher, flag};
use serde_json::{Value, json};

/// etcd gives no shorter lease than 2 s.
const LEASE: Duration = Duration::from_secs(2);

struct Fleet {
    etcd: EtcdServer,
    database: String,
    /// The leader of the beginning.
    one: Process,
    /// Writes go to `other`, which follows.
    other: Process,
    admin: Admin,
    server_key: String,
    edge_key: String,
    _postgres: PostgresServer,
    folder: tempfile::TempDir,
}

async fn control(folder: &Path, name: &str, database: &str, lease_s: u64, etcd: &str) -> Process {
    replica(folder, name, database, lease_s, &[("TIDEGATE_ETCD_ENDPOINTS", etcd)]).await
}

/// What `/readyz` says; null while it does not answer.
async fn ready(control: &Process) -> Value {
    let url = format!("{}/readyz", control.text("control_url"));
    let asked = client().get(url).timeout(Duration::from_secs(2)).send().await;
    let Ok(answer) = asked else { return Value::Null };
    answer.json().await.unwrap_or_default()
}

async fn leading(control: &Process) -> Instant {
    until("leading", async || match ready(control).await {
        ready if ready["leading"] == true => Ok(()),
        ready => Err(ready.to_string()),
    })
    .await;
    Instant::now()
}

async fn either_leading(one: &Process, other: &Process) -> Instant {
    tokio::select! {
        at = leading(one) => at,
        at = leading(other) => at,
    }
}

/// Waits until it says what stands in its way; all of it.
async fn obstacle(control: &Process, part: &str) -> String {
    let said = std::cell::RefCell::new(String::new());
    until(&format!("an obstacle with {part:?}"), async || {
        let ready = ready(control).await;
        let text = ready["obstacle"].as_str().unwrap_or_default().to_owned();
        let found = text.contains(part) && ready["leading"] == false;
        *said.borrow_mut() = text;
        if found { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;
    said.into_inner()
}

/// Whatever stands in the way of its leading.
async fn takes_writes(control: &Process) {
    until("a control that takes writes", async || match ready(control).await {
        ready if ready["status"] == "ready" => Ok(()),
        ready => Err(ready.to_string()),
    })
    .await;
}

/// Who leads, who follows, and the leader's epoch.
async fn one_leading<'a>(one: &'a Process, other: &'a Process) -> (&'a Process, &'a Process, i64) {
    let found = std::cell::Cell::new(None);
    until("one of them leading", async || {
        let (first, second) = (ready(one).await, ready(other).await);
        let epoch = |ready: &Value| ready["epoch"].as_i64();
        found.set(match (first["leading"] == true, second["leading"] == true) {
            (true, false) => epoch(&first).map(|epoch| (one, other, epoch)),
            (false, true) => epoch(&second).map(|epoch| (other, one, epoch)),
            _ => None,
        });
        found.get().map(drop).ok_or_else(|| format!("{first} {second}"))
    })
    .await;
    found.get().expect("it was there")
}

/// The epoch of whichever of them leads. A busy machine can make a leader lose its lease for a moment.
async fn epoch_of(controls: &[&Process]) -> i64 {
    let epoch = std::cell::Cell::new(None);
    until("one of them leading", async || {
        let mut said = Vec::new();
        for control in controls {
            said.push(ready(control).await);
        }
        let leading = said.iter().filter(|ready| ready["leading"] == true);
        epoch.set(leading.filter_map(|ready| ready["epoch"].as_i64()).max());
        epoch.get().map(drop).ok_or_else(|| format!("{said:?}"))
    })
    .await;
    epoch.get().expect("it was there")
}

impl Fleet {
    async fn start(lease_s: u64) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let postgres = PostgresServer::start(&folder.path().join("postgres")).unwrap();
        let etcd = EtcdServer::start(&folder.path().join("etcd")).unwrap();
        // No epoch is small: one that was wiped counts up to it only later.
        for n in 0..20 {
            let put = format!(r#"{{"key":"eA==","value":"{}"}}"#, ["MQ==", "Mg=="][n % 2]);
            etcd.ask("/v3/kv/put", &put).unwrap();
        }
        let database = postgres.url("postgres");
        let one = control(folder.path(), "one", &database, lease_s, &etcd.url()).await;
        leading(&one).await;
        let other = control(folder.path(), "other", &database, lease_s, &etcd.url()).await;
        let admin = admin_of(&other, &one).await;
        let (server_key, _, edge_key) = furnish(&admin).await;
        let fleet = Fleet {
            etcd,
            database,
            one,
            other,
            admin,
            server_key,
            edge_key,
            _postgres: postgres,
            folder,
        };
        fleet
            .admin
            .flag(&flag(0), &json!({ "enabled": true, "fallthrough": { "variant": "n" } }))
            .await;
        fleet
    }

    /// An edge that follows `other` over HTTP.
    async fn edge(&self, name: &str, settings: &[(&str, &str)]) -> (Process, Ofrep) {
        let settings = [&[("TIDEGATE_EDGE_KEY", self.edge_key.as_str())], settings].concat();
        let data = self.folder.path().join(name);
        let edge = edge_of(&self.other, &data, &["--edge-id", name], &settings).await;
        let ofrep = Ofrep::new(&edge.text("edge_url"), &self.server_key);
        ofrep.serves("n", &json!({}), &json!(0)).await;
        (edge, ofrep)
    }

    async fn set(&self, n: u64) {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
        self.admin.put(&path, &flag(n)).await.ok();
    }

    async fn revision(&self) -> i64 {
        let answer = self.admin.get(&self.admin.environment_path()).await.ok();
        answer.json()["revision"].as_i64().expect("a revision")
    }

    async fn adopt(&self, coordinator: &str) -> Value {
        let url = self.folder.path().join("database-url");
        std::fs::write(&url, &self.database).unwrap();
        let url = url.to_str().unwrap();
        let arguments = ["control", "adopt-coordinator", "--database-url-file", url, coordinator];
        Process::run(&arguments).await
    }

    /// As control's list of edges has it.
    async fn registration(&self, edge: &str) -> Value {
        let edges = self.admin.get("/api/v1/edges").await.ok().json();
        let items = edges["items"].as_array().expect("a list").clone();
        let found = items.into_iter().find(|item| item["edge"] == edge);
        found.map(|item| item["registration"].clone()).unwrap_or_default()
    }

    async fn registered(&self, edge: &str, wanted: Value) -> Value {
        let said = std::cell::RefCell::new(Value::Null);
        until(&format!("{edge} being registered: {wanted}"), async || {
            let now = self.registration(edge).await;
            let found = now["registered"] == wanted;
            *said.borrow_mut() = now.clone();
            if found { Ok(()) } else { Err(now.to_string()) }
        })
        .await;
        said.into_inner()
    }
}

/// The name of an etcd in what `obstacle` says about it.
fn coordinator_in(obstacle: &str) -> String {
    let (_, after) = obstacle.rsplit_once("adopt-coordinator ").expect("it says what to do");
    after.split('`').next().unwrap().to_owned()
}

/// How often the leader is paused; more for whoever has the time.
const FAILOVERS: &str = "TIDEGATE_FAILOVERS";

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_paused_for_twice_its_lease_writes_nothing_late_and_no_edge_goes_back() {
    let fleet = Fleet::start(LEASE.as_secs()).await;
    // It follows `other`, which is the paused one every second time.
    let (edge, ofrep) = fleet.edge("edge-1", &[]).await;
    let before = fleet.revision().await;
    let watcher = Watcher::of(&ofrep);
    let failovers = std::env::var(FAILOVERS).ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let (mut n, mut took_most) = (0, Duration::ZERO);
    for round in 0..failovers {
        for _ in 0..20 {
            n += 1;
            fleet.set(n).await;
        }
        // Just before it is stopped: a busy machine may make another the leader.
        let (leader, follower, epoch_before) = one_leading(&fleet.one, &fleet.other).await;
        leader.signal("STOP");
        let admin = Admin { url: follower.text("control_url"), ..fleet.admin.clone() };
        let mut write = async || {
            n += 1;
            let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
            admin.put(&path, &flag(n)).await.ok();
        };
        let paused = Instant::now();
        // Writes go on for twice the lease; they are what measures the time here.
        let mut took = None;
        while paused.elapsed() < 2 * LEASE || took.is_none() && paused.elapsed() < DEADLINE {
            write().await;
            if took.is_none() && ready(follower).await["leading"] == true {
                took = Some(paused.elapsed());
            }
        }
        let took = took.unwrap_or_else(|| panic!("{round}: nobody took over"));
        took_most = took_most.max(took);
        leader.signal("CONT");
        for _ in 0..20 {
            write().await;
        }
        ofrep.serves("n", &json!({}), &json!(n)).await;
        until("the paused control knowing that it follows", async || match ready(leader).await {
            ready if ready["leading"] == false => Ok(()),
            // It may have won again meanwhile, in a later epoch.
            ready if ready["epoch"].as_i64() > Some(epoch_before) => Ok(()),
            ready => Err(ready.to_string()),
        })
        .await;
        assert!(epoch_of(&[&fleet.one, &fleet.other]).await > epoch_before, "{round}");
    }
    let seen = watcher.finish().await;
    println!("{failovers} failovers, at most {took_most:?}; {n} writes, {} answers", seen.len());
    assert!(seen.is_sorted(), "the edge went back: {seen:?}");
    assert_eq!(fleet.revision().await - before, i64::try_from(n).unwrap(), "writes were lost");
    edge.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_without_its_etcd_stops_at_once_and_need_not_wait_for_its_own_lease() {
    // So long that a test would end before it does.
    let mut fleet = Fleet::start(3_600).await;
    fleet.etcd.kill();
    obstacle(&fleet.one, "etcd").await;
    fleet.etcd.run().unwrap();
    // The leader's key is there still, under the lease of who can give it back.
    either_leading(&fleet.one, &fleet.other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_once_its_lease_is_over() {
    let fleet = Fleet::start(LEASE.as_secs()).await;
    let (edge, ofrep) = fleet.edge("edge-1", &[]).await;
    fleet.one.signal("KILL");
    let killed = Instant::now();
    fleet.set(7).await;
    let took = leading(&fleet.other).await - killed;
    println!("replaced {took:?} after it was killed, with a lease of {LEASE:?}");
    ofrep.serves("n", &json!({}), &json!(7)).await;
    edge.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_hands_over_at_once_and_one_that_was_killed_comes_back_at_once() {
    // So long that a test would end before it does.
    let fleet = Fleet::start(3_600).await;
    fleet.one.signal("TERM");
    leading(&fleet.other).await;
    fleet.set(7).await;

    fleet.other.signal("KILL");
    let (folder, url) = (fleet.folder.path(), fleet.etcd.url());
    let again = control(folder, "other", &fleet.database, 3_600, &url).await;
    leading(&again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_is_away_stops_publishing_and_nothing_else() {
    let mut fleet = Fleet::start(LEASE.as_secs()).await;
    let (edge, ofrep) = fleet.edge("edge-1", &[]).await;
    let before = epoch_of(&[&fleet.one, &fleet.other]).await;
    fleet.etcd.kill();
    obstacle(&fleet.one, "etcd").await;
    obstacle(&fleet.other, "etcd").await;
    fleet.set(7).await;
    let answer = ofrep.one("n", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["value"]), (200, &json!(0)), "{}", answer.text);
    takes_writes(&fleet.other).await;

    fleet.etcd.run().unwrap();
    either_leading(&fleet.one, &fleet.other).await;
    ofrep.serves("n", &json!({}), &json!(7)).await;
    let now = epoch_of(&[&fleet.one, &fleet.other]).await;
    assert!(now > before, "{now} after {before}");

    // Paused, it answers nobody, and does not break off either.
    fleet.etcd.signal("STOP");
    obstacle(&fleet.one, "etcd does not answer").await;
    obstacle(&fleet.other, "etcd does not answer").await;
    fleet.set(8).await;
    fleet.etcd.signal("CONT");
    ofrep.serves("n", &json!({}), &json!(8)).await;
    edge.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wiped_etcd_leads_nobody_until_an_operator_adopts_it() {
    let mut fleet = Fleet::start(LEASE.as_secs()).await;
    let (edge, ofrep) = fleet.edge("edge-1", &[]).await;
    fleet.one.signal("TERM");
    leading(&fleet.other).await;
    let before = epoch_of(&[&fleet.other]).await;
    assert!(before > 20, "{before}");
    fleet.etcd.kill();
    fleet.etcd.wipe().unwrap();
    fleet.etcd.run().unwrap();

    let said = obstacle(&fleet.other, "is run").await;
    fleet.set(7).await;
    // It has the cluster id of the former one: nothing but control's own name in it differs.
    let (recorded, coordinator) =
        (said.split([' ', ',']).find(|word| word.starts_with("etcd:")), coordinator_in(&said));
    let recorded = recorded.expect("the former one").to_owned();
    assert_eq!(recorded[..21], coordinator[..21], "{said}");
    assert_ne!(recorded, coordinator);
    let (folder, url) = (fleet.folder.path(), fleet.etcd.url());
    let third = control(folder, "third", &fleet.database, LEASE.as_secs(), &url).await;
    obstacle(&third, &coordinator).await;
    let answer = ofrep.one("n", &json!({})).await;
    assert_eq!((answer.status, &answer.json()["value"]), (200, &json!(0)), "{}", answer.text);
    for control in [&fleet.other, &third] {
        obstacle(control, "is run").await;
    }

    let adopted = fleet.adopt(&coordinator).await;
    // The one that led may have lost its lease for a moment and led anew, before etcd was gone.
    assert_eq!(adopted["coordinator"], json!(coordinator));
    assert!(adopted["epoch"].as_i64() > Some(before), "{adopted} after {before}");
    ofrep.serves("n", &json!({}), &json!(7)).await;
    let now = epoch_of(&[&fleet.other, &third]).await;
    assert!(now > before, "{now} after {before}");
    edge.kill().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_was_set_back_leads_nobody_until_it_is_adopted_again() {
    let mut fleet = Fleet::start(LEASE.as_secs()).await;
    fleet.one.signal("TERM");
    leading(&fleet.other).await;
    fleet.etcd.kill();
    fleet.etcd.keep_store().unwrap();
    fleet.etcd.run().unwrap();
    leading(&fleet.other).await;
    for n in 0..200 {
        let put = format!(r#"{{"key":"eA==","value":"{}"}}"#, ["MQ==", "Mg=="][n % 2]);
        fleet.etcd.ask("/v3/kv/put", &put).unwrap();
    }
    // A takeover at the end of that.
    let (folder, url) = (fleet.folder.path(), fleet.etcd.url());
    let third = control(folder, "third", &fleet.database, LEASE.as_secs(), &url).await;
    fleet.other.signal("TERM");
    leading(&third).await;
    let before = epoch_of(&[&third]).await;
    fleet.etcd.kill();
    fleet.etcd.set_back().unwrap();
    fleet.etcd.run().unwrap();

    let said = obstacle(&third, "set back").await;
    fleet.adopt(&coordinator_in(&said)).await;
    leading(&third).await;
    assert!(epoch_of(&[&third]).await > before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_comes_from_the_databases_lease_to_etcd_and_goes_back() {
    let fleet = Fleet::start(LEASE.as_secs()).await;
    let folder = fleet.folder.path();
    let alone = control(folder, "alone", &fleet.database, LEASE.as_secs(), "").await;
    obstacle(&alone, "adopt-coordinator database").await;
    let before = epoch_of(&[&fleet.one, &fleet.other]).await;

    fleet.adopt("database").await;
    leading(&alone).await;
    let between = epoch_of(&[&alone]).await;
    assert!(between > before, "{between} after {before}");
    let said = obstacle(&fleet.one, "coordinated by database").await;
    obstacle(&fleet.other, "coordinated by database").await;
    // It notices by itself; nothing has to be written.
    fleet.adopt(&coordinator_in(&said)).await;
    obstacle(&alone, "adopt-coordinator database").await;
    either_leading(&fleet.one, &fleet.other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_that_starts_before_its_etcd_says_so_and_leads_when_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut etcd = EtcdServer::nowhere(&folder.path().join("etcd")).unwrap();
    let data = folder.path().join("control");
    // The second address answers; attempts go through them.
    let endpoints = format!("http://127.0.0.1:1,{}", etcd.url());
    let arguments = ["control", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let control = Process::start(&arguments, &[("TIDEGATE_ETCD_ENDPOINTS", &endpoints)]).await;
    obstacle(&control, "etcd").await;
    takes_writes(&control).await;
    etcd.run().unwrap();
    leading(&control).await;
    until("nothing standing in its way", async || match ready(&control).await {
        ready if ready["leading"] == true && ready["obstacle"] == Value::Null => Ok(()),
        ready => Err(ready.to_string()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_with_passwords_lets_in_who_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = EtcdServer::start(&folder.path().join("etcd")).unwrap();
    let setup = [
        ("/v3/auth/user/add", r#"{"name":"root","password":"for-tests-only"}"#),
        ("/v3/auth/role/add", r#"{"name":"root"}"#),
        ("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#),
        ("/v3/auth/user/add", r#"{"name":"control","password":"hunter2-for-tests"}"#),
        ("/v3/auth/role/add", r#"{"name":"control"}"#),
        // READWRITE of /eu/tidegate/ and what begins with it.
        (
            "/v3/auth/role/grant",
            r#"{"name":"control","perm":{"permType":"READWRITE","key":"L2V1L3RpZGVnYXRlLw==","range_end":"L2V1L3RpZGVnYXRlMA=="}}"#,
        ),
        ("/v3/auth/user/grant", r#"{"user":"control","role":"control"}"#),
        ("/v3/auth/enable", "{}"),
    ];
    for (path, body) in setup {
        etcd.ask(path, body).unwrap();
    }
    let log = folder.path().join("log");
    let start = async |name: &str, password: &str| {
        let data = folder.path().join(name);
        let arguments =
            ["control", "--listen", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
        let url = etcd.url();
        let settings = [
            ("TIDEGATE_ETCD_ENDPOINTS", url.as_str()),
            ("TIDEGATE_ETCD_USER", "control"),
            ("TIDEGATE_ETCD_PASSWORD", password),
            ("TIDEGATE_ETCD_PREFIX", "/eu/tidegate"),
            ("TIDEGATE_LOG", "debug"),
        ];
        Process::start_logging(&arguments, &settings, &log).await
    };
    let wrong = start("wrong", "hunter3-for-tests").await;
    let said = obstacle(&wrong, "authentication failed").await;
    assert!(!said.contains("hunter"), "{said}");
    wrong.kill().await;
    let right = start("right", "hunter2-for-tests").await;
    leading(&right).await;
    let logged = std::fs::read_to_string(&log).unwrap();
    assert!(!logged.contains("hunter"), "a secret in the log: {logged}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_is_registered_while_it_lives_and_shown_as_lapsed_after_it() {
    let mut fleet = Fleet::start(LEASE.as_secs()).await;
    let url = fleet.etcd.url();
    let settings = [("TIDEGATE_ETCD_ENDPOINTS", url.as_str())];
    let (edge, _) = fleet.edge("edge-1", &settings).await;
    let (leaving, _) = fleet.edge("edge/2", &settings).await;
    let (silent, ofrep) = fleet.edge("edge-3", &[]).await;
    let said = fleet.registered("edge-1", json!(true)).await;
    assert_eq!(said["version"], env!("CARGO_PKG_VERSION"), "{said}");
    assert_eq!(format!("http://{}", said["address"].as_str().unwrap()), edge.text("edge_url"));
    fleet.registered("edge/2", json!(true)).await;
    // It reports what it serves a little after it serves it.
    fleet.registered("edge-3", json!(false)).await;

    // A leaving edge goes at once, long before its lease is over.
    leaving.signal("TERM");
    let said = fleet.registered("edge/2", json!(false)).await;
    assert!(said["since"].is_string(), "{said}");

    // While etcd is away nobody knows; when it is back, wiped even, the edge registers again.
    fleet.etcd.kill();
    fleet.registered("edge-1", Value::Null).await;
    fleet.etcd.wipe().unwrap();
    fleet.etcd.run().unwrap();
    fleet.registered("edge-1", json!(true)).await;

    edge.kill().await;
    let said = fleet.registered("edge-1", json!(false)).await;
    assert!(said["since"].is_string(), "{said}");
    ofrep.serves("n", &json!({}), &json!(0)).await;
    silent.kill().await;
}
