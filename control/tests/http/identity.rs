//! People: the first owner, signing in and out, tokens, roles, and whoever is disabled.

use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::{PASSWORD, PATIENCE, World, read};

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
        let session = self.account(email, false).await;
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
async fn the_setup_token_is_good_until_somebody_may_do_everything_whoever_else_is_there() {
    let world = unowned().await;
    let token = std::fs::read_to_string(&world.control.setup_token_file).expect("a setup token");
    let setup = json!({ "token": token.trim(), "email": OWNER, "password": PASSWORD });
    // As an identity provider brings people, before there is an owner.
    world
        .sql(
            "INSERT INTO user_account (id, email, name, operator, version, created_at, updated_at) \
             VALUES ('guest', 'guest@example.com', '', FALSE, 1, 1, 1)",
        )
        .await;
    let World { control, dir, .. } = world;
    control.shutdown().await;
    let world = World::with(dir, |config| config.bootstrap = false).await;
    assert!(world.control.awaits_owner);
    // An owner came by another way, and the token was not used up.
    world.sql("UPDATE user_account SET operator = TRUE").await;
    let (status, body) = say(&world, "/api/v1/setup", setup.clone()).await;
    assert_eq!((status, &body["type"]), (403, &json!("urn:tidegate:problem:void-token")), "{body}");
    let refused = control::users::begin_anew(&world.control.store, |_| panic!("one was made"));
    assert!(matches!(refused.await, Err(control::users::AnewError::Owned)));
    world.sql("UPDATE user_account SET operator = FALSE").await;

    // Issued anew and used at once: one of the two is first, and there is one owner.
    let (made, used) = tokio::join!(
        control::users::begin_anew(&world.control.store, |_| Ok(())),
        say(&world, "/api/v1/setup", setup),
    );
    assert_eq!(made.is_err(), used.0 == 201, "{made:?} {used:?}");
    let left = "DELETE FROM invitation WHERE kind = 'setup'";
    assert_eq!(world.sql(left).await, u64::from(made.is_ok()));
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

#[tokio::test]
async fn who_is_wrong_too_often_waits_and_is_told_how_long() {
    let world = owned().await;
    // Five, and one more for each twelve seconds that they take.
    let wrong = async |email: &str| {
        let mut tried = 0;
        loop {
            match world.sign_in(email, "not this one, either").await {
                (429, _) => return tried,
                (status, body) => {
                    let credentials = json!("urn:tidegate:problem:credentials");
                    assert_eq!((status, &body["type"]), (401, &credentials));
                }
            }
            tried += 1;
            assert!(tried < 20, "nobody has to wait");
        }
    };
    assert!(wrong(OWNER).await >= 5);
    // Whoever is right now waits too, or the limit would tell who is.
    let url = format!("{}/api/v1/sessions", world.url);
    let body = json!({ "email": "ANN@example.com", "password": PASSWORD });
    let began = Instant::now();
    let answer = loop {
        let answer = world.http.post(&url).json(&body).send().await.expect("an answer");
        // Hashing takes a busy machine as long as it takes the limit to let one more through.
        if answer.status() == 429 {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "whoever is right does not wait");
        wrong(OWNER).await;
    };
    let after = answer.headers()["retry-after"].to_str().expect("text").parse::<u64>();
    assert!((1..=12).contains(&after.expect("seconds")));
    // The same for an address that has no account: nothing tells the two apart.
    assert!(wrong("nobody@example.com").await >= 5);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_page_signs_in_with_cookies_and_only_a_page_of_ours_changes_anything_with_them() {
    let world = owned().await;
    let url = |path: &str| format!("{}{path}", world.url);
    let body = json!({ "email": OWNER, "password": PASSWORD, "cookie": true });
    let answer = world.http.post(url("/api/v1/sessions")).json(&body).send().await.expect("in");
    let set: Vec<String> = answer
        .headers()
        .get_all("set-cookie")
        .iter()
        .map(|value| value.to_str().expect("text").to_owned())
        .collect();
    assert_eq!(set.len(), 2, "{set:?}");
    for (cookie, name) in set.iter().zip(["__Host-tidegate-session=", "__Host-tidegate-refresh="]) {
        assert!(cookie.starts_with(name), "{cookie}");
        for attribute in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite=Strict"] {
            assert!(cookie.contains(attribute), "{cookie}");
        }
        assert!(!cookie.contains("Domain"), "{cookie}");
    }
    let body: Value = answer.json().await.expect("JSON");
    assert!(body["accessToken"].is_null() && body["refreshToken"].is_null(), "{body}");
    let csrf = text(&body, "csrfToken");
    let pair = |cookie: &String| cookie.split(';').next().expect("a pair").to_owned();
    let cookies = set.iter().map(pair).collect::<Vec<_>>().join("; ");

    let me = world.http.get(url("/api/v1/me")).header("cookie", &cookies);
    let (status, me) = read(me).await;
    assert_eq!((status, &me["csrfToken"]), (200, &json!(csrf)), "{me}");
    let host = world.url.trim_start_matches("http://").to_owned();
    let own = format!("http://{host}");
    let ask = |headers: &[(&str, &str)]| {
        let mut request = world.http.post(url("/api/v1/namespaces")).header("cookie", &cookies);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.json(&json!({ "key": "ours" })))
    };
    let token = ("x-csrf-token", csrf.as_str());
    for (what, headers) in [
        ("neither", vec![]),
        ("no origin", vec![token]),
        ("no token", vec![("origin", own.as_str())]),
        ("another token", vec![("origin", &own), ("x-csrf-token", "AAAA")]),
        ("another origin", vec![("origin", "https://evil.example"), token]),
        ("another port", vec![("origin", "http://127.0.0.1:1"), token]),
        ("no origin at all", vec![("origin", "null"), token]),
        ("another site", vec![("sec-fetch-site", "cross-site"), token]),
        ("a site beside", vec![("sec-fetch-site", "same-site"), ("origin", &own), token]),
    ] {
        let (status, body) = ask(&headers).await;
        assert_eq!((status, &body["type"]), (403, &json!("urn:tidegate:problem:csrf")), "{what}");
    }
    let (status, body) = ask(&[("sec-fetch-site", "same-origin"), token]).await;
    assert_eq!(status, 201, "{body}");
    assert_eq!(ask(&[("origin", &own), token]).await.0, 409, "it is let in, and there already");
    // Whoever names a token means it.
    let named = world.http.get(url("/api/v1/me")).header("cookie", &cookies).bearer_auth("x.y.z");
    assert_eq!(read(named).await.0, 401);
    // A cookie holds a session and nothing else.
    let other = format!("__Host-tidegate-session={}", "tg_admin_x_y_z");
    assert_eq!(read(world.http.get(url("/api/v1/me")).header("cookie", other)).await.0, 401);

    let refresh = |headers: &[(&str, &str)]| {
        let path = url("/api/v1/sessions/refresh");
        let mut request = world.http.post(path).header("cookie", &cookies).json(&json!({}));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send()
    };
    assert_eq!(refresh(&[token]).await.expect("an answer").status(), 403);
    let next = refresh(&[("origin", &own), token]).await.expect("an answer");
    assert_eq!(
        (next.status().as_u16(), next.headers().get_all("set-cookie").iter().count()),
        (200, 2)
    );
    let out = world.http.delete(url("/api/v1/sessions/current")).header("cookie", &cookies);
    let out = out.header("origin", &own).header("x-csrf-token", &csrf).send().await;
    let out = out.expect("an answer");
    assert_eq!(out.status(), 204);
    assert!(out.headers()["set-cookie"].to_str().expect("text").contains("Max-Age=0"));
    world.control.shutdown().await;
}

