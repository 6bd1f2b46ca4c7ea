//! From a head to a served snapshot, or to a reason why not.
//!
//! Whatever brings a head (long poll, tick, bus, disk), it goes through the same steps: verify the
//! signature, compare (generation, revision), fetch the blob and its id lists, check lengths and
//! digests, decode, load into the sandbox, evaluate once, write to disk, swap, report. A step that
//! fails leaves the last good snapshot where it is, and the refusal stands in the next receipt.
//!
//! A disk that does not take a snapshot does not keep it from being served: a kill switch matters
//! more than a restart. The edge then says so (`/readyz`, metrics, log), and tries again with every
//! tick; until it succeeds a restart without control would serve the newest snapshot on disk,
//! which is the one way in which a version can fall, and never while the process lives.
//!
//! An environment that the feed no longer names keeps being served: nothing is not an instruction.

mod clients;
mod rot;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use rules::answer::Audience;
use rules::blob::{Digest, FORMAT, ListRef, Manifest, PolicyBlob, lists::IdList};
use rules::context::ContextBuf;
use rules::head::{
    BlobRef, ClientRef, Head, HeadError, PublicKey, Receipt, Receipts, Rejection, SignedHead,
    Version,
};
use rules::limits::{POLICY_BYTES_MAX, SEGMENT_IDS_MAX, SNAPSHOT_BYTES_MAX};
use sandbox::policy::PolicyConfig;
use sandbox::{Sandbox, SandboxError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::breaker::Breaker;
use crate::client::Client;
use crate::disk::{Disk, Entry, ReadError, Role, Stored};
use crate::feed::{Feed, FeedError, back_off, jittered};
use crate::metrics::{Metrics, SyncResult};
use crate::policies::{COLD_WAIT, Callers, Policies, Slot, SnapshotHost, WARM_WAIT};
use crate::state::{Name, Served, State};

/// Environments that are fetched and loaded at once: enough to hide a round trip, few enough that
/// a cold start with 50 of them does not hold 50 blobs twice.
const ENVIRONMENTS_AT_ONCE: usize = 4;
const BREAKER_TICK: Duration = Duration::from_secs(1);
/// Tries to answer before a snapshot counts as one that cannot.
const CHECKS_MAX: usize = 3;
/// Shorter snapshots are fetched whole: a delta would save no round trip and little else.
const DELTA_BYTES_MIN: u64 = 16 * 1024;
const RECEIPT_TIMEOUT: Duration = Duration::from_secs(10);
const HEADS_TIMEOUT: Duration = Duration::from_secs(20);
/// At 32 MiB a link of 4 Mbit/s.
const BLOB_TIMEOUT: Duration = Duration::from_secs(60);
/// A frame around sorted 16-byte hashes.
const LIST_BYTES_MAX: u64 = SEGMENT_IDS_MAX as u64 * 16 + 1024;

/// Why a snapshot is not served.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("its client snapshot: {0}")]
    Client(#[from] rules::client::ClientError),
    #[error("the head needs reader {needs}, this is reader {FORMAT}")]
    TooNew { needs: u16 },
    #[error("it has the version that is served, with another digest")]
    Diverged,
    #[error("the {what} is announced with {bytes} bytes, the limit is {bytes_max}")]
    OverLimit { what: &'static str, bytes: u64, bytes_max: u64 },
    #[error("the {what} could not be fetched: {source}")]
    Fetch { what: &'static str, source: FeedError },
    #[error("the {what}'s bytes are not those that its digest names")]
    Digest { what: &'static str },
    #[error("it does not load: {0}")]
    Load(String),
    #[error("the id list is not on disk")]
    ListMissing,
    #[error("it brought this edge down twice, and is tried again later")]
    Quarantined,
}

impl Refusal {
    /// Whether the same head may succeed later. What is wrong with signed bytes stays wrong.
    fn is_transient(&self) -> bool {
        self.is_unfetched() || matches!(self, Refusal::Quarantined)
    }

    /// Whether its bytes are all that is wrong, which says nothing of the snapshot.
    fn is_unfetched(&self) -> bool {
        matches!(self, Refusal::Fetch { .. } | Refusal::Digest { .. } | Refusal::ListMissing)
    }

    /// Whether a file with this fault is not what was once written.
    fn is_damage(&self) -> bool {
        matches!(
            self,
            Refusal::Digest { .. }
                | Refusal::Head(HeadError::BadSignature | HeadError::Malformed(_))
        )
    }
}

/// What sync knows beside what is served; shared with `/readyz`.
#[derive(Debug, Default)]
pub struct Progress {
    /// Every head of a first answer was tried, or the disk had snapshots: from now on an unknown
    /// key is unknown, and not merely early.
    pub settled: bool,
    pub feed_contact_ms: Option<i64>,
    pub feed_error: Option<String>,
    /// Snapshots that are served but could not be written, and why.
    pub unsaved: HashMap<Name, String>,
}

pub struct Sync {
    edge_id: String,
    trusted: watch::Receiver<Vec<PublicKey>>,
    anti_entropy: Duration,
    verify_every: Duration,
    found: rot::Found,
    feed: Arc<dyn Feed>,
    sandbox: Arc<Sandbox>,
    state: Arc<State>,
    disk: Option<Disk>,
    breaker: Arc<Breaker>,
    metrics: Metrics,
    pub progress: Arc<Mutex<Progress>>,
    /// What was refused last of each environment.
    refused: Mutex<BTreeMap<Name, Refused>>,
    /// Written again with the next tick.
    unsaved: Mutex<BTreeMap<Name, Unsaved>>,
    /// By its id, the key of each head that is on disk.
    signed_with: Mutex<BTreeMap<Name, String>>,
    /// Lists that each file on disk names.
    lists_of: ListsOf,
    /// Shared between snapshots: a list of a million ids is 16 MB.
    lists: Mutex<HashMap<Digest, Kept>>,
    policies: Arc<Policies>,
}

/// A list in memory, and what its bytes summed up to when it came.
struct Kept {
    list: std::sync::Weak<IdList>,
    sum: u64,
}

type ListsOf = Arc<Mutex<HashMap<PathBuf, Vec<Digest>>>>;

#[derive(Debug, Clone)]
struct Refused {
    version: Version,
    digest: Digest,
    reason: String,
    lasting: bool,
    unfetched: bool,
}

impl From<Refused> for Rejection {
    fn from(refused: Refused) -> Rejection {
        let Refused { version, reason, unfetched, .. } = refused;
        Rejection { version, reason, unfetched }
    }
}

#[derive(Debug, Clone)]
struct Unsaved {
    version: Version,
    stored: Stored,
    lists: Vec<(Digest, Bytes)>,
}

/// What to do with snapshots that brought this edge down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspects {
    PassedOver,
    Tried,
}

enum Round {
    Complete,
    /// Something could not be fetched and is worth asking for again soon.
    Unfinished,
}

/// What a head asks this edge to serve.
#[derive(Debug)]
struct Target {
    head: Head,
    role: Role,
    version: Version,
    blob: BlobRef,
    client: Option<ClientRef>,
}

/// Where id lists may be had, beside the disk.
#[derive(Debug, Clone, Copy)]
enum Source {
    Feed,
    /// Nowhere: what is on disk has to be whole, since there may be nobody to ask.
    Disk,
}

struct Loaded {
    manifest: Manifest,
    evaluator: Arc<sandbox::Environment>,
    ruleset: Arc<[u8]>,
    /// Id lists and policies, for the disk.
    lists: Vec<(Digest, Bytes)>,
    policies: Vec<Arc<Slot>>,
    callers: Option<Callers>,
    client: Option<Arc<Client>>,
}

impl Sync {
    pub fn new(
        config: &crate::config::Config,
        feed: Arc<dyn Feed>,
        sandbox: Arc<Sandbox>,
        state: Arc<State>,
        disk: Option<Disk>,
        metrics: Metrics,
    ) -> Sync {
        let cache_dir = config.data_dir.as_ref().map(|folder| folder.join("compiled"));
        let helper = config.policy_helper.clone();
        let policies = Policies::new(PolicyConfig { helper, cache_dir }, metrics.clone());
        let policies = Arc::new(policies);
        let breaker = Breaker::open(disk.clone(), config.healthy_after, crate::now_ms());
        Sync {
            breaker: Arc::new(breaker),
            edge_id: config.edge_id.clone(),
            trusted: config.trusted.clone(),
            anti_entropy: config.anti_entropy,
            verify_every: config.verify_every,
            found: rot::Found::default(),
            feed,
            sandbox,
            state,
            disk,
            metrics,
            progress: Arc::default(),
            refused: Mutex::default(),
            unsaved: Mutex::default(),
            signed_with: Mutex::default(),
            lists_of: ListsOf::default(),
            lists: Mutex::default(),
            policies,
        }
    }

    /// Serves what the disk has, before anybody is asked. Of each environment the newest snapshot
    /// that verifies and loads; what is damaged is set aside.
    pub async fn restore(&self) {
        let Some(disk) = &self.disk else { return };
        let environments = match disk.entries() {
            Ok(environments) => environments,
            Err(error) => {
                tracing::error!(%error, "the data folder cannot be read");
                self.metrics.disk_failures.increment(1);
                return;
            }
        };
        let all: Vec<_> =
            environments.into_iter().map(|entries| self.restore_newest(disk, entries)).collect();
        futures_util::stream::iter(all)
            .buffer_unordered(self.at_once())
            .for_each(std::future::ready)
            .await;
        if !self.state.table().is_empty() {
            lock(&self.progress).settled = true;
        }
    }

    fn at_once(&self) -> usize {
        if self.breaker.is_wary() { 1 } else { ENVIRONMENTS_AT_ONCE }
    }

    async fn restore_newest(&self, disk: &Disk, newest_first: Vec<Entry>) {
        for entry in &newest_first {
            if self.restore_one(disk, entry, Suspects::PassedOver).await {
                return;
            }
        }
        // Nothing else is left: one that brought the edge down is better than none.
        for entry in &newest_first {
            if entry.path.exists() && self.restore_one(disk, entry, Suspects::Tried).await {
                return;
            }
        }
    }

    async fn restore_one(&self, disk: &Disk, entry: &Entry, suspects: Suspects) -> bool {
        let refusal = match self.try_restore(disk, entry, suspects).await {
            Ok(version) => {
                tracing::info!(file = %entry.path.display(), ?version, "serving from disk");
                return true;
            }
            Err(refusal) => refusal,
        };
        self.metrics.disk_failures.increment(1);
        let damaged = match &refusal {
            Ok(refusal) => refusal.is_damage(),
            Err(error) => matches!(error, ReadError::Damaged(_)),
        };
        let reason = match refusal {
            Ok(refusal) => refusal.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(file = %entry.path.display(), reason, damaged, "a snapshot on disk is no good");
        if damaged {
            self.metrics.quarantined.increment(1);
            if let Err(error) = disk.quarantine(entry) {
                tracing::error!(%error, "a damaged snapshot could not be set aside");
            }
        }
        false
    }

    async fn try_restore(
        &self,
        disk: &Disk,
        entry: &Entry,
        suspects: Suspects,
    ) -> Result<Version, Result<Refusal, ReadError>> {
        let stored = disk.read(entry).map_err(Err)?;
        let head = stored.head.verify(&self.trusted.borrow()).map_err(|error| Ok(error.into()))?;
        let target = match (stored.role, &head.previous) {
            (Role::Newest, _) => Target::newest(head),
            (Role::Previous, Some(_)) => Target::previous(head),
            (Role::Previous, None) => return Err(Err(ReadError::Damaged("no such role"))),
        };
        target.check_limits().map_err(Ok)?;
        let digest = target.blob.digest;
        if suspects == Suspects::PassedOver && !self.breaker.allows(digest, crate::now_ms()) {
            return Err(Ok(Refusal::Quarantined));
        }
        self.breaker.begin(digest);
        let key_id = &stored.head.key_id;
        let loaded = self.load(&target, key_id, &stored.blob, Source::Disk).await;
        let loaded = loaded.map_err(|refusal| {
            self.breaker.refused(digest);
            Ok(refusal)
        })?;
        let client = target.client.as_ref().map(|client| client.digest);
        let lists = loaded.manifest.blobs().into_iter().chain(client).collect();
        lock(&self.lists_of).insert(entry.path.clone(), lists);
        let version = target.version;
        lock(&self.signed_with).insert(target.name(), stored.head.key_id);
        self.serve(&target, loaded).map_err(Ok)?;
        Ok(version)
    }

    /// Follows the feed until told to stop.
    pub async fn run(&self, stop: CancellationToken) {
        let mut etag: Option<String> = None;
        let mut failures: u32 = 0;
        let feed = self.feed.clone();
        let mut bell = feed.changed();
        let mut trusted = self.trusted.clone();
        loop {
            trusted.borrow_and_update();
            if !self.found.is_nothing() {
                // What is damaged is named by heads that are known.
                etag = None;
            }
            let round = self.round(&mut etag).await;
            let source = if round.is_ok() { Source::Feed } else { Source::Disk };
            self.compile_again(source).await;
            let wait = match round {
                Ok(Round::Complete) => {
                    failures = 0;
                    jittered(self.anti_entropy)
                }
                Ok(Round::Unfinished) => {
                    failures = failures.saturating_add(1);
                    back_off(failures).min(jittered(self.anti_entropy))
                }
                Err(error) => {
                    self.metrics.feed_failures.increment(1);
                    let reason = chain(&error);
                    if failures == 0 {
                        tracing::warn!(reason, "control does not answer; serving what there is");
                    }
                    lock(&self.progress).feed_error = Some(reason);
                    failures = failures.saturating_add(1);
                    back_off(failures).min(jittered(self.anti_entropy))
                }
            };
            let until = tokio::time::Instant::now() + wait;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {
                        self.breaker.end();
                        return;
                    }
                    () = tokio::time::sleep_until(until) => break,
                    () = &mut bell => {
                        bell = feed.changed();
                        break;
                    }
                    () = self.found.something() => break,
                    Ok(()) = trusted.changed() => {
                        // What was refused may be good now, and nobody would send it again.
                        etag = None;
                        break;
                    }
                    () = tokio::time::sleep(BREAKER_TICK) => {
                        self.breaker.upkeep();
                        // Control goes back to the version before by what receipts say.
                        if self.policies.has_news() {
                            break;
                        }
                    }
                }
            }
            self.breaker.upkeep();
        }
    }

    /// Asks once, follows what is there, and reports.
    async fn round(&self, etag: &mut Option<String>) -> Result<Round, FeedError> {
        let mut round = Round::Complete;
        let answer = within(HEADS_TIMEOUT, self.feed.heads(etag.clone())).await?;
        {
            let now_ms = crate::now_ms();
            let mut progress = lock(&self.progress);
            progress.feed_contact_ms = Some(now_ms);
            progress.feed_error = None;
            self.metrics.feed_contact_s.set(now_ms as f64 / 1000.0);
        }
        if let Some((heads, new)) = answer {
            let all: Vec<_> = heads.heads.iter().map(|head| self.follow(head)).collect();
            let results: Vec<bool> =
                futures_util::stream::iter(all).buffer_unordered(self.at_once()).collect().await;
            // What may succeed later is asked for again: a kept ETag would hide it for ever.
            let done =
                results.iter().all(|done| *done) || seam::planted("etag-kept-when-unfinished");
            *etag = done.then_some(new);
            if etag.is_none() {
                round = Round::Unfinished;
            }
            lock(&self.progress).settled = true;
        }
        self.save_again().await;
        let receipts = self.receipts();
        if !receipts.receipts.is_empty() {
            // No retry here: the next round reports again, and newer.
            within(RECEIPT_TIMEOUT, self.feed.receipts(receipts)).await?;
        }
        Ok(round)
    }

    /// One head, through all steps. True if there is nothing left to try.
    async fn follow(&self, signed: &SignedHead) -> bool {
        let target = match signed.verify(&self.trusted.borrow()) {
            Ok(head) => Target::of(head, &self.edge_id),
            Err(_) if seam::planted("no-signature-check") && signed.claims().is_some() => {
                match signed.claims() {
                    Some(claims) => Target::of(claims, &self.edge_id),
                    None => return true,
                }
            }
            Err(error) => {
                self.refuse_unverified(signed, &error);
                return true;
            }
        };
        let name = target.name();
        let tenant = self.state.tenant(&name, &self.metrics);
        let count = |result| tenant.metrics.count_sync(result);
        if let Some(served) = self.state.table().environment(&name.0, &name.1) {
            let is_older = match seam::planted("generation-ignored") {
                true => target.version.revision < served.version.revision,
                false => target.version < served.version,
            };
            if is_older && target.role == Role::Previous && !seam::planted("edge-goes-back") {
                // A rollout that this edge was in has been replaced by one that comes later here.
                return true;
            }
            if is_older && !seam::planted("edge-goes-back") {
                count(SyncResult::Older);
                tracing::warn!(?name, offered = ?target.version, serving = ?served.version, "an older head is ignored");
                return true;
            }
            if target.version == served.version && target.blob.digest == served.digest {
                lock(&self.refused).remove(&name);
                if self.found.has(&name) {
                    return self.mended(&name, signed, &target).await;
                }
                let done = self.refresh_client(&name, &target, signed).await;
                self.keep_signed(&name, &target, signed).await;
                return done;
            }
        }
        if self.refused_for_good(&name, &target) {
            return true;
        }
        match self.fetch_and_serve(signed, &target).await {
            Ok(()) => {
                count(SyncResult::Applied);
                self.found.mended(&name);
                lock(&self.refused).remove(&name);
                tracing::info!(?name, version = ?target.version, "serving a new snapshot");
                true
            }
            Err(refusal) => {
                let lasting = !refusal.is_transient();
                count(if lasting { SyncResult::Refused } else { SyncResult::Failed });
                let (reason, unfetched) = (refusal.to_string(), refusal.is_unfetched());
                tracing::error!(?name, version = ?target.version, reason, "a snapshot is refused; the last good one stays");
                let (version, digest) = (target.version, target.blob.digest);
                let refused = Refused { version, digest, reason, lasting, unfetched };
                lock(&self.refused).insert(name, refused);
                lasting
            }
        }
    }

    /// What was found damaged, made whole. True if there is nothing left to try.
    async fn mended(&self, name: &Name, signed: &SignedHead, target: &Target) -> bool {
        match self.mend(signed, target).await {
            Ok(()) => {
                tracing::info!(?name, version = ?target.version, "what had rotted is whole again");
                self.found.mended(name);
                true
            }
            Err(refusal) => {
                // It is served on, and looked at again when it is time.
                let (reason, again) = (refusal.to_string(), refusal.is_transient());
                tracing::error!(?name, reason, "what has rotted could not be mended");
                if !again {
                    self.found.mended(name);
                }
                !again
            }
        }
    }

    /// What is served was signed with another key since: the file has to say so too, or it could not
    /// be believed once the old key is trusted no more.
    async fn keep_signed(&self, name: &Name, target: &Target, signed: &SignedHead) {
        if self.disk.is_none() || lock(&self.signed_with).get(name) == Some(&signed.key_id) {
            return;
        }
        let version = target.version;
        // What is not on disk is written with the next snapshot, or when the disk takes it again.
        let Some(blob) = self.kept(name, version, target.blob.digest).await else { return };
        let stored = Stored { head: signed.clone(), role: target.role, blob };
        self.save(name, Unsaved { version, stored, lists: Vec::new() }).await;
    }

    async fn fetch_and_serve(&self, signed: &SignedHead, target: &Target) -> Result<(), Refusal> {
        let name = target.name();
        target.check_limits()?;
        if let Some(served) = self.state.table().environment(&name.0, &name.1)
            && served.version == target.version
        {
            return Err(Refusal::Diverged);
        }
        let digest = target.blob.digest;
        if !self.breaker.allows(digest, crate::now_ms()) {
            return Err(Refusal::Quarantined);
        }
        let breaker = self.breaker.clone();
        // Written down while the bytes are on their way, so that it costs no time.
        let noted = seam::blocking(move || breaker.begin(digest));
        let blob = self.fetch_snapshot(&name, target).await;
        let _ = noted.await;
        let loaded = match blob {
            Ok(blob) => {
                let loaded = self.load(target, &signed.key_id, &blob, Source::Feed).await;
                loaded.map(|loaded| (blob, loaded))
            }
            Err(refusal) => Err(refusal),
        };
        let (blob, loaded) = loaded.inspect_err(|_| self.breaker.refused(digest))?;
        let stored = Stored { head: signed.clone(), role: target.role, blob };
        let lists = loaded.lists.clone();
        self.save(&name, Unsaved { version: target.version, stored, lists }).await;
        self.serve(target, loaded)
    }

    /// As the difference from what is served, if that is on disk and the whole is not short anyway.
    async fn fetch_snapshot(&self, name: &Name, target: &Target) -> Result<Bytes, Refusal> {
        let (digest, bytes) = (target.blob.digest, target.blob.bytes);
        let served = self
            .state
            .table()
            .environment(&name.0, &name.1)
            .map(|served| (served.version, served.digest));
        let base = match served {
            Some((version, base)) if bytes >= DELTA_BYTES_MIN => {
                // One that has rotted would make every delta in vain.
                self.kept(name, version, base).await.map(|bytes| (base, bytes))
            }
            _ => None,
        };
        let Some(base) = base else {
            return self.fetch("snapshot", &name.0, digest, bytes).await;
        };
        within(BLOB_TIMEOUT, self.feed.blob_from(&name.0, base, digest, bytes))
            .await
            .map_err(|source| Refusal::Fetch { what: "snapshot", source })
    }

    async fn fetch(
        &self,
        what: &'static str,
        namespace: &str,
        digest: Digest,
        bytes: u64,
    ) -> Result<Bytes, Refusal> {
        let content = within(BLOB_TIMEOUT, self.feed.blob(namespace, digest, bytes))
            .await
            .map_err(|source| Refusal::Fetch { what, source })?;
        Ok(content)
    }

    /// Bytes to an evaluator that has answered. Id lists come from `source`.
    async fn load(
        &self,
        target: &Target,
        key_id: &str,
        blob: &Bytes,
        source: Source,
    ) -> Result<Loaded, Refusal> {
        verify("snapshot", blob, target.blob.digest, target.blob.bytes)?;
        let (manifest, ruleset) =
            rules::blob::decode_blob(blob).map_err(|error| Refusal::Load(error.to_string()))?;
        let named = (&manifest.namespace, &manifest.environment);
        if named != (&target.head.namespace, &target.head.environment) {
            return Err(Refusal::Load("it is of another environment than its head".to_owned()));
        }
        if !manifest.boundaries_ms.is_sorted() {
            return Err(Refusal::Load("its time boundaries are not in order".to_owned()));
        }
        let mut contents = Vec::new();
        let mut id_lists = Vec::new();
        for reference in &manifest.lists {
            if reference.bytes > LIST_BYTES_MAX {
                let (bytes, bytes_max) = (reference.bytes, LIST_BYTES_MAX);
                return Err(Refusal::OverLimit { what: "id list", bytes, bytes_max });
            }
            let bytes = self.list_bytes(source, &target.head.namespace, reference).await?;
            verify("id list", &bytes, reference.digest, reference.bytes)?;
            id_lists.push(self.id_list(reference.digest, &bytes)?);
            contents.push((reference.digest, bytes));
        }
        let client = self.client_of(target, key_id, source, &mut contents).await?;
        let slots = self.policies_of(&target.name(), &manifest, source, &mut contents).await?;
        let host =
            SnapshotHost { lists: id_lists, policies: slots.clone(), all: self.policies.clone() };
        let ruleset: Arc<[u8]> = Arc::from(ruleset);
        let (sandbox, kept) = (self.sandbox.clone(), ruleset.clone());
        let all = (!slots.is_empty()).then(|| self.policies.clone());
        // Instantiating and decoding take milliseconds, which would hold up requests.
        let (evaluator, callers) = seam::blocking(move || {
            fail_of(&ruleset)?;
            let callers = all.map(|all| Callers::of(&ruleset, all)).transpose();
            let callers = callers.map_err(|error| error.to_string())?;
            let evaluator =
                sandbox.load(ruleset, Arc::new(host)).map_err(|error| error.to_string())?;
            check_answers(&evaluator)?;
            Ok::<_, String>((evaluator, callers))
        })
        .await
        .map_err(|_| Refusal::Load("loading it panicked".to_owned()))?
        .map_err(Refusal::Load)?;
        let (ruleset, lists, policies) = (kept, contents, slots);
        Ok(Loaded { manifest, evaluator, ruleset, lists, policies, callers, client })
    }

    async fn list_bytes(
        &self,
        source: Source,
        namespace: &str,
        list: &ListRef,
    ) -> Result<Bytes, Refusal> {
        self.bytes_of("id list", source, namespace, (list.digest, list.bytes)).await
    }

    async fn bytes_of(
        &self,
        what: &'static str,
        source: Source,
        namespace: &str,
        (digest, bytes): (Digest, u64),
    ) -> Result<Bytes, Refusal> {
        let on_disk = match &self.disk {
            Some(disk) => disk.list(digest, bytes).ok(),
            None => None,
        };
        match (on_disk, source) {
            (Some(bytes), _) => Ok(bytes),
            (None, Source::Feed) => self.fetch(what, namespace, digest, bytes).await,
            (None, Source::Disk) => Err(Refusal::ListMissing),
        }
    }

    /// Policies are compiled before the swap, in the helper process. Where nothing is served yet they
    /// are not waited for, beyond what a look into the cache of compiled code takes, and nowhere for
    /// long: their rules serve their fallback until they are there.
    async fn policies_of(
        &self,
        name: &Name,
        manifest: &Manifest,
        source: Source,
        contents: &mut Vec<(Digest, Bytes)>,
    ) -> Result<Vec<Arc<Slot>>, Refusal> {
        if manifest.policies.is_empty() {
            return Ok(Vec::new());
        }
        let mut slots = Vec::with_capacity(manifest.policies.len());
        let mut compiling = Vec::new();
        for pin in &manifest.policies {
            let slot = self.policies.slot(name, pin);
            slots.push(slot.clone());
            let version = self.module(source, name, pin.version, contents).await;
            let shadow = match pin.shadow {
                Some(shadow) => Some(self.module(source, name, shadow.version, contents).await),
                None => None,
            };
            let version = match (version, source) {
                (Ok(version), _) => version,
                // Nobody to ask yet: the rest of the snapshot is whole.
                (Err(Refusal::ListMissing), Source::Disk) => continue,
                (Err(refusal), _) => return Err(refusal),
            };
            let shadow = shadow.and_then(Result::ok);
            let work = self.policies.clone().compile(slot, version, shadow);
            compiling.push(tokio::spawn(work));
        }
        let all = futures_util::future::join_all(compiling);
        let is_cold = self.state.table().environment(&name.0, &name.1).is_none();
        let patience = if is_cold { COLD_WAIT } else { WARM_WAIT };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(
                ?name,
                "served while policies are being compiled; their rules fall back"
            );
        }
        for absent in slots.iter().filter(|slot| slot.is_absent()) {
            tracing::warn!(?name, policy = absent.name, "served without this policy");
        }
        Ok(slots)
    }

    /// What is served without its module, since it could not be compiled or was not there: where it
    /// is due it is compiled after all, beside everything else.
    async fn compile_again(&self, source: Source) {
        let mut due = Vec::new();
        for served in self.state.table().environments() {
            let pinned = served.policies.iter().zip(&served.manifest.policies);
            for (slot, pin) in pinned.filter(|(slot, _)| slot.is_due()) {
                due.push((served.tenant.name.clone(), slot.clone(), pin.version, pin.shadow));
            }
        }
        for (name, slot, version, shadow) in due {
            let shadow = match shadow {
                Some(shadow) => {
                    self.module(source, &name, shadow.version, &mut Vec::new()).await.ok()
                }
                None => None,
            };
            match self.module(source, &name, version, &mut Vec::new()).await {
                Ok(wasm) => {
                    drop(tokio::spawn(self.policies.clone().compile(slot, wasm, shadow)));
                }
                // The next round asks again.
                Err(refusal) => {
                    tracing::warn!(?name, policy = slot.name, %refusal, "no module to compile");
                }
            }
        }
    }

    async fn module(
        &self,
        source: Source,
        (namespace, _): &Name,
        version: PolicyBlob,
        contents: &mut Vec<(Digest, Bytes)>,
    ) -> Result<Bytes, Refusal> {
        let (bytes, bytes_max) = (u64::from(version.bytes), POLICY_BYTES_MAX as u64);
        if bytes > bytes_max {
            return Err(Refusal::OverLimit { what: "policy", bytes, bytes_max });
        }
        let digest = version.digest;
        let content = self.bytes_of("policy", source, namespace, (digest, bytes)).await?;
        verify("policy", &content, digest, bytes)?;
        contents.push((digest, content.clone()));
        Ok(content)
    }

    fn id_list(&self, digest: Digest, bytes: &[u8]) -> Result<Arc<IdList>, Refusal> {
        let mut lists = lock(&self.lists);
        if let Some(list) = lists.get(&digest).and_then(|kept| kept.list.upgrade()) {
            return Ok(list);
        }
        let list =
            Arc::new(IdList::decode(bytes).map_err(|error| Refusal::Load(error.to_string()))?);
        lists.retain(|_, kept| kept.list.strong_count() > 0);
        let kept = Kept { list: Arc::downgrade(&list), sum: rot::sum(&list.encode()) };
        lists.insert(digest, kept);
        Ok(list)
    }

    fn serve(&self, target: &Target, loaded: Loaded) -> Result<(), Refusal> {
        let served = Served {
            version: target.version,
            digest: target.blob.digest,
            issued_at_ms: target.head.issued_at_ms,
            manifest: loaded.manifest,
            policies: loaded.policies,
            callers: loaded.callers,
            evaluator: loaded.evaluator,
            tenant: self.state.tenant(&target.name(), &self.metrics),
            bulk_bytes: Default::default(),
            client: ArcSwapOption::from(loaded.client),
            ruleset_sum: rot::sum(&loaded.ruleset),
            ruleset: loaded.ruleset,
            catalog: Default::default(),
        };
        for slot in &served.policies {
            slot.show();
        }
        // The same environment twice in one answer of the feed: the newer one has won.
        let _ = self.state.swap(served, crate::now_ms());
        self.breaker.served(&target.name(), target.blob.digest);
        Ok(())
    }

    /// Never keeps a snapshot from being served; remembers what it could not write.
    async fn save(&self, name: &Name, snapshot: Unsaved) {
        let Some(disk) = self.disk.clone() else { return };
        let version = snapshot.version;
        let (of, copy, lists_of) = (name.clone(), snapshot.clone(), self.lists_of.clone());
        let written = seam::blocking(move || {
            let path = disk.save(&of, copy.version, &copy.stored, &copy.lists)?;
            // Under another head it may name more than it did.
            lock(&lists_of).remove(&path);
            prune(&disk, &lists_of);
            Ok(())
        })
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("writing it panicked")));
        match written {
            Ok(()) => {
                lock(&self.signed_with).insert(name.clone(), snapshot.stored.head.key_id);
                let mut unsaved = lock(&self.unsaved);
                // A burst brings two versions at once, and the older one may be written last: that
                // says nothing of the newer one.
                if unsaved.get(name).is_none_or(|kept| kept.version <= version) {
                    unsaved.remove(name);
                    lock(&self.progress).unsaved.remove(name);
                }
            }
            Err(error) => {
                self.metrics.disk_failures.increment(1);
                tracing::error!(?name, %error, "a snapshot is served but could not be written");
                let mut unsaved = lock(&self.unsaved);
                if unsaved.get(name).is_none_or(|kept| kept.version <= version) {
                    unsaved.insert(name.clone(), snapshot);
                    lock(&self.progress).unsaved.insert(name.clone(), error.to_string());
                }
            }
        }
    }

    async fn save_again(&self) {
        let unsaved: Vec<(Name, Unsaved)> = lock(&self.unsaved).clone().into_iter().collect();
        for (name, snapshot) in unsaved {
            self.save(&name, snapshot).await;
        }
    }

    fn refused_for_good(&self, name: &Name, target: &Target) -> bool {
        lock(&self.refused).get(name).is_some_and(|refused| {
            refused.lasting
                && refused.version == target.version
                && refused.digest == target.blob.digest
        })
    }

    /// A head that nobody trusted signed. Whose it claims to be is told to control and believed by
    /// nobody.
    fn refuse_unverified(&self, signed: &SignedHead, error: &HeadError) {
        let reason = error.to_string();
        let Ok(claimed) = serde_json::from_str::<Head>(&signed.head) else {
            tracing::error!(reason, "a head is refused and does not even say whose it is");
            return;
        };
        let name = (claimed.namespace, claimed.environment);
        tracing::error!(?name, version = ?claimed.version, reason, "a head is refused");
        let table = self.state.table();
        let Some(served) = table.environment(&name.0, &name.1) else {
            // No entry for a name that came with a forged head, or forgers could fill memory.
            return;
        };
        served.tenant.metrics.count_sync(SyncResult::Refused);
        let (version, digest) = (claimed.version, claimed.snapshot.digest);
        let refused = Refused { version, digest, reason, lasting: false, unfetched: false };
        lock(&self.refused).insert(name, refused);
    }

    fn receipts(&self) -> Receipts {
        let table = self.state.table();
        let mut refused = lock(&self.refused).clone();
        let mut rejection = |name: &Name| refused.remove(name).map(Rejection::from);
        let mut receipts: Vec<Receipt> = table
            .environments()
            .map(|served| {
                let rejected = rejection(&served.tenant.name);
                let receipt =
                    self.receipt(&served.tenant.name, served.version, served.digest, rejected);
                let policies = served.policies.iter().map(|slot| slot.report()).collect();
                Receipt { policies, ..receipt }
            })
            .collect();
        // Of what is refused and has no last good snapshot: version 0.0, which nothing real has.
        let nothing = Version { generation: 0, revision: 0 };
        for (name, refused) in refused {
            let rejected = Some(refused.into());
            receipts.push(self.receipt(&name, nothing, Digest([0; 32]), rejected));
        }
        Receipts { receipts }
    }

    fn receipt(
        &self,
        (namespace, environment): &Name,
        version: Version,
        digest: Digest,
        rejected: Option<Rejection>,
    ) -> Receipt {
        Receipt {
            edge: self.edge_id.clone(),
            namespace: namespace.clone(),
            environment: environment.clone(),
            version,
            digest,
            reader: FORMAT,
            rejected,
            policies: Vec::new(),
        }
    }
}

