//! Change sets: all of it or nothing, by those who may, as it was approved.

use serde_json::{Value, json};

use crate::world::{World, read};

pub const OURS: &str = "/api/v1/namespaces/ours";
pub const SETS: &str = "/api/v1/namespaces/ours/change-sets";
const PRODUCTION: &str = "/api/v1/namespaces/ours/environments/production";

pub fn serving(variant: &str) -> Value {
    json!({ "enabled": true, "off": "off", "fallthrough": { "variant": variant } })
}

pub fn config_item(flag: &str, variant: &str) -> Value {
    json!({ "kind": "config", "environment": "production", "key": flag,
        "value": serving(variant) })
}

/// Somebody who may do everything: their session's token.
pub async fn person(world: &World, name: &str) -> String {
    let session = world.account(&format!("{name}@example.com"), true).await;
    session["accessToken"].as_str().expect("a token").to_owned()
}

pub async fn send_as(
    world: &World,
    token: &str,
    method: &str,
    path: &str,
    if_match: Option<&str>,
    body: Value,
) -> (u16, Value) {
    let url = format!("{}{path}", world.url);
    let mut request = world.http.request(method.parse().expect("a method"), url);
    if let Some(if_match) = if_match {
        request = request.header("if-match", if_match);
    }
    read(request.bearer_auth(token).json(&body)).await
}

/// At whatever version it is.
pub async fn approve_as(world: &World, token: &str, number: &Value) -> (u16, Value) {
    let path = format!("{SETS}/{number}/approve");
    send_as(world, token, "POST", &path, Some("*"), json!({})).await
}

/// Namespace `ours` with `production` and flags that are off there.
pub async fn furnished(flags: &[&str]) -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    for flag in flags {
        assert_eq!(world.flag("ours", flag).await.0, 201);
    }
    world.published("ours").await;
    world
}

pub async fn protect(world: &World, environment: &str, approvals: i64) {
    let path = format!("{OURS}/environments/{environment}/protection");
    let (status, body) = world.put(&path, json!({ "approvals": approvals })).await;
    assert_eq!(status, 200, "{body}");
}

/// A draft of these items: its number.
pub async fn draft(world: &World, items: Value) -> Value {
    let (status, body) = world.post(SETS, json!({ "title": "A change", "items": items })).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(body["state"], "draft");
    body["number"].clone()
}

/// Takes a step that is to succeed.
pub async fn step(world: &World, number: &Value, step: &str) -> Value {
    let (status, body) = world.post(&format!("{SETS}/{number}/{step}"), json!({})).await;
    assert_eq!(status, 200, "{step}: {body}");
    body
}

pub async fn revision(world: &World, environment: &str) -> i64 {
    let (_, body) = world.get(&format!("{OURS}/environments/{environment}")).await;
    body["revision"].as_i64().expect("a revision")
}

pub fn is_problem(body: &Value, kind: &str) -> bool {
    body["type"] == format!("urn:tidegate:problem:{kind}")
}

