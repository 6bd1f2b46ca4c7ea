//! What browsers' SDKs get: the client snapshot as control signed it, and nothing beside it.

use std::io::Read as _;

use bytes::Bytes;
use rules::blob::Digest;
use rules::client::{decode_blob, verify_container};
use rules::eval::Evaluator;
use rules::head::{ClientRef, Head, PublicKey, SignedHead};
use serde_json::{Value, json};

use crate::world::{
    Answer, Shop, Source, World, browser_key, config, fixed, server_key, signing_key, version,
};

const SNAPSHOT: &str = "/sdk/v1/snapshot";

/// A shop whose every word says whom it is for.
fn shop() -> Shop {
    let mut shop = Shop::new();
    for (key, clients) in [("seen", "local"), ("distant", "edge"), ("hidden", "none")] {
        let variants = json!({ format!("{key}-on"): true, format!("{key}-off"): false });
        let config = json!({ "enabled": true, "off": format!("{key}-off"),
            "rules": [{ "id": format!("{key}-rule"),
                "when": { "attr": format!("{key}-attribute"), "op": "eq", "value": format!("{key}-text") },
                "serve": { "variant": format!("{key}-on") } }],
            "fallthrough": { "variant": format!("{key}-off") } });
        shop.flag(key, "boolean", &variants, clients, config);
    }
    shop
}

async fn world() -> World {
    let source = Source::new();
    source.publish_for_clients(&shop().snapshot(), version(1, 5), version(1, 3));
    let world = World::start(config(None), source).await;
    world.serves(version(1, 5)).await;
    world
}

async fn get(world: &World, path: &str, more: &[(&str, &str)]) -> Answer {
    let bearer = format!("Bearer {}", browser_key().reveal());
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend_from_slice(more);
    world.send("GET", path, &headers, b"").await
}

fn trusted() -> [PublicKey; 1] {
    [PublicKey::of(&signing_key())]
}

#[track_caller]
fn is_absent(bytes: &[u8], text: &str) {
    assert!(!bytes.windows(text.len()).any(|part| part == text.as_bytes()), "{text} is in there");
}

#[tokio::test]
async fn a_browser_gets_what_control_signed_and_can_evaluate_it() {
    let world = world().await;
    let answer = get(&world, SNAPSHOT, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/vnd.tidegate.snapshot"));
    assert_eq!(answer.header("cache-control"), Some("private, no-cache"));
    let vary = answer.header("vary").unwrap_or_default().to_ascii_lowercase();
    for header in ["authorization", "x-api-key", "origin", "accept-encoding"] {
        assert!(vary.contains(header), "{vary}");
    }
    let (head, blob) = verify_container(&answer.body, &trusted()).unwrap();
    assert_eq!((head.namespace.as_str(), head.environment.as_str()), ("shop", "production"));
    // Not the environment's version: that one tells of flags that browsers may not see.
    assert_eq!(head.version, version(1, 3));
    let (manifest, ruleset) = decode_blob(blob).unwrap();
    assert_eq!((manifest.flags, manifest.edge), (1, true));
    let evaluator = Evaluator::load(ruleset).unwrap();
    assert!(evaluator.flag("seen").is_some());
}

#[tokio::test]
async fn what_a_key_may_not_see_is_absent() {
    let world = world().await;
    let answer = get(&world, SNAPSHOT, &[]).await;
    for word in ["attribute", "text", "on", "off", "rule"] {
        let seen = format!("seen-{word}");
        // A rule's id is for people, and stays behind.
        if word != "rule" {
            assert!(answer.body.windows(seen.len()).any(|part| part == seen.as_bytes()), "{seen}");
        }
    }
    for word in ["distant", "hidden", "secret", "banner", "vip", "vips", "rollout", "a/b"] {
        is_absent(&answer.body, word);
    }
    let head = answer.headers.iter().flat_map(|(name, value)| [name, value]);
    for line in head {
        is_absent(line.as_bytes(), "hidden");
    }
}

#[tokio::test]
async fn an_unchanged_snapshot_is_a_304_in_every_coding() {
    let world = world().await;
    let plain = get(&world, SNAPSHOT, &[]).await;
    assert_eq!(plain.header("content-encoding"), None);
    let gzip = get(&world, SNAPSHOT, &[("Accept-Encoding", "gzip")]).await;
    let zstd = get(&world, SNAPSHOT, &[("Accept-Encoding", "zstd, gzip;q=0")]).await;
    assert_eq!(gzip.header("content-encoding"), Some("gzip"));
    assert_eq!(zstd.header("content-encoding"), Some("zstd"));
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&gzip.body[..]).read_to_end(&mut unpacked).unwrap();
    assert!(unpacked == plain.body);
    assert!(zstd::decode_all(&zstd.body[..]).unwrap() == plain.body);
    let tags: Vec<String> = [&plain, &gzip, &zstd]
        .iter()
        .map(|answer| answer.header("etag").unwrap_or_default().to_owned())
        .collect();
    for (at, tag) in tags.iter().enumerate() {
        assert!(tag.starts_with('"') && tag.ends_with('"'), "strong: {tag}");
        assert!(!tags[..at].contains(tag), "other bytes, another tag: {tags:?}");
        let again = get(&world, SNAPSHOT, &[("If-None-Match", tag)]).await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{again:?}");
        assert!(again.header("etag").is_some());
    }
    let other = get(&world, SNAPSHOT, &[("If-None-Match", "\"x\"")]).await;
    assert_eq!(other.status, 200);
}

