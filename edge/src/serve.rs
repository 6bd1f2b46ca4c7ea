//! The way in: accept loop, connections and their time limits, routes.
//!
//! The loop is our own, because `axum::serve` gives hyper no timer, which leaves its timeouts
//! inert. hyper's own are of little use too: its header timeout also runs between requests (five
//! seconds would cut every polite client), it arms a timer for each request, and its protocol
//! detection has none. So the socket itself keeps the limits (`Guarded`): a connection that has
//! sent nothing yet, or a part of a request's headers, is closed after seconds; an idle one that
//! has behaved, after a minute or two; one that does not read its answers, after half a minute.
//! A request that comes in one piece costs no timer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_MAX_AGE,
    CACHE_CONTROL, CONNECTION, CONTENT_TYPE, ORIGIN, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::addresses::Addresses;
use crate::config::Timeouts;
use crate::metrics::Metrics;
use crate::state::State;
use crate::sync::Progress;
use crate::{events, ofrep, sdk};

const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const HEADERS_MAX: usize = 64;
/// Of a connection's read buffer, which also bounds its headers.
const BUFFER_BYTES: usize = 32 * 1024;
const H2_STREAMS_MAX: u32 = 100;
const H2_PING: Duration = Duration::from_secs(20);
/// Requests that wait for a version that another edge announced.
const CATCHING_UP_MAX: usize = 1_000;
/// After a failed accept (no file descriptors left) trying at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What every request can reach.
pub type Shared = Arc<Serving>;

pub struct Serving {
    pub state: Arc<State>,
    pub metrics: Metrics,
    pub progress: Arc<Mutex<Progress>>,
    pub timeouts: Timeouts,
    pub streams: Arc<Semaphore>,
    pub streams_max: usize,
    pub stream_life: Duration,
    pub stream_keep_alive: Duration,
    pub stream_recalls: Duration,
    pub boundary_tells_per_s: NonZeroU32,
    pub catch_up: Duration,
    pub catching_up: Semaphore,
    /// Set when the edge is told to stop: streams end, `/readyz` says no.
    pub stopping: CancellationToken,
}

impl Serving {
    pub fn new(
        config: &crate::config::Config,
        state: Arc<State>,
        metrics: Metrics,
        progress: Arc<Mutex<Progress>>,
    ) -> Shared {
        Arc::new(Serving {
            state,
            metrics,
            progress,
            timeouts: config.timeouts,
            streams: Arc::new(Semaphore::new(config.streams_max)),
            streams_max: config.streams_max,
            stream_life: config.stream_life,
            stream_keep_alive: config.stream_keep_alive,
            stream_recalls: config.stream_recalls,
            boundary_tells_per_s: config.boundary_tells_per_s,
            catch_up: config.catch_up,
            catching_up: Semaphore::new(CATCHING_UP_MAX),
            stopping: CancellationToken::new(),
        })
    }

    pub fn is_settled(&self) -> bool {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).settled
    }
}

