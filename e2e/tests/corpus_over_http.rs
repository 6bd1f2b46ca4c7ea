//! The conformance corpus through a whole edge: feed, signature, snapshot, sandboxed evaluator, HTTP.
//! The bytes that a client gets are the bytes of the native evaluator. Cases that set the time are
//! left out, because an edge has its own clock. A policy that the corpus plays is a module here that
//! does the same.

#[path = "../../rules/tests/corpus/mod.rs"]
mod corpus;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use e2e::http::{DEADLINE, Ofrep, segment, until};
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::answer::Audience;
use rules::blob::{Digest, ListRef, Manifest, PolicyBlob, PolicyPin, lists::IdList};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use rules::head::{BlobRef, Head, Heads, PublicKey, Receipts, SignedHead, Version};
use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind, KeyRecord};
use rules::policy::PolicyFault;

/// Each file of the corpus as an environment of its own, published once.
#[derive(Default)]
struct Published {
    heads: Heads,
    blobs: HashMap<Digest, Bytes>,
}

impl Feed for Published {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        let fresh = etag.is_none().then(|| (self.heads.clone(), "\"1\"".to_owned()));
        Box::pin(async move { Ok(fresh) })
    }

    fn blob<'a>(
        &'a self,
        _: &'a str,
        digest: Digest,
        _: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        let blob = self.blobs.get(&digest).cloned();
        Box::pin(async move { blob.ok_or(FeedError::Status { status: 404 }) })
    }

    fn receipts(&self, _: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async { Ok(()) })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// The same key each time: nothing of it is secret here.
fn key(kind: KeyKind, number: usize) -> ApiKey {
    // Not of zeros, which logs have for other reasons.
    let mut entropy = [number as u8 ^ 0xa5; KEY_ENTROPY_BYTES];
    entropy[0] = kind as u8;
    ApiKey::new(kind, &entropy)
}

fn record(key: &ApiKey) -> KeyRecord {
    KeyRecord { id: key.id.clone(), kind: key.kind, hash: key.hash(), origins: Vec::new() }
}

fn publish(files: &[corpus::File], signing: &ed25519_dalek::SigningKey) -> Published {
    let mut published = Published::default();
    for (number, file) in files.iter().enumerate() {
        let mut put = |bytes: Vec<u8>| {
            let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
            published.blobs.insert(digest, Bytes::from(bytes));
            (digest, size)
        };
        let lists = file
            .host
            .ids()
            .map(|ids| {
                let list = IdList::from_ids(ids.iter().map(String::as_str));
                let count = list.len() as u32;
                let (digest, bytes) = put(list.encode());
                ListRef { digest, bytes, ids: count }
            })
            .collect();
        let policies = file
            .host
            .policies()
            .iter()
            .map(|policy| {
                let (digest, bytes) = put(module(policy));
                let version = PolicyBlob { digest, bytes: bytes as u32 };
                PolicyPin { name: policy.name.clone(), version, shadow: None }
            })
            .collect();
        let mut keys =
            vec![record(&key(KeyKind::Server, number)), record(&key(KeyKind::Browser, number))];
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        let manifest = Manifest {
            namespace: "corpus".to_owned(),
            environment: file.name.clone(),
            keys,
            lists,
            policies,
            flag_count: file.state.flags.len() as u32,
            ..Manifest::default()
        };
        let (digest, bytes) = put(rules::blob::encode_blob(&manifest, &file.ruleset));
        let head = Head {
            namespace: "corpus".to_owned(),
            environment: file.name.clone(),
            version: Version { generation: 1, revision: 1 },
            snapshot: BlobRef { digest, bytes },
            client: None,
            previous: None,
            min_reader: rules::blob::MIN_READER,
            issued_at_ms: 0,
            epoch: 1,
        };
        published.heads.heads.push(SignedHead::sign(&head, signing).unwrap());
    }
    published
}

/// Answers or fails as the corpus says. The one input that it takes is compared up to its time, which
/// is the edge's own. What no module can do to itself (the breaker, a busy host, the clock) is a trap:
/// a client cannot tell one fault from another.
fn module(policy: &corpus::Policy) -> Vec<u8> {
    let wanted = policy.input.as_deref().unwrap_or_default();
    let wanted = wanted.rsplit_once("\"now\":").map_or(wanted, |(before, _)| before);
    let answer = policy.answer.as_deref().unwrap_or_default();
    let hex = |text: &str| text.bytes().map(|byte| format!("\\{byte:02x}")).collect::<String>();
    let (room, work, length) = match policy.answer {
        Err(PolicyFault::Memory) => ("0", "", answer.len()),
        Err(PolicyFault::Input) => ("-1", "", answer.len()),
        Err(PolicyFault::Fuel) => ("32768", "(loop (br 0))", 0),
        Err(PolicyFault::Output) => ("32768", "", 1_000_000),
        Err(_) => ("32768", "unreachable", 0),
        Ok(_) => ("32768", "", answer.len()),
    };
    let (quoted_answer, quoted_wanted, wanted_len) = (hex(answer), hex(wanted), wanted.len());
    let text = format!(
        r#"(module
  (memory (export "memory") 1 1)
  (data (i32.const 0) "{{\"attributes\":[]}}")
  (data (i32.const 1024) "{quoted_answer}")
  (data (i32.const 8192) "{quoted_wanted}")
  (func (export "tidegate_abi") (result i32) i32.const 1)
  (func (export "tidegate_alloc") (param i32) (result i32) i32.const {room})
  (func (export "tidegate_describe") (result i64) i64.const 17)
  (func (export "evaluate") (param $input i32) (param $len i32) (result i64)
    (local $at i32)
    (if (i32.lt_u (local.get $len) (i32.const {wanted_len})) (then unreachable))
    (block $same
      (loop $next
        (br_if $same (i32.ge_u (local.get $at) (i32.const {wanted_len})))
        (if (i32.ne (i32.load8_u (i32.add (local.get $input) (local.get $at)))
                    (i32.load8_u offset=8192 (local.get $at)))
          (then unreachable))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br $next)))
    {work}
    (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const {length}))))"#
    );
    wat::parse_str(text).unwrap()
}

