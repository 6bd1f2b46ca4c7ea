//! The bus on NATS JetStream: one KV bucket of heads and one stream of blobs per namespace, and the
//! subjects on which edges report. Names are in `rules::bus`.
//!
//! Nothing here is believed to last. A bucket or a blob that is gone is made again by the next
//! write; sequence numbers serve for compare-and-set within one read and write, and for nothing
//! else, since a broker that lost its tail gives them out again. Every wait has an end. While there
//! is no connection everything fails at once.
//!
//! Written for nats-server 2.9: its streams are made here, because the client's own
//! `create_key_value` asks for what such a server does not have; what a server made of our
//! settings is read back, because it drops what it does not know without a word.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_nats::connection::State;
use async_nats::jetstream::context::{ContextBuilder, CreateStreamErrorKind};
use async_nats::jetstream::kv::{Operation, Store, UpdateErrorKind};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, DirectGetErrorKind, Stream};
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectOptions, Event, ServerAddr, Subject};
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _};
use rules::blob::Digest;
use rules::bus::{self, BLOB_AGE_MAX, BLOB_PART_BYTES, Broker};
use rules::head::{SignedHead, Version};
use rules::limits::{SEGMENT_IDS_MAX, SNAPSHOT_BYTES_MAX};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::anchors::SignedAnchor;

use super::{Bus, BusError, BusFuture, PublishedHead};

/// Of one question or one acknowledged message.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a whole operation, which may be many of them: 32 MiB are 64 messages.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(60);
/// A broker that says nothing for two of these is gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Questions or messages under way at once within one operation.
const AT_ONCE: usize = 8;
/// Reports that wait for the database; further ones are told to come again.
const REPORTS_MAX: usize = 256;
/// What a change stays on the broker for.
const CHANGES_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// A read stops here, whatever lies on the broker.
const PARTS_MAX: u64 = {
    let ids = SEGMENT_IDS_MAX * 16 + 1024;
    let longest = if ids > SNAPSHOT_BYTES_MAX { ids } else { SNAPSHOT_BYTES_MAX };
    longest.div_ceil(BLOB_PART_BYTES) as u64 + 1
};

