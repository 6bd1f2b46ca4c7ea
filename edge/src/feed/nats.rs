//! The feed with a broker beside control: news and blobs come over NATS, and whatever does not,
//! over HTTP. Names are in `rules::bus`.
//!
//! The broker makes an edge fast and spares control; nothing depends on it. Heads are asked for over
//! HTTP at every anti-entropy interval, at the latest after two, however much the broker has said in
//! between; while it is away, control is asked to say when there is news; a blob that the broker does
//! not have, or has wrong, comes from control. The other way round too: without control, the broker serves.
//!
//! The watch is a plain subscription to what is written to the buckets of heads, whose messages hold
//! the heads. It needs no consumer on the server: none that dies with a server's memory, and no right
//! to make any, since the filter of a consumer stands where permissions do not look. What it misses
//! is read with the next connect or asked for over HTTP. A head that it brings and that never was
//! stored is still one that control signed, so it is as good.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::{ContextBuilder, RequestErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, Stream};
use async_nats::{Client, ConnectOptions, Event, Message, ServerAddr};
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use futures_util::stream::SelectAll;
use futures_util::{StreamExt as _, TryStreamExt as _};
use rules::blob::Digest;
use rules::bus::{self, Broker};
use rules::head::{Heads, Receipts, SignedHead, Version};
use rules::sample::{SampleOrders, SampleReport};
use rules::usage::UsageReport;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Feed, FeedError, random_fraction};

/// Of one question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// Of a difference from control; after that the broker is asked for the whole.
const DELTA_TIMEOUT: Duration = Duration::from_secs(2);
/// Of a blob; control is asked after it, within the time that an edge gives a blob.
const BLOB_TIMEOUT: Duration = Duration::from_secs(20);
/// Of control, before the broker is asked instead.
const POLL_TIMEOUT: Duration = Duration::from_secs(8);
/// Of all heads. It and `POLL_TIMEOUT` fit into the time that an edge gives its heads.
const READ_TIMEOUT: Duration = Duration::from_secs(8);
/// A broker that says nothing for two of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Heads or parts that are asked for at once.
const AT_ONCE: usize = 8;
const NAMESPACES_AT_ONCE: usize = 32;
/// Heads that wait to be followed; with more, all are read instead.
const ANNOUNCED_MAX: usize = 2_000;
const NAMESPACES_MAX: usize = 2_000;

pub struct NatsFeed {
    behind: Arc<dyn Feed>,
    client: Client,
    jetstream: Context,
    edge_key_id: String,
    poll_at_least: Duration,
    started: Instant,
    heard: Arc<Heard>,
    _listening: AbortOnDropHandle<()>,
}

/// The newest head of each subject.
type Announced = BTreeMap<String, (Order, SignedHead)>;
/// The stage counts too: a rollout moves on under one version.
type Order = (Version, u16);

