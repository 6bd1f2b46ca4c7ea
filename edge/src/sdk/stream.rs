//! Live updates for browsers' SDKs, over SSE and with the key in a header (a script reads it with
//! `fetch`), so that no token stands in a URL.
//!
//! The first event says which snapshot the client should have; later ones come when that changes, as
//! a delta if it is small, and when flags that the edge evaluates for browsers may answer something
//! else. Where only flags changed that the key may not see, there is no event, and the ids of events
//! tell nothing of them: they hold the version of the client snapshot. A stream whose client reads
//! slowly skips to the newest state, and its next delta is made on what it was told last.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use http::{Method, Request, Response};
use hyper::body::Incoming;
use rules::blob::Digest;
use rules::head::SignedHead;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval};

use super::{admit, no_client, only};
use crate::client::Client;
use crate::events::{self, Counted, Turn, keep_alive};
use crate::feed::jittered;
use crate::ofrep::Failure;
use crate::serve::{Body, Shared};
use crate::state::{Announcement, Name, Served, Tenant};

const RETRY_MS: u32 = 5_000;

#[derive(Serialize)]
struct StateEvent {
    sequence: u64,
    snapshot: Digest,
    /// Whether there are flags to be asked for at `/sdk/v1/evaluate`.
    edge: bool,
}

#[derive(Serialize)]
struct DeltaEvent<'a> {
    sequence: u64,
    base: Digest,
    snapshot: Digest,
    signed: &'a SignedHead,
    patch: &'a str,
    edge: bool,
}

pub async fn open(shared: &Shared, request: &Request<Incoming>) -> Result<Response<Body>, Failure> {
    only(&Method::GET, request)?;
    let grant = admit(shared, request.headers())?;
    let place = events::place(shared)?;
    let tenant = grant.served.tenant.clone();
    // Registered before it is read, so that no change falls between the two.
    let mut announcements = tenant.announcements.subscribe();
    let now = announcements.borrow_and_update().clone();
    let (namespace, environment) = &tenant.name;
    let served = shared.state.table().environment(namespace, environment).cloned();
    let client = served.and_then(|served| served.client.load_full()).ok_or_else(no_client)?;
    let mut news = News::default();
    let known = request.headers().get("last-event-id").and_then(|id| id.to_str().ok());
    let known = known.and_then(Announcement::version_of);
    let known = known.and_then(|version| tenant.ring.digest_at(version));
    match known {
        Some(base) if base != client.head.digest => news.resume(&tenant, base, &client, &now).await,
        _ => news.state(&client, client.head.digest, &now),
    }
    let changes = Changes {
        shared: shared.clone(),
        name: tenant.name.clone(),
        key_id: grant.key.record.id.clone(),
        announcements,
        news,
        turn: Turn::after(&now),
        keep_alive: keep_alive(shared),
        ends: events::ends(&grant.key, jittered(shared.stream_life)),
        _counted: Counted::new(shared),
        _place: place,
    };
    Ok(events::answer(changes.into_stream()))
}

/// What one client was told, and what it is to be told next.
#[derive(Default)]
struct News {
    sequence: u64,
    told: Option<Digest>,
    /// Two at most: what a client has, and the way from there.
    waiting: VecDeque<Bytes>,
}

impl News {
    /// A client that was away has `base`: it is told so, and then the difference.
    async fn resume(
        &mut self,
        tenant: &Tenant,
        base: Digest,
        client: &Arc<Client>,
        now: &Announcement,
    ) {
        match tenant.ring.patch(base, client).await {
            Some(patch) => {
                self.state(client, base, now);
                self.delta(base, client, &patch, now);
            }
            None => self.state(client, client.head.digest, now),
        }
    }

    /// After an announcement.
    async fn follow(&mut self, tenant: &Tenant, client: &Arc<Client>, now: &Announcement) {
        let digest = client.head.digest;
        match self.told {
            Some(told) if told == digest && !client.manifest.edge => {}
            Some(told) if told != digest => match tenant.ring.patch(told, client).await {
                Some(patch) => self.delta(told, client, &patch, now),
                None => self.state(client, digest, now),
            },
            _ => self.state(client, digest, now),
        }
    }

    fn state(&mut self, client: &Client, snapshot: Digest, now: &Announcement) {
        let sequence = self.next(snapshot);
        let data = StateEvent { sequence, snapshot, edge: client.manifest.edge };
        self.push("state", client, now, &data);
    }

    fn delta(&mut self, base: Digest, client: &Client, patch: &str, now: &Announcement) {
        let snapshot = client.head.digest;
        let (sequence, edge) = (self.next(snapshot), client.manifest.edge);
        let data = DeltaEvent { sequence, base, snapshot, signed: &client.signed, patch, edge };
        self.push("delta", client, now, &data);
    }

    fn next(&mut self, told: Digest) -> u64 {
        self.told = Some(told);
        self.sequence += 1;
        self.sequence
    }

    fn push(&mut self, event: &str, client: &Client, now: &Announcement, data: &impl Serialize) {
        let version = client.head.version;
        // Without flags of the edge, its boundaries are those of flags that browsers may not see or
        // know the boundaries of.
        let boundary = if client.manifest.edge { now.boundary_ms } else { 0 };
        let retry = match self.sequence {
            1 => format!("retry: {RETRY_MS}\n"),
            _ => String::new(),
        };
        // Such data cannot fail to be written.
        let data = serde_json::to_string(data).unwrap_or_default();
        self.waiting.push_back(Bytes::from(format!(
            "{retry}id: {}.{}.{boundary}\nevent: {event}\ndata: {data}\n\n",
            version.generation, version.revision
        )));
    }
}

struct Changes {
    shared: Shared,
    name: Name,
    key_id: String,
    announcements: watch::Receiver<Announcement>,
    news: News,
    turn: Turn,
    keep_alive: Interval,
    ends: Instant,
    _counted: Counted,
    _place: OwnedSemaphorePermit,
}

impl Changes {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        futures_util::stream::unfold(self, |mut changes| async move {
            let bytes = changes.next().await?;
            Some((bytes, changes))
        })
    }

    /// None for a key that opens nothing any more.
    fn served(&mut self) -> Option<Arc<Served>> {
        let table = self.shared.state.table();
        let served = table.environment(&self.name.0, &self.name.1)?;
        let key = table.key_by_id(served, &self.key_id, crate::now_ms())?;
        self.ends = events::ends_with(&key, self.ends);
        Some(served.clone())
    }

    async fn follow(&mut self, served: &Served, now: &Announcement) -> Option<()> {
        let client = served.client.load_full()?;
        self.news.follow(&served.tenant, &client, now).await;
        if !self.news.waiting.is_empty() {
            served.tenant.metrics.events.increment(1);
        }
        Some(())
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.news.waiting.pop_front() {
                return Some(bytes);
            }
            tokio::select! {
                biased;
                () = self.shared.stopping.cancelled() => return None,
                changed = self.announcements.changed() => {
                    changed.ok()?;
                    let now = self.announcements.borrow_and_update().clone();
                    let served = self.served()?;
                    if self.turn.is_now(&now, &self.shared) {
                        self.follow(&served, &now).await?;
                    }
                }
                () = self.turn.comes() => {
                    let now = self.announcements.borrow().clone();
                    let served = self.served()?;
                    self.follow(&served, &now).await?;
                }
                () = tokio::time::sleep_until(self.ends) => return None,
                _ = self.keep_alive.tick() => return Some(Bytes::from_static(b":\n\n")),
            }
        }
    }
}
