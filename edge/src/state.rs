//! What an edge serves right now: a table of environments behind one atomic pointer.
//!
//! A request takes the pointer once and keeps it, so it sees one snapshot from its key check to
//! its last byte. A swap builds a new table beside the old one and then moves the pointer; nothing
//! is patched in place. Announcements go out after the pointer has moved, never before, so whoever
//! hears of a change and asks gets at least that change.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::HeaderValue;
use rules::answer::Audience;
use rules::blob::{Digest, KeyTerms, Manifest};
use rules::head::Version;
use rules::keys::{KeyKind, KeyRecord};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::auth::{self, StreamClaims};
use crate::client::Client;
use crate::metrics::{EnvironmentMetrics, Metrics};
use crate::samples::Sampler;
use crate::sdk::events::Catalog;
use crate::sdk::ring::Ring;
use crate::usage::Usage;

/// Namespace and environment.
pub type Name = (String, String);

/// One environment's snapshot, loaded.
#[derive(Debug)]
pub struct Served {
    pub version: Version,
    pub digest: Digest,
    pub issued_at_ms: i64,
    pub manifest: Manifest,
    /// By the index that the ruleset uses.
    pub policies: Vec<Arc<crate::policies::Slot>>,
    /// Of a snapshot with policies.
    pub callers: Option<crate::policies::Callers>,
    pub evaluator: Arc<sandbox::Environment>,
    pub tenant: Arc<Tenant>,
    /// Of the last bulk answer; the next one is likely to be as long.
    pub bulk_bytes: AtomicUsize,
    /// What browsers get of it. Replaced in place when it is signed anew: nothing else changes then.
    pub client: ArcSwapOption<Client>,
    /// As the evaluator has it.
    pub ruleset: Arc<[u8]>,
    /// Of these bytes when they came, by which rot is noticed.
    pub ruleset_sum: u64,
    pub catalog: OnceLock<Catalog>,
}

impl Served {
    /// A request's body, of which a redacted part is taken if that was ordered.
    pub fn offer_sample(&self, body: &[u8]) {
        self.tenant.sampler.offer(body, crate::now_ms(), &self.manifest.stream_secret);
    }

    pub fn bulk_bytes(&self) -> usize {
        // With room for a few longer values, so that most answers need no second allocation.
        self.bulk_bytes.load(Ordering::Relaxed) + 256
    }

    pub fn remember_bulk_bytes(&self, bytes: usize) {
        self.bulk_bytes.store(bytes, Ordering::Relaxed);
    }
}

/// What stays of an environment from one snapshot to the next.
#[derive(Debug)]
pub struct Tenant {
    pub name: Name,
    pub announcements: watch::Sender<Announcement>,
    /// What browsers had last, for those that hear of a change late.
    pub ring: Ring,
    pub usage: Usage,
    pub sampler: Sampler,
    pub metrics: EnvironmentMetrics,
}

/// That answers may have changed. Clients compare `id`s, so it names the cause: snapshot, and the
/// last time boundary that has passed inside it.
#[derive(Debug, Clone, Default)]
pub struct Announcement {
    pub version: Option<Version>,
    pub boundary_ms: i64,
    pub last_modified_s: i64,
    /// When it was announced here.
    pub at: Option<Instant>,
}

impl Announcement {
    pub fn id(&self) -> String {
        let (generation, revision) =
            self.version.map_or((0, 0), |version| (version.generation, version.revision));
        format!("{generation}.{revision}.{}", self.boundary_ms)
    }

    /// The version that an id names; what else it says does not order.
    pub fn version_of(id: &str) -> Option<Version> {
        let mut parts = id.split('.');
        let generation = parts.next()?.parse().ok()?;
        let revision = parts.next()?.parse().ok()?;
        Some(Version { generation, revision })
    }

    /// Whether whoever was told of `other` was told of this.
    fn says(&self, other: &Announcement) -> bool {
        let said = |of: &Announcement| (of.version, of.boundary_ms, of.last_modified_s);
        said(self) == said(other)
    }

    fn of(served: &Served, now_ms: i64) -> Announcement {
        let passed = served.manifest.boundaries_ms.partition_point(|at_ms| *at_ms <= now_ms);
        let boundary_ms = passed
            .checked_sub(1)
            .and_then(|last| served.manifest.boundaries_ms.get(last))
            .copied()
            .unwrap_or(0);
        Announcement {
            version: Some(served.version),
            boundary_ms,
            last_modified_s: served.issued_at_ms.max(boundary_ms).max(0) / 1000,
            at: Some(Instant::now()),
        }
    }
}

/// A key and what it opens.
#[derive(Debug, Clone)]
pub struct Grant {
    pub served: Arc<Served>,
    pub key: Arc<Key>,
    pub audience: Audience,
}

#[derive(Debug)]
pub struct Key {
    pub record: KeyRecord,
    /// As long as the key is known, also from snapshot to snapshot. The map of limiters is the
    /// table itself, so it is bounded by the keys that snapshots name.
    limiter: Option<Arc<DefaultDirectRateLimiter>>,
    terms: Option<KeyTerms>,
    /// As the limiter, it outlives snapshots.
    used: Arc<Used>,
    stream: ArcSwapOption<StreamTail>,
}

