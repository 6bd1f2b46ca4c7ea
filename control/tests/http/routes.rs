//! Every route with every kind of key: the exact status of each, from one table.

use std::collections::BTreeSet;

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use serde_json::{Value, json};

use crate::world::World;

/// How a route is asked: method, its template, where, with which body.
struct Route(&'static str, &'static str, String, Body, [u16; 6]);

enum Body {
    None,
    Json(Value),
    Text(&'static str),
}

/// No key, a well-formed one that nobody has, server, browser, edge, admin token.
const KINDS: [&str; 6] = ["none", "unknown", "server", "browser", "edge", "admin"];

/// Of the admin API: what the admin token gets, and nobody else.
fn admin(status: u16) -> [u16; 6] {
    [401, 401, 403, 403, 403, status]
}

fn edge(status: u16) -> [u16; 6] {
    [401, 401, 403, 403, status, 403]
}

fn public() -> [u16; 6] {
    [200; 6]
}

/// Of people, and this one is none.
fn people(status: u16) -> [u16; 6] {
    admin(status)
}

const VERSION: &str =
    "/policies/p/versions/0000000000000000000000000000000000000000000000000000000000000000";
const VERSIONS: &str = "/environments/production/flags/new/versions";
const PINNED: &str = "/environments/production/policies/p";

fn tomorrow() -> String {
    control::store::rfc3339(control::store::now_us() + 24 * 60 * 60 * 1_000_000)
}

/// In the order in which the admin token works through them: what is deleted is made before.
fn table(digest: &str, key_id: &str, edge_key_id: &str) -> Vec<Route> {
    use Body::{Json, None, Text};
    let namespace = "/api/v1/namespaces/{namespace}";
    let route = |method, template: &'static str, at: &str, body, statuses| {
        Route(method, template, at.to_owned(), body, statuses)
    };
    macro_rules! below {
        ($method:literal, $template:literal, $at:expr, $body:expr, $status:literal) => {
            route(
                $method,
                concat!("/api/v1/namespaces/{namespace}", $template),
                &format!("/api/v1/namespaces/ours{}", $at),
                $body,
                admin($status),
            )
        };
    }
    let flag = json!({ "key": "new", "type": "boolean", "variants": { "on": true } });
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    vec![
        route("GET", "/", "/", None, public()),
        route("GET", "/healthz", "/healthz", None, public()),
        route("GET", "/readyz", "/readyz", None, public()),
        route("GET", "/metrics", "/metrics", None, public()),
        route("GET", "/api/v1/openapi.json", "/api/v1/openapi.json", None, public()),
        route("GET", "/api/v1/limits", "/api/v1/limits", None, public()),
        // Whoever comes, nobody is known by a body that says nothing.
        route("POST", "/api/v1/setup", "/api/v1/setup", Json(json!({})), [422; 6]),
        route("POST", "/api/v1/sessions", "/api/v1/sessions", Json(json!({})), [422; 6]),
        route(
            "POST",
            "/api/v1/sessions/refresh",
            "/api/v1/sessions/refresh",
            Json(json!({ "refreshToken": "none" })),
            [401; 6],
        ),
        route(
            "POST",
            "/api/v1/invitations/accept",
            "/api/v1/invitations/accept",
            Json(json!({})),
            [422; 6],
        ),
        route("GET", "/api/v1/oidc/login", "/api/v1/oidc/login", None, [404; 6]),
        route("GET", "/api/v1/oidc/callback", "/api/v1/oidc/callback", None, [404; 6]),
        // The bootstrap token is no person: it has no account, no sessions, no tokens.
        route("GET", "/api/v1/me", "/api/v1/me", None, people(200)),
        route("GET", "/api/v1/sessions", "/api/v1/sessions", None, people(403)),
        route("DELETE", "/api/v1/sessions/current", "/api/v1/sessions/current", None, people(403)),
        route("DELETE", "/api/v1/sessions/{id}", "/api/v1/sessions/x", None, people(403)),
        route(
            "PUT",
            "/api/v1/me/password",
            "/api/v1/me/password",
            Json(json!({ "current": "x", "new": "correct horse battery" })),
            people(403),
        ),
        route("GET", "/api/v1/me/tokens", "/api/v1/me/tokens", None, people(403)),
        route(
            "POST",
            "/api/v1/me/tokens",
            "/api/v1/me/tokens",
            Json(json!({ "name": "mine", "scopes": ["read"] })),
            people(403),
        ),
        route("DELETE", "/api/v1/me/tokens/{id}", "/api/v1/me/tokens/x", None, people(403)),
        route("GET", "/api/v1/users", "/api/v1/users", None, admin(200)),
        route(
            "POST",
            "/api/v1/users",
            "/api/v1/users",
            Json(json!({ "email": "new@example.com" })),
            admin(201),
        ),
        route("GET", "/api/v1/users/{user}", "/api/v1/users/new@example.com", None, admin(200)),
        route(
            "PATCH",
            "/api/v1/users/{user}",
            "/api/v1/users/new@example.com",
            Json(json!({ "name": "New" })),
            admin(200),
        ),
        route(
            "POST",
            "/api/v1/users/{user}/invitations",
            "/api/v1/users/new@example.com/invitations",
            None,
            admin(201),
        ),
        route("DELETE", "/api/v1/users/{user}", "/api/v1/users/new@example.com", None, admin(204)),
        route("GET", "/edge/v1/heads", "/edge/v1/heads", None, edge(200)),
        route(
            "GET",
            "/edge/v1/blobs/{digest}",
            &format!("/edge/v1/blobs/{digest}"),
            None,
            edge(200),
        ),
        route(
            "POST",
            "/edge/v1/receipts",
            "/edge/v1/receipts",
            Json(json!({ "receipts": [] })),
            edge(204),
        ),
        route(
            "POST",
            "/edge/v1/usage",
            "/edge/v1/usage",
            Json(json!({ "edge": "e", "run": 1, "sequence": 1, "environments": [] })),
            edge(204),
        ),
        route(
            "POST",
            "/edge/v1/samples",
            "/edge/v1/samples",
            Json(json!({ "edge": "e" })),
            edge(200),
        ),
        route("GET", "/api/v1/namespaces", "/api/v1/namespaces", None, admin(200)),
        route(
            "POST",
            "/api/v1/namespaces",
            "/api/v1/namespaces",
            Json(json!({ "key": "doomed" })),
            admin(201),
        ),
        below!("GET", "", "", None, 200),
        below!("PATCH", "", "", Json(json!({ "name": "Ours" })), 200),
        route("DELETE", namespace, "/api/v1/namespaces/doomed", None, admin(204)),
        // A policy needs a module to be there (`e2e/tests/policies/`); who may ask is known without.
        below!("GET", "/policies", "/policies", None, 200),
        below!("GET", "/policies/{policy}", "/policies/p", None, 404),
        below!("GET", "/policies/{policy}/references", "/policies/p/references", None, 404),
        below!("POST", "/policies/{policy}/versions", "/policies/p/versions", Text("wasm"), 415),
        below!("GET", "/policies/{policy}/versions/{digest}", VERSION, None, 404),
        below!("DELETE", "/policies/{policy}/versions/{digest}", VERSION, None, 404),
        below!(
            "PUT",
            "/policies/{policy}/versions/{digest}/vectors",
            format!("{VERSION}/vectors"),
            Json(json!({ "vectors": [] })),
            404
        ),
        below!(
            "GET",
            "/environments/{environment}/policies",
            "/environments/production/policies",
            None,
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/policies/{policy}",
            PINNED,
            Json(json!({ "digest": "0".repeat(64) })),
            404
        ),
        below!("DELETE", "/environments/{environment}/policies/{policy}", PINNED, None, 404),
        below!(
            "POST",
            "/environments/{environment}/policies/{policy}/rollback",
            format!("{PINNED}/rollback"),
            None,
            404
        ),
        below!(
            "POST",
            "/environments/{environment}/policies/{policy}/promote",
            format!("{PINNED}/promote"),
            None,
            404
        ),
        below!("GET", "/members", "/members", None, 200),
        below!(
            "PUT",
            "/members/{user}",
            "/members/member@example.com",
            Json(json!({ "role": "viewer" })),
            200
        ),
        below!("DELETE", "/members/{user}", "/members/member@example.com", None, 204),
        below!("GET", "/tokens", "/tokens", None, 200),
        below!("POST", "/tokens", "/tokens", Json(json!({ "name": "ci", "role": "viewer" })), 201),
        below!("DELETE", "/tokens/{id}", "/tokens/nobody", None, 404),
        below!("GET", "/audit", "/audit", None, 200),
        below!("GET", "/audit/verify", "/audit/verify", None, 200),
        below!("GET", "/audit/export", "/audit/export", None, 200),
        // With a namespace it does not end: control/tests/events.rs.
        route("GET", "/api/v1/events", "/api/v1/events", None, admin(400)),
        below!("GET", "/webhooks", "/webhooks", None, 200),
        below!(
            "POST",
            "/webhooks",
            "/webhooks",
            Json(json!({ "url": "https://example.com/", "enabled": false })),
            201
        ),
        // What is below one has an id that nobody knows here: control/tests/webhooks.rs.
        below!("GET", "/webhooks/{webhook}", "/webhooks/w", None, 404),
        below!("PATCH", "/webhooks/{webhook}", "/webhooks/w", Json(json!({})), 404),
        below!("DELETE", "/webhooks/{webhook}", "/webhooks/w", None, 404),
        below!("POST", "/webhooks/{webhook}/rotate", "/webhooks/w/rotate", Json(json!({})), 404),
        below!("POST", "/webhooks/{webhook}/test", "/webhooks/w/test", None, 404),
        below!("GET", "/webhooks/{webhook}/deliveries", "/webhooks/w/deliveries", None, 404),
        below!(
            "GET",
            "/webhooks/{webhook}/deliveries/{delivery}",
            "/webhooks/w/deliveries/d",
            None,
            404
        ),
        below!(
            "POST",
            "/webhooks/{webhook}/deliveries/{delivery}/redeliver",
            "/webhooks/w/deliveries/d/redeliver",
            None,
            404
        ),
        route("GET", "/api/v1/audit", "/api/v1/audit", None, admin(200)),
        route("GET", "/api/v1/audit/export", "/api/v1/audit/export", None, admin(200)),
        route("GET", "/api/v1/audit/verify", "/api/v1/audit/verify", None, admin(200)),
        below!("GET", "/environments", "/environments", None, 200),
        below!("POST", "/environments", "/environments", Json(json!({ "key": "new" })), 201),
        below!("GET", "/environments/{environment}", "/environments/production", None, 200),
        below!("DELETE", "/environments/{environment}", "/environments/empty", None, 204),
        below!(
            "POST",
            "/environments/{environment}/publish",
            "/environments/production/publish",
            Json(json!({})),
            202
        ),
        below!(
            "POST",
            "/environments/{environment}/rollout",
            "/environments/production/rollout",
            Json(json!({ "action": "halt" })),
            // Nothing is under way.
            404
        ),
        below!("GET", "/flags", "/flags", None, 200),
        below!("POST", "/flags", "/flags", Json(flag.clone()), 201),
        below!("GET", "/flags/{flag}", "/flags/new", None, 200),
        below!("PUT", "/flags/{flag}", "/flags/new", Json(flag.clone()), 200),
        below!("GET", "/flags/{flag}/references", "/flags/new/references", None, 200),
        // On which version is not said.
        below!("POST", "/flags/{flag}/archive", "/flags/new/archive", None, 428),
        below!("POST", "/flags/{flag}/unarchive", "/flags/new/unarchive", None, 428),
        below!(
            "GET",
            "/environments/{environment}/flags",
            "/environments/production/flags",
            None,
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/flags/{flag}",
            "/environments/production/flags/new",
            None,
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/flags/{flag}",
            "/environments/production/flags/new",
            Json(config),
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/flags/{flag}/usage",
            "/environments/production/flags/new/usage",
            None,
            200
        ),
        below!("GET", "/flags/{flag}/versions", "/flags/new/versions", None, 200),
        below!("GET", "/flags/{flag}/versions/{version}", "/flags/new/versions/1", None, 200),
        below!(
            "POST",
            "/flags/{flag}/versions/{version}/restore",
            "/flags/new/versions/1/restore",
            None,
            // On which version is not said.
            428
        ),
        below!("GET", "/environments/{environment}/flags/{flag}/versions", VERSIONS, None, 200),
        below!(
            "GET",
            "/environments/{environment}/flags/{flag}/versions/{version}",
            format!("{VERSIONS}/1"),
            None,
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/flags/{flag}/versions/{version}/restore",
            format!("{VERSIONS}/1/restore"),
            None,
            428
        ),
        below!(
            "GET",
            "/environments/{environment}/protection",
            "/environments/production/protection",
            None,
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/protection",
            "/environments/production/protection",
            Json(json!({ "approvals": 0 })),
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/flags/{flag}/kill",
            "/environments/production/flags/new/kill",
            Json(json!({ "reason": "it burns" })),
            200
        ),
        below!(
            "GET",
            "/flags/{flag}/compare",
            "/flags/new/compare?from=production&to=new",
            None,
            200
        ),
        below!(
            "POST",
            "/promotions",
            "/promotions",
            Json(json!({ "from": "production", "to": "new", "flags": ["new"] })),
            200
        ),
        below!("GET", "/change-sets", "/change-sets", None, 200),
        below!(
            "POST",
            "/change-sets",
            "/change-sets",
            Json(json!({ "title": "On", "items": [{ "kind": "config", "key": "new",
                "environment": "production", "value": { "enabled": true,
                    "fallthrough": { "variant": "on" } } }] })),
            201
        ),
        below!("GET", "/change-sets/{number}", "/change-sets/1", None, 200),
        below!(
            "PATCH",
            "/change-sets/{number}",
            "/change-sets/1",
            Json(json!({ "title": "On again" })),
            200
        ),
        below!(
            "POST",
            "/change-sets/{number}/comment",
            "/change-sets/1/comment",
            Json(json!({ "text": "why not" })),
            200
        ),
        below!(
            "POST",
            "/change-sets/{number}/impact",
            "/change-sets/1/impact",
            Json(json!({ "environment": "production", "contexts": [{ "targetingKey": "ann" }] })),
            200
        ),
        below!("POST", "/change-sets/{number}/rebase", "/change-sets/1/rebase", None, 200),
        below!("POST", "/change-sets/{number}/submit", "/change-sets/1/submit", None, 200),
        below!(
            "POST",
            "/change-sets/{number}/approve",
            "/change-sets/1/approve",
            Json(json!({})),
            // What was looked at is not said.
            428
        ),
        below!(
            "POST",
            "/change-sets/{number}/schedule",
            "/change-sets/1/schedule",
            Json(json!({ "applyAt": tomorrow() })),
            200
        ),
        below!(
            "POST",
            "/change-sets/{number}/reject",
            "/change-sets/1/reject",
            Json(json!({ "text": "no" })),
            200
        ),
        // It was rejected.
        below!("POST", "/change-sets/{number}/apply", "/change-sets/1/apply", None, 409),
        below!(
            "POST",
            "/change-sets/{number}/cancel",
            "/change-sets/1/cancel",
            Json(json!({})),
            200
        ),
        below!("DELETE", "/flags/{flag}", "/flags/new", None, 204),
        below!(
            "GET",
            "/environments/{environment}/segments",
            "/environments/production/segments",
            None,
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/segments",
            "/environments/production/segments",
            Json(json!({ "key": "beta" })),
            201
        ),
        below!(
            "GET",
            "/environments/{environment}/segments/{segment}",
            "/environments/production/segments/beta",
            None,
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/segments/{segment}/references",
            "/environments/production/segments/beta/references",
            None,
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/segments/{segment}",
            "/environments/production/segments/beta",
            Json(json!({ "key": "beta" })),
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/segments/{segment}/{list}",
            "/environments/production/segments/beta/included",
            Text("ann\nbob\n"),
            200
        ),
        below!(
            "DELETE",
            "/environments/{environment}/segments/{segment}",
            "/environments/production/segments/beta",
            None,
            204
        ),
        below!(
            "GET",
            "/environments/{environment}/keys",
            "/environments/production/keys",
            None,
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/keys",
            "/environments/production/keys",
            Json(json!({ "kind": "server" })),
            201
        ),
        below!(
            "GET",
            "/environments/{environment}/keys/{id}",
            format!("/environments/production/keys/{key_id}"),
            None,
            200
        ),
        below!(
            "PATCH",
            "/environments/{environment}/keys/{id}",
            format!("/environments/production/keys/{key_id}"),
            Json(json!({ "name": "renamed" })),
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/keys/{id}/rotate",
            format!("/environments/production/keys/{key_id}/rotate"),
            Json(json!({})),
            201
        ),
        below!(
            "DELETE",
            "/environments/{environment}/keys/{id}",
            format!("/environments/production/keys/{key_id}"),
            None,
            204
        ),
        below!(
            "POST",
            "/environments/{environment}/import",
            "/environments/production/import?format=flagd",
            Json(json!({ "flags": {} })),
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/export",
            "/environments/production/export?format=tidegate",
            None,
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/evaluate",
            "/environments/production/evaluate",
            Json(json!({ "context": {} })),
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/sampling",
            "/environments/production/sampling",
            None,
            200
        ),
        below!(
            "PUT",
            "/environments/{environment}/sampling",
            "/environments/production/sampling",
            Json(json!({ "perMinute": 1, "keep": [], "minutes": 1 })),
            200
        ),
        below!(
            "DELETE",
            "/environments/{environment}/sampling",
            "/environments/production/sampling",
            None,
            204
        ),
        below!(
            "GET",
            "/environments/{environment}/contexts",
            "/environments/production/contexts",
            None,
            200
        ),
        below!(
            "POST",
            "/environments/{environment}/impact",
            "/environments/production/impact",
            Json(json!({ "flags": { "new": { "definition": flag.clone() } }, "contexts": [] })),
            200
        ),
        below!(
            "GET",
            "/environments/{environment}/edges",
            "/environments/production/edges",
            None,
            200
        ),
        route("GET", "/api/v1/edges", "/api/v1/edges", None, admin(200)),
        route("GET", "/api/v1/drift", "/api/v1/drift", None, admin(200)),
        route("GET", "/api/v1/edge-keys", "/api/v1/edge-keys", None, admin(200)),
        route(
            "POST",
            "/api/v1/edge-keys",
            "/api/v1/edge-keys",
            Json(json!({ "namespaces": "all" })),
            admin(201),
        ),
        route(
            "GET",
            "/api/v1/edge-keys/{id}",
            &format!("/api/v1/edge-keys/{edge_key_id}"),
            None,
            admin(200),
        ),
        route(
            "PATCH",
            "/api/v1/edge-keys/{id}",
            &format!("/api/v1/edge-keys/{edge_key_id}"),
            Json(json!({ "name": "renamed" })),
            admin(200),
        ),
        route(
            "POST",
            "/api/v1/edge-keys/{id}/rotate",
            &format!("/api/v1/edge-keys/{edge_key_id}/rotate"),
            Json(json!({})),
            admin(201),
        ),
        route(
            "DELETE",
            "/api/v1/edge-keys/{id}",
            &format!("/api/v1/edge-keys/{edge_key_id}"),
            None,
            admin(204),
        ),
    ]
}

