//! Peers that hold on to what they got, or ask for too much at once: they are cut, and meanwhile
//! others are answered.
//!
//! Attackers come from 127.0.0.1 and others from 127.0.0.2, as two addresses are two.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use control::config::Config;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::world::{PATIENCE, World};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(600);
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Places of one address, of the three times as many that there are.
const PLACES: usize = 8;

async fn world(change: impl FnOnce(&mut Config)) -> World {
    World::with(tempfile::tempdir().expect("a folder"), |config| {
        (config.idle_timeout, config.body_timeout) = (LONG, LONG);
        config.connections_max = 3 * PLACES;
        config.walls.connections_per_address = PLACES;
        change(config);
    })
    .await
}

async fn connect(from: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("an address of loopback");
    timeout(PATIENCE, socket.connect(to)).await.expect("in time").expect("a connection")
}

/// What comes until the other side closes.
async fn rest(mut stream: TcpStream) -> String {
    let mut read = Vec::new();
    let all = timeout(PATIENCE, stream.read_to_end(&mut read)).await;
    // Whoever is cut in the middle of sending may hear it as a reset.
    drop(all.expect("it is still open"));
    String::from_utf8_lossy(&read).into_owned()
}

async fn ask(from: Ipv4Addr, world: &World, request: &[u8]) -> String {
    let mut stream = connect(from, world.control.address).await;
    let _ = stream.write_all(request).await;
    rest(stream).await
}

async fn is_answered(from: Ipv4Addr, world: &World) -> bool {
    let request = b"GET /healthz HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\r\n";
    ask(from, world, request).await.starts_with("HTTP/1.1 200")
}

