//! Control and edges with a real nats-server between them: what it makes faster, and that whatever
//! happens to it costs time only.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::jetstream;
use e2e::http::{Admin, DEADLINE, Ofrep, client, until};
use e2e::nats::NatsServer;
use e2e::process::Process;
use e2e::proxy::{Link, Proxy};
use e2e::world::{ENVIRONMENT, NAMESPACE, furnish, workspace};
use edge::feed::HttpFeed;
use edge::feed::nats::{Counts, NatsFeed};
use rules::bus::{self, Broker};
use rules::head::{PublicKey, SignedHead, Version};
use rules::keys::ApiKey;
use serde_json::json;

/// Longer than any test: what arrives was not polled for.
const NEVER: Duration = Duration::from_secs(3600);
/// Where nothing listens.
const NOWHERE: &str = "http://127.0.0.1:9";

fn local() -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
}

struct Control {
    running: Option<control::Control>,
    admin: Admin,
    server_key: String,
    edge_key: String,
    trust: PublicKey,
    folder: tempfile::TempDir,
}

async fn start_control(data: &Path, listen: SocketAddr, broker: Broker) -> control::Control {
    let mut config = control::config::Config::new(listen, data);
    config.broker = Some(broker);
    config.bootstrap = true;
    config.walls = control::http::walls::Walls::without_rates();
    control::start(config).await.expect("control starts")
}

impl Control {
    async fn start(broker: Broker) -> Control {
        let folder = tempfile::tempdir().unwrap();
        // Nobody else takes the port while it is down.
        let listen = e2e::ports::free().unwrap();
        let running = start_control(&folder.path().join("control"), listen, broker).await;
        let token = std::fs::read_to_string(&running.admin_token_file).unwrap();
        let admin = Admin {
            url: format!("http://{}", running.address),
            token: token.trim().to_owned(),
            namespace: NAMESPACE.to_owned(),
            environment: ENVIRONMENT.to_owned(),
            http: client(),
        };
        let (server_key, _, edge_key) = furnish(&admin).await;
        let trust = running.public_key.clone();
        let control =
            Control { running: Some(running), admin, server_key, edge_key, trust, folder };
        let definition = json!({ "key": "f", "type": "string",
            "variants": { "one": "1", "two": "2", "three": "3", "four": "4" } });
        control.admin.create_flag(&definition).await.ok();
        control.flag("one").await;
        control
    }

    async fn flag(&self, variant: &str) {
        let config = json!({ "enabled": true, "fallthrough": { "variant": variant } });
        self.admin.configure("f", &config).await.ok();
    }

    async fn stop(&mut self) {
        self.running.take().expect("it runs").shutdown().await;
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("control")
    }

    /// At the address that it had.
    async fn start_again(&mut self, broker: Broker) {
        let listen = self.admin.url.strip_prefix("http://").unwrap().parse().unwrap();
        self.running = Some(start_control(&self.data(), listen, broker).await);
    }

    async fn revision(&self) -> u64 {
        let shown = self.admin.get(&self.admin.environment_path()).await.ok().json();
        shown["revision"].as_u64().unwrap_or_else(|| panic!("no revision in {shown}"))
    }

    /// That a difference of this kind was found, and mended.
    async fn has_mended(&self, kind: &str) {
        until(&format!("{kind} being recorded"), async || {
            let drift = self.admin.get("/api/v1/drift").await.ok().json();
            let of_kind = |row: &serde_json::Value| {
                row["kind"] == kind
                    && row["mendedAt"].is_string()
                    && row["environment"] == ENVIRONMENT
            };
            match drift["items"].as_array().is_some_and(|rows| rows.iter().any(of_kind)) {
                true => Ok(()),
                false => Err(drift.to_string()),
            }
        })
        .await;
    }

    async fn metric(&self, name: &str) -> f64 {
        let figures = self.admin.get("/metrics").await.ok().text;
        let line = figures.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }
}

/// An edge, and a watcher that fails the test if what it serves ever goes back.
struct Edge {
    running: edge::Edge,
    feed: Arc<NatsFeed>,
    ofrep: Ofrep,
    watching: tokio::task::JoinHandle<()>,
    fell: Arc<AtomicU64>,
}

