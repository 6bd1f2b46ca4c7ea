//! Every operation of the OpenAPI document, asked by every kind of caller: who may is stated here a
//! second time, by hand, and compared with what the server does.
//!
//! What is sent can change nothing where it is let in: it names things that are not there, and its
//! body is no JSON. So a caller who may is answered exactly as an operator is, a caller who may not
//! gets 403, and somebody of another tenant gets, byte for byte, what they get for a namespace that
//! is not there.

use std::collections::BTreeMap;

use control::authorize::Permission;
use serde_json::{Value, json};

use crate::world::World;

/// Which permissions a role gives in the namespace, in the words of docs/API.md.
fn gives(role: &str) -> &'static [&'static str] {
    match role {
        "viewer" => &["read"],
        "approver" => &["read", "approve"],
        "editor" => &["read", "write", "configure"],
        "admin" => &["read", "write", "configure", "approve", "kill", "administer"],
        "owner" => &["read", "write", "configure", "approve", "kill", "administer", "own"],
        // Not in the namespace, but in its environment `production`.
        "editor in production" => &["read", "production:configure"],
        "approver in production" => &["read", "production:approve"],
        "admin in production" => &[
            "read",
            "production:configure",
            "production:approve",
            "production:kill",
            "production:administer",
        ],
        "viewer with kill switch" => &["read", "kill"],
        "owner by a token to read" => &["read"],
        "service as editor" => &["read", "write", "configure"],
        other => panic!("no such role: {other}"),
    }
}

const ROLES: [&str; 11] = [
    "viewer",
    "approver",
    "editor",
    "admin",
    "owner",
    "editor in production",
    "approver in production",
    "admin in production",
    "viewer with kill switch",
    "owner by a token to read",
    "service as editor",
];

struct People {
    operator: String,
    members: BTreeMap<&'static str, String>,
    /// Owns `theirs`, and has nothing to do with `ours`.
    stranger: String,
}