impl Target {
    /// What this edge shall serve: the newest snapshot, or the one before while a staged rollout
    /// has not come to this edge.
    fn of(head: Head, edge_id: &str) -> Target {
        if head.reaches(edge_id) { Target::newest(head) } else { Target::previous(head) }
    }

    fn newest(head: Head) -> Target {
        let (version, blob) = (head.version, head.snapshot.clone());
        let client = head.client.clone();
        Target { head, role: Role::Newest, version, blob, client }
    }

    fn previous(head: Head) -> Target {
        match &head.previous {
            Some(previous) => {
                let (version, blob) = (previous.version, previous.snapshot.clone());
                let client = previous.client.clone();
                Target { head, role: Role::Previous, version, blob, client }
            }
            None => Target::newest(head),
        }
    }

    fn name(&self) -> Name {
        (self.head.namespace.clone(), self.head.environment.clone())
    }

    fn check_limits(&self) -> Result<(), Refusal> {
        // The previous snapshot may be older than the reader that the newest one needs; its own
        // frame says what it needs.
        if self.role == Role::Newest && self.head.min_reader > FORMAT {
            return Err(Refusal::TooNew { needs: self.head.min_reader });
        }
        let (bytes, bytes_max) = (self.blob.bytes, SNAPSHOT_BYTES_MAX as u64);
        if bytes > bytes_max {
            return Err(Refusal::OverLimit { what: "snapshot", bytes, bytes_max });
        }
        Ok(())
    }
}

