//! The record of who changed what: what somebody did to it shows, online and in an export, also if
//! they can write to the database and make every hash anew.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use control::anchors::Due;
use control::store::query::{query, query_as};
use e2e::http::{Admin, client, until};
use e2e::process::Process;
use e2e::world::{ENVIRONMENT, NAMESPACE, furnish};
use rules::bus::Broker;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

struct World {
    control: control::Control,
    admin: Admin,
    folder: tempfile::TempDir,
}

/// A control that signs its chains soon, and eight or more rows that it has signed.
async fn world(broker: Option<Broker>) -> World {
    let folder = tempfile::tempdir().unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut config = control::config::Config::new(listen, folder.path().join("control"));
    config.walls = control::http::walls::Walls::without_rates();
    config.bootstrap = true;
    config.anchors = Due { rows: 5, age: Duration::from_millis(50) };
    config.reconcile = Duration::from_millis(50);
    config.broker = broker;
    let control = control::start(config).await.expect("control starts");
    let token = std::fs::read_to_string(&control.admin_token_file).unwrap();
    let admin = Admin {
        url: format!("http://{}", control.address),
        token: token.trim().to_owned(),
        namespace: NAMESPACE.to_owned(),
        environment: ENVIRONMENT.to_owned(),
        http: client(),
    };
    furnish(&admin).await;
    let world = World { control, admin, folder };
    for index in 0..4 {
        world.flag(index).await;
    }
    world.signed().await;
    world
}

impl World {
    async fn flag(&self, index: u32) {
        let definition = json!({ "key": format!("f{index}"), "type": "boolean",
            "variants": { "on": true, "off": false } });
        self.admin.create_flag(&definition).await.ok();
    }

    async fn verdict(&self) -> Value {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/audit/verify");
        self.admin.get(&path).await.ok().json()
    }

