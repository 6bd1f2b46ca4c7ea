//! A new snapshot comes to one edge first, then to the others, as processes: what the first one
//! refuses or dies of comes to no other.

use std::path::Path;
use std::time::Instant;

use e2e::http::{Admin, Ofrep, client, send, until};
use e2e::postgres::PostgresServer;
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, edge_arguments, edge_of, furnish};
use rules::head::place;
use serde_json::{Value, json};

const EDGES: usize = 3;
/// Text that makes an edge with [`REFUSES`] refuse, and one with [`DIES`] die.
const BAD: &str = "bad-one";
const REFUSES: (&str, &str) = ("TIDEGATE_TEST_REFUSES", BAD);
const DIES: (&str, &str) = ("TIDEGATE_TEST_DIES_OF", BAD);

struct Fleet {
    admin: Admin,
    control: Option<Process>,
    /// In the order in which a rollout comes to them.
    edges: Vec<Option<Process>>,
    ofreps: Vec<Ofrep>,
    server_key: String,
    edge_key: String,
    folder: tempfile::TempDir,
}

/// Names in the order in which a rollout comes to them.
fn names() -> Vec<String> {
    let mut names: Vec<String> = (1..=EDGES).map(|index| format!("edge-{index}")).collect();
    names.sort_by_key(|name| place(NAMESPACE, "production", name));
    names
}

async fn control(data: &Path, stages: &str, listen: &str) -> Process {
    let arguments = ["control", "--listen", listen, "--data-dir", data.to_str().unwrap()];
    Process::start(&[&arguments[..], &["--rollout-stages", stages]].concat(), &[]).await
}

impl Fleet {
    /// A flag `f` with the value "1" at all edges; `settings` are of the first one.
    async fn start(stages: &str, settings: &[(&str, &str)]) -> Fleet {
        let folder = tempfile::tempdir().unwrap();
        let listen = e2e::ports::free().unwrap().to_string();
        let control = control(&folder.path().join("control"), stages, &listen).await;
        let admin = admin_of(&control, &control).await;
        let (server_key, _, edge_key) = furnish(&admin).await;
        let (edges, ofreps) = Default::default();
        let mut fleet =
            Fleet { admin, control: Some(control), edges, ofreps, server_key, edge_key, folder };
        for at in 0..EDGES {
            fleet.start_edge(at, if at == 0 { settings } else { &[] }).await;
        }
        fleet.admin.create_flag(&flag("1")).await.ok();
        let on = json!({ "enabled": true, "fallthrough": { "variant": "only" } });
        let path = format!("{}/flags/f?rollout=now", fleet.admin.environment_path());
        fleet.admin.put(&path, &on).await.ok();
        fleet.all_serve("1").await;
        // Control counts those that it has heard of.
        until("all edges having reported", async || {
            let edges = fleet.admin.get(&fleet.edges_path()).await.ok();
            match edges.text.matches("\"live\"").count() {
                EDGES => Ok(()),
                _ => Err(edges.text),
            }
        })
        .await;
        fleet
    }

    fn edges_path(&self) -> String {
        format!("{}/edges", self.admin.environment_path())
    }

    /// An edge that ends by itself, perhaps before it could announce itself.
    async fn edge_to_its_end(&self, at: usize, settings: &[(&str, &str)]) {
        let name = names().swap_remove(at);
        let data = self.folder.path().join(&name);
        let settings = [&[("TIDEGATE_EDGE_KEY", self.edge_key.as_str())], settings].concat();
        let control = self.control.as_ref().expect("control runs");
        let arguments = edge_arguments(control, &data, &["--edge-id", &name]);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (code, said) = Process::exit(&arguments, &settings).await;
        assert_ne!(code, 0, "{said}");
    }

    async fn start_edge(&mut self, at: usize, settings: &[(&str, &str)]) {
        let name = names().swap_remove(at);
        let data = self.folder.path().join(&name);
        let settings = [&[("TIDEGATE_EDGE_KEY", self.edge_key.as_str())], settings].concat();
        let more = ["--edge-id", &name, "--anti-entropy-seconds", "1"];
        let control = self.control.as_ref().expect("control runs");
        let edge = edge_of(control, &data, &more, &settings).await;
        let ofrep = Ofrep::new(&edge.text("edge_url"), &self.server_key);
        if at < self.edges.len() {
            self.edges[at] = Some(edge);
            self.ofreps[at] = ofrep;
        } else {
            self.edges.push(Some(edge));
            self.ofreps.push(ofrep);
        }
    }

    async fn set(&self, value: &str, query: &str) -> e2e::http::Answer {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/f{query}");
        self.admin.put(&path, &flag(value)).await.ok()
    }

    async fn value(&self, at: usize) -> Value {
        self.ofreps[at].one("f", &json!({})).await.json()["value"].clone()
    }

    async fn all_serve(&self, value: &str) {
        for ofrep in &self.ofreps {
            ofrep.serves("f", &json!({}), &json!(value)).await;
        }
    }