/// What the broker has said and nobody has asked for yet.
#[derive(Debug, Default)]
struct Heard {
    news: Mutex<News>,
    bell: Notify,
    connected: watch::Sender<bool>,
    namespaces: watch::Sender<BTreeSet<String>>,
    /// Those that the broker does not answer about since the last connect.
    silent: Mutex<BTreeSet<String>>,
    warned: AtomicBool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct News {
    announced: Announced,
    /// Something may have been missed: all heads are to be read.
    all: bool,
    /// The broker has kept us so busy that control was not asked for too long.
    poll: bool,
    polled: Option<Instant>,
}

/// What came which way, since the start.
#[derive(Debug, Default)]
pub struct Counts {
    pub heads_announced: AtomicU64,
    pub heads_read: AtomicU64,
    pub blobs: AtomicU64,
    /// Blobs whose bytes were not those of their digest.
    pub blobs_damaged: AtomicU64,
    /// Blobs that control was asked for.
    pub blobs_behind: AtomicU64,
    pub receipts: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
pub enum NatsFeedError {
    #[error("the broker's address {0:?} cannot be used")]
    Address(String, #[source] std::io::Error),
    #[error("the broker's client cannot be set up")]
    Client(#[source] async_nats::ConnectError),
}

/// Why the broker did not answer. Never more than a reason to ask control.
type BrokerError = Box<dyn std::error::Error + Send + Sync>;

impl NatsFeed {
    /// Returns at once, with or without a broker there: it is looked for until it is found.
    ///
    /// `namespaces` are followed from the start; those of heads that control gives are added, so
    /// they need to be named only where an edge has to start without control. `poll_at_least` is the
    /// longest that control is not asked, while the broker keeps bringing news.
    pub async fn start(
        broker: &Broker,
        edge_key_id: &str,
        namespaces: impl IntoIterator<Item = String>,
        poll_at_least: Duration,
        behind: Arc<dyn Feed>,
    ) -> Result<NatsFeed, NatsFeedError> {
        let address = |url: &String| {
            url.parse::<ServerAddr>().map_err(|error| NatsFeedError::Address(url.clone(), error))
        };
        let addresses: Vec<ServerAddr> =
            broker.urls().iter().map(address).collect::<Result<_, _>>()?;
        // An error says that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let heard = Arc::new(Heard::default());
        heard.follow(namespaces);
        let told = heard.clone();
        let mut options = ConnectOptions::new()
            .name("tidegate edge")
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(ANSWER_TIMEOUT))
            .custom_inbox_prefix(bus::inbox_prefix(&broker.user))
            .reconnect_delay_callback(|attempts| bus::reconnect_delay(attempts, random_fraction()))
            .event_callback(move |event| {
                told.event(&event);
                std::future::ready(())
            });
        if !broker.user.is_empty() {
            let password = broker.password.as_ref().map_or("", |password| password.reveal());
            options = options.user_and_password(broker.user.clone(), password.to_owned());
        }
        let client = options.connect(addresses).await.map_err(NatsFeedError::Client)?;
        let jetstream = ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client.clone());
        let listening = AbortOnDropHandle::new(tokio::spawn(listen(client.clone(), heard.clone())));
        let edge_key_id = edge_key_id.to_owned();
        Ok(NatsFeed {
            behind,
            client,
            jetstream,
            edge_key_id,
            poll_at_least,
            started: Instant::now(),
            heard,
            _listening: listening,
        })
    }

    pub fn counts(&self) -> &Counts {
        &self.heard.counts
    }

    /// A client without a connection would keep a question until there is one. By its events: its own state
    /// follows them, and whoever is woken by one may look before that.
    fn is_connected(&self) -> bool {
        *self.heard.connected.borrow()
    }

    /// A broker that always has something new leaves no gap in which control would be asked.
    fn is_poll_overdue(&self) -> bool {
        let polled = lock(&self.heard.news).polled.unwrap_or(self.started);
        polled.elapsed() >= self.poll_at_least.saturating_mul(2)
    }

    /// Every head of the namespaces that are followed, as far as the broker gives them in time.
    async fn read_all(&self) -> Announced {
        let namespaces: Vec<String> = {
            let silent = lock(&self.heard.silent);
            self.heard.namespaces.borrow().difference(&silent).cloned().collect()
        };
        let mut read = futures_util::stream::iter(namespaces)
            .map(|namespace| async move {
                let heads = self.read_namespace(&namespace).await;
                (namespace, heads)
            })
            .buffer_unordered(NAMESPACES_AT_ONCE);
        let mut heads = Announced::new();
        let reading = async {
            while let Some((namespace, found)) = read.next().await {
                match found {
                    Ok(found) => heads.extend(found),
                    Err(error) => tracing::warn!(namespace, %error, "heads cannot be read"),
                }
            }
        };
        // What is left is asked for over HTTP, as everything is.
        let _ = tokio::time::timeout(READ_TIMEOUT, reading).await;
        heads
    }

