//! A real edge on a real socket, with control played by a feed in memory. Snapshots come out of
//! the real compiler and are signed with a key of the test's own.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use edge::Edge;
use edge::config::Config;
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::blob::lists::IdList;
use rules::blob::{Digest, KeyTerms, ListRef, Manifest, encode_blob, encode_ruleset};
use rules::client::{ClientHead, ClientManifest};
use rules::compile::{EnvironmentState, FlagState, ListKind, SegmentState, client_state, compile};
use rules::head::{
    BlobRef, ClientRef, Head, Heads, PublicKey, Receipt, Receipts, SignedHead, Version,
};
use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind, KeyRecord};
use rules::model::Clients;
use rules::usage::UsageReport;
use sandbox::{Sandbox, SandboxConfig};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::ofrep_schema::OfrepSchema;

/// Long enough for a loaded machine; nothing waits for it unless it fails.
pub const DEADLINE: Duration = Duration::from_secs(60);
pub const STREAM_SECRET: [u8; 32] = [42; 32];
pub const ISSUED_AT_MS: i64 = 1_771_622_898_000;

pub fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

/// As `e2e::run` has it.
fn compiled_dir() -> Option<PathBuf> {
    std::env::var_os("TIDEGATE_COMPILED_DIR").filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// One for all tests: compiling the evaluator is most of what starting an edge costs.
pub fn sandbox() -> Arc<Sandbox> {
    static SANDBOX: OnceLock<Arc<Sandbox>> = OnceLock::new();
    // By the wall clock, and a busy machine may stop a thread for longer than the default.
    let (deadline, cache_dir) = (DEADLINE, compiled_dir());
    let config = SandboxConfig { deadline, cache_dir, ..SandboxConfig::default() };
    SANDBOX.get_or_init(|| Sandbox::new(config).expect("`cargo xtask wasm` first")).clone()
}

pub fn version(generation: u64, revision: u64) -> Version {
    Version { generation, revision }
}

pub fn server_key() -> ApiKey {
    ApiKey::new(KeyKind::Server, &[1; KEY_ENTROPY_BYTES])
}

pub fn browser_key() -> ApiKey {
    ApiKey::new(KeyKind::Browser, &[2; KEY_ENTROPY_BYTES])
}

/// One environment's state, as an author would have it.
#[derive(Clone)]
pub struct Shop {
    pub state: EnvironmentState,
    pub keys: Vec<KeyRecord>,
    /// By the key's id: when it expires, in milliseconds, and requests in a second.
    pub terms: BTreeMap<String, (Option<i64>, Option<u32>)>,
    pub ids: Vec<String>,
    pub environment: String,
    pub secret: [u8; 32],
}

/// A snapshot as it lies in the store.
#[derive(Clone)]
pub struct Snapshot {
    pub blob: Bytes,
    pub lists: Vec<Bytes>,
    pub environment: String,
    /// What browsers get of it.
    pub client: Bytes,
}

impl Shop {
    /// Flags of every type, and one for each thing that can go wrong.
    pub fn new() -> Shop {
        let mut shop = Shop {
            state: EnvironmentState::default(),
            keys: Vec::new(),
            terms: BTreeMap::new(),
            ids: vec!["vip-1".to_owned()],
            environment: "production".to_owned(),
            secret: STREAM_SECRET,
        };
        shop.key(&server_key(), &[]);
        shop.key(&browser_key(), &["https://shop.example"]);
        shop.state.segments.push(SegmentState {
            segment: serde_json::from_value(json!({"key": "vips"})).expect("a segment"),
            has_included: true,
            has_excluded: false,
        });
        let on_off = json!({"on": true, "off": false});
        shop.flag("banner", "boolean", &on_off, "edge", fixed("on"));
        shop.flag("secret", "boolean", &on_off, "none", fixed("on"));
        shop.flag("a/b ä", "string", &json!({"x": "slash"}), "none", fixed("x"));
        shop.flag("ratio", "float", &json!({"whole": 3.0}), "edge", fixed("whole"));
        shop.flag(
            "limits",
            "object",
            &json!({"x": {"max": 3, "reason": "SPLIT"}}),
            "none",
            fixed("x"),
        );
        shop.flag(
            "own-default",
            "integer",
            &json!({"x": 1}),
            "none",
            json!({
            "enabled": true, "fallthrough": "codeDefault"}),
        );
        shop.flag(
            "dark",
            "boolean",
            &on_off,
            "none",
            json!({
            "enabled": false, "off": "off", "fallthrough": {"variant": "on"}}),
        );
        shop.flag(
            "rollout",
            "boolean",
            &on_off,
            "none",
            json!({
            "enabled": true,
            "fallthrough": {"split": {"weights": {"on": 50000, "off": 50000}}}}),
        );
        shop.flag(
            "vip",
            "boolean",
            &on_off,
            "none",
            json!({
            "enabled": true,
            "rules": [{"id": "vips", "when": {"segment": "vips"}, "serve": {"variant": "on"}}],
            "fallthrough": {"variant": "off"}}),
        );
        shop
    }

    pub fn key(&mut self, key: &ApiKey, origins: &[&str]) {
        self.keys.push(KeyRecord {
            id: key.id.clone(),
            kind: key.kind,
            hash: key.hash(),
            origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
        });
        self.keys.sort_by(|a, b| a.id.cmp(&b.id));
    }

    pub fn flag(&mut self, key: &str, kind: &str, variants: &Value, clients: &str, config: Value) {
        let definition = json!({
            "key": key, "type": kind, "variants": variants, "clients": clients,
            "metadata": {"owner": "shop"}});
        self.state.flags.retain(|flag| flag.definition.key != key);
        self.state.flags.push(FlagState {
            definition: serde_json::from_value(definition).expect("a definition"),
            config: serde_json::from_value(config).expect("a configuration"),
        });
    }

    pub fn snapshot(&self) -> Snapshot {
        let compiled = compile(&self.state).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let ids = || IdList::from_ids(self.ids.iter().map(String::as_str)).encode();
        let lists: Vec<Bytes> = compiled
            .lists
            .iter()
            .map(|list| match list.kind {
                ListKind::Included => Bytes::from(ids()),
                ListKind::Excluded => Bytes::from(IdList::default().encode()),
            })
            .collect();
        let manifest = Manifest {
            namespace: "shop".to_owned(),
            environment: self.environment.clone(),
            keys: self.keys.clone(),
            stream_secret: self.secret,
            lists: lists
                .iter()
                .map(|list| ListRef {
                    digest: Digest::of(list),
                    bytes: list.len() as u64,
                    ids: self.ids.len() as u32,
                })
                .collect(),
            boundaries_ms: compiled.boundaries_ms,
            flag_count: self.state.flags.len() as u32,
            terms: (0..)
                .zip(&self.keys)
                .filter_map(|(key, record)| {
                    let (expires_at_ms, per_second) = *self.terms.get(&record.id)?;
                    let per_second = per_second.and_then(NonZeroU32::new);
                    Some(KeyTerms { key, expires_at_ms, per_second })
                })
                .collect(),
            ..Manifest::default()
        };
        let blob = Bytes::from(encode_blob(&manifest, &encode_ruleset(&compiled.ruleset)));
        Snapshot { blob, lists, environment: self.environment.clone(), client: self.client() }
    }

    fn client(&self) -> Bytes {
        let state = client_state(&self.state);
        let compiled = compile(&state).unwrap_or_else(|problems| panic!("{problems:#?}"));
        let flags = &self.state.flags;
        let manifest = ClientManifest {
            namespace: "shop".to_owned(),
            environment: self.environment.clone(),
            tier: compiled.ruleset.tier().name().to_owned(),
            flags: state.flags.len() as u32,
            edge: flags.iter().any(|flag| flag.definition.clients == Clients::Edge),
            boundaries_ms: compiled.boundaries_ms,
        };
        let ruleset = encode_ruleset(&compiled.ruleset);
        Bytes::from(rules::client::encode_blob(&manifest, &ruleset).expect("a client blob"))
    }
}

pub fn fixed(variant: &str) -> Value {
    json!({"enabled": true, "off": null, "fallthrough": {"variant": variant}})
}

impl Snapshot {
    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub fn head(&self, version: Version) -> Head {
        Head {
            namespace: "shop".to_owned(),
            environment: self.environment.clone(),
            version,
            snapshot: BlobRef { digest: self.digest(), bytes: self.blob.len() as u64 },
            client: None,
            previous: None,
            min_reader: 1,
            issued_at_ms: ISSUED_AT_MS,
            epoch: 1,
        }
    }
}

impl Snapshot {
    /// The head that names the browsers' part too, which came with `client_version`.
    pub fn head_for_clients(&self, version: Version, client_version: Version) -> Head {
        let client = ClientHead {
            namespace: "shop".to_owned(),
            environment: self.environment.clone(),
            version: client_version,
            digest: Digest::of(&self.client),
            bytes: self.client.len() as u64,
            issued_at_ms: ISSUED_AT_MS,
        };
        let client = ClientRef::sign(&client, &signing_key()).expect("signed");
        Head { client: Some(client), ..self.head(version) }
    }
}

/// Control, played.
pub struct Source {
    inner: Mutex<Inner>,
    bell: watch::Sender<u64>,
    pub receipts: watch::Sender<Vec<Receipt>>,
    /// Every attempt, also those that were not taken.
    pub usage: watch::Sender<Vec<UsageReport>>,
}

#[derive(Default)]
struct Inner {
    heads: BTreeMap<String, SignedHead>,
    blobs: HashMap<Digest, Bytes>,
    down: bool,
    fetched: usize,
    delta: Option<Bytes>,
}

impl Source {
    pub fn new() -> Arc<Source> {
        Arc::new(Source {
            inner: Mutex::default(),
            bell: watch::Sender::new(0),
            receipts: watch::Sender::new(Vec::new()),
            usage: watch::Sender::new(Vec::new()),
        })
    }

    /// Stores the blobs, then the head; rings.
    pub fn publish(&self, snapshot: &Snapshot, version: Version) {
        let head = snapshot.head(version);
        self.store(snapshot);
        self.head(SignedHead::sign(&head, &signing_key()).expect("signed"));
    }

    /// As `publish`, with the browsers' part, whose digest came with `client_version`.
    pub fn publish_for_clients(
        &self,
        snapshot: &Snapshot,
        version: Version,
        client_version: Version,
    ) {
        let head = snapshot.head_for_clients(version, client_version);
        self.store(snapshot);
        self.head(SignedHead::sign(&head, &signing_key()).expect("signed"));
    }

    pub fn store(&self, snapshot: &Snapshot) {
        let mut inner = self.inner.lock().expect("lock");
        inner.blobs.insert(Digest::of(&snapshot.client), snapshot.client.clone());
        inner.blobs.insert(snapshot.digest(), snapshot.blob.clone());
        for list in &snapshot.lists {
            inner.blobs.insert(Digest::of(list), list.clone());
        }
    }

    /// Puts other bytes under a digest, as a broken store would.
    pub fn corrupt(&self, digest: Digest, bytes: Bytes) {
        self.inner.lock().expect("lock").blobs.insert(digest, bytes);
    }

    pub fn head(&self, head: SignedHead) {
        let environment = serde_json::from_str::<Value>(&head.head)
            .ok()
            .and_then(|head| Some(head.get("environment")?.as_str()?.to_owned()))
            .unwrap_or_default();
        self.inner.lock().expect("lock").heads.insert(environment, head);
        self.ring();
    }

    pub fn set_down(&self, down: bool) {
        self.inner.lock().expect("lock").down = down;
        self.ring();
    }

    pub fn ring(&self) {
        self.bell.send_modify(|rings| *rings += 1);
    }

    /// What is answered to whoever asks for a difference.
    pub fn set_delta(&self, frame: Vec<u8>) {
        self.inner.lock().expect("lock").delta = Some(Bytes::from(frame));
    }

    pub fn delta(&self) -> Option<Bytes> {
        self.inner.lock().expect("lock").delta.clone()
    }

    pub fn fetched(&self) -> usize {
        self.inner.lock().expect("lock").fetched
    }

    /// Waits for receipts that satisfy.
    pub async fn reports(&self, wanted: impl Fn(&[Receipt]) -> bool) -> Vec<Receipt> {
        let mut receipts = self.receipts.subscribe();
        let found = tokio::time::timeout(DEADLINE, receipts.wait_for(|now| wanted(now))).await;
        match found {
            Ok(Ok(found)) => found.clone(),
            _ => panic!("the last receipts were {:#?}", self.receipts.borrow()),
        }
    }

    pub async fn reports_refusal(&self, reason: &str) -> Receipt {
        let refused = |receipt: &Receipt| {
            receipt.rejected.as_ref().is_some_and(|rejected| rejected.reason.contains(reason))
        };
        let receipts = self.reports(|receipts| receipts.iter().any(refused)).await;
        receipts.into_iter().find(refused).expect("was there")
    }

    fn unreachable() -> FeedError {
        FeedError::Unreachable("played dead".into())
    }
}

impl Feed for Source {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        Box::pin(async move {
            let inner = self.inner.lock().expect("lock");
            if inner.down {
                return Err(Source::unreachable());
            }
            let heads = Heads { heads: inner.heads.values().cloned().collect() };
            let now = Digest::of(&serde_json::to_vec(&heads).expect("json")).to_string();
            Ok((etag.as_ref() != Some(&now)).then_some((heads, now)))
        })
    }

    fn blob<'a>(
        &'a self,
        _: &'a str,
        digest: Digest,
        _bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let mut inner = self.inner.lock().expect("lock");
            if inner.down {
                return Err(Source::unreachable());
            }
            inner.fetched += 1;
            inner.blobs.get(&digest).cloned().ok_or(FeedError::Status { status: 404 })
        })
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            self.receipts.send_replace(receipts.receipts);
            Ok(())
        })
    }

    fn usage(&self, report: UsageReport) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            self.usage.send_modify(|reports| reports.push(report));
            match self.inner.lock().expect("lock").down {
                true => Err(Source::unreachable()),
                false => Ok(()),
            }
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        let mut bell = self.bell.subscribe();
        Box::pin(async move {
            let _ = bell.changed().await;
        })
    }
}

