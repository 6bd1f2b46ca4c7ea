//! Change events over SSE (OFREP ADR-0008): that something changed, never what.
//!
//! An event is sent after this edge serves the change (`state.rs` announces after the swap), and
//! when a time boundary inside a snapshot passes. Boundaries pass everywhere at one instant, so clients
//! are told of them one after the other (`Turn`). A client that reads slowly skips to the newest:
//! its queue is one announcement long. Streams end after a while, so that clients spread over
//! edges again, and when their key is gone.
//!
//! A stream's URL does not say which version its client's answers are of: it would be another URL after
//! each change, and the web provider opens its stream again for another URL. So a stream that opens for
//! the first time begins with the last change if that is recent.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ORIGIN, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use rules::head::Version;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::auth::{self, StreamClaims};
use crate::feed::{jittered, random_fraction};
use crate::ofrep::{self, Failure};
use crate::serve::{Body, Shared};
use crate::state::{Announcement, Grant, Key, Name, Served};

/// Longer than that no client waits to be told of a time boundary, however many there are.
const TURN_MAX: Duration = Duration::from_secs(30);

pub async fn stream(shared: &Shared, request: Request<Incoming>) -> Response<Body> {
    let origin = request.headers().get(ORIGIN).cloned();
    let mut answer = match try_stream(shared, &request) {
        Ok(answer) => answer,
        Err(failure) => failure.answer(None),
    };
    if let Some(origin) = origin {
        ofrep::allow_origin(&shared.state.table(), origin, answer.headers_mut());
    }
    answer
}