    async fn read_namespace(&self, namespace: &str) -> Result<Announced, BrokerError> {
        let stream = self.jetstream.get_stream_no_info(bus::heads_stream(namespace)).await?;
        let mut heads = Announced::new();
        let listed = match stream.info_with_subjects(bus::head_subjects(namespace)).await {
            Ok(listed) => listed,
            Err(error) if error.kind() == RequestErrorKind::TimedOut => {
                // A question that is not permitted gets no answer.
                lock(&self.heard.silent).insert(namespace.to_owned());
                return Err("the broker does not answer; is this user let in there?".into());
            }
            // Without a bucket nothing was published there, or the broker was emptied.
            Err(_) => return Ok(heads),
        };
        let subjects: Vec<String> = listed.map_ok(|(subject, _)| subject).try_collect().await?;
        let mut read = futures_util::stream::iter(subjects)
            .map(|subject| last(&stream, subject))
            .buffer_unordered(AT_ONCE);
        while let Some(message) = read.try_next().await? {
            let Some(message) = message else { continue };
            if message.headers.get("KV-Operation").is_none()
                && let Some(head) = parse(&message.subject, &message.payload)
            {
                heads.insert(message.subject.to_string(), head);
                self.heard.counts.heads_read.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(heads)
    }

    /// What the broker has said since the last time. None: nothing, or nothing that could be read.
    async fn heard(&self) -> Option<Heads> {
        let (mut heads, all) = {
            let mut news = lock(&self.heard.news);
            (std::mem::take(&mut news.announced), std::mem::take(&mut news.all))
        };
        if all && self.is_connected() {
            for (subject, head) in self.read_all().await {
                keep_newest(&mut heads, subject, head);
            }
        }
        if heads.is_empty() {
            return None;
        }
        let mut news = lock(&self.heard.news);
        if news.polled.is_none_or(|polled| polled.elapsed() >= self.poll_at_least) {
            news.poll = true;
        }
        drop(news);
        self.heard.bell.notify_one();
        Some(Heads { heads: heads.into_values().map(|(_, head)| head).collect() })
    }

    async fn poll(&self, etag: Option<String>) -> Result<Option<(Heads, String)>, FeedError> {
        {
            let mut news = lock(&self.heard.news);
            news.poll = false;
            news.polled = Some(Instant::now());
        }
        match tokio::time::timeout(POLL_TIMEOUT, self.behind.heads(etag)).await {
            Ok(answer) => answer,
            Err(late) => Err(FeedError::Unreachable(Box::new(late))),
        }
    }

    /// The blob as the broker has it, unverified; None if it is not all there.
    async fn read_blob(
        &self,
        namespace: &str,
        digest: Digest,
        bytes_max: u64,
    ) -> Result<Option<Bytes>, BrokerError> {
        let stream = self.jetstream.get_stream_no_info(bus::blobs_stream(namespace)).await?;
        let stream = &stream;
        let mut parts = futures_util::stream::iter(0..bus::blob_parts(bytes_max))
            .map(|part| last(stream, bus::blob_part_subject(namespace, digest, part)))
            .buffered(AT_ONCE);
        let mut bytes = BytesMut::new();
        while let Some(part) = parts.next().await {
            let Some(part) = part? else { return Ok(None) };
            bytes.extend_from_slice(&part.payload);
            if bytes.len() as u64 > bytes_max {
                break;
            }
        }
        Ok(Some(bytes.freeze()))
    }

    async fn blob_of_broker(
        &self,
        namespace: &str,
        digest: Digest,
        bytes_max: u64,
    ) -> Option<Bytes> {
        if !self.is_connected() {
            return None;
        }
        let read = self.read_blob(namespace, digest, bytes_max);
        let counts = &self.heard.counts;
        match tokio::time::timeout(BLOB_TIMEOUT, read).await {
            Ok(Ok(Some(bytes))) if Digest::of(&bytes) == digest => {
                counts.blobs.fetch_add(1, Ordering::Relaxed);
                Some(bytes)
            }
            Ok(Ok(Some(_))) => {
                counts.blobs_damaged.fetch_add(1, Ordering::Relaxed);
                tracing::error!(namespace, %digest, "the broker has other bytes; asking control");
                None
            }
            Ok(Ok(None)) => None,
            Ok(Err(error)) => {
                tracing::warn!(namespace, %digest, %error, "no blob from the broker; asking control");
                None
            }
            Err(_) => {
                tracing::warn!(namespace, %digest, "the broker is slow; asking control");
                None
            }
        }
    }
}

impl Feed for NatsFeed {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        Box::pin(async move {
            // The entity tag stays control's own: what came from here it may still say again.
            if !self.is_poll_overdue()
                && let Some(heads) = self.heard().await
            {
                return Ok(Some((heads, etag.unwrap_or_default())));
            }
            let error = match self.poll(etag.clone()).await {
                Ok(answer) => {
                    if let Some((heads, _)) = &answer {
                        let named = heads.heads.iter().filter_map(SignedHead::claims);
                        self.heard.follow(named.map(|head| head.namespace));
                    }
                    return Ok(answer);
                }
                Err(error) => error,
            };
            if matches!(error, FeedError::Denied { .. }) || !self.is_connected() {
                return Err(error);
            }
            // Whoever the broker did not answer about is asked for again: there is nobody else to ask.
            lock(&self.heard.silent).clear();
            let heads = self.read_all().await;
            if heads.is_empty() {
                return Err(error);
            }
            let heads = heads.into_values().map(|(_, head)| head).collect();
            Ok(Some((Heads { heads }, etag.unwrap_or_default())))
        })
    }

    fn blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            if let Some(bytes) = self.blob_of_broker(namespace, digest, bytes_max).await {
                return Ok(bytes);
            }
            self.heard.counts.blobs_behind.fetch_add(1, Ordering::Relaxed);
            self.behind.blob(namespace, digest, bytes_max).await
        })
    }

