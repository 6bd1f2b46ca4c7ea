//! Keys that expire, that have a rate of their own, and that are reported as used.

use std::num::NonZeroU32;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};

use crate::world::{
    Answer, DEADLINE, Events, Shop, Source, World, config, server_key, until_limited, version,
};

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis() as i64
}

fn other_key() -> ApiKey {
    ApiKey::new(KeyKind::Server, &[9; KEY_ENTROPY_BYTES])
}

async fn ask(world: &World, key: &ApiKey) -> Answer {
    let bearer = format!("Bearer {}", key.reveal());
    let headers = [("Authorization", bearer.as_str())];
    world.send("POST", "/ofrep/v1/evaluate/flags/banner", &headers, b"{}").await
}

#[tokio::test]
async fn a_key_is_refused_once_it_has_expired_without_a_new_snapshot_and_its_streams_end() {
    let mut shop = Shop::new();
    shop.key(&other_key(), &[]);
    let world = World::new().await;
    let bearer = format!("Bearer {}", other_key().reveal());
    let headers = [("Authorization", bearer.as_str())];
    // All of this has to come before its end, which takes seconds where many tests run.
    let (mut lead_ms, mut newest) = (3_000, version(1, 1));
    let (expires_at_ms, mut stream) = loop {
        newest.revision += 1;
        let expires_at_ms = now_ms() + lead_ms;
        shop.terms.insert(other_key().id, (Some(expires_at_ms), None));
        world.source.publish(&shop.snapshot(), newest);
        world.serves(newest).await;
        let status = ask(&world, &other_key()).await.status;
        let stream = Events::open(&world, "/ofrep/v1/events", &headers).await;
        if (status, stream.head.status) == (200, 200) {
            break (expires_at_ms, stream);
        }
        // Its end has to come while `Events::next` still waits for it.
        let may_double = lead_ms * 4 < DEADLINE.as_millis() as i64;
        assert!(now_ms() >= expires_at_ms && may_double, "refused early: {status}");
        lead_ms *= 2;
    };
    // It lives for ten minutes otherwise.
    while stream.next().await.is_some() {}
    assert!(now_ms() >= expires_at_ms, "it ended early");

    let answer = ask(&world, &other_key()).await;
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(answer.text().contains("has expired"), "{answer:?}");
    let refused = Events::open(&world, "/ofrep/v1/events", &headers).await;
    assert_eq!(refused.head.status, 401);
    assert_eq!(ask(&world, &server_key()).await.status, 200, "its neighbour goes on");
    assert_eq!(world.serving(), Some(newest));
}

#[tokio::test]
async fn a_key_that_is_given_less_time_by_a_new_snapshot_loses_its_open_stream_too() {
    let mut shop = Shop::new();
    let world = World::new().await;
    let bearer = format!("Bearer {}", server_key().reveal());
    let headers = [("Authorization", bearer.as_str())];
    let mut stream = Events::open(&world, "/ofrep/v1/events", &headers).await;
    assert_eq!(stream.head.status, 200);
    stream.next().await.expect("its first words");
    shop.terms.insert(server_key().id, (Some(now_ms()), None));
    world.source.publish(&shop.snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    while stream.next().await.is_some() {}
    assert_eq!(ask(&world, &server_key()).await.status, 401);
}

#[tokio::test]
async fn the_rate_of_a_key_goes_before_that_of_the_edge_and_changes_with_its_snapshot() {
    let mut shop = Shop::new();
    shop.key(&other_key(), &[]);
    shop.terms.insert(other_key().id, (None, Some(1_000_000)));
    let source = Source::new();
    source.publish(&shop.snapshot(), version(1, 1));
    let mut config = config(None);
    config.server_rate_per_s = NonZeroU32::new(1);
    let world = World::start(config, source).await;
    world.serves(version(1, 1)).await;

    let limited = until_limited(async || ask(&world, &server_key()).await).await;
    assert_eq!(limited.header("retry-after"), Some("1"));
    for _ in 0..20 {
        assert_eq!(ask(&world, &other_key()).await.status, 200);
    }
    shop.terms.insert(other_key().id, (None, Some(1)));
    world.source.publish(&shop.snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    until_limited(async || ask(&world, &other_key()).await).await;
}

#[tokio::test]
async fn a_key_that_was_used_is_reported_with_its_minute_and_an_unused_one_is_not() {
    let mut config = config(None);
    config.usage_every = Duration::from_millis(50);
    let world = World::with(config).await;
    let before = now_ms() / 60_000;
    let mut reports = world.source.usage.subscribe();
    // A bulk answer counts no flag; the key is used all the same.
    assert_eq!(world.all("{}").await.status, 200);
    let uses = |reports: &[rules::usage::UsageReport]| -> Vec<(String, i64)> {
        let parts = reports.iter().flat_map(|report| &report.environments);
        parts.flat_map(|of| &of.keys).map(|used| (used.id.clone(), used.minute)).collect()
    };
    let arrives = reports.wait_for(|reports| !uses(reports).is_empty());
    let reported = tokio::time::timeout(DEADLINE, arrives).await.expect("in time").expect("sent");
    let [(id, minute)] = uses(&reported)[..].to_vec().try_into().expect("one key");
    drop(reported);
    assert_eq!(id, server_key().id);
    assert!((before..=now_ms() / 60_000).contains(&minute));
    let wrong = ApiKey::new(KeyKind::Server, &[8; KEY_ENTROPY_BYTES]);
    assert_eq!(ask(&world, &wrong).await.status, 401);
    let usage = world.source.usage.subscribe();
    world.edge.shutdown().await;
    let all = uses(&usage.borrow());
    assert_eq!(all.len(), 1, "each use is reported once: {all:?}");
}
