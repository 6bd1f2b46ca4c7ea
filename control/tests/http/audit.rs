//! The audit log: one row a write, and no row that can be changed or taken out unnoticed.

use control::store::query::query;
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
    let (status, verdict) = world.get(VERIFY).await;
    assert_eq!((status, &verdict["valid"]), (200, &json!(false)), "{statement}");
    assert_eq!(verdict["firstBad"], first_bad, "{statement}: {verdict}");
    assert_eq!(verdict["rows"], first_bad - 1, "{statement}: {verdict}");
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
        "UPDATE audit SET form = 1 WHERE sequence = 5",
        "UPDATE audit SET form = 3 WHERE sequence = 5",
        "UPDATE audit SET actor_kind = 'user' WHERE sequence = 5",
        "UPDATE audit SET actor_id = 'another' WHERE sequence = 5",
        "UPDATE audit SET via = 'a session' WHERE sequence = 5",
        "UPDATE audit SET address = '192.0.2.1' WHERE sequence = 5",
        "UPDATE audit SET user_agent = 'another' WHERE sequence = 5",
        "UPDATE audit SET change_set = '7' WHERE sequence = 5",
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

/// As the build before this form wrote them: sequence, time, action, target, environment, before,
/// after, hash. The hashes were computed by another program.
type OldRow = (
    i64,
    i64,
    &'static str,
    &'static str,
    Option<&'static str>,
    Option<&'static str>,
    &'static str,
    &'static str,
);
const OLD_ROWS: [OldRow; 3] = [
    (
        1,
        1_700_000_000_000_000,
        "namespace.create",
        "old",
        None,
        None,
        r#"{"key":"old","name":""}"#,
        "119373ca4342dad0acdd416fd4ddcf5097161b75a89e553f1f990917d71a5b4c",
    ),
    (
        2,
        1_700_000_001_000_000,
        "environment.create",
        "production",
        Some("production"),
        None,
        r#"{"key":"production"}"#,
        "6fa2811dfd074a4f09ab7e108894f2769ee7392ffdadc13ef67c535a71a4578c",
    ),
    (
        3,
        1_700_000_002_000_000,
        "namespace.rename",
        "old",
        None,
        Some(r#"{"name":""}"#),
        r#"{"name":"Old"}"#,
        "c17ca9c860b929e69b313a8c2af732df60c95f1224a1e1998ac21996a3b90b9b",
    ),
];
const OLD_ID: &str = "01890a5d-ac96-774b-bcce-b302099a8057";

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[tokio::test]
async fn rows_of_the_form_before_still_verify_and_new_ones_follow_them() {
    let world = World::new().await;
    let mut tx = world.control.store.write().await.expect("a write");
    let mut previous = vec![0u8; 32];
    for (sequence, at, action, target, environment, before, after, hash) in OLD_ROWS {
        // The columns that there were.
        let insert = "INSERT INTO audit (namespace_id, sequence, at, actor, action, target, \
            environment, before, after, previous, hash) \
            VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
        let row = query(insert).bind(OLD_ID).bind(sequence).bind(at).bind("bootstrap (tg0)");
        let row = row.bind(action).bind(target).bind(environment).bind(before).bind(after);
        row.bind(&previous).bind(bytes(hash)).execute(&mut tx).await.expect("a row");
        previous = bytes(hash);
    }
    let insert = "INSERT INTO namespace (id, key, name, version, audit_sequence, audit_hash, \
        created_at, updated_at) VALUES ($1, 'old', 'Old', 2, 3, $2, 0, 0)";
    query(insert).bind(OLD_ID).bind(previous).execute(&mut tx).await.expect("a namespace");
    tx.commit().await.expect("a commit");
    let verify = "/api/v1/namespaces/old/audit/verify";
    assert_eq!(world.get(verify).await, (200, json!({ "valid": true, "rows": 3 })));

    assert_eq!(world.flag("old", "f").await.0, 201);
    assert_eq!(world.get(verify).await, (200, json!({ "valid": true, "rows": 4 })));
    let (_, page) = world.get("/api/v1/namespaces/old/audit").await;
    assert_eq!(page["items"][0]["actorKind"], "bootstrap");
    assert_eq!(page["items"][0]["address"], "127.0.0.1");
    assert_eq!(page["items"][1]["action"], "namespace.rename");
    assert_eq!(page["items"][1].get("actorKind"), None);

    // An old row says nothing of what its form does not know, and a new one is not made an old one.
    let changes = [
        ("UPDATE audit SET actor_id = 'someone' WHERE sequence = 2", 2),
        ("UPDATE audit SET actor_id = NULL WHERE sequence = 2", 0),
        ("UPDATE audit SET form = 2 WHERE sequence = 2", 2),
        ("UPDATE audit SET form = 1 WHERE sequence = 2", 0),
        ("UPDATE audit SET form = 1 WHERE sequence = 4", 4),
    ];
    for (statement, first_bad) in changes {
        assert_eq!(world.sql(statement).await, 1);
        let (_, verdict) = world.get(verify).await;
        assert_eq!(verdict["firstBad"].as_i64().unwrap_or(0), first_bad, "{statement}: {verdict}");
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_belongs_to_no_namespace_is_in_the_installations_own_chain() {
    let world = World::new().await;
    world.namespace("ours").await;
    let (_, id) = world.edge_key_with_id(json!("all")).await;
    assert_eq!(world.delete(&format!("/api/v1/edge-keys/{id}")).await.0, 204);
    assert_eq!(world.delete_once_live("/api/v1/namespaces/ours").await.0, 204);
    let (status, page) = world.get("/api/v1/audit").await;
    assert_eq!(status, 200, "{page}");
    let rows = page["items"].as_array().expect("rows");
    let seen: Vec<_> = rows
        .iter()
        .map(|row| (row["action"].as_str().unwrap_or("?"), row["target"].clone()))
        .collect();
    assert_eq!(
        seen,
        [
            ("namespace.delete", json!("ours")),
            ("edge-key.delete", json!(id)),
            ("edge-key.create", json!(id)),
            ("namespace.create", json!("ours")),
        ]
    );
    let verified = world.get("/api/v1/audit/verify").await;
    assert_eq!(verified, (200, json!({ "valid": true, "rows": 4 })));

    // The deleted namespace's chain is kept, with its end.
    let mut read = world.control.store.read().await.expect("a read");
    let deleted = control::store::query::query_as::<(String, String)>(
        "SELECT id, name FROM audit_chain WHERE id <> 'instance'",
    );
    let (chain, name) = deleted.fetch_one(&mut read).await.expect("the chain's end");
    assert_eq!(name, "ours");
    assert_eq!(control::audit::verify(&mut read, &chain).await.expect("a walk"), Ok(3));
    drop(read);
    assert_eq!(
        world.sql("DELETE FROM audit WHERE namespace_id = 'instance' AND sequence = 4").await,
        1
    );
    let verified = world.get("/api/v1/audit/verify").await;
    assert_eq!((&verified.1["valid"], &verified.1["firstBad"]), (&json!(false), &json!(4)));
    world.control.shutdown().await;
}

#[tokio::test]
async fn the_audit_is_filtered_by_who_what_where_and_when_and_read_in_pages() {
    let world = World::new().await;
    world.namespace("ours").await;
    for index in 0..5 {
        assert_eq!(world.flag("ours", &format!("f{index}")).await.0, 201);
    }
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let place = "/api/v1/namespaces/ours/environments/production/flags/f1";
    assert_eq!(world.put(place, config).await.0, 200);
    world.sql("UPDATE audit SET at = 1700000000000000 WHERE sequence = 4").await;
    world
        .sql("UPDATE audit SET actor = 'ann@example.org', actor_id = 'u1' WHERE sequence = 5")
        .await;
    world.sql("UPDATE audit SET change_set = '7' WHERE sequence IN (6, 7)").await;
    let found = async |query: &str| {
        let (status, page) = world.get(&format!("/api/v1/namespaces/ours/audit?{query}")).await;
        assert_eq!(status, 200, "{query}: {page}");
        let rows = page["items"].as_array().expect("rows");
        rows.iter().filter_map(|row| row["sequence"].as_i64()).collect::<Vec<_>>()
    };
    assert_eq!(found("").await, [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(found("object=f1").await, [8, 4]);
    assert_eq!(found("object=f1&action=config.set").await, [8]);
    assert_eq!(found("action=flag.*").await, [7, 6, 5, 4, 3]);
    assert_eq!(found("action=flag").await, [0i64; 0]);
    assert_eq!(found("environment=production").await, [8, 2]);
    assert_eq!(found("actor=u1").await, [5]);
    assert_eq!(found("actor=ann%40example.org").await, [5]);
    assert_eq!(found("changeSet=7").await, [7, 6]);
    assert_eq!(found("to=2023-11-14T22:13:20.000001Z").await, [4]);
    assert_eq!(found("to=2023-11-14T22:13:20Z").await, [0i64; 0]);
    assert_eq!(found("from=2023-11-14T22:13:20Z&to=2024-01-01T00:00:00Z").await, [4]);
    assert_eq!(found("from=2023-11-14T22:13:20.000001Z&object=f1").await, [8]);

    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/api/v1/namespaces/ours/audit?action=flag.*&limit=2{cursor}");
        let (_, page) = world.get(&path).await;
        seen.extend(
            page["items"].as_array().expect("rows").iter().map(|row| row["target"].clone()),
        );
        let Some(next) = page["nextCursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen, ["f4", "f3", "f2", "f1", "f0"]);
    for query in ["from=yesterday", "actors=ann", "cursor=eA", "limit=0", "action=%00"] {
        let (status, body) = world.get(&format!("/api/v1/namespaces/ours/audit?{query}")).await;
        assert!(matches!(status, 400 | 422), "{query}: {status} {body}");
    }
    world.control.shutdown().await;
}
