//! Keys that expire, are rotated and changed, and what edges say of their use.

use rules::blob::{Manifest, decode_blob};
use rules::head::Head;
use rules::usage::{EnvironmentUsage, KeyUse, UsageReport};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::world::{World, read};

const KEYS: &str = "/api/v1/namespaces/ours/environments/production/keys";

async fn world() -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    world
}

/// So many seconds from now.
fn at(seconds: i64) -> String {
    let at = OffsetDateTime::now_utc() + time::Duration::seconds(seconds);
    at.replace_nanosecond(0).expect("a time").format(&Rfc3339).expect("a time")
}

fn seconds(text: &Value) -> i64 {
    OffsetDateTime::parse(text.as_str().expect("a time"), &Rfc3339)
        .expect("a time")
        .unix_timestamp()
}

fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

async fn patch(world: &World, path: &str, body: Value) -> (u16, Value) {
    read(world.ask("PATCH", path).json(&body)).await
}

/// What edges load, with its head.
async fn snapshot(world: &World, edge_key: &str) -> (Head, Manifest) {
    world.published("ours").await;
    let trusted = [world.control.public_key.clone()];
    let head = world.heads(edge_key).await.heads[0].verify(&trusted).expect("a head");
    let url = format!("{}/edge/v1/blobs/{}", world.url, head.snapshot.digest);
    let answer = world.http.get(url).bearer_auth(edge_key).send().await.expect("an answer");
    let bytes = answer.bytes().await.expect("a blob");
    let (manifest, _) = decode_blob(&bytes).expect("it loads");
    (head, manifest)
}

