//! Two controls on one PostgreSQL, as processes: one publishes, either takes writes, and the edge
//! never goes back, whatever becomes of the one that publishes.

use std::path::Path;

use e2e::http::{Admin, Ofrep, client, until};
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, edge_of, furnish, replica};
use e2e::writes::{Watcher, flag};
use serde_json::{Value, json};

const LEASE_SECONDS: u64 = 2;

struct Fleet {
    one: Process,
    other: Process,
    /// Writes go to `other`, which follows.
    admin: Admin,
    edge: Process,
    ofrep: Ofrep,
    _postgres: PostgresServer,
    folder: tempfile::TempDir,
}

async fn control(folder: &Path, name: &str, database: &str, lease_seconds: u64) -> Process {
    replica(folder, name, database, lease_seconds, &[]).await
}

/// What `/readyz` says; null while it does not answer.
async fn ready(control: &Process) -> Value {
    let url = format!("{}/readyz", control.text("control_url"));
    let Ok(answer) = client().get(url).send().await else { return Value::Null };
    answer.json().await.unwrap_or_default()
}

async fn leads(control: &Process) -> bool {
    ready(control).await["leading"] == true
}

impl Fleet {
    async fn start(lease_seconds: u64) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let postgres = PostgresServer::start(&folder.path().join("postgres")).unwrap();
        let database = postgres.url("postgres");
        let one = control(folder.path(), "one", &database, lease_seconds).await;
        until("the first control leading", async || {
            if leads(&one).await { Ok(()) } else { Err("it follows".to_owned()) }
        })
        .await;
        let other = control(folder.path(), "other", &database, lease_seconds).await;
        let admin = admin_of(&other, &one).await;
        let (server_key, _, edge_key) = furnish(&admin).await;
        let settings = [("TIDEGATE_EDGE_KEY", edge_key.as_str())];
        let edge = edge_of(&other, &folder.path().join("edge"), &[], &settings).await;
        let ofrep = Ofrep::new(&edge.text("edge_url"), &server_key);
        let fleet = Fleet { one, other, admin, edge, ofrep, _postgres: postgres, folder };
        fleet
            .admin
            .flag(&flag(0), &json!({ "enabled": true, "fallthrough": { "variant": "n" } }))
            .await;
        fleet.ofrep.serves("n", &json!({}), &json!(0)).await;
        fleet
    }

    async fn set(&self, n: u64) {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
        self.admin.put(&path, &flag(n)).await.ok();
    }

    async fn revision(&self) -> i64 {
        let answer = self.admin.get(&self.admin.environment_path()).await.ok();
        answer.json()["revision"].as_i64().expect("a revision")
    }
}