/// Until that address has a place again.
async fn is_answered_again(from: Ipv4Addr, world: &World) {
    let answered = async {
        while !is_answered(from, world).await {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answered).await.expect("a place in time");
}

/// One byte at a time, for as long as it is taken.
async fn drip(stream: TcpStream) -> String {
    let (mut reads, mut writes) = stream.into_split();
    let drips = tokio::spawn(async move {
        while writes.write_all(b"a").await.is_ok() {
            tokio::time::sleep(SHORT / 10).await;
        }
    });
    let mut read = Vec::new();
    let all = timeout(PATIENCE, reads.read_to_end(&mut read)).await;
    drop(all.expect("it is still open"));
    drips.abort();
    String::from_utf8_lossy(&read).into_owned()
}

const HEADERS_WITHIN: Duration = Duration::from_secs(5);

#[tokio::test]
async fn one_address_cannot_take_all_places_and_whoever_sends_nothing_loses_them() {
    // The others are asked, and answered, while the silent ones have their places.
    let world = world(|config| config.header_timeout = HEADERS_WITHIN).await;
    let (began, mut silent) = (Instant::now(), Vec::new());
    for _ in 0..PLACES {
        silent.push(connect(ATTACKER, world.control.address).await);
    }
    // The next one of the same address is closed at once; another address does not notice.
    let answered = is_answered(ATTACKER, &world).await;
    // Unless the machine stood still until the first ones lost theirs.
    assert!(!answered || began.elapsed() >= HEADERS_WITHIN, "there is no place for that address");
    for _ in 0..5 {
        assert!(is_answered(OTHER, &world).await);
    }
    for stream in silent {
        assert_eq!(rest(stream).await, "", "cut without an answer");
    }
    is_answered_again(ATTACKER, &world).await;
    world.control.shutdown().await;
}

#[tokio::test]
async fn headers_that_come_a_byte_at_a_time_are_cut_and_others_are_answered() {
    let world = world(|config| config.header_timeout = SHORT).await;
    let mut attack = JoinSet::new();
    for _ in 0..PLACES {
        let mut stream = connect(ATTACKER, world.control.address).await;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: c\r\nx-slow: ").await.expect("sent");
        attack.spawn(drip(stream));
    }
    assert!(is_answered(OTHER, &world).await);
    while let Some(text) = attack.join_next().await {
        assert_eq!(text.expect("no panic"), "");
    }
    is_answered_again(ATTACKER, &world).await;
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_body_that_comes_a_byte_at_a_time_is_cut_though_each_byte_is_in_time() {
    let world = world(|config| config.body_timeout = SHORT).await;
    let head = format!(
        "POST /api/v1/namespaces HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 100000\r\n\r\n",
        world.token
    );
    let mut attack = JoinSet::new();
    for _ in 0..PLACES {
        let mut stream = connect(ATTACKER, world.control.address).await;
        stream.write_all(head.as_bytes()).await.expect("sent");
        attack.spawn(drip(stream));
    }
    assert!(is_answered(OTHER, &world).await);
    while let Some(text) = attack.join_next().await {
        let text = text.expect("no panic");
        assert!(text.starts_with("HTTP/1.1 408"), "{text}");
    }
    is_answered_again(ATTACKER, &world).await;
    world.control.shutdown().await;
}

#[tokio::test]
async fn what_is_too_large_is_refused_and_what_is_just_not_is_let_through() {
    let world = world(|config| config.walls.connections_per_address = 1_000).await;
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: c\r\nconnection: close\r\n{headers}\r\n")
    };
    let path = |bytes: usize| format!("/healthz?{}", "a".repeat(bytes - "/healthz?".len()));
    // `host: c` and `connection: close` are 20 bytes of names and values.
    let headers = |bytes: usize| format!("x-a: {}\r\n", "b".repeat(bytes - 20 - "x-a".len()));
    let many = |count: usize| {
        (0..count - 2).map(|number| format!("x-{number}: 1\r\n")).collect::<String>()
    };
    for (what, request, status) in [
        ("a url", get(&path(8 * 1024), ""), "200"),
        ("a url and one", get(&path(8 * 1024 + 1), ""), "414"),
        ("a url of 60 KB", get(&path(60_000), ""), "431"),
        ("headers", get("/healthz", &headers(16 * 1024)), "200"),
        ("headers and one", get("/healthz", &headers(16 * 1024 + 1)), "431"),
        ("headers of 1 MB", get("/healthz", &headers(1_000_000)), "431"),
        ("64 headers", get("/healthz", &many(64)), "200"),
        ("65 headers", get("/healthz", &many(65)), "431"),
    ] {
        let answer = ask(ATTACKER, &world, request.as_bytes()).await;
        let first = answer.lines().next().unwrap_or_default();
        assert!(first.contains(status), "{what}: {first:?}, not {status}");
    }
    let post = |more: &str, body: &[u8]| {
        let head = format!(
            "POST /api/v1/namespaces HTTP/1.1\r\nhost: c\r\nconnection: close\r\n\
             authorization: Bearer {}\r\ncontent-type: application/json\r\n{more}\r\n",
            world.token
        );
        [head.as_bytes(), body].concat()
    };
    let over = 1024 * 1024 + 1;
    let said = post(&format!("content-length: {over}\r\n"), b"{");
    let answer = ask(ATTACKER, &world, &said).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "a length is believed at once: {answer}");
    let chunk = [format!("{over:x}\r\n").as_bytes(), &vec![b' '; over], b"\r\n0\r\n\r\n"].concat();
    let answer = ask(ATTACKER, &world, &post("transfer-encoding: chunked\r\n", &chunk)).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "a body that says no length: {answer}");
    assert!(is_answered(OTHER, &world).await);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_document_that_is_too_deep_or_says_a_thing_twice_is_refused_with_its_place() {
    let world = world(|config| config.walls.connections_per_address = 1_000).await;
    let send = async |body: String| {
        let request = world.ask("POST", "/api/v1/namespaces");
        let request = request.header("content-type", "application/json").body(body);
        crate::world::read(request).await
    };
    let deep = |levels: usize| {
        let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
        format!("{{\"key\":{open}{close}}}")
    };
    let message = |body: &serde_json::Value| body["detail"].as_str().unwrap_or("").to_owned();
    let (status, body) = send(deep(64)).await;
    assert!(status == 422 && !message(&body).contains("deeper"), "{body}");
    for levels in [65, 129, 100_000] {
        let (status, body) = send(deep(levels)).await;
        assert!(status == 422 && message(&body).contains("deeper than 64"), "{levels}: {body}");
    }
    let (status, body) = send("{\"a\":".repeat(100_000)).await;
    assert!(status == 422 && message(&body).contains("deeper than 64"), "{body}");
    // Brackets in a text are no depth.
    let (status, body) =
        send(format!("{{\"key\":\"ours\",\"name\":\"{}\"}}", "[\\\"{".repeat(60))).await;
    assert_eq!(status, 201, "{body}");
    for twice in [r#"{"key":"a","key":"b"}"#, r#"{"key":"a","name":"x","name":"x"}"#] {
        let (status, body) = send(twice.to_owned()).await;
        assert_eq!(status, 422, "{twice}: {body}");
    }
    assert_eq!(world.get("/api/v1/namespaces/a").await.0, 404);
    assert!(is_answered(OTHER, &world).await);
    world.control.shutdown().await;
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(body);
    frame
}