async fn answer(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    // The path outlives the request, which the handlers take apart.
    let Some(target) = request.uri().path_and_query().cloned() else {
        return problem(StatusCode::BAD_REQUEST, "the request has no path");
    };
    let path = target.path();
    if request.method() == Method::OPTIONS && is_for_pages(path) {
        return preflight(shared, &request);
    }
    if path.starts_with("/sdk/") {
        return sdk::answer(shared, path, request).await;
    }
    if let Some(target) = ofrep::target(path) {
        return ofrep::evaluate(shared, target, request).await;
    }
    let is_read = request.method() == Method::GET || request.method() == Method::HEAD;
    match path {
        "/ofrep/v1/events" => events::stream(shared, request).await,
        "/healthz" | "/readyz" | "/metrics" if !is_read => {
            problem(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here")
        }
        "/healthz" => text("text/plain; charset=utf-8", "ok\n".into()),
        "/readyz" => ready_report(shared),
        "/metrics" => {
            let table = shared.state.table();
            let report = shared.metrics.render(table.environments(), crate::now_ms());
            text("text/plain; version=0.0.4; charset=utf-8", report.into())
        }
        _ if path.starts_with("/ofrep/") => {
            ofrep::Failure::other(StatusCode::NOT_FOUND, "there is no such path").answer(None)
        }
        _ => problem(StatusCode::NOT_FOUND, "there is no such path"),
    }
}

fn is_for_pages(path: &str) -> bool {
    path.starts_with("/ofrep/") || path.starts_with("/sdk/")
}

/// What every answer says to browsers. Whose pages may read an answer is said by CORS, key by key; this is
/// for what needs no leave: nothing here is a document, and no address that holds a stream's token is passed
/// on.
fn dress(headers: &mut HeaderMap, for_pages: bool) {
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // Pages of other origins are who `/ofrep` and `/sdk` are for, also those that take in nothing without
    // this header (COEP), and beacons, whose answers browsers would complain about.
    let of = if for_pages { "cross-origin" } else { "same-origin" };
    headers.insert(RESOURCE_POLICY, HeaderValue::from_static(of));
}

/// A preflight names no key, so it asks whether any key allows the origin; the request that
/// follows is checked against its own.
fn preflight(shared: &Shared, request: &Request<Incoming>) -> Response<Body> {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(VARY, ofrep::vary());
    if let Some(origin) = request.headers().get(ORIGIN)
        && shared.state.table().knows_origin(origin)
    {
        let allowed = "content-type, authorization, x-api-key, if-none-match, last-event-id";
        ofrep::allow_origin(&shared.state.table(), origin.clone(), headers);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(allowed));
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
    answer
}

/// A probe's answer stays short, however many there are.
const ABSENT_NAMED_MAX: usize = 20;

/// Open to whoever reaches the edge, so it names no environment but those whose policies are absent.
fn ready_report(shared: &Shared) -> Response<Body> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Report {
        status: &'static str,
        environments: usize,
        /// Since the oldest and the newest of the served snapshots were issued.
        #[serde(skip_serializing_if = "Option::is_none")]
        age_seconds: Option<BTreeMap<&'static str, i64>>,
        feed: Contact,
        /// Of environments that a restart would lose or set back.
        unsaved: usize,
        /// Of policies whose rules serve their fallback, because they are not compiled yet or cannot
        /// be.
        absent_policies: usize,
        /// The first of them, as `namespace/environment/policy`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        absent: Vec<String>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Contact {
        connected: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        last_contact_seconds: Option<i64>,
    }
    let now_ms = crate::now_ms();
    let table = shared.state.table();
    let seconds = |since_ms: i64| now_ms.saturating_sub(since_ms).max(0) / 1000;
    let ages = || table.environments().map(|served| seconds(served.issued_at_ms));
    let progress = shared.progress.lock().unwrap_or_else(PoisonError::into_inner);
    let status = if shared.stopping.is_cancelled() {
        "stopping"
    } else if table.is_empty() {
        "no snapshot"
    } else {
        "ready"
    };
    // Looked at once: they are being compiled meanwhile.
    let (mut absent_policies, mut absent) = (0_usize, Vec::new());
    for served in table.environments() {
        let (namespace, environment) = &served.tenant.name;
        for slot in served.policies.iter().filter(|slot| slot.is_absent()) {
            absent_policies = absent_policies.saturating_add(1);
            if absent.len() < ABSENT_NAMED_MAX {
                absent.push(format!("{namespace}/{environment}/{}", slot.name));
            }
        }
    }
    let report = Report {
        status,
        environments: table.environments().count(),
        age_seconds: ages()
            .max()
            .zip(ages().min())
            .map(|(oldest, newest)| BTreeMap::from([("oldest", oldest), ("newest", newest)])),
        feed: Contact {
            connected: progress.feed_error.is_none() && progress.feed_contact_ms.is_some(),
            last_contact_seconds: progress.feed_contact_ms.map(seconds),
        },
        unsaved: progress.unsaved.len(),
        absent_policies,
        absent,
    };
    let body = serde_json::to_vec(&report).unwrap_or_default();
    let mut answer = text("application/json", body.into());
    if status != "ready" {
        *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    answer
}

fn text(kind: &'static str, body: Bytes) -> Response<Body> {
    let mut answer = Response::new(Body::full(body));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// RFC 9457, for whatever is not OFREP.
fn problem(status: StatusCode, detail: &'static str) -> Response<Body> {
    #[derive(Serialize)]
    struct Problem {
        title: &'static str,
        status: u16,
        detail: &'static str,
    }
    let title = status.canonical_reason().unwrap_or("error");
    let body = serde_json::to_vec(&Problem { title, status: status.as_u16(), detail });
    let mut answer = text("application/problem+json", body.unwrap_or_default().into());
    *answer.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(http::header::ALLOW, HeaderValue::from_static("GET, HEAD"));
    }
    answer
}

/// An answer's body: bytes that are there, or a stream of events.
pub struct Body(Content);

enum Content {
    Full(Option<Bytes>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
}

impl Body {
    pub fn empty() -> Body {
        Body(Content::Full(None))
    }

    pub fn full(bytes: Bytes) -> Body {
        Body(Content::Full((!bytes.is_empty()).then_some(bytes)))
    }

    pub fn stream(stream: Pin<Box<dyn Stream<Item = Bytes> + Send>>) -> Body {
        Body(Content::Stream(stream))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut self.0 {
            Content::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Content::Stream(stream) => {
                let bytes = ready!(stream.as_mut().poll_next(cx));
                Poll::Ready(bytes.map(|bytes| Ok(Frame::data(bytes))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Content::Full(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Content::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Stream(_) => SizeHint::default(),
        }
    }
}

/// Accepts until told to stop, then drains: no new connection, no new request on an old one,
/// streams end, requests get their answers, and after `drain` the rest is cut.
pub async fn listen(
    shared: Shared,
    listener: TcpListener,
    connections_max: usize,
    per_address: Option<Addresses>,
    drain: Duration,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections_max));
    // Aborting them is how they are cut; a token that each of them polled would be one lock that
    // all requests of all connections take.
    let mut connections = JoinSet::new();
    let builder = Arc::new(builder());
    loop {
        let accepted = tokio::select! {
            () = shared.stopping.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            shared.metrics.connections_refused.increment(1);
            continue;
        };
        let address = per_address.as_ref().map(|addresses| addresses.enter(peer.ip()));
        if matches!(address, Some(None)) {
            shared.metrics.connections_refused.increment(1);
            continue;
        }
        let (shared, builder) = (shared.clone(), builder.clone());
        let watcher = graceful.watcher();
        connections.spawn(async move {
            let _counted = Counted::new(&shared);
            if let Err(error) = connection(&shared, &builder, stream, watcher).await {
                tracing::trace!(%peer, %error, "a connection ended badly");
            }
            drop((place, address));
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not drain in time and are cut");
    }
    connections.shutdown().await;
}

/// Counts a connection for as long as it lives, however it ends.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(shared: &Shared) -> Counted {
        shared.metrics.connections.increment(1.0);
        Counted(shared.metrics.connections.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // See the head of this file.
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES as u32)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}

async fn connection(
    shared: &Shared,
    builder: &auto::Builder<TokioExecutor>,
    stream: TcpStream,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // Answers are written whole; waiting for more to send would only delay them.
    stream.set_nodelay(true)?;
    let phase = Arc::new(Phase::default());
    let io = Guarded::new(stream, phase.clone(), shared.timeouts);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, phase) = (shared.clone(), phase.clone());
        async move {
            phase.begin();
            let multiplexed = request.version() == Version::HTTP_2;
            let for_pages = is_for_pages(request.uri().path());
            let mut answer = answer(&shared, request).await;
            dress(answer.headers_mut(), for_pages);
            match answer.body().0 {
                _ if multiplexed => {}
                Content::Full(_) => phase.set(Phase::IDLE),
                // Busy until its end, and then not idle without a limit but closed.
                Content::Stream(_) => {
                    let close = HeaderValue::from_static("close");
                    answer.headers_mut().insert(CONNECTION, close);
                }
            }
            Ok::<_, Infallible>(answer)
        }
    });
    watcher.watch(builder.serve_connection(io, service)).await
}

/// Where a connection is, as far as its time limits go.
#[derive(Debug, Default)]
struct Phase {
    now: AtomicU8,
    requests: AtomicU32,
}

impl Phase {
    /// Nothing or only a part of a request's headers has come.
    const HEADERS: u8 = 0;
    /// A request is being answered; on HTTP/2, for good after the first.
    const BUSY: u8 = 1;
    /// Between requests.
    const IDLE: u8 = 2;

    fn begin(&self) {
        self.now.store(Phase::BUSY, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn set(&self, phase: u8) {
        self.now.store(phase, Ordering::Relaxed);
    }

    fn get(&self) -> u8 {
        self.now.load(Ordering::Relaxed)
    }

    fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A socket that gives up on peers that hold it without using it.
struct Guarded {
    io: TokioIo<TcpStream>,
    phase: Arc<Phase>,
    timeouts: Timeouts,
    /// Armed while something is awaited that belongs to a request's headers.
    headers_due: Option<Pin<Box<Sleep>>>,
    write_due: Option<Pin<Box<Sleep>>>,
    /// Rings once in a while, and then asks whether any request came since: cheaper than a timer
    /// for each pause between two requests.
    idle_due: Option<Pin<Box<Sleep>>>,
    requests_then: u32,
}

impl Guarded {
    fn new(stream: TcpStream, phase: Arc<Phase>, timeouts: Timeouts) -> Guarded {
        let io = TokioIo::new(stream);
        Guarded {
            io,
            phase,
            timeouts,
            headers_due: None,
            write_due: None,
            idle_due: None,
            requests_then: 0,
        }
    }

    fn idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let within = self.timeouts.idle;
        let due = self.idle_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        while due.as_mut().poll(cx).is_ready() {
            let requests = self.phase.requests();
            if requests == self.requests_then {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.requests_then = requests;
            due.as_mut().reset(tokio::time::Instant::now() + within);
        }
        Poll::Pending
    }

    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_due = None;
            return result;
        }
        let within = self.timeouts.write;
        let due = self.write_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        match due.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_read(cx, buffer);
        if result.is_ready() {
            if self.phase.get() == Phase::IDLE {
                self.phase.set(Phase::HEADERS);
                // Of the request before: hyper looks ahead on the socket before it hands one on.
                self.headers_due = None;
            }
            return result;
        }
        match self.phase.get() {
            Phase::HEADERS => {}
            phase => {
                self.headers_due = None;
                return if phase == Phase::IDLE { self.idle(cx) } else { Poll::Pending };
            }
        }
        let within = self.timeouts.headers;
        let due = self.headers_due.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        match due.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Write for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.io).poll_write_vectored(cx, parts);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(cx, result)
    }
}
