//! What control knows of its edges: which serves what, and when a change is live everywhere.

use e2e::http::{Answer, send, until};
use e2e::world::World;
use serde_json::{Value, json};

fn flag(value: bool) -> Value {
    json!({ "key": "f", "type": "boolean", "variants": { "only": value } })
}

fn on() -> Value {
    json!({ "enabled": true, "fallthrough": { "variant": "only" } })
}

/// A change of the flag that waits for the fleet.
async fn set(world: &World, value: bool, query: &str) -> Answer {
    let path = format!("/api/v1/namespaces/{}/flags/f?{query}", world.admin.namespace);
    let request = world.admin.request(http::Method::PUT, &path);
    send(request.header("if-match", "*").json(&flag(value))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_waits_answers_when_every_edge_serves_it() {
    let world = World::start().await;
    world.admin.flag(&flag(false), &on()).await;
    let ofrep = world.ofrep();
    ofrep.serves("f", &json!({}), &json!(false)).await;
    has_reported(&world).await;
    for value in [true, false, true] {
        let answer = set(&world, value, "wait=live&timeout=50").await.ok();
        assert_eq!(answer.header("tidegate-live"), "live=?1, serving=1, edges=1");
        // At once: no waiting here.
        assert_eq!(ofrep.one("f", &json!({})).await.json()["value"], value);
    }
    assert_eq!(set(&world, false, "").await.ok().header("tidegate-live"), "", "nobody asked");
    world.stop().await;
}

/// Who waits for all edges waits for those that control has heard of.
async fn has_reported(world: &World) {
    until("the edge having reported", async || {
        let edges = world.admin.get("/api/v1/edges").await.ok();
        if edges.text.contains("edge-1") { Ok(()) } else { Err(edges.text) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_does_not_wait_for_ever_for_an_edge_that_is_gone() {
    let mut world = World::start().await;
    world.admin.flag(&flag(false), &on()).await;
    has_reported(&world).await;
    set(&world, true, "wait=live&timeout=50").await.ok();
    world.stop_edge().await;
    let answer = set(&world, false, "wait=live&timeout=1").await.ok();
    assert!(answer.header("tidegate-live").starts_with("live=?0, "), "{:?}", answer.headers);
    let path = format!("{}/edges", world.admin.environment_path());
    until("the edge being behind what is published", async || {
        let edges = world.admin.get(&path).await.ok().json();
        let is = edges["items"][0]["status"] == "behind";
        if is { Ok(()) } else { Err(edges.to_string()) }
    })
    .await;
    let environment = world.admin.get(&world.admin.environment_path()).await.ok().json();
    assert_eq!(environment["live"]["everywhere"], false, "{environment}");
    assert_eq!(environment["live"]["edges"], 1, "{environment}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edges_are_listed_with_what_they_serve() {
    let world = World::start().await;
    world.admin.flag(&flag(false), &on()).await;
    has_reported(&world).await;
    set(&world, true, "wait=live&timeout=50").await.ok();
    let edges = world.admin.get("/api/v1/edges").await.ok().json();
    let items = edges["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{edges}");
    assert_eq!(items[0]["edge"], "edge-1");
    let of = &items[0]["environments"][0];
    assert_eq!(of["status"], "live", "{edges}");
    assert_eq!(of["revision"], of["publishedRevision"], "{edges}");
    assert_eq!(of["digest"].as_str().map(str::len), Some(64), "{edges}");
    let environment = world.admin.get(&world.admin.environment_path()).await.ok().json();
    let live = json!({ "everywhere": true, "edges": 1, "serving": 1, "rejected": 0 });
    assert_eq!(environment["live"], live);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_for_something_else_or_too_long_is_refused_before_anything_is_written() {
    let world = World::start().await;
    world.admin.flag(&flag(false), &on()).await;
    let before = world.admin.get(&world.admin.environment_path()).await.ok().json();
    for query in ["wait=published", "wait=live&timeout=61", "wait=live&timeout=0", "timeout=x"] {
        let answer = set(&world, true, query).await;
        assert!((400..500).contains(&answer.status), "{query}: {}", answer.text);
    }
    let after = world.admin.get(&world.admin.environment_path()).await.ok().json();
    assert_eq!(before["revision"], after["revision"]);
    world.stop().await;
}
