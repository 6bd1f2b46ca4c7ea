//! What edges counted is counted once, kept by the minute and by the hour, and shown per flag.

use rules::usage::{EnvironmentUsage, Source, TrackCount, UsageReport, UseCount};
use serde_json::{Value, json};

use crate::world::World;

const FLAG: &str = "/api/v1/namespaces/ours/environments/production/flags/banner/usage";

fn minute() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs() as i64 / 60
}

fn used(flag: &str, variant: Option<&str>, source: Source, minute: i64, count: u64) -> UseCount {
    let (flag, variant) = (flag.to_owned(), variant.map(str::to_owned));
    UseCount { flag, variant, source, minute, count }
}

fn report(edge: &str, run: i64, sequence: u64, uses: Vec<UseCount>) -> UsageReport {
    let track = TrackCount { name: "bought".to_owned(), minute: minute(), count: 1, sum: 2.5 };
    let of = |namespace: &str| EnvironmentUsage {
        namespace: namespace.to_owned(),
        environment: "production".to_owned(),
        uses: uses.clone(),
        tracks: vec![track.clone()],
        keys: Vec::new(),
    };
    let environments = vec![of("ours"), of("theirs"), of("nobodys")];
    UsageReport { edge: edge.to_owned(), run, sequence, environments }
}

async fn send(world: &World, key: &str, report: &UsageReport) -> u16 {
    let url = format!("{}/edge/v1/usage", world.url);
    let answer = world.http.post(url).bearer_auth(key).json(report).send().await;
    answer.expect("an answer").status().as_u16()
}

async fn world() -> (World, String) {
    let world = World::new().await;
    for namespace in ["ours", "theirs"] {
        world.namespace(namespace).await;
        assert_eq!(world.flag(namespace, "banner").await.0, 201);
    }
    let key = world.edge_key(json!(["ours"])).await;
    (world, key)
}

fn totals(body: &Value) -> Vec<(Option<&str>, &str, i64)> {
    let all = body["totals"].as_array().expect("totals").iter();
    all.map(|one| {
        let count = one["count"].as_i64().expect("a count");
        (one["variant"].as_str(), one["source"].as_str().expect("a source"), count)
    })
    .collect()
}

