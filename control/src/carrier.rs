//! Carries what is published to the broker, and keeps it there.
//!
//! Publishing ends with what `/edge/v1` serves; the broker gets its copy from here, so that a broker
//! that is down, slow or full holds up nothing. The carrier compares states and never counts events:
//! whether a head is new, the broker lost its store, or was rolled back to an older one, the
//! difference is the same and so is the mending. A head goes after its blobs, and never back.
//!
//! Only the control that leads carries. Two at once would do no harm: a head moves by
//! compare-and-set.
//!
//! A broker that has *more* than the database (which was restored from a backup, say) is told apart
//! from one whose news came from another replica by reading the database again. What is left is
//! reported and not followed: an operator raises the generation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rules::blob::Digest;
use rules::head::Version;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::bus::{self, Bus, BusError, Move, PublishedHead};
use crate::publisher::{PublishError, Publisher};
use crate::reconciler;
use crate::relay::jittered;

/// Blobs are read back this often: a damaged or ageing one is put again before anybody needs it.
const BLOBS_CHECKED: Duration = Duration::from_secs(10 * 60);
/// Between two comparisons of everything, so that a burst of other replicas' writes is one.
const REST: Duration = Duration::from_millis(100);
/// A head that the database does not know for so long was not just about to be marked.
const AHEAD_GRACE: Duration = Duration::from_secs(5);
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(15);

type Name = (String, String);

pub struct Carrier {
    publisher: Arc<Publisher>,
    broker: Arc<dyn Bus>,
    /// What the broker is known to have from here.
    carried: BTreeMap<Name, PublishedHead>,
    blobs_checked: Option<Instant>,
    ahead: BTreeMap<Name, Ahead>,
}

#[derive(Debug)]
struct Ahead {
    version: Version,
    since: Instant,
    reported: bool,
}

/// What one comparison did, by what it found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Mended {
    /// Heads that the broker did not have.
    pub missing: usize,
    /// Heads that were older there.
    pub older: usize,
    /// Heads of environments that are gone.
    pub orphans: usize,
    /// Heads that are newer there, or of another snapshot: left as they are.
    pub ahead: usize,
}

impl Carrier {
    pub fn new(publisher: Arc<Publisher>, broker: Arc<dyn Bus>) -> Carrier {
        let (carried, ahead) = Default::default();
        Carrier { publisher, broker, carried, blobs_checked: None, ahead }
    }

