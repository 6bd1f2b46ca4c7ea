//! How tests speak to control and edge: plain HTTP, as any client would.

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::ofrep_schema::OfrepSchema;
use crate::run;

/// How long a test waits for a state before it fails: long enough for a machine that is busy or cold.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Our own crates, and the layer that logs requests.
pub const TALKATIVE: &str =
    "info,control=trace,edge=trace,rules=trace,sandbox=debug,tidegate=trace,tower_http=trace";

#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: http::HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body; null if there is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    #[track_caller]
    pub fn ok(self) -> Answer {
        assert!((200..300).contains(&self.status), "answered {}: {}", self.status, self.text);
        self
    }

    /// A problem document (RFC 9457) with this status, whose text holds each of `parts`.
    #[track_caller]
    pub fn problem(&self, status: u16, parts: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text);
        let problem = self.json();
        assert_eq!(problem["status"], json!(status), "{problem}");
        assert!(problem["title"].is_string() || problem["detail"].is_string(), "{problem}");
        for part in parts {
            assert!(self.text.contains(part), "{part:?} is not named in {}", self.text);
        }
    }
}

pub fn client() -> reqwest::Client {
    follow_log();
    // Without features reqwest has no TLS provider of its own and refuses even plain HTTP.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .expect("an HTTP client")
}

/// What control and edge say in this process, at their most talkative, into the run's folder: tests speak
/// to either through a client. What hyper and others say of bytes is their own.
fn follow_log() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let Some(log) = run::log_of("in-process") else { return };
        let log = std::fs::File::create(log).expect("a log");
        let filter = tracing_subscriber::EnvFilter::new(TALKATIVE);
        let fmt = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
        // A test that reads the log itself has set up its own.
        let _ = fmt.with_writer(std::sync::Mutex::new(log)).try_init();
    });
}

pub async fn send(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let text = answer.text().await.expect("a body");
    run::secrets_in(&text);
    Answer { status, headers, text }
}

/// Percent-encodes one segment of a path.
pub fn segment(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                char::from(byte).to_string()
            }
            byte => format!("%{byte:02X}"),
        })
        .collect()
}

