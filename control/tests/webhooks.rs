//! Webhooks, told to real HTTP receivers that check signatures with the standard's own library.

mod world;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use control::anchors::Due;
use control::config::Config;
use control::outgoing::Reach;
use control::store::query::{query, query_scalar};
use control::vault::{ADDED_BYTES, Vault};
use control::webhooks::{forget_secrets, seal_plain};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::time::Instant;

use world::{PATIENCE, World, read};

const HOOKS: &str = "/api/v1/namespaces/ours/webhooks";

#[derive(Debug, Clone)]
struct Got {
    id: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Got {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    fn is_signed_with(&self, secret: &str) -> bool {
        Webhook::new(secret).expect("a secret").verify(&self.body, &self.headers).is_ok()
    }
}

/// What a receiver does with the next request.
#[derive(Debug, Clone, Copy)]
enum Answer {
    Status(u16),
    Redirect,
    /// Nothing, ever.
    Silence,
}

#[derive(Default)]
struct Inbox {
    got: Mutex<Vec<Got>>,
    /// 204 once there are none left.
    next: Mutex<VecDeque<Answer>>,
}

#[derive(Clone)]
struct Receiver {
    inbox: Arc<Inbox>,
    url: String,
}

async fn take(State(inbox): State<Arc<Inbox>>, headers: HeaderMap, body: Bytes) -> Response {
    let id = headers.get("webhook-id").and_then(|id| id.to_str().ok()).unwrap_or("?").to_owned();
    inbox.got.lock().unwrap().push(Got { id, headers, body });
    let answer = inbox.next.lock().unwrap().pop_front();
    match answer {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(Answer::Status(status)) => StatusCode::from_u16(status).unwrap().into_response(),
        Some(Answer::Redirect) => (StatusCode::FOUND, [("location", "/elsewhere")]).into_response(),
        Some(Answer::Silence) => std::future::pending().await,
    }
}

impl Receiver {
    async fn start() -> Receiver {
        let inbox = Arc::new(Inbox::default());
        let app = axum::Router::new()
            .route("/hook", axum::routing::post(take))
            .route("/elsewhere", axum::routing::any(take))
            .with_state(inbox.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/hook", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Receiver { inbox, url }
    }

    fn then(&self, answers: &[Answer]) {
        self.inbox.next.lock().unwrap().extend(answers);
    }

    fn got(&self) -> Vec<Got> {
        self.inbox.got.lock().unwrap().clone()
    }

    /// Once there are so many.
    async fn received(&self, count: usize) -> Vec<Got> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let got = self.got();
            if got.len() >= count {
                return got;
            }
            assert!(Instant::now() < deadline, "{} of {count}: {got:#?}", got.len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn quickly(config: &mut Config) {
    config.webhook_reach = Reach::Anywhere;
    config.webhook_schedule = vec![Duration::from_millis(20); 3].into();
    config.tick = Duration::from_millis(20);
}

async fn world() -> World {
    let world = World::with(tempfile::tempdir().expect("a folder"), quickly).await;
    world.namespace("ours").await;
    world
}

async fn hook(world: &World, body: Value) -> (String, String) {
    let (status, made) = world.post(HOOKS, body).await;
    assert_eq!(status, 201, "{made}");
    let text = |name: &str| made[name].as_str().expect("text").to_owned();
    (text("id"), text("secret"))
}

async fn deliveries(world: &World, id: &str) -> Vec<Value> {
    let (status, page) = world.get(&format!("{HOOKS}/{id}/deliveries?limit=200")).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().expect("deliveries").clone()
}

#[tokio::test]
async fn every_change_is_told_once_in_order_and_signed_as_the_standard_says() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let (id, secret) = hook(&world, json!({ "url": receiver.url })).await;
    for index in 0..12 {
        assert_eq!(world.flag("ours", &format!("f{index}")).await.0, 201);
    }
    let got = receiver.received(13).await;
    let kinds: Vec<Value> = got.iter().map(|got| got.json()["type"].clone()).collect();
    assert_eq!(kinds[0], "webhook.create", "its own making is the first that it is told of");
    assert!(kinds[1..].iter().all(|kind| kind == "flag.create"), "{kinds:?}");
    let sequences: Vec<i64> =
        got.iter().filter_map(|got| got.json()["data"]["sequence"].as_i64()).collect();
    assert_eq!(sequences, (3..=15).collect::<Vec<_>>());
    for got in &got {
        assert!(got.is_signed_with(&secret), "{got:?}");
        assert!(!got.is_signed_with("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"));
        assert!(got.body.len() < 20_000);
    }
    let event = got[5].json();
    assert_eq!(event["data"]["target"], "f4");
    assert_eq!(event["data"]["namespace"], "ours");
    assert_eq!(event["data"]["actor"]["kind"], "bootstrap");
    assert!(event["timestamp"].as_str().is_some_and(|at| at.ends_with('Z')), "{event}");
    // The audit says the same of it.
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?object=f4").await;
    assert_eq!(audit["items"][0]["hash"], event["data"]["hash"]);

    world
        .until(&format!("{HOOKS}/{id}/deliveries"), |page| {
            page["items"].as_array().is_some_and(|items| {
                items.len() == 13 && items.iter().all(|item| item["state"] == "delivered")
            })
        })
        .await;
    let ids: std::collections::BTreeSet<_> = got.iter().map(|got| got.id.clone()).collect();
    assert_eq!(ids.len(), 13);
    assert_eq!(receiver.got().len(), 13, "nothing was told twice");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_fails_is_sent_again_under_its_id_and_what_waits_behind_it_keeps_its_place() {
    let world = world().await;
    let receiver = Receiver::start().await;
    receiver.then(&[Answer::Status(500), Answer::Redirect, Answer::Status(404)]);
    let (id, secret) = hook(&world, json!({ "url": receiver.url })).await;
    for index in 0..3 {
        assert_eq!(world.flag("ours", &format!("f{index}")).await.0, 201);
    }
    let got = receiver.received(7).await;
    let first = &got[0].id;
    assert!(got[..4].iter().all(|got| got.id == *first), "one after the other: {got:#?}");
    assert!(got[4..].iter().all(|got| got.id != *first));
    let targets: Vec<Value> =
        got[4..].iter().map(|got| got.json()["data"]["target"].clone()).collect();
    assert_eq!(targets, ["f0", "f1", "f2"]);
    assert!(got.iter().all(|got| got.is_signed_with(&secret)));
    world
        .until(&format!("{HOOKS}/{id}/deliveries"), |page| {
            page["items"].as_array().is_some_and(|items| {
                items.len() == 4 && items.iter().all(|item| item["state"] == "delivered")
            })
        })
        .await;
    let listed = deliveries(&world, &id).await;
    let oldest = listed.last().expect("one");
    let statuses: Vec<Value> =
        oldest["log"].as_array().expect("a log").iter().map(|one| one["status"].clone()).collect();
    assert_eq!(statuses, [500, 302, 404, 204]);
    assert_eq!(oldest["attempts"], 4);
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_fails_to_the_end_is_kept_and_the_endpoint_rests_until_it_is_sent_anew() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let (id, secret) = hook(&world, json!({ "url": receiver.url, "actions": ["flag.*"] })).await;
    receiver.then(&[Answer::Status(503); 4]);
    assert_eq!(world.flag("ours", "f0").await.0, 201);
    let hook_path = format!("{HOOKS}/{id}");
    let shown = world.until(&hook_path, |hook| hook["enabled"] == false).await;
    assert_eq!(shown["disabledReason"], "4 attempts, the last answered 503");
    assert_eq!(world.flag("ours", "f1").await.0, 201);
    assert_eq!(receiver.got().len(), 4, "the schedule has three pauses");
    let listed = deliveries(&world, &id).await;
    assert_eq!((listed.len(), &listed[0]["state"]), (1, &json!("dead")), "{listed:?}");

    let delivery = listed[0]["id"].as_str().expect("an id");
    let (status, body) =
        world.post(&format!("{hook_path}/deliveries/{delivery}/redeliver"), json!({})).await;
    assert_eq!(status, 202, "{body}");
    // The redelivery itself is no change of a flag, so it is not told here.
    let got = receiver.received(6).await;
    assert_eq!(got[4].id, delivery);
    assert!(got[4].is_signed_with(&secret));
    assert_eq!(got[5].json()["data"]["target"], "f1");
    let shown = world.until(&hook_path, |hook| hook["enabled"] == true).await;
    assert_eq!(shown.get("disabledReason"), None);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_not_asked_again() {
    let world = world().await;
    let receiver = Receiver::start().await;
    receiver.then(&[Answer::Status(410)]);
    let (id, _) = hook(&world, json!({ "url": receiver.url })).await;
    let shown = world.until(&format!("{HOOKS}/{id}"), |hook| hook["enabled"] == false).await;
    assert!(shown["disabledReason"].as_str().is_some_and(|why| why.contains("410")), "{shown}");
    assert_eq!(receiver.got().len(), 1);
    world.control.shutdown().await;
}

#[tokio::test]
async fn while_a_secret_is_rotated_bodies_are_signed_with_both() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let wanted = json!({ "url": receiver.url, "actions": ["flag.create"] });
    let (id, first) = hook(&world, wanted).await;
    let rotate = format!("{HOOKS}/{id}/rotate");
    let (status, body) = world.post(&rotate, json!({ "overlapSeconds": 3600 })).await;
    assert_eq!(status, 200, "{body}");
    let second = body["secret"].as_str().expect("a secret").to_owned();
    assert!(body["overlapUntil"].is_string(), "{body}");
    assert_eq!(world.flag("ours", "f0").await.0, 201);
    let got = receiver.received(1).await;
    assert!(got[0].is_signed_with(&first) && got[0].is_signed_with(&second));

    let (_, body) = world.post(&rotate, json!({ "overlapSeconds": 0 })).await;
    let third = body["secret"].as_str().expect("a secret").to_owned();
    assert_eq!(world.flag("ours", "f1").await.0, 201);
    let got = receiver.received(2).await;
    assert!(got[1].is_signed_with(&third));
    assert!(!got[1].is_signed_with(&first) && !got[1].is_signed_with(&second));
    // No answer but that one shows a secret, also not the same request's.
    let (_, shown) = world.get(&format!("{HOOKS}/{id}")).await;
    assert!(!shown.to_string().contains("whsec_"), "{shown}");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit").await;
    assert!(!audit.to_string().contains("whsec_") && !audit.to_string().contains("/hook"));
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_was_under_way_when_control_stopped_is_sent_again_under_the_same_id() {
    let world = world().await;
    let receiver = Receiver::start().await;
    receiver.then(&[Answer::Silence]);
    let wanted = json!({ "url": receiver.url, "actions": ["flag.create"] });
    let (_, secret) = hook(&world, wanted).await;
    assert_eq!(world.flag("ours", "f0").await.0, 201);
    assert_eq!(world.flag("ours", "f1").await.0, 201);
    receiver.received(1).await;
    let World { control, dir, .. } = world;
    control.shutdown().await;
    assert_eq!(receiver.got().len(), 1);
    let world = World::with(dir, quickly).await;
    let got = receiver.received(3).await;
    assert_eq!(got[0].id, got[1].id);
    let targets: Vec<Value> = got.iter().map(|got| got.json()["data"]["target"].clone()).collect();
    assert_eq!(targets, ["f0", "f0", "f1"]);
    assert!(got.iter().all(|got| got.is_signed_with(&secret)));
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_endpoint_that_says_nothing_holds_up_no_other() {
    let world = world().await;
    let (silent, quick) = (Receiver::start().await, Receiver::start().await);
    silent.then(&[Answer::Silence; 4]);
    hook(&world, json!({ "url": silent.url, "actions": ["flag.create"] })).await;
    hook(&world, json!({ "url": quick.url, "actions": ["flag.create"] })).await;
    for index in 0..3 {
        assert_eq!(world.flag("ours", &format!("f{index}")).await.0, 201);
    }
    quick.received(3).await;
    let got = silent.received(1).await;
    assert!(got.iter().all(|one| one.id == got[0].id), "nothing is sent behind the first");
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_endpoint_is_told_of_what_it_asked_for() {
    let world = world().await;
    world.environment("ours", "staging").await;
    let receiver = Receiver::start().await;
    let wanted = json!({ "url": receiver.url, "actions": ["config.set", "webhook.test"],
        "environments": ["staging"] });
    let (id, secret) = hook(&world, wanted).await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    for environment in ["production", "staging"] {
        let path = format!("/api/v1/namespaces/ours/environments/{environment}/flags/f");
        assert_eq!(world.put(&path, config.clone()).await.0, 200);
    }
    let got = receiver.received(1).await;
    assert_eq!(got[0].json()["data"]["environment"], "staging");
    let (status, delivery) = world.post(&format!("{HOOKS}/{id}/test"), json!({})).await;
    assert_eq!(status, 202, "{delivery}");
    let got = receiver.received(2).await;
    assert_eq!(got[1].json()["type"], "webhook.test");
    assert_eq!(got[1].id, delivery["id"].as_str().expect("an id"));
    assert!(got[1].is_signed_with(&secret));
    assert_eq!(receiver.got().len(), 2);
    let sent = format!("{HOOKS}/{id}/deliveries/{}", got[1].id);
    let (_, shown) = world.get(&sent).await;
    assert_eq!(shown["body"].as_str().map(str::as_bytes), Some(&got[1].body[..]));
    world.control.shutdown().await;
}

#[tokio::test]
async fn signed_ends_of_the_audit_are_told_after_the_rows_that_they_are_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let world = World::with(folder, |config| {
        quickly(config);
        config.anchors = Due { rows: 1, age: Duration::from_millis(1) };
        config.reconcile = Duration::from_millis(20);
    })
    .await;
    world.namespace("ours").await;
    let receiver = Receiver::start().await;
    let (_, secret) = hook(&world, json!({ "url": receiver.url })).await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let deadline = Instant::now() + PATIENCE;
    let anchor = loop {
        let got = receiver.got();
        let of_f = |got: &&Got| {
            got.json()["type"] == "audit.anchor" && got.json()["data"]["sequence"] == 4
        };
        if let Some(anchor) = got.iter().find(of_f) {
            break anchor.clone();
        }
        assert!(Instant::now() < deadline, "{got:#?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(anchor.is_signed_with(&secret));
    let signed: control::anchors::SignedAnchor =
        serde_json::from_value(anchor.json()["data"].clone()).expect("an anchor");
    let claims =
        signed.verify(std::slice::from_ref(&world.control.public_key)).expect("it is signed");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?object=f").await;
    assert_eq!((claims.sequence, json!(claims.hash)), (4, audit["items"][0]["hash"].clone()));
    let order: Vec<(i64, bool)> = receiver
        .got()
        .iter()
        .map(|got| {
            let event = got.json();
            (event["data"]["sequence"].as_i64().expect("a number"), event["type"] == "audit.anchor")
        })
        .collect();
    for (at, (sequence, is_anchor)) in order.iter().enumerate().filter(|(_, (_, is))| *is) {
        assert!(*is_anchor);
        let later = order[at..].iter().any(|(row, is_anchor)| !is_anchor && row <= sequence);
        assert!(!later, "{order:?}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_address_that_is_not_public_is_refused_unless_control_was_told_otherwise() {
    let world = World::new().await;
    world.namespace("ours").await;
    for url in ["http://example.com/", "https://127.0.0.1/", "https://169.254.169.254/", "nonsense"]
    {
        let (status, body) = world.post(HOOKS, json!({ "url": url })).await;
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/url")), "{url}: {body}");
    }
    // A name that means this machine is found out when it is looked up.
    let (status, made) = world.post(HOOKS, json!({ "url": "https://localhost/hook" })).await;
    assert_eq!(status, 201, "{made}");
    let id = made["id"].as_str().expect("an id");
    let page = world
        .until(&format!("{HOOKS}/{id}/deliveries"), |page| {
            page["items"][0]["attempts"].as_i64().is_some_and(|attempts| attempts > 0)
        })
        .await;
    assert_eq!(page["items"][0]["log"][0]["error"], "the name has no public address", "{page}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_webhook_is_changed_at_its_version_and_has_limits() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let (id, _) = hook(&world, json!({ "url": receiver.url, "enabled": false })).await;
    let path = format!("{HOOKS}/{id}");
    let patch = |version: &str| {
        world
            .ask("PATCH", &path)
            .header("if-match", version)
            .json(&json!({ "description": "ours" }))
    };
    assert_eq!(read(patch("\"7\"")).await.0, 412);
    let (status, body) = read(patch("\"1\"")).await;
    assert_eq!(
        (status, &body["description"], &body["url"]),
        (200, &json!("ours"), &json!(receiver.url))
    );
    assert_eq!(body["version"], 2);
    for bad in [
        json!({ "url": receiver.url, "actions": ["a b"] }),
        json!({ "url": receiver.url, "actions": [""] }),
        json!({ "url": receiver.url, "environments": ["prod*"] }),
        json!({ "url": receiver.url, "actions": vec!["x"; 101] }),
        json!({ "url": receiver.url, "secret": "mine" }),
    ] {
        assert_eq!(world.post(HOOKS, bad.clone()).await.0, 422, "{bad}");
    }
    for _ in 1..20 {
        hook(&world, json!({ "url": receiver.url, "enabled": false })).await;
    }
    let (status, body) = world.post(HOOKS, json!({ "url": receiver.url })).await;
    assert_eq!((status, &body["type"]), (422, &json!("urn:tidegate:problem:too-many")), "{body}");
    assert_eq!(world.delete(&path).await.0, 204);
    assert_eq!(world.get(&path).await.0, 404);
    assert_eq!(world.get(&format!("{path}/deliveries")).await.0, 404);
    world.control.shutdown().await;
}

fn bytes_of(secret: &str) -> Vec<u8> {
    use base64::Engine as _;
    let text = secret.strip_prefix("whsec_").expect("a secret");
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

async fn stored(world: &World) -> Vec<Vec<u8>> {
    let mut read = world.control.store.read().await.expect("a read");
    let all = query_scalar("SELECT secret FROM webhook ORDER BY id").fetch_all(&mut read).await;
    all.expect("secrets")
}

/// As a control from before there was a vault would have it.
async fn put_plain(world: &World, secret: &[u8]) {
    let mut tx = world.control.store.write().await.expect("a write");
    let put = query("UPDATE webhook SET secret = $1, secret_before = $1").bind(secret.to_vec());
    put.execute(&mut tx).await.expect("a statement");
    tx.commit().await.expect("a commit");
}

const NOWHERE: [std::path::PathBuf; 0] = [];

/// Where in the folder these bytes are.
fn holding(folder: &std::path::Path, bytes: &[u8]) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(holding(&path, bytes));
        } else if std::fs::read(&path).expect("a file").windows(bytes.len()).any(|at| at == bytes) {
            found.push(path);
        }
    }
    found
}

#[tokio::test]
async fn secrets_lie_sealed_and_what_lay_there_in_plain_is_sealed_by_the_next_start() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let wanted = json!({ "url": receiver.url, "actions": ["flag.create"] });
    let (_, secret) = hook(&world, wanted.clone()).await;
    let plain = bytes_of(&secret);
    assert_eq!(stored(&world).await[0].len(), plain.len() + ADDED_BYTES);
    assert_eq!(holding(world.dir.path(), &plain), NOWHERE);

    put_plain(&world, &plain).await;
    assert_eq!(stored(&world).await, [&plain[..]]);
    let World { control, dir, .. } = world;
    control.shutdown().await;
    // On PostgreSQL the folder holds no database.
    if !dir.path().join("postgres-url").exists() {
        assert_ne!(holding(dir.path(), &plain), NOWHERE, "the search finds what is there");
    }
    let world = World::with(dir, quickly).await;
    assert_eq!(stored(&world).await[0].len(), plain.len() + ADDED_BYTES);
    assert_eq!(world.flag("ours", "f0").await.0, 201);
    assert!(receiver.received(1).await[0].is_signed_with(&secret));

    // A sealed secret is its own endpoint's: in another's row it opens nothing.
    let (other, _) = hook(&world, wanted).await;
    let copy = "UPDATE webhook SET secret = (SELECT secret FROM webhook ORDER BY id LIMIT 1)";
    world.sql(copy).await;
    assert_eq!(world.flag("ours", "f1").await.0, 201);
    let page = world
        .until(&format!("{HOOKS}/{other}/deliveries"), |page| {
            page["items"][0]["attempts"].as_i64().is_some_and(|attempts| attempts > 0)
        })
        .await;
    let why = "the secret does not open with this control's secrets key; rotate it";
    assert_eq!(page["items"][0]["log"][0]["error"], why, "{page}");

    let World { control, dir, .. } = world;
    control.shutdown().await;
    assert_eq!(holding(dir.path(), &plain), NOWHERE, "nor what was written over");
}

#[tokio::test]
async fn replicas_that_seal_at_once_seal_everything_once() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let (id, secret) = hook(&world, json!({ "url": receiver.url, "enabled": false })).await;
    let plain = bytes_of(&secret);
    put_plain(&world, &plain).await;
    // More than two batches.
    let copies = world.sql(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < 230) \
         INSERT INTO webhook (id, namespace_id, url, description, actions, environments, secret, \
         secret_before, enabled, cursor, anchored, ordinal, version, created_by, created_at, updated_at) \
         SELECT id || '-' || CAST(n AS TEXT), namespace_id, url, description, actions, environments, \
         secret, secret_before, enabled, cursor, anchored, ordinal, version, created_by, created_at, \
         updated_at FROM webhook, numbers",
    );
    assert_eq!(copies.await, 230);
    let key = world.dir.path().join("secrets-key");
    let store = &world.control.store;
    let replicas = [
        Vault::open(store, &key).await.expect("the key"),
        Vault::open(store, &key).await.expect("the key"),
    ];
    let (one, two) = tokio::join!(seal_plain(store, &replicas[0]), seal_plain(store, &replicas[1]));
    assert_eq!(one.expect("sealed") + two.expect("sealed"), 231);
    for sealed in stored(&world).await {
        assert_eq!(sealed.len(), plain.len() + ADDED_BYTES);
    }
    let mut read = store.read().await.expect("a read");
    let copy = format!("{id}-17");
    let row =
        query_scalar::<Vec<u8>>("SELECT secret_before FROM webhook WHERE id = $1").bind(&copy);
    let sealed = row.fetch_one(&mut read).await.expect("a secret");
    drop(read);
    for replica in &replicas {
        assert_eq!(replica.unseal(&format!("webhook {copy}"), &sealed).expect("it opens"), plain);
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_control_with_another_secrets_key_or_none_does_not_start_and_says_what_mends_it() {
    let world = world().await;
    let receiver = Receiver::start().await;
    let (id, _) = hook(&world, json!({ "url": receiver.url, "actions": ["flag.create"] })).await;
    let World { control, dir, .. } = world;
    control.shutdown().await;
    let path = dir.path().join("secrets-key");
    let right = std::fs::read(&path).expect("the key");
    let refused = async || match control::start(World::config(&dir)).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    std::fs::write(&path, [9; 32]).expect("another key");
    let said = refused().await;
    for part in ["sealed with the key", "holds the key", "from a backup", "forget-secrets"] {
        assert!(said.contains(part), "{part:?} is not in {said:?}");
    }
    std::fs::write(&path, [9; 31]).expect("half a key");
    assert!(refused().await.contains("not 32 bytes"));
    std::fs::remove_file(&path).expect("it was there");
    let said = refused().await;
    assert!(said.contains("there is no key at") && said.contains("forget-secrets"), "{said}");
    assert!(!path.exists(), "none is made over what is sealed");

    // The right one in its place, and all is as it was.
    std::fs::write(&path, &right).expect("the key");
    let world = World::with(dir, quickly).await;
    assert_eq!(world.flag("ours", "f0").await.0, 201);
    receiver.received(1).await;
    // It has it before control has written down that it has.
    let deliveries = format!("{HOOKS}/{id}/deliveries");
    world.until(&deliveries, |page| page["items"][0]["state"] == "delivered").await;

    // Lost for good: the endpoint rests until it has another secret, and misses nothing.
    let World { control, dir, .. } = world;
    let store = control.store.clone();
    assert_eq!(forget_secrets(&store).await.expect("forgotten"), 1);
    control.shutdown().await;
    std::fs::remove_file(&path).expect("it was there");
    let world = World::with(dir, quickly).await;
    assert_ne!(std::fs::read(&path).expect("another key"), right);
    let place = format!("{HOOKS}/{id}");
    let (_, shown) = world.get(&place).await;
    assert!(shown["disabledReason"].as_str().is_some_and(|why| why.contains("rotate")), "{shown}");
    assert_eq!(world.flag("ours", "f1").await.0, 201);
    let (status, rotated) = world.post(&format!("{place}/rotate"), json!({})).await;
    assert_eq!(status, 200, "{rotated}");
    let secret = rotated["secret"].as_str().expect("a secret");
    let enable =
        world.ask("PATCH", &place).header("if-match", "*").json(&json!({ "enabled": true }));
    assert_eq!(read(enable).await.0, 200);
    let got = receiver.received(2).await;
    assert!(got[1].is_signed_with(secret), "{got:?}");
    assert_eq!(got[1].json()["data"]["target"], "f1");
    world.control.shutdown().await;
}
