//! Change events: when they come, who gets them, and what a reconnect hears.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use edge::auth::{STREAM_TOKEN_S, StreamClaims};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::world::{
    DEADLINE, Events, STREAM_SECRET, Shop, World, browser_key, config, fixed, server_key, version,
};

fn now_s() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

fn path_with(claims: &StreamClaims) -> String {
    format!("/ofrep/v1/events?token={}", claims.sign(&STREAM_SECRET))
}

fn claims() -> StreamClaims {
    StreamClaims {
        namespace: "shop".to_owned(),
        environment: "production".to_owned(),
        key_id: browser_key().id,
        expires_s: now_s() + 600,
    }
}

fn off() -> Shop {
    let mut shop = Shop::new();
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", fixed("off"));
    shop
}

/// `banner` is off from `at` on.
fn off_from(at: OffsetDateTime) -> Shop {
    let mut shop = Shop::new();
    let config = json!({"enabled": true,
        "rules": [{"id": "later", "active": {"from": at.format(&Rfc3339).expect("a time")},
                   "serve": {"variant": "off"}}],
        "fallthrough": {"variant": "on"}});
    shop.flag("banner", "boolean", &json!({"on": true, "off": false}), "edge", config);
    shop
}

/// The stream that a bulk answer announces, as a web provider opens it.
async fn announced(world: &World) -> String {
    let key = browser_key().reveal().to_owned();
    let path = "/ofrep/v1/evaluate/flags";
    let body = world.send("POST", path, &[("X-API-Key", &key)], b"{}").await.json();
    body["eventStreams"][0]["endpoint"]["requestUri"].as_str().expect("a uri").to_owned()
}

/// Whether what comes twice as long from now still comes while `Events::next` waits.
fn may_double(lead: Duration) -> bool {
    lead * 2 < DEADLINE / 2
}

/// The id of what is told at a boundary.
fn id_at(revision: u64, at: OffsetDateTime) -> String {
    format!("1.{revision}.{}", at.unix_timestamp_nanos() / 1_000_000)
}

fn line<'a>(block: &'a str, name: &str) -> Option<&'a str> {
    block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test]
async fn a_change_is_announced_when_a_refetch_gets_it() {
    let mut config = config(None);
    config.stream_recalls = Duration::ZERO;
    let world = World::with(config).await;
    let mut events = Events::open(&world, &announced(&world).await, &[]).await;
    assert_eq!(events.head.status, 200);
    assert_eq!(events.head.header("content-type"), Some("text/event-stream"));
    let first = events.next().await.expect("the first words");
    assert_eq!(first, "retry: 5000\nid: 1.1.0", "no event: nothing was missed");
    world.source.publish(&off().snapshot(), version(1, 2));
    let event = events.next().await.expect("an event");
    assert_eq!(world.one("banner", "{}").await.json()["value"], false);
    assert_eq!(line(&event, "event"), Some("message"));
    assert_eq!(line(&event, "id"), Some("1.2.0"));
    let data: Value = serde_json::from_str(line(&event, "data").expect("data")).expect("JSON");
    assert_eq!(data["type"], "refetchEvaluation");
    assert_eq!(data["etag"], "1.2.0");
    assert_eq!(data["lastModified"], crate::world::ISSUED_AT_MS / 1000);
}

#[tokio::test]
async fn a_time_boundary_inside_a_snapshot_is_announced_when_it_passes() {
    let world = World::new().await;
    let mut events = Events::open(&world, &announced(&world).await, &[]).await;
    events.next().await.expect("the first words");
    // The snapshot has to be served before its boundary, which takes seconds where many tests run.
    let (mut lead, mut revision) = (Duration::from_secs(3), 2);
    let at = loop {
        let at = OffsetDateTime::now_utc() + lead;
        world.source.publish(&off_from(at).snapshot(), version(1, revision));
        let swap = events.next().await.expect("the swap");
        if line(&swap, "id") == Some(format!("1.{revision}.0").as_str()) {
            break at;
        }
        assert!(OffsetDateTime::now_utc() >= at && may_double(lead), "announced early: {swap}");
        (lead, revision) = (lead * 2, revision + 1);
    };
    let boundary = events.next().await.expect("the boundary");
    assert!(OffsetDateTime::now_utc() >= at, "announced early");
    assert_eq!(line(&boundary, "id"), Some(id_at(revision, at).as_str()));
    assert_eq!(world.one("banner", "{}").await.json()["value"], false);
}