#[tokio::test]
async fn a_report_counts_once_and_shows_by_variant_source_and_time() {
    let (world, key) = world().await;
    let (status, body) = world.get(FLAG).await;
    assert_eq!(
        (status, &body["lastEvaluatedAt"], &body["totals"]),
        (200, &Value::Null, &json!([]))
    );

    let now = minute();
    let first = report(
        "e1",
        100,
        1,
        vec![
            used("banner", Some("on"), Source::Server, now, 5),
            used("banner", Some("on"), Source::Browser, now, 3),
            used("banner", None, Source::Server, now - 1, 2),
            used("banner", Some("on"), Source::Server, now - 3 * 60, 4),
            // Of no such flag, and of times that nobody can report.
            used("no-such-flag", Some("on"), Source::Server, now, 1),
            used("banner", Some("on"), Source::Server, now - 27 * 60, 1),
            used("banner", Some("on"), Source::Server, now + 20, 1),
        ],
    );
    for _ in 0..3 {
        assert_eq!(send(&world, &key, &first).await, 204);
    }
    let wanted = vec![(None, "server", 2), (Some("on"), "browser", 3), (Some("on"), "server", 9)];
    let (_, body) = world.get(FLAG).await;
    assert_eq!(totals(&body), wanted, "{body}");
    assert_eq!(body["bucket"], "hour");
    let (_, minutes) = world.get(&format!("{FLAG}?bucket=minute")).await;
    assert_eq!(totals(&minutes), wanted);
    assert_eq!(minutes["buckets"].as_array().map(Vec::len), Some(4), "{minutes}");
    let seen = minutes["lastEvaluatedAt"].as_str().expect("a time").to_owned();
    assert_eq!(minutes["buckets"][3]["at"], json!(seen), "the newest minute");

    // The next one adds up; an older number, late, does not; another run and another edge do.
    let one = |sequence| {
        report("e1", 100, sequence, vec![used("banner", Some("on"), Source::Server, now, 1)])
    };
    for (report, server) in [
        (one(2), 10),
        (one(1), 10),
        (UsageReport { run: 50, ..one(1) }, 11),
        (UsageReport { edge: "e2".to_owned(), ..one(2) }, 12),
    ] {
        assert_eq!(send(&world, &key, &report).await, 204);
        let (_, body) = world.get(FLAG).await;
        assert_eq!(totals(&body)[2], (Some("on"), "server", server), "{report:?}");
    }
    // The key sees one namespace, and what it says of others counts nowhere.
    let (_, theirs) = world.get(&FLAG.replace("ours", "theirs")).await;
    assert_eq!(theirs["totals"], json!([]));
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_range_is_of_whole_buckets_and_nonsense_is_refused() {
    let (world, key) = world().await;
    let now = minute();
    let uses = vec![
        used("banner", Some("on"), Source::Server, now - 10, 1),
        used("banner", Some("off"), Source::Server, now - 2, 1),
    ];
    assert_eq!(send(&world, &key, &report("e1", 1, 1, uses)).await, 204);
    let (_, all) = world.get(&format!("{FLAG}?bucket=minute")).await;
    let at = |index: usize| all["buckets"][index]["at"].as_str().expect("a time").to_owned();
    let range = |from: &str, to: &str| format!("{FLAG}?bucket=minute&from={from}&to={to}");
    let (_, first) = world.get(&range(&at(0), &at(1))).await;
    assert_eq!(totals(&first), [(Some("on"), "server", 1)], "{first}");
    let (_, second) = world.get(&format!("{FLAG}?bucket=minute&from={}", at(1))).await;
    assert_eq!(totals(&second), [(Some("off"), "server", 1)], "{second}");
    for query in [
        "from=yesterday",
        "bucket=week",
        "unknown=1",
        "from=2027-01-01T00:00:00Z&to=2026-01-01T00:00:00Z",
    ] {
        let status = world.get(&format!("{FLAG}?{query}")).await.0;
        assert!(matches!(status, 400 | 422), "{query}: {status}");
    }
    assert_eq!(world.get(&FLAG.replace("banner", "none")).await.0, 404);
    assert_eq!(world.get(&FLAG.replace("production", "none")).await.0, 404);
    let long = UsageReport { edge: "x".repeat(129), ..report("e", 1, 1, Vec::new()) };
    assert_eq!(send(&world, &key, &long).await, 422);
    assert_eq!(send(&world, "tg_edge_x", &report("e", 1, 1, Vec::new())).await, 401);
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_the_last_use_is_not() {
    let (world, key) = world().await;
    let now = minute();
    let uses = vec![used("banner", Some("on"), Source::Server, now, 1)];
    assert_eq!(send(&world, &key, &report("e1", 1, 1, uses.clone())).await, 204);
    world.sql("UPDATE usage_minute SET minute = minute - 2900").await;
    world.sql("UPDATE usage_hour SET hour = hour - 2200").await;
    assert_eq!(send(&world, &key, &report("e1", 1, 2, Vec::new())).await, 204);
    let early = format!("{FLAG}?from=2020-01-01T00:00:00Z");
    for bucket in ["minute", "hour"] {
        let (_, body) = world.get(&format!("{early}&bucket={bucket}")).await;
        assert_eq!(body["buckets"], json!([]), "{bucket}");
        assert!(body["lastEvaluatedAt"].is_string());
    }
    // An environment takes its counts along.
    let (status, body) = world.delete_once_live("/api/v1/namespaces/ours").await;
    assert_eq!(status, 204, "{body}");
    assert_eq!(world.sql("DELETE FROM usage_flag").await, 0);
    world.control.shutdown().await;
}
