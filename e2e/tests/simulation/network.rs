//! What lies between processes: a broker that loses, doubles, delays and forgets, and control's HTTP
//! routes over a network that does the same.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use control::authorize::{EdgeScope, callers};
use control::bus::{Bus, BusError, BusFuture, PublishedHead};
use control::parsed::Parsed;
use control::store::Store;
use ed25519_dalek::SigningKey;
use edge::feed::{Feed, FeedError};
use futures_util::future::BoxFuture;
use rules::blob::Digest;
use rules::head::{Heads, Receipts, SignedHead, Version};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::oracle::Name;
use crate::sim::Sim;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
enum Write {
    Blob(String, Digest, Bytes),
    Head(Box<PublishedHead>, Option<Version>),
    RemoveHead(Name),
}

#[derive(Default, Clone)]
struct Stored {
    heads: BTreeMap<Name, PublishedHead>,
    blobs: BTreeMap<(String, Digest), Bytes>,
}

impl Stored {
    fn apply(&mut self, write: &Write) -> Result<(), BusError> {
        match write {
            Write::Blob(namespace, digest, bytes) => {
                self.blobs.insert((namespace.clone(), *digest), bytes.clone());
            }
            Write::Head(head, expected) => {
                let current = self.heads.get(&head.name()).map(|head| head.version);
                if current != *expected || current.is_some_and(|current| current > head.version) {
                    return Err(BusError::Conflict { current });
                }
                self.heads.insert(head.name(), (**head).clone());
            }
            Write::RemoveHead(name) => drop(self.heads.remove(name)),
        }
        Ok(())
    }
}

/// What the broker remembers of itself; a roll-back goes that far.
const HISTORY_MAX: usize = 8;

#[derive(Default)]
struct Broker {
    now: Stored,
    /// As it was before each of the last writes, oldest first.
    history: VecDeque<Stored>,
    late: Vec<(Instant, Write)>,
    down_until: Option<Instant>,
    watchers: Vec<Arc<Watcher>>,
    /// Blobs that were there once, whatever has become of them.
    blobs_put: BTreeSet<(String, Digest)>,
    writes: u64,
}

/// An edge's subscription to heads.
#[derive(Default)]
pub struct Watcher {
    namespaces: Option<BTreeSet<String>>,
    news: Mutex<VecDeque<SignedHead>>,
    bell: Notify,
}

pub struct SimBroker {
    sim: Arc<Sim>,
    broker: Mutex<Broker>,
    changes: watch::Sender<u64>,
    forger: SigningKey,
}

fn unreachable(what: &str) -> BusError {
    BusError::Unreachable(what.to_owned().into())
}

impl SimBroker {
    pub fn new(sim: Arc<Sim>) -> Arc<SimBroker> {
        let forger = SigningKey::from_bytes(&[66; 32]);
        Arc::new(SimBroker {
            sim,
            broker: Mutex::default(),
            changes: watch::Sender::new(0),
            forger,
        })
    }

    pub fn is_down(&self) -> bool {
        lock(&self.broker).down_until.is_some()
    }

    pub fn go_down(&self, until: Instant) {
        lock(&self.broker).down_until = Some(until);
    }

    /// What is due by now: late writes arrive, an outage ends.
    pub fn upkeep(&self, now: Instant) {
        let mut due = Vec::new();
        let mut up = false;
        {
            let mut broker = lock(&self.broker);
            if broker.down_until.is_some_and(|until| until <= now) {
                broker.down_until = None;
                up = true;
            }
            broker.late.retain(|(at, write)| {
                let is_due = *at <= now;
                if is_due {
                    due.push(write.clone());
                }
                !is_due
            });
        }
        for write in due {
            if self.is_down() {
                continue;
            }
            self.sim.trace(|| "broker: a late write arrives".to_owned());
            let _ = self.apply(&write);
        }
        if up {
            self.reconnected();
        }
    }

    /// Clients look at everything after a reconnect.
    fn reconnected(&self) {
        self.changes.send_modify(|count| *count += 1);
        let broker = lock(&self.broker);
        for watcher in &broker.watchers {
            let seen = broker.now.heads.values().filter(|head| watcher.sees(&head.namespace));
            lock(&watcher.news).extend(seen.map(|head| head.signed.clone()));
            watcher.bell.notify_one();
        }
    }

    pub fn wipe(&self) {
        {
            let mut broker = lock(&self.broker);
            broker.now = Stored::default();
            broker.history.clear();
        }
        self.reconnected();
    }