#[tokio::test]
async fn a_change_between_an_answer_and_the_opening_of_its_stream_is_announced() {
    let world = World::new().await;
    let path = announced(&world).await;
    world.source.publish(&off().snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    let mut events = Events::open(&world, &path, &[]).await;
    let first = events.next().await.expect("the first words");
    assert_eq!(line(&first, "id"), Some("1.2.0"));
    let data = line(&first, "data").unwrap_or_else(|| panic!("no event: {first}"));
    assert!(data.contains("refetchEvaluation"), "{data}");
}

#[tokio::test]
async fn clients_are_told_of_a_time_boundary_one_after_the_other() {
    const STREAMS: usize = 20;
    let mut config = config(None);
    // So that they are told in five seconds.
    config.boundary_tells_per_s = NonZeroU32::new(STREAMS as u32 / 5).expect("some");
    let world = World::with(config).await;
    // All have to be open before the boundary, which takes seconds where many tests run.
    let (mut lead, mut revision) = (Duration::from_secs(3), 2);
    let (at, streams) = loop {
        let at = OffsetDateTime::now_utc() + lead;
        world.source.publish(&off_from(at).snapshot(), version(1, revision));
        world.serves(version(1, revision)).await;
        let (path, before) = (announced(&world).await, format!("1.{revision}.0"));
        let opened = (0..STREAMS).map(async |_| {
            let mut events = Events::open(&world, &path, &[("Last-Event-ID", &before)]).await;
            let first = events.next().await.expect("the first words");
            (events, first)
        });
        let opened = futures_util::future::join_all(opened).await;
        let expected = format!("retry: 5000\nid: {before}");
        match opened.iter().find(|(_, first)| *first != expected) {
            None => break (at, opened),
            Some((_, first)) => {
                let late = OffsetDateTime::now_utc() >= at;
                assert!(late && may_double(lead), "announced early: {first}");
            }
        }
        (lead, revision) = (lead * 2, revision + 1);
    };
    let told = streams.into_iter().map(async |(mut events, _)| {
        let event = events.next().await.expect("the boundary");
        assert_eq!(line(&event, "id"), Some(id_at(revision, at).as_str()));
        assert!(OffsetDateTime::now_utc() >= at, "announced early");
        Instant::now()
    });
    let told = futures_util::future::join_all(told).await;
    let spread = *told.iter().max().expect("some") - *told.iter().min().expect("some");
    // That none of twenty is drawn for nine tenths of the time does not happen.
    assert!(spread >= Duration::from_millis(500), "all were told within {spread:?}");
}

#[tokio::test]
async fn a_new_snapshot_does_not_wait_for_the_turn_of_a_boundary() {
    let mut config = config(None);
    // Each stream's turn would come within half a minute.
    config.boundary_tells_per_s = NonZeroU32::MIN;
    config.streams_max = 1_000;
    let world = World::with(config).await;
    let path = announced(&world).await;
    let mut streams = Vec::new();
    for _ in 0..30 {
        let mut events = Events::open(&world, &path, &[]).await;
        events.next().await.expect("the first words");
        streams.push(events);
    }
    world.source.publish(&off().snapshot(), version(1, 2));
    let told = streams.iter_mut().map(async |events| {
        let event = events.next().await.expect("the swap");
        assert_eq!(line(&event, "id"), Some("1.2.0"));
        Instant::now()
    });
    let told = futures_util::future::join_all(told).await;
    let spread = *told.iter().max().expect("some") - *told.iter().min().expect("some");
    // That thirty turns are all drawn within one half of that time does not happen.
    assert!(spread < Duration::from_secs(15), "they were told one after the other: {spread:?}");
}

#[tokio::test]
async fn a_silent_stream_gets_comments_and_goes_on() {
    let mut config = config(None);
    config.stream_keep_alive = Duration::from_millis(50);
    let world = World::with(config).await;
    let mut events = Events::open(&world, &announced(&world).await, &[]).await;
    events.next().await.expect("the first words");
    for _ in 0..3 {
        assert_eq!(events.next().await.as_deref(), Some(":"));
    }
    world.source.publish(&off().snapshot(), version(1, 2));
    let told = loop {
        let block = events.next().await.expect("it goes on");
        if block != ":" {
            break block;
        }
    };
    assert_eq!(line(&told, "id"), Some("1.2.0"));
}

#[tokio::test]
async fn a_client_that_missed_a_change_hears_of_it_at_once_and_one_that_did_not_hears_nothing() {
    let world = World::new().await;
    world.source.publish(&off().snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    let path = announced(&world).await;
    for missed in ["1.1.0", "0.9.0", "of another server"] {
        let mut events = Events::open(&world, &path, &[("Last-Event-ID", missed)]).await;
        let first = events.next().await.expect("the first words");
        assert_eq!(line(&first, "id"), Some("1.2.0"), "{missed}");
        assert!(line(&first, "data").is_some(), "{missed}: {first}");
    }
    let mut events = Events::open(&world, &path, &[("Last-Event-ID", "1.2.0")]).await;
    let first = events.next().await.expect("the first words");
    assert!(line(&first, "data").is_none(), "{first}");
}

#[tokio::test]
async fn a_token_that_expired_or_was_made_up_is_a_401_with_a_body() {
    let world = World::new().await;
    let good = claims();
    let bad = [
        path_with(&StreamClaims { expires_s: now_s() - 1, ..good.clone() }),
        path_with(&StreamClaims { key_id: "revoked".to_owned(), ..good.clone() }),
        path_with(&StreamClaims { environment: "staging".to_owned(), ..good.clone() }),
        format!("/ofrep/v1/events?token={}", good.sign(&[0; 32])),
        "/ofrep/v1/events?token=".to_owned(),
        "/ofrep/v1/events?token=%00".to_owned(),
        "/ofrep/v1/events".to_owned(),
    ];
    for path in bad {
        world.get(&path).await.failure(401, "GENERAL", None);
    }
    let mut events = Events::open(&world, &path_with(&good), &[]).await;
    assert!(events.next().await.is_some(), "the good one, so that the others mean something");
}

#[tokio::test]
async fn an_announced_token_expires_within_a_day_and_opens_nothing_but_the_stream() {
    let world = World::new().await;
    let path = announced(&world).await;
    let token = path.split_once("token=").expect("a token").1;
    let verify = |now_s| StreamClaims::verify(token, now_s, |_, _| Some(STREAM_SECRET));
    assert!(verify(now_s()).is_ok());
    assert!(verify(now_s() + STREAM_TOKEN_S).is_err());
    let flags = "/ofrep/v1/evaluate/flags";
    let headers = [("X-API-Key", token)];
    world.send("POST", flags, &headers, b"{}").await.failure(401, "GENERAL", None);
    let with_token = format!("{flags}?token={token}");
    world.send("POST", &with_token, &[], b"{}").await.failure(401, "GENERAL", None);
}

#[tokio::test]
async fn a_service_opens_the_stream_with_its_key_and_no_token() {
    let world = World::new().await;
    let bearer = format!("Bearer {}", server_key().reveal());
    let mut events = Events::open(&world, "/ofrep/v1/events", &[("Authorization", &bearer)]).await;
    assert!(events.next().await.is_some());
}

#[tokio::test]
async fn a_page_of_another_origin_cannot_open_the_stream() {
    let world = World::new().await;
    let path = announced(&world).await;
    let own = [("Origin", "https://shop.example")];
    let events = Events::open(&world, &path, &own).await;
    let allowed = events.head.header("access-control-allow-origin");
    assert_eq!(allowed, Some("https://shop.example"));
    let other = [("Origin", "https://evil.example")];
    world.send("GET", &path, &other, b"").await.failure(403, "GENERAL", None);
}

#[tokio::test]
async fn a_stream_ends_when_its_key_is_revoked() {
    let world = World::new().await;
    let mut events = Events::open(&world, &announced(&world).await, &[]).await;
    events.next().await.expect("the first words");
    let mut shop = Shop::new();
    shop.keys.retain(|key| key.id != browser_key().id);
    world.source.publish(&shop.snapshot(), version(1, 2));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn streams_beyond_the_most_that_an_edge_serves_are_told_to_come_later() {
    let mut config = config(None);
    config.streams_max = 1;
    let world = World::with(config).await;
    let path = path_with(&claims());
    let mut first = Events::open(&world, &path, &[]).await;
    first.next().await.expect("the first words");
    let second = world.get(&path).await;
    second.failure(503, "GENERAL", None);
    assert!(second.header("retry-after").is_some());
}

#[tokio::test]
async fn a_stream_lives_only_so_long() {
    let mut config = config(None);
    config.stream_life = Duration::from_millis(100);
    let world = World::with(config).await;
    let mut events = Events::open(&world, &path_with(&claims()), &[]).await;
    while events.next().await.is_some() {}
}

#[tokio::test]
async fn a_shutdown_ends_streams() {
    let world = World::new().await;
    let mut events = Events::open(&world, &path_with(&claims()), &[]).await;
    events.next().await.expect("the first words");
    let (ended, ()) = tokio::join!(events.next(), world.edge.shutdown());
    assert_eq!(ended, None);
}