#[tokio::test]
async fn fifty_flags_in_two_environments_are_one_revision_of_each() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.environment("ours", "staging").await;
    let keys: Vec<String> = (0..50).map(|index| format!("f{index:02}")).collect();
    for key in &keys {
        assert_eq!(world.flag("ours", key).await.0, 201);
    }
    let edge = world.edge_key(json!(["ours"])).await;
    let before = (world.published("ours").await, world.published_in("ours", "staging").await);
    let mut items: Vec<Value> = keys.iter().map(|key| config_item(key, "on")).collect();
    items.push(json!({ "kind": "config", "environment": "staging", "key": "f00",
        "value": serving("on") }));
    let number = draft(&world, json!(items)).await;
    assert_eq!(revision(&world, "production").await, before.0, "a draft changes nothing");
    assert_eq!(step(&world, &number, "submit").await["state"], "approved", "nobody has to");
    let applied = step(&world, &number, "apply").await;
    assert_eq!(applied["state"], "applied");
    assert_eq!(
        applied["revisions"],
        json!({ "production": before.0 + 1, "staging": before.1 + 1 })
    );
    assert_eq!(world.published("ours").await, before.0 + 1);
    assert_eq!(world.published_in("ours", "staging").await, before.1 + 1);
    let trusted = [world.control.public_key.clone()];
    let heads = world.heads(&edge).await;
    let revisions: Vec<(String, u64)> = heads
        .heads
        .iter()
        .map(|head| head.verify(&trusted).expect("signed"))
        .map(|head| (head.environment.clone(), head.version.revision))
        .collect();
    let expected = |environment: &str, before: i64| {
        (environment.to_owned(), u64::try_from(before + 1).expect("a revision"))
    };
    for wanted in [expected("production", before.0), expected("staging", before.1)] {
        assert!(revisions.contains(&wanted), "{revisions:?}");
    }
    let (_, shown) = world.get(&format!("{PRODUCTION}/flags?limit=200")).await;
    let flags = shown["items"].as_array().expect("flags");
    assert!(flags.iter().all(|flag| flag["config"]["enabled"] == true && flag["version"] == 1));

    // One row for each item, one for the set, and the chain holds.
    let (_, audit) = world.get(&format!("{OURS}/audit?limit=200")).await;
    let actions: Vec<&str> = audit["items"]
        .as_array()
        .expect("rows")
        .iter()
        .filter_map(|row| row["action"].as_str())
        .collect();
    assert_eq!(actions[0], "change-set.apply");
    assert!(actions[1..52].iter().all(|action| *action == "config.set"), "{actions:?}");
    assert_eq!(actions[52], "change-set.submit");
    let (_, about) = world.get(&format!("{OURS}/audit?changeSet={number}&limit=200")).await;
    assert_eq!(
        about["items"].as_array().map(Vec::len),
        Some(54),
        "made, submitted, applied, items"
    );
    assert_eq!(world.get(&format!("{OURS}/audit/verify")).await.1["valid"], true);
    let (_, version) = world.get(&format!("{PRODUCTION}/flags/f07/versions/1")).await;
    assert_eq!(version["changeSet"], number);
    world.control.shutdown().await;
}

#[tokio::test]
async fn one_item_that_does_not_load_any_more_takes_all_others_with_it() {
    let world = furnished(&["a", "b"]).await;
    let number = draft(&world, json!([config_item("a", "on"), config_item_for_beta("b")])).await;
    segment(&world, "beta").await;
    step(&world, &number, "submit").await;
    // Nothing that is there needs it, and nothing that the set is about changes.
    assert_eq!(world.delete(&format!("{PRODUCTION}/segments/beta")).await.0, 204);
    let before = revision(&world, "production").await;
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["errors"][0]["pointer"], "/items/1/value/rules/0/when/segment", "{body}");
    assert_eq!(revision(&world, "production").await, before);
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a")).await.1["version"], 0);
    assert_eq!(world.get(&format!("{SETS}/{number}")).await.1["state"], "approved");
    world.control.shutdown().await;
}

/// Serves "on" to whom the segment "beta" has.
pub fn config_item_for_beta(flag: &str) -> Value {
    let rule = json!({ "id": "beta", "when": { "segment": "beta" }, "serve": { "variant": "on" } });
    let mut item = config_item(flag, "off");
    item["value"]["rules"] = json!([rule]);
    item
}

pub async fn segment(world: &World, key: &str) {
    let path = format!("{PRODUCTION}/segments");
    let (status, body) = world.post(&path, json!({ "key": key, "included": ["ann"] })).await;
    assert_eq!(status, 201, "{body}");
}