pub struct NatsBus {
    client: Client,
    jetstream: Context,
    /// Of namespaces, those whose streams were seen to be there since the last connect.
    buckets: Arc<Mutex<HashMap<String, Store>>>,
    changes: watch::Sender<u64>,
    _listening: AbortOnDropHandle<()>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the broker's address {0:?} cannot be used")]
    Address(String, #[source] std::io::Error),
    #[error("the broker's client cannot be set up")]
    Client(#[source] async_nats::ConnectError),
}

/// What an edge reported over the broker.
#[derive(Debug)]
pub struct Report {
    /// Of the edge key that the broker let report here.
    pub edge_key_id: String,
    pub body: Bytes,
    reply: Option<Subject>,
    client: Client,
}

impl Report {
    /// `204`, or a status as over HTTP and a reason. One that gets lost is one that was late.
    pub async fn answer(self, text: String) {
        if let Some(reply) = self.reply
            && let Err(error) = self.client.publish(reply, text.into()).await
        {
            tracing::debug!(%error, "a report could not be answered");
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("there is no connection to the broker")]
struct NotConnected;

fn unreachable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> BusError {
    BusError::Unreachable(error.into())
}

impl NatsBus {
    /// Returns at once, with or without a broker there: it is looked for until it is found.
    pub async fn start(broker: &Broker) -> Result<(NatsBus, mpsc::Receiver<Report>), ConnectError> {
        let address = |url: &String| {
            url.parse::<ServerAddr>().map_err(|error| ConnectError::Address(url.clone(), error))
        };
        let addresses: Vec<ServerAddr> =
            broker.urls().iter().map(address).collect::<Result<_, _>>()?;
        // An error says that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let changes = watch::Sender::new(0);
        let buckets: Arc<Mutex<HashMap<String, Store>>> = Arc::default();
        let (bell, known) = (changes.clone(), buckets.clone());
        let connected = metrics::gauge!("tidegate_control_bus_connected");
        let mut options = ConnectOptions::new()
            .name("tidegate control")
            .retry_on_initial_connect()
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(ANSWER_TIMEOUT))
            .custom_inbox_prefix(bus::inbox_prefix(&broker.user))
            // What was written here needs no bell here.
            .no_echo()
            .reconnect_delay_callback(|attempts| bus::reconnect_delay(attempts, random_fraction()))
            .event_callback(move |event| {
                match &event {
                    Event::Connected => {
                        tracing::info!("connected to the broker");
                        connected.set(1.0);
                        // It may be another one now, or the same with less in it.
                        lock(&known).clear();
                        ring(&bell);
                    }
                    Event::Disconnected => {
                        connected.set(0.0);
                        tracing::warn!("the broker is gone; edges are served over HTTP");
                    }
                    other => tracing::warn!(event = %other, "the broker's client says"),
                }
                std::future::ready(())
            });
        if !broker.user.is_empty() {
            let password = broker.password.as_ref().map_or("", |password| password.reveal());
            options = options.user_and_password(broker.user.clone(), password.to_owned());
        }
        let client = options.connect(addresses).await.map_err(ConnectError::Client)?;
        let jetstream = ContextBuilder::new().timeout(ANSWER_TIMEOUT).build(client.clone());
        let (reports, received) = mpsc::channel(REPORTS_MAX);
        let listening = tokio::spawn(listen(client.clone(), changes.clone(), reports));
        let listening = AbortOnDropHandle::new(listening);
        Ok((NatsBus { client, jetstream, buckets, changes, _listening: listening }, received))
    }

    /// Fails at once without a connection: a client would keep the question until there is one.
    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, BusError>>,
    ) -> Result<T, BusError> {
        if self.client.connection_state() != State::Connected {
            return Err(unreachable(NotConnected));
        }
        tokio::time::timeout(OPERATION_TIMEOUT, work).await.map_err(unreachable)?
    }

    /// The bucket of a namespace, made if it is not there, and its stream of blobs with it.
    async fn bucket(&self, namespace: &str) -> Result<Store, BusError> {
        if let Some(bucket) = lock(&self.buckets).get(namespace) {
            return Ok(bucket.clone());
        }
        // In this order: who sees the bucket may put blobs.
        self.ensure(blobs_config(namespace)).await?;
        self.ensure(heads_config(namespace)).await?;
        let bucket = bus::heads_bucket(namespace);
        let bucket = self.jetstream.get_key_value(bucket).await.map_err(unreachable)?;
        lock(&self.buckets).insert(namespace.to_owned(), bucket.clone());
        Ok(bucket)
    }

    async fn ensure(&self, wanted: Config) -> Result<(), BusError> {
        let info = match self.jetstream.create_stream(wanted.clone()).await {
            Ok(stream) => stream.cached_info().clone(),
            // Another build's, or an operator's: what is in it stays, and what is not set here.
            Err(error) if is_taken(&error.kind()) => {
                let there = self.jetstream.get_stream(&wanted.name).await.map_err(unreachable)?;
                let there = there.cached_info().clone();
                match dropped(&wanted, &there.config) {
                    None => there,
                    Some(_) => {
                        let num_replicas = there.config.num_replicas;
                        let ours = Config { num_replicas, ..wanted.clone() };
                        self.jetstream.update_stream(ours).await.map_err(unreachable)?
                    }
                }
            }
            Err(error) => return Err(unreachable(error)),
        };
        match dropped(&wanted, &info.config) {
            None => Ok(()),
            Some(setting) => {
                let name = wanted.name;
                let told = format!("stream {name} has another {setting} than it was given");
                Err(BusError::Misconfigured(told))
            }
        }
    }

    /// After a failure: the stream may be gone. A direct read of a stream that is not there is not
    /// refused but left without an answer, so every operation begins with `bucket`.
    fn forget(&self, namespace: &str) {
        lock(&self.buckets).remove(namespace);
    }

    async fn read_head(&self, subject: &str) -> Result<Option<PublishedHead>, BusError> {
        let Some((namespace, environment)) = bus::head_of_subject(subject) else {
            return Ok(None);
        };
        let stream = self.stream(bus::heads_stream(&namespace)).await?;
        let message = last(&stream, subject.to_owned()).await?;
        Ok(message.and_then(|message| head_in(&message, &namespace, &environment)))
    }

    /// Tells of every connect, among other things.
    pub fn connects(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Makes a namespace's change stream if it is not there: whether nothing was ever put into it.
    pub async fn open_changes(&self, namespace: &str) -> Result<bool, BusError> {
        self.within(async {
            let wanted = changes_config(namespace);
            let name = wanted.name.clone();
            self.ensure(wanted).await?;
            let stream = self.jetstream.get_stream(name).await.map_err(unreachable)?;
            Ok(stream.cached_info().state.last_sequence == 0)
        })
        .await
    }

    /// In order; all of them are acknowledged when it returns. Each with an id by which the broker
    /// leaves out what it had in the last minutes.
    pub async fn send_changes(
        &self,
        namespace: &str,
        messages: Vec<(String, Vec<u8>)>,
    ) -> Result<(), BusError> {
        self.within(async {
            let subject = bus::changes_subject(namespace);
            for (id, payload) in messages {
                let mut headers = async_nats::HeaderMap::new();
                headers.insert("Nats-Msg-Id", id.as_str());
                let sent =
                    self.jetstream.publish_with_headers(subject.clone(), headers, payload.into());
                sent.await.map_err(unreachable)?.await.map_err(unreachable)?;
            }
            Ok(())
        })
        .await
    }

    /// The newest anchor of an audit chain, unless there is one of a later row: that row's number.
    pub async fn put_anchor(
        &self,
        chain: &str,
        signed: &SignedAnchor,
    ) -> Result<Option<i64>, BusError> {
        self.within(async {
            self.ensure(anchors_config()).await?;
            let bucket = self.jetstream.get_key_value(bus::ANCHORS_BUCKET.to_owned());
            let bucket = bucket.await.map_err(unreachable)?;
            let key = bus::token(chain);
            let sequence = |signed: &SignedAnchor| signed.claims().map(|claims| claims.sequence);
            let there = bucket.get(&key).await.map_err(unreachable)?;
            let there = there.and_then(|value| serde_json::from_slice::<SignedAnchor>(&value).ok());
            let later =
                there.as_ref().and_then(sequence).filter(|there| Some(*there) > sequence(signed));
            if later.is_none() && there.as_ref() != Some(signed) {
                let value = serde_json::to_vec(signed).map_err(unreachable)?;
                bucket.put(&key, value.into()).await.map_err(unreachable)?;
            }
            Ok(later)
        })
        .await
    }

    /// A handle; nothing is asked.
    async fn stream(&self, name: String) -> Result<Stream<()>, BusError> {
        self.jetstream.get_stream_no_info(name).await.map_err(unreachable)
    }

    async fn heads_of(&self, stream: String) -> Result<Vec<PublishedHead>, BusError> {
        let Some(namespace) = bus::heads_namespace(&stream) else { return Ok(Vec::new()) };
        let stream = self.stream(stream).await?;
        let filter = bus::head_subjects(&namespace);
        let listed = stream.info_with_subjects(filter).await.map_err(unreachable)?;
        let subjects: Vec<String> =
            listed.map_ok(|(subject, _)| subject).try_collect().await.map_err(unreachable)?;
        futures_util::stream::iter(subjects)
            .map(|subject| async move { self.read_head(&subject).await })
            .buffer_unordered(AT_ONCE)
            .try_filter_map(|head| async move { Ok(head) })
            .try_collect()
            .await
    }

    /// What lies under a digest, unverified, and when its oldest part was written.
    async fn read_blob(
        &self,
        namespace: &str,
        digest: Digest,
    ) -> Result<Option<(Bytes, SystemTime)>, BusError> {
        let stream = self.stream(bus::blobs_stream(namespace)).await?;
        let mut bytes = BytesMut::new();
        let mut written = SystemTime::now();
        for part in 0..PARTS_MAX {
            let subject = bus::blob_part_subject(namespace, digest, part);
            let Some(message) = last(&stream, subject).await? else {
                // One that fills its last part ends where the next is not there.
                return Ok((part > 0).then(|| (bytes.freeze(), written)));
            };
            written = written.min(SystemTime::from(message.time));
            bytes.extend_from_slice(&message.payload);
            if message.payload.len() < BLOB_PART_BYTES {
                break;
            }
        }
        Ok(Some((bytes.freeze(), written)))
    }

    async fn write_blob(
        &self,
        namespace: &str,
        digest: Digest,
        bytes: &Bytes,
    ) -> Result<(), BusError> {
        let parts = bus::blob_parts(bytes.len() as u64);
        futures_util::stream::iter(0..parts)
            .map(|part| async move {
                let from = part as usize * BLOB_PART_BYTES;
                let content = bytes.slice(from..bytes.len().min(from + BLOB_PART_BYTES));
                let subject = bus::blob_part_subject(namespace, digest, part);
                let stored = self.jetstream.publish(subject, content).await.map_err(unreachable)?;
                stored.await.map_err(unreachable)
            })
            .buffer_unordered(AT_ONCE)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }
}

impl Bus for NatsBus {
    /// Once: what is there and right is left alone until it is half as old as it may get.
    fn put_blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes: Bytes,
    ) -> BusFuture<'a, ()> {
        Box::pin(self.within(async move {
            self.bucket(namespace).await?;
            let there = self.read_blob(namespace, digest).await;
            if let Some((found, written)) = there.inspect_err(|_| self.forget(namespace))? {
                // A clock that is behind the broker's makes it new, not old.
                let fresh = written.elapsed().unwrap_or_default() < BLOB_AGE_MAX / 2;
                let right = Digest::of(&found) == digest;
                if !right {
                    tracing::error!(namespace, %digest, "a blob on the broker was damaged");
                    metrics::counter!("tidegate_control_bus_blobs_damaged_total").increment(1);
                }
                if right && fresh {
                    return Ok(());
                }
            }
            let written = self.write_blob(namespace, digest, &bytes).await;
            if written.is_err() {
                self.forget(namespace);
            }
            written
        }))
    }

    fn blob<'a>(&'a self, namespace: &'a str, digest: Digest) -> BusFuture<'a, Option<Bytes>> {
        Box::pin(self.within(async move {
            self.bucket(namespace).await?;
            let found = self.read_blob(namespace, digest).await;
            let found = found.inspect_err(|_| self.forget(namespace))?;
            Ok(found.map(|(bytes, _)| bytes).filter(|bytes| Digest::of(bytes) == digest))
        }))
    }

    fn head<'a>(
        &'a self,
        namespace: &'a str,
        environment: &'a str,
    ) -> BusFuture<'a, Option<PublishedHead>> {
        Box::pin(self.within(async move {
            self.bucket(namespace).await?;
            let head = self.read_head(&bus::head_subject(namespace, environment)).await;
            head.inspect_err(|_| self.forget(namespace))
        }))
    }

    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()> {
        Box::pin(self.within(async move {
            let (namespace, environment) = (&head.namespace, &head.environment);
            let bucket = self.bucket(namespace).await?;
            let key = bus::token(environment);
            let entry = bucket.entry(&key).await.inspect_err(|_| self.forget(namespace));
            let (revision, current) = match entry.map_err(unreachable)? {
                None => (0, None),
                Some(entry) if entry.operation == Operation::Put => {
                    (entry.revision, parse(&entry.value, namespace, environment))
                }
                Some(entry) => (entry.revision, None),
            };
            let behind = current.as_ref().is_some_and(|current| head.is_behind(current));
            let current = current.map(|current| current.version);
            if current != expected || behind {
                return Err(BusError::Conflict { current });
            }
            let value = serde_json::to_vec(&head.signed).map_err(unreachable)?;
            match bucket.update(&key, value.into(), revision).await {
                Ok(_) => Ok(()),
                // Somebody was between our read and our write; whose turn it is shows the next read.
                Err(error) if error.kind() == UpdateErrorKind::WrongLastRevision => {
                    Err(BusError::Conflict { current })
                }
                Err(error) => {
                    self.forget(namespace);
                    Err(unreachable(error))
                }
            }
        }))
    }

    /// Leaves a mark that it was removed, as KV buckets do, and no value.
    fn remove_head<'a>(&'a self, namespace: &'a str, environment: &'a str) -> BusFuture<'a, ()> {
        Box::pin(self.within(async move {
            let bucket = self.bucket(namespace).await?;
            let removed = bucket.purge(bus::token(environment)).await;
            removed.inspect_err(|_| self.forget(namespace)).map_err(unreachable)
        }))
    }

    fn heads(&self) -> BusFuture<'_, Vec<PublishedHead>> {
        Box::pin(self.within(async move {
            let names: Vec<String> =
                self.jetstream.stream_names().try_collect().await.map_err(unreachable)?;
            // Whoever deleted a stream told nobody.
            let there = |namespace: &String| {
                let (heads, blobs) = (bus::heads_stream(namespace), bus::blobs_stream(namespace));
                names.contains(&heads) && names.contains(&blobs)
            };
            lock(&self.buckets).retain(|namespace, _| there(namespace));
            let mut heads = Vec::new();
            for name in names {
                heads.extend(self.heads_of(name).await?);
            }
            Ok(heads)
        }))
    }

    fn is_shared(&self) -> bool {
        true
    }

    /// With every connect too: nobody knows what happened in between.
    fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// Rings for what others write, and takes what edges report.