const WRITES_MAX: u64 = 5_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_paused_for_twice_its_lease_loses_nothing_and_no_edge_goes_back() {
    let fleet = Fleet::start(LEASE_SECONDS).await;
    let before = fleet.revision().await;
    let watcher = Watcher::of(&fleet.ofrep);
    // A busy machine can have made it change.
    let one_leads = leads(&fleet.one).await;
    let (leader, follower) =
        if one_leads { (&fleet.one, &fleet.other) } else { (&fleet.other, &fleet.one) };
    let admin = admin_of(follower, &fleet.one).await;
    let mut n = 0;
    let mut write = async || {
        n += 1;
        let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/n");
        admin.put(&path, &flag(n)).await.ok();
        n
    };
    for _ in 0..20 {
        write().await;
    }
    let epoch_before = ready(leader).await["epoch"].as_i64();
    leader.signal("STOP");
    // Writes go on for twice the lease; they are what measures the time here.
    let paused = std::time::Instant::now();
    while paused.elapsed().as_secs() < 2 * LEASE_SECONDS && write().await < WRITES_MAX {}
    until("the other control leading", async || {
        if leads(follower).await { Ok(()) } else { Err("it follows".to_owned()) }
    })
    .await;
    leader.signal("CONT");
    for _ in 0..20 {
        write().await;
    }
    fleet.ofrep.serves("n", &json!({}), &json!(n)).await;
    until("the paused control knowing that it follows", async || match ready(leader).await {
        ready if ready["leading"] == false => Ok(()),
        // It may have won again meanwhile, in a later epoch.
        ready if ready["epoch"].as_i64() > epoch_before => Ok(()),
        ready => Err(ready.to_string()),
    })
    .await;
    let seen = watcher.finish().await;
    assert!(seen.is_sorted(), "the edge went back: {seen:?}");
    assert_eq!(fleet.revision().await - before, i64::try_from(n).unwrap(), "writes were lost");
    fleet.edge.kill().await;
    drop(fleet.folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_replaced_once_its_lease_is_over() {
    let fleet = Fleet::start(LEASE_SECONDS).await;
    fleet.one.signal("KILL");
    fleet.set(7).await;
    fleet.ofrep.serves("n", &json!({}), &json!(7)).await;
    until("the other leading", async || {
        if leads(&fleet.other).await { Ok(()) } else { Err("it follows".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_leaves_hands_over_at_once() {
    // So long that a test would end before it does.
    let fleet = Fleet::start(3_600).await;
    fleet.one.signal("TERM");
    fleet.set(7).await;
    fleet.ofrep.serves("n", &json!({}), &json!(7)).await;
    until("the other leading", async || {
        if leads(&fleet.other).await { Ok(()) } else { Err("it follows".to_owned()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_that_starts_before_its_database_says_so_and_goes_on_when_it_comes() {
    let folder = tempfile::tempdir().unwrap();
    let mut postgres = PostgresServer::start(&folder.path().join("postgres")).unwrap();
    postgres.kill();
    let database = postgres.url("postgres");
    let port = e2e::ports::free().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let data = folder.path().join("control");
    let listen = format!("127.0.0.1:{port}");
    let arguments =
        ["control", "--listen", &listen, "--data-dir", data.to_str().unwrap(), "--log", "info"];
    let settings = [("TIDEGATE_DATABASE_URL", database.as_str())];
    let starting = Process::start(&arguments, &settings);
    let meanwhile = async {
        until("control saying what it waits for", async || {
            let Ok(answer) = client().get(format!("{url}/readyz")).send().await else {
                return Err("nobody listens".to_owned());
            };
            let (status, text) = (answer.status(), answer.text().await.unwrap());
            assert!(!text.contains("for-tests-only"), "a secret: {text}");
            let says = text.contains("waiting for the database postgres on 127.0.0.1");
            if status == 503 && says { Ok(()) } else { Err(format!("{status} {text}")) }
        })
        .await;
        assert_eq!(client().get(format!("{url}/healthz")).send().await.unwrap().status(), 200);
        let asked = client().get(format!("{url}/api/v1/namespaces")).send().await.unwrap();
        assert_eq!(
            (asked.status().as_u16(), asked.headers()["retry-after"].as_bytes()),
            (503, &b"1"[..])
        );
        postgres.restart().unwrap();
    };
    let (control, ()) = tokio::join!(starting, meanwhile);
    until("control being ready", async || {
        let answer = client().get(format!("{url}/readyz")).send().await;
        let status = answer.map(|answer| answer.status().as_u16()).unwrap_or(0);
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    // And again, in the middle of its life.
    postgres.kill();
    until("control not being ready", async || {
        let answer = client().get(format!("{url}/readyz")).send().await.unwrap();
        if answer.status() == 503 { Ok(()) } else { Err("ready".to_owned()) }
    })
    .await;
    postgres.restart().unwrap();
    until("control being ready again", async || {
        let answer = client().get(format!("{url}/readyz")).send().await.unwrap();
        if answer.status() == 200 { Ok(()) } else { Err(answer.text().await.unwrap()) }
    })
    .await;
    control.kill().await;
}