#[tokio::test]
async fn what_could_not_be_applied_is_said_with_its_place_when_it_is_submitted() {
    let world = furnished(&["a", "b"]).await;
    world.environment("ours", "staging").await;
    let staging = |flag: &str, variant: &str| {
        let mut item = config_item(flag, variant);
        item["environment"] = json!("staging");
        item
    };
    let definition = |variants: Value| {
        json!({ "kind": "definition", "key": "a",
            "value": { "key": "a", "type": "boolean", "variants": variants } })
    };
    let in_staging = format!("{OURS}/environments/staging/flags/a");
    assert_eq!(world.put(&in_staging, serving("on")).await.0, 200);
    let unknown_flag = config_item("nowhere", "on");
    let table: [(&str, Value, &[&str]); 5] = [
        (
            "each of them, where it is",
            json!([config_item("a", "nope"), staging("a", "never"), config_item("b", "neither")]),
            &[
                "/items/0/value/fallthrough/variant",
                "/items/2/value/fallthrough/variant",
                "/items/1/value/fallthrough/variant",
            ],
        ),
        (
            "of a flag that is not there",
            json!([config_item("a", "on"), unknown_flag]),
            &["/items/1"],
        ),
        (
            "a segment that is not there",
            json!([config_item_for_beta("a")]),
            &["/items/0/value/rules/0/when/segment"],
        ),
        (
            "with what it has, in an environment that it does not name",
            json!([definition(json!({ "off": false }))]),
            &["/items"],
        ),
        (
            "a flag's type",
            json!([{ "kind": "definition", "key": "a", "value": { "key": "a", "type": "string",
                "variants": { "on": "1", "off": "0" } } }]),
            &["/items/0/value/type"],
        ),
    ];
    let before = (revision(&world, "production").await, revision(&world, "staging").await);
    for (case, items, pointers) in table {
        let number = draft(&world, items).await;
        let audit = format!("{OURS}/audit?limit=1");
        let (_, last) = world.get(&audit).await;
        let (status, body) = world.post(&format!("{SETS}/{number}/submit"), json!({})).await;
        assert_eq!(status, 422, "{case}: {body}");
        let mut found: Vec<&str> = body["errors"]
            .as_array()
            .expect("errors")
            .iter()
            .filter_map(|error| error["pointer"].as_str())
            .collect();
        let mut pointers = pointers.to_vec();
        found.sort_unstable();
        pointers.sort_unstable();
        assert_eq!(found, pointers, "{case}: {body}");
        if pointers == ["/items"] {
            let message = body["errors"][0]["message"].as_str().expect("a message");
            assert!(message.starts_with("in \"staging\" at /flags/a/config"), "{message}");
        }
        assert_eq!(world.get(&format!("{SETS}/{number}")).await.1["state"], "draft", "{case}");
        assert_eq!(world.get(&audit).await.1, last, "{case}: nothing of it was kept");
    }
    // Nor is anything kept of what is in order.
    segment(&world, "beta").await;
    let before = (before.0 + 1, before.1);
    let number = draft(&world, json!([config_item_for_beta("a"), staging("a", "off")])).await;
    assert_eq!(step(&world, &number, "submit").await["state"], "approved");
    let after = (revision(&world, "production").await, revision(&world, "staging").await);
    assert_eq!(after, before);
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a")).await.1["version"], 0);
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a/versions")).await.1["items"], json!([]));
    assert_eq!(world.get(&format!("{OURS}/audit/verify")).await.1["valid"], true);

    // What has come between is said when it is scheduled.
    assert_eq!(world.delete(&format!("{PRODUCTION}/segments/beta")).await.0, 204);
    let at = control::store::rfc3339(control::store::now_us() + 60_000_000);
    let schedule = format!("{SETS}/{number}/schedule");
    let (status, body) = world.post(&schedule, json!({ "applyAt": at })).await;
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["errors"][0]["pointer"], "/items/0/value/rules/0/when/segment", "{body}");
    assert_eq!(world.put(&in_staging, serving("on")).await.0, 200);
    let (status, body) = world.post(&schedule, json!({ "applyAt": at })).await;
    assert_eq!((status, is_problem(&body, "conflict")), (409, true), "{body}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_wrong_already_is_not_held_against_a_set() {
    let world = furnished(&["a", "b"]).await;
    assert_eq!(world.put(&format!("{PRODUCTION}/flags/b"), serving("off")).await.0, 200);
    // As an older build may have stored it.
    let broken = world
        .sql("UPDATE flag_config SET config = REPLACE(config, '\"variant\":\"off\"', '\"variant\":\"gone\"'), \
            version = version + 1")
        .await;
    assert_eq!(broken, 1);
    let number = draft(&world, json!([config_item("a", "on")])).await;
    step(&world, &number, "submit").await;
    assert_eq!(step(&world, &number, "apply").await["state"], "applied");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_set_makes_and_takes_away_whatever_a_namespace_has() {
    let world = furnished(&["old"]).await;
    let segment = json!({ "key": "beta", "included": ["ann"] });
    let rule = json!({ "id": "beta", "when": { "segment": "beta" }, "serve": { "variant": "on" } });
    let config = json!({ "enabled": true, "off": "off", "rules": [rule],
        "fallthrough": { "variant": "off" } });
    let definition =
        json!({ "key": "new", "type": "boolean", "variants": { "on": true, "off": false } });
    // In an order in which none of it could be done.
    let number = draft(
        &world,
        json!([
            { "kind": "definition", "key": "old", "value": null },
            { "kind": "config", "environment": "production", "key": "new", "value": config },
            { "kind": "segment", "environment": "production", "key": "beta", "value": segment },
            { "kind": "definition", "key": "new", "value": definition },
        ]),
    )
    .await;
    step(&world, &number, "submit").await;
    let before = world.published("ours").await;
    step(&world, &number, "apply").await;
    assert_eq!(world.published("ours").await, before + 1);
    assert_eq!(world.get(&format!("{OURS}/flags/old")).await.0, 404);
    let context = json!({ "flag": "new", "context": { "targetingKey": "ann" } });
    let (_, answer) = world.post(&format!("{PRODUCTION}/evaluate"), context).await;
    assert_eq!(answer["results"][0]["value"], true, "{answer}");
    // And the way back.
    let number = draft(
        &world,
        json!([
            { "kind": "segment", "environment": "production", "key": "beta", "value": null },
            config_item("new", "off"),
        ]),
    )
    .await;
    step(&world, &number, "submit").await;
    step(&world, &number, "apply").await;
    assert_eq!(world.get(&format!("{PRODUCTION}/segments/beta")).await.0, 404);
    world.control.shutdown().await;
}

#[tokio::test]
async fn items_are_read_as_strictly_as_their_own_routes_read_them() {
    let world = furnished(&["a"]).await;
    let item = |change: &dyn Fn(&mut Value)| {
        let mut item = config_item("a", "on");
        change(&mut item);
        json!([item])
    };
    let table: [(&str, Value, &str); 9] = [
        ("none", json!([]), "/items"),
        (
            "an unknown field",
            item(&|item| item["value"]["ruels"] = json!([])),
            "/items/0/value/ruels",
        ),
        ("no environment", item(&|item| item["environment"] = Value::Null), "/items/0/environment"),
        ("another one's", item(&|item| item["environment"] = json!("x")), "/items/0/environment"),
        ("nothing", item(&|item| item["value"] = Value::Null), "/items/0/value"),
        ("twice", json!([config_item("a", "on"), config_item("a", "off")]), "/items/1"),
        (
            "a definition of one environment",
            item(&|item| item["kind"] = json!("definition")),
            "/items/0/environment",
        ),
        (
            "another key",
            json!([{ "kind": "definition", "key": "a", "value": { "key": "b", "type": "boolean",
                "variants": { "on": true } } }]),
            "/items/0/value/key",
        ),
        (
            "nothing there to take away",
            json!([{ "kind": "segment", "environment": "production", "key": "s", "value": null }]),
            "/items/0/key",
        ),
    ];
    for (case, items, pointer) in table {
        let (status, body) = world.post(SETS, json!({ "title": "T", "items": items })).await;
        assert_eq!(status, 422, "{case}: {body}");
        assert_eq!(body["errors"][0]["pointer"], pointer, "{case}: {body}");
    }
    let many: Vec<Value> = (0..201).map(|index| config_item(&format!("f{index}"), "on")).collect();
    let (status, body) = world.post(SETS, json!({ "title": "T", "items": many })).await;
    assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!("/items")), "{body}");
    assert_eq!(world.get(SETS).await.1, json!({ "items": [] }));
    world.control.shutdown().await;
}

