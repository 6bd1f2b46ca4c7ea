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

use super::{admit, no_client, only};
use crate::client::Client;
use crate::events::{self, Heard, Listener, SILENCE};
use crate::ofrep::Failure;
use crate::serve::{Body, Shared};
use crate::state::{Announcement, Served, Tenant};

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
    let (listener, now) = Listener::new(shared, &grant)?;
    let tenant = grant.served.tenant.clone();
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
    Ok(events::answer(Changes { listener, news }.into_stream()))
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
    listener: Listener,
    news: News,
}

impl Changes {
    fn into_stream(self) -> impl Stream<Item = Bytes> + Send {
        futures_util::stream::unfold(self, |mut changes| async move {
            let bytes = changes.next().await?;
            Some((bytes, changes))
        })
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
            match self.listener.next().await? {
                Heard::Change(served, now) => self.follow(&served, &now).await?,
                Heard::Silence => return Some(SILENCE),
            }
        }
    }
}
