//! Connections: their limits, their end, and what operators can see.

use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sandbox::{Sandbox, SandboxConfig};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::ofrep_schema::OfrepSchema;
use crate::world::{
    DEADLINE, Events, Shop, Source, World, browser_key, config, hold, parse, server_key, version,
};

const BANNER: &str = "/ofrep/v1/evaluate/flags/banner";

/// A request of which the edge has the head and waits for the body.
async fn half_asked(world: &World) -> TcpStream {
    let mut stream = TcpStream::connect(world.edge.address).await.expect("a connection");
    let head = format!(
        "POST /ofrep/v1/evaluate/flags/banner HTTP/1.1\r\nHost: edge\r\nX-API-Key: {}\r\n\
         Content-Length: 2\r\nExpect: 100-continue\r\n\r\n",
        server_key().reveal()
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    let mut go_on = [0u8; 25];
    let reads = stream.read_exact(&mut go_on);
    tokio::time::timeout(DEADLINE, reads).await.expect("in time").expect("100 Continue");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream
}

/// Reads until the other side closes; a reset is as good.
async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reads = async { while stream.read_buf(&mut bytes).await.unwrap_or(0) > 0 {} };
    tokio::time::timeout(DEADLINE, reads).await.expect("the connection was not closed");
    bytes
}

#[tokio::test]
async fn a_shutdown_answers_a_request_that_has_begun_and_takes_no_new_one() {
    let world = World::new().await;
    let address = world.edge.address;
    let mut stream = half_asked(&world).await;
    let stopped = tokio::spawn(world.edge.shutdown());
    // The listener closes once the shutdown has begun.
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, refused).await.expect("still accepting");
    assert!(!stopped.is_finished(), "it did not wait for the request");
    stream.write_all(b"{}").await.expect("sent");
    let answer = parse(&read_to_end(&mut stream).await).expect("an answer");
    hold("POST", BANNER, &answer);
    assert_eq!(answer.status, 200);
    tokio::time::timeout(DEADLINE, stopped).await.expect("in time").expect("stopped");
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever_for_a_request_that_never_ends() {
    let mut config = config(None);
    config.drain = Duration::from_millis(100);
    let world = World::with(config).await;
    let mut stream = half_asked(&world).await;
    tokio::time::timeout(DEADLINE, world.edge.shutdown()).await.expect("in time");
    assert!(parse(&read_to_end(&mut stream).await).is_none());
}

#[tokio::test]
async fn a_connection_that_sends_nothing_or_half_a_head_is_closed_and_an_idle_one_is_not() {
    let mut config = config(None);
    // Long enough for this test to ask in.
    config.timeouts.headers = Duration::from_secs(2);
    // So that it is not this that closes them.
    config.timeouts.idle = DEADLINE * 10;
    let world = World::with(config).await;
    let mut polite = TcpStream::connect(world.edge.address).await.expect("a connection");
    let ask = format!(
        "POST /ofrep/v1/evaluate/flags/banner HTTP/1.1\r\nHost: edge\r\nX-API-Key: {}\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        server_key().reveal()
    );
    let mut answer = vec![0u8; 4096];
    polite.write_all(ask.as_bytes()).await.expect("sent");
    let read = polite.read(&mut answer).await.expect("an answer");
    hold("POST", BANNER, &parse(&answer[..read]).expect("an answer"));
    let idle_since = Instant::now();
    let words = ["", "P", "PRI * HTTP/2.0\r\n", "POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHo"];
    let closed = words.map(async |words| {
        let mut stream = TcpStream::connect(world.edge.address).await.expect("a connection");
        stream.write_all(words.as_bytes()).await.expect("sent");
        assert!(read_to_end(&mut stream).await.is_empty(), "{words:?}");
    });
    futures_util::future::join_all(closed).await;
    assert!(idle_since.elapsed() >= Duration::from_secs(2), "they were closed early");
    polite.write_all(ask.as_bytes()).await.expect("sent");
    let read = polite.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "an idle connection was closed");
    hold("POST", BANNER, &parse(&answer[..read]).expect("an answer"));
    polite.write_all(&ask.as_bytes()[..30]).await.expect("sent");
    assert!(read_to_end(&mut polite).await.is_empty(), "half a head, on an old connection");
}

/// On this thread nothing else runs meanwhile, and neither does the edge.
fn stand_still(pause: Duration) {
    let until = Instant::now() + pause;
    while let Some(rest) = until.checked_duration_since(Instant::now()) {
        std::thread::park_timeout(rest);
    }
}

