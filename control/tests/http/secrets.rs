//! What must not be in the log, however much is logged.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use serde_json::{Value, json};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::world::{World, read};

const PLACE: &str = "/api/v1/namespaces/ours/environments/production";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

#[tokio::test]
async fn no_key_and_nothing_of_a_body_is_in_the_log_at_its_most_talkative() {
    let log = Log::default();
    // Our own crates, and the layer that logs requests; what hyper says of bytes is its own.
    let filter = EnvFilter::new("control=trace,rules=trace,tower_http=trace");
    let fmt = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    fmt.with_writer(log.clone()).init();

    let world = World::new().await;
    world.namespace("ours").await;
    let (server, server_id) = world.key("ours", "production", "server").await;
    let (browser, browser_id) = world.key("ours", "production", "browser").await;
    let (edge, edge_id) = world.edge_key_with_id(json!(["ours"])).await;
    let mut secrets = vec![
        ("the admin token", world.token.clone()),
        ("a server key", server.clone()),
        ("a browser key", browser.clone()),
        ("an edge key", edge.clone()),
    ];
    let mut plant = |what: &'static str| {
        let marker = format!("planted{}", secrets.len());
        secrets.push((what, marker.clone()));
        marker
    };

    // Written, imported, listed, evaluated: each with a mark of its own.
    let (value, changed) = (plant("a variant's value"), plant("a changed value"));
    let flag = |value: &str| json!({ "key": "f", "type": "string", "variants": { "v": value } });
    assert_eq!(world.post("/api/v1/namespaces/ours/flags", flag(&value)).await.0, 201);
    assert_eq!(world.put("/api/v1/namespaces/ours/flags/f", flag(&changed)).await.0, 200);
    let imported = plant("an imported value");
    let document = json!({ "flags": { "g": { "state": "ENABLED", "defaultVariant": "v",
        "variants": { "v": imported } } } });
    let import = format!("{PLACE}/import?format=flagd");
    assert_eq!(world.post(&import, document).await.0, 200);
    let id = plant("an id of a segment");
    let segment = json!({ "key": "s", "included": [id] });
    assert_eq!(world.post(&format!("{PLACE}/segments"), segment).await.0, 201);
    let listed = plant("an id of a list");
    let list = world.ask("PUT", &format!("{PLACE}/segments/s/excluded"));
    let list = list.header("content-type", "text/plain").header("if-match", "*").body(listed);
    assert_eq!(read(list).await.0, 200);
    let context = json!({ "context": { "targetingKey": plant("a targeting key"),
        "email": plant("an attribute") } });
    assert_eq!(world.post(&format!("{PLACE}/evaluate"), context).await.0, 200);

    // What is refused is not repeated either: bodies, keys, queries.
    let bad = json!({ "key": "h", "type": "boolean", "variants": { "v": plant("a bad value") } });
    assert_eq!(world.post("/api/v1/namespaces/ours/flags", bad).await.0, 422);
    let broken = plant("a broken document");
    let request = world.ask("POST", &import).header("content-type", "application/json");
    assert_eq!(read(request.body(format!("{{ \"{broken}\": "))).await.0, 422);
    let wrong = plant("a wrong key");
    let url = format!("{}/api/v1/namespaces", world.url);
    assert_eq!(read(world.http.get(&url).bearer_auth(wrong)).await.0, 401);
    let unknown = plant("a parameter");
    let (status, _) = world.get(&format!("/api/v1/namespaces?token={unknown}")).await;
    assert_eq!(status, 400);
    let basic = plant("a password");
    assert_eq!(read(world.http.get(&url).basic_auth("me", Some(basic))).await.0, 401);
    for key in [&server, &browser, &edge] {
        assert_eq!(read(world.http.get(&url).bearer_auth(key)).await.0, 403);
    }

    // People: a password, an invitation, a session's two tokens and its successors, tokens of both
    // kinds, a rotated key. None of them is in the database either.
    let mut credentials: Vec<(&str, String)> = secrets[..4].to_vec();
    let said = |body: &Value, name: &str| body[name].as_str().expect(name).to_owned();
    let say = async |path: &str, body: Value| {
        let (status, body) = read(world.http.post(world.url.clone() + path).json(&body)).await;
        assert!(status < 300, "{path}: {body}");
        body
    };
    let (password, email) = ("a planted password".to_owned(), "ann@example.com");
    let (_, made) = world.post("/api/v1/users", json!({ "email": email })).await;
    let invitation = said(&made["invitation"], "token");
    let body = json!({ "token": invitation, "password": password });
    say("/api/v1/invitations/accept", body).await;
    let session = say("/api/v1/sessions", json!({ "email": email, "password": password })).await;
    let (access, refresh) = (said(&session, "accessToken"), said(&session, "refreshToken"));
    let again = say("/api/v1/sessions/refresh", json!({ "refreshToken": refresh })).await;
    let personal = world.http.post(world.url.clone() + "/api/v1/me/tokens").bearer_auth(&access);
    let body = json!({ "name": "mine", "scopes": ["read"] });
    let (status, personal) = read(personal.json(&body)).await;
    assert_eq!(status, 201, "{personal}");
    let body = json!({ "name": "ci", "role": "viewer" });
    let (status, service) = world.post("/api/v1/namespaces/ours/tokens", body).await;
    assert_eq!(status, 201, "{service}");
    let rotate = format!("{PLACE}/keys/{browser_id}/rotate");
    let (status, rotated) = world.post(&rotate, json!({})).await;
    assert_eq!(status, 201, "{rotated}");
    let wrong = "a wrong password".to_owned();
    let body = json!({ "email": email, "password": wrong });
    let sign_in = world.http.post(world.url.clone() + "/api/v1/sessions").json(&body);
    assert_eq!(read(sign_in).await.0, 401);
    let people = [
        ("a password", password),
        ("a wrong password", wrong),
        ("an invitation", invitation),
        ("an access token", access),
        ("a refresh token", refresh),
        ("a later access token", said(&again, "accessToken")),
        ("a later refresh token", said(&again, "refreshToken")),
        ("a personal token", said(&personal, "token")),
        ("a service token", said(&service, "token")),
        ("a rotated key", said(&rotated, "key")),
    ];
    credentials.extend(people.clone());

    // Edges, revocation, restart.
    world.published("ours").await;
    assert_eq!(world.heads(&edge).await.heads.len(), 1);
    assert_eq!(read(world.ask("DELETE", &format!("{PLACE}/keys/{server_id}"))).await.0, 204);
    assert_eq!(read(world.ask("DELETE", &format!("/api/v1/edge-keys/{edge_id}"))).await.0, 204);
    let signing = std::fs::read(world.dir.path().join("signing-key")).expect("a key");
    let hex: String = signing.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed = format!("{signing:?}");
    let base64 = base64::prelude::BASE64_STANDARD_NO_PAD.encode(&signing);
    for form in [hex, listed.trim_matches(['[', ']']).to_owned(), base64] {
        secrets.push(("the signing key", form));
    }
    if let Ok(url) = std::fs::read_to_string(world.dir.path().join("postgres-url")) {
        secrets.push(("the database's URL", url));
        secrets.push(("the database's password", "for-tests-only".to_owned()));
    }
    secrets.extend(people);
    let World { control, dir, .. } = world.restart().await;
    control.shutdown().await;
    // Whoever reads the disk, or a copy of it, finds no credential in it, whole or its secret part.
    // The bootstrap token has a file of its own, which is what that token is for.
    let mut searched = 0;
    let mut folders = vec![dir.path().to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let bytes = std::fs::read(&path).expect("a file");
            searched += bytes.len();
            let is_the_tokens_file = path.ends_with("admin-token");
            for (what, credential) in credentials.iter().skip(usize::from(is_the_tokens_file)) {
                let is_key = credential.starts_with("tg_");
                let secret = credential.split('_').nth(3).filter(|_| is_key);
                let part = secret.unwrap_or(credential);
                let found = bytes.windows(part.len()).any(|window| window == part.as_bytes());
                assert!(!found, "{what} is in {}", path.display());
            }
        }
    }
    assert!(searched > 0);

    let log = log.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("answered") && log.contains("/import"), "it was captured: {log}");
    assert!(log.contains(&edge_id), "ids are there, to find a key by");
    for (what, secret) in &secrets {
        assert!(secret.len() > 6, "{what} is no secret: {secret:?}");
        let line = log.lines().find(|line| line.contains(secret.as_str()));
        assert_eq!(line, None, "{what} is in the log");
    }
    // Nor the secret part of a key alone.
    for (what, key) in &secrets[..4] {
        let secret = key.split('_').nth(3).expect("a secret part");
        assert!(!log.contains(secret), "{what} is in the log, in part");
    }
}