/// Asks until `ask` is content; fails with what it said last.
#[track_caller]
pub fn until<F, R>(what: &str, mut ask: F) -> impl Future<Output = ()>
where
    F: FnMut() -> R,
    R: Future<Output = Result<(), String>>,
{
    let place = std::panic::Location::caller();
    async move {
        let end = Instant::now() + DEADLINE;
        loop {
            match ask().await {
                Ok(()) => return,
                Err(last) if Instant::now() > end => {
                    panic!("{place}: {what} did not happen; last seen: {last}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// The admin API of one environment.
#[derive(Debug, Clone)]
pub struct Admin {
    pub url: String,
    pub token: String,
    pub namespace: String,
    pub environment: String,
    pub http: reqwest::Client,
}

impl Admin {
    pub fn environment_path(&self) -> String {
        format!("/api/v1/namespaces/{}/environments/{}", self.namespace, self.environment)
    }

    pub fn request(&self, method: http::Method, path: &str) -> reqwest::RequestBuilder {
        run::secrets_in(&self.token);
        self.http.request(method, format!("{}{path}", self.url)).bearer_auth(&self.token)
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(http::Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.request(http::Method::POST, path).json(body)).await
    }

    /// Whatever the version is now.
    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        send(self.request(http::Method::PUT, path).header("if-match", "*").json(body)).await
    }

    pub async fn create_flag(&self, definition: &Value) -> Answer {
        self.post(&format!("/api/v1/namespaces/{}/flags", self.namespace), definition).await
    }

    pub async fn configure(&self, flag: &str, config: &Value) -> Answer {
        self.put(&format!("{}/flags/{}", self.environment_path(), segment(flag)), config).await
    }

    /// Creates a flag and what it does here.
    pub async fn flag(&self, definition: &Value, config: &Value) {
        self.create_flag(definition).await.ok();
        self.configure(definition["key"].as_str().expect("a key"), config).await.ok();
    }

    pub async fn key(&self, kind: &str) -> String {
        let path = format!("{}/keys", self.environment_path());
        let answer = self.post(&path, &json!({ "kind": kind, "name": "test" })).await.ok();
        answer.json()["key"].as_str().expect("a new key is shown").to_owned()
    }
}

/// An OFREP client that holds every answer against the protocol.
#[derive(Clone)]
pub struct Ofrep {
    pub url: String,
    pub key: String,
    pub http: reqwest::Client,
}

impl Ofrep {
    pub fn new(url: &str, key: &str) -> Ofrep {
        run::secrets_in(key);
        Ofrep { url: url.to_owned(), key: key.to_owned(), http: client() }
    }

    /// One request to an evaluation path, as it is; the answer must be OFREP.
    pub async fn raw(
        &self,
        path: &str,
        body: impl Into<reqwest::Body>,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = self
            .http
            .post(format!("{}{path}", self.url))
            .bearer_auth(&self.key)
            .header("content-type", "application/json")
            .body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = send(request).await;
        if let Err(why) =
            OfrepSchema::shared().check(path, "POST", answer.status, answer.text.as_bytes())
        {
            panic!("POST {path}: {why}");
        }
        let kind = answer.header("content-type");
        assert!(answer.status == 304 || kind.starts_with("application/json"), "{path}: {kind:?}");
        answer
    }

    pub async fn one(&self, flag: &str, context: &Value) -> Answer {
        let path = format!("/ofrep/v1/evaluate/flags/{}", segment(flag));
        self.raw(&path, json!({ "context": context }).to_string(), &[]).await
    }

    pub async fn all(&self, context: &Value) -> Answer {
        self.raw("/ofrep/v1/evaluate/flags", json!({ "context": context }).to_string(), &[]).await
    }

    /// Waits until the flag serves this value.
    pub async fn serves(&self, flag: &str, context: &Value, value: &Value) {
        until(&format!("{flag} serving {value}"), async || {
            let answer = self.one(flag, context).await;
            if answer.json()["value"] == *value { Ok(()) } else { Err(answer.text) }
        })
        .await;
    }

    /// Opens the event stream that a bulk answer announces.
    pub async fn events(&self, context: &Value) -> Events {
        let announced = self.all(context).await.ok().json();
        let stream = &announced["eventStreams"][0];
        assert_eq!(stream["type"], "sse", "{announced}");
        let uri = stream["endpoint"]["requestUri"].as_str().expect("an endpoint with a requestUri");
        self.events_at(uri).await
    }

    pub async fn events_at(&self, uri: &str) -> Events {
        // No header: browsers cannot send one with an EventSource.
        let request = self.http.get(format!("{}{uri}", self.url)).timeout(DEADLINE * 10);
        let answer = request.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{uri}");
        let kind = answer.headers()["content-type"].to_str().unwrap_or("").to_owned();
        assert!(kind.starts_with("text/event-stream"), "{kind}");
        Events { stream: Box::pin(answer.bytes_stream()), rest: String::new() }
    }
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Event {
    pub id: String,
    pub event: String,
    pub data: String,
}

type Bytes = Result<bytes::Bytes, reqwest::Error>;

/// An open event stream.
pub struct Events {
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = Bytes> + Send>>,
    rest: String,
}

impl Events {
    /// The next event with data; comments and settings in between are passed over.
    pub async fn next(&mut self) -> Event {
        let wait = async {
            loop {
                while let Some((block, rest)) = self.rest.split_once("\n\n") {
                    let event = parse(block);
                    self.rest = rest.to_owned();
                    if !event.data.is_empty() {
                        let checked = OfrepSchema::shared().check_event(&event.data);
                        checked.expect("an event of OFREP");
                        return event;
                    }
                }
                let chunk = self.stream.next().await.expect("the stream goes on").expect("bytes");
                self.rest.push_str(&String::from_utf8_lossy(&chunk));
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("an event before the deadline")
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event::default();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => event.id = value.to_owned(),
            "event" => event.event = value.to_owned(),
            "data" => event.data.push_str(value),
            _ => {}
        }
    }
    event
}
