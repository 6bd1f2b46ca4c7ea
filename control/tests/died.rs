//! Control dies at a point of a write, or cannot publish one environment.
//! Run with `--features failpoints`. Failpoints belong to the whole process: one test at a time.
#![cfg(feature = "failpoints")]

mod world;

use std::time::Duration;

use fail::FailScenario;
use serde_json::json;
use tokio::time::Instant;
use world::{PATIENCE, World, read};

const FLAGS: &str = "/api/v1/namespaces/ours/flags";
const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

fn flag(key: &str) -> serde_json::Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } })
}

/// Nothing but a commit's own signal makes it look for work.
async fn deaf() -> World {
    let hour = Duration::from_secs(3600);
    World::with(tempfile::tempdir().expect("a folder"), |config| {
        (config.tick, config.reconcile) = (hour, hour);
    })
    .await
}

#[tokio::test]
async fn a_write_that_dies_before_its_commit_leaves_nothing() {
    let scenario = FailScenario::setup();
    let world = deaf().await;
    world.namespace("ours").await;
    let before = world.published("ours").await;
    fail::cfg("change::commit", "return").expect("a failpoint");
    let request = || world.ask("POST", FLAGS).header("idempotency-key", "k").json(&flag("f"));
    assert_eq!(read(request()).await.0, 500);
    fail::remove("change::commit");
    let world = world.restart().await;
    assert_eq!(world.get(&format!("{FLAGS}/f")).await.0, 404);
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit/verify").await;
    assert_eq!(audit, json!({ "valid": true, "rows": 2 }), "namespace and environment");
    assert_eq!(world.published("ours").await, before, "no revision was used up");
    // Its idempotency key was not taken.
    let request = world.ask("POST", FLAGS).header("idempotency-key", "k").json(&flag("f"));
    assert_eq!(read(request).await.0, 201);
    assert_eq!(world.published("ours").await, before + 1);
    world.control.shutdown().await;
    scenario.teardown();
}

#[tokio::test]
async fn a_write_that_dies_after_its_commit_is_published_by_the_next_start_and_is_not_done_twice() {
    let scenario = FailScenario::setup();
    let world = deaf().await;
    world.namespace("ours").await;
    let before = world.published("ours").await;
    // The relay may still look at what it has just published, and would take the next write along; on
    // PostgreSQL a bell may come late, too.
    fail::cfg("publisher::environment", "return(production)").expect("a failpoint");
    fail::cfg("change::committed", "return").expect("a failpoint");
    let send = async |world: &World| {
        read(world.ask("POST", FLAGS).header("idempotency-key", "k").json(&flag("f"))).await
    };
    assert_eq!(send(&world).await.0, 500, "whoever sent it does not know");
    fail::remove("change::committed");
    let (_, body) = world.get(PLACE).await;
    assert_eq!(body["revision"], before + 1, "{body}");
    assert_eq!(body["published"]["revision"], before, "{body}");

    let World { control, dir, .. } = world;
    control.shutdown().await;
    fail::remove("publisher::environment");
    let world = World::on(dir).await;
    assert_eq!(world.published("ours").await, before + 1);
    assert_eq!(send(&world).await.0, 201, "the client's second try has its answer");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit/verify").await;
    assert_eq!(audit, json!({ "valid": true, "rows": 3 }), "one write");
    assert_eq!(world.published("ours").await, before + 1);
    world.control.shutdown().await;
    scenario.teardown();
}

/// Publications that failed in this process so far.
async fn failures(world: &World) -> u64 {
    let (_, text) = world.get("/metrics").await;
    let text = text.as_str().expect("text");
    let line = text.lines().find_map(|line| {
        line.strip_prefix("tidegate_control_publish_failed_total")?.trim().parse().ok()
    });
    line.unwrap_or(0)
}

#[tokio::test]
async fn an_environment_that_cannot_be_published_waits_longer_each_time_and_delays_no_other() {
    let scenario = FailScenario::setup();
    let world = World::new().await;
    world.namespace("ours").await;
    world.environment("ours", "broken").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    world.published("ours").await;
    world.published_in("ours", "broken").await;
    fail::cfg("publisher::environment", "return(broken)").expect("a failpoint");
    let (before, began) = (failures(&world).await, Instant::now());
    let broken = "/api/v1/namespaces/ours/environments/broken/flags/f";
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    assert_eq!(world.put(broken, config.clone()).await.0, 200);

    // A busy neighbour: each of its writes is published, and each wakes the relay.
    let mut writes = 0u32;
    let enough = |began: &Instant, writes: u32| writes >= 40 || began.elapsed().as_secs() >= 4;
    while !enough(&began, writes) || failures(&world).await < before + 3 {
        assert!(began.elapsed() < PATIENCE * 4, "{writes} writes, too few failures");
        assert_eq!(world.put(&format!("{PLACE}/flags/f"), config.clone()).await.0, 200);
        world.published("ours").await;
        writes += 1;
    }
    let failed = failures(&world).await - before;
    let elapsed = began.elapsed();
    // Pauses of 5, 10, 20 … ms, each no shorter than its half.
    let mut most = 1;
    let (mut pause, mut used) = (Duration::from_micros(2500), Duration::ZERO);
    while used + pause <= elapsed {
        (used, pause, most) = (used + pause, pause * 2, most + 1);
    }
    assert!(failed <= most, "{failed} tries in {elapsed:?}, at most {most} are due");
    let (_, body) = world.get("/api/v1/namespaces/ours/environments/broken").await;
    assert_ne!(body["published"]["revision"], body["revision"], "{body}");

    fail::remove("publisher::environment");
    // The pause that runs is at most three times as long as all before it.
    world.published_within("ours", "broken", began.elapsed() * 3 + PATIENCE).await;
    world.control.shutdown().await;
    scenario.teardown();
}

