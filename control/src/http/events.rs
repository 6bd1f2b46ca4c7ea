//! `GET /api/v1/events`: what is done in some namespaces, as it is done, for consoles and scripts.
//!
//! A stream is a cursor over audit chains that lives as long as its connection. It is read from the
//! database each time that something was committed, so nothing is queued for a reader that is slow,
//! and who may read what is asked each time too: whoever may no longer ends up without a stream.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{Handled, Shared, boxed};
use super::problem::Stop;
use crate::audit;
use crate::authorize::callers::{self, Asking};
use crate::authorize::{Permission, Scope};
use crate::events;
use crate::refusal::Refusal;
use crate::relay::jittered;

const NAMESPACES_MAX: usize = 20;
/// Of all callers. Each holds a connection, and a read for every commit.
pub const STREAMS_MAX: usize = 500;
/// Proxies cut what is silent for 30 s or 60 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Looked at this often without being woken, also for who may still read (± 50 %).
const TICK: Duration = Duration::from_secs(2);
/// ± 50 %; then a client connects again, and controls share them anew.
const LIFE: Duration = Duration::from_secs(10 * 60);
/// Rows that a client is told of after it was away; further back it is told to read anew.
const MISSED_MAX: i64 = 1000;
const CHUNK: i64 = 100;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(stream_events))
}

struct Following {
    shared: Shared,
    bearer: Option<String>,
    /// Namespace's key, its id, and the row that was told last.
    chains: BTreeMap<String, (String, i64)>,
    news: watch::Receiver<u64>,
    waiting: VecDeque<Bytes>,
    spoke: Instant,
    ends: Instant,
    over: bool,
    _place: OwnedSemaphorePermit,
}

/// What is done from now on, or from behind `Last-Event-ID` on, in each `namespace` that is named, as
/// server-sent events: `ready`, then `change` for each row of the audit, `reset` where too much was
/// missed.
#[utoipa::path(get, path = "/api/v1/events", tag = "events",
    params(("namespace" = Vec<String>, Query, description = "once for each namespace, 1 to 20"),
        ("Last-Event-ID" = Option<String>, Header, description = "the id of the last event that came")),
    responses((status = 200, description = "until it ends", content_type = "text/event-stream", body = String)))]
#[boxed]
async fn stream_events(
    State(shared): State<Shared>,
    scope: Scope,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Handled {
    let mut named = Vec::new();
    for (name, value) in url::form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "namespace" {
            let detail = format!("there is no parameter {name:?} here");
            return Err(Stop::new(StatusCode::BAD_REQUEST, "query", detail));
        }
        named.push(value.into_owned());
    }
    if !(1..=NAMESPACES_MAX).contains(&named.len()) {
        let detail = format!("name 1 to {NAMESPACES_MAX} namespaces");
        return Err(Stop::new(StatusCode::BAD_REQUEST, "query", detail));
    }
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(positions);
    let news = shared.doorbell.news();
    let mut chains = BTreeMap::new();
    let mut read = shared.store.read().await?;
    for key in named {
        let namespace = scope.namespace(&mut read, &key).await?;
        namespace.demand(Permission::Read)?;
        let (end, _) = audit::end(&mut read, namespace.id()).await?;
        let told = last.as_ref().and_then(|last| last.get(&key)).copied().unwrap_or(end);
        // One of the future is of another database, or made up.
        chains.insert(key, (namespace.id().to_owned(), told.clamp(0, end)));
    }
    drop(read);
    let Ok(place) = shared.streams.clone().try_acquire_owned() else {
        let detail = "control has all the event streams that it can serve";
        let mut response =
            Stop::new(StatusCode::SERVICE_UNAVAILABLE, "busy", detail).into_response();
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(5));
        return Ok(response);
    };
    let mut following = Following {
        bearer: super::bearer_of(&headers),
        shared,
        chains,
        news,
        waiting: VecDeque::new(),
        spoke: Instant::now(),
        ends: Instant::now() + jittered(LIFE),
        over: false,
        _place: place,
    };
    let names: BTreeMap<&String, i64> =
        following.chains.iter().map(|(key, (_, at))| (key, *at)).collect();
    let ready = json!({ "namespaces": names });
    let ready = following.event("ready", &ready.to_string());
    following.waiting.push_back(Bytes::from_static(b"retry: 3000\n"));
    following.waiting.push_back(ready);
    let events = stream::unfold(following, |mut following| async move {
        let next = following.next().await?;
        Some((Ok::<_, Infallible>(next), following))
    });
    let mut response = Response::new(Body::from_stream(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store, no-transform"));
    // nginx would hold events back.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// `demo:12,shop:7`. Keys of namespaces have neither mark.
fn positions(id: &str) -> BTreeMap<String, i64> {
    let one = |part: &str| {
        let (key, at) = part.rsplit_once(':')?;
        Some((key.to_owned(), at.parse().ok()?))
    };
    id.split(',').take(NAMESPACES_MAX).filter_map(one).collect()
}

impl Following {
    /// With the id that leads back to here.
    fn event(&self, kind: &str, data: &str) -> Bytes {
        let at: Vec<String> =
            self.chains.iter().map(|(key, (_, at))| format!("{key}:{at}")).collect();
        format!("id: {}\nevent: {kind}\ndata: {data}\n\n", at.join(",")).into()
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.spoke = Instant::now();
                return Some(event);
            }
            if self.over || Instant::now() >= self.ends {
                return None;
            }
            self.news.borrow_and_update();
            match self.look().await {
                Ok(()) if !self.waiting.is_empty() => continue,
                Ok(()) => {}
                // It is not theirs any more, or the database is away: either way they ask anew.
                Err(_) => return None,
            }
            let silent = self.spoke + KEEP_ALIVE;
            let tick = Instant::now() + jittered(TICK);
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return None,
                _ = self.news.changed() => {}
                () = tokio::time::sleep_until(silent.min(self.ends).min(tick)) => {
                    if Instant::now() >= silent {
                        self.waiting.push_back(Bytes::from_static(b": still here\n\n"));
                    }
                }
            }
        }
    }

    /// What came since, if they may still read it.
    async fn look(&mut self) -> Result<(), Stop> {
        let shared = self.shared.clone();
        let mut read = shared.store.read().await?;
        let asking = Asking { bearer: self.bearer.as_deref(), ..Asking::default() };
        let scope = callers::caller(&mut read, &shared.authority, asking).await?;
        let keys: Vec<String> = self.chains.keys().cloned().collect();
        for key in keys {
            let namespace = scope.namespace(&mut read, &key).await?;
            namespace.demand(Permission::Read)?;
            let (id, told) = self.chains.get(&key).cloned().unwrap_or_default();
            if namespace.id() != id {
                // Another one under the same key.
                return Err(Refusal::NotFound("namespace").into());
            }
            let (end, _) = audit::end(&mut read, &id).await?;
            if end - told > MISSED_MAX {
                self.chains.insert(key.clone(), (id, end));
                let data = json!({ "namespace": key, "sequence": end });
                let reset = self.event("reset", &data.to_string());
                self.waiting.push_back(reset);
                continue;
            }
            for row in audit::after(&mut read, &id, told, CHUNK).await? {
                let event = events::of_row(&key, &row);
                let data = serde_json::to_string(&event).unwrap_or_default();
                self.chains.insert(key.clone(), (id.clone(), row.sequence));
                let change = self.event("change", &data);
                self.waiting.push_back(change);
            }
        }
        Ok(())
    }
}

/// How many streams there may be.
pub fn places() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(STREAMS_MAX))
}
