//! A wire tap between a client of another language and the edge: passes everything on as it is and
//! holds every OFREP answer and event that comes back against the protocol.
//!
//! Nothing is mended on the way; a fault is only written down, and `finish` fails the test with it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::http::client;
use crate::ofrep_schema::OfrepSchema;

type Body = BoxBody<Bytes, reqwest::Error>;

#[derive(Debug, Default)]
struct Heard {
    answers: usize,
    /// Of all bodies of answers, streams apart.
    bytes: u64,
    events: usize,
    faults: Vec<String>,
}

impl Heard {
    fn note(&mut self, what: &str, checked: Result<(), String>) {
        if let Err(why) = checked {
            self.faults.push(format!("{what}: {why}"));
        }
    }
}

/// Listens until it is dropped.
pub struct Tap {
    pub url: String,
    heard: Arc<Mutex<Heard>>,
    _running: DropGuard,
}

struct Line {
    edge: String,
    http: reqwest::Client,
    heard: Arc<Mutex<Heard>>,
}

impl Tap {
    pub async fn before(edge: &str) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let heard = Arc::new(Mutex::new(Heard::default()));
        let line = Arc::new(Line { edge: edge.to_owned(), http: client(), heard: heard.clone() });
        let stop = CancellationToken::new();
        let running = stop.clone().drop_guard();
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let line = line.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| pass(line.clone(), request));
                    // A client that goes away in the middle is the client's business.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        }));
        Tap { url, heard, _running: running }
    }

    /// What the answers' bodies came to so far.
    pub fn bytes(&self) -> u64 {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).bytes
    }

    /// Fails if anything that went by was not OFREP, or if hardly anything went by.
    #[track_caller]
    pub fn finish(self, answers_min: usize) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(heard.faults.is_empty(), "not OFREP:\n{}", heard.faults.join("\n"));
        assert!(heard.answers >= answers_min, "only {} answers went by", heard.answers);
        println!("{} answers and {} events went by", heard.answers, heard.events);
    }
}

async fn pass(line: Arc<Line>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    Ok(match exchange(&line, request).await {
        Ok(response) => response,
        Err(error) => {
            let body = Full::new(Bytes::from(error.to_string())).map_err(|never| match never {});
            let mut response = Response::new(body.boxed());
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    })
}

async fn exchange(line: &Line, request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let mut headers = head.headers;
    for hop in [header::HOST, header::CONNECTION, header::TRANSFER_ENCODING] {
        headers.remove(hop);
    }
    let body = body.collect().await?.to_bytes();
    let answer = line
        .http
        .request(head.method.clone(), format!("{}{path}", line.edge))
        .headers(headers)
        .timeout(crate::http::DEADLINE * 10)
        .body(body)
        .send()
        .await?;
    let status = answer.status();
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers() {
        if !matches!(*name, header::CONNECTION | header::TRANSFER_ENCODING) {
            response = response.header(name, value);
        }
    }
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let streams = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if streams {
        let heard = line.heard.clone();
        let mut rest = String::new();
        let bytes = answer.bytes_stream().inspect(move |chunk| {
            let Ok(chunk) = chunk else { return };
            rest.push_str(&String::from_utf8_lossy(chunk));
            while let Some((block, after)) = rest.split_once("\n\n") {
                let data: Vec<&str> =
                    block.lines().filter_map(|line| line.strip_prefix("data:")).collect();
                if !data.is_empty() {
                    let checked = OfrepSchema::shared().check_event(data.join("\n").trim());
                    let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
                    heard.events += 1;
                    heard.note("an event", checked);
                }
                rest = after.to_owned();
            }
        });
        return Ok(response.body(BodyExt::boxed(StreamBody::new(bytes.map_ok(Frame::data))))?);
    }
    let body = answer.bytes().await?;
    let (method, schema) = (head.method.as_str(), OfrepSchema::shared());
    let mut heard = line.heard.lock().unwrap_or_else(PoisonError::into_inner);
    heard.bytes += body.len() as u64;
    if path.starts_with("/ofrep/") {
        let checked = schema.check(&path, method, status.as_u16(), &body);
        heard.answers += 1;
        heard.note(&format!("{method} {path}"), checked);
    }
    Ok(response.body(Full::new(body).map_err(|never| match never {}).boxed())?)
}