///
/// The watch is a plain subscription to what is written to buckets. It needs no consumer, which
/// would have to be made again whenever a server lost its memory, and lives as long as the client.
/// It may hear of a write that was then refused: a bell rung for nothing.
async fn listen(client: Client, changes: watch::Sender<u64>, reports: mpsc::Sender<Report>) {
    let written = client.subscribe(bus::EVERY_KV).await;
    let reported = client.queue_subscribe(bus::RECEIPTS, "control".to_owned()).await;
    let (Ok(mut written), Ok(mut reported)) = (written, reported) else {
        tracing::error!("the broker's client is closed; nothing will be heard from it");
        return;
    };
    loop {
        tokio::select! {
            message = written.next() => match message {
                Some(message) if bus::head_of_subject(&message.subject).is_some() => ring(&changes),
                Some(_) => {}
                None => return,
            },
            message = reported.next() => {
                let Some(message) = message else { return };
                let Some(edge_key_id) = bus::key_of_receipts(&message.subject) else { continue };
                let (reply, client) = (message.reply, client.clone());
                let report = Report { edge_key_id, body: message.payload, reply, client };
                if let Err(mpsc::error::TrySendError::Full(report)) = reports.try_send(report) {
                    metrics::counter!("tidegate_control_reports_dropped_total").increment(1);
                    report.answer("503 too many reports are waiting".to_owned()).await;
                }
            }
        }
    }
}

