//! Versions: none is missing, each says what it changed, and each can come back.

use serde_json::{Value, json};

use crate::world::{World, read};

const FLAG: &str = "/api/v1/namespaces/ours/flags/f";
const CONFIG: &str = "/api/v1/namespaces/ours/environments/production/flags/f";

fn serving(variant: &str) -> Value {
    json!({ "enabled": true, "off": "off", "fallthrough": { "variant": variant } })
}

fn numbers(page: &Value) -> Vec<i64> {
    let items = page["items"].as_array().expect("a list");
    items.iter().filter_map(|item| item["version"].as_i64()).collect()
}

#[tokio::test]
async fn every_write_is_a_version_with_its_difference_and_its_audit_row() {
    let world = World::new().await;
    world.namespace("ours").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    assert_eq!(world.get(&format!("{CONFIG}/versions")).await.1, json!({ "items": [] }));
    for variant in ["on", "off", "on"] {
        assert_eq!(world.put(CONFIG, serving(variant)).await.0, 200);
    }
    // By a document too.
    let document = json!({ "flags": { "f": {
        "definition": { "type": "boolean", "variants": { "on": true, "off": false },
            "description": "imported" },
        "config": { "enabled": false, "off": "off", "fallthrough": { "variant": "on" } } } } });
    let import = "/api/v1/namespaces/ours/environments/production/import?format=tidegate";
    let (status, body) = world.post(import, document).await;
    assert_eq!(status, 200, "{body}");

    let (_, page) = world.get(&format!("{CONFIG}/versions?limit=3")).await;
    assert_eq!(numbers(&page), [4, 3, 2]);
    let cursor = page["nextCursor"].as_str().expect("more");
    let (_, rest) = world.get(&format!("{CONFIG}/versions?limit=3&cursor={cursor}")).await;
    assert_eq!(numbers(&rest), [1]);
    assert_eq!(numbers(&world.get(&format!("{FLAG}/versions")).await.1), [2, 1]);

    let (_, second) = world.get(&format!("{CONFIG}/versions/2")).await;
    assert_eq!(second["against"], 1);
    assert_eq!(
        second["diff"],
        json!([{ "op": "replace", "path": "/fallthrough/variant", "value": "off" }])
    );
    assert_eq!(second["content"], serving("off"));
    assert!(second["actor"].as_str().expect("an actor").starts_with("bootstrap"));
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?limit=200").await;
    let rows = audit["items"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["sequence"] == second["auditSequence"]).expect("a row");
    assert_eq!((&row["action"], &row["after"]), (&json!("config.set"), &second["content"]));

    let (_, fourth) = world.get(&format!("{CONFIG}/versions/4?against=2")).await;
    let changed: Vec<&str> = fourth["diff"]
        .as_array()
        .expect("operations")
        .iter()
        .filter_map(|operation| operation["path"].as_str())
        .collect();
    assert_eq!(changed, ["/enabled", "/fallthrough/variant"]);
    let (_, first) = world.get(&format!("{CONFIG}/versions/1")).await;
    assert_eq!(first["against"], Value::Null);
    for missing in ["/versions/5", "/versions/0", "/versions/2?against=9", "/versions/x"] {
        assert_eq!(world.get(&format!("{CONFIG}{missing}")).await.0, 404, "{missing}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_restored_is_a_new_version_with_the_old_content() {
    let world = World::new().await;
    world.namespace("ours").await;
    assert_eq!(world.flag("ours", "f").await.0, 201);
    for variant in ["on", "off"] {
        assert_eq!(world.put(CONFIG, serving(variant)).await.0, 200);
    }
    let restore =
        |path: String, if_match: &str| read(world.ask("POST", &path).header("if-match", if_match));
    let at = format!("{CONFIG}/versions/1/restore");
    let (status, body) = read(world.ask("POST", &at)).await;
    assert_eq!(status, 428, "{body}");
    assert_eq!(restore(at.clone(), "\"1\"").await.0, 412);
    let (status, body) = restore(at, "\"2\"").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["version"], &body["config"]), (&json!(3), &serving("on")));
    assert_eq!(world.get(CONFIG).await.1["config"], serving("on"));
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?limit=1").await;
    assert_eq!(audit["items"][0]["action"], "config.restore");

    let described = json!({ "key": "f", "type": "boolean",
        "variants": { "on": true, "off": false }, "description": "new words" });
    assert_eq!(world.put(FLAG, described).await.0, 200);
    let (status, body) = restore(format!("{FLAG}/versions/1/restore"), "\"2\"").await;
    assert_eq!(status, 200, "{body}");
    assert_eq!((&body["version"], &body["description"]), (&json!(3), &Value::Null));

    // What would not load any more does not come back: a variant that is gone.
    let alone = json!({ "key": "f", "type": "boolean", "variants": { "yes": true, "off": false } });
    assert_eq!(
        world.put(CONFIG, json!({ "enabled": false, "fallthrough": { "variant": "off" } })).await.0,
        200
    );
    assert_eq!(world.put(FLAG, alone).await.0, 200);
    let (status, body) = restore(format!("{CONFIG}/versions/1/restore"), "*").await;
    assert_eq!(status, 422, "{body}");
    assert_eq!(body["errors"][0]["pointer"], "/fallthrough/variant", "{body}");
    let (_, versions) = world.get(&format!("{CONFIG}/versions")).await;
    assert_eq!(numbers(&versions), [4, 3, 2, 1], "what was refused is no version");
    world.control.shutdown().await;
}
