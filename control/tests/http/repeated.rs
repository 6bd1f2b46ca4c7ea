//! `Idempotency-Key`: what is sent again is done once.

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::world::World;

const PATH: &str = "/api/v1/namespaces/ours/flags";

fn flag(key: &str) -> Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true } })
}

async fn send(world: &World, idempotency_key: &str, body: &Value) -> (u16, bool, String) {
    let request = world.ask("POST", PATH).header("idempotency-key", idempotency_key).json(body);
    let answer = request.send().await.expect("an answer");
    let replayed = answer.headers().contains_key("idempotency-replayed");
    (answer.status().as_u16(), replayed, answer.text().await.expect("a body"))
}

#[tokio::test]
async fn the_same_request_many_times_at_once_is_one_write_and_one_answer() {
    let world = World::new().await;
    world.namespace("ours").await;
    let body = flag("f");
    let answers = join_all((0..8).map(|_| send(&world, "k", &body))).await;
    let first = answers.iter().filter(|(_, replayed, _)| !replayed).count();
    assert_eq!(first, 1, "one was done, the others are its answer again: {answers:?}");
    for (status, _, text) in &answers {
        assert_eq!((*status, text), (201, &answers[0].2));
    }
    let (_, environment) = world.get("/api/v1/namespaces/ours/environments/production").await;
    assert_eq!(environment["revision"], 2, "one write: {environment}");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit/verify").await;
    assert_eq!(audit, json!({ "valid": true, "rows": 3 }));
    world.control.shutdown().await;
}

#[tokio::test]
async fn another_body_under_the_same_key_is_refused_and_a_failure_is_not_kept() {
    let world = World::new().await;
    world.namespace("ours").await;
    let bad = json!({ "key": "f", "type": "boolean", "variants": { "on": "text" } });
    assert_eq!(send(&world, "k", &bad).await.0, 422);
    // What was refused took nothing, not the key either: the corrected request may have it.
    let (status, replayed, text) = send(&world, "k", &flag("f")).await;
    assert_eq!((status, replayed), (201, false), "{text}");
    let (status, _, text) = send(&world, "k", &flag("g")).await;
    assert_eq!(status, 422, "{text}");
    assert!(text.contains("idempotency-key-reused"), "{text}");
    assert_eq!(world.get(&format!("{PATH}/g")).await.0, 404);
    assert_eq!(
        send(&world, "k", &flag("f")).await,
        (201, true, send(&world, "k", &flag("f")).await.2)
    );
    world.control.shutdown().await;
}

#[tokio::test]
async fn different_bodies_at_once_under_one_key_are_one_write_and_refusals() {
    let world = World::new().await;
    world.namespace("ours").await;
    let bodies: Vec<Value> = (0..6).map(|index| flag(&format!("f{index}"))).collect();
    let answers = join_all(bodies.iter().map(|body| send(&world, "k", body))).await;
    let mut statuses: Vec<u16> = answers.iter().map(|(status, ..)| *status).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 422, 422, 422, 422, 422], "{answers:?}");
    let (_, flags) = world.get(PATH).await;
    assert_eq!(flags["items"].as_array().map(Vec::len), Some(1), "{flags}");
    world.control.shutdown().await;
}