#[tokio::test]
async fn terms_of_a_key_reach_edges_and_only_then_is_a_newer_edge_needed() {
    let world = world().await;
    let edge = world.edge_key(json!("all")).await;
    let (_, plain) = world.key("ours", "production", "server").await;
    let (head, manifest) = snapshot(&world, &edge).await;
    assert_eq!((head.min_reader, manifest.terms.len()), (2, 0));

    let expires = at(3600);
    let body = json!({ "kind": "server", "name": "n", "expiresAt": expires, "ratePerSecond": 7 });
    let (status, made) = world.post(KEYS, body).await;
    assert_eq!(status, 201, "{made}");
    assert_eq!((&made["expiresAt"], &made["ratePerSecond"]), (&json!(expires), &json!(7)));
    let (head, manifest) = snapshot(&world, &edge).await;
    assert_eq!(head.min_reader, 3);
    let of = |id: &str| manifest.keys().find(|(key, _)| key.id == id).expect("the key").1.copied();
    assert_eq!(of(&plain), None);
    let terms = of(made["id"].as_str().expect("an id")).expect("terms");
    assert_eq!(terms.expires_at_ms, Some(seconds(&made["expiresAt"]) * 1000));
    assert_eq!(terms.per_second.map(u32::from), Some(7));

    // Taken away again, older edges are welcome again.
    let path = format!("{KEYS}/{}", made["id"].as_str().expect("an id"));
    let body = json!({ "expiresAt": null, "ratePerSecond": null, "name": "m" });
    let (status, changed) = patch(&world, &path, body).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(
        (&changed["expiresAt"], &changed["ratePerSecond"], &changed["name"]),
        (&Value::Null, &Value::Null, &json!("m"))
    );
    assert!(changed.get("key").is_none(), "shown once: {changed}");
    let (head, manifest) = snapshot(&world, &edge).await;
    assert_eq!((head.min_reader, manifest.terms.len()), (2, 0));
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_rotated_key_has_a_successor_with_its_settings_and_ends_after_the_overlap() {
    let world = world().await;
    let edge = world.edge_key(json!("all")).await;
    let body = json!({ "kind": "browser", "name": "shop", "origins": ["https://shop.example"],
        "ratePerSecond": 50 });
    let (_, old) = world.post(KEYS, body).await;
    let id = old["id"].as_str().expect("an id").to_owned();
    let rotate = format!("{KEYS}/{id}/rotate");
    let began = now();
    let (status, new) = world.post(&rotate, json!({ "overlapSeconds": 600 })).await;
    assert_eq!(status, 201, "{new}");
    for field in ["kind", "name", "origins", "ratePerSecond"] {
        assert_eq!(new[field], old[field], "{field}");
    }
    assert_eq!((&new["replaces"], &new["expiresAt"]), (&json!(id), &Value::Null));
    assert!(new["key"].as_str().is_some_and(|key| key.starts_with("tg_browser_")));
    assert_ne!(new["key"], old["key"]);
    let (_, ending) = world.get(&format!("{KEYS}/{id}")).await;
    let ends = seconds(&ending["expiresAt"]);
    assert!((began + 600..=now() + 600).contains(&ends), "{ending}");
    let (_, manifest) = snapshot(&world, &edge).await;
    let ends = manifest
        .keys()
        .filter(|(_, terms)| terms.is_some_and(|terms| terms.expires_at_ms.is_some()));
    let ends: Vec<&str> = ends.map(|(key, _)| key.id.as_str()).collect();
    assert_eq!((manifest.keys.len(), ends), (2, vec![id.as_str()]));

    // Two are valid: neither gets another, and neither may be kept on past the other's end.
    let new_id = new["id"].as_str().expect("an id");
    for of in [&id, new_id] {
        let (status, body) = world.post(&format!("{KEYS}/{of}/rotate"), json!({})).await;
        assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:two-live")));
        assert!(body["detail"].as_str().is_some_and(|text| text.contains("valid already")));
    }
    // The old one is ended early; then there is room.
    let (status, _) = patch(&world, &format!("{KEYS}/{id}"), json!({ "expiresAt": at(60) })).await;
    assert_eq!(status, 200);
    assert_eq!(read(world.ask("DELETE", &format!("{KEYS}/{id}"))).await.0, 204);
    let began = now();
    let (status, third) = world
        .post(
            &format!("{KEYS}/{new_id}/rotate"),
            json!({ "overlapSeconds": 0, "expiresAt": at(900) }),
        )
        .await;
    assert_eq!(status, 201, "{third}");
    let (_, second) = world.get(&format!("{KEYS}/{new_id}")).await;
    assert_eq!(second["expired"], true, "no overlap: {second}");
    let ends = seconds(&third["expiresAt"]);
    assert!((began + 900..=now() + 900).contains(&ends), "{third}");

    // What has expired stays so, and is not rotated.
    let (status, body) =
        patch(&world, &format!("{KEYS}/{new_id}"), json!({ "expiresAt": null })).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:expired")));
    let (status, _) = world.post(&format!("{KEYS}/{new_id}/rotate"), json!({})).await;
    assert_eq!(status, 409);

    let (_, audit) = world.get("/api/v1/namespaces/ours/audit").await;
    let text = audit.to_string();
    let actions: Vec<&str> = audit["items"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["action"].as_str())
        .collect();
    assert_eq!(
        &actions[..5],
        ["key.rotate", "key.delete", "key.update", "key.rotate", "key.create"]
    );
    assert!(!text.contains("tg_browser_"), "no key in the audit");
    world.control.shutdown().await;
}

#[tokio::test]
async fn two_rotations_at_once_leave_two_valid_keys() {
    let world = world().await;
    let (_, id) = world.key("ours", "production", "server").await;
    let path = format!("{KEYS}/{id}/rotate");
    let (one, two) = tokio::join!(world.post(&path, json!({})), world.post(&path, json!({})));
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409], "{one:?} {two:?}");
    let (_, listed) = world.get(KEYS).await;
    assert_eq!(listed["items"].as_array().map(Vec::len), Some(2), "{listed}");

    let (_, edge_id) = world.edge_key_with_id(json!("all")).await;
    let path = format!("/api/v1/edge-keys/{edge_id}/rotate");
    let (one, two) = tokio::join!(world.post(&path, json!({})), world.post(&path, json!({})));
    let mut statuses = [one.0, two.0];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409], "{one:?} {two:?}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_a_key_cannot_be_is_refused_with_its_place() {
    let world = world().await;
    let (_, id) = world.key("ours", "production", "server").await;
    let one = format!("{KEYS}/{id}");
    let rotate = format!("{one}/rotate");
    let refused = |pointer: &'static str| {
        move |(status, body): (u16, Value)| {
            assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(pointer)), "{body}");
        }
    };
    let server = |more: Value| {
        let mut body = json!({ "kind": "server" });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("one").clone());
        body
    };
    refused("/expiresAt")(world.post(KEYS, server(json!({ "expiresAt": at(-5) }))).await);
    refused("/expiresAt")(world.post(KEYS, server(json!({ "expiresAt": "tomorrow" }))).await);
    refused("/ratePerSecond")(world.post(KEYS, server(json!({ "ratePerSecond": 0 }))).await);
    refused("/ratePerSecond")(
        world.post(KEYS, server(json!({ "ratePerSecond": 1_000_001 }))).await,
    );
    refused("/origins")(patch(&world, &one, json!({ "origins": ["https://a.example"] })).await);
    refused("/expiresAt")(patch(&world, &one, json!({ "expiresAt": at(-5) })).await);
    refused("/overlapSeconds")(world.post(&rotate, json!({ "overlapSeconds": -1 })).await);
    refused("/overlapSeconds")(world.post(&rotate, json!({ "overlapSeconds": 7_776_001 })).await);
    // What the server decides is nobody's to send.
    for field in ["id", "kind", "hash", "createdAt", "lastUsedAt", "replaces", "line"] {
        let (status, body) = patch(&world, &one, json!({ field: "x" })).await;
        assert_eq!(status, 422, "{field}: {body}");
    }
    let (status, _) = patch(&world, &format!("{KEYS}/nobodys1"), json!({ "name": "x" })).await;
    assert_eq!(status, 404);
    let (_, unchanged) = world.get(&one).await;
    assert_eq!((&unchanged["name"], &unchanged["expiresAt"]), (&json!(""), &Value::Null));
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_expired_key_holds_no_environment_up() {
    let world = world().await;
    let (_, id) = world.key("ours", "production", "server").await;
    let path = format!("{KEYS}/{id}");
    assert_eq!(patch(&world, &path, json!({ "expiresAt": at(3600) })).await.0, 200);
    let place = "/api/v1/namespaces/ours/environments/production";
    let (status, body) = world.delete(place).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:keys-left")));
    // However long all that took.
    let ended = world.sql("UPDATE api_key SET expires_at = 1 WHERE expires_at IS NOT NULL").await;
    assert_eq!((ended, &world.get(&path).await.1["expired"]), (1, &json!(true)));
    let (status, body) = world.delete_once_live(place).await;
    assert_eq!(status, 204, "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_last_use_of_a_key_is_what_edges_that_may_see_it_reported() {
    let world = world().await;
    world.namespace("theirs").await;
    let (_, id) = world.key("ours", "production", "server").await;
    let (edge, edge_id) = world.edge_key_with_id(json!(["ours"])).await;
    let stranger = world.edge_key(json!(["theirs"])).await;
    let minute = now() / 60;
    let send = async |key: &str, sequence: u64, namespace: &str, minute: i64| {
        let report = UsageReport {
            edge: "e1".to_owned(),
            run: 1,
            sequence,
            environments: vec![EnvironmentUsage {
                namespace: namespace.to_owned(),
                environment: "production".to_owned(),
                uses: Vec::new(),
                tracks: Vec::new(),
                keys: vec![
                    KeyUse { id: id.clone(), minute },
                    KeyUse { id: "nobodys1".to_owned(), minute },
                ],
            }],
        };
        let url = format!("{}/edge/v1/usage", world.url);
        let answer = world.http.post(url).bearer_auth(key).json(&report).send().await;
        assert_eq!(answer.expect("an answer").status(), 204);
        world.get(&format!("{KEYS}/{id}")).await.1["lastUsedAt"].clone()
    };
    let (_, unused) = world.get(&format!("/api/v1/edge-keys/{edge_id}")).await;
    assert_eq!(unused["lastUsedAt"], Value::Null);
    assert_eq!(send(&stranger, 1, "ours", minute).await, Value::Null);
    // The id of a key that is another environment's counts for nobody.
    assert_eq!(send(&stranger, 2, "theirs", minute).await, Value::Null);
    let first = send(&edge, 1, "ours", minute - 10).await;
    assert_eq!(seconds(&first), (minute - 10) * 60);
    assert_eq!(seconds(&send(&edge, 2, "ours", minute - 20).await), (minute - 10) * 60);
    // A clock that is ahead says nothing of a time to come.
    let last = send(&edge, 3, "ours", minute + 5).await;
    assert!((minute..=now() / 60).contains(&(seconds(&last) / 60)), "{last}");
    let (_, used) = world.get(&format!("/api/v1/edge-keys/{edge_id}")).await;
    assert!((minute..=now() / 60).contains(&(seconds(&used["lastUsedAt"]) / 60)), "{used}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_edge_key_expires_and_its_successor_sees_the_same() {
    let world = world().await;
    let (key, id) = world.edge_key_with_id(json!(["ours"])).await;
    let path = format!("/api/v1/edge-keys/{id}");
    let rotated = world.post(&format!("{path}/rotate"), json!({ "overlapSeconds": 3600 })).await;
    let (status, new) = rotated;
    assert_eq!(status, 201, "{new}");
    assert_eq!((&new["namespaces"], &new["replaces"]), (&json!(["ours"]), &json!(id)));
    let successor = new["key"].as_str().expect("a key");
    world.published("ours").await;
    assert_eq!(world.heads(successor).await.heads.len(), world.heads(&key).await.heads.len());
    let ended = world.sql("UPDATE edge_key SET expires_at = 1 WHERE expires_at IS NOT NULL").await;
    assert_eq!((ended, &world.get(&path).await.1["expired"]), (1, &json!(true)));
    let heads = |key: &str| {
        let url = format!("{}/edge/v1/heads", world.url);
        let sent = world.http.get(url).bearer_auth(key).send();
        async { sent.await.expect("an answer").status().as_u16() }
    };
    assert_eq!((heads(&key).await, heads(successor).await), (401, 200));
    let (status, body) = patch(&world, &path, json!({ "expiresAt": null })).await;
    assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:expired")));
    let new_path = format!("/api/v1/edge-keys/{}", new["id"].as_str().expect("an id"));
    let (status, named) = patch(&world, &new_path, json!({ "name": "edge-eu" })).await;
    assert_eq!((status, &named["name"]), (200, &json!("edge-eu")), "{named}");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit").await;
    let actions: Vec<&str> = audit["items"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["action"].as_str())
        .collect();
    assert_eq!(&actions[..3], ["edge-key.update", "edge-key.rotate", "edge-key.create"]);
    world.control.shutdown().await;
}
