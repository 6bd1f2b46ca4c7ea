//! The feed over HTTP, against a control that is played by a small server: what it sends, what it
//! believes, what it does when control misbehaves. The real control is met in the whole-system
//! tests.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use edge::feed::{Feed as _, FeedError, HttpFeed};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rules::blob::Digest;
use rules::head::Receipts;
use rules::keys::{ApiKey, KEY_ENTROPY_BYTES, KeyKind};
use tokio::net::{TcpListener, TcpSocket};

use crate::world::{DEADLINE, Shop, Source, World, config, version};

fn edge_key() -> ApiKey {
    ApiKey::new(KeyKind::Edge, &[3; KEY_ENTROPY_BYTES])
}

struct Control {
    address: SocketAddr,
    long_polls: Arc<AtomicUsize>,
}

/// Control's three routes in front of `source`.
async fn control(source: Arc<Source>) -> Control {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let long_polls = Arc::new(AtomicUsize::new(0));
    let counted = long_polls.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (source, counted) = (source.clone(), counted.clone());
            let service = service_fn(move |request| {
                let (source, counted) = (source.clone(), counted.clone());
                async move { Ok::<_, Infallible>(answer(&source, &counted, request).await) }
            });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    Control { address, long_polls }
}

async fn answer(
    source: &Source,
    long_polls: &AtomicUsize,
    request: Request<Incoming>,
) -> Response<Full<Bytes>> {
    let status =
        |status: u16| Response::builder().status(status).body(Full::default()).expect("an answer");
    let bearer = format!("Bearer {}", edge_key().reveal());
    if request
        .headers()
        .get("authorization")
        .is_none_or(|sent| sent.as_bytes() != bearer.as_bytes())
    {
        return status(401);
    }
    let path = request.uri().path().to_owned();
    if path == "/edge/v1/heads" {
        let etag = request
            .headers()
            .get("if-none-match")
            .map(|etag| etag.to_str().expect("text").to_owned());
        if request.uri().query().is_some_and(|query| query.contains("wait=")) {
            long_polls.fetch_add(1, Ordering::Relaxed);
            while let Ok(None) = source.heads(etag.clone()).await {
                source.changed().await;
            }
        }
        return match source.heads(etag).await {
            Ok(Some((heads, etag))) => Response::builder()
                .header("etag", etag)
                .body(Full::from(serde_json::to_vec(&heads).expect("JSON")))
                .expect("an answer"),
            Ok(None) => status(304),
            Err(_) => status(503),
        };
    }
    if let Some(digest) = path.strip_prefix("/edge/v1/blobs/") {
        let digest = digest.parse().expect("a digest");
        if request.headers().contains_key("available-dictionary")
            && let Some(frame) = source.delta()
        {
            let answer = Response::builder().header("content-encoding", "dcz");
            return answer.body(Full::from(frame)).expect("an answer");
        }
        return match source.blob("shop", digest, u64::MAX).await {
            Ok(bytes) => Response::new(Full::from(bytes)),
            Err(_) => status(404),
        };
    }
    // Usage, and whose contexts to sample: an edge asks for these too if a test lasts long enough.
    if path != "/edge/v1/receipts" {
        return status(404);
    }
    let body = request.into_body().collect().await.expect("a body").to_bytes();
    let receipts: Receipts = serde_json::from_slice(&body).expect("receipts");
    source.receipts(receipts).await.expect("taken");
    status(204)
}

#[tokio::test]
async fn an_edge_follows_control_over_http_by_long_polls_and_reports_what_it_serves() {
    let source = Source::new();
    source.publish(&Shop::new().snapshot(), version(1, 1));
    let control = control(source.clone()).await;
    let feed = HttpFeed::new(&format!("http://{}/", control.address), edge_key()).expect("a feed");
    let mut config = config(None);
    // Only the doorbell can bring the second snapshot in time.
    config.anti_entropy = DEADLINE * 10;
    let edge =
        edge::start_in(crate::world::sandbox(), config, Arc::new(feed)).await.expect("an edge");
    let world = World { edge, source };
    world.serves(version(1, 1)).await;
    world.source.reports(|all| all.iter().any(|one| one.version == version(1, 1))).await;
    let mut shop = Shop::new();
    shop.ids = vec!["another".to_owned()];
    world.source.publish(&shop.snapshot(), version(1, 2));
    world.serves(version(1, 2)).await;
    world.source.reports(|all| all.iter().any(|one| one.version == version(1, 2))).await;
    let long_polls = control.long_polls.load(Ordering::Relaxed);
    assert!(long_polls < 10, "{long_polls} long polls: it does not wait, it asks all the time");
    world.edge.shutdown().await;
}

