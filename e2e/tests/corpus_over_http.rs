//! The conformance corpus through a whole edge: feed, signature, snapshot, sandboxed evaluator, HTTP.
//! The bytes that a client gets are the bytes of the native evaluator. Cases that set the time are
//! left out, because an edge has its own clock.

#[path = "../../rules/tests/corpus/mod.rs"]
mod corpus;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use e2e::http::{Ofrep, segment, until};
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::answer::Audience;
use rules::blob::{Digest, ListRef, Manifest, lists::IdList};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use rules::head::{BlobRef, Head, Heads, PublicKey, Receipts, SignedHead, Version};
use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind, KeyRecord};

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
    let mut entropy = [number as u8; KEY_ENTROPY_BYTES];
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
        let mut keys =
            vec![record(&key(KeyKind::Server, number)), record(&key(KeyKind::Browser, number))];
        keys.sort_by(|a, b| a.id.cmp(&b.id));
        let manifest = Manifest {
            namespace: "corpus".to_owned(),
            environment: file.name.clone(),
            keys,
            lists,
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

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_edge_gets_the_native_bytes_for_every_case() {
    // Whatever is played by the corpus itself has no module that an edge could run.
    let mut files = corpus::load();
    files.retain(|file| file.host.policies().is_empty());
    let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let feed = Arc::new(publish(&files, &signing));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = edge::config::Config::new(listen, "corpus", vec![PublicKey::of(&signing)]);
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

    let mut differ = Vec::new();
    let mut asked = 0;
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
                Audience::Browser => &browser,
            };
            let path = format!("/ofrep/v1/evaluate/flags/{}", segment(&case.flag));
            let body = [b"{\"context\":".as_slice(), &case.context, b"}"].concat();
            let answer = client.raw(&path, body, &[]).await;
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
    assert!(asked >= 300, "{asked} cases were asked");
    assert!(differ.is_empty(), "{} of {asked} differ:\n{}", differ.len(), differ.join("\n"));
    edge.shutdown().await;
}