    /// Gives whether there was anything to lose.
    pub fn roll_back(&self, writes: usize) -> bool {
        {
            let mut broker = lock(&self.broker);
            let keep = broker.history.len().saturating_sub(writes);
            let Some(before) = broker.history.get(keep).cloned() else { return false };
            broker.now = before;
            broker.history.truncate(keep);
        }
        self.reconnected();
        true
    }

    pub fn calm(&self) {
        let was_down = {
            let mut broker = lock(&self.broker);
            broker.late.clear();
            broker.down_until.take().is_some()
        };
        if was_down {
            self.reconnected();
        }
    }

    /// Counts writes. Never none, which is what nobody has seen yet.
    pub fn writes(&self) -> Option<u64> {
        Some(lock(&self.broker).writes)
    }

    pub fn versions(&self) -> BTreeMap<Name, Version> {
        let broker = lock(&self.broker);
        broker.now.heads.iter().map(|(name, head)| (name.clone(), head.version)).collect()
    }

    pub fn watch(&self, namespaces: Option<BTreeSet<String>>) -> Arc<Watcher> {
        let watcher = Arc::new(Watcher { namespaces, ..Watcher::default() });
        lock(&self.broker).watchers.push(watcher.clone());
        watcher
    }

    pub fn unwatch(&self, watcher: &Arc<Watcher>) {
        lock(&self.broker).watchers.retain(|other| !Arc::ptr_eq(other, watcher));
    }

    fn apply(&self, write: &Write) -> Result<(), BusError> {
        let mut broker = lock(&self.broker);
        let before = broker.now.clone();
        broker.now.apply(write)?;
        broker.writes += 1;
        match write {
            Write::Blob(namespace, digest, _) => {
                broker.blobs_put.insert((namespace.clone(), *digest));
            }
            Write::Head(head, _) => {
                let snapshot = head.signed.claims().map(|head| head.snapshot.digest);
                let blob = snapshot.map(|digest| (head.namespace.clone(), digest));
                if !blob.is_some_and(|blob| broker.blobs_put.contains(&blob)) {
                    let name = head.name();
                    self.sim.violated(format!("the broker got a head of {name:?} before its blob"));
                }
            }
            Write::RemoveHead(name) => {
                self.sim.violated(format!("the head of {name:?} was removed, which is there"));
            }
        }
        broker.history.push_back(before);
        if broker.history.len() > HISTORY_MAX {
            broker.history.pop_front();
        }
        if let Write::Head(head, _) = write {
            for watcher in broker.watchers.iter().filter(|watcher| watcher.sees(&head.namespace)) {
                self.tell(watcher, head);
            }
        }
        drop(broker);
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn tell(&self, watcher: &Watcher, head: &PublishedHead) {
        if self.sim.fault("news: lost") {
            return;
        }
        let mut news = lock(&watcher.news);
        if self.sim.fault("news: forged")
            && let Some(mut claims) = head.signed.claims()
        {
            claims.version.revision += 7;
            if let Ok(forged) = SignedHead::sign(&claims, &self.forger) {
                // With the name of the true key, as a forger would have it.
                news.push_back(SignedHead { key_id: head.signed.key_id.clone(), ..forged });
            }
        }
        news.push_back(head.signed.clone());
        if self.sim.fault("news: doubled") {
            news.push_back(head.signed.clone());
        }
        if news.len() > 1 && self.sim.fault("news: reordered") {
            let last = news.len() - 1;
            let other = self.sim.draw(last);
            news.swap(last, other);
        }
        watcher.bell.notify_one();
    }

    async fn write(&self, name: &'static str, write: Write) -> Result<(), BusError> {
        self.sim.gate(name).await;
        if self.is_down() || self.sim.fault("broker: a request is lost") {
            return Err(unreachable("lost"));
        }
        let late = |sim: &Sim| Instant::now() + Duration::from_millis(1 + sim.draw(20_000) as u64);
        if self.sim.fault("broker: a write comes late") {
            lock(&self.broker).late.push((late(&self.sim), write));
            return Err(unreachable("timed out"));
        }
        if self.sim.fault("broker: a write comes twice") {
            lock(&self.broker).late.push((late(&self.sim), write.clone()));
        }
        self.apply(&write)?;
        self.sim.gate("broker answers").await;
        match self.sim.fault("broker: an answer is lost") {
            true => Err(unreachable("no answer")),
            false => Ok(()),
        }
    }

    async fn read<T>(
        &self,
        name: &'static str,
        read: impl FnOnce(&Stored) -> T,
    ) -> Result<T, BusError> {
        self.sim.gate(name).await;
        if self.is_down() || self.sim.fault("broker: a request is lost") {
            return Err(unreachable("lost"));
        }
        let was = self.sim.fault("broker: a read gives what was");
        let broker = lock(&self.broker);
        Ok(match broker.history.back().filter(|_| was) {
            Some(before) => read(before),
            None => read(&broker.now),
        })
    }

    fn damaged(&self, fault: &'static str, bytes: Bytes) -> Bytes {
        match !bytes.is_empty() && self.sim.fault(fault) {
            true => {
                let mut other = bytes.to_vec();
                let at = self.sim.draw(other.len());
                other[at] ^= 1 << self.sim.draw(8);
                other.into()
            }
            false => bytes,
        }
    }
}

impl Bus for SimBroker {
    fn put_blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes: Bytes,
    ) -> BusFuture<'a, ()> {
        let write = Write::Blob(namespace.to_owned(), digest, bytes);
        Box::pin(self.write("broker: put blob", write))
    }

    fn blob<'a>(&'a self, namespace: &'a str, digest: Digest) -> BusFuture<'a, Option<Bytes>> {
        let at = (namespace.to_owned(), digest);
        Box::pin(async move {
            let read = |stored: &Stored| stored.blobs.get(&at).cloned();
            let bytes = self.read("broker: get blob", read).await?;
            Ok(bytes.map(|bytes| self.damaged("broker: a blob is damaged", bytes)))
        })
    }

    fn head<'a>(
        &'a self,
        namespace: &'a str,
        environment: &'a str,
    ) -> BusFuture<'a, Option<PublishedHead>> {
        let at = (namespace.to_owned(), environment.to_owned());
        let read = move |stored: &Stored| stored.heads.get(&at).cloned();
        Box::pin(self.read("broker: get head", read))
    }

    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()> {
        Box::pin(self.write("broker: put head", Write::Head(Box::new(head), expected)))
    }

    fn remove_head<'a>(&'a self, namespace: &'a str, environment: &'a str) -> BusFuture<'a, ()> {
        let write = Write::RemoveHead((namespace.to_owned(), environment.to_owned()));
        Box::pin(self.write("broker: remove head", write))
    }

    fn heads(&self) -> BusFuture<'_, Vec<PublishedHead>> {
        let read = |stored: &Stored| stored.heads.values().cloned().collect();
        Box::pin(self.read("broker: get heads", read))
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Watcher {
    fn sees(&self, namespace: &str) -> bool {
        self.namespaces.as_ref().is_none_or(|seen| seen.contains(namespace))
    }
}

