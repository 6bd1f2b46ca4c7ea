//! A protected environment: no way leads past its approvals but those that are named.

use std::collections::BTreeSet;

use control::store::query::query;
use serde_json::{Value, json};

use crate::change_sets::{
    OURS, SETS, config_item, furnished, is_problem, protect, revision, serving,
};
use crate::world::{World, read};

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
    let words = flag(json!({ "description": "words", "tags": ["team:x"],
        "owner": "ann@example.com", "expectedEnd": "2030-01-31" }));
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

/// A request for every route that writes, and whether it raises an environment that is not protected.
struct Way {
    method: &'static str,
    template: &'static str,
    path: &'static str,
    body: Value,
    raises: bool,
}

/// Its requests come one after the other.
fn ways() -> Vec<Way> {
    let digest = |digit: &str| digit.repeat(64);
    let flag =
        |on: bool| json!({ "key": "a", "type": "boolean", "variants": { "on": on, "off": false } });
    let document = json!({ "flags": { "a": { "definition": { "type": "boolean",
        "variants": { "on": true, "off": false } }, "config": serving("off") } } });
    let item = json!({ "kind": "config", "environment": "production", "key": "a",
        "value": serving("on") });
    let promotion = json!({ "from": "staging", "to": "production", "flags": ["a"] });
    let tomorrow = control::store::rfc3339(control::store::now_us() + 86_400_000_000);
    let none = || json!({});
    [
        ("PUT", "~/flags/{flag}", "/flags/a", flag(false), true),
        (
            "POST",
            "~/flags/{flag}/versions/{version}/restore",
            "/flags/a/versions/1/restore",
            none(),
            true,
        ),
        (
            "PUT",
            "~/environments/{environment}/flags/{flag}",
            "/environments/production/flags/a",
            serving("off"),
            true,
        ),
        (
            "POST",
            "~/environments/{environment}/flags/{flag}/versions/{version}/restore",
            "/environments/production/flags/a/versions/1/restore",
            none(),
            true,
        ),
        ("POST", "~/promotions", "/promotions", promotion, true),
        (
            "POST",
            "~/environments/{environment}/import",
            "/environments/production/import?format=tidegate",
            document,
            true,
        ),
        (
            "POST",
            "~/environments/{environment}/segments",
            "/environments/production/segments",
            json!({ "key": "new" }),
            true,
        ),
        (
            "PUT",
            "~/environments/{environment}/segments/{segment}",
            "/environments/production/segments/beta",
            json!({ "key": "beta", "included": ["eve"] }),
            true,
        ),
        (
            "PUT",
            "~/environments/{environment}/segments/{segment}/{list}",
            "/environments/production/segments/beta/included",
            Value::String("ann\nbob\n".to_owned()),
            true,
        ),
        (
            "DELETE",
            "~/environments/{environment}/segments/{segment}",
            "/environments/production/segments/beta",
            none(),
            true,
        ),
        (
            "PUT",
            "~/environments/{environment}/policies/{policy}",
            "/environments/production/policies/p",
            json!({ "digest": digest("b"), "shadow": { "digest": digest("a"), "share": 100 } }),
            true,
        ),
        (
            "POST",
            "~/environments/{environment}/policies/{policy}/promote",
            "/environments/production/policies/p/promote",
            none(),
            true,
        ),
        (
            "POST",
            "~/environments/{environment}/policies/{policy}/rollback",
            "/environments/production/policies/p/rollback",
            none(),
            true,
        ),
        (
            "DELETE",
            "~/environments/{environment}/policies/{policy}",
            "/environments/production/policies/p",
            none(),
            true,
        ),
        ("POST", "~/policies/{policy}/versions", "/policies/p/versions", none(), false),
        (
            "PUT",
            "~/policies/{policy}/versions/{digest}/vectors",
            "/policies/p/versions/x/vectors",
            json!({ "vectors": [] }),
            false,
        ),
        (
            "DELETE",
            "~/policies/{policy}/versions/{digest}",
            "/policies/p/versions/x",
            none(),
            false,
        ),
        (
            "POST",
            "~/environments/{environment}/rollout",
            "/environments/production/rollout",
            json!({ "action": "finish" }),
            false,
        ),
        ("POST", "~/change-sets", "/change-sets", json!({ "title": "T", "items": [item] }), false),
        ("PATCH", "~/change-sets/{number}", "/change-sets/1", json!({ "title": "U" }), false),
        ("POST", "~/change-sets/{number}/rebase", "/change-sets/1/rebase", none(), false),
        ("POST", "~/change-sets/{number}/submit", "/change-sets/1/submit", none(), false),
        (
            "POST",
            "~/change-sets/{number}/schedule",
            "/change-sets/1/schedule",
            json!({ "applyAt": tomorrow }),
            false,
        ),
        ("POST", "~/change-sets/{number}/apply", "/change-sets/1/apply", none(), true),
        ("POST", "~/change-sets/{number}/cancel", "/change-sets/1/cancel", none(), false),
        ("POST", "~/flags/{flag}/unarchive", "/flags/old/unarchive", none(), true),
        ("POST", "~/flags/{flag}/archive", "/flags/a/archive", none(), true),
        ("DELETE", "~/flags/{flag}", "/flags/a", none(), true),
    ]
    .into_iter()
    .map(|(method, template, path, body, raises)| Way { method, template, path, body, raises })
    .collect()
}

/// Routes that may raise a protected environment: what it serves is what it served.
const EXEMPT: [(&str, &str); 2] =
    [("POST", "~/flags"), ("POST", "~/environments/{environment}/publish")];