    async fn rollout(&self) -> Value {
        let environment = self.admin.get(&self.admin.environment_path()).await.ok().json();
        environment["rollout"].clone()
    }

    async fn is(&self, state: &str) -> Value {
        until(&format!("a rollout that is {state}"), async || {
            let rollout = self.rollout().await;
            if rollout["state"] == state { Ok(()) } else { Err(rollout.to_string()) }
        })
        .await;
        self.rollout().await
    }

    async fn order(&self, action: &str) {
        let path = format!("{}/rollout", self.admin.environment_path());
        self.admin.post(&path, &json!({ "action": action })).await.ok();
    }
}

fn flag(value: &str) -> Value {
    json!({ "key": "f", "type": "string", "variants": { "only": value } })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_good_snapshot_comes_to_one_edge_first_and_then_to_all() {
    let fleet = Fleet::start("one:5s", &[]).await;
    let mut n = 1;
    let (began, first) = 'tries: loop {
        n += 1;
        assert!(n < 7, "no stage lasted for as long as looking at it took");
        let began = Instant::now();
        fleet.set(&n.to_string(), "").await;
        fleet.ofreps[0].serves("f", &json!({}), &json!(n.to_string())).await;
        let first = began.elapsed();
        loop {
            let others = (fleet.value(1).await, fleet.value(2).await);
            let edges = fleet.admin.get(&fleet.edges_path()).await.ok();
            // Asked last: all that was before it, while the stage lasted.
            if fleet.rollout().await["state"] != "running" {
                break;
            }
            let before = json!((n - 1).to_string());
            assert_eq!(others, (before.clone(), before));
            if edges.text.matches("\"waiting\"").count() == 2 {
                break 'tries (began, first);
            }
        }
        fleet.all_serve(&n.to_string()).await;
        fleet.is("done").await;
    };
    fleet.all_serve(&n.to_string()).await;
    let took = began.elapsed();
    let rollout = fleet.is("done").await;
    assert!(took.as_millis() >= 5_000, "{took:?}: {rollout}");
    eprintln!("one:5s, three edges: the first after {first:?}, all after {took:?}: {rollout}");
    // Whoever waits for all waits through all stages.
    let live = fleet.set("last", "?wait=live&timeout=50").await;
    assert_eq!(live.header("tidegate-live"), "live=?1, serving=3, edges=3");
    assert_eq!(fleet.value(2).await, "last");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_first_edge_refuses_comes_to_no_other_until_the_next_write() {
    let mut fleet = Fleet::start("one:100ms", &[REFUSES]).await;
    let answer = fleet.set(BAD, "?wait=live&timeout=50").await;
    assert_eq!(
        answer.header("tidegate-live"),
        "live=?0, serving=0, edges=3, rollout=halted",
        "no use in waiting"
    );
    let rollout = fleet.is("halted").await;
    let reason = rollout["reason"].as_str().unwrap_or_default();
    assert!(reason.contains(&names()[0]) && reason.contains("this test wants it so"), "{rollout}");
    until("the drift being recorded", async || {
        let drift = fleet.admin.get("/api/v1/drift").await.ok();
        if drift.text.contains("rollout-halted") { Ok(()) } else { Err(drift.text) }
    })
    .await;
    for at in 0..EDGES {
        assert_eq!(fleet.value(at).await, "1", "edge {at}");
    }
    // An edge that starts in the middle of it, with nothing on its disk, gets the one before.
    fleet.edges[2].take().expect("it runs").kill().await;
    std::fs::remove_dir_all(fleet.folder.path().join(&names()[2])).unwrap();
    fleet.start_edge(2, &[]).await;
    fleet.ofreps[2].serves("f", &json!({}), &json!("1")).await;
    // Going on changes nothing while the edge still refuses it.
    fleet.order("resume").await;
    fleet.is("halted").await;
    assert_eq!(fleet.value(1).await, "1");

    fleet.set("mended", "").await;
    fleet.all_serve("mended").await;
    fleet.is("done").await;
    until("the drift being over", async || {
        let drift = fleet.admin.get("/api/v1/drift").await.ok();
        let over = drift.json()["items"]
            .as_array()
            .is_some_and(|items| items.iter().all(|item| item["mendedAt"].is_string()));
        if over { Ok(()) } else { Err(drift.text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_can_have_it_everywhere_at_once() {
    let fleet = Fleet::start("one:10m", &[REFUSES]).await;
    fleet.set("slow", "").await;
    fleet.ofreps[0].serves("f", &json!({}), &json!("slow")).await;
    // The kill switch does not wait behind the ten minutes of the write before.
    let began = Instant::now();
    let live = fleet.set("now", "?rollout=now&wait=live&timeout=50").await;
    assert_eq!(live.header("tidegate-live"), "live=?1, serving=3, edges=3");
    eprintln!("?rollout=now: all three edges after {:?}", began.elapsed());
    fleet.all_serve("now").await;
    assert_eq!(fleet.rollout().await["state"], "done");

    fleet.set(BAD, "").await;
    fleet.is("halted").await;
    fleet.order("finish").await;
    for at in 1..EDGES {
        fleet.ofreps[at].serves("f", &json!({}), &json!(BAD)).await;
    }
    assert_eq!(fleet.value(0).await, "now", "the last good one stays where it does not load");
    let order = fleet
        .admin
        .request(http::Method::POST, &format!("{}/rollout", fleet.admin.environment_path()));
    send(order.json(&json!({ "action": "halt" }))).await.problem(404, &["rollout"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_brings_the_first_edge_down_twice_halts() {
    let mut fleet = Fleet::start("one:2s", &[DIES]).await;
    fleet.set(BAD, "").await;
    fleet.edges[0].take().expect("it runs").ended().await;
    fleet.edge_to_its_end(0, &[DIES]).await;
    fleet.start_edge(0, &[DIES]).await;
    let rollout = fleet.is("halted").await;
    assert!(rollout["reason"].as_str().is_some_and(|why| why.contains("twice")), "{rollout}");
    for at in 0..EDGES {
        assert_eq!(fleet.value(at).await, "1", "edge {at}");
    }
    fleet.set("mended", "").await;
    fleet.all_serve("mended").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_killed_in_the_middle_goes_on_after_its_restart() {
    // Only the one that comes after it is in a hurry.
    let mut fleet = Fleet::start("one:10m", &[]).await;
    fleet.set("2", "").await;
    fleet.ofreps[0].serves("f", &json!({}), &json!("2")).await;
    assert_eq!(fleet.rollout().await["state"], "running");
    fleet.control.take().expect("control runs").kill().await;
    assert_eq!(fleet.value(2).await, "1");
    let listen = fleet.admin.url.strip_prefix("http://").unwrap();
    let again = control(&fleet.folder.path().join("control"), "one:1s", listen).await;
    fleet.control = Some(again);
    fleet.all_serve("2").await;
    fleet.is("done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_leader_goes_on_where_the_killed_one_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let postgres = PostgresServer::start(&folder.path().join("postgres")).unwrap();
    let database = postgres.url("postgres");
    let settings = [("TIDEGATE_DATABASE_URL", database.as_str())];
    let key = folder.path().join("signing-key");
    let start = async |name: &str, stages: &str| {
        let data = folder.path().join(name);
        let arguments = ["control", "--listen", "127.0.0.1:0", "--lease-seconds", "20"];
        let files =
            ["--data-dir", data.to_str().unwrap(), "--signing-key-file", key.to_str().unwrap()];
        let more = ["--rollout-stages", stages];
        Process::start(&[&arguments[..], &files, &more].concat(), &settings).await
    };
    // Only the one that comes after it is in a hurry.
    let one = start("one", "one:10m").await;
    let leads = async |control: &Process| {
        let answer = client().get(format!("{}/readyz", control.text("control_url"))).send().await;
        answer.unwrap().json::<Value>().await.unwrap()["leading"] == true
    };
    until("the first control leading", async || {
        if leads(&one).await { Ok(()) } else { Err("it follows".to_owned()) }
    })
    .await;
    let other = start("other", "one:1s").await;
    let admin = admin_of(&other, &one).await;
    let (server_key, _, edge_key) = furnish(&admin).await;
    let (mut edges, mut ofreps) = (Vec::new(), Vec::new());
    for name in names() {
        let data = folder.path().join(&name);
        let settings = [("TIDEGATE_EDGE_KEY", edge_key.as_str())];
        let more = ["--edge-id", &name, "--anti-entropy-seconds", "1"];
        let edge = edge_of(&other, &data, &more, &settings).await;
        ofreps.push(Ofrep::new(&edge.text("edge_url"), &server_key));
        edges.push(edge);
    }
    admin.create_flag(&flag("1")).await.ok();
    let on = json!({ "enabled": true, "fallthrough": { "variant": "only" } });
    admin.put(&format!("{}/flags/f?rollout=now", admin.environment_path()), &on).await.ok();
    for ofrep in &ofreps {
        ofrep.serves("f", &json!({}), &json!("1")).await;
    }
    admin.put(&format!("/api/v1/namespaces/{NAMESPACE}/flags/f"), &flag("2")).await.ok();
    ofreps[0].serves("f", &json!({}), &json!("2")).await;
    let environment = admin.get(&admin.environment_path()).await.ok().json();
    assert_eq!(environment["rollout"]["state"], "running", "{environment}");
    one.signal("KILL");
    for ofrep in &ofreps {
        ofrep.serves("f", &json!({}), &json!("2")).await;
    }
    until("the other leading", async || match leads(&other).await {
        true => Ok(()),
        false => Err("it follows".to_owned()),
    })
    .await;
}
