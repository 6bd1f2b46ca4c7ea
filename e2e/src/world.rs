//! A whole Tidegate of a test's own: control and edge on free ports, with a temporary folder, one
//! namespace, one environment and its keys.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge::feed::{Feed, HttpFeed};
use rules::head::PublicKey;
use rules::keys::ApiKey;
use serde_json::{Value, json};

use crate::http::{Admin, DEADLINE, Ofrep, client, until};
use crate::process::Process;
use crate::run;
use crate::tap::Tap;

pub const NAMESPACE: &str = "demo";
pub const ENVIRONMENT: &str = "production";

pub struct World {
    pub admin: Admin,
    pub server_key: String,
    pub browser_key: String,
    pub edge_key: String,
    pub public_key: PublicKey,
    control: Option<control::Control>,
    edge: Option<edge::Edge>,
    edge_address: std::net::SocketAddr,
    feed: Arc<dyn Feed>,
    folder: tempfile::TempDir,
}

/// What a test has otherwise than everybody.
pub struct Setup<'a> {
    pub control: &'a dyn Fn(&mut control::config::Config),
    pub edge: &'a dyn Fn(&mut edge::config::Config),
    /// Around the edge's way to control.
    pub feed: &'a dyn Fn(HttpFeed) -> Arc<dyn Feed>,
}

impl Default for Setup<'_> {
    fn default() -> Self {
        Setup { control: &|_| {}, edge: &|_| {}, feed: &|feed| Arc::new(feed) }
    }
}

/// The workspace's root.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("e2e lies in the workspace").to_owned()
}

/// Creates the namespace, the environment and keys: `(server, browser, edge)`.
pub async fn furnish(admin: &Admin) -> (String, String, String) {
    admin.post("/api/v1/namespaces", &json!({ "key": admin.namespace })).await.ok();
    let path = format!("/api/v1/namespaces/{}/environments", admin.namespace);
    admin.post(&path, &json!({ "key": admin.environment })).await.ok();
    let made = json!({ "namespaces": [admin.namespace], "name": "edge-1" });
    let edge = admin.post("/api/v1/edge-keys", &made).await.ok().json();
    let edge = edge["key"].as_str().expect("a new key is shown").to_owned();
    (admin.key("server").await, admin.key("browser").await, edge)
}

/// The admin API of a control that runs as a process, as the owner of the installation; the first time
/// that is asked for, the owner is made with the setup token, which another control may have made.
pub async fn admin_of(control: &Process, setup_of: &Process) -> Admin {
    Admin {
        url: control.text("control_url"),
        token: set_up(&setup_of.text("control_url"), Path::new(&setup_of.text("setup_token_file")))
            .await,
        namespace: NAMESPACE.to_owned(),
        environment: ENVIRONMENT.to_owned(),
        http: client(),
    }
}

/// Makes the owner with the token in `file`, as an operator would: a personal token of theirs. Whoever
/// asks again gets the same one.
pub async fn set_up(control_url: &str, file: &Path) -> String {
    let own = file.with_extension("owner");
    let password = file.with_extension("password");
    if !own.exists() {
        let chosen = "correct horse battery";
        run::secret("password", chosen);
        run::secrets_in(&std::fs::read_to_string(file).expect("a setup token"));
        std::fs::write(&password, chosen).expect("a password");
        let [file, password, own] =
            [file, &password, &own].map(|path| path.to_str().expect("UTF-8"));
        let arguments = ["setup", "--url", control_url, "--token-file", file];
        let owner = ["--email", "owner@example.com", "--password-file", password];
        let kept = ["--personal-token-file", own];
        Process::run(&[&arguments[..], &owner[..], &kept[..]].concat()).await;
    }
    let own = std::fs::read_to_string(own).expect("a token").trim().to_owned();
    run::secrets_in(&own);
    own
}

/// One of several controls of one database, as a process on a free port. They share the signing key
/// in `folder`; `settings` are further ones.
pub async fn replica(
    folder: &Path,
    name: &str,
    database: &str,
    lease_seconds: u64,
    settings: &[(&str, &str)],
) -> Process {
    let (data, key) = (folder.join(name), folder.join("signing-key"));
    let lease = lease_seconds.to_string();
    let arguments = [
        "control",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data.to_str().expect("UTF-8"),
        "--signing-key-file",
        key.to_str().expect("UTF-8"),
        "--lease-seconds",
        &lease,
    ];
    let settings = [&[("TIDEGATE_DATABASE_URL", database)], settings].concat();
    Process::start(&arguments, &settings).await
}

/// An edge as a process, on a free port; `more` are further arguments.
pub async fn edge_of(
    control: &Process,
    data: &Path,
    more: &[&str],
    settings: &[(&str, &str)],
) -> Process {
    let arguments = edge_arguments(control, data, more);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Process::start(&arguments, settings).await
}

/// What [`edge_of`] starts it with.
pub fn edge_arguments(control: &Process, data: &Path, more: &[&str]) -> Vec<String> {
    let (control_url, trust) = (control.text("control_url"), control.text("public_key"));
    let arguments = ["edge", "--listen", "127.0.0.1:0", "--control-url", &control_url];
    let data = ["--trust", &trust, "--data-dir", data.to_str().expect("UTF-8")];
    [&arguments[..], &data[..], more].concat().into_iter().map(str::to_owned).collect()
}

