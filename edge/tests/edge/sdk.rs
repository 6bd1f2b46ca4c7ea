//! What browsers' SDKs get: the client snapshot as control signed it, and nothing beside it.

use std::io::Read as _;

use bytes::Bytes;
use rules::blob::Digest;
use rules::client::{decode_blob, verify_container};
use rules::eval::Evaluator;
use rules::head::{ClientRef, Head, PublicKey, SignedHead};
use serde_json::{Value, json};

use crate::world::{
    Answer, Events, Shop, Source, World, browser_key, config, fixed, server_key, signing_key,
    version,
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
    let deadline = tokio::time::Instant::now() + crate::world::DEADLINE;
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

async fn evaluate(world: &World, body: &str, more: &[(&str, &str)]) -> Answer {
    let key = browser_key();
    let mut headers = vec![("X-API-Key", key.reveal())];
    headers.extend_from_slice(more);
    world.send("POST", "/sdk/v1/evaluate", &headers, body.as_bytes()).await
}

#[tokio::test]
async fn the_edge_answers_what_browsers_do_not_and_nothing_else() {
    let world = world().await;
    let body = r#"{"context":{"targetingKey":"u","distant-attribute":"distant-text"}}"#;
    let answer = evaluate(&world, body, &[]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let shown = answer.json();
    let keys: Vec<&str> = shown["flags"]
        .as_array()
        .unwrap()
        .iter()
        .map(|flag| flag["key"].as_str().unwrap())
        .collect();
    assert_eq!(keys, ["banner", "distant", "ratio"]);
    assert_eq!(shown["flags"][1]["variant"], "distant-on");
    assert_eq!(shown["flags"][1]["reason"], "TARGETING_MATCH");
    assert!(shown["metadata"].is_object() && shown.get("eventStreams").is_none(), "{shown}");
    for word in ["hidden", "seen", "secret", "distant-text", "distant-attribute", "distant-off"] {
        is_absent(&answer.body, word);
    }
    // The same flags for every kind of key: it is the path that says what is asked for.
    let server = world.post("/sdk/v1/evaluate", body).await;
    assert!(server.body == answer.body);

    let etag = answer.header("etag").unwrap().to_owned();
    let again = evaluate(&world, body, &[("If-None-Match", &etag)]).await;
    assert_eq!((again.status, again.body.len()), (304, 0));
    let other = evaluate(&world, "{}", &[("If-None-Match", &etag)]).await;
    assert_eq!(other.status, 200);
    assert_eq!(other.json()["flags"][1]["variant"], "distant-off");
    for (body, status) in [("[]", 400), ("{", 400), (r#"{"context":[]}"#, 400)] {
        assert_eq!(evaluate(&world, body, &[]).await.status, status, "{body}");
    }
    assert_eq!(get(&world, "/sdk/v1/evaluate", &[]).await.status, 405);
}

async fn stream(world: &World, more: &[(&str, &str)]) -> Events {
    let bearer = format!("Bearer {}", browser_key().reveal());
    let mut headers = vec![("Authorization", bearer.as_str())];
    headers.extend_from_slice(more);
    Events::open(world, "/sdk/v1/stream", &headers).await
}

#[derive(Debug)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

/// The next event that is no keep-alive.
async fn next(events: &mut Events) -> Option<Event> {
    loop {
        let block = events.next().await?;
        let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
        if let Some(data) = field("data: ") {
            return Some(Event {
                id: field("id: ").expect("an id").to_owned(),
                kind: field("event: ").expect("a kind").to_owned(),
                data: serde_json::from_str(data).expect("JSON"),
            });
        }
    }
}

fn apply(base: &[u8], patch: &str) -> Vec<u8> {
    use base64::Engine as _;
    let patch = base64::prelude::BASE64_STANDARD.decode(patch).unwrap();
    let mut rest = patch.as_slice();
    let mut made = Vec::new();
    let number = |rest: &mut &[u8]| {
        let (number, after) = rest.split_first_chunk().unwrap();
        *rest = after;
        u32::from_le_bytes(*number) as usize
    };
    while let Some((kind, after)) = rest.split_first() {
        rest = after;
        let first = number(&mut rest);
        if *kind == 0 {
            let length = number(&mut rest);
            made.extend_from_slice(&base[first..first + length]);
        } else {
            assert_eq!(*kind, 1);
            made.extend_from_slice(&rest[..first]);
            rest = &rest[first..];
        }
    }
    made
}

/// With local flags alone, and enough of them that a delta pays.
fn local_shop() -> Shop {
    let mut shop = Shop::new();
    shop.state.flags.retain(|flag| flag.definition.clients == rules::model::Clients::None);
    for number in 0..40 {
        shop.flag(
            &format!("local-{number:02}"),
            "boolean",
            &json!({"on": true, "off": false}),
            "local",
            fixed("off"),
        );
    }
    shop
}

fn turned(shop: &Shop, key: &str, to: &str) -> Shop {
    let mut shop = shop.clone();
    shop.flag(key, "boolean", &json!({"on": true, "off": false}), "local", fixed(to));
    shop
}

/// What a browser would have after a delta: checked as its SDK does.
#[track_caller]
fn after(event: &Event, base: &[u8]) -> Vec<u8> {
    assert_eq!(event.kind, "delta", "{event:?}");
    assert_eq!(event.data["base"], Digest::of(base).to_string());
    let blob = apply(base, event.data["patch"].as_str().unwrap());
    assert_eq!(event.data["snapshot"], Digest::of(&blob).to_string());
    let signed: SignedHead = serde_json::from_value(event.data["signed"].clone()).unwrap();
    let container = rules::client::encode_container(&signed, &blob).unwrap();
    verify_container(&container, &trusted()).unwrap();
    assert!(event.data["patch"].as_str().unwrap().len() < blob.len());
    blob
}

#[tokio::test]
async fn a_stream_begins_with_the_state_and_goes_on_with_deltas() {
    let (first, second) = (local_shop(), turned(&local_shop(), "local-07", "on"));
    let source = Source::new();
    source.publish_for_clients(&first.snapshot(), version(1, 1), version(1, 1));
    let world = World::start(config(None), source).await;
    world.serves(version(1, 1)).await;
    let mut events = stream(&world, &[("Origin", "https://shop.example")]).await;
    assert_eq!(events.head.status, 200);
    assert_eq!(events.head.header("content-type"), Some("text/event-stream"));
    assert_eq!(events.head.header("access-control-allow-origin"), Some("https://shop.example"));
    let state = next(&mut events).await.unwrap();
    let base = first.snapshot().client;
    assert_eq!((state.kind.as_str(), state.id.as_str()), ("state", "1.1.0"));
    let wanted = json!({"sequence": 1, "snapshot": Digest::of(&base).to_string(), "edge": false});
    assert_eq!(state.data, wanted);

    // Hidden flags first: whatever is heard next is heard for the local one.
    let mut hidden = first.clone();
    hidden.flag("secret", "boolean", &json!({"on": true, "off": false}), "none", fixed("off"));
    world.source.publish_for_clients(&hidden.snapshot(), version(1, 2), version(1, 1));
    world.serves(version(1, 2)).await;
    world.source.publish_for_clients(&second.snapshot(), version(1, 3), version(1, 3));
    let delta = next(&mut events).await.unwrap();
    assert_eq!((delta.id.as_str(), &delta.data["sequence"]), ("1.3.0", &json!(2)));
    let blob = after(&delta, &base);
    assert!(blob == second.snapshot().client);

    // A change of nearly everything is left to a download.
    let mut all = second.clone();
    for number in 0..40 {
        all.flag(
            &format!("other-{number:02}"),
            "string",
            &json!({"x": format!("{number:064}")}),
            "local",
            fixed("x"),
        );
    }
    all.state.flags.retain(|flag| !flag.definition.key.starts_with("local-"));
    world.source.publish_for_clients(&all.snapshot(), version(1, 4), version(1, 4));
    let state = next(&mut events).await.unwrap();
    assert_eq!((state.kind.as_str(), &state.data["sequence"]), ("state", &json!(3)));
    assert_eq!(state.data["snapshot"], Digest::of(&all.snapshot().client).to_string());

    // It ends when its key is gone.
    let mut without = all.clone();
    without.keys.retain(|key| key.id != browser_key().id);
    world.source.publish_for_clients(&without.snapshot(), version(1, 5), version(1, 4));
    assert!(next(&mut events).await.is_none());
}

#[tokio::test]
async fn a_client_that_was_away_gets_the_difference_and_a_stranger_the_state() {
    let shops: Vec<Shop> = (0..12)
        .scan(local_shop(), |shop, number| {
            let before = shop.clone();
            *shop = turned(shop, &format!("local-{number:02}"), "on");
            Some(before)
        })
        .collect();
    let source = Source::new();
    let world = World::start(config(None), source).await;
    for (at, shop) in shops.iter().enumerate() {
        let now = version(1, at as u64 + 1);
        world.source.publish_for_clients(&shop.snapshot(), now, now);
        world.serves(now).await;
    }
    let newest = shops.last().unwrap().snapshot().client;
    // The ring holds eight: revisions 5 to 12.
    for revision in [5, 11] {
        let id = format!("1.{revision}.0");
        let mut events = stream(&world, &[("Last-Event-ID", &id)]).await;
        let base = shops[revision - 1].snapshot().client;
        let state = next(&mut events).await.unwrap();
        assert_eq!(state.data["snapshot"], Digest::of(&base).to_string(), "what it has");
        let delta = next(&mut events).await.unwrap();
        assert_eq!(delta.data["sequence"], 2);
        assert!(after(&delta, &base) == newest, "from revision {revision}");
    }
    for id in ["1.4.0", "1.12.0", "7.1.0", "nonsense", ""] {
        let mut events = stream(&world, &[("Last-Event-ID", id)]).await;
        let state = next(&mut events).await.unwrap();
        assert_eq!(state.kind, "state", "{id:?}");
        assert_eq!(state.data["snapshot"], Digest::of(&newest).to_string(), "{id:?}");
    }
}

#[tokio::test]
async fn with_flags_of_the_edge_a_stream_tells_when_they_may_answer_something_else() {
    let world = world().await;
    let mut events = stream(&world, &[]).await;
    let state = next(&mut events).await.unwrap();
    assert_eq!((state.id.as_str(), &state.data["edge"]), ("1.3.0", &json!(true)));
    let mut changed = shop();
    changed.flag("distant", "boolean", &json!({"on": true, "off": false}), "edge", fixed("on"));
    world.source.publish_for_clients(&changed.snapshot(), version(1, 6), version(1, 3));
    let again = next(&mut events).await.unwrap();
    assert_eq!((again.kind.as_str(), again.id.as_str()), ("state", "1.3.0"));
    assert_eq!(again.data["snapshot"], state.data["snapshot"], "nothing to fetch");
    assert_eq!(again.data["sequence"], 2);
}

#[tokio::test]
async fn streams_are_refused_as_everything_else_is() {
    let world = world().await;
    assert_eq!(world.get("/sdk/v1/stream").await.status, 401);
    assert_eq!(
        get(&world, "/sdk/v1/stream", &[("Origin", "https://evil.example")]).await.status,
        403
    );
    let none = World::new().await;
    assert_eq!(get(&none, "/sdk/v1/stream", &[]).await.status, 404);
}
