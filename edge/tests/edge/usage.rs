//! What is counted, of servers and of browsers, and that control hears of it once.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rules::usage::{COUNT_MAX, EVENTS_BYTES_MAX, EVENTS_MAX, Source as Who, UsageReport};
use serde_json::{Value, json};

use crate::world::{
    Answer, DEADLINE, Shop, Source, World, browser_key, config, server_key, version,
};

const EVENTS: &str = "/sdk/v1/events";

fn minute() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    now.as_secs() as i64 / 60
}

async fn world(usage_every: Duration) -> World {
    let mut config = config(None);
    config.usage_every = usage_every;
    let source = Source::new();
    source.publish_for_clients(&Shop::new().snapshot(), version(1, 1), version(1, 1));
    let world = World::start(config, source).await;
    world.serves(version(1, 1)).await;
    world
}

/// Reports only at the end.
async fn patient() -> World {
    world(Duration::from_secs(3600)).await
}

/// As `sendBeacon` sends it: text, and no header of ours.
async fn beacon(world: &World, body: &Value) -> Answer {
    let headers =
        [("Content-Type", "text/plain;charset=UTF-8"), ("Origin", "https://shop.example")];
    world.send("POST", EVENTS, &headers, body.to_string().as_bytes()).await
}

fn used(flag: &str, variant: Value, minute: i64, count: u64) -> Value {
    json!({ "flag": flag, "variant": variant, "minute": minute, "count": count })
}

/// Flag, variant, source, count; minutes added up.
fn sums(reports: &[UsageReport]) -> Vec<(String, Option<String>, Who, u64)> {
    let mut sums = std::collections::BTreeMap::new();
    for one in reports.iter().flat_map(|report| &report.environments).flat_map(|of| &of.uses) {
        let key = (one.flag.clone(), one.variant.clone(), one.source);
        *sums.entry(key).or_insert(0) += one.count;
    }
    sums.into_iter()
        .map(|((flag, variant, source), count)| (flag, variant, source, count))
        .collect()
}

fn sum(
    flag: &str,
    variant: Option<&str>,
    source: Who,
    count: u64,
) -> (String, Option<String>, Who, u64) {
    (flag.to_owned(), variant.map(str::to_owned), source, count)
}

#[tokio::test]
async fn single_evaluations_and_what_browsers_tell_are_reported_and_bulk_answers_are_not() {
    let world = patient().await;
    for _ in 0..3 {
        assert_eq!(world.one("secret", "{}").await.status, 200);
    }
    assert_eq!(world.one("own-default", "{}").await.status, 200);
    assert_eq!(world.one("no-such-flag", "{}").await.status, 404);
    assert_eq!(world.all("{}").await.status, 200);
    assert_eq!(world.post("/sdk/v1/evaluate", "{}").await.status, 200);
    let body = json!({ "key": browser_key().reveal(),
        "usage": [used("banner", json!("on"), minute(), 7), used("banner", json!(null), minute(), 2)],
        "tracks": [{ "name": "bought", "minute": minute(), "count": 2, "sum": 19.5 }] });
    let answer = beacon(&world, &body).await;
    assert_eq!((answer.status, answer.json()), (202, json!({ "accepted": 3, "refused": 0 })));
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://shop.example"));

    let (source, usage) = (world.source.clone(), world.source.usage.subscribe());
    world.edge.shutdown().await;
    let reports = usage.borrow().clone();
    let wanted = [
        sum("banner", None, Who::Browser, 2),
        sum("banner", Some("on"), Who::Browser, 7),
        sum("own-default", None, Who::Server, 1),
        sum("secret", Some("on"), Who::Server, 3),
    ];
    assert_eq!(sums(&reports), wanted);
    let [report] = reports.as_slice() else { panic!("{reports:#?}") };
    assert_eq!((report.edge.as_str(), report.sequence), ("edge-1", 1));
    let of = &report.environments[0];
    assert_eq!((of.namespace.as_str(), of.environment.as_str()), ("shop", "production"));
    let [track] = of.tracks.as_slice() else { panic!("{of:#?}") };
    assert_eq!((track.name.as_str(), track.count, track.sum), ("bought", 2, 19.5));
    drop(source);
}