#[tokio::test]
async fn every_route_answers_every_kind_of_key_as_the_table_says() {
    let world = World::new().await;
    world.namespace("ours").await;
    world.environment("ours", "empty").await;
    let (server, server_id) = world.key("ours", "production", "server").await;
    let (browser, _) = world.key("ours", "production", "browser").await;
    let edge = world.edge_key(json!("all")).await;
    let (_, doomed_edge_id) = world.edge_key_with_id(json!(["ours"])).await;
    world.published("ours").await;
    world.published_in("ours", "empty").await;
    let trusted = [world.control.public_key.clone()];
    let digest = world.heads(&edge).await.heads[0].verify(&trusted).expect("a head");
    let table = table(&digest.snapshot.digest.to_string(), &server_id, &doomed_edge_id);

    // From the document, so that a route that is added and not thought about fails here.
    let (_, described) = world.get("/api/v1/openapi.json").await;
    let described: BTreeSet<(String, String)> =
        control::http::operations(&described).into_iter().collect();
    let listed: BTreeSet<(String, String)> = table
        .iter()
        .map(|Route(method, template, ..)| ((*method).to_owned(), (*template).to_owned()))
        .collect();
    assert_eq!(listed, described, "the table and the document name the same routes");

    let mut wrong = Vec::new();
    for Route(method, template, at, body, statuses) in &table {
        let unknown = match template.starts_with("/edge/") {
            true => ApiKey::new(KeyKind::Edge, &[7; KEY_ENTROPY_BYTES]),
            false => ApiKey::new(KeyKind::Admin, &[7; KEY_ENTROPY_BYTES]),
        };
        let keys = [
            None,
            Some(unknown.reveal()),
            Some(server.as_str()),
            Some(browser.as_str()),
            Some(edge.as_str()),
            Some(world.token.as_str()),
        ];
        for ((kind, key), expected) in KINDS.iter().zip(keys).zip(statuses) {
            let url = format!("{}{at}", world.url);
            let mut request = world.http.request(method.parse().expect("a method"), url);
            request = match body {
                Body::None => request,
                Body::Json(body) => request.json(body),
                Body::Text(body) => request.header("content-type", "text/plain").body(*body),
            };
            if matches!(*method, "PUT" | "PATCH" | "DELETE") {
                request = request.header("if-match", "*");
            }
            if let Some(key) = key {
                request = request.bearer_auth(key);
            }
            let answer = request.send().await.expect("an answer");
            let status = answer.status().as_u16();
            let challenged = answer.headers().contains_key("www-authenticate");
            let body = answer.text().await.expect("a body");
            if status != *expected || challenged != (status == 401) {
                wrong.push(format!("{method} {at} with {kind}: {status}, not {expected}: {body}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_malformed_key_and_another_scheme_are_as_good_as_an_unknown_key() {
    let world = World::new().await;
    let admin = world.token.clone();
    let cut = admin[..admin.len() - 1].to_owned();
    for value in [
        "Bearer nonsense".to_owned(),
        "Bearer ".to_owned(),
        format!("Bearer {cut}"),
        format!("Basic {admin}"),
        admin.clone(),
        format!("Bearer {}", "x".repeat(4096)),
    ] {
        let url = format!("{}/api/v1/namespaces", world.url);
        let answer = world.http.get(url).header("authorization", &value).send().await;
        assert_eq!(answer.expect("an answer").status(), 401, "{value}");
    }
    world.control.shutdown().await;
}