/// When a key was used, in minutes since the epoch; 0 is never.
#[derive(Debug, Default)]
struct Used {
    last: AtomicI64,
    reported: AtomicI64,
}

impl Key {
    pub fn is_expired(&self, now_ms: i64) -> bool {
        self.left_ms(now_ms) == Some(0)
    }

    /// How long it is still valid; none: for good.
    pub fn left_ms(&self, now_ms: i64) -> Option<u64> {
        let expires_at_ms = self.terms?.expires_at_ms?;
        Some(u64::try_from(expires_at_ms.saturating_sub(now_ms)).unwrap_or(0))
    }

    fn per_second(&self) -> Option<NonZeroU32> {
        per_second(self.terms.as_ref())
    }

    pub fn used(&self, now_ms: i64) {
        let minute = now_ms.div_euclid(60_000);
        // Thousands of requests of a minute read this word; one of them writes it.
        if self.used.last.load(Ordering::Relaxed) < minute {
            self.used.last.fetch_max(minute, Ordering::Relaxed);
        }
    }

    /// The minute of its last use, if that was not reported yet.
    pub fn take_use(&self) -> Option<i64> {
        let last = self.used.last.load(Ordering::Relaxed);
        (self.used.reported.swap(last, Ordering::Relaxed) < last).then_some(last)
    }
}

/// The end of a bulk answer: what follows its metadata.
#[derive(Debug)]
struct StreamTail {
    expires_s: i64,
    json: Bytes,
}

impl Grant {
    /// How many seconds a client that asks too often shall wait.
    pub fn over_limit(&self) -> Option<u64> {
        let limiter = self.key.limiter.as_ref()?;
        let early = limiter.check().err()?;
        let wait = early.wait_time_from(limiter.clock().now());
        // A zero reads as a date for some clients (INTEROP 1.2), and "now" is what they did.
        Some(wait.as_secs() + 1)
    }

    /// `,"eventStreams":[…]}`, the same bytes for a whole token epoch.
    pub fn stream_tail(&self, now_s: i64) -> Bytes {
        let expires_s = StreamClaims::expiry_s(&self.key.record, now_s);
        if let Some(tail) = &*self.key.stream.load()
            && tail.expires_s == expires_s
        {
            return tail.json.clone();
        }
        let (namespace, environment) = &self.served.tenant.name;
        let claims = StreamClaims::at(namespace, environment, &self.key.record, now_s);
        let token = claims.sign(&self.served.manifest.stream_secret);
        // No origin: providers take their own base URL's, which is right behind any proxy, and an
        // empty one breaks the web provider.
        let json = Bytes::from(format!(
            r#","eventStreams":[{{"type":"sse","endpoint":{{"requestUri":"/ofrep/v1/events?token={token}"}},"inactivityDelaySec":120}}]}}"#
        ));
        self.key.stream.store(Some(Arc::new(StreamTail { expires_s, json: json.clone() })));
        json
    }
}

#[derive(Debug, Default)]
pub struct Table {
    environments: BTreeMap<Name, Arc<Served>>,
    keys: HashMap<[u8; 32], Grant>,
    /// What any browser key allows: a preflight does not say which key will follow.
    origins: HashSet<String>,
    every_origin: bool,
}

impl Table {
    pub fn is_empty(&self) -> bool {
        self.environments.is_empty()
    }

    pub fn environments(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.environments.values()
    }

    pub fn environment(&self, namespace: &str, environment: &str) -> Option<&Arc<Served>> {
        self.environments.get(&(namespace.to_owned(), environment.to_owned()))
    }

    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.keys.values()
    }

    pub fn grant(&self, hash: &[u8; 32]) -> Option<&Grant> {
        self.keys.get(hash)
    }

    /// A key that has not expired, by its id.
    pub fn key_by_id(&self, served: &Served, id: &str, now_ms: i64) -> Option<Arc<Key>> {
        let record = served.manifest.keys.iter().find(|key| key.id == id)?;
        let key = &self.keys.get(&record.hash)?.key;
        (!key.is_expired(now_ms)).then(|| key.clone())
    }

    /// Whether pages of this origin may read answers of this edge at all. Which key they may use
    /// is checked with the key.
    pub fn knows_origin(&self, origin: &HeaderValue) -> bool {
        self.every_origin || origin.to_str().is_ok_and(|origin| self.origins.contains(origin))
    }

    fn with(&self, rates: &Rates, served: Arc<Served>) -> Table {
        let mut environments = self.environments.clone();
        environments.insert(served.tenant.name.clone(), served);
        let mut table = Table { environments, ..Table::default() };
        for served in table.environments.values() {
            for (record, terms) in served.manifest.keys() {
                let Some(audience) = auth::audience(record.kind) else { continue };
                if record.kind == KeyKind::Browser {
                    table.every_origin |= record.origins.is_empty();
                    table.origins.extend(record.origins.iter().cloned());
                }
                let known = self.keys.get(&record.hash);
                let key = match known {
                    Some(known) if Arc::ptr_eq(&known.served, served) => known.key.clone(),
                    _ => Arc::new(Key {
                        record: record.clone(),
                        limiter: match known {
                            Some(known) if known.key.per_second() == per_second(terms) => {
                                known.key.limiter.clone()
                            }
                            _ => rates.limiter(record.kind, per_second(terms)),
                        },
                        terms: terms.copied(),
                        used: known.map(|known| known.key.used.clone()).unwrap_or_default(),
                        stream: ArcSwapOption::empty(),
                    }),
                };
                let grant = Grant { served: served.clone(), key, audience };
                table.keys.insert(record.hash, grant);
            }
        }
        table
    }
}