    /// Until the newest row is signed: how many there are.
    async fn signed(&self) -> i64 {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/audit/export?after=0");
        let rows = AtomicI64::new(0);
        until("the newest row being signed", async || {
            let part = self.admin.get(&path).await.ok().json();
            let newest = part["sequence"].as_i64().unwrap_or(0);
            rows.store(newest, Ordering::Relaxed);
            let anchors = part["anchors"].as_array().cloned().unwrap_or_default();
            let is_newest = |anchor: &Value| {
                let claims: Value = serde_json::from_str(anchor["anchor"].as_str().unwrap_or(""))
                    .unwrap_or_default();
                claims["sequence"] == newest
            };
            if anchors.iter().any(is_newest) { Ok(()) } else { Err(part.to_string()) }
        })
        .await;
        rows.into_inner()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where control keeps its anchors.
    fn anchors_file(&self) -> PathBuf {
        self.path("control/audit-anchors.jsonl")
    }

    async fn tidegate(&self, arguments: &[&str]) -> (i32, String) {
        let dir = self.path("nothing");
        let settings = [
            ("TIDEGATE_URL", self.admin.url.as_str()),
            ("TIDEGATE_TOKEN", self.admin.token.as_str()),
            ("TIDEGATE_DIR", dir.to_str().unwrap()),
        ];
        Process::exit(arguments, &settings).await
    }

    async fn export(&self, namespace: &str, file: &Path) -> Vec<Value> {
        let arguments =
            ["audit", "export", "--namespace", namespace, "--file", file.to_str().unwrap()];
        let (code, said) = self.tidegate(&arguments).await;
        assert_eq!(code, 0, "{said}");
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// As `verify` says of these lines, with or without control's own anchors.
    async fn check(&self, lines: &[Value], anchors: bool) -> (i32, String) {
        let file = self.path("checked.jsonl");
        let text: Vec<String> = lines.iter().map(Value::to_string).collect();
        std::fs::write(&file, text.join("\n")).unwrap();
        let (key, own) = (self.control.public_key.to_string(), self.anchors_file());
        let mut arguments =
            vec!["audit", "verify", "--file", file.to_str().unwrap(), "--public-key", &key];
        if anchors {
            arguments.extend(["--anchors", own.to_str().unwrap()]);
        }
        self.tidegate(&arguments).await
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A row's hash, written a second time from docs/EVENTS.md: whoever knows it can make a chain.
fn hash_of(row: &Value, previous: &[u8]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    hasher.update(previous);
    let mut field = |bytes: Option<&[u8]>| {
        hasher.update([u8::from(bytes.is_some())]);
        hasher.update((bytes.unwrap_or_default().len() as u64).to_be_bytes());
        hasher.update(bytes.unwrap_or_default());
    };
    field(Some(b"tidegate audit"));
    field(Some(&2i64.to_be_bytes()));
    let text = |name: &str| row[name].as_str().map(str::as_bytes);
    field(text("chain"));
    field(Some(&row["sequence"].as_i64().unwrap().to_be_bytes()));
    field(Some(&row["at"].as_i64().unwrap().to_be_bytes()));
    for name in ["actor", "actorKind", "actorId", "via", "address", "userAgent", "changeSet"] {
        field(text(name));
    }
    for name in ["action", "target", "environment", "before", "after"] {
        field(text(name));
    }
    hasher.finalize().to_vec()
}

/// Gives every row a hash that fits, and the end too: what somebody does who knows how.
fn made_anew(lines: &mut [Value]) {
    let mut previous = vec![0u8; 32];
    let mut sequence = 0;
    for line in lines.iter_mut().filter(|line| line["kind"] == "row") {
        sequence += 1;
        line["sequence"] = json!(sequence);
        line["previous"] = json!(hex(&previous));
        previous = hash_of(line, &previous);
        line["hash"] = json!(hex(&previous));
    }
    lines[0]["sequence"] = json!(sequence);
    lines[0]["hash"] = json!(hex(&previous));
}

fn row(lines: &[Value], sequence: i64) -> usize {
    let at = lines.iter().position(|line| line["kind"] == "row" && line["sequence"] == sequence);
    at.unwrap_or_else(|| panic!("no row {sequence}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_was_tampered_with_in_any_way_does_not_verify() {
    let world = world(None).await;
    let lines = world.export(NAMESPACE, &world.path("export.jsonl")).await;
    let last = lines[0]["sequence"].as_i64().unwrap();
    assert!(last >= 8, "{last} rows");
    let (code, said) = world.check(&lines, true).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains(&format!("{last} rows")), "{said}");
    // The second account of how rows are hashed agrees with control's.
    let mut same = lines.clone();
    made_anew(&mut same);
    assert_eq!(same, lines);

    type Tamper = Box<dyn Fn(&mut Vec<Value>)>;
    let anchors = |lines: &mut Vec<Value>| lines.retain(|line| line["kind"] != "anchor");
    let cases: Vec<(&str, bool, &str, Tamper)> = vec![
        (
            "a changed field",
            false,
            "row 5",
            Box::new(|lines| {
                let at = row(lines, 5);
                lines[at]["actor"] = json!("somebody else");
            }),
        ),
        (
            "a changed field, hashed anew",
            false,
            "row ",
            Box::new(|lines| {
                let at = row(lines, 5);
                lines[at]["actor"] = json!("somebody else");
                let previous = lines[at - 1]["hash"].clone();
                let previous: Vec<u8> = (0..32)
                    .map(|byte| {
                        u8::from_str_radix(&previous.as_str().unwrap()[byte * 2..byte * 2 + 2], 16)
                            .unwrap()
                    })
                    .collect();
                lines[at]["hash"] = json!(hex(&hash_of(&lines[at], &previous)));
            }),
        ),
        ("a removed row", false, "row 5", Box::new(|lines| drop(lines.remove(row(lines, 5))))),
        (
            "two rows in each other's place",
            false,
            "row 5",
            Box::new(|lines| {
                let (one, next) = (row(lines, 5), row(lines, 6));
                lines.swap(one, next);
            }),
        ),
        (
            "a row twice",
            false,
            "row 6",
            Box::new(|lines| {
                let at = row(lines, 5);
                lines.insert(at, lines[at].clone());
            }),
        ),
        (
            "an end that was cut off",
            false,
            "row",
            Box::new(move |lines| {
                let at = row(lines, last);
                lines.remove(at);
            }),
        ),
        (
            "an end that was cut off, and is said to be the end",
            false,
            "was cut off",
            Box::new(move |lines| {
                let at = row(lines, last);
                lines.remove(at);
                lines[0]["sequence"] = json!(last - 1);
                lines[0]["hash"] = lines[row(lines, last - 1)]["hash"].clone();
            }),
        ),
        (
            "the same without the export's anchors",
            true,
            "was cut off",
            Box::new(move |lines| {
                let at = row(lines, last);
                lines.remove(at);
                lines[0]["sequence"] = json!(last - 1);
                lines[0]["hash"] = lines[row(lines, last - 1)]["hash"].clone();
                anchors(lines);
            }),
        ),
        (
            "a chain that was written anew",
            false,
            "written anew",
            Box::new(|lines| {
                let at = row(lines, 5);
                lines[at]["actor"] = json!("somebody else");
                made_anew(lines);
            }),
        ),
        (
            "the same without the export's anchors",
            true,
            "written anew",
            Box::new(move |lines| {
                let at = row(lines, 5);
                lines[at]["actor"] = json!("somebody else");
                made_anew(lines);
                anchors(lines);
            }),
        ),
        (
            "an anchor that says something else",
            false,
            "signature",
            Box::new(|lines| {
                let at = lines.iter().position(|line| line["kind"] == "anchor").unwrap();
                let text = lines[at]["anchor"].as_str().unwrap().replace("\"at\":1", "\"at\":2");
                lines[at]["anchor"] = json!(text);
            }),
        ),
        (
            "another name",
            false,
            "anchor is of",
            Box::new(|lines| {
                lines[0]["name"] = json!("another");
            }),
        ),
    ];
    for (what, with_file, expected, tamper) in cases {
        let mut tampered = lines.clone();
        tamper(&mut tampered);
        let (code, said) = world.check(&tampered, with_file).await;
        assert_eq!(code, 4, "{what}: {said}");
        assert!(said.contains(expected), "{what}: {said}");
    }
    // Why anchors are there: without any, a chain that was written anew is as good as the first.
    let mut anew = lines.clone();
    let at = row(&anew, 5);
    anew[at]["actor"] = json!("somebody else");
    made_anew(&mut anew);
    anchors(&mut anew);
    let (code, said) = world.check(&anew, false).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("nothing of it was signed"), "{said}");
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_record_of_one_namespace_does_not_pass_for_anothers() {
    let world = world(None).await;
    world.admin.post("/api/v1/namespaces", &json!({ "key": "other" })).await.ok();
    let ours = world.export(NAMESPACE, &world.path("ours.jsonl")).await;
    let mut theirs = world.export("other", &world.path("theirs.jsonl")).await;

    let file = world.path("theirs.jsonl");
    let arguments = ["audit", "verify", "--namespace", NAMESPACE, "--file", file.to_str().unwrap()];
    let (code, said) = world.tidegate(&arguments).await;
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("not of"), "{said}");

    // Its rows under our name, and under our id, hashed to fit.
    theirs[0]["name"] = ours[0]["name"].clone();
    theirs[0]["chain"] = ours[0]["chain"].clone();
    theirs.retain(|line| line["kind"] != "anchor");
    let (code, said) = world.check(&theirs, true).await;
    assert_eq!(code, 4, "{said}");
    for line in theirs.iter_mut().filter(|line| line["kind"] == "row") {
        line["chain"] = ours[0]["chain"].clone();
    }
    made_anew(&mut theirs);
    let (code, said) = world.check(&theirs, true).await;
    assert_eq!(code, 4, "{said}");
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_that_was_written_anew_in_the_database_shows_online_and_is_not_signed_again() {
    let world = world(None).await;
    let rows = world.signed().await;
    let verdict = world.verdict().await;
    assert_eq!((&verdict["valid"], &verdict["rows"]), (&json!(true), &json!(rows)), "{verdict}");
    assert!(verdict["anchors"].as_u64().is_some_and(|anchors| anchors > 0), "{verdict}");

    // Somebody with the database's password, who knows how rows are hashed, and takes the anchors
    // out of the database too.
    let mut lines = world.export(NAMESPACE, &world.path("export.jsonl")).await;
    let at = row(&lines, 5);
    lines[at]["actor"] = json!("somebody else");
    made_anew(&mut lines);
    let bytes = |value: &Value| -> Vec<u8> {
        let text = value.as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect()
    };
    let chain = lines[0]["chain"].as_str().unwrap().to_owned();
    let mut tx = world.control.store.write().await.unwrap();
    for line in lines.iter().filter(|line| line["kind"] == "row") {
        let update = "UPDATE audit SET actor = $3, previous = $4, hash = $5 \
            WHERE namespace_id = $1 AND sequence = $2";
        let update = query(update).bind(&chain).bind(line["sequence"].as_i64().unwrap());
        let update = update.bind(line["actor"].as_str().unwrap());
        let update = update.bind(bytes(&line["previous"])).bind(bytes(&line["hash"]));
        assert_eq!(update.execute(&mut tx).await.unwrap(), 1);
    }
    let end = query("UPDATE namespace SET audit_hash = $2 WHERE id = $1").bind(&chain);
    end.bind(bytes(&lines[0]["hash"])).execute(&mut tx).await.unwrap();
    tx.commit().await.unwrap();
    let verdict = world.verdict().await;
    assert_eq!(verdict["valid"], false, "{verdict}");

    // Nothing is signed that does not follow from what was signed.
    world.flag(100).await;
    let figures = async || world.admin.get("/metrics").await.ok().text;
    until("control seeing that it is broken", async || {
        let figures = figures().await;
        let is_broken = |line: &str| line.starts_with("tidegate_control_audit_broken_total");
        if figures.lines().any(is_broken) { Ok(()) } else { Err(figures) }
    })
    .await;
    let newest = "SELECT MAX(sequence), COUNT(*) FROM audit_anchor WHERE namespace_id = $1";
    let mut read = world.control.store.read().await.unwrap();
    let (newest, _): (i64, i64) = query_as(newest).bind(&chain).fetch_one(&mut read).await.unwrap();
    assert!(newest <= rows, "row {newest} was signed, after a chain that was not");
    drop(read);

    // Also with the anchors gone from the database: control has them in a file.
    let mut tx = world.control.store.write().await.unwrap();
    let taken = query("DELETE FROM audit_anchor WHERE namespace_id = $1").bind(&chain);
    assert!(taken.execute(&mut tx).await.unwrap() > 0);
    tx.commit().await.unwrap();
    let verdict = world.verdict().await;
    assert_eq!(verdict["valid"], false, "{verdict}");
    let own = world.anchors_file();
    let arguments =
        ["audit", "verify", "--namespace", NAMESPACE, "--anchors", own.to_str().unwrap()];
    let (code, said) = world.tidegate(&arguments).await;
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("written anew"), "{said}");
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_installations_record_is_listed_exported_and_verified_as_a_namespaces() {
    let world = world(None).await;
    let (code, said) = world.tidegate(&["audit", "verify", "--instance"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.starts_with("instance: "), "{said}");
    let (code, said) = world.tidegate(&["audit", "list", "--instance"]).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("namespace.create"), "{said}");
    let arguments = ["audit", "list", "--namespace", NAMESPACE, "--object", "f2"];
    let (code, said) = world.tidegate(&arguments).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("flag.create") && !said.contains("f1"), "{said}");
    world.control.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_anchor_of_each_chain_is_with_the_broker() {
    let mut nats = e2e::nats::NatsServer::start().await;
    let world = world(Some(nats.broker())).await;
    let there = async |chain: String| {
        let connected = async_nats::connect(nats.url()).await.map_err(|error| error.to_string())?;
        let jetstream = async_nats::jetstream::new(connected);
        let bucket = jetstream.get_key_value(rules::bus::ANCHORS_BUCKET).await;
        let bucket = bucket.map_err(|error| error.to_string())?;
        let value =
            bucket.get(rules::bus::token(&chain)).await.map_err(|error| error.to_string())?;
        let value = value.ok_or("no such key")?;
        let signed: control::anchors::SignedAnchor =
            serde_json::from_slice(&value).map_err(|error| error.to_string())?;
        signed
            .verify(std::slice::from_ref(&world.control.public_key))
            .map_err(|error| error.to_string())
    };
    let lines = world.export(NAMESPACE, &world.path("export.jsonl")).await;
    let chain = lines[0]["chain"].as_str().unwrap().to_owned();
    let rows = lines[0]["sequence"].as_i64().unwrap();
    until("the anchor being there", async || match there(chain.clone()).await {
        Ok(anchor) if anchor.sequence >= rows => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    until("the installation's being there", async || there("instance".to_owned()).await.map(drop))
        .await;
    nats.kill().await;
    world.control.shutdown().await;
}