#[tokio::test]
async fn nobody_gives_or_takes_more_than_they_have_and_the_last_owner_stays() {
    let world = owned().await;
    world.namespace("ours").await;
    world.environment("ours", "staging").await;
    let (owner, _) = world.person("owner@example.com").await;
    let (admin, _) = world.person("admin@example.com").await;
    let (keeper, _) = world.person("keeper@example.com").await;
    world.member("owner@example.com", json!({ "role": "owner" })).await;
    world.member("admin@example.com", json!({ "role": "admin" })).await;
    let there = |role: &str| json!({ "environments": { "staging": { "role": role } } });
    world.member("keeper@example.com", there("admin")).await;
    let members = "/api/v1/namespaces/ours/members";
    let set = |by: &str, who: &str, roles: Value| {
        let (world, by, path) = (&world, by.to_owned(), format!("{members}/{who}@example.com"));
        async move { world.as_with(&by, "PUT", &path, roles).await.0 }
    };
    let (bob, role) = ("bob", |role: &str| json!({ "role": role }));
    let everywhere = json!({ "role": "viewer", "killSwitch": true });
    for (by, who, roles, status) in [
        (&admin, bob, role("owner"), 403),
        (&admin, bob, role("admin"), 200),
        (&admin, "owner", role("viewer"), 403),
        (&admin, "admin", role("owner"), 403),
        (&keeper, bob, role("viewer"), 403),
        (&keeper, "eve", there("editor"), 200),
        (&keeper, "eve", json!({ "environments": { "production": { "role": "viewer" } } }), 403),
        (&keeper, "eve", everywhere.clone(), 403),
        (&admin, "eve", everywhere, 200),
        (&keeper, "eve", there("viewer"), 403),
        (&owner, bob, role("owner"), 200),
        (&admin, bob, role("viewer"), 403),
        (&owner, bob, role("viewer"), 200),
        // The last one, whoever asks.
        (&owner, "owner", role("admin"), 409),
        (&world.token, "owner", role("admin"), 409),
        (&owner, bob, json!({}), 422),
        (&owner, bob, json!({ "killSwitch": true }), 422),
        (&owner, bob, there("owner"), 422),
        (&owner, bob, json!({ "environments": { "none": { "role": "viewer" } } }), 422),
        (&owner, bob, json!({ "role": "viewer", "namespace": "theirs" }), 422),
    ] {
        assert_eq!(set(by, who, roles.clone()).await, status, "{who} {roles}");
    }
    let last = world.delete(&format!("{members}/owner@example.com")).await;
    assert_eq!((last.0, &last.1["type"]), (409, &json!("urn:tidegate:problem:last")), "{}", last.1);
    // An invitation is for operators alone: bob's and eve's accounts were made by others.
    let (_, listed) = world.get(members).await;
    let emails: Vec<_> = listed["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| item["email"].as_str().expect("text"))
        .collect();
    assert_eq!(
        emails,
        ["admin", "bob", "eve", "keeper", "owner"].map(|name| format!("{name}@example.com"))
    );
    let path = format!("{members}/new1@example.com");
    let (status, made) = world.as_with(&owner, "PUT", &path, role("viewer")).await;
    assert!(status == 200 && made["invitation"].is_null(), "{made}");
    let path = format!("{members}/new2@example.com");
    let (status, made) = world.put(&path, role("viewer")).await;
    assert!(status == 200 && made["invitation"]["token"].is_string(), "{made}");
    // The audit says who gave what to whom.
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?action=member.set").await;
    let newest = &audit["items"][0];
    assert_eq!((&newest["actor"], &newest["target"]), (&json!(OWNER), &json!("new2@example.com")));
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_service_token_has_roles_of_its_own_in_its_own_namespace() {
    let world = owned().await;
    for name in ["ours", "theirs"] {
        world.namespace(name).await;
    }
    world.environment("ours", "staging").await;
    let tokens = "/api/v1/namespaces/ours/tokens";
    let body = json!({ "name": "ci", "environments": { "staging": { "role": "editor" } },
        "expiresInDays": 1 });
    let (status, made) = world.post(tokens, body).await;
    assert_eq!(status, 201, "{made}");
    let (token, id) = (text(&made, "token"), text(&made, "id"));
    assert!(token.starts_with("tg_service_"));
    assert_eq!(world.flag("ours", "f").await.0, 201);
    let config = json!({ "enabled": true, "fallthrough": { "variant": "on" } });
    let put =
        |environment: &str| format!("/api/v1/namespaces/ours/environments/{environment}/flags/f");
    for (method, path, body, status) in [
        ("GET", "/api/v1/namespaces/ours/flags".to_owned(), Value::Null, 200),
        ("GET", "/api/v1/namespaces/theirs/flags".to_owned(), Value::Null, 404),
        ("PUT", put("staging"), config.clone(), 200),
        ("PUT", put("production"), config, 403),
        ("GET", "/api/v1/users".to_owned(), Value::Null, 403),
        ("GET", tokens.to_owned(), Value::Null, 403),
        ("GET", "/api/v1/me/tokens".to_owned(), Value::Null, 403),
        ("GET", "/api/v1/sessions".to_owned(), Value::Null, 403),
    ] {
        let done = world.as_with(&token, method, &path, body).await;
        assert_eq!(done.0, status, "{method} {path}: {}", done.1);
    }
    let (_, me) = world.as_with(&token, "GET", "/api/v1/me", Value::Null).await;
    assert_eq!((&me["kind"], &me["name"]), (&json!("service"), &json!(format!("ci ({id})"))));
    let (_, audit) = world.get("/api/v1/namespaces/ours/audit?action=config.set").await;
    assert_eq!(audit["items"][0]["actor"], json!(format!("ci ({id})")), "{audit}");
    // Nobody makes one that may more than they, nor takes away what they could not have given.
    let (keeper, _) = world.person("keeper@example.com").await;
    let there = json!({ "environments": { "production": { "role": "admin" } } });
    world.member("keeper@example.com", there).await;
    let more = json!({ "name": "x", "role": "viewer" });
    assert_eq!(world.as_with(&keeper, "POST", tokens, more).await.0, 403);
    let path = format!("{tokens}/{id}");
    assert_eq!(world.as_with(&keeper, "DELETE", &path, Value::Null).await.0, 403);
    assert_eq!(world.delete(&path).await.0, 204);
    let flags = "/api/v1/namespaces/ours/flags";
    assert_eq!(world.as_with(&token, "GET", flags, Value::Null).await.0, 401);
    world.control.shutdown().await;
}

#[tokio::test]
async fn invitations_and_passwords_are_used_once_and_end_what_was_before() {
    let world = owned().await;
    let (_, made) = world.post("/api/v1/users", json!({ "email": "bob@example.com" })).await;
    let first = text(&made["invitation"], "token");
    let again = "/api/v1/users/bob@example.com/invitations";
    let second = text(&world.post(again, Value::Null).await.1, "token");
    let accept = |token: String, password: &str| {
        let body = json!({ "token": token, "password": password });
        let world = &world;
        async move { say(world, "/api/v1/invitations/accept", body).await }
    };
    assert_eq!(accept(first, PASSWORD).await.0, 403, "a newer one voids it");
    assert_eq!(accept(second.clone(), "short").await.0, 422);
    let (status, session) = accept(second.clone(), PASSWORD).await;
    assert_eq!(status, 201, "{session}");
    assert_eq!(accept(second, "another good password").await.0, 403);
    let late = text(&world.post(again, Value::Null).await.1, "token");
    world.sql("UPDATE invitation SET expires_at = 1").await;
    assert_eq!(accept(late, "another good password").await.0, 403);

    let bob = text(&session, "accessToken");
    let (_, other) = world.sign_in("bob@example.com", PASSWORD).await;
    let other = text(&other, "accessToken");
    let change = |current: &str| json!({ "current": current, "new": "another good password" });
    let path = "/api/v1/me/password";
    assert_eq!(world.as_with(&bob, "PUT", path, change("wrong, so wrong")).await.0, 422);
    assert_eq!(world.as_with(&bob, "PUT", path, change(PASSWORD)).await.0, 204);
    let me = |token: String| {
        let world = &world;
        async move { world.as_with(&token, "GET", "/api/v1/me", Value::Null).await.0 }
    };
    assert_eq!((me(bob).await, me(other).await), (200, 401), "the session that asked goes on");
    assert_eq!(world.sign_in("bob@example.com", PASSWORD).await.0, 401);
    assert_eq!(world.sign_in("bob@example.com", "another good password").await.0, 201);
    // Who did it is in the installation's audit.
    let (status, audit) = world.get("/api/v1/audit?action=user.password").await;
    assert_eq!((status, &audit["items"][0]["actor"]), (200, &json!("bob@example.com")), "{audit}");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_token_of_a_session_that_never_was_is_not_taken() {
    use base64::Engine as _;
    let world = owned().await;
    let part = |bytes: &str| base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes);
    let unsigned = format!(
        "{}.{}.",
        part(r#"{"alg":"none","typ":"tg-session+jwt","kid":"x"}"#),
        part(r#"{"sub":"x","sid":"y"}"#)
    );
    let cut = world.token[..world.token.len() - 4].to_owned();
    for token in [unsigned, cut, "a.b.c".to_owned(), format!("{}.x", world.token)] {
        assert_eq!(world.as_with(&token, "GET", "/api/v1/me", Value::Null).await.0, 401, "{token}");
    }
    world.sql("DELETE FROM session").await;
    let token = world.token.clone();
    assert_eq!(world.as_with(&token, "GET", "/api/v1/me", Value::Null).await.0, 401);
    world.control.shutdown().await;
}
