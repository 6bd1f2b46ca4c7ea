//! Keys that are revoked, and what cannot be deleted while one might still be answered for.

use rules::head::{Receipt, Receipts, Version};
use serde_json::{Value, json};

use crate::world::{World, read};

const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

#[tokio::test]
async fn an_edge_whose_key_is_revoked_is_refused_at_once_everywhere() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.published("ours").await;
    let (key, id) = world.edge_key_with_id(json!(["ours"])).await;
    let (other, _) = world.edge_key_with_id(json!(["ours"])).await;
    let trusted = [world.control.public_key.clone()];
    let head = world.heads(&key).await.heads[0].verify(&trusted).expect("a head");
    let blob = format!("/edge/v1/blobs/{}", head.snapshot.digest);
    let ask = |key: &str| {
        let url = |path: &str| format!("{}{path}", world.url);
        let key = key.to_owned();
        let requests = [
            world.http.get(url("/edge/v1/heads")),
            world.http.get(url(&blob)),
            world.http.post(url("/edge/v1/receipts")).json(&json!({ "receipts": [] })),
        ];
        async move {
            let mut statuses = Vec::new();
            for request in requests {
                let answer = request.bearer_auth(&key).send().await.expect("an answer");
                statuses.push(answer.status().as_u16());
            }
            statuses
        }
    };
    assert_eq!(ask(&key).await, [200, 200, 204]);
    assert_eq!(read(world.ask("DELETE", &format!("/api/v1/edge-keys/{id}"))).await.0, 204);
    assert_eq!(ask(&key).await, [401, 401, 401]);
    assert_eq!(ask(&other).await, [200, 200, 204], "another's key is not touched");
    assert_eq!(read(world.ask("DELETE", &format!("/api/v1/edge-keys/{id}"))).await.0, 404);
    world.control.shutdown().await;
}

#[tokio::test]
async fn neither_an_environment_nor_its_namespace_goes_while_a_key_is_valid() {
    let world = World::new().await;
    world.namespace("ours").await;
    let (_, id) = world.key("ours", "production", "server").await;
    world.published("ours").await;
    for path in [PLACE, "/api/v1/namespaces/ours"] {
        let (status, body) = world.delete(path).await;
        assert_eq!(status, 409, "{path}: {body}");
        assert_eq!(body["type"], "urn:tidegate:problem:keys-left", "{path}: {body}");
        assert!(body["detail"].as_str().is_some_and(|text| text.contains(&id)), "{body}");
        assert_eq!(world.get(path).await.0, 200, "{path} is still there");
    }
    assert_eq!(read(world.ask("DELETE", &format!("{PLACE}/keys/{id}"))).await.0, 204);
    let (status, body) = world.delete_once_live("/api/v1/namespaces/ours").await;
    assert_eq!(status, 204, "{body}");
    assert_eq!(world.get("/api/v1/namespaces/ours").await.0, 404);
    world.control.shutdown().await;
}

/// As an edge that serves `revision` reports.
async fn report(world: &World, key: &str, revision: u64) {
    let receipt = Receipt {
        namespace: "ours".to_owned(),
        environment: "production".to_owned(),
        version: Version { generation: 1, revision },
        ..serde_json::from_value(json!({ "edge": "e1", "namespace": "", "environment": "",
            "generation": 1, "revision": 1, "digest": "0".repeat(64), "reader": 1 }))
        .expect("a receipt")
    };
    let body = Receipts { receipts: vec![receipt] };
    let url = format!("{}/edge/v1/receipts", world.url);
    let answer = world.http.post(url).bearer_auth(key).json(&body).send().await;
    assert_eq!(answer.expect("an answer").status(), 204);
}

#[tokio::test]
async fn an_environment_stays_until_every_edge_serves_the_revocation_of_its_last_key() {
    let world = World::new().await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    let (_, id) = world.key("ours", "production", "server").await;
    let with_key = world.published("ours").await;
    report(&world, &edge, u64::try_from(with_key).expect("a revision")).await;
    assert_eq!(read(world.ask("DELETE", &format!("{PLACE}/keys/{id}"))).await.0, 204);
    let revoked = world.published("ours").await;
    assert_eq!(revoked, with_key + 1);

    // The revocation is on the bus, but an edge still answers for the key: were the environment
    // deleted now, that edge would never hear of it.
    for path in [PLACE, "/api/v1/namespaces/ours"] {
        let (status, body) = world.delete(path).await;
        assert_eq!(status, 409, "{path}: {body}");
        assert_eq!(body["type"], "urn:tidegate:problem:not-live", "{path}: {body}");
    }
    let (_, body): (u16, Value) = world.get(PLACE).await;
    assert_eq!(body["revision"], revoked, "a refused deletion raises nothing: {body}");
    report(&world, &edge, u64::try_from(revoked).expect("a revision")).await;
    let (status, body) = world.delete(PLACE).await;
    assert_eq!(status, 204, "{body}");
    world.control.shutdown().await;
}
