//! A control on a temporary folder, spoken to over HTTP; on SQLite, or on PostgreSQL where xtask
//! started one.

#![allow(dead_code, reason = "each test binary takes what it needs")]

use std::time::Duration;

use control::config::Config;
use control::http::walls::Walls;
use control::store::query::query;
use control::store::{Database, Patience};
use rules::head::Heads;
use rules::secret::Secret;
use serde_json::{Value, json};
use tokio::time::Instant;

#[path = "../../../e2e/src/postgres.rs"]
mod postgres;

/// Whatever is waited for, it comes within this or the test fails with the last state seen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Of every account that tests make.
pub const PASSWORD: &str = "correct horse battery";

pub struct World {
    pub control: control::Control,
    pub http: reqwest::Client,
    pub url: String,
    pub token: String,
    pub dir: tempfile::TempDir,
}

impl World {
    pub async fn new() -> World {
        World::on(tempfile::tempdir().expect("a folder")).await
    }

    pub async fn on(dir: tempfile::TempDir) -> World {
        World::with(dir, |_| {}).await
    }

    /// Of a control on this folder, with whatever is there already.
    pub fn config(dir: &tempfile::TempDir) -> Config {
        let mut config = Config::new("127.0.0.1:0".parse().expect("an address"), dir.path());
        // The same folder is the same database, or a restart would find another.
        let url = dir.path().join("postgres-url");
        if !url.exists()
            && let Some(made) = postgres::database_for_test()
        {
            std::fs::write(&url, made).expect("written");
        }
        if let Ok(url) = std::fs::read_to_string(&url) {
            config.database = Database::Postgres(Secret::new(url));
        }
        // A machine that stands still for seconds is no matter here; what a stall does has tests of its own.
        config.database_patience = Patience { connection: PATIENCE, silence: PATIENCE };
        // Who restarts resigned before, so nobody waits for it.
        config.lease = Duration::from_secs(60);
        config.bootstrap = true;
        config.walls = Walls::without_rates();
        config
    }

    pub async fn with(dir: tempfile::TempDir, change: impl FnOnce(&mut Config)) -> World {
        let mut config = World::config(&dir);
        change(&mut config);
        let control = control::start(config).await.expect("control starts");
        // One that takes no bootstrap token has made none.
        let token = std::fs::read_to_string(&control.admin_token_file).unwrap_or_default();
        let url = format!("http://{}", control.address);
        // reqwest asks for one even where nothing is encrypted; a second install is no matter.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::new();
        World { control, http, url, token: token.trim().to_owned(), dir }
    }

    /// Stops and starts it again on the same folder.
    pub async fn restart(self) -> World {
        let World { control, dir, .. } = self;
        control.shutdown().await;
        World::on(dir).await
    }

    pub fn ask(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = method.parse().expect("a method");
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        read(self.ask("POST", path).json(&body)).await
    }

    /// Over whatever version is there.
    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        read(self.ask("PUT", path).header("if-match", "*").json(&body)).await
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        read(self.ask("GET", path)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        read(self.ask("DELETE", path).header("if-match", "*")).await
    }