pub struct World {
    pub edge: Edge,
    pub source: Arc<Source>,
}

pub fn config(data_dir: Option<&Path>) -> Config {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let trusted = vec![PublicKey::of(&signing_key())];
    let mut config = Config::new(listen, "edge-1", trusted);
    config.data_dir = data_dir.map(Path::to_owned);
    // A lost ring (one that came while a round ran) is made up for soon.
    config.anti_entropy = Duration::from_millis(200);
    // Never, where a test is not about it: a comment would be taken for an event, and a machine that
    // stands still makes a test as late as a client that these are meant for.
    config.stream_keep_alive = DEADLINE * 10;
    config.timeouts.body = DEADLINE * 10;
    config.drain = DEADLINE * 10;
    config
}

impl World {
    /// An edge that serves `Shop::new` at 1.1.
    pub async fn new() -> World {
        World::with(config(None)).await
    }

    pub async fn with(config: Config) -> World {
        let source = Source::new();
        source.publish(&Shop::new().snapshot(), version(1, 1));
        let world = World::start(config, source).await;
        world.serves(version(1, 1)).await;
        world
    }

    pub async fn start(config: Config, source: Arc<Source>) -> World {
        World::start_in(sandbox(), config, source).await
    }

    pub async fn start_in(sandbox: Arc<Sandbox>, config: Config, source: Arc<Source>) -> World {
        let edge = edge::start_in(sandbox, config, source.clone()).await.expect("an edge");
        World { edge, source }
    }

