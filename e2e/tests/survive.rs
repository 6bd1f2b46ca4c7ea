//! The edge needs nobody: control dies, the edge restarts, its newest file is damaged.

use std::path::{Path, PathBuf};

use e2e::http::{Admin, Ofrep, until};
use e2e::process::Process;
use e2e::world::{NAMESPACE, admin_of, furnish};
use serde_json::json;

struct Processes {
    control: Option<Process>,
    admin: Admin,
    server_key: String,
    edge_key: String,
    trust: String,
    folder: tempfile::TempDir,
}

impl Processes {
    async fn start() -> Processes {
        let folder = tempfile::tempdir().unwrap();
        let listen = e2e::ports::free().unwrap().to_string();
        let control = control(folder.path(), &listen).await;
        let admin = admin_of(&control, &control).await;
        let (server_key, _, edge_key) = furnish(&admin).await;
        let trust = control.text("public_key");
        Processes { control: Some(control), admin, server_key, edge_key, trust, folder }
    }

    async fn kill_control(&mut self) {
        self.control.take().expect("control runs").kill().await;
    }

    /// At the address that it had.
    async fn restart_control(&mut self) {
        let listen = self.admin.url.strip_prefix("http://").unwrap();
        self.control = Some(control(self.folder.path(), listen).await);
    }

    fn edge_folder(&self) -> PathBuf {
        self.folder.path().join("edge")
    }

    async fn edge(&self) -> (Process, Ofrep) {
        // These tests kill on purpose, and no snapshot shall be blamed for it.
        self.edge_with(&[("TIDEGATE_HEALTHY_AFTER_SECONDS", "0")]).await
    }

    async fn edge_with(&self, settings: &[(&str, &str)]) -> (Process, Ofrep) {
        let folder = self.edge_folder();
        let settings = [&[("TIDEGATE_EDGE_KEY", self.edge_key.as_str())], settings].concat();
        let edge = Process::start(&self.edge_arguments(&folder), &settings).await;
        let ofrep = Ofrep::new(&edge.text("edge_url"), &self.server_key);
        (edge, ofrep)
    }

    /// One that ends by itself, perhaps before it could announce itself.
    async fn edge_to_its_end(&self, settings: &[(&str, &str)]) {
        let folder = self.edge_folder();
        let settings = [&[("TIDEGATE_EDGE_KEY", self.edge_key.as_str())], settings].concat();
        let (code, said) = Process::exit(&self.edge_arguments(&folder), &settings).await;
        assert_ne!(code, 0, "{said}");
    }

    fn edge_arguments<'a>(&'a self, folder: &'a Path) -> [&'a str; 9] {
        [
            "edge",
            "--listen",
            "127.0.0.1:0",
            "--control-url",
            &self.admin.url,
            "--trust",
            &self.trust,
            "--data-dir",
            folder.to_str().unwrap(),
        ]
    }

    async fn create_flag(&self) {
        let definition = json!({ "key": "f", "type": "string",
            "variants": { "one": "1", "two": "2", "three": "3", "four": "4" } });
        self.admin.create_flag(&definition).await.ok();
        self.flag("one").await;
    }

    async fn flag(&self, variant: &str) {
        let config = json!({ "enabled": true, "fallthrough": { "variant": variant } });
        self.admin.configure("f", &config).await.ok();
    }

    fn snapshots(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.edge_folder()).unwrap();
        let mut files: Vec<PathBuf> = entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("snapshot."))
            .collect();
        // `snapshot.<namespace>.<environment>.<generation>.<revision>`
        files.sort_by_key(|path| {
            path.to_str().unwrap().rsplit('.').next().unwrap().parse::<u64>().unwrap()
        });
        files
    }
}

