//! What is published for browsers: in the same head as the snapshot, signed by itself, and silent
//! about flags that browsers may not see.

use rules::blob::Digest;
use rules::client::{ClientHead, ClientManifest, decode_blob, verify_container};
use rules::eval::Evaluator;
use rules::head::{ClientRef, Head, PublicKey, SignedHead};
use serde_json::{Value, json};

use crate::world::World;

const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

async fn flag(world: &World, key: &str, clients: &str) {
    let definition = json!({ "key": key, "type": "boolean", "clients": clients,
        "variants": { format!("{key}-on"): true, format!("{key}-off"): false } });
    let (status, body) = world.post("/api/v1/namespaces/ours/flags", definition).await;
    assert_eq!(status, 201, "{body}");
    turn(world, key, "off").await;
}

async fn turn(world: &World, key: &str, to: &str) {
    let when = json!({ "attr": format!("{key}-attribute"), "op": "eq", "value": "x" });
    let serve = json!({ "variant": format!("{key}-{to}") });
    let config = json!({ "enabled": true, "rules": [{ "id": "r", "when": when, "serve": serve }],
        "fallthrough": serve });
    let (status, body) = world.put(&format!("{PLACE}/flags/{key}"), config).await;
    assert!(status < 300, "{body}");
}

struct Published {
    head: Head,
    client: ClientRef,
    client_head: ClientHead,
    manifest: ClientManifest,
    blob: Vec<u8>,
}

async fn published(world: &World, edge: &str) -> Published {
    world.published("ours").await;
    let signed = &world.heads(edge).await.heads[0];
    read(world, edge, signed, &world.control.public_key).await
}

async fn read(world: &World, edge: &str, signed: &SignedHead, key: &PublicKey) -> Published {
    let trusted = [key.clone()];
    let head = signed.verify(&trusted).expect("a head");
    let client = head.client.clone().expect("something for browsers");
    let url = format!("{}/edge/v1/blobs/{}", world.url, client.digest);
    let answer = world.http.get(url).bearer_auth(edge).send().await.expect("an answer");
    assert_eq!(answer.status(), 200);
    let blob = answer.bytes().await.expect("a blob").to_vec();
    assert_eq!(blob.len() as u64, client.bytes);
    // As an edge hands it out and as a browser checks it.
    let container =
        rules::client::encode_container(&client.signed(&signed.key_id), &blob).expect("one");
    let (client_head, _) = verify_container(&container, &trusted).expect("what browsers believe");
    let (manifest, _) = decode_blob(&blob).expect("a blob");
    Published { head, client, client_head, manifest, blob }
}

#[tokio::test]
async fn browsers_get_local_flags_and_hear_of_no_others() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.namespace("theirs").await;
    let edge = world.edge_key(json!(["ours"])).await;
    let empty = published(&world, &edge).await;
    assert_eq!((empty.manifest.flags, empty.manifest.edge), (0, false));
    for (key, clients) in [("seen", "local"), ("distant", "edge"), ("hidden", "none")] {
        flag(&world, key, clients).await;
    }
    let first = published(&world, &edge).await;
    assert_eq!((first.manifest.flags, first.manifest.edge), (1, true));
    // Of what the rules need, not of what the environment has.
    assert_eq!(first.manifest.tier, "core");
    let (_, ruleset) = decode_blob(&first.blob).expect("a blob");
    assert!(Evaluator::load(ruleset).expect("rules").flag("seen").is_some());
    let holds = |text: &str| first.blob.windows(text.len()).any(|part| part == text.as_bytes());
    assert!(holds("seen-on") && holds("seen-attribute"));
    assert!(!holds("distant") && !holds("hidden"));

    // Its bytes, its version and its time stay while only others change.
    turn(&world, "hidden", "on").await;
    turn(&world, "distant", "on").await;
    let second = published(&world, &edge).await;
    assert!(second.head.version > first.head.version);
    assert_eq!(second.client, first.client);

    turn(&world, "seen", "on").await;
    let third = published(&world, &edge).await;
    assert_eq!(third.client_head.version, third.head.version);
    assert_ne!(third.client.digest, first.client.digest);

    // What comes back comes under a new version, or no browser would take it.
    turn(&world, "seen", "off").await;
    let fourth = published(&world, &edge).await;
    assert_eq!(fourth.client.digest, first.client.digest);
    assert_eq!(fourth.client_head.version, fourth.head.version);

    // Whose edge it is not does not get it.
    let stranger = world.edge_key(json!(["theirs"])).await;
    let url = format!("{}/edge/v1/blobs/{}", world.url, first.client.digest);
    let answer = world.http.get(url).bearer_auth(stranger).send().await.expect("an answer");
    assert_eq!(answer.status(), 404);
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_clients_part_outlives_a_restart_and_many_revisions() {
    let world = World::new().await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    flag(&world, "seen", "local").await;
    flag(&world, "hidden", "none").await;
    let before = published(&world, &edge).await;
    // More than control keeps of what nobody names any more.
    for turned in 0..12 {
        turn(&world, "hidden", ["on", "off"][turned % 2]).await;
        world.published("ours").await;
    }
    world.sql("UPDATE blob SET created_at = 0").await;
    turn(&world, "hidden", "on").await;
    let after = published(&world, &edge).await;
    assert_eq!(after.client, before.client);
    assert_eq!(Digest::of(&after.blob), before.client.digest);
    let world = world.restart().await;
    assert_eq!(published(&world, &edge).await.client, before.client);
    world.control.shutdown().await;
}

#[tokio::test]
async fn another_signing_key_signs_the_clients_part_too() {
    let world = World::new().await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    flag(&world, "seen", "local").await;
    let before = published(&world, &edge).await;
    let old = world.control.public_key.clone();
    std::fs::write(world.dir.path().join("signing-key"), [9; 32]).expect("another key");
    let world = world.restart().await;
    let new = world.control.public_key.clone();
    assert_ne!(old, new);
    let deadline = tokio::time::Instant::now() + crate::world::PATIENCE;
    let signed = loop {
        let signed = world.heads(&edge).await.heads.remove(0);
        if signed.key_id == new.id() {
            break signed;
        }
        assert!(tokio::time::Instant::now() < deadline, "still signed with the old key");
        let mut changed = world.control.bus.changed();
        let soon = std::time::Duration::from_millis(50);
        let _ = tokio::time::timeout(soon, changed.changed()).await;
    };
    let after = read(&world, &edge, &signed, &new).await;
    // The same words under another signature: to a browser nothing has changed.
    assert_eq!(after.client.head, before.client.head);
    assert_ne!(after.client.signature, before.client.signature);
    assert_eq!(after.head.version, before.head.version);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_restored_database_begins_anew_under_its_generation() {
    let world = World::with(tempfile::tempdir().expect("a folder"), |config| {
        // It would publish what is raised behind control's back, before this test does.
        config.reconcile = std::time::Duration::from_secs(3600);
    })
    .await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    flag(&world, "seen", "local").await;
    let before = published(&world, &edge).await;
    world.sql("UPDATE environment SET generation = generation + 1").await;
    let (status, body): (u16, Value) = world.post(&format!("{PLACE}/publish"), json!({})).await;
    assert!(status < 300, "{body}");
    let after = published(&world, &edge).await;
    assert_eq!(after.client.digest, before.client.digest);
    assert_eq!(after.client_head.version, after.head.version);
    assert!(after.client_head.version.generation > before.client_head.version.generation);
    world.control.shutdown().await;
}