fn per_second(terms: Option<&KeyTerms>) -> Option<NonZeroU32> {
    terms.and_then(|terms| terms.per_second)
}

#[derive(Debug, Clone, Copy)]
pub struct Rates {
    pub server_per_s: Option<NonZeroU32>,
    pub browser_per_s: Option<NonZeroU32>,
}

impl Rates {
    /// `own` is what control set for the key.
    fn limiter(
        &self,
        kind: KeyKind,
        own: Option<NonZeroU32>,
    ) -> Option<Arc<DefaultDirectRateLimiter>> {
        let per_s = own.or(match kind {
            KeyKind::Browser => self.browser_per_s,
            _ => self.server_per_s,
        });
        per_s.map(|per_s| Arc::new(RateLimiter::direct(Quota::per_second(per_s))))
    }
}

#[derive(Debug)]
pub struct State {
    table: ArcSwap<Table>,
    rates: Rates,
    tenants: Mutex<HashMap<Name, Arc<Tenant>>>,
    /// Held while a table is built and the pointer moved, so that no swap is lost.
    swap: Mutex<()>,
    /// Counts swaps; for whoever waits for one.
    swaps: watch::Sender<u64>,
}

impl State {
    pub fn new(rates: Rates) -> State {
        State {
            table: ArcSwap::from_pointee(Table::default()),
            rates,
            tenants: Mutex::default(),
            swap: Mutex::default(),
            swaps: watch::Sender::new(0),
        }
    }

    pub fn table(&self) -> arc_swap::Guard<Arc<Table>> {
        self.table.load()
    }

    pub fn swaps(&self) -> watch::Receiver<u64> {
        self.swaps.subscribe()
    }

    /// The part of an environment that outlives its snapshots, made on first sight.
    pub fn tenant(&self, name: &Name, metrics: &Metrics) -> Arc<Tenant> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let tenant = tenants.entry(name.clone()).or_insert_with(|| {
            let metrics = metrics.environment(&name.0, &name.1);
            Arc::new(Tenant {
                name: name.clone(),
                usage: Usage::new(metrics.usage_dropped.clone()),
                sampler: Sampler::default(),
                announcements: watch::Sender::new(Announcement::default()),
                ring: Ring::default(),
                metrics,
            })
        });
        tenant.clone()
    }

    /// Serves `served` from the next request on. Refuses to go back, whoever asks: the check that
    /// counts is the one under the lock, at the time of the swap.
    pub fn swap(&self, served: Served, now_ms: i64) -> Result<(), Version> {
        let served = Arc::new(served);
        {
            let _one_at_a_time = self.swap.lock().unwrap_or_else(PoisonError::into_inner);
            let table = self.table.load();
            if let Some(current) = table.environments.get(&served.tenant.name)
                && current.version > served.version
                && !seam::planted("edge-goes-back")
            {
                return Err(current.version);
            }
            if let Some(client) = &*served.client.load() {
                served.tenant.ring.keep(client);
            }
            self.table.store(Arc::new(table.with(&self.rates, served.clone())));
        }
        self.announce(&served, now_ms);
        self.swaps.send_modify(|swaps| *swaps += 1);
        Ok(())
    }

    fn announce(&self, served: &Served, now_ms: i64) {
        let announcement = Announcement::of(served, now_ms);
        served.tenant.announcements.send_if_modified(|current| {
            // A swap and a boundary may come at once; the later snapshot's word stands.
            let newer = current.version <= announcement.version && !current.says(&announcement);
            if newer {
                *current = announcement;
            }
            newer
        });
    }

    /// Announces the boundaries that have passed; answers when the next one will.
    pub fn announce_boundaries(&self, now_ms: i64) -> Option<i64> {
        let table = self.table.load_full();
        let mut next: Option<i64> = None;
        for served in table.environments() {
            self.announce(served, now_ms);
            let passed = served.manifest.boundaries_ms.partition_point(|at_ms| *at_ms <= now_ms);
            if let Some(at_ms) = served.manifest.boundaries_ms.get(passed) {
                next = Some(next.map_or(*at_ms, |earliest| earliest.min(*at_ms)));
            }
        }
        next
    }
}
