//! People: the first owner, signing in and out, tokens, roles, and whoever is disabled.

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use serde_json::{Value, json};

use crate::world::{World, read};

const PASSWORD: &str = "correct horse battery";
const OWNER: &str = "ann@example.com";

/// A control as it runs in production: nobody can enter but with the setup token.
async fn unowned() -> World {
    let dir = tempfile::tempdir().expect("a folder");
    World::with(dir, |config| config.bootstrap = false).await
}

fn text(body: &Value, name: &str) -> String {
    body[name].as_str().unwrap_or_else(|| panic!("no {name} in {body}")).to_owned()
}

async fn say(world: &World, path: &str, body: Value) -> (u16, Value) {
    read(world.http.post(format!("{}{path}", world.url)).json(&body)).await
}

/// With Ann as its owner; the world asks as she does.
async fn owned() -> World {
    let mut world = unowned().await;
    let token = std::fs::read_to_string(&world.control.setup_token_file).expect("a setup token");
    let body = json!({ "token": token.trim(), "email": OWNER, "password": PASSWORD });
    let (status, body) = say(&world, "/api/v1/setup", body).await;
    assert_eq!(status, 201, "{body}");
    world.token = text(&body, "accessToken");
    world
}

impl World {
    async fn as_with(&self, token: &str, method: &str, path: &str, body: Value) -> (u16, Value) {
        let request = self.http.request(method.parse().expect("a method"), self.url.clone() + path);
        let request = request.bearer_auth(token).header("if-match", "*");
        read(if body.is_null() { request } else { request.json(&body) }).await
    }

    async fn sign_in(&self, email: &str, password: &str) -> (u16, Value) {
        say(self, "/api/v1/sessions", json!({ "email": email, "password": password })).await
    }

    /// An account with a password, and its session.
    async fn person(&self, email: &str) -> (String, Value) {
        let (status, made) = self.post("/api/v1/users", json!({ "email": email })).await;
        assert_eq!(status, 201, "{made}");
        let invitation = text(&made["invitation"], "token");
        let body = json!({ "token": invitation, "password": PASSWORD });
        let (status, session) = say(self, "/api/v1/invitations/accept", body).await;
        assert_eq!(status, 201, "{session}");
        (text(&session, "accessToken"), session)
    }

    async fn member(&self, who: &str, roles: Value) {
        let path = format!("/api/v1/namespaces/ours/members/{who}");
        let (status, body) = self.put(&path, roles).await;
        assert_eq!(status, 200, "{body}");
    }
}