#[tokio::test]
async fn who_wrote_it_never_approves_it_and_an_approval_counts_once() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 2).await;
    let (bob, eve) = (person(&world, "bob").await, person(&world, "eve").await);
    let number = draft(&world, json!([config_item("a", "on")])).await;
    assert_eq!(step(&world, &number, "submit").await["state"], "review");

    let (status, body) = approve_as(&world, &world.token, &number).await;
    assert_eq!((status, is_problem(&body, "may-not-approve")), (403, true), "{body}");
    for _ in 0..2 {
        let (status, body) = approve_as(&world, &bob, &number).await;
        assert_eq!((status, &body["state"]), (200, &json!("review")), "once is one: {body}");
    }
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!((status, is_problem(&body, "wrong-state")), (409, true), "{body}");
    let (status, body) = approve_as(&world, &eve, &number).await;
    assert_eq!((status, &body["state"]), (200, &json!("approved")), "{body}");
    assert_eq!(body["approvals"][0]["by"].as_array().map(Vec::len), Some(2));
    assert_eq!(step(&world, &number, "apply").await["state"], "applied");
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a")).await.1["config"], serving("on"));

    // Whoever edited it is one of its authors.
    let number = draft(&world, json!([config_item("a", "off")])).await;
    let path = format!("{SETS}/{number}");
    let (status, body) =
        send_as(&world, &bob, "PATCH", &path, Some("*"), json!({ "title": "Mine too" })).await;
    assert_eq!(status, 200, "{body}");
    step(&world, &number, "submit").await;
    assert_eq!(approve_as(&world, &bob, &number).await.0, 403);
    assert_eq!(approve_as(&world, &eve, &number).await.0, 200);
    world.control.shutdown().await;
}

