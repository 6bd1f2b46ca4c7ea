//! How flags end: whose they are, what says that nobody needs them, what still needs them, and being
//! put away, which is not being gone.

use serde_json::{Value, json};

use crate::world::{World, read};

const OURS: &str = "/api/v1/namespaces/ours";
const FLAGS: &str = "/api/v1/namespaces/ours/flags";
const PRODUCTION: &str = "/api/v1/namespaces/ours/environments/production";

fn serving(variant: &str) -> Value {
    json!({ "enabled": true, "off": "off", "fallthrough": { "variant": variant } })
}

async fn world(flags: &[&str]) -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    for flag in flags {
        assert_eq!(world.flag("ours", flag).await.0, 201);
    }
    world
}

async fn post_any(world: &World, path: String) -> (u16, Value) {
    read(world.ask("POST", &path).header("if-match", "*")).await
}

async fn set(world: &World, flag: &str, config: Value) {
    let (status, body) = world.put(&format!("{PRODUCTION}/flags/{flag}"), config).await;
    assert_eq!(status, 200, "{body}");
}

/// Needs `on` of another flag: as a whole, or in one rule.
fn needing(flag: &str, rule: Option<&str>) -> Value {
    let needed = json!([ { "flag": flag, "variants": ["on"] } ]);
    let mut config = serving("on");
    match rule {
        None => config["prerequisites"] = needed,
        Some(id) => {
            config["rules"] =
                json!([ { "id": id, "prerequisites": needed, "serve": { "variant": "off" } } ]);
        }
    }
    config
}

async fn answer(world: &World, flag: &str) -> (u16, Value) {
    let body = json!({ "flag": flag, "context": { "targetingKey": "ann" } });
    world.post(&format!("{PRODUCTION}/evaluate"), body).await
}

fn keys(page: &Value) -> Vec<&str> {
    let items = page["items"].as_array().expect("a list");
    items.iter().filter_map(|item| item["key"].as_str()).collect()
}

fn reasons(flag: &Value) -> Vec<&str> {
    let stale = flag["stale"].as_array().expect("a list");
    stale.iter().filter_map(|one| one["reason"].as_str()).collect()
}

fn is_problem(body: &Value, name: &str) -> bool {
    body["type"] == format!("urn:tidegate:problem:{name}")
}