/// Between tries of a policy's case: the clock may cut a call off, and then what is served is the fallback.
const AGAIN: Duration = Duration::from_millis(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_edge_gets_the_native_bytes_for_every_case() {
    let files = corpus::load();
    let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let feed = Arc::new(publish(&files, &signing));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let mut config = edge::config::Config::new(listen, "corpus", vec![PublicKey::of(&signing)]);
    config.policy_helper = sandbox::policy::helper::Helper::beside_this_test();
    config.sandbox.cache_dir = e2e::run::compiled_dir();
    // What a busy machine's helper was too late to compile is compiled again in the next round.
    config.anti_entropy = Duration::from_secs(1);
    let edge = edge::start(config, feed).await.unwrap();
    let url = format!("http://{}", edge.address);
    until("every environment being served", async || {
        let waiting: Vec<&str> = files
            .iter()
            .map(|file| file.name.as_str())
            .filter(|name| edge.serving("corpus", name).is_none())
            .collect();
        if waiting.is_empty() { Ok(()) } else { Err(format!("{waiting:?} are missing")) }
    })
    .await;
    until("every policy being compiled", async || {
        let ready = reqwest::get(format!("{url}/readyz")).await.unwrap();
        let ready: serde_json::Value = ready.json().await.unwrap();
        if ready["absentPolicies"] == 0 { Ok(()) } else { Err(ready.to_string()) }
    })
    .await;

    let mut differ = Vec::new();
    let (mut asked, mut of_policies) = (0, 0);
    for (number, file) in files.iter().enumerate() {
        let native = Evaluator::load(&file.ruleset).unwrap();
        let server = Ofrep::new(&url, key(KeyKind::Server, number).reveal());
        let browser = Ofrep::new(&url, key(KeyKind::Browser, number).reveal());
        for case in &file.cases {
            // The key of nothing cannot be written into a path: it is the bulk endpoint's.
            if case.now_ms != 0 || case.flag.is_empty() {
                continue;
            }
            asked += 1;
            let calls = file.document["state"]["flags"][&case.flag]["config"].to_string();
            let calls = calls.contains("\"policy\":");
            of_policies += usize::from(calls);
            let context = ContextBuf::from_json(&case.context).unwrap();
            let input = Input { context: context.view(), now_ms: 0, host: &file.host };
            let mut wanted = Vec::new();
            let mut scratch = Scratch::default();
            let status = rules::answer::write_one(
                &native,
                &case.flag,
                case.audience,
                &input,
                &mut scratch,
                &mut wanted,
            );
            let client = match case.audience {
                Audience::Server => &server,
                Audience::Browser | Audience::BrowserAtEdge => &browser,
            };
            let path = format!("/ofrep/v1/evaluate/flags/{}", segment(&case.flag));
            let body = [b"{\"context\":".as_slice(), &case.context, b"}"].concat();
            let mut answer = client.raw(&path, body.clone(), &[]).await;
            let until = Instant::now() + DEADLINE;
            while calls && answer.text.as_bytes() != wanted && Instant::now() < until {
                tokio::time::sleep(AGAIN).await;
                answer = client.raw(&path, body.clone(), &[]).await;
            }
            if answer.text.as_bytes() != wanted || answer.status != status as u16 {
                differ.push(format!(
                    "{} / {}:\n    native {} {}\n    edge   {} {}",
                    file.name,
                    case.name,
                    status as u16,
                    String::from_utf8_lossy(&wanted),
                    answer.status,
                    answer.text,
                ));
            }
        }
    }
    // A little below what there were when this was written, so that none go missing unseen.
    assert!(asked >= 1_700, "{asked} cases were asked");
    assert!(of_policies >= 60, "{of_policies} cases of policies were asked");
    assert!(differ.is_empty(), "{} of {asked} differ:\n{}", differ.len(), differ.join("\n"));
    edge.shutdown().await;
}