/// Everything that a way leads to: a flag with two versions, here and in staging otherwise, a segment,
/// a policy that is pinned with one before and one beside it.
async fn furnished_for_ways() -> World {
    let world = furnished(&["a", "old"]).await;
    let put_away = world.ask("POST", &format!("{OURS}/flags/old/archive"));
    assert_eq!(read(put_away.header("if-match", "*")).await.0, 200);
    world.environment("ours", "staging").await;
    for body in [serving("on"), serving("off"), serving("on")] {
        assert_eq!(world.put(&format!("{PRODUCTION}/flags/a"), body).await.0, 200);
    }
    let salted = json!({ "key": "a", "type": "boolean", "variants": { "on": true, "off": false },
        "salt": "pepper" });
    assert_eq!(world.put(&format!("{OURS}/flags/a"), salted).await.0, 200);
    let mut other = serving("off");
    other["off"] = json!("on");
    let path = format!("{OURS}/environments/staging/flags/a");
    assert_eq!(world.put(&path, other).await.0, 200);
    let segment = json!({ "key": "beta", "included": ["ann"] });
    assert_eq!(world.post(&format!("{PRODUCTION}/segments"), segment).await.0, 201);
    // Admission needs a process of its own (`e2e/tests/policies/`); here it is enough that they are there.
    let verdict = sandbox::policy::Verdict { admitted: true, ..Default::default() };
    let verdict = serde_json::to_string(&verdict).expect("JSON");
    let mut tx = world.control.store.write().await.expect("a write");
    let policy = "INSERT INTO policy (id, namespace_id, name, created_at) \
        SELECT 'p', id, 'p', 1 FROM namespace WHERE key = 'ours'";
    query(policy).execute(&mut tx).await.expect("a policy");
    for digit in ["a", "b", "c"] {
        let digest = digit.repeat(64);
        let blob = "INSERT INTO blob (digest, bytes, created_at) VALUES ($1, $2, 1)";
        query(blob).bind(&digest).bind(vec![0u8]).execute(&mut tx).await.expect("a blob");
        let version = "INSERT INTO policy_version (policy_id, digest, bytes, attributes, verdict, \
            uploaded_by, uploaded_at) VALUES ('p', $1, 1, '[]', $2, 'somebody', 1)";
        query(version).bind(&digest).bind(&verdict).execute(&mut tx).await.expect("a version");
    }
    let pin = "INSERT INTO policy_pin (environment_id, policy_id, digest, previous_digest, \
        shadow_digest, shadow_share, version, updated_at) SELECT id, 'p', $1, $2, $3, 100, 1, 1 \
        FROM environment WHERE key = 'production'";
    let digests = ["a", "b", "c"].map(|digit| digit.repeat(64));
    let pin = query(pin).bind(&digests[0]).bind(&digests[1]).bind(&digests[2]);
    pin.execute(&mut tx).await.expect("a pin");
    tx.commit().await.expect("a commit");
    world
}

/// Every way in its turn: the status, the body, and whether it raised `production`.
async fn walk(world: &World) -> Vec<(Way, u16, Value, bool)> {
    let mut walked = Vec::new();
    for way in ways() {
        let before = revision(world, "production").await;
        let path = format!("{OURS}{}", way.path);
        let mut request = world.ask(way.method, &path);
        // A step of a change set is on whatever version there is.
        let on_a_version = ["/restore", "/archive", "/unarchive"];
        if way.method != "POST" || on_a_version.iter().any(|end| way.path.ends_with(end)) {
            request = request.header("if-match", "*");
        }
        let request = match &way.body {
            Value::String(text) => request.header("content-type", "text/plain").body(text.clone()),
            body => request.json(body),
        };
        let (status, body) = read(request).await;
        let raised = revision(world, "production").await != before;
        walked.push((way, status, body, raised));
    }
    walked
}

#[tokio::test]
async fn no_route_leads_past_the_approvals_of_a_protected_environment() {
    use control::authorize::Permission;
    use control::authorize::routes::{guarded, permission};
    // A route that is added and not thought about fails here.
    let walked: BTreeSet<(String, String)> = ways()
        .iter()
        .map(|way| (way.method, way.template))
        .chain(EXEMPT)
        .map(|(method, template)| (method.to_owned(), template.to_owned()))
        .collect();
    let writing: BTreeSet<(String, String)> = guarded()
        .filter(|(method, path)| {
            let permission = permission(method, path);
            matches!(permission, Some(Permission::Write | Permission::Configure)) && method != "GET"
        })
        .map(|(method, path)| (method, path.replace("/api/v1/namespaces/{namespace}", "~")))
        .collect();
    assert_eq!(walked, writing, "the table here and the routes that write");

    // The requests are real ones: where nothing is protected, they do what they say.
    let world = furnished_for_ways().await;
    for (way, status, body, raised) in walk(&world).await {
        let (method, path) = (way.method, way.path);
        assert_eq!(raised, way.raises, "{method} {path} unprotected: {status} {body}");
    }
    world.control.shutdown().await;

    let world = furnished_for_ways().await;
    protect(&world, "production", 1).await;
    let mut refused = 0;
    for (way, status, body, raised) in walk(&world).await {
        let (method, path) = (way.method, way.path);
        assert!(!raised, "{method} {path} changed a protected environment: {status} {body}");
        if way.raises && !path.contains("change-sets") {
            let is_said = (status, is_problem(&body, "approval-required")) == (409, true);
            assert!(is_said, "{method} {path}: {status} {body}");
            refused += 1;
        }
    }
    assert_eq!(refused, 17);
    world.control.shutdown().await;
}
