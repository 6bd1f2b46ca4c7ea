//! The gate that holds up a snapshot which grows or shrinks too much at once.

use serde_json::{Value, json};

use crate::world::World;

const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

async fn import(world: &World, flags: std::ops::Range<usize>) -> i64 {
    let flags: serde_json::Map<String, Value> = flags
        .map(|index| {
            let flag = json!({ "state": "ENABLED", "variants": { "on": true, "off": false },
                "defaultVariant": "on" });
            (format!("f{index}"), flag)
        })
        .collect();
    let (status, body) =
        world.post(&format!("{PLACE}/import?format=flagd"), json!({ "flags": flags })).await;
    assert_eq!(status, 200, "{body}");
    body["revision"].as_i64().expect("a revision")
}

/// Until the newest revision was refused: why, after the head was seen to stay.
async fn rejected(world: &World, edge: &str, head: &rules::head::Heads) -> String {
    let body = world.until(PLACE, |body| body["rejected"].is_string()).await;
    assert_eq!(&world.heads(edge).await, head, "the head stays");
    assert!(body["published"]["revision"].as_i64() < body["revision"].as_i64(), "{body}");
    body["rejected"].as_str().expect("a reason").to_owned()
}

async fn allow(world: &World) {
    let path = format!("{PLACE}/publish");
    let (status, body) = world.post(&path, json!({ "allowGrowth": true })).await;
    assert_eq!(status, 202, "{body}");
    world.published("ours").await;
}

#[tokio::test]
async fn a_snapshot_that_more_than_doubles_or_halves_waits_for_allow_growth() {
    let world = World::new().await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    import(&world, 0..101).await;
    world.published("ours").await;

    // Twice as many pass, one more does not.
    import(&world, 101..202).await;
    world.published("ours").await;
    let head = world.heads(&edge).await;
    import(&world, 202..405).await;
    let reason = rejected(&world, &edge, &head).await;
    assert!(reason.contains("double") && reason.contains("allowGrowth"), "{reason}");

    // Publishing again without the word is refused again: a new revision, the same gate.
    let (status, _) = world.post(&format!("{PLACE}/publish"), json!({})).await;
    assert_eq!(status, 202);
    rejected(&world, &edge, &head).await;
    allow(&world).await;
    let now = world.heads(&edge).await;
    assert_ne!(now, head, "it is published");

    // The other way: 405 flags, of which 202 are less than half.
    let delete = async |from: usize, to: usize| {
        for index in from..to {
            let (status, body) =
                world.delete(&format!("/api/v1/namespaces/ours/flags/f{index}")).await;
            assert_eq!(status, 204, "f{index}: {body}");
        }
    };
    // Nothing is published while all of these are written: the bus's head is held by a gate that
    // looks at the whole, so they go in one transaction behind control's back.
    let gone = world
        .sql("DELETE FROM flag WHERE key NOT IN (SELECT key FROM flag ORDER BY key LIMIT 203)")
        .await;
    assert_eq!(gone, 202);
    delete(0, 1).await;
    let reason = rejected(&world, &edge, &now).await;
    assert!(reason.contains("halve, from 405 to 202"), "{reason}");
    allow(&world).await;
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_snapshot_that_empties_waits_and_one_of_a_hundred_flags_may_do_as_it_likes() {
    let world = World::new().await;
    world.namespace("ours").await;
    let edge = world.edge_key(json!("all")).await;
    import(&world, 0..101).await;
    world.published("ours").await;
    let head = world.heads(&edge).await;
    assert_eq!(world.sql("DELETE FROM flag WHERE key <> 'f0'").await, 100);
    let (status, body) = world.delete("/api/v1/namespaces/ours/flags/f0").await;
    assert_eq!(status, 204, "{body}");
    let reason = rejected(&world, &edge, &head).await;
    assert!(reason.contains("lose all of its 101 flags"), "{reason}");
    allow(&world).await;
    assert_ne!(world.heads(&edge).await, head);

    // From nothing to a hundred, and back to nothing: below the gate.
    import(&world, 1000..1100).await;
    world.published("ours").await;
    assert_eq!(world.sql("DELETE FROM flag WHERE key <> 'f1000'").await, 99);
    assert_eq!(world.delete("/api/v1/namespaces/ours/flags/f1000").await.0, 204);
    world.published("ours").await;
    world.control.shutdown().await;
}