    /// Control makes differences, and one is shorter than what the broker has.
    fn blob_from<'a>(
        &'a self,
        namespace: &'a str,
        base: (Digest, Bytes),
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let made = self.behind.blob_from(namespace, base, digest, bytes_max);
            if let Ok(Ok(bytes)) = tokio::time::timeout(DELTA_TIMEOUT, made).await {
                return Ok(bytes);
            }
            self.blob(namespace, digest, bytes_max).await
        })
    }

    /// Answered by control, so a broker without a control behind it takes none.
    /// Over HTTP in any case: it is in no hurry, and the answer says whether it was counted.
    fn usage(&self, report: UsageReport) -> BoxFuture<'_, Result<(), FeedError>> {
        self.behind.usage(report)
    }

    /// Over HTTP, like usage.
    fn samples(&self, report: SampleReport) -> BoxFuture<'_, Result<SampleOrders, FeedError>> {
        self.behind.samples(report)
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            if !self.is_connected() {
                return self.behind.receipts(receipts).await;
            }
            let body = serde_json::to_vec(&receipts)
                .map_err(|error| FeedError::Malformed(error.to_string()))?;
            let subject = bus::receipts_subject(&self.edge_key_id);
            match self.client.request(subject, body.into()).await {
                Ok(answer) => {
                    let answered = answered(&answer);
                    if answered.is_ok() {
                        self.heard.counts.receipts.fetch_add(1, Ordering::Relaxed);
                    }
                    answered
                }
                Err(error) => {
                    tracing::debug!(%error, "no receipts over the broker; telling control");
                    self.behind.receipts(receipts).await
                }
            }
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let mut connected = self.heard.connected.subscribe();
            loop {
                let is_connected = *connected.borrow_and_update();
                // Of these no news comes from here.
                let hears_all = is_connected && lock(&self.heard.silent).is_empty();
                if lock(&self.heard.news).waits() {
                    return;
                }
                tokio::select! {
                    () = self.heard.bell.notified() => {}
                    // Never an error: the sender lives as long as this feed.
                    _ = connected.changed() => {}
                    () = self.behind.changed(), if !hears_all => return,
                }
            }
        })
    }
}

impl News {
    fn waits(&self) -> bool {
        self.all || self.poll || !self.announced.is_empty()
    }
}