struct Follow<'a> {
    control_url: &'a str,
    broker: Broker,
    anti_entropy: Duration,
}

impl Edge {
    /// In memory only, so that everything that it serves came from somewhere.
    async fn start(control: &Control, follow: Follow<'_>) -> Edge {
        let key = ApiKey::parse(&control.edge_key).unwrap();
        let key_id = key.id.clone();
        let http = Arc::new(HttpFeed::new(follow.control_url, key).unwrap());
        let namespaces = [control.admin.namespace.clone()];
        let (often, broker) = (follow.anti_entropy, follow.broker);
        let feed = NatsFeed::start(&broker, &key_id, namespaces, often, http).await.unwrap();
        let feed = Arc::new(feed);
        let trusted = vec![control.trust.clone()];
        let mut config = edge::config::Config::new(local(), "edge-1", trusted);
        config.anti_entropy = often;
        config.sandbox.cache_dir = e2e::run::compiled_dir();
        let running = edge::start(config, feed.clone()).await.unwrap();
        let ofrep = Ofrep::new(&format!("http://{}", running.address), &control.server_key);
        let fell = Arc::new(AtomicU64::new(0));
        let watching = tokio::spawn(watch(ofrep.clone(), running.swaps(), fell.clone()));
        Edge { running, feed, ofrep, watching, fell }
    }

    fn serving(&self) -> Option<Version> {
        self.running.serving(NAMESPACE, ENVIRONMENT).map(|(version, _)| version)
    }

    /// Before it has a snapshot its answer is not OFREP.
    async fn has_a_snapshot(&self) {
        until("a first snapshot", async || match self.serving() {
            Some(_) => Ok(()),
            None => Err("none".to_owned()),
        })
        .await;
    }

    async fn serves(&self, value: &str) {
        self.has_a_snapshot().await;
        self.ofrep.serves("f", &json!({}), &json!(value)).await;
    }

    fn counts(&self) -> &Counts {
        self.feed.counts()
    }

    /// Heard or read.
    fn heads_of_the_broker(&self) -> u64 {
        count(&self.counts().heads_announced) + count(&self.counts().heads_read)
    }

    /// The watch may be behind what reading all heads has brought.
    async fn has_heard_more_than(&self, before: u64) {
        until("the watch having brought it", async || {
            match count(&self.counts().heads_announced) {
                now if now > before => Ok(()),
                now => Err(format!("{now} announced")),
            }
        })
        .await;
    }

    async fn stop(self) {
        self.watching.abort();
        assert_eq!(self.fell.load(Ordering::Relaxed), 0, "what it served went back");
        self.running.shutdown().await;
    }
}