/// The last message of a subject.
async fn last(stream: &Stream<()>, subject: String) -> Result<Option<StreamMessage>, BusError> {
    match stream.direct_get_last_for_subject(subject).await {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == DirectGetErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreachable(error)),
    }
}

/// None for what was removed, for what is no head, and for a head in another's place.
fn head_in(message: &StreamMessage, namespace: &str, environment: &str) -> Option<PublishedHead> {
    match message.headers.get("KV-Operation") {
        Some(_) => None,
        None => parse(&message.payload, namespace, environment),
    }
}

fn parse(value: &[u8], namespace: &str, environment: &str) -> Option<PublishedHead> {
    let signed: SignedHead = serde_json::from_slice(value).ok()?;
    let head = PublishedHead::of(signed)?;
    (head.namespace == namespace && head.environment == environment).then_some(head)
}

/// As `create_key_value` would have it, for a server that knows no more than 2.9.
fn heads_config(namespace: &str) -> Config {
    Config {
        name: bus::heads_stream(namespace),
        subjects: vec![bus::head_subjects(namespace)],
        max_messages_per_subject: 1,
        allow_rollup: true,
        deny_delete: true,
        ..stream_config()
    }
}

/// The last 64 anchors of each chain.
fn anchors_config() -> Config {
    Config {
        name: format!("KV_{}", bus::ANCHORS_BUCKET),
        subjects: vec![format!("$KV.{}.>", bus::ANCHORS_BUCKET)],
        max_messages_per_subject: 64,
        allow_rollup: true,
        deny_delete: true,
        ..stream_config()
    }
}

