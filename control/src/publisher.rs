//! Publishes one environment: the only function that does, whoever calls it and why.
//!
//! One consistent read → compile → the edge's own loader → blob by digest → head by
//! compare-and-set, never backwards → mark. No transaction is open while the bus is spoken to.
//! What the loader or the growth gate refuses is recorded, and the head stays where it is.

use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use rules::blob::{self, Digest, ListRef, Manifest, PolicyBlob, PolicyPin};
use rules::compile::ListKind;
use rules::eval::Evaluator;
use rules::head::{BlobRef, ClientRef, Head, Previous, PublicKey, SignedHead, Version};
use tokio::sync::Mutex;

use crate::blobs;
use crate::bus::{self, Bus, BusError, Move, PublishedHead};
use crate::clients;
use crate::environments::{self, Loaded};
use crate::lead::{self, Epoch, FenceError, Lead};
use crate::outbox;
use crate::parsed::Parsed;
use crate::refusal::{Refusal, stored, written};
use crate::rollout::{self, Schedule};
use crate::store::query::{query, query_as};
use crate::store::{Store, now_us};

/// Of one environment: what edges that are behind may still fetch.
const REVISIONS_KEPT: i64 = 10;

const PUBLICATION: &str =
    "SELECT generation, revision, flag_count, head FROM publication WHERE environment_id = $1";
const PUBLICATIONS: &str = "SELECT n.key, e.key, p.generation, p.revision, p.head FROM publication p \
    JOIN environment e ON e.id = p.environment_id JOIN namespace n ON n.id = e.namespace_id \
    ORDER BY n.key, e.key";
const SNAPSHOT_ADD: &str = "INSERT INTO snapshot (environment_id, generation, revision, digest, \
    bytes, flag_count, rejected, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
    ON CONFLICT (environment_id, generation, revision) DO NOTHING";
const SNAPSHOT: &str = "SELECT digest, bytes, flag_count, rejected FROM snapshot \
    WHERE environment_id = $1 AND generation = $2 AND revision = $3";
const BLOB_ADD: &str = "INSERT INTO blob (digest, bytes, created_at) VALUES ($1, $2, $3) \
    ON CONFLICT (digest) DO NOTHING";
const USE_ADD: &str = "INSERT INTO blob_use (digest, environment_id, revision) VALUES ($1, $2, $3) \
    ON CONFLICT (digest, environment_id) DO UPDATE SET revision = excluded.revision \
    WHERE excluded.revision > blob_use.revision";
const MARK: &str = "INSERT INTO publication (environment_id, generation, revision, flag_count, head, \
    published_at) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (environment_id) DO UPDATE SET \
    generation = excluded.generation, revision = excluded.revision, \
    flag_count = excluded.flag_count, head = excluded.head, published_at = excluded.published_at \
    WHERE publication.generation < excluded.generation OR (publication.generation = \
    excluded.generation AND publication.revision < excluded.revision)";
/// The head of a version in another stage, or signed with another key.
const MARK_AGAIN: &str = "UPDATE publication SET head = $4 WHERE environment_id = $1 \
    AND generation = $2 AND revision = $3";
const NAMED: &str = "SELECT n.key, e.key, p.head FROM publication p \
    JOIN environment e ON e.id = p.environment_id JOIN namespace n ON n.id = e.namespace_id \
    WHERE p.environment_id = $1";
const HEADS: &str = "SELECT environment_id, generation, revision, head FROM publication \
    ORDER BY environment_id";
const PRUNE_SNAPSHOTS: &str = "DELETE FROM snapshot WHERE environment_id = $1 AND revision < $2";
const PRUNE_USES: &str = "DELETE FROM blob_use WHERE environment_id = $1 AND revision < $2";
const PRUNE_BLOBS: &str = "DELETE FROM blob WHERE created_at < $1 \
    AND NOT EXISTS (SELECT 1 FROM blob_use u WHERE u.digest = blob.digest) \
    AND NOT EXISTS (SELECT 1 FROM segment_list l WHERE l.digest = blob.digest) \
    AND NOT EXISTS (SELECT 1 FROM policy_version v WHERE v.digest = blob.digest)";