#[tokio::test]
async fn a_change_of_hidden_flags_is_not_to_be_seen() {
    let world = world().await;
    let before = get(&world, SNAPSHOT, &[]).await;
    let mut changed = shop();
    changed.flag("hidden", "boolean", &json!({"on": true, "off": false}), "none", fixed("on"));
    world.source.publish_for_clients(&changed.snapshot(), version(1, 6), version(1, 3));
    world.serves(version(1, 6)).await;
    let after = get(&world, SNAPSHOT, &[]).await;
    assert!(before.body == after.body);
    assert_eq!(before.header("etag"), after.header("etag"));

    changed.flag("seen", "boolean", &json!({"on": true, "off": false}), "local", fixed("on"));
    world.source.publish_for_clients(&changed.snapshot(), version(1, 7), version(1, 7));
    world.serves(version(1, 7)).await;
    let seen = get(&world, SNAPSHOT, &[]).await;
    assert_ne!(before.header("etag"), seen.header("etag"));
    let (head, _) = verify_container(&seen.body, &trusted()).unwrap();
    assert_eq!(head.version, version(1, 7));
}

#[tokio::test]
async fn keys_and_origins_are_checked_as_for_ofrep() {
    let world = world().await;
    let none = world.get(SNAPSHOT).await;
    assert_eq!(none.status, 401);
    assert_eq!(none.json()["errorCode"], "GENERAL");
    let shop = [("Origin", "https://shop.example")];
    let allowed = get(&world, SNAPSHOT, &shop).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://shop.example"));
    let exposed = allowed.header("access-control-expose-headers").unwrap_or_default();
    assert!(exposed.contains("ETag"), "{exposed}");
    let stranger = get(&world, SNAPSHOT, &[("Origin", "https://evil.example")]).await;
    assert_eq!(stranger.status, 403);
    assert_eq!(stranger.header("access-control-allow-origin"), None);
    let preflight = world.send("OPTIONS", SNAPSHOT, &shop, b"").await;
    assert_eq!(preflight.status, 204);
    let headers = preflight.header("access-control-allow-headers").unwrap_or_default();
    for header in ["x-api-key", "authorization", "if-none-match", "last-event-id"] {
        assert!(headers.contains(header), "{headers}");
    }
    // A service renders it into a page.
    let server = server_key();
    let answer = world.send("GET", SNAPSHOT, &[("X-API-Key", server.reveal())], b"").await;
    assert_eq!(answer.status, 200);
    let posted = world.post(SNAPSHOT, "{}").await;
    assert_eq!(posted.status, 405);
    assert_eq!(get(&world, "/sdk/v1/nothing", &[]).await.status, 404);
}

#[tokio::test]
async fn an_edge_of_an_older_control_says_that_there_is_none() {
    let world = World::new().await;
    let answer = get(&world, SNAPSHOT, &[]).await;
    assert_eq!(answer.status, 404);
    let details: Value = answer.json();
    assert!(details["errorDetails"].as_str().unwrap_or_default().contains("client snapshot"));
}