#[tokio::test]
async fn the_setup_token_makes_one_owner_once_and_nothing_else_lets_anybody_in() {
    let world = unowned().await;
    assert!(!world.control.admin_token_file.exists(), "no admin token is made");
    let bootstrap = ApiKey::new(KeyKind::Admin, &[7; KEY_ENTROPY_BYTES]);
    let namespaces = "/api/v1/namespaces";
    let (status, _) = world.as_with(bootstrap.reveal(), "GET", namespaces, Value::Null).await;
    assert_eq!(status, 401);
    let token = std::fs::read_to_string(&world.control.setup_token_file).expect("a setup token");
    let token = token.trim();
    assert_eq!(world.as_with(token, "GET", namespaces, Value::Null).await.0, 403);

    let setup = |token: &str, email: &str, password: &str| json!({ "token": token, "email": email, "password": password });
    let forged = ApiKey::new(KeyKind::Setup, &[7; KEY_ENTROPY_BYTES]);
    let (status, body) =
        say(&world, "/api/v1/setup", setup(forged.reveal(), OWNER, PASSWORD)).await;
    assert_eq!((status, &body["type"]), (403, &json!("urn:tidegate:problem:void-token")));
    for (email, password, pointer) in
        [("nobody", PASSWORD, "/email"), (OWNER, "short", "/password")]
    {
        let (status, body) = say(&world, "/api/v1/setup", setup(token, email, password)).await;
        assert_eq!((status, &body["errors"][0]["pointer"]), (422, &json!(pointer)), "{body}");
    }
    let (status, body) =
        say(&world, "/api/v1/setup", setup(token, " Ann@Example.com", PASSWORD)).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!((&body["user"]["email"], &body["user"]["operator"]), (&json!(OWNER), &json!(true)));
    let (status, body) =
        say(&world, "/api/v1/setup", setup(token, "eve@example.com", PASSWORD)).await;
    assert_eq!(status, 403, "{body}");

    // Also after a restart, which makes no other.
    let World { control, dir, .. } = world;
    let file = control.setup_token_file.clone();
    control.shutdown().await;
    std::fs::remove_file(&file).expect("it was there");
    let world = World::with(dir, |config| config.bootstrap = false).await;
    assert!(!file.exists() && !world.control.awaits_owner);
    assert_eq!(world.sign_in(OWNER, PASSWORD).await.0, 201);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_session_goes_on_by_its_refresh_token_which_is_good_once() {
    let world = owned().await;
    let (status, first) = world.sign_in("Ann@example.com", PASSWORD).await;
    assert_eq!((status, &first["expiresIn"]), (201, &json!(600)), "{first}");
    let refresh = |token: String| json!({ "refreshToken": token });
    let path = "/api/v1/sessions/refresh";
    let (status, second) = say(&world, path, refresh(text(&first, "refreshToken"))).await;
    assert_eq!(status, 200, "{second}");
    assert_eq!(second["sessionId"], first["sessionId"]);
    let me = |token: String| {
        let world = &world;
        async move { world.as_with(&token, "GET", "/api/v1/me", Value::Null).await.0 }
    };
    assert_eq!(me(text(&second, "accessToken")).await, 200);

    // Who comes with the first one again ends the session, also for whoever has the second one.
    assert_eq!(say(&world, path, refresh(text(&first, "refreshToken"))).await.0, 401);
    assert_eq!(me(text(&first, "accessToken")).await, 401);
    assert_eq!(me(text(&second, "accessToken")).await, 401);
    assert_eq!(say(&world, path, refresh(text(&second, "refreshToken"))).await.0, 401);
    // And no other.
    assert_eq!(me(world.token.clone()).await, 200);

    let (_, third) = world.sign_in(OWNER, PASSWORD).await;
    let token = text(&third, "accessToken");
    let (status, listed) = world.as_with(&token, "GET", "/api/v1/sessions", Value::Null).await;
    let current: Vec<_> = listed["items"].as_array().expect("a list").iter().collect();
    assert_eq!((status, current.len()), (200, 2), "{listed}");
    assert_eq!(current.iter().filter(|one| one["current"] == true).count(), 1, "{listed}");
    let out = world.as_with(&token, "DELETE", "/api/v1/sessions/current", Value::Null).await;
    assert_eq!((out.0, me(token).await), (204, 401));
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_personal_token_does_what_its_scopes_say_and_makes_no_other() {
    let world = owned().await;
    world.namespace("ours").await;
    let mut tokens = Vec::new();
    for scope in ["read", "write", "admin"] {
        let body = json!({ "name": scope, "scopes": [scope] });
        let (status, made) = world.post("/api/v1/me/tokens", body).await;
        assert_eq!(status, 201, "{made}");
        tokens.push((text(&made, "token"), text(&made, "id")));
    }
    let flag = json!({ "key": "f", "type": "boolean", "variants": { "on": true } });
    let flags = "/api/v1/namespaces/ours/flags";
    let environments = "/api/v1/namespaces/ours/environments";
    for ((token, _), (write, administer, operate)) in
        tokens.iter().zip([(403, 403, 403), (201, 403, 403), (409, 201, 201)])
    {
        assert_eq!(world.as_with(token, "GET", flags, Value::Null).await.0, 200);
        assert_eq!(world.as_with(token, "POST", flags, flag.clone()).await.0, write);
        let made = world.as_with(token, "POST", environments, json!({ "key": "new" })).await;
        assert_eq!(made.0, administer, "{}", made.1);
        let made = json!({ "key": "other" });
        let made = world.as_with(token, "POST", "/api/v1/namespaces", made).await;
        assert_eq!(made.0, operate, "{}", made.1);
        let more = json!({ "name": "more", "scopes": ["read"] });
        let (status, body) = world.as_with(token, "POST", "/api/v1/me/tokens", more).await;
        assert_eq!((status, &body["type"]), (403, &json!("urn:tidegate:problem:no-session")));
    }
    let used = |body: &Value| {
        body["items"].as_array().is_some_and(|items| {
            items.len() == 3 && items.iter().all(|item| item["lastUsedAt"].is_string())
        })
    };
    let listed = world.until("/api/v1/me/tokens", used).await;
    assert!(listed["items"][0]["token"].is_null(), "shown once: {listed}");
    let (token, id) = &tokens[0];
    let gone = world.delete(&format!("/api/v1/me/tokens/{id}")).await;
    assert_eq!((gone.0, world.as_with(token, "GET", flags, Value::Null).await.0), (204, 401));
    let bad = json!({ "name": "x", "scopes": ["read"], "expiresInDays": 367 });
    assert_eq!(world.post("/api/v1/me/tokens", bad).await.0, 422);
    world.sql("UPDATE access_token SET expires_at = 1").await;
    assert_eq!(world.as_with(&tokens[2].0, "GET", flags, Value::Null).await.0, 401);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_member_does_what_their_roles_give_and_sees_no_other_namespace() {
    let world = owned().await;
    for name in ["ours", "theirs"] {
        world.namespace(name).await;
    }
    world.environment("ours", "staging").await;
    let (bob, _) = world.person("bob@example.com").await;
    let get = |path: &'static str| {
        let (world, bob) = (&world, &bob);
        async move { world.as_with(bob, "GET", path, Value::Null).await }
    };
    assert_eq!(get("/api/v1/namespaces/ours").await.0, 404);
    world
        .member("bob@example.com", json!({ "environments": { "staging": { "role": "editor" } } }))
        .await;
    let (_, listed) = get("/api/v1/namespaces").await;
    assert_eq!(listed["items"].as_array().expect("a list").len(), 1, "{listed}");
    let (_, me) = get("/api/v1/me").await;
    assert_eq!(me["namespaces"]["ours"]["environments"]["staging"]["role"], "editor", "{me}");
    assert_eq!(get("/api/v1/namespaces/ours/flags").await.0, 200);
    let nowhere = get("/api/v1/namespaces/nowhere/flags").await;
    assert_eq!((nowhere.0, get("/api/v1/namespaces/theirs/flags").await), (404, nowhere));
    assert_eq!(get("/api/v1/users").await.0, 403);

    assert_eq!(world.flag("ours", "f").await.0, 201);
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    for (environment, status) in [("staging", 200), ("production", 403)] {
        let path = format!("/api/v1/namespaces/ours/environments/{environment}/flags/f");
        let done = world.as_with(&bob, "PUT", &path, config.clone()).await;
        assert_eq!(done.0, status, "{environment}: {}", done.1);
    }
    world.member("bob@example.com", json!({ "role": "viewer" })).await;
    let path = "/api/v1/namespaces/ours/environments/staging/flags/f";
    assert_eq!(world.as_with(&bob, "PUT", path, config).await.0, 403);
    assert_eq!(world.delete("/api/v1/namespaces/ours/members/bob@example.com").await.0, 204);
    assert_eq!(get("/api/v1/namespaces/ours/flags").await.0, 404);
    world.control.shutdown().await;
}

#[tokio::test]
async fn whoever_is_disabled_is_out_at_once_and_the_last_operator_stays() {
    let world = owned().await;
    world.namespace("ours").await;
    let (bob, session) = world.person("bob@example.com").await;
    world.member("bob@example.com", json!({ "role": "owner" })).await;
    let body = json!({ "name": "ci", "scopes": ["admin"] });
    let (_, token) = world.as_with(&bob, "POST", "/api/v1/me/tokens", body).await;
    let token = text(&token, "token");
    let flags = "/api/v1/namespaces/ours/flags";
    for one in [&bob, &token] {
        assert_eq!(world.as_with(one, "GET", flags, Value::Null).await.0, 200);
    }
    assert_eq!(world.delete("/api/v1/users/bob@example.com").await.0, 204);
    let refresh = json!({ "refreshToken": text(&session, "refreshToken") });
    for again in [false, true] {
        for one in [&bob, &token] {
            assert_eq!(world.as_with(one, "GET", flags, Value::Null).await.0, 401);
        }
        assert_eq!(say(&world, "/api/v1/sessions/refresh", refresh.clone()).await.0, 401);
        assert_eq!(
            world.sign_in("bob@example.com", PASSWORD).await.0,
            if again { 201 } else { 401 }
        );
        if !again {
            // Nothing of what was ended comes back.
            let enabled = world.ask("PATCH", "/api/v1/users/bob@example.com");
            let enabled = enabled.header("if-match", "*").json(&json!({ "disabled": false }));
            assert_eq!(read(enabled).await.0, 200);
        }
    }
    for change in [json!({ "disabled": true }), json!({ "operator": false })] {
        let last = world.ask("PATCH", &format!("/api/v1/users/{OWNER}"));
        let (status, body) = read(last.header("if-match", "*").json(&change)).await;
        assert_eq!((status, &body["type"]), (409, &json!("urn:tidegate:problem:last")), "{body}");
    }
    world.control.shutdown().await;
}