/// A blob nobody uses may belong to a publication that is under way.
const PRUNE_AGE_US: i64 = 60 * 60 * 1_000_000;

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error(transparent)]
    Store(#[from] Refusal),
    #[error(transparent)]
    Bus(#[from] BusError),
    /// This control does not lead, or not any more.
    #[error("another control publishes")]
    NotLeading,
    #[error("the head cannot be signed")]
    Sign(#[from] rules::head::HeadError),
    /// Only in tests that were built with failpoints.
    #[error("it died at {0}")]
    Died(&'static str),
}

impl From<FenceError> for PublishError {
    fn from(error: FenceError) -> PublishError {
        match error {
            FenceError::Over(_) => PublishError::NotLeading,
            FenceError::Store(error) => error.into(),
        }
    }
}

impl From<sqlx::Error> for PublishError {
    fn from(error: sqlx::Error) -> PublishError {
        PublishError::Store(error.into())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Published {
    /// The head is now at this revision.
    Moved(Version),
    /// It was there already.
    Already(Version),
    /// It was recorded as rejected; the head stays.
    Rejected { version: Version, reason: String },
    /// The environment is gone, and so is its head.
    Gone,
}

pub struct Publisher {
    pub store: Store,
    pub bus: Arc<dyn Bus>,
    pub lead: Arc<Lead>,
    key: std::sync::Mutex<SigningKey>,
    /// In which stages what is published comes to edges.
    pub schedule: Schedule,
    /// Publishing and restoring take turns: between a head and its mark, a restore would take the
    /// head for one of an environment that is gone.
    turn: Mutex<()>,
}

/// What an environment's state comes to. The same state, the same bytes.
#[derive(Debug)]
pub struct Made {
    pub blob: Vec<u8>,
    pub digest: Digest,
    pub flag_count: u32,
    /// The oldest edge that reads it.
    pub min_reader: u16,
    /// Id lists and policies.
    pub needs: Vec<Digest>,
    /// What browsers get, and its digest.
    pub client: Vec<u8>,
    pub client_digest: Digest,
    /// Flags that are quarantined, and why.
    pub problems: Vec<rules::compile::Problem>,
}

impl Publisher {
    pub fn new(store: Store, bus: Arc<dyn Bus>, key: SigningKey, lead: Arc<Lead>) -> Publisher {
        let (key, schedule) = (std::sync::Mutex::new(key), Schedule::default());
        Publisher { store, bus, lead, key, schedule, turn: Mutex::new(()) }
    }

    /// Only while this control leads; the database refuses what it writes when it no longer does.
    pub async fn publish(&self, environment_id: &str) -> Result<Published, PublishError> {
        let _turn = self.turn.lock().await;
        let epoch = self.lead.epoch().ok_or(PublishError::NotLeading)?;
        let published = self.publish_as(epoch, environment_id).await;
        if let Err(PublishError::NotLeading) = published {
            self.lead.is_over(epoch);
        }
        published
    }

    async fn publish_as(
        &self,
        epoch: Epoch,
        environment_id: &str,
    ) -> Result<Published, PublishError> {
        let (loaded, publication) = {
            let mut read = self.store.read().await?;
            let loaded = match environments::load(
                &mut read,
                self.store.parsed(),
                environments::Read::Committed,
                environment_id,
            )
            .await
            {
                Ok(loaded) => loaded,
                Err(Refusal::NotFound(_)) => {
                    drop(read);
                    return self.gone(epoch, environment_id).await;
                }
                Err(refusal) => return Err(refusal.into()),
            };
            let publication: Option<(i64, i64, i64, String)> =
                query_as(PUBLICATION).bind(environment_id).fetch_optional(&mut read).await?;
            (loaded, publication)
        };
        let mut loaded = loaded;
        if seam::planted("torn-read") {
            let mut again = self.store.read().await?;
            loaded.revision = environments::load_afresh(&mut again, environment_id).await?.revision;
        }
        if seam::planted("revision-of-the-bus")
            && let Some(head) = self.bus.head(&loaded.namespace, &loaded.environment).await?
        {
            loaded.revision = head.version.revision as i64 + 1;
        }
        let version = version(loaded.generation, loaded.revision);
        if let Some((generation, revision, _, head)) = &publication
            && self::version(*generation, *revision) >= version
        {
            let head = PublishedHead {
                namespace: loaded.namespace.clone(),
                environment: loaded.environment.clone(),
                version: self::version(*generation, *revision),
                signed: stored("head", head)?,
            };
            self.move_head(head).await?;
            self.forget(epoch, environment_id, loaded.revision).await?;
            return Ok(Published::Already(version));
        }

        fail_for("publisher::environment", &loaded.environment)?;
        fail_at("publisher::compile")?;
        let previous_flags =
            publication.as_ref().map_or(0, |(_, _, flags, _)| u32::try_from(*flags).unwrap_or(0));
        let loaded = Arc::new(loaded);
        let (work, parsed) = (loaded.clone(), self.store.parsed().clone());
        let made = seam::blocking(move || make(&parsed, &work))
            .await
            .map_err(|error| Refusal::Internal(format!("compiling failed: {error}")))?;
        let gate = |made: &Made| match loaded.growth_allowed >= loaded.revision {
            true => Ok(()),
            false if seam::planted("no-growth-gate") => Ok(()),
            false => blob::growth(previous_flags, made.flag_count),
        };
        let made = match made {
            Err(reason) => return self.reject(epoch, &loaded, version, None, reason).await,
            Ok(made) => match gate(&made) {
                Err(growth) => {
                    let reason = format!("{growth}; publish it with allowGrowth if it is meant");
                    return self.reject(epoch, &loaded, version, Some(&made), reason).await;
                }
                Ok(()) => made,
            },
        };
        for problem in &made.problems {
            tracing::warn!(
                namespace = loaded.namespace,
                environment = loaded.environment,
                pointer = problem.pointer,
                message = problem.message,
                "quarantined"
            );
        }

        fail_at("publisher::blob")?;
        let published = match &publication {
            Some((_, _, _, head)) => Some(stored::<SignedHead>("head", head)?),
            None => None,
        };
        let (digest, bytes, previous) =
            self.keep(epoch, &loaded, &made, published.as_ref()).await?;
        let oldest = previous.as_ref().map(|previous| previous.version.revision);
        let snapshot = self.snapshot_bytes(digest, &made).await?;
        self.bus.put_blob(&loaded.namespace, digest, snapshot).await?;
        let client_bytes = Bytes::copy_from_slice(&made.client);
        self.store.parsed().keep_blob(made.client_digest, client_bytes.clone());
        self.bus.put_blob(&loaded.namespace, made.client_digest, client_bytes).await?;
        for needed in &made.needs {
            if let Some(bytes) = blobs::stored(&self.store, *needed).await? {
                self.bus.put_blob(&loaded.namespace, *needed, bytes).await?;
            }
        }

        fail_at("publisher::head")?;
        let issued_at_ms = now_us() / 1000;
        let client = clients::head(&loaded, version, &made, published.as_ref(), issued_at_ms);
        let client = client.unsigned()?;
        let head = Head {
            namespace: loaded.namespace.clone(),
            environment: loaded.environment.clone(),
            version,
            snapshot: BlobRef { digest, bytes },
            client: Some(client),
            previous,
            min_reader: made.min_reader,
            issued_at_ms,
            epoch: u64::try_from(epoch.0).unwrap_or(0),
        };
        let signed = self.sign(head)?;
        let text = written("head", &signed)?;
        self.move_head(PublishedHead {
            namespace: loaded.namespace.clone(),
            environment: loaded.environment.clone(),
            version,
            signed,
        })
        .await?;

        fail_at("publisher::mark")?;
        self.mark(epoch, &loaded, i64::from(made.flag_count), &text, oldest).await?;
        metrics::counter!("tidegate_control_published_total").increment(1);
        Ok(Published::Moved(version))
    }

    /// The clients' heads in it too: they may have been signed with another key, and have to be
    /// signed with the one that the head around them names.
    fn sign(&self, head: Head) -> Result<SignedHead, PublishError> {
        let key = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        let again = |client: Option<ClientRef>| client.map(|client| client.signed_with(&key));
        let previous =
            head.previous.map(|previous| Previous { client: again(previous.client), ..previous });
        let head = Head { client: again(head.client), previous, ..head };
        Ok(SignedHead::sign(&head, &key)?)
    }

    /// What heads are signed with from now on; `sign_again` brings those that are out.
    pub fn set_key(&self, key: SigningKey) {
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = key;
    }

    /// The key's id and its signature of something that is no head (`rules::head::sign`).
    pub fn sign_message(&self, message: &[u8]) -> (String, String) {
        let key = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        (PublicKey::of(&key).id(), rules::head::sign(message, &key))
    }

    pub fn public_key(&self) -> PublicKey {
        PublicKey::of(&self.key.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Signs what is published with another key anew: the same heads, under the key that this control
    /// has now. How many there were.
    pub async fn sign_again(&self) -> Result<usize, PublishError> {
        let _turn = self.turn.lock().await;
        let epoch = self.lead.epoch().ok_or(PublishError::NotLeading)?;
        let key_id = self.public_key().id();
        let rows: Vec<(String, i64, i64, String)> = {
            let mut read = self.store.read().await?;
            query_as(HEADS).fetch_all(&mut read).await?
        };
        let mut again = 0;
        for (id, generation, revision, text) in rows {
            let signed: SignedHead = stored("head", &text)?;
            let Some(claims) = signed.claims().filter(|_| signed.key_id != key_id) else {
                continue;
            };
            let (namespace, environment) = (claims.namespace.clone(), claims.environment.clone());
            let epoch_now = u64::try_from(epoch.0).unwrap_or(0);
            let signed = self.sign(Head { epoch: epoch_now, ..claims })?;
            let mut tx = lead::write(&self.store, epoch).await?;
            let mark = query(MARK_AGAIN).bind(&id).bind(generation).bind(revision);
            let marked = mark.bind(written("head", &signed)?).execute(&mut tx).await?;
            tx.commit().await?;
            fail_at("publisher::signed_again")?;
            if marked > 0 {
                let version = version(generation, revision);
                self.move_head(PublishedHead { namespace, environment, version, signed }).await?;
                again += 1;
            }
        }
        Ok(again)
    }

    /// Brings an environment's rollout as far as its time and its edges allow. In the database first:
    /// what a former leader decides late is refused there, and the head follows what stands there.
    pub async fn move_rollout(&self, environment_id: &str) -> Result<(), PublishError> {
        let _turn = self.turn.lock().await;
        let epoch = self.lead.epoch().ok_or(PublishError::NotLeading)?;
        let moved = self.move_rollout_as(epoch, environment_id).await;
        if let Err(PublishError::NotLeading) = moved {
            self.lead.is_over(epoch);
        }
        moved
    }

    async fn move_rollout_as(&self, epoch: Epoch, id: &str) -> Result<(), PublishError> {
        let mut read = self.store.read().await?;
        let named: Option<(String, String, String)> =
            query_as(NAMED).bind(id).fetch_optional(&mut read).await?;
        let Some((namespace, environment, text)) = named else { return Ok(()) };
        let name = (namespace.as_str(), environment.as_str());
        let Some(due) = rollout::due(&mut read, &self.schedule, name, id).await? else {
            return Ok(());
        };
        drop(read);
        let published: SignedHead = stored("head", &text)?;
        let claims = published.claims();
        let claims = claims.ok_or_else(|| Refusal::Internal("a stored head is none".to_owned()))?;
        if claims.version != due.version() {
            // Its head is not out yet, or it was replaced just now: the relay's work.
            return Ok(());
        }
        fail_at("rollout::move")?;
        let head = match due.head() {
            None => None,
            Some(previous) => {
                let epoch = u64::try_from(epoch.0).unwrap_or(0);
                Some(self.sign(Head { previous, epoch, ..claims })?)
            }
        };
        let version = due.version();
        let mut tx = lead::write(&self.store, epoch).await?;
        if !due.write(&mut tx, id).await? {
            return Ok(());
        }
        if let Some(signed) = &head {
            let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
            let mark = query(MARK_AGAIN).bind(id).bind(number(version.generation));
            let mark = mark.bind(number(version.revision)).bind(written("head", signed)?);
            if mark.execute(&mut tx).await? == 0 {
                return Ok(());
            }
        }
        tx.commit().await?;
        fail_at("rollout::head")?;
        if let Some(signed) = head {
            let (namespace, environment) = (namespace.clone(), environment.clone());
            self.move_head(PublishedHead { namespace, environment, version, signed }).await?;
        }
        due.tell(name);
        Ok(())
    }

    /// Puts what was published on a bus that forgot it, and takes off what is no more.
    pub async fn restore(&self) -> Result<(), PublishError> {
        let _turn = self.turn.lock().await;
        self.restore_in_turn().await
    }

    async fn restore_in_turn(&self) -> Result<(), PublishError> {
        let rows: Vec<(String, String, i64, i64, String)> = {
            match self.store.read().await {
                Ok(mut read) => query_as(PUBLICATIONS).fetch_all(&mut read).await?,
                Err(_) if seam::planted("nothing-read-is-nothing-there") => Vec::new(),
                Err(error) => return Err(error.into()),
            }
        };
        let mut known = std::collections::BTreeSet::new();
        for (namespace, environment, generation, revision, head) in rows {
            known.insert((namespace.clone(), environment.clone()));
            let head = PublishedHead {
                namespace,
                environment,
                version: version(generation, revision),
                signed: stored("head", &head)?,
            };
            self.move_head(head).await?;
        }
        for head in self.bus.heads().await? {
            if !known.contains(&(head.namespace.clone(), head.environment.clone())) {
                self.bus.remove_head(&head.namespace, &head.environment).await?;
            }
        }
        Ok(())
    }

    /// What a control does that does not lead: its own bus shows what another one published.
    pub async fn follow(&self) -> Result<(), PublishError> {
        match self.bus.is_shared() {
            true => Ok(()),
            false => self.restore().await,
        }
    }

    async fn gone(&self, epoch: Epoch, environment_id: &str) -> Result<Published, PublishError> {
        self.restore_in_turn().await?;
        self.forget(epoch, environment_id, i64::MAX).await?;
        Ok(Published::Gone)
    }

    /// To `head`, unless the bus is there or further already. Further it is when this died between
    /// a head and its mark, and then the relay publishes the same revision again.
    async fn move_head(&self, head: PublishedHead) -> Result<(), BusError> {
        let version = head.version;
        match bus::move_head(self.bus.as_ref(), head).await? {
            Move::Moved | Move::Already => {}
            other => tracing::debug!(?version, ?other, "the bus keeps the head that it has"),
        }
        Ok(())
    }

    /// The digest that this revision has from now on (the first one that was stored), and what edges
    /// serve until its rollout comes to them.
    async fn keep(
        &self,
        epoch: Epoch,
        loaded: &Loaded,
        made: &Made,
        published: Option<&SignedHead>,
    ) -> Result<(Digest, u64, Option<Previous>), PublishError> {
        let now = now_us();
        let digest = made.digest.to_string();
        let mut tx = lead::write(&self.store, epoch).await?;
        query(SNAPSHOT_ADD)
            .bind(&loaded.environment_id)
            .bind(loaded.generation)
            .bind(loaded.revision)
            .bind(&digest)
            .bind(made.blob.len() as i64)
            .bind(i64::from(made.flag_count))
            .bind(None::<String>)
            .bind(now)
            .execute(&mut tx)
            .await?;
        let (first, bytes, _, _): (String, i64, i64, Option<String>) = query_as(SNAPSHOT)
            .bind(&loaded.environment_id)
            .bind(loaded.generation)
            .bind(loaded.revision)
            .fetch_one(&mut tx)
            .await?;
        if first == digest {
            query(BLOB_ADD).bind(&digest).bind(&made.blob).bind(now).execute(&mut tx).await?;
        } else {
            // Another build compiled this revision before us; its bytes are what edges may have.
            tracing::error!(first, digest, "two digests of one revision; the first one stays");
        }
        let client = made.client_digest.to_string();
        query(BLOB_ADD).bind(&client).bind(&made.client).bind(now).execute(&mut tx).await?;
        let needs = made.needs.iter().chain([&made.client_digest]).map(Digest::to_string);
        for used in std::iter::once(first.clone()).chain(needs) {
            query(USE_ADD)
                .bind(used)
                .bind(&loaded.environment_id)
                .bind(loaded.revision)
                .execute(&mut tx)
                .await?;
        }
        let first: Digest = first
            .parse()
            .map_err(|_| Refusal::Internal("a stored digest is malformed".to_owned()))?;
        let previous = rollout::begin(&mut tx, &self.schedule, loaded, published, first).await?;
        tx.commit().await?;
        Ok((first, u64::try_from(bytes).unwrap_or(0), previous))
    }

    async fn snapshot_bytes(&self, digest: Digest, made: &Made) -> Result<Bytes, PublishError> {
        if digest == made.digest {
            let bytes = Bytes::copy_from_slice(&made.blob);
            self.store.parsed().keep_blob(digest, bytes.clone());
            return Ok(bytes);
        }
        let stored = blobs::stored(&self.store, digest).await?;
        stored.ok_or_else(|| Refusal::Internal(format!("the blob {digest} is gone")).into())
    }

    async fn reject(
        &self,
        epoch: Epoch,
        loaded: &Loaded,
        version: Version,
        made: Option<&Made>,
        reason: String,
    ) -> Result<Published, PublishError> {
        tracing::error!(
            namespace = loaded.namespace,
            environment = loaded.environment,
            revision = version.revision,
            reason,
            "a snapshot is rejected, the last good one stays"
        );
        metrics::counter!("tidegate_control_rejected_total").increment(1);
        let mut tx = lead::write(&self.store, epoch).await?;
        query(SNAPSHOT_ADD)
            .bind(&loaded.environment_id)
            .bind(loaded.generation)
            .bind(loaded.revision)
            .bind(made.map(|made| made.digest.to_string()).unwrap_or_default())
            .bind(made.map_or(0, |made| made.blob.len() as i64))
            .bind(made.map_or(0, |made| i64::from(made.flag_count)))
            .bind(&reason)
            .bind(now_us())
            .execute(&mut tx)
            .await?;
        outbox::forget(&mut tx, &loaded.environment_id, loaded.revision).await?;
        tx.commit().await?;
        Ok(Published::Rejected { version, reason })
    }

    async fn mark(
        &self,
        epoch: Epoch,
        loaded: &Loaded,
        flag_count: i64,
        head: &str,
        previous_revision: Option<u64>,
    ) -> Result<(), PublishError> {
        let now = now_us();
        let mut tx = lead::write(&self.store, epoch).await?;
        query(MARK)
            .bind(&loaded.environment_id)
            .bind(loaded.generation)
            .bind(loaded.revision)
            .bind(flag_count)
            .bind(head)
            .bind(now)
            .execute(&mut tx)
            .await?;
        outbox::forget(&mut tx, &loaded.environment_id, loaded.revision).await?;
        if previous_revision.is_none() {
            rollout::replaced(&mut tx, loaded).await?;
        }
        let previous = previous_revision.and_then(|revision| i64::try_from(revision).ok());
        let oldest = loaded.revision - REVISIONS_KEPT;
        // Of what edges serve that the rollout has not come to, however many were replaced since.
        let oldest = previous.map_or(oldest, |previous| previous.min(oldest));
        for statement in [PRUNE_SNAPSHOTS, PRUNE_USES] {
            query(statement).bind(&loaded.environment_id).bind(oldest).execute(&mut tx).await?;
        }
        let unused = match seam::planted("used-blobs-pruned") {
            true => "DELETE FROM blob WHERE created_at < $1",
            false => PRUNE_BLOBS,
        };
        query(unused).bind(now - PRUNE_AGE_US).execute(&mut tx).await?;
        tx.commit().await?;
        Ok(())
    }

    async fn forget(
        &self,
        epoch: Epoch,
        environment_id: &str,
        revision: i64,
    ) -> Result<(), PublishError> {
        let mut tx = lead::write(&self.store, epoch).await?;
        outbox::forget(&mut tx, environment_id, revision).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Compiles and proves by the edge's own loader. Pure, and slow for thousands of flags.
fn make(parsed: &Parsed, loaded: &Loaded) -> Result<Made, String> {
    let (compiled, problems) = match parsed.compile(&loaded.environment_id, &loaded.state) {
        Ok(compiled) => (compiled, Vec::new()),
        Err(_) => {
            let parse = |source: &str| parsed.cel.parse(source);
            let lenient = rules::compile::compile_lenient_with(&loaded.state, &parse);
            let (compiled, problems) = lenient.map_err(|problems| {
                let told: Vec<String> = problems
                    .iter()
                    .take(3)
                    .map(|problem| format!("{}: {}", problem.pointer, problem.message))
                    .collect();
                told.join("; ")
            })?;
            (Arc::new(compiled), problems)
        }
    };
    let mut lists = Vec::with_capacity(compiled.lists.len());
    for list in &compiled.lists {
        let kind = match list.kind {
            ListKind::Included => "included",
            ListKind::Excluded => "excluded",
        };
        let found = loaded.lists.iter().find(|of| of.key == list.segment && of.kind == kind);
        let found =
            found.ok_or_else(|| format!("segment {:?} has no {kind} list", list.segment))?;
        lists.push(ListRef {
            digest: found.digest.parse().map_err(|_| "a digest is malformed".to_owned())?,
            bytes: u64::try_from(found.bytes).unwrap_or(0),
            ids: u32::try_from(found.id_count).unwrap_or(0),
        });
    }
    let mut policies = Vec::with_capacity(compiled.policies.len());
    for name in &compiled.policies {
        let found = loaded.policies.iter().find(|pinned| pinned.state.name == *name);
        let found = found.ok_or_else(|| format!("the policy {name:?} is not pinned"))?;
        policies.push(PolicyPin {
            name: name.clone(),
            version: PolicyBlob { digest: found.state.digest, bytes: found.bytes },
            shadow: found.shadow,
        });
    }
    let ruleset = blob::encode_ruleset(&compiled.ruleset);
    let flag_count = u32::try_from(compiled.ruleset.flags.len()).unwrap_or(u32::MAX);
    let manifest = Manifest {
        namespace: loaded.namespace.clone(),
        environment: loaded.environment.clone(),
        keys: loaded.keys.clone(),
        stream_secret: loaded.stream_secret,
        lists,
        boundaries_ms: compiled.boundaries_ms.clone(),
        flag_count,
        policies,
        terms: loaded.terms.clone(),
    };
    let bytes = blob::encode_blob(&manifest, &ruleset);
    let (_, framed) = blob::decode_blob(&bytes).map_err(|error| error.to_string())?;
    Evaluator::load(framed).map_err(|error| error.to_string())?;
    let client = clients::make(parsed, loaded)?;
    Ok(Made {
        digest: Digest::of(&bytes),
        flag_count,
        min_reader: manifest.min_reader(),
        needs: manifest.blobs(),
        client_digest: Digest::of(&client),
        client,
        problems,
        blob: bytes,
    })
}

fn version(generation: i64, revision: i64) -> Version {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Version { generation: unsigned(generation), revision: unsigned(revision) }
}

/// Where tests let the process die. Nothing is left of it in a build without failpoints.
fn fail_at(_name: &'static str) -> Result<(), PublishError> {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| Err(PublishError::Died(_name)));
    Ok(())
}

/// As `fail_at`, for the one environment that the failpoint names (`return(staging)`).
fn fail_for(_name: &'static str, _environment: &str) -> Result<(), PublishError> {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |named| match named.as_deref() == Some(_environment) {
        true => Err(BusError::Unreachable(_name.into()).into()),
        false => Ok(()),
    });
    Ok(())
}