    pub fn serving(&self) -> Option<Version> {
        self.edge.serving("shop", "production").map(|(version, _)| version)
    }

    /// Waits until the edge serves this version.
    pub async fn serves(&self, version: Version) {
        let mut swaps = self.edge.swaps();
        let arrives = async {
            while self.serving() != Some(version) {
                swaps.changed().await.expect("an edge");
            }
        };
        if tokio::time::timeout(DEADLINE, arrives).await.is_err() {
            panic!("waited for {version:?}, serving {:?}", self.serving());
        }
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        send(self.edge.address, method, path, headers, body).await
    }

    /// With the server key.
    pub async fn post(&self, path: &str, body: &str) -> Answer {
        let bearer = format!("Bearer {}", server_key().reveal());
        self.send("POST", path, &[("Authorization", &bearer)], body.as_bytes()).await
    }

    pub async fn one(&self, key: &str, body: &str) -> Answer {
        self.post(&format!("/ofrep/v1/evaluate/flags/{key}"), body).await
    }

    pub async fn all(&self, body: &str) -> Answer {
        self.post("/ofrep/v1/evaluate/flags", body).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"").await
    }
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    fn streams(&self) -> bool {
        self.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("text")
    }

    /// Checks what every OFREP failure owes its clients (INTEROP 1.2), and gives its body back.
    pub fn failure(&self, status: u16, code: &str, key: Option<&str>) -> Value {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert_eq!(body["errorCode"], code, "{body}");
        assert_eq!(body["metadata"], json!({}), "{body}");
        assert!(body["errorDetails"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        assert_eq!(body.get("key").and_then(Value::as_str), key, "{body}");
        body
    }
}

/// A request as bytes, so that nothing between the test and the edge tidies it up.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let asked = async {
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        stream.write_all(&request(method, path, headers, body)).await.expect("sent");
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect("an answer");
        let answer =
            parse(&bytes).unwrap_or_else(|| panic!("{:?}", String::from_utf8_lossy(&bytes)));
        hold(method, path, &answer);
        answer
    };
    tokio::time::timeout(DEADLINE, asked).await.expect("an answer in time")
}