/// The flags that the clients of `interop/` expect.
pub async fn add_interop_flags(admin: &Admin) {
    let flags: Value =
        serde_json::from_str(include_str!("../interop/flags.json")).expect("interop/flags.json");
    for flag in flags.as_array().expect("a list") {
        admin.flag(&flag["definition"], &flag["config"]).await;
    }
}

fn local() -> std::net::SocketAddr {
    std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0))
}

fn edge_config(folder: &tempfile::TempDir, trust: &PublicKey) -> edge::config::Config {
    let mut config = edge::config::Config::new(local(), "edge-1", vec![trust.clone()]);
    config.data_dir = Some(folder.path().join("edge"));
    config.sandbox.cache_dir = run::compiled_dir();
    config.policy_helper = sandbox::policy::helper::Helper::beside_this_test();
    config.timeouts.headers = DEADLINE;
    config
}

impl World {
    /// Control and an edge that speaks to it over HTTP, as two machines would.
    pub async fn start() -> World {
        World::with(Setup::default()).await
    }

    pub async fn with(setup: Setup<'_>) -> World {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = control::config::Config::new(local(), folder.path().join("control"));
        config.walls = control::http::walls::Walls::without_rates();
        config.policy_helper = sandbox::policy::helper::Helper::beside_this_test();
        if let Some(url) = crate::postgres::database_for_test() {
            config.database = control::store::Database::Postgres(rules::secret::Secret::new(url));
        }
        config.bootstrap = true;
        // A machine that stands still for seconds is no matter here.
        config.database_patience.connection = DEADLINE;
        config.header_timeout = DEADLINE;
        (setup.control)(&mut config);
        let control = control::start(config).await.expect("control starts");
        let token = std::fs::read_to_string(&control.admin_token_file).expect("an admin token");
        let admin = Admin {
            url: format!("http://{}", control.address),
            token: token.trim().to_owned(),
            namespace: NAMESPACE.to_owned(),
            environment: ENVIRONMENT.to_owned(),
            http: client(),
        };
        let (server_key, browser_key, edge_key) = furnish(&admin).await;
        let public_key = control.public_key.clone();
        let feed = HttpFeed::new(&admin.url, ApiKey::parse(&edge_key).expect("a key"))
            .expect("control's address");
        let feed = (setup.feed)(feed);
        let mut config = edge_config(&folder, &public_key);
        (setup.edge)(&mut config);
        let edge = edge::start(config, feed.clone()).await.expect("the edge starts");
        let world = World {
            admin,
            server_key,
            browser_key,
            edge_key,
            public_key,
            edge_address: edge.address,
            control: Some(control),
            edge: Some(edge),
            feed,
            folder,
        };
        world.keys_are_known().await;
        world
    }

    pub async fn with_interop_flags() -> World {
        let world = World::start().await;
        add_interop_flags(&world.admin).await;
        // The last one written: the others came before it.
        world.ofrep().serves("interop-change", &json!({}), &json!("before")).await;
        world
    }

    pub fn edge_url(&self) -> String {
        format!("http://{}", self.edge_address)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A client of the edge with the server key.
    pub fn ofrep(&self) -> Ofrep {
        Ofrep::new(&self.edge_url(), &self.server_key)
    }

    /// Waits until the edge has a snapshot with both keys, so that nothing answers 401 by chance.
    async fn keys_are_known(&self) {
        for key in [&self.server_key, &self.browser_key] {
            let ofrep = Ofrep::new(&self.edge_url(), key);
            until("the edge knowing its keys", async || match ofrep.all(&json!({})).await {
                answer if answer.status == 200 => Ok(()),
                answer => Err(format!("{} {}", answer.status, answer.text)),
            })
            .await;
        }
    }

    /// Runs a client of another language; fails with all that it said, or if what the edge told it
    /// (at least `answers_min` times) was not OFREP.
    pub async fn run_client(&self, mut command: tokio::process::Command, answers_min: usize) {
        let tap = Tap::before(&self.edge_url()).await;
        command
            .env("EDGE_URL", &tap.url)
            .env("SERVER_KEY", &self.server_key)
            .env("BROWSER_KEY", &self.browser_key)
            .env("CONTROL_URL", &self.admin.url)
            .env("ADMIN_TOKEN", &self.admin.token)
            .env("ENVIRONMENT_PATH", self.admin.environment_path())
            .kill_on_drop(true);
        let output = tokio::time::timeout(DEADLINE * 5, command.output());
        let output = output.await.expect("the client ends").expect("the client starts");
        let (out, err) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
        tap.finish(answers_min);
    }

    /// Starts the edge again after `stop_edge`, with what it has on disk, at another address.
    pub async fn start_edge(&mut self, change: impl FnOnce(&mut edge::config::Config)) {
        assert!(self.edge.is_none(), "it runs");
        let mut config = edge_config(&self.folder, &self.public_key);
        change(&mut config);
        let edge = edge::start(config, self.feed.clone()).await.expect("the edge starts");
        self.edge_address = edge.address;
        self.edge = Some(edge);
    }

    /// Control itself, for what is done behind its back.
    pub fn control(&self) -> &control::Control {
        self.control.as_ref().expect("it runs")
    }

    /// Where the edge keeps what outlives it.
    pub fn edge_folder(&self) -> PathBuf {
        self.folder.path().join("edge")
    }

    pub async fn stop_edge(&mut self) {
        if let Some(edge) = self.edge.take() {
            edge.shutdown().await;
        }
    }

    pub async fn stop(mut self) {
        self.stop_edge().await;
        if let Some(control) = self.control.take() {
            control.shutdown().await;
        }
    }
}