#[tokio::test]
async fn heads_that_are_known_are_not_sent_again() {
    let source = Source::new();
    source.publish(&Shop::new().snapshot(), version(1, 1));
    let control = control(source.clone()).await;
    let feed = HttpFeed::new(&format!("http://{}", control.address), edge_key()).expect("a feed");
    let (heads, etag) = feed.heads(None).await.expect("heads").expect("new");
    assert_eq!(heads.heads.len(), 1);
    assert!(feed.heads(Some(etag)).await.expect("heads").is_none());
}

#[tokio::test]
async fn a_blob_longer_than_announced_is_cut_off_and_a_wrong_key_is_told_apart() {
    let source = Source::new();
    let snapshot = Shop::new().snapshot();
    source.publish(&snapshot, version(1, 1));
    let control = control(source.clone()).await;
    let url = format!("http://{}", control.address);
    let feed = HttpFeed::new(&url, edge_key()).expect("a feed");
    let (digest, bytes) = (snapshot.digest(), snapshot.blob.len() as u64);
    assert_eq!(feed.blob("shop", digest, bytes).await.expect("a blob"), snapshot.blob);
    let over = feed.blob("shop", digest, bytes - 1).await;
    assert!(matches!(over, Err(FeedError::TooLong { .. })), "{over:?}");
    let missing = feed.blob("shop", Digest([0; 32]), 10).await;
    assert!(matches!(missing, Err(FeedError::Status { status: 404 })), "{missing:?}");
    let stranger = ApiKey::new(KeyKind::Edge, &[4; KEY_ENTROPY_BYTES]);
    let stranger = HttpFeed::new(&url, stranger).expect("a feed");
    let denied = stranger.heads(None).await;
    assert!(matches!(denied, Err(FeedError::Denied { status: 401 })), "{denied:?}");
}

#[tokio::test]
async fn a_control_that_is_not_there_is_an_error_and_never_a_hang() {
    // Bound and not listened to: nobody else can take it meanwhile.
    let taken = TcpSocket::new_v4().expect("a socket");
    taken.bind("127.0.0.1:0".parse().expect("an address")).expect("a port");
    let address = taken.local_addr().expect("an address");
    let feed = HttpFeed::new(&format!("http://{address}"), edge_key()).expect("a feed");
    let answer = feed.heads(None).await;
    assert!(matches!(answer, Err(FeedError::Unreachable(_))), "{answer:?}");
    assert!(HttpFeed::new("control:8080", edge_key()).is_err());
}

#[tokio::test]
async fn a_delta_that_is_nonsense_or_gives_other_bytes_is_made_up_for_by_the_whole() {
    let (base, target) = (b"the base".repeat(100), b"the target".repeat(100));
    let dictionary = Digest::of(&base);
    let framed = |magic: &[u8], of: Digest, target: &[u8]| {
        let head = [magic, &of.0].concat();
        let mut encoder =
            zstd::stream::write::Encoder::with_ref_prefix(head, 3, &base).expect("an encoder");
        std::io::Write::write_all(&mut encoder, target).expect("encoded");
        encoder.finish().expect("a frame")
    };
    let magic = [0x5e, 0x2a, 0x4d, 0x18, 0x20, 0, 0, 0];
    let good = framed(&magic, dictionary, &target);
    let frames = [
        good.clone(),
        good[..good.len() - 1].to_vec(),
        good[..20].to_vec(),
        Vec::new(),
        framed(b"nonsense", dictionary, &target),
        framed(&magic, Digest::of(b"another"), &target),
        framed(&magic, dictionary, b"other bytes"),
        framed(&magic, dictionary, &target.repeat(100)),
    ];
    for (number, frame) in frames.into_iter().enumerate() {
        let source = Source::new();
        source.corrupt(Digest::of(&target), Bytes::from(target.clone()));
        source.set_delta(frame);
        let control = control(source.clone()).await;
        let feed =
            HttpFeed::new(&format!("http://{}", control.address), edge_key()).expect("a feed");
        let from = (dictionary, Bytes::from(base.clone()));
        let made = feed.blob_from("shop", from, Digest::of(&target), target.len() as u64).await;
        assert_eq!(made.expect("a blob"), target, "frame {number}");
        assert_eq!(source.fetched(), usize::from(number > 0), "frame {number}: wholes fetched");
    }
}