/// A control, as the network sees it: its routes, while it lives.
#[derive(Clone)]
pub struct Served {
    pub process: usize,
    pub store: Store,
    pub bus: Arc<dyn Bus>,
    pub parsed: Arc<Parsed>,
}

/// The address that edges ask: one of the controls that live answers.
#[derive(Default)]
pub struct Front {
    pub controls: Mutex<BTreeMap<usize, Served>>,
}

/// As `edge::feed::nats::NatsFeed` and `HttpFeed` behind it: news and blobs from the broker, what it
/// does not bring over HTTP.
pub struct SimFeed {
    pub sim: Arc<Sim>,
    pub front: Arc<Front>,
    pub broker: Arc<SimBroker>,
    pub watcher: Arc<Watcher>,
    pub key: String,
}

fn lost(what: &str) -> FeedError {
    FeedError::Unreachable(Box::new(io::Error::other(what.to_owned())))
}

impl SimFeed {
    /// Some control that answers.
    async fn reach(&self, name: &'static str) -> Result<Served, FeedError> {
        self.sim.gate(name).await;
        if self.sim.fault("http: an answer takes for ever") {
            // The client gives up what stalls after 10 s (`edge::feed::HttpFeed`).
            tokio::time::sleep(Duration::from_secs(10)).await;
            return Err(lost("stalled"));
        }
        let controls: Vec<Served> = lock(&self.front.controls).values().cloned().collect();
        if controls.is_empty() || self.sim.fault("http: a request is lost") {
            return Err(lost("lost"));
        }
        let control = controls[self.sim.draw(controls.len())].clone();
        let state = {
            let inner = self.sim.lock();
            let process = &inner.processes[control.process];
            (process.paused_until.is_some(), process.no_database_until.is_some())
        };
        match state {
            (true, _) => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(lost("no answer"))
            }
            (false, true) => Err(FeedError::Status { status: 503 }),
            (false, false) => Ok(control),
        }
    }

    async fn answered(&self, by: &Served) -> Result<(), FeedError> {
        self.sim.gate("http answers").await;
        let lives = lock(&self.front.controls)
            .get(&by.process)
            .is_some_and(|served| Arc::ptr_eq(&served.bus, &by.bus));
        match !lives || self.sim.fault("http: an answer is lost") {
            true => Err(lost("no answer")),
            false => Ok(()),
        }
    }

    async fn scope(&self, control: &Served) -> Result<EdgeScope, FeedError> {
        let failed = |_| FeedError::Status { status: 503 };
        let mut read = control.store.read().await.map_err(failed)?;
        callers::edge(&mut read, Some(&self.key))
            .await
            .map_err(|_| FeedError::Denied { status: 401 })
    }

    async fn ask_heads(&self, etag: Option<String>) -> Result<Option<(Heads, String)>, FeedError> {
        let control = self.reach("http: get heads").await?;
        let scope = self.scope(&control).await?;
        let heads = control::edges::heads(control.bus.as_ref(), &scope)
            .await
            .map_err(|_| FeedError::Status { status: 503 })?;
        self.answered(&control).await?;
        let body = serde_json::to_vec(&heads).map_err(|_| lost("body"))?;
        let now = format!("\"{}\"", Digest::of(&body));
        Ok((etag.as_ref() != Some(&now)).then_some((heads, now)))
    }
}