const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GO_AWAY: u8 = 7;
const CONTINUATION: u8 = 9;
/// `:method GET`, `:scheme http`, `:path /`, `:authority c`.
const GET: &[u8] = &[0x82, 0x86, 0x84, 0x01, 1, b'c'];

async fn http2(world: &World) -> TcpStream {
    let mut stream = connect(ATTACKER, world.control.address).await;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
    stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.expect("sent");
    stream
}

/// The code of the frame that ends the connection; none if it is just closed.
async fn goes_away(stream: TcpStream, attack: impl Iterator<Item = Vec<u8>>) -> Option<u32> {
    let (mut reads, mut writes) = stream.into_split();
    let frames: Vec<Vec<u8>> = attack.collect();
    let sends = tokio::spawn(async move {
        for frame in frames {
            if writes.write_all(&frame).await.is_err() {
                return;
            }
        }
        // Held open: it is the other side that ends it.
        std::future::pending::<()>().await;
    });
    let mut read = Vec::new();
    let all = timeout(PATIENCE, reads.read_to_end(&mut read)).await;
    drop(all.expect("it is still open"));
    sends.abort();
    let mut rest = read.as_slice();
    while let Some((head, after)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (body, after) = after.split_at_checked(length)?;
        if head[3] == GO_AWAY {
            return Some(u32::from_be_bytes(body[4..8].try_into().expect("a code")));
        }
        rest = after;
    }
    None
}

#[tokio::test]
async fn streams_that_are_reset_as_fast_as_they_are_opened_end_their_connection_alone() {
    let world = world(|_| {}).await;
    let stream = http2(&world).await;
    let resets = (0..20_000u32).map(|number| {
        let id = 2 * number + 1;
        [frame(HEADERS, 0x5, id, GET), frame(RESET, 0, id, &8u32.to_be_bytes())].concat()
    });
    let attack = tokio::spawn(goes_away(stream, resets));
    for _ in 0..10 {
        assert!(is_answered(OTHER, &world).await);
    }
    let code = attack.await.expect("no panic");
    // ENHANCE_YOUR_CALM, where it still reads; closed under its hands otherwise.
    assert!(matches!(code, Some(11) | None), "{code:?}");
    assert!(is_answered(ATTACKER, &world).await);
    world.control.shutdown().await;
}

#[tokio::test]
async fn headers_that_go_on_for_ever_over_http2_end_their_connection_alone() {
    let world = world(|_| {}).await;
    let stream = http2(&world).await;
    // A literal header without indexing, `x: ` and a kilobyte, again and again.
    let literal = [&[0x00, 1, b'x', 0x7f, 0x81, 0x07][..], &[b'a'; 1024]].concat();
    let first = std::iter::once(frame(HEADERS, 0x1, 1, GET));
    let more = (0..20_000).map(move |_| frame(CONTINUATION, 0, 1, &literal));
    let attack = tokio::spawn(goes_away(stream, first.chain(more)));
    assert!(is_answered(OTHER, &world).await);
    let code = attack.await.expect("no panic");
    assert!(code != Some(0), "{code:?}");
    assert!(is_answered(ATTACKER, &world).await);
    world.control.shutdown().await;
}