async fn send(
    world: &World,
    token: Option<&str>,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> (u16, String) {
    let method = method.parse().expect("a method");
    let mut request = world.http.request(method, format!("{}{path}", world.url));
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    if let Some(body) = body {
        request = request.header("if-match", "*").json(body);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    (status, answer.text().await.expect("text"))
}

async fn ok(world: &World, token: &str, method: &str, path: &str, body: Value) -> Value {
    let (status, text) = send(world, Some(token), method, path, Some(&body)).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

/// An account, and a personal token of it.
async fn person(world: &World, email: &str, operator: bool, scopes: Value) -> String {
    let session = world.account(email, operator).await;
    let session = session["accessToken"].as_str().expect("a session").to_owned();
    let body = json!({ "name": "matrix", "scopes": scopes });
    let token = ok(world, &session, "POST", "/api/v1/me/tokens", body).await;
    token["token"].as_str().expect("a token").to_owned()
}

async fn people(world: &World) -> People {
    let everything = json!(["admin"]);
    let operator = person(world, "operator@example.com", true, everything.clone()).await;
    let mut members = BTreeMap::new();
    for (index, role) in ROLES.into_iter().enumerate() {
        if role == "service as editor" {
            let body = json!({ "name": "ci", "role": "editor" });
            let path = "/api/v1/namespaces/ours/tokens";
            let token = ok(world, &world.token, "POST", path, body).await;
            members.insert(role, token["token"].as_str().expect("a token").to_owned());
            continue;
        }
        let email = format!("member{index}@example.com");
        let scopes = match role {
            "owner by a token to read" => json!(["read"]),
            _ => everything.clone(),
        };
        let token = person(world, &email, false, scopes).await;
        let in_production =
            |role: &str| json!({ "environments": { "production": { "role": role } } });
        let binding = match role {
            "editor in production" => in_production("editor"),
            "approver in production" => in_production("approver"),
            "admin in production" => in_production("admin"),
            "viewer with kill switch" => json!({ "role": "viewer", "killSwitch": true }),
            "owner by a token to read" => json!({ "role": "owner" }),
            role => json!({ "role": role }),
        };
        let path = format!("/api/v1/namespaces/ours/members/{email}");
        ok(world, &world.token, "PUT", &path, binding).await;
        members.insert(role, token);
    }
    let stranger = person(world, "stranger@example.com", false, everything).await;
    let path = "/api/v1/namespaces/theirs/members/stranger@example.com";
    ok(world, &world.token, "PUT", path, json!({ "role": "owner" })).await;
    People { operator, members, stranger }
}

/// `ours` with an environment beside `production`, and `theirs`.
async fn world() -> (World, People) {
    let world = World::new().await;
    world.namespace("ours").await;
    world.environment("ours", "staging").await;
    world.namespace("theirs").await;
    let people = people(&world).await;
    (world, people)
}

/// Every (method, path) of the document that the server gives.
async fn operations(world: &World) -> Vec<(String, String)> {
    let (status, document) = world.get("/api/v1/openapi.json").await;
    assert_eq!(status, 200);
    let operations = control::http::operations(&document);
    assert!(operations.len() > 90, "{} operations", operations.len());
    operations
}

/// Things that are not there, in the environment that is.
fn fill(path: &str, namespace: &str, environment: &str) -> String {
    path.replace("{namespace}", namespace)
        .replace("{environment}", environment)
        .replace("{number}", "999999")
        .replace("{version}", "999999")
        .replace("{delivery}", "999999")
        .replace("{digest}", &"0".repeat(64))
        .replace("{list}", "included")
        .split('/')
        .map(|part| if part.starts_with('{') { "nothing" } else { part })
        .collect::<Vec<_>>()
        .join("/")
}

fn streams(path: &str) -> bool {
    path == "/api/v1/events"
}

#[tokio::test]
async fn every_operation_lets_in_exactly_the_roles_that_may() {
    let (world, people) = world().await;
    let mut cells = 0;
    for (method, template) in operations(&world).await {
        let permission = control::authorize::routes::permission(&method, &template)
            .unwrap_or_else(|| panic!("{method} {template} has no permission"));
        if streams(&template) {
            continue;
        }
        for environment in ["production", "staging"] {
            if environment == "staging" && !template.contains("{environment}") {
                continue;
            }
            let path = fill(&template, "ours", environment);
            let ask = |token: Option<String>| {
                let (world, method, path) = (&world, &method, &path);
                async move { send(world, token.as_deref(), method, path, None).await }
            };
            let place = format!("{method} {path} ({})", permission.name());
            let reference = ask(Some(people.operator.clone())).await;
            let (nobody, _) = ask(None).await;
            let (unknown, _) = ask(Some("tg_personal_AAAAAAAA_x_000000".to_owned())).await;
            match permission {
                Permission::Public => {
                    assert_eq!(nobody, reference.0, "{place} as nobody");
                    continue;
                }
                _ => assert_eq!((nobody, unknown), (401, 401), "{place} as nobody"),
            }
            for (role, token) in &people.members {
                let may = match permission {
                    Permission::Edge | Permission::Operate => false,
                    // A program has no account of its own.
                    Permission::Account => continue,
                    _ => {
                        let (name, given) = (permission.name(), gives(role));
                        let there = format!("production:{name}");
                        // Without an environment in the path, a right in one of them lets in.
                        let counts =
                            environment == "production" || !template.contains("{environment}");
                        given.contains(&name) || counts && given.contains(&there.as_str())
                    }
                };
                let (status, text) = ask(Some(token.clone())).await;
                let wanted = if may { reference.0 } else { 403 };
                assert_eq!(status, wanted, "{place} as {role}: {text}");
                assert!(!may || !matches!(status, 401 | 403), "{place} as {role}: {text}");
                cells += 1;
            }
            let (status, text) = ask(Some(people.stranger.clone())).await;
            if template.contains("{namespace}") {
                let nowhere = fill(&template, "nowhere", environment);
                let token = Some(people.stranger.as_str());
                let absent = send(&world, token, &method, &nowhere, None).await;
                assert_eq!((status, &text), (404, &absent.1), "{place} as a stranger");
                assert_eq!(absent.0, 404, "{place} in no namespace");
            } else if permission != Permission::Account {
                assert_eq!(status, 403, "{place} as a stranger: {text}");
            }
            cells += 3;
        }
    }
    println!("{cells} cells");
    // Nobody is left without what they came with.
    for (role, token) in &people.members {
        let (status, text) =
            send(&world, Some(token), "GET", "/api/v1/namespaces/ours/flags", None).await;
        assert_eq!(status, 200, "{role}: {text}");
    }
    world.control.shutdown().await;
}

/// Things of `ours` by the placeholder that names them, all of them with other names than anything of
/// `theirs` has.
async fn furnish(world: &World) -> BTreeMap<&'static str, String> {
    let token = world.token.as_str();
    let base = "/api/v1/namespaces/ours";
    ok(world, token, "POST", &format!("{base}/environments"), json!({ "key": "hidden-place" }))
        .await;
    let place = format!("{base}/environments/hidden-place");
    let definition = json!({ "key": "hidden-flag", "type": "boolean", "variants": { "on": true, "off": false } });
    ok(world, token, "POST", &format!("{base}/flags"), definition).await;
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    ok(world, token, "PUT", &format!("{place}/flags/hidden-flag"), config.clone()).await;
    ok(world, token, "POST", &format!("{place}/segments"), json!({ "key": "hidden-segment" }))
        .await;
    let key = ok(world, token, "POST", &format!("{place}/keys"), json!({ "kind": "server" })).await;
    let set = json!({ "title": "hidden", "items": [{ "kind": "config",
        "environment": "hidden-place", "key": "hidden-flag", "value": config }] });
    ok(world, token, "POST", &format!("{base}/change-sets"), set).await;
    let hook = json!({ "url": "https://hooks.example.com/hook", "description": "hidden" });
    let hook = ok(world, token, "POST", &format!("{base}/webhooks"), hook).await;
    BTreeMap::from([
        ("webhook", hook["id"].as_str().expect("an id").to_owned()),
        ("delivery", "1".to_owned()),
        ("environment", "hidden-place".to_owned()),
        ("flag", "hidden-flag".to_owned()),
        ("segment", "hidden-segment".to_owned()),
        ("id", key["id"].as_str().expect("an id").to_owned()),
        ("number", "1".to_owned()),
        ("version", "1".to_owned()),
        ("list", "included".to_owned()),
        ("policy", "hidden-policy".to_owned()),
        ("digest", "0".repeat(64)),
        ("user", "member0@example.com".to_owned()),
    ])
}

/// What an operator sees of `ours`.
async fn state(world: &World) -> Vec<String> {
    let base = "/api/v1/namespaces/ours";
    let place = format!("{base}/environments/hidden-place");
    let mut state = Vec::new();
    for path in [
        base.to_owned(),
        format!("{base}/flags"),
        format!("{base}/members"),
        format!("{base}/tokens"),
        format!("{base}/change-sets"),
        format!("{base}/audit"),
        format!("{base}/webhooks"),
        place.clone(),
        format!("{place}/flags"),
        format!("{place}/segments"),
        format!("{place}/keys"),
    ] {
        let (status, text) = send(world, Some(&world.token), "GET", &path, None).await;
        assert_eq!(status, 200, "{path}: {text}");
        state.push(text);
    }
    state
}

/// What would be done, were it theirs.
fn body_of(template: &str) -> Value {
    let definition = json!({ "key": "hidden-flag", "type": "boolean", "variants": { "on": true, "off": false } });
    match template.strip_prefix("/api/v1/namespaces/{namespace}").unwrap_or(template) {
        "/flags/{flag}" => definition,
        "/environments/{environment}/flags/{flag}" => {
            json!({ "enabled": true, "fallthrough": { "variant": "off" } })
        }
        "/environments/{environment}/flags/{flag}/kill" => json!({ "reason": "x" }),
        "/environments/{environment}/segments/{segment}" => json!({ "key": "hidden-segment" }),
        "/environments/{environment}/segments" => json!({ "key": "new" }),
        "/environments/{environment}/keys" => json!({ "kind": "server" }),
        "/environments/{environment}/keys/{id}" => json!({ "name": "x" }),
        "/environments/{environment}/evaluate" => json!({ "context": {} }),
        "/environments/{environment}/sampling" => {
            json!({ "perMinute": 1, "keep": [], "minutes": 1 })
        }
        _ => json!({}),
    }
}

/// A route's permission cannot be looser than what the route does: of those that change something in a
/// namespace, none is open to who may only look.
#[test]
fn no_route_that_changes_something_is_open_to_viewers() {
    let looks = ["/evaluate", "/impact", "/comment"];
    let mut unsafe_routes = 0;
    for (method, path) in control::authorize::routes::guarded() {
        let permission = control::authorize::routes::permission(&method, &path).expect("guarded");
        let below = path.strip_prefix("/api/v1/namespaces/{namespace}");
        if method == "GET" || below.is_none() || looks.iter().any(|end| path.ends_with(end)) {
            continue;
        }
        unsafe_routes += 1;
        assert!(!gives("viewer").contains(&permission.name()), "{method} {path}");
        assert!(!matches!(permission, Permission::Public | Permission::Account), "{method} {path}");
        // Keys, members and the like take more than editing does.
        let rules = ["/keys", "/members", "/tokens", "/protection", "/webhooks", "/sampling"];
        if rules.iter().any(|part| path.contains(part)) {
            assert!(!gives("editor").contains(&permission.name()), "{method} {path}");
        }
    }
    assert!(unsafe_routes > 40, "{unsafe_routes} routes");
}

#[tokio::test]
async fn what_another_tenant_has_is_as_good_as_absent_under_every_name_in_a_path() {
    let (world, people) = world().await;
    let hidden = furnish(&world).await;
    world.published_in("ours", "hidden-place").await;
    let before = state(&world).await;
    let nothing = |name: &str, real: &str| match name {
        "number" | "version" => "424242".to_owned(),
        "digest" => "1".repeat(64),
        "list" => real.to_owned(),
        // As well-formed as the real ones.
        "delivery" => "424242".to_owned(),
        "webhook" => "00000000-0000-7000-8000-000000000000".to_owned(),
        "id" => "zzzzzzzz".chars().take(real.len()).collect(),
        "user" => "nobody0@example.com".to_owned(),
        _ => real.replace("hidden", "absent"),
    };
    let mut cells = 0;
    for (method, template) in operations(&world).await {
        let names: Vec<&str> = template
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .filter(|name| *name != "namespace")
            .collect();
        // A member of theirs may be made of anybody who has an account: that is no leak.
        if names.is_empty() || template.ends_with("/members/{user}") || streams(&template) {
            continue;
        }
        let through = |namespace: &str, own: bool, of: &dyn Fn(&str) -> String| {
            let mut path = template.replace("{namespace}", namespace);
            for name in &names {
                let value =
                    if own && *name == "environment" { "production".to_owned() } else { of(name) };
                path = path.replace(&format!("{{{name}}}"), &value);
            }
            path
        };
        let real = |name: &str| hidden.get(name).cloned().unwrap_or_else(|| panic!("{{{name}}}"));
        let body = body_of(&template);
        let renamed = body.to_string().replace("hidden", "absent");
        let renamed: Value = serde_json::from_str(&renamed).expect("JSON");
        // In the other tenant, in one's own under its names, and in one's own environment.
        for (namespace, own) in [("ours", false), ("theirs", false), ("theirs", true)] {
            let in_namespaces = template.contains("{namespace}");
            if !in_namespaces && (namespace, own) != ("theirs", false)
                || own && (!names.contains(&"environment") || names.len() == 1)
            {
                continue;
            }
            let of_theirs = through(namespace, own, &real);
            let of_nobody = through(namespace, own, &|name| nothing(name, &real(name)));
            let token = Some(people.stranger.as_str());
            let found = send(&world, token, &method, &of_theirs, Some(&body)).await;
            let absent = send(&world, token, &method, &of_nobody, Some(&renamed)).await;
            // An answer may repeat the name that was asked for.
            let mut text = found.1;
            for name in
                names.iter().filter(|name| !matches!(**name, "number" | "version" | "delivery"))
            {
                text = text.replace(&real(name), &nothing(name, &real(name)));
            }
            assert_eq!((found.0, &text), (absent.0, &absent.1), "{method} {of_theirs}");
            if namespace == "ours" {
                assert_eq!(found.0, 404, "{method} {of_theirs}");
            }
            cells += 1;
        }
    }
    println!("{cells} cells");
    assert_eq!(state(&world).await, before, "nothing of it has changed");
    world.control.shutdown().await;
}