fn try_stream(shared: &Shared, request: &Request<Incoming>) -> Result<Response<Body>, Failure> {
    if request.method() != Method::GET {
        return Err(Failure::other(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here"));
    }
    let grant = authorize(shared, request)?;
    let (listener, now) = Listener::new(shared, &grant)?;
    let first = first_words(request.headers(), &now, shared.stream_recalls);
    Ok(answer(Events { listener, first: Some(first) }.into_stream()))
}

/// One of the streams that this edge serves at once, for as long as it is held.
fn place(shared: &Shared) -> Result<OwnedSemaphorePermit, Failure> {
    shared.streams.clone().try_acquire_owned().map_err(|_| {
        let details = "this edge has all the event streams that it can serve";
        Failure::later(StatusCode::SERVICE_UNAVAILABLE, details, 5)
    })
}

/// Of every path that streams events.
pub fn answer(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let mut answer = Response::new(Body::stream(Box::pin(events)));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    headers.insert(VARY, ofrep::vary());
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

/// By the URL's token, since an EventSource cannot send headers, or else by a key.
fn authorize(shared: &Shared, request: &Request<Incoming>) -> Result<Grant, Failure> {
    let token = request
        .uri()
        .query()
        .and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("token=")));
    let Some(token) = token else {
        return ofrep::authorize(shared, request.headers());
    };
    let table = shared.state.table();
    if table.is_empty() {
        return Err(Failure::later(
            StatusCode::SERVICE_UNAVAILABLE,
            "this edge has no snapshot yet",
            1,
        ));
    }
    let now_s = crate::now_ms().div_euclid(1000);
    let claims = StreamClaims::verify(token, now_s, |namespace, environment| {
        table.environment(namespace, environment).map(|served| served.manifest.stream_secret)
    });
    // 401 closes an EventSource for good, and the provider then fetches again and gets a new URL.
    let refused = || {
        shared.metrics.denied.increment(1);
        Failure::other(
            StatusCode::UNAUTHORIZED,
            "the stream token has expired or is not of this edge's environments; evaluate again for a new one",
        )
    };
    let claims = claims.map_err(|_| refused())?;
    let served = table.environment(&claims.namespace, &claims.environment).ok_or_else(refused)?;
    let key = table.key_by_id(served, &claims.key_id, crate::now_ms()).ok_or_else(refused)?;
    if !auth::allows_origin(&key.record, request.headers()) {
        return Err(Failure::other(StatusCode::FORBIDDEN, auth::Denied::Origin.details()));
    }
    table.grant(&key.record.hash).cloned().ok_or_else(refused)
}

/// When a stream that begins now ends: after its life, or with its key.
fn ends(key: &Key, life: Duration) -> Instant {
    let left = key.left_ms(crate::now_ms()).map(Duration::from_millis);
    Instant::now() + left.map_or(life, |left| left.min(life))
}

/// As a change of its key has it: nobody stays for longer than they may.
fn ends_with(key: &Key, ends: Instant) -> Instant {
    self::ends(key, ends.saturating_duration_since(Instant::now()))
}

/// What a stream begins with. The id alone dispatches nothing, but a browser sends it back when it
/// reconnects; then the event that it missed in between is sent at once. Without one it may have missed
/// what came since its answer.
fn first_words(headers: &HeaderMap, now: &Announcement, recalls: Duration) -> Bytes {
    let id = now.id();
    let may_have_missed = match headers.get("last-event-id").map(HeaderValue::as_bytes) {
        Some(last) => last != id.as_bytes(),
        None => now.at.is_some_and(|at| at.elapsed() < recalls),
    };
    if may_have_missed {
        let mut text = b"retry: 5000\n".to_vec();
        text.extend_from_slice(&event(now));
        Bytes::from(text)
    } else {
        Bytes::from(format!("retry: 5000\nid: {id}\n\n"))
    }
}

fn event(now: &Announcement) -> Bytes {
    let id = now.id();
    let modified = now.last_modified_s;
    Bytes::from(format!(
        "id: {id}\nevent: message\ndata: {{\"type\":\"refetchEvaluation\",\"etag\":\"{id}\",\"lastModified\":{modified}}}\n\n"
    ))
}

fn keep_alive(shared: &Shared) -> Interval {
    let every = shared.stream_keep_alive;
    let mut interval = tokio::time::interval_at(Instant::now() + every, every);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

/// When a stream's client is told of what was announced: of a snapshot at once, of a time boundary when
/// its turn has come.
struct Turn {
    told: Option<Version>,
    due: Option<Instant>,
}

impl Turn {
    fn after(now: &Announcement) -> Turn {
        Turn { told: now.version, due: None }
    }

    /// Whether that is now; otherwise `comes` says when.
    fn is_now(&mut self, now: &Announcement, shared: &Shared) -> bool {
        if self.told != now.version {
            *self = Turn::after(now);
            return true;
        }
        // Who waits for an earlier boundary is told of this one with it.
        self.due
            .get_or_insert_with(|| Instant::now() + Turn::all(shared).mul_f64(random_fraction()));
        false
    }

    /// How long it takes until all streams that are open have been told.
    fn all(shared: &Shared) -> Duration {
        let open = shared.streams_max.saturating_sub(shared.streams.available_permits());
        let seconds = open as f64 / f64::from(shared.boundary_tells_per_s.get());
        Duration::from_secs_f64(seconds.min(TURN_MAX.as_secs_f64()))
    }

    /// Never, if nothing waits.
    async fn comes(&mut self) {
        match self.due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
        self.due = None;
    }
}

/// What every stream waits for, whatever it then says: news of its environment in its turn, silence, and
/// its end.
pub struct Listener {
    shared: Shared,
    name: Name,
    key_id: String,
    announcements: watch::Receiver<Announcement>,
    turn: Turn,
    keep_alive: Interval,
    ends: Instant,
    _counted: Counted,
    _place: OwnedSemaphorePermit,
}

pub enum Heard {
    Change(Arc<Served>, Announcement),
    /// For so long that a proxy might cut the stream.
    Silence,
}

/// A comment: it dispatches nothing.
pub const SILENCE: Bytes = Bytes::from_static(b":\n\n");

impl Listener {
    /// With what was announced last. Registered before that is read, so that no change falls between the two.
    pub fn new(shared: &Shared, grant: &Grant) -> Result<(Listener, Announcement), Failure> {
        let place = place(shared)?;
        let mut announcements = grant.served.tenant.announcements.subscribe();
        let now = announcements.borrow_and_update().clone();
        let listener = Listener {
            shared: shared.clone(),
            name: grant.served.tenant.name.clone(),
            key_id: grant.key.record.id.clone(),
            announcements,
            turn: Turn::after(&now),
            keep_alive: keep_alive(shared),
            ends: ends(&grant.key, jittered(shared.stream_life)),
            _counted: Counted::new(shared),
            _place: place,
        };
        Ok((listener, now))
    }

    /// None where the stream ends.
    pub async fn next(&mut self) -> Option<Heard> {
        loop {
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return None,
                changed = self.announcements.changed() => {
                    changed.ok()?;
                    let now = self.announcements.borrow_and_update().clone();
                    let served = self.served()?;
                    if self.turn.is_now(&now, &self.shared) {
                        return Some(Heard::Change(served, now));
                    }
                }
                () = self.turn.comes() => {
                    let now = self.announcements.borrow().clone();
                    return Some(Heard::Change(self.served()?, now));
                }
                () = tokio::time::sleep_until(self.ends) => return None,
                _ = self.keep_alive.tick() => return Some(Heard::Silence),
            }
        }
    }

    /// None for a key that opens nothing any more.
    fn served(&mut self) -> Option<Arc<Served>> {
        let table = self.shared.state.table();
        let served = table.environment(&self.name.0, &self.name.1)?;
        let key = table.key_by_id(served, &self.key_id, crate::now_ms())?;
        self.ends = ends_with(&key, self.ends);
        Some(served.clone())
    }
}

struct Events {
    listener: Listener,
    first: Option<Bytes>,
}

impl Events {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        futures_util::stream::unfold(self, |mut events| async move {
            let bytes = events.next().await?;
            Some((bytes, events))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        Some(match self.listener.next().await? {
            Heard::Change(served, now) => {
                served.tenant.metrics.events.increment(1);
                event(&now)
            }
            Heard::Silence => SILENCE,
        })
    }
}

/// Counts a stream for as long as it lives, however it ends.
struct Counted(metrics::Gauge);

impl Counted {
    fn new(shared: &Shared) -> Counted {
        shared.metrics.streams.increment(1.0);
        Counted(shared.metrics.streams.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// Announces time boundaries as they pass.
pub async fn watch_boundaries(shared: Shared) {
    /// A wall clock may be set, and a sleep does not notice.
    const LOOK_AGAIN: Duration = Duration::from_secs(30);
    let mut swaps = shared.state.swaps();
    loop {
        swaps.borrow_and_update();
        let now_ms = crate::now_ms();
        let wait = match shared.state.announce_boundaries(now_ms) {
            // Boundaries are inclusive: at that very millisecond the answers are the new ones.
            Some(at_ms) => Duration::from_millis(at_ms.saturating_sub(now_ms).max(1) as u64),
            None => LOOK_AGAIN,
        };
        tokio::select! {
            () = shared.stopping.cancelled() => return,
            () = tokio::time::sleep(wait.min(LOOK_AGAIN)) => {}
            changed = swaps.changed() => if changed.is_err() { return },
        }
    }
}
