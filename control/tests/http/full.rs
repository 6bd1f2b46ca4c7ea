//! A disk that is full under the embedded database: what is refused, what still answers, what is there
//! afterwards. (PostgreSQL's own disk is another machine's: it says 53100, which is told apart in `store.rs`.)

use std::time::Duration;

use control::config::Config;
use control::store::Database;
use control::store::query::{query, query_scalar};
use serde_json::{Value, json};

use crate::world::{World, read};

const FLAGS: &str = "/api/v1/namespaces/ours/flags";
const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

/// On SQLite, wherever the other tests run, and writing little of its own accord.
async fn world() -> World {
    let sqlite = |config: &mut Config| {
        config.database = Database::Sqlite(config.data_dir.join("full.sqlite"));
        config.reconcile = Duration::from_secs(3600);
    };
    World::with(tempfile::tempdir().expect("a folder"), sqlite).await
}

async fn pages(world: &World) -> i64 {
    let mut read = world.control.store.read().await.expect("a read");
    query_scalar("PRAGMA page_count").fetch_one(&mut read).await.expect("a count")
}

const NO_LIMIT: i64 = 1_000_000;

/// So long may the file become. The limit is the writing connection's, and goes with it.
async fn limit(world: &World, pages: i64) {
    let mut tx = world.control.store.write().await.expect("a write");
    let limit = format!("PRAGMA max_page_count = {pages}");
    query(Box::leak(limit.into_boxed_str())).execute(&mut tx).await.expect("a limit");
    tx.commit().await.expect("committed");
}

/// Some fifty pages.
fn big(key: &str) -> Value {
    let long = "x".repeat(8_000);
    let variants: serde_json::Map<String, Value> =
        (0..25).map(|at| (format!("v{at}"), json!(format!("{at}{long}")))).collect();
    json!({ "key": key, "type": "string", "variants": variants })
}

async fn audited(world: &World) -> i64 {
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit/verify").await;
    assert_eq!(audit["valid"], true, "{audit}");
    audit["rows"].as_i64().expect("rows")
}

#[tokio::test]
async fn a_write_that_finds_the_disk_full_is_refused_whole_and_done_once_there_is_room() {
    let world = world().await;
    world.namespace("ours").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let on = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    assert_eq!(world.put(&format!("{PLACE}/flags/f"), on).await.0, 200);
    let edge = world.edge_key(json!(["ours"])).await;
    let before = world.published("ours").await;
    let (rows, heads) = (audited(&world).await, world.heads(&edge).await);

    let send = || world.ask("POST", FLAGS).header("idempotency-key", "k").json(&big("big"));
    // More than once: what a refused write leaves behind must not be in the next one's way.
    for round in 0..3 {
        limit(&world, pages(&world).await).await;
        let (status, body) = read(send()).await;
        assert_eq!(status, 507, "round {round}: {body}");
        assert_eq!(body["type"], "urn:tidegate:problem:storage-full", "{body}");
        let detail = body["detail"].as_str().expect("a detail");
        assert!(detail.contains("disk is full") && detail.contains("make room"), "{detail}");

        // The old state is read, evaluated and given to edges.
        assert_eq!(world.get(&format!("{FLAGS}/f")).await.0, 200);
        assert_eq!(world.get(&format!("{FLAGS}/big")).await.0, 404);
        let asked = json!({ "context": {} });
        let (status, answer) = world.post(&format!("{PLACE}/evaluate"), asked).await;
        assert_eq!((status, &answer["results"][0]["value"]), (200, &json!(true)), "{answer}");
        assert_eq!(world.heads(&edge).await, heads);
        let (_, place) = world.get(PLACE).await;
        assert_eq!((&place["revision"], audited(&world).await), (&json!(before), rows), "{place}");
    }

    limit(&world, NO_LIMIT).await;
    // The refused ones did not use up the key.
    let (status, body) = read(send()).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(world.published("ours").await, before + 1);
    assert_eq!(audited(&world).await, rows + 1);
    let (status, again) = read(send()).await;
    assert_eq!((status, &again["key"]), (201, &json!("big")), "{again}");
    assert_eq!(audited(&world).await, rows + 1, "it was done once");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_was_written_before_the_disk_was_full_is_published_once_there_is_room() {
    let world = world().await;
    world.namespace("ours").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    world.published("ours").await;
    let mut written = 0;
    // Room for some writes, then for none; the publisher's own write may be the one that is refused.
    let most = pages(&world).await + 200;
    for at in 0..100 {
        limit(&world, most).await;
        match world.post(FLAGS, big(&format!("big{at}"))).await {
            (201, _) => written += 1,
            (507, _) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!((1..100).contains(&written), "{written} were written");
    limit(&world, NO_LIMIT).await;
    let (_, place) = world.get(PLACE).await;
    assert_eq!(world.published("ours").await, place["revision"], "nothing was lost or made up");
    let (_, page) = world.get(&format!("{FLAGS}?limit=200")).await;
    assert_eq!(page["items"].as_array().map(Vec::len), Some(written + 1));
    audited(&world).await;
    world.control.shutdown().await;
}