impl Feed for SimFeed {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        Box::pin(async move {
            let news: Vec<SignedHead> = match self.broker.is_down() {
                true => Vec::new(),
                false => lock(&self.watcher.news).drain(..).collect(),
            };
            if !news.is_empty() {
                return Ok(Some((Heads { heads: news }, etag.unwrap_or_default())));
            }
            let error = match self.ask_heads(etag.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Ok(heads) = self.broker.heads().await else { return Err(error) };
            let seen = heads.into_iter().filter(|head| self.watcher.sees(&head.namespace));
            let heads: Vec<SignedHead> = seen.map(|head| head.signed).collect();
            match heads.is_empty() {
                true => Err(error),
                false => Ok(Some((Heads { heads }, etag.unwrap_or_default()))),
            }
        })
    }

    fn blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            self.sim.trace(|| format!("asks for {digest}"));
            if let Ok(Some(bytes)) = self.broker.blob(namespace, digest).await {
                return Ok(bytes);
            }
            let control = self.reach("http: get blob").await?;
            self.sim.trace(|| format!("asks control for {digest}"));
            let scope = self.scope(&control).await?;
            let failed = |_| FeedError::Status { status: 503 };
            let mut read = control.store.read().await.map_err(failed)?;
            let bytes = control::edges::blob(&mut read, &control.parsed, &scope, digest)
                .await
                .map_err(|_| FeedError::Status { status: 404 })?;
            drop(read);
            self.answered(&control).await?;
            if bytes.len() as u64 > bytes_max {
                return Err(FeedError::TooLong { bytes_max });
            }
            Ok(self.broker.damaged("http: a blob is damaged", bytes))
        })
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move {
            let control = self.reach("http: post receipts").await?;
            let failed = |_| FeedError::Status { status: 503 };
            let scope = self.scope(&control).await?;
            let mut tx = control.store.write().await.map_err(failed)?;
            control::edges::receive(&mut tx, &scope, &receipts)
                .await
                .map_err(|_| FeedError::Status { status: 400 })?;
            tx.commit().await.map_err(failed)?;
            self.answered(&control).await
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let served = lock(&self.front.controls).values().next().cloned();
            let Some(control) = served else {
                tokio::select! {
                    biased;
                    () = self.watcher.bell.notified() => {}
                    () = tokio::time::sleep(Duration::from_secs(1)) => {}
                }
                return;
            };
            // The long poll: it ends with news, after a while, or with the control that holds it.
            let mut changed = control.bus.changed();
            tokio::select! {
                biased;
                () = self.watcher.bell.notified() => {}
                news = changed.changed() => if news.is_err() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                () = tokio::time::sleep(Duration::from_secs(25)) => {}
            }
        })
    }
}