#[tokio::test]
async fn a_tampered_client_snapshot_is_not_served_and_the_last_good_one_stays() {
    let world = world().await;
    let good = get(&world, SNAPSHOT, &[]).await;
    let mut next = shop();
    next.flag("seen", "boolean", &json!({"on": true, "off": false}), "local", fixed("on"));
    let next = next.snapshot();

    // Other bytes under the digest.
    let mut bytes = next.client.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    world.source.store(&next);
    world.source.corrupt(Digest::of(&next.client), Bytes::from(bytes.clone()));
    let head = next.head_for_clients(version(1, 6), version(1, 6));
    world.source.head(SignedHead::sign(&head, &signing_key()).unwrap());
    let receipt = world.source.reports_refusal("client snapshot").await;
    assert_eq!(receipt.version, version(1, 5));
    assert!(get(&world, SNAPSHOT, &[]).await.body == good.body);

    // Bytes that do not load, signed by whoever made them.
    let mut client = head.client.clone().unwrap().claims().unwrap();
    client.digest = Digest::of(&bytes);
    client.version = version(1, 7);
    let broken = ClientRef::sign(&client, &signing_key()).unwrap();
    world.source.corrupt(broken.digest, Bytes::from(bytes));
    let head = Head { version: version(1, 7), client: Some(broken), ..head };
    world.source.head(SignedHead::sign(&head, &signing_key()).unwrap());
    world.source.reports_refusal("does not load").await;

    // A signature that no browser would believe.
    let mut client = next.head_for_clients(version(1, 8), version(1, 8)).client.unwrap();
    client.head = client.head.replace("production", "elsewhere!");
    world.source.corrupt(Digest::of(&next.client), next.client.clone());
    let head = Head { version: version(1, 8), client: Some(client), ..head };
    world.source.head(SignedHead::sign(&head, &signing_key()).unwrap());
    world.source.reports_refusal("signature does not hold").await;
    assert!(get(&world, SNAPSHOT, &[]).await.body == good.body);

    world.source.publish_for_clients(&next, version(1, 9), version(1, 9));
    world.serves(version(1, 9)).await;
    assert!(get(&world, SNAPSHOT, &[]).await.body != good.body);
}

#[tokio::test]
async fn a_restart_without_control_serves_browsers_from_disk() {
    let folder = tempfile::tempdir().unwrap();
    let source = Source::new();
    source.publish_for_clients(&shop().snapshot(), version(1, 5), version(1, 3));
    let first = World::start(config(Some(folder.path())), source.clone()).await;
    first.serves(version(1, 5)).await;
    let before = get(&first, SNAPSHOT, &[]).await;
    assert_eq!(before.status, 200);
    first.edge.shutdown().await;
    source.set_down(true);

    let again = World::start(config(Some(folder.path())), source.clone()).await;
    assert!(get(&again, SNAPSHOT, &[]).await.body == before.body);
    again.edge.shutdown().await;

    // As an older edge left it: the flags are served, and browsers wait for control.
    let file = format!("list.{}", Digest::of(&shop().snapshot().client));
    std::fs::remove_file(folder.path().join(&file)).unwrap();
    let without = World::start(config(Some(folder.path())), source.clone()).await;
    assert_eq!(without.serving(), Some(version(1, 5)));
    assert_eq!(get(&without, SNAPSHOT, &[]).await.status, 404);
    source.set_down(false);
    let deadline = tokio::time::Instant::now() + crate::world::DEADLINE;
    while get(&without, SNAPSHOT, &[]).await.status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the client snapshot never came");
        tokio::task::yield_now().await;
    }
    assert!(get(&without, SNAPSHOT, &[]).await.body == before.body);
    let kept = || folder.path().join(&file).exists();
    while !kept() {
        assert!(tokio::time::Instant::now() < deadline, "it was not written");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn another_signing_key_reaches_browsers_without_a_new_version() {
    let mut config = config(None);
    let next = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    let both = vec![PublicKey::of(&signing_key()), PublicKey::of(&next)];
    config.trusted = tokio::sync::watch::channel(both.clone()).1;
    let source = Source::new();
    let snapshot = shop().snapshot();
    source.publish_for_clients(&snapshot, version(1, 5), version(1, 3));
    let world = World::start(config, source).await;
    world.serves(version(1, 5)).await;
    let head = snapshot.head_for_clients(version(1, 5), version(1, 3));
    let client = head.client.clone().map(|client| client.signed_with(&next));
    world.source.head(SignedHead::sign(&Head { client, ..head }, &next).unwrap());
    let deadline = tokio::time::Instant::now() + crate::world::DEADLINE;
    loop {
        let answer = get(&world, SNAPSHOT, &[]).await;
        if verify_container(&answer.body, &both[1..]).is_ok() {
            break;
        }
        assert!(verify_container(&answer.body, &both[..1]).is_ok());
        assert!(tokio::time::Instant::now() < deadline, "still signed with the old key");
    }
}