/// The flag's values only ever grow, as a client of the edge sees it.
async fn watch(ofrep: Ofrep, mut swaps: tokio::sync::watch::Receiver<u64>, fell: Arc<AtomicU64>) {
    let mut highest = String::new();
    let _ = swaps.wait_for(|swaps| *swaps > 0).await;
    loop {
        let answer = ofrep.one("f", &json!({})).await;
        let value = answer.json()["value"].as_str().unwrap_or_default().to_owned();
        // Once it has answered it always answers.
        if value < highest {
            fell.fetch_add(1, Ordering::Relaxed);
        }
        highest = highest.max(value);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn count(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Somebody who may do everything on a broker without users.
async fn operator(server: &NatsServer) -> jetstream::Context {
    let client = async_nats::ConnectOptions::new().retry_on_initial_connect();
    let client = client.connection_timeout(DEADLINE).connect(server.url()).await.unwrap();
    jetstream::ContextBuilder::new().timeout(DEADLINE).build(client)
}

async fn head_on(server: &NatsServer, namespace: &str) -> Option<SignedHead> {
    let jetstream = operator(server).await;
    let bucket = jetstream.get_key_value(bus::heads_bucket(namespace)).await.ok()?;
    let value = bucket.get(bus::token(ENVIRONMENT)).await.ok()??;
    serde_json::from_slice(&value).ok()
}

async fn head_is_at(server: &NatsServer, revision: u64) {
    until("the head on the broker being there", async || {
        match head_on(server, NAMESPACE).await.and_then(|head| head.claims()) {
            Some(head) if head.version.revision == revision => Ok(()),
            other => Err(format!("{:?}, waiting for {revision}", other.map(|head| head.version))),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_an_edge_over_the_broker_alone() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    // Without control's address: heads, blobs and news can come over the broker only.
    let follow = Follow { control_url: NOWHERE, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    for (variant, value) in [("two", "2"), ("three", "3"), ("four", "4")] {
        let before = count(&edge.counts().heads_announced);
        control.flag(variant).await;
        edge.serves(value).await;
        edge.has_heard_more_than(before).await;
    }
    assert!(count(&edge.counts().blobs) >= 4);

    // Control answers a report once it is committed.
    until("a receipt being answered", async || match count(&edge.counts().receipts) {
        0 => Err("none yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_broker_changes_arrive_over_http_and_writes_go_on() {
    let mut server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    let url = control.admin.url.clone();
    let follow = Follow { control_url: &url, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    server.kill().await;
    for (variant, value) in [("two", "2"), ("three", "3")] {
        control.flag(variant).await;
        edge.serves(value).await;
    }
    // It comes back, gets what it missed, and is used again.
    let before = edge.heads_of_the_broker();
    server.run().await;
    head_is_at(&server, control.revision().await).await;
    // The edge too finds it when its own wait is over; until then it asks over HTTP. It is there before
    // control or after it, so it hears the head or reads it.
    until("the edge having it from the broker", async || match edge.heads_of_the_broker() {
        now if now > before => Ok(()),
        now => Err(format!("{now} heads")),
    })
    .await;
    let before = count(&edge.counts().heads_announced);
    control.flag("four").await;
    edge.serves("4").await;
    edge.has_heard_more_than(before).await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_asks_over_http_however_busy_the_broker_keeps_it() {
    let server = NatsServer::start().await;
    // Control has another broker, so the edge's own has nothing for it but noise.
    let elsewhere = NatsServer::nowhere().await;
    let mut control = Control::start(elsewhere.broker()).await;
    let url = control.admin.url.clone();
    let often = Duration::from_millis(400);
    let follow = Follow { control_url: &url, broker: server.broker(), anti_entropy: often };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    let key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    let client = async_nats::ConnectOptions::new().connection_timeout(DEADLINE);
    let client = client.connect(server.url()).await.unwrap();
    let noise = tokio::spawn(async move {
        let snapshot = rules::head::BlobRef { digest: rules::blob::Digest([0; 32]), bytes: 1 };
        for revision in 1.. {
            let head = rules::head::Head {
                namespace: NAMESPACE.to_owned(),
                environment: "noise".to_owned(),
                version: Version { generation: 1, revision },
                snapshot: snapshot.clone(),
                client: None,
                previous: None,
                min_reader: 1,
                issued_at_ms: 0,
                epoch: 0,
            };
            let signed = serde_json::to_vec(&SignedHead::sign(&head, &key).unwrap()).unwrap();
            let subject = bus::head_subject(NAMESPACE, "noise");
            client.publish(subject, signed.into()).await.unwrap();
            client.flush().await.unwrap();
            // More often than an edge looks, so that there is always something new.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    until("the edge hearing the noise", async || match count(&edge.counts().heads_announced) {
        now if now > 10 => Ok(()),
        now => Err(format!("{now} announced")),
    })
    .await;
    for (variant, value) in [("two", "2"), ("three", "3")] {
        control.flag(variant).await;
        edge.serves(value).await;
    }
    noise.abort();
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_somebody_deletes_costs_an_interval() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    let url = control.admin.url.clone();
    let often = Duration::from_millis(300);
    let follow = Follow { control_url: &url, broker: server.broker(), anti_entropy: often };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    // What it serves may have come over HTTP.
    head_is_at(&server, control.revision().await).await;
    // A head that the broker loses, and nobody is told: the bucket is deleted, and control hears
    // nothing that would make it look.
    let jetstream = operator(&server).await;
    jetstream.delete_stream(bus::heads_stream(NAMESPACE)).await.unwrap();
    jetstream.delete_stream(bus::blobs_stream(NAMESPACE)).await.unwrap();
    control.flag("two").await;
    edge.serves("2").await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_lost_everything_is_filled_again() {
    let mut server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    let edge = |broker| Follow { control_url: NOWHERE, broker, anti_entropy: NEVER };
    let old = Edge::start(&control, edge(server.broker())).await;
    old.serves("1").await;
    control.flag("two").await;
    old.serves("2").await;
    server.kill().await;
    server.wipe();
    server.run().await;
    head_is_at(&server, control.revision().await).await;
    control.has_mended("bus-missing").await;
    // Head and blobs: a new edge that knows nothing and can ask nobody else.
    let new = Edge::start(&control, edge(server.broker())).await;
    new.serves("2").await;
    control.flag("three").await;
    old.serves("3").await;
    new.serves("3").await;
    old.stop().await;
    new.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_went_back_in_time_is_brought_forward_and_takes_no_edge_with_it() {
    let mut server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    let follow = || Follow { control_url: NOWHERE, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow()).await;
    edge.serves("1").await;
    let before = control.revision().await;
    head_is_at(&server, before).await;
    server.kill().await;
    let kept = server.keep_store();
    server.run().await;
    control.flag("two").await;
    control.flag("three").await;
    edge.serves("3").await;
    let served = edge.serving().unwrap();
    assert!(served.revision > before);

    // Control is away, so that the edge really meets the old head.
    control.stop().await;
    server.kill().await;
    server.roll_back(kept.path());
    server.run().await;
    let read = count(&edge.counts().heads_read);
    until("the edge reading the old head", async || match count(&edge.counts().heads_read) {
        now if now > read => Ok(()),
        now => Err(format!("{now} read")),
    })
    .await;
    head_is_at(&server, before).await;
    assert_eq!(edge.serving(), Some(served), "it does not go back");
    assert_eq!(edge.ofrep.one("f", &json!({})).await.json()["value"], "3");

    control.start_again(server.broker()).await;
    head_is_at(&server, served.revision).await;
    control.has_mended("bus-older").await;
    control.flag("four").await;
    edge.serves("4").await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn control_and_edge_may_start_before_the_broker() {
    let mut server = NatsServer::nowhere().await;
    let mut control = Control::start(server.broker()).await;
    let follow = Follow { control_url: NOWHERE, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    control.flag("two").await;
    assert_eq!(edge.serving(), None);
    server.run().await;
    edge.serves("2").await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_blob_on_the_broker_is_refused_and_fetched_over_http() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    head_is_at(&server, control.revision().await).await;
    let head = head_on(&server, NAMESPACE).await.unwrap().claims().unwrap();
    let jetstream = operator(&server).await;
    let subject = bus::blob_part_subject(NAMESPACE, head.snapshot.digest, 0);
    let stream = jetstream.get_stream(bus::blobs_stream(NAMESPACE)).await.unwrap();
    let right = stream.direct_get_last_for_subject(subject.as_str()).await.unwrap();
    let mut wrong = right.payload.to_vec();
    wrong[right.payload.len() / 2] ^= 1;
    jetstream.publish(subject, wrong.into()).await.unwrap().await.unwrap();

    // An edge that is not yet let in at the broker asks control, so control is out of reach until
    // the broker's blob has been looked at.
    let address = control.admin.url.strip_prefix("http://").unwrap().parse().unwrap();
    let to_control = Proxy::before(address).await;
    to_control.set(Link::Broken);
    let url = format!("http://{}", to_control.address);
    let follow = Follow { control_url: &url, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    until("the damaged blob being refused", async || {
        match (count(&edge.counts().blobs_damaged), count(&edge.counts().blobs_behind)) {
            (1.., 1..) => Ok(()),
            (damaged, behind) => Err(format!("{damaged} damaged, {behind} asked of control")),
        }
    })
    .await;
    assert_eq!(edge.serving(), None);
    to_control.set(Link::Whole);
    edge.serves("1").await;
    assert!(count(&edge.counts().blobs) >= 1, "the client snapshot, which is whole");
    edge.stop().await;

    // Control finds it when it looks at its blobs, which it does first of all.
    control.stop().await;
    control.start_again(server.broker()).await;
    let follow = || Follow { control_url: NOWHERE, broker: server.broker(), anti_entropy: NEVER };
    until("the blob being mended", async || {
        let subject = bus::blob_part_subject(NAMESPACE, head.snapshot.digest, 0);
        match stream.direct_get_last_for_subject(subject).await {
            Ok(message) if message.payload == right.payload => Ok(()),
            other => Err(format!("{} bytes", other.map_or(0, |message| message.payload.len()))),
        }
    })
    .await;
    let edge = Edge::start(&control, follow()).await;
    edge.serves("1").await;
    assert_eq!(count(&edge.counts().blobs_damaged), 0);
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_behind_the_broker_is_reported_and_moves_no_head_back() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    head_is_at(&server, control.revision().await).await;
    control.stop().await;
    let backup = tempfile::tempdir().unwrap();
    let files: Vec<PathBuf> =
        std::fs::read_dir(control.data()).unwrap().map(|entry| entry.unwrap().path()).collect();
    for file in &files {
        std::fs::copy(file, backup.path().join(file.file_name().unwrap())).unwrap();
    }
    control.start_again(server.broker()).await;
    control.flag("two").await;
    control.flag("three").await;
    let newest = control.revision().await;
    head_is_at(&server, newest).await;
    let there = head_on(&server, NAMESPACE).await.unwrap();
    control.stop().await;
    // The database is restored from the backup.
    std::fs::remove_dir_all(control.data()).unwrap();
    std::fs::create_dir(control.data()).unwrap();
    for file in &files {
        let name = file.file_name().unwrap();
        std::fs::copy(backup.path().join(name), control.data().join(name)).unwrap();
    }
    control.start_again(server.broker()).await;
    assert!(control.revision().await < newest);
    until("control saying that the broker is ahead", async || {
        match control.metric("tidegate_control_bus_heads_ahead").await {
            1.0 => Ok(()),
            other => Err(other.to_string()),
        }
    })
    .await;
    until("the head being there, and left as it is", async || {
        match head_on(&server, NAMESPACE).await {
            Some(head) if head == there => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    // Until the database has passed it: its own snapshot of the same version is not the broker's.
    while control.revision().await < newest {
        control.flag("four").await;
        control.flag("one").await;
    }
    control.flag("two").await;
    control.flag("four").await;
    head_is_at(&server, control.revision().await).await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_that_is_deleted_loses_its_head_on_the_broker() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    head_is_at(&server, control.revision().await).await;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/environments");
    control.admin.post(&path, &json!({ "key": "short_lived" })).await.ok();
    let there = async || {
        let jetstream = operator(&server).await;
        let bucket = jetstream.get_key_value(bus::heads_bucket(NAMESPACE)).await;
        let bucket = bucket.map_err(|error| error.to_string())?;
        let head = bucket.get(bus::token("short_lived")).await;
        head.map(|head| head.is_some()).map_err(|error| error.to_string())
    };
    until("the new head being there", async || match there().await? {
        true => Ok(()),
        false => Err("not there".to_owned()),
    })
    .await;
    let delete = control.admin.request(http::Method::DELETE, &format!("{path}/short_lived"));
    e2e::http::send(delete.header("if-match", "*")).await.ok();
    until("the head being gone", async || match there().await? {
        false => Ok(()),
        true => Err("still there".to_owned()),
    })
    .await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_of_several_parts_and_its_id_list_travel_over_the_broker() {
    let server = NatsServer::start().await;
    let mut control = Control::start(server.broker()).await;
    let path = format!("{}/segments", control.admin.environment_path());
    control.admin.post(&path, &json!({ "key": "vips" })).await.ok();
    // 60,000 ids of 16 bytes: two parts.
    let ids: String = (0..60_000).map(|id| format!("user-{id}\n")).collect();
    let put = control.admin.request(http::Method::PUT, &format!("{path}/vips/included"));
    let put = put.header("content-type", "text/plain").header("if-match", "*");
    e2e::http::send(put.body(ids)).await.ok();
    let config = json!({ "enabled": true, "fallthrough": { "variant": "one" },
        "rules": [{ "id": "vips", "when": { "segment": "vips" }, "serve": { "variant": "two" } }] });
    control.admin.configure("f", &config).await.ok();
    let follow = Follow { control_url: NOWHERE, broker: server.broker(), anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    edge.watching.abort();
    edge.has_a_snapshot().await;
    edge.ofrep.serves("f", &json!({ "targetingKey": "user-59999" }), &json!("2")).await;
    edge.ofrep.serves("f", &json!({ "targetingKey": "user-60000" }), &json!("1")).await;
    edge.stop().await;
    control.stop().await;
}

/// A broker with the example configuration, and control on it as its user.
async fn guarded() -> (NatsServer, Control) {
    let mut server = NatsServer::nowhere().await;
    let control = Control::start(server.broker_as("control", "hunter-control")).await;
    guard(&mut server, &control).await;
    (server, control)
}

async fn guard(server: &mut NatsServer, control: &Control) {
    let key_id = ApiKey::parse(&control.edge_key).unwrap().id;
    server.configure(
        workspace().join("deploy/nats.conf"),
        &[
            ("TIDEGATE_NATS_CONTROL_PASSWORD", "hunter-control"),
            ("TIDEGATE_NATS_EDGE_PASSWORD", "hunter-edge"),
            ("TIDEGATE_NATS_EDGE_RECEIPTS", &bus::receipts_subject(&key_id)),
        ],
    );
    server.run().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_the_broker_keeps_from_an_edge_is_followed_over_http() {
    let mut server = NatsServer::nowhere().await;
    let mut control = Control::start(server.broker_as("control", "hunter-control")).await;
    let mut other = control.admin.clone();
    other.namespace = "other".to_owned();
    let (other_key, ..) = furnish(&other).await;
    let definition =
        json!({ "key": "g", "type": "integer", "variants": { "one": 1, "two": 2, "three": 3 } });
    let serving = |variant| json!({ "enabled": true, "fallthrough": { "variant": variant } });
    other.flag(&definition, &serving("one")).await;
    // Its key lets it see both namespaces, its user on the broker only one.
    let made = json!({ "namespaces": ["demo", "other"], "name": "both" });
    let made = control.admin.post("/api/v1/edge-keys", &made).await.ok().json();
    control.edge_key = made["key"].as_str().unwrap().to_owned();
    guard(&mut server, &control).await;
    let (broker, url) = (server.broker_as("edge-demo", "hunter-edge"), control.admin.url.clone());
    let follow = Follow { control_url: &url, broker, anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    let there = Ofrep::new(&edge.ofrep.url, &other_key);
    until("the other namespace being served", async || {
        match edge.running.serving("other", ENVIRONMENT) {
            Some(_) => Ok(()),
            None => Err("not yet".to_owned()),
        }
    })
    .await;
    there.serves("g", &json!({}), &json!(1)).await;
    // All that may have come over HTTP.
    until("the edge being let in at the broker", async || match edge.heads_of_the_broker() {
        0 => Err("it has nothing from there".to_owned()),
        _ => Ok(()),
    })
    .await;
    for (variant, value) in [("two", 2), ("three", 3)] {
        other.configure("g", &serving(variant)).await.ok();
        there.serves("g", &json!({}), &json!(value)).await;
        let before = count(&edge.counts().heads_announced);
        let (ours, shown) = if value == 2 { ("two", "2") } else { ("three", "3") };
        control.flag(ours).await;
        edge.serves(shown).await;
        // Its own news comes over the broker.
        edge.has_heard_more_than(before).await;
    }
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_an_edge_needs_works_under_the_example_configuration() {
    let (server, mut control) = guarded().await;
    let broker = server.broker_as("edge-demo", "hunter-edge");
    let follow = Follow { control_url: NOWHERE, broker, anti_entropy: NEVER };
    let edge = Edge::start(&control, follow).await;
    edge.serves("1").await;
    let before = count(&edge.counts().heads_announced);
    control.flag("two").await;
    edge.serves("2").await;
    edge.has_heard_more_than(before).await;
    // Another one finds on the broker what this one was told.
    let broker = server.broker_as("edge-demo", "hunter-edge");
    let follow = Follow { control_url: NOWHERE, broker, anti_entropy: NEVER };
    let other = Edge::start(&control, follow).await;
    other.serves("2").await;
    assert!(count(&other.counts().heads_read) > 0);
    other.stop().await;
    until("a receipt being answered", async || match count(&edge.counts().receipts) {
        0 => Err("none yet".to_owned()),
        _ => Ok(()),
    })
    .await;
    edge.stop().await;
    control.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_user_can_neither_write_nor_see_another_namespace() {
    let (server, mut control) = guarded().await;
    let mut other = control.admin.clone();
    other.namespace = "other".to_owned();
    furnish(&other).await;
    // As control, which shows that what is denied below is there to be had.
    let login = |user: &str, password: &str| {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
            .custom_inbox_prefix(bus::inbox_prefix(user))
            .connection_timeout(DEADLINE)
    };
    let trusted = login("control", "hunter-control").connect(server.url()).await.unwrap();
    let subjects = |namespace: &str| {
        let stream = bus::heads_stream(namespace);
        let head = bus::head_subject(namespace, ENVIRONMENT);
        [
            (format!("$JS.API.STREAM.INFO.{stream}"), String::new()),
            (format!("$JS.API.DIRECT.GET.{stream}.{head}"), String::new()),
            (format!("$JS.API.DIRECT.GET.{stream}"), json!({ "last_by_subj": head }).to_string()),
            (format!("$JS.API.DIRECT.GET.{stream}"), json!({ "seq": 1 }).to_string()),
            (
                format!("$JS.API.STREAM.MSG.GET.{stream}"),
                json!({ "last_by_subj": head }).to_string(),
            ),
        ]
    };
    // Answered with what was asked for: neither an error of JetStream nor an empty status.
    let ask = async |client: &async_nats::Client, subject: &str, body: &str| {
        let answer = client.request(subject.to_owned(), body.to_owned().into()).await;
        answer.is_ok_and(|answer| {
            let text = String::from_utf8_lossy(&answer.payload).into_owned();
            answer.status.is_none() && !text.is_empty() && !text.contains("\"error\"")
        })
    };
    until("the other namespace's head being there", async || {
        let (subject, body) = &subjects("other")[1];
        match ask(&trusted, subject, body).await {
            true => Ok(()),
            false => Err(subject.clone()),
        }
    })
    .await;
    for (subject, body) in subjects("other") {
        if subject.ends_with("KV_heads_other") && body.contains("last_by_subj") {
            continue; // In a direct get this server takes it as a part of the subject only.
        }
        assert!(ask(&trusted, &subject, &body).await, "control cannot ask {subject} {body}");
    }

    // What is denied is not answered at all; that all is asked at once takes this long.
    let patient = login("edge-demo", "hunter-edge").request_timeout(Some(DEADLINE));
    let patient = patient.connect(server.url()).await.unwrap();
    assert!(ask(&patient, &subjects("demo")[0].0, "").await, "it is let in at all");
    assert!(ask(&patient, &subjects("demo")[1].0, "").await, "it may read its own head");
    let edge = login("edge-demo", "hunter-edge").request_timeout(Some(Duration::from_secs(5)));
    let edge = edge.connect(server.url()).await.unwrap();
    let mut denied: Vec<(String, String)> = subjects("other").to_vec();
    // Not its own either, in ways in which the broker does not see what is asked for.
    denied.extend_from_slice(&subjects("demo")[2..]);
    for request in [
        "STREAM.NAMES",
        "STREAM.LIST",
        "INFO",
        "STREAM.CREATE.KV_heads_demo",
        "STREAM.UPDATE.KV_heads_demo",
        "STREAM.DELETE.KV_heads_demo",
        "STREAM.PURGE.KV_heads_demo",
        "STREAM.PURGE.BLOBS_demo",
        "CONSUMER.CREATE.KV_heads_other",
        "CONSUMER.CREATE.KV_heads_demo",
        "CONSUMER.NAMES.KV_heads_demo",
    ] {
        denied.push((format!("$JS.API.{request}"), String::new()));
    }
    // A write would be acknowledged.
    let digest = rules::blob::Digest::of(b"forged");
    for subject in [
        bus::head_subject("demo", ENVIRONMENT),
        bus::head_subject("other", ENVIRONMENT),
        bus::head_subject("demo", "new"),
        bus::blob_part_subject("demo", digest, 0),
        bus::receipts_subject("another0"),
    ] {
        denied.push((subject, "forged".to_owned()));
    }
    let before = head_as(&trusted, "demo").await;
    let asked = denied.iter().map(|(subject, body)| ask(&edge, subject, body));
    let allowed = futures_util::future::join_all(asked).await;
    for ((subject, body), allowed) in denied.iter().zip(allowed) {
        assert!(!allowed, "an edge may ask {subject} {body}");
    }
    assert_eq!(head_as(&trusted, "demo").await, before);

    // It hears its own news and no other's, nor another's replies.
    use futures_util::StreamExt as _;
    let mut own = edge.subscribe(bus::head_subjects("demo")).await.unwrap();
    let mut foreign = Vec::new();
    for subject in
        [&*bus::head_subjects("other"), "$KV.>", ">", "_INBOX.>", "_INBOX_control.>", bus::RECEIPTS]
    {
        foreign.push(edge.subscribe(subject.to_owned()).await.unwrap());
    }
    edge.flush().await.unwrap();
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let definition = json!({ "key": "f", "type": "boolean", "variants": { "on": true } });
    other.flag(&definition, &config).await;
    let newest = other.get(&other.environment_path()).await.ok().json()["revision"].clone();
    until("the other namespace's head being published", async || {
        match head_as(&trusted, "other").await.and_then(|head| head.claims()) {
            Some(head) if json!(head.version.revision) == newest => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    control.flag("two").await;
    let news = tokio::time::timeout(e2e::http::DEADLINE, own.next()).await.unwrap().unwrap();
    assert_eq!(news.subject.as_str(), bus::head_subject("demo", ENVIRONMENT));
    // What came for the others was sent before that, on the same connection.
    for subscription in &mut foreign {
        use futures_util::FutureExt as _;
        assert!(subscription.next().now_or_never().flatten().is_none(), "heard what it must not");
    }
    control.stop().await;
}

async fn head_as(client: &async_nats::Client, namespace: &str) -> Option<SignedHead> {
    let stream = jetstream::new(client.clone()).get_stream(bus::heads_stream(namespace)).await;
    let subject = bus::head_subject(namespace, ENVIRONMENT);
    let message = stream.ok()?.direct_get_last_for_subject(subject).await.ok()?;
    serde_json::from_slice(&message.payload).ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binaries_speak_over_a_guarded_broker_and_log_no_password() {
    let (server, control) = guarded().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    std::fs::write(&file, "hunter-edge\n").unwrap();
    let log = folder.path().join("log");
    let trust = control.trust.to_string();
    let (url, file) = (server.url(), file.to_str().unwrap().to_owned());
    let arguments = [
        "edge",
        "--listen",
        "127.0.0.1:0",
        "--control-url",
        NOWHERE,
        "--trust",
        &trust,
        "--nats-url",
        &url,
        "--nats-user",
        "edge-demo",
        "--nats-password-file",
        &file,
        "--nats-namespaces",
        NAMESPACE,
        "--log",
        // Not of everything: compiling the evaluator says a lot.
        "info,edge=trace,tidegate=trace,async_nats=trace",
    ];
    let settings = [("TIDEGATE_EDGE_KEY", &*control.edge_key)];
    let edge = Process::start_logging(&arguments, &settings, &log).await;
    let ofrep = Ofrep::new(&edge.text("edge_url"), &control.server_key);
    ofrep.serves("f", &json!({}), &json!("1")).await;
    control.flag("two").await;
    ofrep.serves("f", &json!({}), &json!("2")).await;
    edge.kill().await;
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("connected to the broker"), "{log}");
    assert!(!log.contains("hunter"), "the password is in the log");
    assert!(!log.contains(&control.edge_key), "the edge's key is in the log");
}
