//! A protected environment: no way leads past its approvals but those that are named.

use serde_json::{Value, json};

use crate::change_sets::{
    OURS, SETS, config_item, furnished, is_problem, protect, revision, serving,
};
use crate::world::read;

const PRODUCTION: &str = "/api/v1/namespaces/ours/environments/production";

#[tokio::test]
async fn protection_is_a_setting_with_versions_and_bounds() {
    let world = furnished(&[]).await;
    let path = format!("{PRODUCTION}/protection");
    let (_, body) = world.get(&path).await;
    assert_eq!(
        body,
        json!({ "approvals": 0, "excludeAuthor": true, "version": 0, "updatedAt": null })
    );
    for (body, pointer) in [
        (json!({ "approvals": 6 }), "/approvals"),
        (json!({ "approvals": -1 }), "/approvals"),
        (json!({ "approvals": 1, "excludeAuthor": false }), "/excludeAuthor"),
    ] {
        let (status, answer) = world.put(&path, body).await;
        assert_eq!((status, &answer["errors"][0]["pointer"]), (422, &json!(pointer)), "{answer}");
    }
    assert_eq!(world.put(&path, json!({ "approvals": 2 })).await.0, 200);
    let stale =
        world.ask("PUT", &path).header("if-match", "\"0\"").json(&json!({ "approvals": 0 }));
    assert_eq!(read(stale).await.0, 412);
    let (_, audit) = world.get(&format!("{OURS}/audit?limit=1")).await;
    let row = &audit["items"][0];
    assert_eq!(
        (&row["action"], &row["after"]["approvals"]),
        (&json!("environment.protect"), &json!(2))
    );
    world.control.shutdown().await;
}

#[tokio::test]
async fn words_for_people_and_new_flags_need_no_approval_and_what_is_served_does() {
    let world = furnished(&["a"]).await;
    world.environment("ours", "staging").await;
    protect(&world, "production", 1).await;
    let flag = |change: Value| {
        let mut flag =
            json!({ "key": "a", "type": "boolean", "variants": { "on": true, "off": false } });
        for (name, value) in change.as_object().expect("an object") {
            flag[name] = value.clone();
        }
        flag
    };
    let path = format!("{OURS}/flags/a");
    let words = flag(json!({ "description": "words", "tags": ["team:x"] }));
    assert_eq!(world.put(&path, words.clone()).await.0, 200);
    assert_eq!(world.flag("ours", "b").await.0, 201);
    assert_eq!(
        world.put(&format!("{OURS}/environments/staging/flags/a"), serving("on")).await.0,
        200
    );
    for change in [
        json!({ "variants": { "on": true, "off": true } }),
        json!({ "variants": { "off": false, "on": true } }),
        json!({ "clients": "local" }),
        json!({ "salt": "pepper" }),
        json!({ "metadata": { "team": "x" } }),
    ] {
        let (status, body) = world.put(&path, flag(change.clone())).await;
        assert_eq!(
            (status, is_problem(&body, "approval-required")),
            (409, true),
            "{change}: {body}"
        );
    }
    // Into an environment that is not protected, so far as it leaves the others alone.
    let document = |variant: &str, on: bool| {
        json!({ "flags": { "a": { "definition": { "type": "boolean",
            "variants": { "on": on, "off": false } }, "config": serving(variant) } } })
    };
    let import =
        |environment: &str| format!("{OURS}/environments/{environment}/import?format=tidegate");
    assert_eq!(world.post(&import("staging"), document("off", true)).await.0, 200);
    for (environment, document) in
        [("staging", document("off", false)), ("production", document("on", true))]
    {
        let (status, body) = world.post(&import(environment), document).await;
        assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_kill_switch_turns_off_and_does_nothing_else_and_the_audit_says_so() {
    let world = furnished(&["a"]).await;
    let config = format!("{PRODUCTION}/flags/a");
    assert_eq!(world.put(&config, serving("on")).await.0, 200);
    protect(&world, "production", 3).await;
    let kill = format!("{config}/kill");
    assert_eq!(world.post(&kill, json!({ "reason": "" })).await.0, 422, "why is to be said");
    assert_eq!(world.post(&kill, json!({ "reason": "r", "enabled": true })).await.0, 422);
    let (status, body) = world.post(&kill, json!({ "reason": "checkout is down" })).await;
    assert_eq!(status, 200, "{body}");
    let mut off = serving("on");
    off["enabled"] = json!(false);
    assert_eq!((&body["config"], &body["version"]), (&off, &json!(2)));
    let at = world.published("ours").await;
    let (_, audit) = world.get(&format!("{OURS}/audit?limit=1")).await;
    let row = &audit["items"][0];
    assert_eq!(row["action"], "flag.kill");
    assert_eq!(row["after"]["reason"], "checkout is down");
    assert_eq!(row["after"]["pastApprovals"], 3);

    // Again is as good as once; and the way back needs approval.
    let (status, body) = world.post(&kill, json!({ "reason": "again" })).await;
    assert_eq!((status, &body["version"]), (200, &json!(2)), "{body}");
    assert_eq!(revision(&world, "production").await, at);
    let (status, body) = world.put(&config, serving("on")).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    let restore =
        world.ask("POST", &format!("{config}/versions/1/restore")).header("if-match", "*");
    assert_eq!(read(restore).await.0, 409);
    // A set that was made before is in conflict: it does not turn it on again unseen.
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_change_set_that_was_made_before_a_kill_does_not_turn_the_flag_on_again() {
    let world = furnished(&["a"]).await;
    let config = format!("{PRODUCTION}/flags/a");
    assert_eq!(world.put(&config, serving("on")).await.0, 200);
    let (_, made) =
        world.post(SETS, json!({ "title": "T", "items": [config_item("a", "off")] })).await;
    let number = &made["number"];
    assert_eq!(world.post(&format!("{SETS}/{number}/submit"), json!({})).await.0, 200);
    assert_eq!(world.post(&format!("{config}/kill"), json!({ "reason": "down" })).await.0, 200);
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!((status, is_problem(&body, "conflict")), (409, true), "{body}");
    assert_eq!(world.get(&config).await.1["config"]["enabled"], false);
    world.control.shutdown().await;
}