/// With the feature `failpoints` a snapshot that holds the text of `TIDEGATE_TEST_DIES_OF` ends the
/// process, as a fault in the evaluator's host would, and one with that of `TIDEGATE_TEST_REFUSES`
/// does not load.
fn fail_of(_ruleset: &[u8]) -> Result<(), String> {
    #[cfg(feature = "failpoints")]
    {
        let holds = |setting: &str| {
            let text = std::env::var(setting).unwrap_or_default();
            !text.is_empty() && _ruleset.windows(text.len()).any(|part| part == text.as_bytes())
        };
        if holds("TIDEGATE_TEST_DIES_OF") {
            std::process::abort();
        }
        if holds("TIDEGATE_TEST_REFUSES") {
            return Err("this test wants it so".to_owned());
        }
    }
    Ok(())
}

/// Keeps what may be needed: the newest files, and the lists that they name.
fn prune(disk: &Disk, lists_of: &Mutex<HashMap<PathBuf, Vec<Digest>>>) {
    let pruned = disk.prune(|entry| {
        if let Some(lists) = lock(lists_of).get(&entry.path) {
            return Some(lists.clone());
        }
        let stored = disk.read(entry).ok()?;
        let (manifest, _) = rules::blob::decode_blob(&stored.blob).ok()?;
        let claims = stored.head.claims()?;
        let client = match stored.role {
            Role::Newest => claims.client,
            Role::Previous => claims.previous.and_then(|previous| previous.client),
        };
        let client = client.map(|client| client.digest);
        let lists: Vec<Digest> = manifest.blobs().into_iter().chain(client).collect();
        lock(lists_of).insert(entry.path.clone(), lists.clone());
        Some(lists)
    });
    lock(lists_of).retain(|path, _| path.exists());
    if let Err(error) = pruned {
        tracing::warn!(%error, "old snapshots could not be removed");
    }
}