/// Asks a key of which one request in a second is taken until one is not: the first is, and a busy
/// machine may need longer than a second for each.
pub async fn until_limited(ask: impl AsyncFn() -> Answer) -> Answer {
    assert_eq!(ask().await.status, 200);
    for _ in 0..20 {
        let answer = ask().await;
        if answer.status != 200 {
            assert_eq!(answer.status, 429, "{answer:?}");
            return answer;
        }
    }
    panic!("no request was too many");
}

/// Whatever the edge says under `/ofrep` must be OFREP. An event stream is checked as it is read.
#[track_caller]
pub fn hold(method: &str, path: &str, answer: &Answer) {
    if path.starts_with("/ofrep/") && !answer.streams() {
        let checked = OfrepSchema::shared().check(path, method, answer.status, &answer.body);
        checked.unwrap_or_else(|why| panic!("{method} {path}: {why}"));
    }
}

pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        text.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut bytes = format!("{text}\r\n").into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n")
}

pub fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = head_end(bytes)?;
    let head = std::str::from_utf8(&bytes[..end]).ok()?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Answer { status, headers, body: bytes[end + 4..].to_vec() })
}

/// An event stream, read as it comes.
pub struct Events {
    stream: TcpStream,
    pub head: Answer,
    text: String,
    raw: Vec<u8>,
    is_ofrep: bool,
}

