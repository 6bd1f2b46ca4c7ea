//! docker-compose.yml: it is what the Compose specification says, every setting in it is one of ours,
//! and its processes, run here without containers, come up, serve the demo and survive a control.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use e2e::http::Ofrep;
use e2e::nats::NatsServer;
use e2e::postgres::{PostgresServer, new_database};
use e2e::process::Process;
use e2e::world::workspace;
use serde_json::{Value, json};

const SCHEMA: &str = include_str!("../data/compose-spec.json");
const SECRETS: &str = "/secrets";

fn read(path: &str) -> String {
    std::fs::read_to_string(workspace().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The file with its anchors followed and its merge keys merged, as Compose reads it.
fn composed(text: &str) -> Value {
    let mut file: serde_norway::Value = serde_norway::from_str(text).expect("docker-compose.yml");
    // What is merged in may merge again.
    for _ in 0..3 {
        file.apply_merge().expect("merge keys");
    }
    serde_json::to_value(&file).expect("nothing but JSON's types")
}

fn errors(file: &Value) -> Vec<String> {
    let schema: Value = serde_json::from_str(SCHEMA).expect("the schema");
    let schema = jsonschema::validator_for(&schema).expect("the schema");
    schema.iter_errors(file).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// Services of our own image, by name.
fn ours(file: &Value) -> BTreeMap<&str, &Value> {
    let services = file["services"].as_object().expect("services").iter();
    let ours = services.filter(|(_, service)| service["image"] == "tidegate");
    ours.map(|(name, service)| (name.as_str(), service)).collect()
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    list.iter().map(|text| text.as_str().expect("a text")).collect()
}

#[test]
fn it_is_what_the_compose_specification_says() {
    let text = read("docker-compose.yml");
    let file = composed(&text);
    assert_eq!(errors(&file), Vec::<String>::new());
    // The check can fail.
    let wrong = text.replace("start_period: 10s", "start_perod: 10s");
    assert_ne!(wrong, text);
    assert!(!errors(&composed(&wrong)).is_empty());
}

#[test]
fn what_it_names_is_there_and_its_settings_are_ours() {
    let file = composed(&read("docker-compose.yml"));
    let reference = read("docs/CONFIGURATION.md");
    let services = ours(&file);
    assert_eq!(services.len(), 7, "{:?}", services.keys());
    for (name, service) in &services {
        for variable in service["environment"].as_object().into_iter().flatten().map(|(key, _)| key)
        {
            assert!(reference.contains(&format!("`{variable}`")), "{name}: no setting {variable}");
        }
    }
    let volumes = file["volumes"].as_object().expect("volumes");
    let networks = file["networks"].as_object().expect("networks");
    for (name, service) in file["services"].as_object().expect("services") {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let from = volume.as_str().and_then(|text| text.split(':').next()).unwrap_or_default();
            match from.strip_prefix("./") {
                Some(path) => assert!(workspace().join(path).is_file(), "{name}: no {path}"),
                None => assert!(volumes.contains_key(from), "{name}: no volume {from}"),
            }
        }
        let joined: Vec<&str> = match &service["networks"] {
            Value::Object(map) => map.keys().map(String::as_str).collect(),
            Value::Array(_) => texts(&service["networks"]),
            _ => Vec::new(),
        };
        for network in joined {
            assert!(networks.contains_key(network), "{name}: no network {network}");
        }
        let waits = service["depends_on"].as_object().into_iter().flatten().map(|(key, _)| key);
        for other in waits {
            assert!(!file["services"][other].is_null(), "{name} waits for {other}");
        }
        let checked = service["healthcheck"]["test"].is_array();
        assert!(
            checked || ["init", "setup", "demo"].contains(&name.as_str()),
            "{name} has no health check"
        );
    }
}

/// The file's places on this machine.
struct Here {
    folder: PathBuf,
    hosts: Vec<(String, String)>,
}

impl Here {
    fn of(&self, service: &str, text: &str) -> String {
        let secrets = self.folder.join("secrets").to_string_lossy().into_owned();
        let data = self.folder.join(service).to_string_lossy().into_owned();
        let mut text = text.replacen(SECRETS, &secrets, 1).replace("/var/lib/tidegate", &data);
        for (host, address) in &self.hosts {
            text = text.replace(host, address);
        }
        text
    }

    fn command(&self, name: &str, service: &Value) -> Vec<String> {
        texts(&service["command"]).iter().map(|text| self.of(name, text)).collect()
    }

    /// One that ends: what it printed.
    async fn run(&self, name: &str, service: &Value) -> Value {
        let command = self.command(name, service);
        Process::run(&command.iter().map(String::as_str).collect::<Vec<_>>()).await
    }

    async fn start(&self, name: &str, service: &Value) -> Process {
        let command = self.command(name, service);
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let settings = service["environment"].as_object().expect("settings");
        let settings: Vec<(&str, String)> = settings
            .iter()
            // A build without etcd has the database's lease.
            .filter(|(key, _)| cfg!(feature = "etcd") || !key.starts_with("TIDEGATE_ETCD_"))
            .map(|(key, value)| (key.as_str(), self.of(name, value.as_str().expect("a text"))))
            .collect();
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
        Process::start(&command, &settings).await
    }
}

/// The service's own health check, of the process that listens at `url`.
async fn is_healthy(service: &Value, url: &str) {
    let test = texts(&service["healthcheck"]["test"]);
    let ["CMD", "tidegate", "health", _] = test[..] else { panic!("{test:?}") };
    e2e::http::until("its health check", async || {
        match Process::exit(&["--output", "json", "health", url], &[]).await {
            (0, said) if said.contains("\"ready\":true") => Ok(()),
            (code, said) => Err(format!("{code}: {said}")),
        }
    })
    .await;
}

fn secret(folder: &Path, name: &str) -> String {
    let text = std::fs::read_to_string(folder.join("secrets").join(name)).expect("a secret");
    text.trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn its_processes_serve_the_demo_and_go_on_without_one_of_the_controls() {
    let file = composed(&read("docker-compose.yml"));
    let services = ours(&file);
    let folder = tempfile::tempdir().unwrap();
    let any = ("0.0.0.0".to_owned(), "127.0.0.1".to_owned());
    let ports =
        [":8080", ":8016"].map(|port| (format!("127.0.0.1{port}"), "127.0.0.1:0".to_owned()));
    let mut here = Here { folder: folder.path().to_owned(), hosts: vec![any] };
    here.hosts.extend(ports);

    here.run("init", services["init"]).await;
    for file in ["setup-token", "edge-key"] {
        e2e::run::secrets_in(&secret(folder.path(), file));
    }
    e2e::run::secret("password", &secret(folder.path(), "owner-password"));
    e2e::run::secret("database password", &secret(folder.path(), "database-password"));
    for file in ["nats-control-password", "nats-edge-password"] {
        e2e::run::secret("broker password", &secret(folder.path(), file));
    }
    for file in ["signing-key", "secrets-key"] {
        let key = std::fs::read(folder.path().join("secrets").join(file)).expect("a key");
        let digits: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        e2e::run::secret(file, &digits);
        e2e::run::secret(file, format!("{key:?}").trim_matches(['[', ']']));
    }

    let postgres = PostgresServer::start(&folder.path().join("postgres")).expect("PostgreSQL");
    let database = new_database(&postgres.url("postgres")).expect("a database");
    let made = secret(folder.path(), "database-url");
    assert!(made.starts_with("postgres://tidegate:p") && made.ends_with("@postgres/tidegate"));
    std::fs::write(folder.path().join("secrets/database-url"), &database).unwrap();

    let mut nats = NatsServer::nowhere().await;
    let said = secret(folder.path(), "nats.env");
    let settings: Vec<(&str, &str)> =
        said.lines().map(|line| line.split_once('=').expect("NAME=value")).collect();
    nats.configure(workspace().join("deploy/nats.conf"), &settings);
    nats.run().await;
    here.hosts.push(("nats://nats:4222".to_owned(), nats.url()));

    #[cfg(feature = "etcd")]
    let etcd = e2e::etcd::EtcdServer::start(&folder.path().join("etcd-server")).expect("etcd");
    #[cfg(feature = "etcd")]
    here.hosts.push(("http://etcd:2379".to_owned(), etcd.url()));

    let first = here.start("control-1", services["control-1"]).await;
    let second = here.start("control-2", services["control-2"]).await;
    assert_eq!(first.text("public_key"), secret(folder.path(), "trust"));
    assert_eq!(second.text("public_key"), first.text("public_key"));
    for (name, control) in [("control-1", &first), ("control-2", &second)] {
        is_healthy(services[name], &control.text("control_url")).await;
    }
    let controls = here.hosts.len();
    here.hosts.push(("http://control:8080".to_owned(), first.text("control_url")));
    let one = here.start("edge-1", services["edge-1"]).await;
    here.hosts[controls].1 = second.text("control_url");
    let two = here.start("edge-2", services["edge-2"]).await;
    assert_eq!([one.text("edge_id"), two.text("edge_id")], ["edge-1", "edge-2"]);

    for _ in 0..2 {
        here.run("setup", services["setup"]).await;
    }
    let demo = here.run("demo", services["demo"]).await;
    let key = demo["server_key"].as_str().expect("a server key");
    let context = json!({ "targetingKey": "user-1", "email": "ann@example.com" });
    let edges = [("edge-1", &one), ("edge-2", &two)];
    for (name, edge) in edges {
        Ofrep::new(&edge.text("edge_url"), key).serves("payments-up", &context, &json!(true)).await;
        is_healthy(services[name], &edge.text("edge_url")).await;
    }

    // Edge 1 knows no other control; it hears of what the second one publishes from the broker.
    let token = folder.path().join("secrets/owner-token");
    let off = ["flag", "off", "payments-up", "--namespace", "demo", "--environment", "production"];
    let url = second.text("control_url");
    let token = ["--url", &url, "--token-file", token.to_str().expect("UTF-8")];
    first.kill().await;
    Process::run(&[&off[..], &token[..]].concat()).await;
    for (_, edge) in edges {
        Ofrep::new(&edge.text("edge_url"), key)
            .serves("payments-up", &context, &json!(false))
            .await;
    }
}