impl Heard {
    fn event(&self, event: &Event) {
        match event {
            Event::Connected => {
                tracing::info!("connected to the broker");
                self.warned.store(false, Ordering::Relaxed);
                lock(&self.silent).clear();
                // It may be another one now, or the same with less in it.
                lock(&self.news).all = true;
                self.connected.send_replace(true);
                self.bell.notify_one();
            }
            Event::Disconnected => {
                self.connected.send_replace(false);
                tracing::warn!("the broker is gone; control is asked instead");
            }
            Event::SlowConsumer(_) => {
                lock(&self.news).all = true;
                self.bell.notify_one();
            }
            // Every try to connect says so; once is enough for people.
            other if self.warned.swap(true, Ordering::Relaxed) => {
                tracing::debug!(event = %other, "the broker's client says");
            }
            other => tracing::warn!(event = %other, "the broker's client says"),
        }
    }

    fn follow(&self, namespaces: impl IntoIterator<Item = String>) {
        let wanted: BTreeSet<String> = namespaces.into_iter().collect();
        self.namespaces.send_if_modified(|followed| {
            let before = followed.len();
            for namespace in wanted {
                if followed.len() < NAMESPACES_MAX {
                    followed.insert(namespace);
                }
            }
            followed.len() > before
        });
    }

    fn announced(&self, message: &Message) {
        let removed = message.headers.as_ref().is_some_and(|all| all.get("KV-Operation").is_some());
        // An environment that is gone keeps being served: nothing is not an instruction.
        if removed {
            return;
        }
        let Some(head) = parse(&message.subject, &message.payload) else {
            tracing::warn!(subject = %message.subject, "what the broker brought is not a head");
            return;
        };
        self.counts.heads_announced.fetch_add(1, Ordering::Relaxed);
        let mut news = lock(&self.news);
        if news.announced.len() >= ANNOUNCED_MAX {
            news.announced.clear();
            news.all = true;
        } else {
            keep_newest(&mut news.announced, message.subject.to_string(), head);
        }
        drop(news);
        self.bell.notify_one();
    }
}

/// Subscribes to each namespace as it becomes known. Subscriptions outlive connections.
async fn listen(client: Client, heard: Arc<Heard>) {
    let mut wanted = heard.namespaces.subscribe();
    let mut followed = BTreeSet::new();
    let mut messages = SelectAll::new();
    loop {
        let new: Vec<String> = wanted.borrow_and_update().difference(&followed).cloned().collect();
        for namespace in new {
            match client.subscribe(bus::head_subjects(&namespace)).await {
                Ok(subscription) => messages.push(subscription),
                Err(error) => {
                    tracing::error!(%error, "the broker's client is closed");
                    return;
                }
            }
            followed.insert(namespace);
            // After subscribing, so that nothing falls between the two.
            lock(&heard.news).all = true;
            heard.bell.notify_one();
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            Some(message) = messages.next() => heard.announced(&message),
        }
    }
}

/// The last message of a subject. A stream that is not there does not answer, so the caller waits.
async fn last(stream: &Stream<()>, subject: String) -> Result<Option<StreamMessage>, BrokerError> {
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// A head in its own place, with the version that it claims. Its signature is checked in `sync.rs`.
fn parse(subject: &str, payload: &[u8]) -> Option<(Order, SignedHead)> {
    let head: SignedHead = serde_json::from_slice(payload).ok()?;
    let claims = head.claims()?;
    let named = bus::head_subject(&claims.namespace, &claims.environment);
    (named == subject).then_some(((claims.version, claims.stage()), head))
}

fn keep_newest(heads: &mut Announced, subject: String, head: (Order, SignedHead)) {
    if heads.get(&subject).is_none_or(|(order, _)| *order <= head.0) {
        heads.insert(subject, head);
    }
}

/// A status as over HTTP, and a reason.
fn answered(answer: &Message) -> Result<(), FeedError> {
    let text = String::from_utf8_lossy(&answer.payload);
    let status = text.split(' ').next().and_then(|status| status.parse().ok());
    match status {
        Some(204) => Ok(()),
        Some(status @ (401 | 403)) => Err(FeedError::Denied { status }),
        Some(status) => Err(FeedError::Status { status }),
        None => Err(FeedError::Malformed("receipts are answered with no status".to_owned())),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