impl Events {
    pub async fn open(world: &World, path: &str, headers: &[(&str, &str)]) -> Events {
        let mut stream = TcpStream::connect(world.edge.address).await.expect("a connection");
        stream.write_all(&request("GET", path, headers, b"")).await.expect("sent");
        let mut raw = Vec::new();
        let reads = async {
            while head_end(&raw).is_none() {
                assert!(stream.read_buf(&mut raw).await.expect("a head") > 0, "closed early");
            }
        };
        tokio::time::timeout(DEADLINE, reads).await.expect("a head in time");
        let end = head_end(&raw).expect("a head") + 4;
        let head = parse(&raw[..end]).expect("a head");
        let raw = raw[end..].to_vec();
        let is_ofrep = path.starts_with("/ofrep/");
        Events { stream, head, text: String::new(), raw, is_ofrep }
    }

    /// The next block of lines; None at the stream's end.
    pub async fn next(&mut self) -> Option<String> {
        let reads = async {
            loop {
                self.decode();
                if let Some(end) = self.text.find("\n\n") {
                    let block = self.text[..end].to_owned();
                    self.text.drain(..end + 2);
                    let data = block.lines().filter_map(|line| line.strip_prefix("data:"));
                    for data in data.filter(|_| self.is_ofrep) {
                        let checked = OfrepSchema::shared().check_event(data.trim());
                        checked.expect("an event of OFREP");
                    }
                    return Some(block);
                }
                if self.stream.read_buf(&mut self.raw).await.unwrap_or(0) == 0 {
                    return None;
                }
            }
        };
        match tokio::time::timeout(DEADLINE, reads).await {
            Ok(block) => block,
            Err(_) => panic!("no event in time"),
        }
    }

    /// Takes whole chunks off the chunked encoding.
    fn decode(&mut self) {
        while let Some(line) = self.raw.windows(2).position(|window| window == b"\r\n") {
            let size = std::str::from_utf8(&self.raw[..line]).expect("a size");
            let size = usize::from_str_radix(size, 16).expect("a size");
            if self.raw.len() < line + 2 + size + 2 {
                return;
            }
            let chunk = &self.raw[line + 2..line + 2 + size];
            self.text.push_str(std::str::from_utf8(chunk).expect("text"));
            self.raw.drain(..line + 2 + size + 2);
            if size == 0 {
                return;
            }
        }
    }
}