#[tokio::test]
async fn a_request_that_comes_as_the_time_of_the_one_before_runs_out_is_answered() {
    let mut config = config(None);
    config.timeouts.headers = Duration::from_millis(200);
    let world = World::with(config).await;
    let ask = b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n";
    // Not tokio's yet: the first request is there in one piece before the edge accepts, however long
    // this thread is stopped in between.
    let mut early = std::net::TcpStream::connect(world.edge.address).expect("a connection");
    std::io::Write::write_all(&mut early, ask).expect("sent");
    early.set_nonblocking(true).expect("set");
    let mut polite = TcpStream::from_std(early).expect("a connection");
    let mut answer = vec![0u8; 4096];
    let read = polite.read(&mut answer).await.expect("an answer");
    assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "the first request");
    for _ in 0..2 {
        polite.write_all(ask).await.expect("sent");
        // The edge then finds the timer of the request before and this request at once.
        stand_still(Duration::from_millis(300));
        let read = polite.read(&mut answer).await.expect("an answer");
        assert!(answer[..read].starts_with(b"HTTP/1.1 200"), "closed without an answer");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_and_a_stream_is_not_idle() {
    let mut config = config(None);
    config.timeouts.idle = Duration::from_millis(200);
    let world = World::with(config).await;
    let key = server_key().reveal().to_owned();
    let headers = [("X-API-Key", key.as_str())];
    let mut events = Events::open(&world, "/ofrep/v1/events", &headers).await;
    events.next().await.expect("the first words");
    let mut idle = TcpStream::connect(world.edge.address).await.expect("a connection");
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n").await.expect("sent");
    let began = Instant::now();
    let answer = read_to_end(&mut idle).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    // The stream has been silent for as long, and still speaks.
    world.source.publish(&crate::world::Shop::new().snapshot(), version(1, 2));
    assert!(events.next().await.is_some());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_given_up() {
    let mut config = config(None);
    config.timeouts.body = Duration::from_millis(100);
    let world = World::with(config).await;
    let mut stream = half_asked(&world).await;
    let answer = parse(&read_to_end(&mut stream).await).expect("an answer");
    hold("POST", BANNER, &answer);
    answer.failure(408, "GENERAL", Some("banner"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_and_others_are_answered() {
    let mut config = config(None);
    config.timeouts.write = Duration::from_millis(300);
    let world = World::with(config).await;
    // Little is on the way when it stops reading.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(4096).expect("a small buffer");
    let mut deaf = socket.connect(world.edge.address).await.expect("a connection");
    let ask = format!(
        "POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: edge\r\nX-API-Key: {}\r\n\
         Content-Length: 2\r\n\r\n{{}}",
        server_key().reveal()
    );
    // Once the answers fill what lies between, the edge takes no more questions either.
    let cut = async { while deaf.write_all(ask.as_bytes()).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, cut).await.expect("it holds its connection");
    assert_eq!(world.one("banner", "{}").await.status, 200);
    let gone = async {
        let alone = "tidegate_edge_connections 1";
        while !world.get("/metrics").await.text().lines().any(|line| line == alone) {}
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("its connection is counted on");
}

/// An evaluator that traps when the asked flag's key begins with `t`, and when all flags are asked for
/// with a long context.
const TRAPS: &str = r#"(module
  (memory (export "memory") 8)
  (data (i32.const 0) "\c8\00{\"key\":\"banner\",\"value\":true,\"reason\":\"STATIC\",\"variant\":\"on\",\"metadata\":{}}")
  (data (i32.const 512) "\c8\00{\"flags\":[],\"metadata\":{}}")
  (func (export "tg_abi") (result i32) i32.const 1)
  (func (export "tg_buffer") (param i32) (result i32) i32.const 1024)
  (func (export "tg_load") (param i32) (result i64) i64.const 0)
  (func (export "tg_evaluate") (param $len i32) (param $now i64) (result i64)
    (if (i32.eq (i32.load8_u (i32.const 1024)) (i32.const 1)) (then
      (if (i32.eq (i32.load8_u (i32.const 1028)) (i32.const 116)) (then unreachable))
      (return (i64.const 78))))
    (if (i32.gt_u (local.get $len) (i32.const 1000)) (then unreachable))
    (i64.or (i64.shl (i64.const 512) (i64.const 32)) (i64.const 28))))"#;

#[tokio::test]
async fn a_request_that_traps_gets_a_general_error_and_the_next_one_a_healthy_instance() {
    let evaluator = Some(wat::parse_str(TRAPS).expect("it parses"));
    let sandboxed =
        SandboxConfig { evaluator, workers: 1, deadline: DEADLINE, ..SandboxConfig::default() };
    let sandbox = Sandbox::new(sandboxed).expect("a sandbox");
    let source = Source::new();
    source.publish(&Shop::new().snapshot(), version(1, 1));
    let world = World::start_in(sandbox.clone(), config(None), source).await;
    world.serves(version(1, 1)).await;
    let long = json!({ "context": { "targetingKey": "x".repeat(2_000) } }).to_string();
    // `hold` checks each of these against the OpenAPI document.
    for _ in 0..3 {
        world.one("trap", "{}").await.failure(500, "GENERAL", Some("trap"));
        assert_eq!(sandbox.memory_bytes(), 0, "the instance is gone");
        let next = world.one("banner", "{}").await;
        assert_eq!((next.status, &next.json()["value"]), (200, &json!(true)));
        world.all(&long).await.failure(500, "GENERAL", None);
        assert_eq!(sandbox.memory_bytes(), 0, "the instance is gone");
        let next = world.all("{}").await;
        assert_eq!((next.status, &next.json()["flags"]), (200, &json!([])));
    }
    let traps =
        "tidegate_edge_sandbox_traps_total{namespace=\"shop\",environment=\"production\"} 6";
    let metrics = world.get("/metrics").await.text();
    assert!(metrics.lines().any(|line| line == traps), "{metrics}");
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_and_those_under_it_are_served() {
    let mut config = config(None);
    config.connections_max = 1;
    let world = World::with(config).await;
    let mut first = half_asked(&world).await;
    let mut second = TcpStream::connect(world.edge.address).await.expect("a connection");
    assert!(read_to_end(&mut second).await.is_empty());
    first.write_all(b"{}").await.expect("sent");
    let mut answer = vec![0u8; 4096];
    let read = first.read(&mut answer).await.expect("an answer");
    let answer = parse(&answer[..read]).expect("an answer");
    assert_eq!(answer.status, 200);
    hold("POST", BANNER, &answer);
}

#[tokio::test]
async fn connections_of_one_address_over_its_cap_are_closed_and_one_that_ends_makes_room() {
    let mut config = config(None);
    config.connections_per_address = std::num::NonZeroUsize::new(1);
    let world = World::with(config).await;
    let mut first = half_asked(&world).await;
    let mut second = TcpStream::connect(world.edge.address).await.expect("a connection");
    assert!(read_to_end(&mut second).await.is_empty());
    // From another address of this machine.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.2:0".parse().expect("an address")).expect("loopback is a network");
    let mut other = socket.connect(world.edge.address).await.expect("a connection");
    let ask = b"GET /healthz HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n";
    other.write_all(ask).await.expect("sent");
    assert!(read_to_end(&mut other).await.starts_with(b"HTTP/1.1 200"));
    first.write_all(b"{}").await.expect("sent");
    let mut answer = vec![0u8; 4096];
    let read = first.read(&mut answer).await.expect("an answer");
    let answer = parse(&answer[..read]).expect("an answer");
    assert_eq!(answer.status, 200);
    hold("POST", BANNER, &answer);
    drop(first);
    let served = async {
        loop {
            let mut again = TcpStream::connect(world.edge.address).await.expect("a connection");
            // One that is closed at once takes no words.
            let _ = again.write_all(ask).await;
            if read_to_end(&mut again).await.starts_with(b"HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, served).await.expect("the address has its place again");
}

#[tokio::test]
async fn every_answer_tells_browsers_not_to_guess_and_what_pages_may_have_is_left_to_cors() {
    let world = World::new().await;
    let mut asked = Vec::new();
    for (method, path, policy) in [
        ("POST", BANNER, "cross-origin"),
        ("POST", "/ofrep/v1/evaluate/flags", "cross-origin"),
        ("GET", "/ofrep/v1/nothing", "cross-origin"),
        ("OPTIONS", BANNER, "cross-origin"),
        ("GET", "/sdk/v1/snapshot", "cross-origin"),
        ("GET", "/sdk/v1/nothing", "cross-origin"),
        ("GET", "/healthz", "same-origin"),
        ("GET", "/readyz", "same-origin"),
        ("GET", "/metrics", "same-origin"),
        ("DELETE", "/metrics", "same-origin"),
        ("GET", "/nothing", "same-origin"),
    ] {
        let mut stream = TcpStream::connect(world.edge.address).await.expect("a connection");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: edge\r\nX-API-Key: {}\r\n\
             Origin: https://shop.example\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}",
            browser_key().reveal()
        );
        stream.write_all(head.as_bytes()).await.expect("sent");
        let answer = read_to_end(&mut stream).await;
        let answer = String::from_utf8_lossy(&answer).to_lowercase();
        let (head, _) = answer.split_once("\r\n\r\n").expect("a head");
        let policy = format!("cross-origin-resource-policy: {policy}");
        for line in ["x-content-type-options: nosniff", "referrer-policy: no-referrer", &policy] {
            let times = head.lines().filter(|is| *is == line).count();
            assert_eq!(times, 1, "{method} {path} and {line}: {head}");
        }
        asked.push(head.lines().next().expect("a status").to_owned());
        // What is cached where stays as it was, and so does whose pages may read.
        let kept = head.lines().find(|line| line.starts_with("cache-control:"));
        let wanted = (method != "OPTIONS").then_some("cache-control: no-store");
        assert_eq!(kept, wanted, "{method} {path}: {head}");
        let allowed = head.contains("access-control-allow-origin: https://shop.example");
        let is_for_pages = path.starts_with("/ofrep/v1/ev") || path.starts_with("/sdk/");
        assert_eq!(allowed, is_for_pages, "{method} {path}: {head}");
    }
    assert!(asked.iter().any(|status| status.contains("200")), "{asked:?}");
}

#[tokio::test]
async fn a_client_that_speaks_http_2_at_once_is_answered() {
    let world = World::new().await;
    let stream = TcpStream::connect(world.edge.address).await.expect("a connection");
    let io = TokioIo::new(stream);
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.expect("HTTP/2");
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::post("http://edge/ofrep/v1/evaluate/flags/banner")
            .header("x-api-key", server_key().reveal())
            .body(Full::new(bytes::Bytes::from_static(b"{}")))
            .expect("a request");
        let answer = client.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        assert!(body.starts_with(b"{\"key\":\"banner\""), "{body:?}");
        OfrepSchema::shared().check(BANNER, "POST", 200, &body).expect("OFREP");
    }
}

#[tokio::test]
async fn readiness_says_how_old_the_snapshot_is_and_names_no_environment() {
    let world = World::new().await;
    let ready = world.get("/readyz").await;
    assert_eq!(ready.status, 200);
    let body = ready.json();
    assert_eq!(body["status"], "ready");
    assert_eq!(body["environments"], 1);
    assert_eq!(body["unsaved"], 0);
    assert!(body["ageSeconds"]["oldest"].as_i64().is_some_and(|age| age > 0), "{body}");
    assert!(!ready.text().contains("production"));
    assert_eq!(world.get("/healthz").await.text(), "ok\n");
    let missing = world.get("/nothing").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.header("content-type"), Some("application/problem+json"));
}

#[tokio::test]
async fn metrics_count_evaluations_by_reason_and_outcome() {
    let world = World::new().await;
    for _ in 0..3 {
        world.one("banner", "{}").await;
    }
    world.one("dark", "{}").await;
    world.one("absent", "{}").await;
    world.one("rollout", "{}").await;
    world.all("{}").await;
    let text = world.get("/metrics").await.text();
    let of = "namespace=\"shop\",environment=\"production\"";
    for (series, value) in [
        (format!("tidegate_edge_evaluations_total{{{of},reason=\"STATIC\",outcome=\"ok\"}}"), 3),
        (format!("tidegate_edge_evaluations_total{{{of},reason=\"DISABLED\",outcome=\"ok\"}}"), 1),
        (
            format!(
                "tidegate_edge_evaluations_total{{{of},reason=\"ERROR\",outcome=\"not_found\"}}"
            ),
            1,
        ),
        (
            format!(
                "tidegate_edge_evaluations_total{{{of},reason=\"ERROR\",outcome=\"bad_request\"}}"
            ),
            1,
        ),
        (format!("tidegate_edge_bulk_evaluations_total{{{of},outcome=\"ok\"}}"), 1),
        (format!("tidegate_edge_snapshot_revision{{{of}}}"), 1),
        (format!("tidegate_edge_sync_total{{{of},result=\"applied\"}}"), 1),
        (format!("tidegate_edge_request_seconds_count{{{of},kind=\"one\"}}"), 6),
    ] {
        let line = format!("{series} {value}");
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
}

#[tokio::test]
async fn a_refetch_for_a_version_that_never_comes_is_answered_after_a_moment() {
    let world = World::new().await;
    let began = Instant::now();
    let answer = world.post("/ofrep/v1/evaluate/flags?flagConfigEtag=1.99.0", "{}").await;
    assert_eq!(answer.status, 200);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(900), "it did not wait: {took:?}");
    assert_eq!(world.serving(), Some(version(1, 1)));
    assert_eq!(answer.json()["flags"][1]["value"], json!(true));
}
