//! From one environment into another: what would change, and the change, as one or as a set.

use serde_json::{Value, json};

use crate::change_sets::{OURS, SETS, is_problem, protect, revision, serving};
use crate::world::World;

async fn world() -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    world.environment("ours", "staging").await;
    for flag in ["a", "b", "same", "needs"] {
        assert_eq!(world.flag("ours", flag).await.0, 201);
    }
    let staging = |flag: &str| format!("{OURS}/environments/staging/flags/{flag}");
    let segment = json!({ "key": "beta", "included": ["ann"] });
    let segments = format!("{OURS}/environments/staging/segments");
    assert_eq!(world.post(&segments, segment).await.0, 201);
    let mut needs = serving("off");
    needs["rules"] =
        json!([{ "id": "r", "when": { "segment": "beta" }, "serve": { "variant": "on" } }]);
    for (flag, config) in [("a", serving("on")), ("b", serving("off")), ("needs", needs)] {
        assert_eq!(world.put(&staging(flag), config).await.0, 200, "{flag}");
    }
    world
}

fn promotion(flags: &[&str]) -> Value {
    json!({ "from": "staging", "to": "production", "flags": flags })
}

#[tokio::test]
async fn a_comparison_says_what_it_would_take_and_what_is_missing_there() {
    let world = world().await;
    let compare = |flag: &str, from: &str, to: &str| {
        format!("{OURS}/flags/{flag}/compare?from={from}&to={to}")
    };
    let (status, body) = world.get(&compare("a", "staging", "production")).await;
    assert_eq!((status, &body["changed"]), (200, &json!(true)), "{body}");
    assert_eq!((&body["fromVersion"], &body["baseVersion"]), (&json!(1), &json!(0)));
    assert_eq!(body["fromConfig"], serving("on"));
    assert_eq!(body["toConfig"]["enabled"], false);
    let operations = body["diff"].as_array().expect("operations");
    assert!(operations.contains(&json!({ "op": "replace", "path": "/enabled", "value": true })));
    let (_, same) = world.get(&compare("same", "staging", "production")).await;
    assert_eq!((&same["changed"], &same["diff"]), (&json!(false), &json!([])));
    let (_, needs) = world.get(&compare("needs", "staging", "production")).await;
    assert!(needs["problems"][0]["message"].as_str().expect("why").contains("beta"), "{needs}");
    for missing in [
        compare("x", "staging", "production"),
        compare("a", "x", "production"),
        compare("a", "staging", "x"),
    ] {
        assert_eq!(world.get(&missing).await.0, 404, "{missing}");
    }
    assert_eq!(world.get(&compare("a", "staging", "staging")).await.0, 422);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_promotion_is_one_revision_and_does_what_its_dry_run_said() {
    let world = world().await;
    let path = format!("{OURS}/promotions");
    let before = revision(&world, "production").await;
    let mut dry = promotion(&["a", "b", "same"]);
    dry["dryRun"] = json!(true);
    let (status, said) = world.post(&path, dry).await;
    assert_eq!((status, &said["revision"]), (200, &Value::Null), "{said}");
    assert_eq!(revision(&world, "production").await, before, "a dry run changes nothing");
    let (status, body) = world.post(&path, promotion(&["a", "needs"])).await;
    assert_eq!(status, 422, "one that is missing something takes the other with it: {body}");
    assert_eq!(revision(&world, "production").await, before);

    let mut stale = promotion(&["a", "b"]);
    stale["baseVersions"] = json!({ "a": 3 });
    assert_eq!(world.post(&path, stale).await.0, 412);
    let (status, done) = world.post(&path, promotion(&["a", "b", "same"])).await;
    assert_eq!((status, &done["revision"]), (200, &json!(before + 1)), "{done}");
    assert_eq!(done["flags"], said["flags"]);
    assert_eq!(world.published("ours").await, before + 1);
    for (flag, config, version) in [("a", serving("on"), 1), ("b", serving("off"), 1)] {
        let (_, now) = world.get(&format!("{OURS}/environments/production/flags/{flag}")).await;
        assert_eq!((&now["config"], &now["version"]), (&config, &json!(version)));
    }
    // Again there is nothing to do, and nothing is done.
    let (status, again) = world.post(&path, promotion(&["a", "b", "same"])).await;
    assert_eq!((status, &again["revision"]), (200, &Value::Null), "{again}");
    assert_eq!(revision(&world, "production").await, before + 1);
    let (_, audit) = world.get(&format!("{OURS}/audit?limit=3")).await;
    let actions: Vec<&Value> =
        audit["items"].as_array().expect("rows").iter().map(|row| &row["action"]).collect();
    assert_eq!(actions, ["environment.promote", "config.set", "config.set"]);
    world.control.shutdown().await;
}

#[tokio::test]
async fn into_a_protected_environment_it_goes_as_a_change_set() {
    let world = world().await;
    protect(&world, "production", 1).await;
    let path = format!("{OURS}/promotions");
    let (status, body) = world.post(&path, promotion(&["a"])).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    let mut set = promotion(&["a", "same"]);
    set["asChangeSet"] = json!(true);
    let (status, body) = world.post(&path, set).await;
    assert_eq!((status, &body["changeSet"]), (200, &json!(1)), "{body}");
    let (_, set) = world.get(&format!("{SETS}/1")).await;
    assert_eq!((&set["state"], set["items"].as_array().map(Vec::len)), (&json!("draft"), Some(1)));
    assert_eq!(set["items"][0]["value"], serving("on"));
    assert_eq!(set["title"], "Promote \"a\" of staging to production");
    world.control.shutdown().await;
}