async fn control(folder: &Path, listen: &str) -> Process {
    let data = folder.join("control");
    let arguments = ["control", "--listen", listen, "--data-dir", data.to_str().unwrap()];
    Process::start(&arguments, &[]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edge_outlives_control_and_starts_again_without_it() {
    let mut world = Processes::start().await;
    world.create_flag().await;
    let (edge, ofrep) = world.edge().await;
    ofrep.serves("f", &json!({}), &json!("1")).await;
    world.flag("two").await;
    ofrep.serves("f", &json!({}), &json!("2")).await;

    world.kill_control().await;
    for _ in 0..20 {
        let answer = ofrep.one("f", &json!({ "targetingKey": "user-1" })).await;
        assert_eq!((answer.status, &answer.json()["value"]), (200, &json!("2")), "{}", answer.text);
    }

    edge.kill().await;
    let (edge, ofrep) = world.edge().await;
    let answer = ofrep.one("f", &json!({})).await;
    assert_eq!(answer.json()["value"], "2", "at once, from disk: {}", answer.text);

    // Control comes back where it was; the edge finds it by itself.
    world.restart_control().await;
    world.flag("three").await;
    ofrep.serves("f", &json!({}), &json!("3")).await;
    edge.kill().await;
    world.kill_control().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_newest_file_falls_back_to_the_one_before() {
    let mut world = Processes::start().await;
    world.create_flag().await;
    let (edge, ofrep) = world.edge().await;
    for (variant, value) in [("one", "1"), ("two", "2"), ("three", "3")] {
        world.flag(variant).await;
        ofrep.serves("f", &json!({}), &json!(value)).await;
    }
    world.kill_control().await;
    edge.kill().await;
    let files = world.snapshots();
    assert!((2..=3).contains(&files.len()), "the last few are kept: {files:?}");

    // One flipped bit in the middle, then half of the file gone, then nothing left of it.
    let newest = files.last().unwrap();
    let whole = std::fs::read(newest).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 0x10;
    for damaged in [flipped, whole[..whole.len() / 2].to_vec(), Vec::new()] {
        std::fs::write(newest, &damaged).unwrap();
        let (edge, ofrep) = world.edge().await;
        let answer = ofrep.one("f", &json!({})).await;
        assert_eq!(answer.json()["value"], "2", "{} bytes: {}", damaged.len(), answer.text);
        edge.kill().await;
    }

    // Control still has the newest, and heals the edge.
    world.restart_control().await;
    let (edge, ofrep) = world.edge().await;
    ofrep.serves("f", &json!({}), &json!("3")).await;
    edge.kill().await;
    world.kill_control().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_control_publishes_after_its_restart_what_it_had_committed() {
    let mut world = Processes::start().await;
    world.create_flag().await;
    let (edge, ofrep) = world.edge().await;
    ofrep.serves("f", &json!({}), &json!("1")).await;
    // Killed right after the answer: the snapshot may or may not have been published.
    world.flag("four").await;
    world.kill_control().await;
    world.restart_control().await;
    ofrep.serves("f", &json!({}), &json!("4")).await;
    edge.kill().await;
    world.kill_control().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_brings_the_edge_down_twice_is_set_aside_and_the_one_before_is_served() {
    let mut world = Processes::start().await;
    world.create_flag().await;
    let deadly = [("TIDEGATE_TEST_DIES_OF", "dies-of-this")];
    let (edge, ofrep) = world.edge_with(&deadly).await;
    ofrep.serves("f", &json!({}), &json!("1")).await;

    let path = format!("/api/v1/namespaces/{NAMESPACE}/flags/f");
    let with =
        |two: &str| json!({ "key": "f", "type": "string", "variants": { "one": "1", "two": two } });
    world.admin.put(&path, &with("dies-of-this")).await.ok();
    edge.ended().await;
    // Up from disk with the last good one, and down again with the next head.
    world.edge_to_its_end(&deadly).await;

    let (edge, ofrep) = world.edge_with(&deadly).await;
    until("control hearing why", async || {
        let edges = world.admin.get(&format!("{}/edges", world.admin.environment_path())).await;
        let told = edges.text.contains("it brought this edge down twice");
        if told { Ok(()) } else { Err(edges.text) }
    })
    .await;
    let answer = ofrep.one("f", &json!({})).await;
    assert_eq!(answer.json()["value"], "1", "{}", answer.text);

    world.admin.put(&path, &with("harmless")).await.ok();
    world.flag("two").await;
    ofrep.serves("f", &json!({}), &json!("harmless")).await;
    edge.kill().await;
    world.kill_control().await;
}