fn verify(what: &'static str, content: &Bytes, digest: Digest, bytes: u64) -> Result<(), Refusal> {
    let is_right = content.len() as u64 == bytes && Digest::of(content) == digest;
    if is_right || seam::planted("no-digest-check") {
        Ok(())
    } else {
        Err(Refusal::Digest { what })
    }
}

/// The self-check before a swap: the loaded snapshot answers every flag, for both audiences, with
/// JSON of the right shape. What cannot answer an empty context cannot answer at all.
fn check_answers(evaluator: &sandbox::Environment) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    struct Answer<'a> {
        #[serde(borrow)]
        #[allow(dead_code)]
        flags: Vec<&'a serde_json::value::RawValue>,
    }
    let empty = ContextBuf::from_json(b"{}").map_err(|error| error.to_string())?;
    for audience in [Audience::Server, Audience::Browser] {
        let mut out = Vec::new();
        let mut answered = evaluator.evaluate_all(audience, &empty, crate::now_ms(), &mut out);
        for _ in 1..CHECKS_MAX {
            // The deadline is the wall clock's: a machine that was busy elsewhere says nothing of the
            // snapshot, which would be refused for good.
            if !matches!(answered, Err(SandboxError::Deadline | SandboxError::Busy)) {
                break;
            }
            out.clear();
            answered = evaluator.evaluate_all(audience, &empty, crate::now_ms(), &mut out);
        }
        answered.map_err(|error| format!("it cannot answer: {error}"))?;
        serde_json::from_slice::<Answer<'_>>(&out)
            .map_err(|error| format!("it answers something else than JSON: {error}"))?;
    }
    Ok(())
}

async fn within<T>(
    limit: Duration,
    asked: BoxFuture<'_, Result<T, FeedError>>,
) -> Result<T, FeedError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => answer,
        Err(late) => Err(FeedError::Unreachable(Box::new(late))),
    }
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