#[tokio::test]
async fn a_browser_is_believed_only_what_its_key_may_see() {
    let world = patient().await;
    let now = minute();
    let entries = [
        (used("banner", json!("on"), now, 1), true),
        (used("ratio", json!("whole"), now - 24 * 60 + 1, COUNT_MAX), true),
        (used("banner", json!("on"), now + 4, 1), true),
        // Hidden from browsers, unknown, or of no such variant.
        (used("secret", json!("on"), now, 1), false),
        (used("no-such-flag", json!("on"), now, 1), false),
        (used("banner", json!("no-such-variant"), now, 1), false),
        // Too old, of a time to come, or too many.
        (used("banner", json!("on"), now - 24 * 60 - 2, 1), false),
        (used("banner", json!("on"), now + 7, 1), false),
        (used("banner", json!("on"), now, 0), false),
        (used("banner", json!("on"), now, COUNT_MAX + 1), false),
    ];
    for (entry, is_accepted) in &entries {
        let body = json!({ "key": browser_key().reveal(), "usage": [entry] });
        let answer = beacon(&world, &body).await;
        let wanted =
            json!({ "accepted": u8::from(*is_accepted), "refused": u8::from(!is_accepted) });
        assert_eq!((answer.status, answer.json()), (202, wanted), "{entry}");
    }
    for (track, is_accepted) in [
        (json!({ "name": "a".repeat(128), "minute": now, "count": 1 }), true),
        (json!({ "name": "a".repeat(129), "minute": now, "count": 1 }), false),
        (json!({ "name": "", "minute": now, "count": 1 }), false),
        (json!({ "name": "a", "minute": 0, "count": 1 }), false),
    ] {
        let body = json!({ "key": browser_key().reveal(), "tracks": [track] });
        assert_eq!(
            beacon(&world, &body).await.json()["accepted"],
            u8::from(is_accepted),
            "{track}"
        );
    }
}

#[tokio::test]
async fn bodies_without_a_key_or_over_a_limit_are_refused() {
    let world = patient().await;
    let key = browser_key();
    let many = |count: usize| {
        let entries: Vec<Value> = (0..count).map(|_| used("banner", json!("on"), 0, 1)).collect();
        json!({ "key": key.reveal(), "usage": entries })
    };
    assert_eq!(beacon(&world, &many(EVENTS_MAX)).await.json()["refused"], EVENTS_MAX);
    assert_eq!(beacon(&world, &many(EVENTS_MAX + 1)).await.status, 400);
    let padded = |bytes: usize| {
        let body = json!({ "key": key.reveal(), "usage": [] }).to_string();
        format!("{}{body}", " ".repeat(bytes - body.len()))
    };
    for (bytes, status) in [(EVENTS_BYTES_MAX, 202), (EVENTS_BYTES_MAX + 1, 400)] {
        let answer = world.send("POST", EVENTS, &[], padded(bytes).as_bytes()).await;
        assert_eq!(answer.status, status, "{bytes} bytes");
    }
    for (body, status) in [("", 400), ("{", 400), ("{}", 400), (r#"{"key":"tg_browser_x"}"#, 401)] {
        assert_eq!(world.send("POST", EVENTS, &[], body.as_bytes()).await.status, status, "{body}");
    }
    let stranger = [("Origin", "https://evil.example")];
    let body = json!({ "key": key.reveal() }).to_string();
    assert_eq!(world.send("POST", EVENTS, &stranger, body.as_bytes()).await.status, 403);
    assert_eq!(world.get(EVENTS).await.status, 405);
}

#[tokio::test]
async fn a_report_that_control_did_not_take_is_sent_again_before_anything_newer() {
    let world = world(Duration::from_millis(20)).await;
    let mut usage = world.source.usage.subscribe();
    world.source.set_down(true);
    assert_eq!(world.one("secret", "{}").await.status, 200);
    let tried = usage.wait_for(|reports| reports.len() >= 3);
    let tried =
        tokio::time::timeout(DEADLINE, tried).await.expect("in time").expect("an edge").clone();
    assert!(tried.iter().all(|report| *report == tried[0]), "{tried:#?}");
    assert_eq!(sums(&tried[..1]), [sum("secret", Some("on"), Who::Server, 1)]);
    assert_eq!(world.one("secret", "{}").await.status, 200);
    world.source.set_down(false);
    let newer = usage.wait_for(|reports| reports.last().is_some_and(|report| report.sequence == 2));
    let all =
        tokio::time::timeout(DEADLINE, newer).await.expect("in time").expect("an edge").clone();
    let (newest, older) = all.split_last().expect("reports");
    assert!(older.iter().all(|report| *report == tried[0]), "{all:#?}");
    assert_eq!(newest.run, tried[0].run);
    assert_eq!(sums(std::slice::from_ref(newest)), [sum("secret", Some("on"), Who::Server, 1)]);
}

#[tokio::test]
async fn the_same_key_in_a_service_counts_as_a_server() {
    let world = patient().await;
    let body = json!({ "key": server_key().reveal(),
        "usage": [used("banner", json!("on"), minute(), 1)] });
    assert_eq!(beacon(&world, &body).await.json()["accepted"], 1);
    let usage = world.source.usage.subscribe();
    world.edge.shutdown().await;
    assert_eq!(sums(&usage.borrow()), [sum("banner", Some("on"), Who::Server, 1)]);
}