/// What is older has to be asked of control.
fn changes_config(namespace: &str) -> Config {
    Config {
        name: bus::changes_stream(namespace),
        subjects: vec![bus::changes_subject(namespace)],
        max_messages_per_subject: -1,
        max_age: CHANGES_AGE_MAX,
        ..stream_config()
    }
}

fn blobs_config(namespace: &str) -> Config {
    Config {
        name: bus::blobs_stream(namespace),
        subjects: vec![bus::blob_subjects(namespace)],
        max_messages_per_subject: 1,
        max_age: BLOB_AGE_MAX,
        ..stream_config()
    }
}

fn stream_config() -> Config {
    Config {
        max_messages: -1,
        max_bytes: -1,
        max_consumers: -1,
        num_replicas: 1,
        // Edges read this way: by a subject in the request's own subject, which permissions see.
        allow_direct: true,
        ..Config::default()
    }
}

fn is_taken(error: &CreateStreamErrorKind) -> bool {
    matches!(error, CreateStreamErrorKind::JetStream(error)
        if error.error_code() == ErrorCode::STREAM_NAME_EXIST)
}

/// The setting that the server has otherwise than it was told. Of replicas an operator may want
/// more, so that one is not looked at.
fn dropped(wanted: &Config, has: &Config) -> Option<&'static str> {
    let checks = [
        ("subjects", wanted.subjects == has.subjects),
        ("max_msgs_per_subject", wanted.max_messages_per_subject == has.max_messages_per_subject),
        ("max_age", wanted.max_age == has.max_age),
        ("allow_direct", wanted.allow_direct == has.allow_direct),
        ("allow_rollup_hdrs", wanted.allow_rollup == has.allow_rollup),
    ];
    checks.into_iter().find(|(_, same)| !same).map(|(setting, _)| setting)
}

fn ring(changes: &watch::Sender<u64>) {
    changes.send_modify(|count| *count = count.wrapping_add(1));
}

/// From 0 up to 1. Without the system's source it is a constant, which costs spread only.
fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