    /// Until it is no longer refused with 409 because edges lag.
    pub async fn delete_once_live(&self, path: &str) -> (u16, Value) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut changed = self.control.bus.changed();
            let (status, body) = self.delete(path).await;
            let lags = status == 503 || body["type"] == "urn:tidegate:problem:not-live";
            if !lags || Instant::now() > deadline {
                return (status, body);
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), changed.changed()).await;
        }
    }

    /// Namespace `name` with environment `production`.
    pub async fn namespace(&self, name: &str) {
        let (status, body) = self.post("/api/v1/namespaces", json!({ "key": name })).await;
        assert_eq!(status, 201, "{body}");
        self.environment(name, "production").await;
    }

    pub async fn environment(&self, namespace: &str, name: &str) {
        let path = format!("/api/v1/namespaces/{namespace}/environments");
        let (status, body) = self.post(&path, json!({ "key": name })).await;
        assert_eq!(status, 201, "{body}");
    }

    pub async fn flag(&self, namespace: &str, key: &str) -> (u16, Value) {
        let definition =
            json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } });
        self.post(&format!("/api/v1/namespaces/{namespace}/flags"), definition).await
    }

    /// An account that took up its invitation: the session that it began with.
    pub async fn account(&self, email: &str, operator: bool) -> Value {
        let body = json!({ "email": email, "operator": operator });
        let (status, made) = self.post("/api/v1/users", body).await;
        assert_eq!(status, 201, "{made}");
        let accept = json!({ "token": made["invitation"]["token"], "password": PASSWORD });
        let url = format!("{}/api/v1/invitations/accept", self.url);
        let (status, session) = read(self.http.post(url).json(&accept)).await;
        assert_eq!(status, 201, "{session}");
        session
    }

    pub async fn edge_key(&self, namespaces: Value) -> String {
        self.edge_key_with_id(namespaces).await.0
    }

    pub async fn edge_key_with_id(&self, namespaces: Value) -> (String, String) {
        let body = json!({ "namespaces": namespaces, "name": "test" });
        let (status, body) = self.post("/api/v1/edge-keys", body).await;
        assert_eq!(status, 201, "{body}");
        let text = |name: &str| body[name].as_str().expect("text").to_owned();
        (text("key"), text("id"))
    }

    /// A key of an environment (`server`, `browser`) and its id.
    pub async fn key(&self, namespace: &str, environment: &str, kind: &str) -> (String, String) {
        let path = format!("/api/v1/namespaces/{namespace}/environments/{environment}/keys");
        let (status, body) = self.post(&path, json!({ "kind": kind })).await;
        assert_eq!(status, 201, "{body}");
        let text = |name: &str| body[name].as_str().expect("text").to_owned();
        (text("key"), text("id"))
    }

    pub async fn heads(&self, key: &str) -> Heads {
        let answer = self
            .http
            .get(format!("{}/edge/v1/heads", self.url))
            .bearer_auth(key)
            .send()
            .await
            .expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.json().await.expect("heads")
    }

    /// Until `production` is published as it stands: its revision.
    pub async fn published(&self, namespace: &str) -> i64 {
        self.published_in(namespace, "production").await
    }

    pub async fn published_in(&self, namespace: &str, environment: &str) -> i64 {
        self.published_within(namespace, environment, PATIENCE).await
    }

    pub async fn published_within(
        &self,
        namespace: &str,
        environment: &str,
        patience: Duration,
    ) -> i64 {
        let path = format!("/api/v1/namespaces/{namespace}/environments/{environment}");
        let is = |body: &Value| {
            body["revision"].is_i64() && body["published"]["revision"] == body["revision"]
        };
        let body = self.until_within(&path, patience, is).await;
        body["revision"].as_i64().expect("a revision")
    }

    /// What `path` answers once it is as wanted.
    pub async fn until(&self, path: &str, is: impl Fn(&Value) -> bool) -> Value {
        self.until_within(path, PATIENCE, is).await
    }

    async fn until_within(
        &self,
        path: &str,
        patience: Duration,
        is: impl Fn(&Value) -> bool,
    ) -> Value {
        let deadline = Instant::now() + patience;
        loop {
            let mut changed = self.control.bus.changed();
            let (_, body) = self.get(path).await;
            if is(&body) {
                return body;
            }
            assert!(Instant::now() < deadline, "not as wanted: {body}");
            let _ = tokio::time::timeout(Duration::from_millis(50), changed.changed()).await;
        }
    }

    /// Behind control's back.
    pub async fn sql(&self, statement: &'static str) -> u64 {
        let mut tx = self.control.store.write().await.expect("a write");
        let done = query(statement).execute(&mut tx).await.expect("a statement");
        tx.commit().await.expect("a commit");
        done
    }
}

pub async fn read(request: reqwest::RequestBuilder) -> (u16, Value) {
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let text = answer.text().await.expect("a body");
    (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
