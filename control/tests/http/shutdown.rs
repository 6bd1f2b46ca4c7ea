//! Connections: what a shutdown does to them, and how long a silent peer may hold one.

use std::time::Duration;

use control::config::Config;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::world::{PATIENCE, World};

/// Long enough to be told from at once, short enough to wait for.
const SHORT: Duration = Duration::from_millis(200);
/// In which a test surely sends what is to be answered, on a machine that is busy with other tests.
const ASKED_IN: Duration = Duration::from_secs(2);
/// As good as never.
const LONG: Duration = Duration::from_secs(600);

async fn world(change: impl FnOnce(&mut Config)) -> World {
    World::with(tempfile::tempdir().expect("a folder"), change).await
}

struct Peer(TcpStream);

impl Peer {
    async fn of(world: &World) -> Peer {
        Peer(TcpStream::connect(world.control.address).await.expect("a connection"))
    }

    async fn send(&mut self, text: &str) {
        self.0.write_all(text.as_bytes()).await.expect("sent");
    }

    /// What comes until `end` has come.
    async fn until(&mut self, end: &str) -> String {
        let mut read = Vec::new();
        let all = async {
            while !String::from_utf8_lossy(&read).contains(end) {
                match self.0.read_buf(&mut read).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        };
        let came = timeout(PATIENCE, all).await;
        let text = String::from_utf8_lossy(&read).into_owned();
        assert!(came.is_ok() && text.contains(end), "no {end:?} in {text:?}");
        text
    }

    /// What comes until the other side closes, and when.
    async fn closed(mut self) -> (String, Instant) {
        let mut read = Vec::new();
        let came = timeout(PATIENCE, self.0.read_to_end(&mut read)).await;
        assert!(came.is_ok(), "it is still open");
        (String::from_utf8_lossy(&read).into_owned(), Instant::now())
    }
}

#[test]
fn the_times_are_five_ten_and_sixty_seconds_unless_said_otherwise() {
    let config = Config::new("127.0.0.1:0".parse().expect("an address"), "nowhere");
    let seconds = [config.header_timeout, config.body_timeout, config.idle_timeout]
        .map(|time| time.as_secs());
    assert_eq!(seconds, [5, 10, 60]);
}

#[tokio::test]
async fn a_request_in_flight_is_answered_on_shutdown_and_an_idle_connection_is_closed() {
    let world = world(|config| (config.body_timeout, config.drain) = (LONG, LONG)).await;
    let other = reqwest::Client::new();
    let body = json!({ "key": "ours" }).to_string();
    let token = world.token.clone();
    let mut idle = Peer::of(&world).await;
    idle.send("GET /healthz HTTP/1.1\r\nhost: c\r\n\r\n").await;
    idle.until("ok\n").await;
    let mut flying = Peer::of(&world).await;
    let length = body.len();
    flying
        .send(&format!(
            "POST /api/v1/namespaces HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\nexpect: 100-continue\r\n\
             content-length: {length}\r\n\r\n"
        ))
        .await;
    // It says so once the handler reads the body.
    flying.until("100 Continue\r\n\r\n").await;

    let World { control, dir, url, .. } = world;
    let stopping = tokio::spawn(control.shutdown());
    let (_, _) = idle.closed().await;
    let again = other.get(format!("{url}/healthz")).send().await;
    assert!(again.is_err(), "nobody new is let in");
    assert!(!stopping.is_finished(), "it waits for the request in flight");
    flying.send(&body).await;
    let (answer, _) = flying.closed().await;
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    timeout(PATIENCE, stopping).await.expect("it stops").expect("without a panic");

    let world = World::on(dir).await;
    assert_eq!(world.get("/api/v1/namespaces/ours").await.0, 200, "what was answered is kept");
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_request_that_never_ends_is_cut_when_the_drain_is_over() {
    let world = world(|config| config.drain = SHORT).await;
    let token = world.token.clone();
    let mut flying = Peer::of(&world).await;
    flying
        .send(&format!(
            "POST /api/v1/namespaces HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {token}\r\n\
             expect: 100-continue\r\ncontent-length: 10\r\n\r\n"
        ))
        .await;
    flying.until("100 Continue\r\n\r\n").await;
    timeout(PATIENCE, world.control.shutdown()).await.expect("it stops all the same");
    assert_eq!(flying.closed().await.0, "");
}

#[tokio::test]
async fn slow_headers_are_cut_whether_they_are_the_first_or_come_after_an_answer() {
    let change = |config: &mut Config| {
        config.header_timeout = ASKED_IN;
        config.idle_timeout = LONG;
        config.body_timeout = LONG;
    };
    let world = world(change).await;
    let started = Instant::now();
    let silent = Peer::of(&world).await;
    let mut slow = Peer::of(&world).await;
    slow.send("GET /healthz HTTP/1.1\r\nhos").await;
    let mut later = Peer::of(&world).await;
    later.send("GET /healthz HTTP/1.1\r\nhost: c\r\n\r\n").await;
    later.until("ok\n").await;
    later.send("GET /hea").await;
    for (which, peer) in [("silent", silent), ("slow", slow), ("later", later)] {
        let (text, at) = peer.closed().await;
        assert!(!text.contains("200"), "{which}: {text}");
        assert!(at - started >= ASKED_IN, "{which} was cut after {:?}", at - started);
    }
    world.control.shutdown().await;
}

#[tokio::test]
async fn an_idle_connection_outlives_the_header_timeout_and_ends_with_its_own() {
    let idle = ASKED_IN * 2;
    let change = |config: &mut Config| {
        config.header_timeout = ASKED_IN;
        config.idle_timeout = idle;
    };
    let world = world(change).await;
    let mut peer = Peer::of(&world).await;
    // Each answer begins the rest anew.
    let mut answered = Instant::now();
    for _ in 0..2 {
        peer.send("GET /healthz HTTP/1.1\r\nhost: c\r\n\r\n").await;
        answered = Instant::now();
        peer.until("ok\n").await;
    }
    let (text, at) = peer.closed().await;
    assert_eq!(text, "");
    assert!(at - answered >= idle, "it was closed after {:?}, not {idle:?}", at - answered);
    world.control.shutdown().await;
}

#[tokio::test]
async fn a_body_that_stops_coming_is_answered_with_408_and_the_connection_closed() {
    let world = world(|config| config.body_timeout = SHORT).await;
    world.namespace("ours").await;
    let (token, started) = (world.token.clone(), Instant::now());
    for path in ["/api/v1/namespaces", "/api/v1/namespaces/ours/environments/y/evaluate"] {
        let mut peer = Peer::of(&world).await;
        peer.send(&format!(
            "POST {path} HTTP/1.1\r\nhost: c\r\nauthorization: Bearer {token}\r\n\
             content-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
        ))
        .await;
        let (answer, at) = peer.closed().await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{path}: {answer}");
        assert!(answer.contains("urn:tidegate:problem:timeout"), "{path}: {answer}");
        assert!(at - started >= SHORT, "{path}");
    }
    world.control.shutdown().await;
}