    /// Until told to stop. `tick` (± 50 %) is how often everything is compared without being told.
    pub async fn run(mut self, tick: Duration, stop: CancellationToken) {
        let mut published = self.publisher.bus.changed();
        let mut rung = self.broker.changed();
        let mut leading = self.publisher.lead.changes();
        let mut all = true;
        let mut failures = 0u32;
        while !stop.is_cancelled() {
            if self.publisher.lead.epoch().is_none() {
                // Somebody else does. Whoever begins does not know what is there.
                all = true;
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    _ = leading.changed() => {}
                    () = tokio::time::sleep(RETRY_MAX) => {}
                }
                continue;
            }
            // Before anything is read, so that nothing falls between the two.
            published.borrow_and_update();
            rung.borrow_and_update();
            let done = match all {
                true => self.compare().await.map(drop),
                false => self.carry_news().await,
            };
            let wait = match done {
                Ok(()) => {
                    failures = 0;
                    let soon = self.ahead.values().any(|ahead| !ahead.reported);
                    if soon { AHEAD_GRACE } else { jittered(tick) }
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    if failures == 0 {
                        tracing::warn!(error, "the broker is behind; edges are served over HTTP");
                    } else {
                        tracing::debug!(error, failures, "the broker is still behind");
                    }
                    metrics::counter!("tidegate_control_bus_failures_total").increment(1);
                    failures = failures.saturating_add(1);
                    jittered(RETRY_FIRST.saturating_mul(1 << failures.min(8)).min(RETRY_MAX))
                }
            };
            let failed = failures > 0;
            all = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = published.changed() => failed,
                _ = rung.changed() => {
                    tokio::time::sleep(REST).await;
                    true
                }
                () = tokio::time::sleep(wait) => true,
            };
        }
    }

    /// What was published since the last time, without asking the broker what it has.
    async fn carry_news(&mut self) -> Result<(), PublishError> {
        let heads = self.published().await?;
        for (name, head) in &heads {
            if self.carried.get(name) != Some(head) {
                self.carry(name, head, None).await?;
            }
        }
        let gone: Vec<Name> =
            self.carried.keys().filter(|name| !heads.contains_key(*name)).cloned().collect();
        for (namespace, environment) in gone {
            self.broker.remove_head(&namespace, &environment).await?;
            self.carried.remove(&(namespace, environment));
        }
        Ok(())
    }

    /// Everything that is published with everything that the broker has.
    pub async fn compare(&mut self) -> Result<Mended, PublishError> {
        let there: BTreeMap<Name, PublishedHead> =
            self.broker.heads().await?.into_iter().map(|head| (head.name(), head)).collect();
        let mut heads = self.published().await?;
        let unknown = |heads: &BTreeMap<Name, PublishedHead>| {
            there.iter().any(|(name, head)| {
                heads.get(name).is_none_or(|known| known.version < head.version)
            })
        };
        if unknown(&heads) {
            // Another replica may have published it.
            self.publisher.restore().await?;
            heads = self.published().await?;
        }
        let check = self.blobs_checked.is_none_or(|checked| checked.elapsed() >= BLOBS_CHECKED);
        let mut mended = Mended::default();
        let mut drift = Vec::new();
        for (name, head) in &heads {
            let current = there.get(name);
            let needed = bus::compare(current, head);
            if needed == Move::Already && check {
                self.put_blobs(head).await?;
            }
            match (needed, current) {
                (Move::Moved, None) => {
                    mended.missing += 1;
                    drift.push(drifted(head, "bus-missing", "the broker had no head".to_owned()));
                }
                // Another stage, or another key.
                (Move::Moved, Some(there)) if there.version == head.version => {}
                (Move::Moved, Some(there)) => {
                    mended.older += 1;
                    let Version { generation, revision } = there.version;
                    let detail = format!("the broker had {generation}.{revision}");
                    drift.push(drifted(head, "bus-older", detail));
                }
                (Move::Already, _) => {}
                (Move::Ahead(_) | Move::Diverged, _) => mended.ahead += 1,
            }
            self.carry(name, head, Some(needed)).await?;
        }
        for name in there.keys().filter(|name| !heads.contains_key(*name)) {
            self.broker.remove_head(&name.0, &name.1).await?;
            mended.orphans += 1;
        }
        self.carried.retain(|name, _| heads.contains_key(name));
        self.ahead.retain(|name, _| heads.contains_key(name));
        if check {
            self.blobs_checked = Some(Instant::now());
        }
        self.count(&mended);
        if !drift.is_empty()
            && let Err(error) = reconciler::record_mended(&self.publisher, &drift).await
        {
            // What it says is in the log and the metrics, and the broker is mended.
            tracing::warn!(error = &error as &dyn std::error::Error, "drift was not recorded");
        }
        Ok(mended)
    }

    async fn published(&self) -> Result<BTreeMap<Name, PublishedHead>, BusError> {
        let heads = self.publisher.bus.heads().await?;
        Ok(heads.into_iter().map(|head| (head.name(), head)).collect())
    }

    /// One head after its blobs. `needed` is what a comparison has found already.
    async fn carry(
        &mut self,
        name: &Name,
        head: &PublishedHead,
        needed: Option<Move>,
    ) -> Result<(), BusError> {
        let done = match needed {
            Some(known) if known != Move::Moved => known,
            _ if seam::planted("head-before-blobs") => {
                let done = bus::move_head(self.broker.as_ref(), head.clone()).await?;
                self.put_blobs(head).await?;
                done
            }
            _ => {
                let carried = self.carried.get(name).map(|carried| carried.version);
                // What was carried a stage before lies there.
                if needed.is_some() || carried != Some(head.version) {
                    self.put_blobs(head).await?;
                }
                bus::move_head(self.broker.as_ref(), head.clone()).await?
            }
        };
        match done {
            Move::Moved | Move::Already => {
                self.ahead.remove(name);
                self.carried.insert(name.clone(), head.clone());
            }
            Move::Ahead(version) => self.found_ahead(name, version, head.version),
            Move::Diverged => self.found_ahead(name, head.version, head.version),
        }
        Ok(())
    }

    async fn put_blobs(&self, head: &PublishedHead) -> Result<(), BusError> {
        let Some(claims) = head.signed.claims() else { return Ok(()) };
        let clients =
            [claims.client, claims.previous.as_ref().and_then(|previous| previous.client.clone())];
        for client in clients.into_iter().flatten() {
            self.put_blob(&head.namespace, client.digest).await?;
        }
        let previous = claims.previous.map(|previous| previous.snapshot);
        for snapshot in [Some(claims.snapshot), previous].into_iter().flatten() {
            let lists = self.put_blob(&head.namespace, snapshot.digest).await?;
            for list in lists.unwrap_or_default() {
                self.put_blob(&head.namespace, list).await?;
            }
        }
        Ok(())
    }

    /// Gives the id lists and policies that it names, if it is a snapshot. One that the database does not have
    /// any more belonged to a head that has moved on.
    async fn put_blob(
        &self,
        namespace: &str,
        digest: Digest,
    ) -> Result<Option<Vec<Digest>>, BusError> {
        let Some(bytes) = self.publisher.bus.blob(namespace, digest).await? else {
            return Ok(None);
        };
        self.broker.put_blob(namespace, digest, bytes.clone()).await?;
        let lists = match rules::blob::decode_blob(&bytes) {
            Ok((manifest, _)) => manifest.blobs(),
            Err(_) => Vec::new(),
        };
        Ok(Some(lists))
    }

    fn found_ahead(&mut self, name: &Name, there: Version, here: Version) {
        let now = Instant::now();
        let new = || Ahead { version: there, since: now, reported: false };
        let ahead = self.ahead.entry(name.clone()).or_insert_with(new);
        if ahead.version != there {
            *ahead = new();
        }
        if !ahead.reported && ahead.since.elapsed() >= AHEAD_GRACE {
            ahead.reported = true;
            tracing::error!(
                ?name,
                broker = ?there,
                database = ?here,
                "the broker has a head that the database does not know; was the database restored? \
                 Edges keep what they serve until the generation is raised"
            );
        }
    }

    fn count(&self, mended: &Mended) {
        let found =
            [("missing", mended.missing), ("older", mended.older), ("orphan", mended.orphans)];
        for (drift, count) in found {
            metrics::counter!("tidegate_control_bus_mended_total", "drift" => drift)
                .increment(count as u64);
        }
        metrics::gauge!("tidegate_control_bus_heads_ahead").set(mended.ahead as f64);
        if *mended != Mended::default() {
            tracing::info!(?mended, "the broker was compared with what is published");
        }
    }
}

fn drifted(head: &PublishedHead, kind: &'static str, detail: String) -> reconciler::Mended {
    let Version { generation, revision } = head.version;
    let PublishedHead { namespace, environment, .. } = head;
    reconciler::Mended {
        detail: format!(
            "{detail} of {namespace}/{environment}, {generation}.{revision} was carried"
        ),
        namespace: namespace.clone(),
        environment: environment.clone(),
        kind,
    }
}