#[tokio::test]
async fn an_archived_flag_is_there_for_nobody_and_comes_back_as_it_was() {
    let world = world(&["a", "b"]).await;
    set(&world, "a", serving("on")).await;
    assert_eq!(answer(&world, "a").await.0, 200);
    let before = world.get(PRODUCTION).await.1["revision"].as_i64().expect("a revision");

    assert_eq!(world.post(&format!("{FLAGS}/a/archive"), json!({})).await.0, 428);
    let stale = world.ask("POST", &format!("{FLAGS}/a/archive")).header("if-match", "\"9\"");
    assert_eq!(read(stale).await.0, 412);
    let (status, body) = post_any(&world, format!("{FLAGS}/a/archive")).await;
    assert_eq!((status, &body["archived"], &body["version"]), (200, &json!(true), &json!(2)));
    let (_, shown) = world.get(PRODUCTION).await;
    assert_eq!(shown["revision"].as_i64(), Some(before + 1));

    // Twice is once.
    let (status, body) = post_any(&world, format!("{FLAGS}/a/archive")).await;
    assert_eq!((status, &body["version"]), (200, &json!(2)), "{body}");
    assert_eq!(world.get(PRODUCTION).await.1["revision"].as_i64(), Some(before + 1));

    assert_eq!(answer(&world, "a").await.0, 404);
    for path in [FLAGS.to_owned(), format!("{PRODUCTION}/flags")] {
        assert_eq!(keys(&world.get(&path).await.1), ["b"], "{path}");
    }
    assert_eq!(keys(&world.get(&format!("{FLAGS}?archived=yes")).await.1), ["a"]);
    assert_eq!(keys(&world.get(&format!("{FLAGS}?archived=any")).await.1), ["a", "b"]);
    let (_, exported) = world.get(&format!("{PRODUCTION}/export?format=flagd")).await;
    assert!(exported["flags"]["a"].is_null() && exported["flags"]["b"].is_object(), "{exported}");
    let (_, exported) = world.get(&format!("{PRODUCTION}/export?format=tidegate")).await;
    assert_eq!(exported["flags"]["a"]["definition"]["archived"], true, "{exported}");

    // It can be read and described, not set, and its key is taken.
    let config = format!("{PRODUCTION}/flags/a");
    assert_eq!(world.get(&config).await.0, 200);
    let killed = world.post(&format!("{config}/kill"), json!({ "reason": "x" })).await;
    let restored = post_any(&world, format!("{config}/versions/1/restore")).await;
    for (status, body) in [world.put(&config, serving("off")).await, killed, restored] {
        assert_eq!((status, is_problem(&body, "archived")), (409, true), "{body}");
    }
    assert_eq!(world.flag("ours", "a").await.0, 409);
    let document = json!({ "flags": { "a": { "state": "ENABLED", "defaultVariant": "on",
        "variants": { "on": true, "off": false } } } });
    let (_, body) = world.post(&format!("{PRODUCTION}/import?format=flagd"), document).await;
    assert_eq!(body["flags"][0]["result"], "refused", "{body}");

    let (status, body) = post_any(&world, format!("{FLAGS}/a/unarchive")).await;
    assert_eq!((status, &body["archived"]), (200, &Value::Null), "{body}");
    let (status, body) = answer(&world, "a").await;
    assert_eq!((status, &body["results"][0]["value"]), (200, &json!(true)), "{body}");
    assert_eq!(world.get(&config).await.1["version"], 1);
    let (_, audit) = world.get(&format!("{OURS}/audit?limit=2")).await;
    let actions: Vec<&Value> =
        audit["items"].as_array().expect("rows").iter().map(|row| &row["action"]).collect();
    assert_eq!(actions, ["flag.unarchive", "flag.archive"]);
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_others_need_is_neither_archived_nor_deleted_until_they_are_put_away() {
    let world = world(&["base", "needs", "rule-needs"]).await;
    set(&world, "needs", needing("base", None)).await;
    set(&world, "rule-needs", needing("base", Some("r"))).await;
    let archive = |key: &str| post_any(&world, format!("{FLAGS}/{key}/archive"));
    for (status, body) in [archive("base").await, world.delete(&format!("{FLAGS}/base")).await] {
        assert_eq!((status, is_problem(&body, "in-use")), (409, true), "{body}");
        let detail = body["detail"].as_str().expect("a detail");
        assert!(detail.contains("flag \"needs\" in \"production\""), "{detail}");
        assert!(detail.contains("\"rule-needs\" in \"production\" (rule \"r\")"), "{detail}");
    }
    assert_eq!(archive("needs").await.0, 200);
    assert_eq!(archive("base").await.0, 409);
    assert_eq!(archive("rule-needs").await.0, 200);
    assert_eq!(archive("base").await.0, 200);
    // It does not come back to what is not there.
    let (status, body) = post_any(&world, format!("{FLAGS}/needs/unarchive")).await;
    assert_eq!(status, 422, "{body}");
    assert!(body["errors"][0]["message"].to_string().contains("is archived"), "{body}");
    for key in ["base", "needs"] {
        assert_eq!(post_any(&world, format!("{FLAGS}/{key}/unarchive")).await.0, 200, "{key}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn references_say_who_needs_what_and_where() {
    let world = world(&["base", "needs", "other", "on"]).await;
    world.environment("ours", "staging").await;
    for segment in [
        json!({ "key": "staff", "included": ["ann"] }),
        json!({ "key": "all", "rules": [ { "segment": ["staff"] } ] }),
    ] {
        assert_eq!(world.post(&format!("{PRODUCTION}/segments"), segment).await.0, 201);
    }
    let mut config = needing("base", None);
    config["rules"] = json!([
        { "id": "one", "when": { "segment": ["staff"] }, "serve": { "variant": "off" } },
        { "id": "two", "prerequisites": [ { "flag": "base", "variants": ["on"] } ],
          "when": { "not": { "segment": ["staff"] } }, "serve": { "variant": "off" } }
    ]);
    set(&world, "needs", config).await;
    // Has its key as a variant everywhere: that is no reference.
    set(&world, "other", serving("on")).await;
    let item = json!({ "kind": "config", "environment": "staging", "key": "base",
        "value": serving("on") });
    let change = json!({ "title": "t", "items": [item] });
    assert_eq!(world.post(&format!("{OURS}/change-sets"), change).await.0, 201);

    let (_, body) = world.get(&format!("{FLAGS}/base/references")).await;
    assert_eq!(
        body,
        json!({ "more": false, "items": [
            { "kind": "flag", "key": "needs", "environment": "production", "rules": ["two"],
              "blocks": true },
            { "kind": "change-set", "key": "1", "environment": "staging", "blocks": false }
        ] })
    );
    let (_, body) = world.get(&format!("{PRODUCTION}/segments/staff/references")).await;
    assert_eq!(
        body,
        json!({ "more": false, "items": [
            { "kind": "flag", "key": "needs", "environment": "production",
              "rules": ["one", "two"], "blocks": true },
            { "kind": "segment", "key": "all", "environment": "production", "blocks": true }
        ] })
    );
    let nothing = json!({ "more": false, "items": [] });
    assert_eq!(world.get(&format!("{FLAGS}/on/references")).await, (200, nothing));
    for missing in [
        format!("{FLAGS}/nobody/references"),
        format!("{PRODUCTION}/segments/nobody/references"),
        format!("{OURS}/environments/staging/segments/staff/references"),
        format!("{OURS}/policies/nobody/references"),
    ] {
        assert_eq!(world.get(&missing).await.0, 404, "{missing}");
    }

    let (status, body) = world.delete(&format!("{PRODUCTION}/segments/staff")).await;
    assert_eq!((status, is_problem(&body, "in-use")), (409, true), "{body}");
    let detail = body["detail"].as_str().expect("a detail");
    assert!(detail.contains("flag \"needs\"") && detail.contains("segment \"all\""), "{detail}");
    // What is archived refers to nothing, and says so.
    assert_eq!(world.delete(&format!("{PRODUCTION}/segments/all")).await.0, 204);
    assert_eq!(post_any(&world, format!("{FLAGS}/needs/archive")).await.0, 200);
    let (_, body) = world.get(&format!("{PRODUCTION}/segments/staff/references")).await;
    assert_eq!(body["items"][0]["blocks"], false, "{body}");
    assert_eq!(world.delete(&format!("{PRODUCTION}/segments/staff")).await.0, 204);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_key_with_signs_that_patterns_and_json_treat_apart_is_found() {
    for key in ["100%_\\\"x", "ünï/💡", "%"] {
        let world = world(&["needs"]).await;
        let (status, body) = world.flag("ours", key).await;
        assert_eq!(status, 201, "{key:?}: {body}");
        set(&world, "needs", needing(key, Some("r"))).await;
        let path: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let (_, body) = world.get(&format!("{FLAGS}/{path}/references")).await;
        assert_eq!(keys(&body), ["needs"], "{key:?}");
        assert_eq!(world.delete(&format!("{FLAGS}/{path}")).await.0, 409, "{key:?}");
        world.control.shutdown().await;
    }
}

#[tokio::test]
async fn a_change_set_puts_a_flag_away_together_with_what_needed_it() {
    let world = world(&["base", "needs"]).await;
    set(&world, "base", serving("on")).await;
    set(&world, "needs", needing("base", None)).await;
    let put_away = json!({ "key": "base", "type": "boolean", "archived": true,
        "variants": { "on": true, "off": false } });
    let change = json!({ "title": "tidy", "items": [
        { "kind": "definition", "key": "base", "value": put_away },
        { "kind": "config", "environment": "production", "key": "needs", "value": serving("on") }
    ] });
    assert_eq!(world.post(&format!("{OURS}/change-sets"), change).await.0, 201);
    for step in ["submit", "apply"] {
        let (status, body) = world.post(&format!("{OURS}/change-sets/1/{step}"), json!({})).await;
        assert_eq!(status, 200, "{step}: {body}");
    }
    assert_eq!(keys(&world.get(FLAGS).await.1), ["needs"]);

    // In whatever order its author names them, what is needed goes after who needs it.
    let others = ["inner", "middle", "outer"];
    for (at, key) in others.into_iter().enumerate() {
        let rules = match at.checked_sub(1) {
            Some(before) => json!([ { "segment": [others[before]] } ]),
            None => json!([]),
        };
        let segment = json!({ "key": key, "rules": rules });
        assert_eq!(world.post(&format!("{PRODUCTION}/segments"), segment).await.0, 201);
    }
    let gone = others.map(
        |key| json!({ "kind": "segment", "environment": "production", "key": key, "value": null }),
    );
    let some = json!({ "title": "too few", "items": &gone[..2] });
    let all = json!({ "title": "all", "items": gone });
    for (number, set, expected) in [(2, some, 422), (3, all, 200)] {
        assert_eq!(world.post(&format!("{OURS}/change-sets"), set).await.0, 201);
        let submit = format!("{OURS}/change-sets/{number}/submit");
        let (status, body) = world.post(&submit, json!({})).await;
        assert_eq!(status, expected, "{body}");
        if status == 422 {
            assert_eq!(body["errors"][0]["pointer"], "/items/0", "{body}");
            assert!(body.to_string().contains("segment \\\"middle\\\""), "{body}");
        }
    }
    assert_eq!(world.post(&format!("{OURS}/change-sets/3/apply"), json!({})).await.0, 200);
    assert_eq!(keys(&world.get(&format!("{PRODUCTION}/segments")).await.1), [] as [&str; 0]);
    world.control.shutdown().await;
}

#[tokio::test]
async fn stale_flags_are_listed_with_why_and_since_when() {
    let world = world(&["ended", "fresh", "forever", "old", "settled", "unused"]).await;
    let words = |key: &str, more: Value| {
        let mut flag =
            json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } });
        for (name, value) in more.as_object().expect("an object") {
            flag[name] = value.clone();
        }
        (format!("{FLAGS}/{key}"), flag)
    };
    for (path, flag) in [
        words("ended", json!({ "expectedEnd": "2020-02-29", "tags": ["checkout"] })),
        words("forever", json!({ "lifetime": "permanent", "owner": "team-payments" })),
        words("unused", json!({ "lifetime": "permanent" })),
        words("settled", json!({ "expectedEnd": "2999-12-31" })),
    ] {
        assert_eq!(world.put(&path, flag).await.0, 200, "{path}");
    }
    // Who asks decides what the others give.
    let split = json!({ "enabled": true,
        "fallthrough": { "split": { "weights": { "on": 50_000, "off": 50_000 } } } });
    for key in ["ended", "fresh", "forever", "old", "unused"] {
        set(&world, key, split.clone()).await;
    }
    set(&world, "settled", serving("on")).await;
    // A hundred days pass, in which all but one are asked for.
    const HUNDRED_DAYS: &str = "UPDATE flag SET created_at = created_at - 8640000000000, \
        updated_at = updated_at - 8640000000000 WHERE key IN ('old', 'unused', 'settled')";
    assert_eq!(world.sql(HUNDRED_DAYS).await, 3);
    const ALL_CONFIGS: &str = "UPDATE flag_config SET updated_at = updated_at - 8640000000000";
    world.sql(ALL_CONFIGS).await;
    let (_, body) = world.get(&format!("{FLAGS}?stale=unused")).await;
    assert_eq!(keys(&body), [] as [&str; 0], "nothing is reported, so nothing is unused");
    let minute = control::store::now_us() / 60_000_000;
    let mut tx = world.control.store.write().await.expect("a write");
    const USED: &str = "INSERT INTO usage_flag (environment_id, flag, last_minute) \
        SELECT e.id, f.key, $1 FROM flag f JOIN environment e ON e.namespace_id = f.namespace_id \
        WHERE f.key <> 'unused'";
    control::store::query::query(USED).bind(minute).execute(&mut tx).await.expect("uses");
    tx.commit().await.expect("a commit");

    let (_, body) = world.get(&format!("{FLAGS}?stale=any")).await;
    let found: Vec<(&str, Vec<&str>)> = body["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|flag| (flag["key"].as_str().expect("a key"), reasons(flag)))
        .collect();
    assert_eq!(
        found,
        [
            ("ended", vec!["ended"]),
            ("old", vec!["old"]),
            ("settled", vec!["settled"]),
            ("unused", vec!["unused"]),
        ],
        "{body}"
    );
    assert_eq!(body["items"][0]["stale"][0]["since"], "2020-03-01T00:00:00Z");
    let detail = body["items"][2]["stale"][0]["detail"].as_str().expect("words");
    assert_eq!(detail, "\"on\" for everybody in production, unchanged for 100 days");
    assert!(body["items"][0]["lastEvaluatedAt"].is_string(), "{body}");
    for (query, expected) in [
        ("stale=unused", vec!["unused"]),
        ("stale=any&tag=checkout", vec!["ended"]),
        ("owner=team-payments", vec!["forever"]),
        ("lifetime=permanent", vec!["forever", "unused"]),
        ("lifetime=permanent&stale=any&unused_days=101", vec![]),
        ("stale=old&old_days=101", vec![]),
        ("stale=settled&settled_days=100", vec!["settled"]),
    ] {
        let (status, body) = world.get(&format!("{FLAGS}?{query}")).await;
        assert_eq!((status, keys(&body)), (200, expected), "{query}");
    }
    for query in ["stale=yes", "unused_days=0", "old_days=x", "archived=true", "lifetime=x", "x=1"]
    {
        let (status, body) = world.get(&format!("{FLAGS}?{query}")).await;
        assert!([400, 422].contains(&status), "{query}: {status} {body}");
    }
    assert_eq!(reasons(&world.get(&format!("{FLAGS}/ended")).await.1), ["ended"]);
    assert_eq!(post_any(&world, format!("{FLAGS}/ended/archive")).await.0, 200);
    assert_eq!(reasons(&world.get(&format!("{FLAGS}/ended")).await.1), [] as [&str; 0]);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_filter_looks_through_all_flags_and_its_pages_are_whole() {
    let world = world(&[]).await;
    let flags: serde_json::Map<String, Value> = (0..450)
        .map(|n| {
            let tags = if n % 150 == 149 { vec!["rare"] } else { vec!["often"] };
            let flag = json!({ "definition": { "type": "boolean", "tags": tags,
                "variants": { "on": true } },
                "config": { "enabled": false, "fallthrough": { "variant": "on" } } });
            (format!("flag-{n:03}"), flag)
        })
        .collect();
    let import = format!("{PRODUCTION}/import?format=tidegate");
    assert_eq!(world.post(&import, json!({ "flags": flags })).await.0, 200);
    let (_, first) = world.get(&format!("{FLAGS}?tag=rare&limit=2")).await;
    assert_eq!(keys(&first), ["flag-149", "flag-299"]);
    let cursor = first["nextCursor"].as_str().expect("more");
    let (_, rest) = world.get(&format!("{FLAGS}?tag=rare&limit=2&cursor={cursor}")).await;
    assert_eq!((keys(&rest), &rest["nextCursor"]), (vec!["flag-449"], &Value::Null));
    let mut all = Vec::new();
    let mut next = String::new();
    loop {
        let (_, page) = world.get(&format!("{FLAGS}?tag=often&limit=190{next}")).await;
        all.extend(keys(&page).into_iter().map(str::to_owned));
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        next = format!("&cursor={cursor}");
    }
    assert_eq!(all.len(), 447);
    assert!(all.is_sorted());
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_said_of_a_flags_life_is_checked() {
    let world = world(&[]).await;
    let flag = |more: Value| {
        let mut flag = json!({ "key": "f", "type": "boolean", "variants": { "on": true } });
        for (name, value) in more.as_object().expect("an object") {
            flag[name] = value.clone();
        }
        flag
    };
    for (more, pointer) in [
        (json!({ "expectedEnd": "2027-02-29" }), "/expectedEnd"),
        (json!({ "expectedEnd": "2027-02-01T00:00:00Z" }), "/expectedEnd"),
        (json!({ "expectedEnd": "soon" }), "/expectedEnd"),
        (json!({ "expectedEnd": "2027-02-01", "lifetime": "permanent" }), "/expectedEnd"),
        (json!({ "lifetime": "forever" }), "/lifetime"),
        (json!({ "owner": "o".repeat(70_000) }), "/owner"),
    ] {
        let (status, body) = world.post(FLAGS, flag(more)).await;
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(pointer)), "{body}");
    }
    let whole = json!({ "owner": "team", "lifetime": "temporary", "expectedEnd": "2028-02-29" });
    let (status, body) = world.post(FLAGS, flag(whole)).await;
    assert_eq!((status, &body["expectedEnd"]), (201, &json!("2028-02-29")), "{body}");
    // What is left out of a replacement is not there any more, as everywhere.
    let (_, body) = world.put(&format!("{FLAGS}/f"), flag(json!({}))).await;
    assert_eq!((&body["owner"], &body["expectedEnd"]), (&Value::Null, &Value::Null), "{body}");
    world.control.shutdown().await;
}