#[tokio::test]
async fn approvals_are_counted_when_it_is_applied_and_an_edit_voids_them() {
    let world = furnished(&["a"]).await;
    protect(&world, "production", 1).await;
    let (bob, eve) = (person(&world, "bob").await, person(&world, "eve").await);
    let number = draft(&world, json!([config_item("a", "on")])).await;
    step(&world, &number, "submit").await;
    assert_eq!(approve_as(&world, &bob, &number).await.1["state"], "approved");

    // More is demanded now than was then.
    protect(&world, "production", 2).await;
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    assert_eq!(approve_as(&world, &eve, &number).await.0, 200);

    let edit = json!({ "items": [config_item("a", "off")] });
    let (status, body) = world.put(&format!("{SETS}/{number}"), edit.clone()).await;
    assert_eq!(status, 405, "{body}");
    let patch = world.ask("PATCH", &format!("{SETS}/{number}")).header("if-match", "*");
    let (status, body) = read(patch.json(&edit)).await;
    assert_eq!((status, &body["state"]), (200, &json!("draft")), "{body}");
    assert_eq!(body["approvals"][0]["by"], json!([]), "of the edition before");
    assert_eq!(step(&world, &number, "submit").await["state"], "review");
    for token in [&bob, &eve] {
        assert_eq!(approve_as(&world, token, &number).await.0, 200);
    }
    // Whoever is not known any more does not count any more.
    let gone = world.sql("DELETE FROM user_account WHERE email LIKE '%@example.com'").await;
    assert_eq!(gone, 2);
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!((status, is_problem(&body, "approval-required")), (409, true), "{body}");
    assert_eq!(world.get(&format!("{PRODUCTION}/flags/a")).await.1["version"], 0);
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_was_made_on_something_else_is_in_conflict_until_it_is_rebased() {
    let world = furnished(&["a", "b"]).await;
    let number = draft(&world, json!([config_item("a", "on"), config_item("b", "on")])).await;
    step(&world, &number, "submit").await;
    assert_eq!(world.put(&format!("{PRODUCTION}/flags/a"), serving("off")).await.0, 200);
    let before = revision(&world, "production").await;
    let (status, body) = world.post(&format!("{SETS}/{number}/apply"), json!({})).await;
    assert_eq!((status, is_problem(&body, "conflict")), (409, true), "{body}");
    assert_eq!(revision(&world, "production").await, before);
    let (_, body) = world.get(&format!("{SETS}/{number}")).await;
    assert_eq!(body["state"], "conflict", "{body}");
    assert_eq!(
        (&body["items"][0]["conflict"], &body["items"][1]["conflict"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&body["items"][0]["baseVersion"], &body["items"][0]["currentVersion"]),
        (&json!(0), &json!(1))
    );
    assert_eq!(body["items"][0]["since"][0]["value"], serving("off"));
    assert_eq!(world.post(&format!("{SETS}/{number}/submit"), json!({})).await.0, 409);

    let rebased = step(&world, &number, "rebase").await;
    assert_eq!(
        (&rebased["state"], &rebased["items"][0]["baseVersion"]),
        (&json!("draft"), &json!(1))
    );
    assert_eq!(
        rebased["items"][0]["diff"],
        json!([{ "op": "replace", "path": "/fallthrough/variant", "value": "on" }])
    );
    step(&world, &number, "submit").await;
    assert_eq!(step(&world, &number, "apply").await["state"], "applied");
    let (_, a) = world.get(&format!("{PRODUCTION}/flags/a")).await;
    assert_eq!((&a["config"], &a["version"]), (&serving("on"), &json!(2)));
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_said_about_it_stays_with_it() {
    let world = furnished(&["a"]).await;
    let number = draft(&world, json!([config_item("a", "on")])).await;
    let (_, before) = world.get(&format!("{SETS}/{number}")).await;
    let said = json!({ "text": "is this the right week?" });
    let (status, body) = world.post(&format!("{SETS}/{number}/comment"), said).await;
    assert_eq!((status, &body["version"]), (200, &before["version"]), "{body}");
    step(&world, &number, "submit").await;
    let reject = format!("{SETS}/{number}/reject");
    assert_eq!(world.post(&reject, json!({ "text": " " })).await.0, 422, "why is to be said");
    let (status, body) = world.post(&reject, json!({ "text": "next week" })).await;
    assert_eq!(
        (status, &body["state"], &body["reason"]),
        (200, &json!("rejected"), &json!("next week"))
    );
    let (status, body) = world.post(&format!("{SETS}/{number}/cancel"), json!({})).await;
    assert_eq!((status, &body["state"]), (200, &json!("cancelled")), "{body}");
    let kinds: Vec<&str> = body["events"]
        .as_array()
        .expect("events")
        .iter()
        .filter_map(|event| event["kind"].as_str())
        .collect();
    assert_eq!(kinds, ["created", "commented", "submitted", "rejected", "cancelled"]);
    for step in ["submit", "apply", "rebase"] {
        let (status, body) = world.post(&format!("{SETS}/{number}/{step}"), json!({})).await;
        assert_eq!((status, is_problem(&body, "wrong-state")), (409, true), "{step}: {body}");
    }
    for (state, count) in [("cancelled", 1), ("draft", 0)] {
        let (_, page) = world.get(&format!("{SETS}?state={state}")).await;
        assert_eq!(page["items"].as_array().map(Vec::len), Some(count), "{page}");
    }
    world.control.shutdown().await;
}
