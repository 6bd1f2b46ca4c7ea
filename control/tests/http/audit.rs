//! The audit log: one row a write, and no row that can be changed or taken out unnoticed.

use serde_json::{Value, json};

use crate::world::{World, read};

const VERIFY: &str = "/api/v1/namespaces/ours/audit/verify";

/// Namespace, environment and six flags: eight rows.
async fn eight_rows() -> World {
    let world = World::new().await;
    world.namespace("ours").await;
    for index in 0..6 {
        assert_eq!(world.flag("ours", &format!("f{index}")).await.0, 201);
    }
    assert_eq!(world.get(VERIFY).await, (200, json!({ "valid": true, "rows": 8 })));
    world
}

async fn shows(statement: &'static str, first_bad: i64) {
    let world = eight_rows().await;
    assert!(world.sql(statement).await > 0, "{statement} changed nothing");
    let expected = json!({ "valid": false, "rows": first_bad - 1, "firstBad": first_bad });
    assert_eq!(world.get(VERIFY).await, (200, expected), "{statement}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_row_that_was_altered_shows() {
    for statement in [
        "UPDATE audit SET actor = 'someone else' WHERE sequence = 5",
        "UPDATE audit SET action = 'flag.delete' WHERE sequence = 5",
        "UPDATE audit SET target = 'f9' WHERE sequence = 5",
        "UPDATE audit SET at = at + 1 WHERE sequence = 5",
        "UPDATE audit SET after = NULL WHERE sequence = 5",
        "UPDATE audit SET environment = 'production' WHERE sequence = 5",
        "UPDATE audit SET hash = previous WHERE sequence = 5",
    ] {
        shows(statement, 5).await;
    }
}

#[tokio::test]
async fn a_row_that_was_taken_out_shows_in_the_middle_and_at_either_end() {
    shows("DELETE FROM audit WHERE sequence = 5", 5).await;
    shows("DELETE FROM audit WHERE sequence = 1", 1).await;
    shows("DELETE FROM audit WHERE sequence = 8", 8).await;
    shows("DELETE FROM audit WHERE sequence >= 4", 4).await;
    shows("DELETE FROM audit", 1).await;
}

#[tokio::test]
async fn an_end_that_is_not_the_namespaces_shows() {
    shows(
        "UPDATE namespace SET audit_hash = zeroed FROM (SELECT previous AS zeroed FROM audit \
        WHERE sequence = 1) AS first",
        8,
    )
    .await;
    shows("UPDATE namespace SET audit_sequence = 6", 7).await;
}

#[tokio::test]
async fn every_write_is_one_row_and_what_was_refused_is_none() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.namespace("theirs").await;
    let place = "/api/v1/namespaces/ours/environments/production";
    let flag = json!({ "key": "f", "type": "boolean", "variants": { "on": true, "off": false } });
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let mut expected = vec!["environment.create", "namespace.create"];
    let done = async |method: &str, path: String, body: Option<Value>| {
        let mut request = world.ask(method, &path).header("if-match", "*");
        if let Some(body) = body {
            request = request.json(&body);
        }
        read(request).await
    };
    let writes = [
        ("PATCH", "".to_owned(), Some(json!({ "name": "N" })), "namespace.rename"),
        ("POST", "/flags".to_owned(), Some(flag.clone()), "flag.create"),
        ("PUT", "/flags/f".to_owned(), Some(flag.clone()), "flag.update"),
        ("PUT", "/environments/production/flags/f".to_owned(), Some(config), "config.set"),
        (
            "POST",
            "/environments/production/segments".to_owned(),
            Some(json!({ "key": "s", "included": ["ann"] })),
            "segment.create",
        ),
        (
            "PUT",
            "/environments/production/segments/s".to_owned(),
            Some(json!({ "key": "s", "excluded": ["eve"] })),
            "segment.update",
        ),
        ("DELETE", "/environments/production/segments/s".to_owned(), None, "segment.delete"),
        ("DELETE", "/flags/f".to_owned(), None, "flag.delete"),
        (
            "POST",
            "/environments/production/publish".to_owned(),
            Some(json!({})),
            "environment.publish",
        ),
    ];
    for (method, below, body, action) in writes {
        let path = format!("/api/v1/namespaces/ours{below}");
        let (status, body) = done(method, path.clone(), body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {body}");
        expected.insert(0, action);
        let (_, page) = world.get("/api/v1/namespaces/ours/audit?limit=200").await;
        let rows = page["items"].as_array().expect("rows");
        let actions: Vec<&str> = rows.iter().filter_map(|row| row["action"].as_str()).collect();
        assert_eq!(actions, expected, "after {method} {path}");
        let sequences: Vec<i64> = rows.iter().filter_map(|row| row["sequence"].as_i64()).collect();
        let count = i64::try_from(expected.len()).expect("a few");
        assert_eq!(sequences, (1..=count).rev().collect::<Vec<_>>());
        assert!(rows.iter().all(|row| {
            row["actor"].as_str().is_some_and(|actor| actor.starts_with("bootstrap"))
        }));
    }

    // Not valid, stale, not there, unchanged by a dry run, read: none of these is a row.
    let bad = json!({ "key": "bad", "type": "boolean", "variants": { "on": "text" } });
    assert_eq!(world.post("/api/v1/namespaces/ours/flags", bad).await.0, 422);
    let stale = world.ask("PATCH", "/api/v1/namespaces/ours").header("if-match", "\"1\"");
    assert_eq!(read(stale.json(&json!({ "name": "x" }))).await.0, 412);
    assert_eq!(world.delete("/api/v1/namespaces/ours/flags/nowhere").await.0, 404);
    let document = json!({ "flags": { "g": { "state": "ENABLED", "variants": { "on": true },
        "defaultVariant": "on" } } });
    let path = format!("{place}/import?format=flagd&dry_run=true");
    assert_eq!(world.post(&path, document).await.0, 200);
    assert_eq!(world.post(&format!("{place}/evaluate"), json!({ "context": {} })).await.0, 200);
    let count = expected.len();
    assert_eq!(world.get(VERIFY).await.1, json!({ "valid": true, "rows": count }));
    assert_eq!(
        world.get("/api/v1/namespaces/theirs/audit/verify").await.1,
        json!({ "valid": true, "rows": 2 }),
        "each namespace has a chain of its own"
    );
    world.control.shutdown().await;
}