const SETS: &str = "/api/v1/namespaces/ours/change-sets";

/// Schedules whose firing was interrupted in this process so far.
async fn interrupted(world: &World) -> u64 {
    let (_, text) = world.get("/metrics").await;
    let text = text.as_str().expect("text").to_owned();
    let name = "tidegate_control_schedules_total{outcome=\"interrupted\"}";
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0)
}

/// A change set that turns flag `f` on, due in `after` or, where the machine was slower than that, in
/// longer: when it is due, and the revision that was published before it was scheduled.
async fn scheduled(world: &World, mut after: Duration) -> (i64, i64) {
    world.namespace("ours").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let item =
        json!({ "kind": "config", "environment": "production", "key": "f", "value": config });
    let (status, body) = world.post(SETS, json!({ "title": "On", "items": [item] })).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(world.post(&format!("{SETS}/1/submit"), json!({})).await.0, 200);
    let before = world.published("ours").await;
    loop {
        let at = control::store::now_us() + i64::try_from(after.as_micros()).expect("soon");
        let body = json!({ "applyAt": control::store::rfc3339(at) });
        let (status, body) = world.post(&format!("{SETS}/1/schedule"), body).await;
        // A time that is over once the request is read is refused.
        if status == 422 && after < PATIENCE {
            after *= 2;
            continue;
        }
        assert_eq!(status, 200, "{body}");
        return (at, before);
    }
}

/// A change set comes due and its firing dies at `point`: the revision that is published before.
async fn until_interrupted(world: &World, point: &str) -> i64 {
    let seen = interrupted(world).await;
    fail::cfg(point, "return").expect("a failpoint");
    let (_, before) = scheduled(world, Duration::from_millis(200)).await;
    let began = Instant::now();
    while interrupted(world).await == seen {
        assert!(began.elapsed() < PATIENCE, "it never fired");
        tokio::task::yield_now().await;
    }
    before
}

/// It is applied, once, and published.
async fn is_applied_once(world: &World, before: i64) {
    let applied = world.until(&format!("{SETS}/1"), |set| set["state"] == "applied").await;
    let events = applied["events"].as_array().expect("events");
    let count = |kind: &str| events.iter().filter(|event| event["kind"] == kind).count();
    assert_eq!((count("applied"), count("failed"), count("conflicted")), (1, 0, 0), "{applied}");
    assert_eq!(applied["revisions"], json!({ "production": before + 1 }));
    assert_eq!(world.published("ours").await, before + 1, "one revision");
    let (_, config) = world.get(&format!("{PLACE}/flags/f")).await;
    assert_eq!((&config["version"], &config["config"]["enabled"]), (&json!(1), &json!(true)));
    let (_, page) = world.get("/api/v1/namespaces/ours/audit?limit=200").await;
    let rows = page["items"].as_array().expect("rows");
    let applies = rows.iter().filter(|row| row["action"] == "change-set.apply").count();
    assert_eq!(applies, 1, "{page}");
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit/verify").await;
    assert_eq!(audit["valid"], true, "{audit}");
}

#[tokio::test]
async fn a_schedule_that_dies_before_its_commit_has_done_nothing_and_fires_after_the_restart() {
    let scenario = FailScenario::setup();
    let world = World::new().await;
    let before = until_interrupted(&world, "schedule::commit").await;
    let (_, set) = world.get(&format!("{SETS}/1")).await;
    assert_eq!(set["state"], "scheduled", "{set}");
    assert_eq!(world.published("ours").await, before, "no revision was used up");
    fail::remove("schedule::commit");
    let world = world.restart().await;
    is_applied_once(&world, before).await;
    world.control.shutdown().await;
    scenario.teardown();
}

#[tokio::test]
async fn a_schedule_that_dies_after_its_commit_is_published_by_the_next_start_and_not_done_twice() {
    let scenario = FailScenario::setup();
    let world = World::new().await;
    let before = until_interrupted(&world, "schedule::committed").await;
    fail::remove("schedule::committed");
    let world = world.restart().await;
    is_applied_once(&world, before).await;
    world.control.shutdown().await;
    scenario.teardown();
}

#[tokio::test]
async fn a_schedule_that_comes_due_while_control_is_down_fires_late_and_once() {
    let scenario = FailScenario::setup();
    let world = World::new().await;
    // Long enough for control to be down by then.
    let (at, before) = scheduled(&world, Duration::from_secs(5)).await;
    let World { control, dir, .. } = world;
    control.shutdown().await;
    let began = Instant::now();
    while control::store::now_us() < at {
        assert!(began.elapsed() < PATIENCE, "time stands still");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let world = World::on(dir).await;
    is_applied_once(&world, before).await;
    world.control.shutdown().await;
    scenario.teardown();
}
