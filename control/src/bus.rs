//! The bus: a cache of heads and blobs, and a doorbell. It may lose, double, reorder or forget
//! everything, and that costs time, never correctness.
//!
//! A port. `InProcessBus` is what `/edge/v1` serves from; with a broker there is a `NatsBus` beside
//! it (`nats.rs`), and `carrier.rs` carries from the one to the other, so that a broker that is down
//! delays neither a write nor an edge that asks over HTTP. Boxed futures, so that it can be a trait
//! object.

pub mod nats;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rules::blob::Digest;
use rules::head::{STAGE_ALL, SignedHead, Version};
use tokio::sync::watch;

use crate::blobs;
use crate::store::Store;

pub type BusFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BusError>> + Send + 'a>>;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The head there is not the one that was expected.
    #[error("the bus holds another head, {current:?}")]
    Conflict { current: Option<Version> },
    #[error("the bus cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It answers, and what it holds is not set up as it has to be.
    #[error("the bus is not set up as it has to be: {0}")]
    Misconfigured(String),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PublishedHead {
    pub namespace: String,
    pub environment: String,
    pub version: Version,
    pub signed: SignedHead,
}

pub trait Bus: Send + Sync + 'static {
    /// Blobs lie in a namespace, because its edges may read them and no others.
    fn put_blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes: Bytes,
    ) -> BusFuture<'a, ()>;
    /// The blob with this digest, whole and verified, or none.
    fn blob<'a>(&'a self, namespace: &'a str, digest: Digest) -> BusFuture<'a, Option<Bytes>>;
    /// What cannot be read as a head is none.
    fn head<'a>(
        &'a self,
        namespace: &'a str,
        environment: &'a str,
    ) -> BusFuture<'a, Option<PublishedHead>>;
    /// Compare-and-set: only where the bus holds `expected`, and never backwards.
    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()>;
    fn remove_head<'a>(&'a self, namespace: &'a str, environment: &'a str) -> BusFuture<'a, ()>;
    fn heads(&self) -> BusFuture<'_, Vec<PublishedHead>>;
    /// Whether every control sees the same one, so that one of them is enough to fill it.
    fn is_shared(&self) -> bool;
    /// Counts up whenever heads may have changed.
    fn changed(&self) -> watch::Receiver<u64>;
}

impl PublishedHead {
    /// What a head says of itself. No signature is checked: only control writes to a bus.
    pub fn of(signed: SignedHead) -> Option<PublishedHead> {
        let head = signed.claims()?;
        let (namespace, environment, version) = (head.namespace, head.environment, head.version);
        Some(PublishedHead { namespace, environment, version, signed })
    }

    pub fn name(&self) -> (String, String) {
        (self.namespace.clone(), self.environment.clone())
    }

    /// Whether it would take back what `current` has brought: a version, or a rollout's stage.
    pub fn is_behind(&self, current: &PublishedHead) -> bool {
        match current.version.cmp(&self.version) {
            Ordering::Less => false,
            Ordering::Greater => true,
            Ordering::Equal => current.stage() > self.stage(),
        }
    }

    /// What is no head has come to everybody that it will come to.
    fn stage(&self) -> u16 {
        self.signed.claims().map_or(STAGE_ALL, |head| head.stage())
    }
}

/// What became of a head that was to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Move {
    /// It is there now.
    Moved,
    /// It was there already, or the same in a later stage of its rollout.
    Already,
    /// The bus has a newer one. It stays: edges may serve it, and they never go back.
    Ahead(Version),
    /// The bus has another snapshot of the same version. It stays, for the same reason.
    Diverged,
}

/// What a bus that holds `current` needs, for `head` to be there. `Moved` says: a put.
pub fn compare(current: Option<&PublishedHead>, head: &PublishedHead) -> Move {
    let Some(current) = current else { return Move::Moved };
    match current.version.cmp(&head.version) {
        Ordering::Less => Move::Moved,
        Ordering::Greater if seam::planted("bus-goes-back") => Move::Moved,
        Ordering::Greater => Move::Ahead(current.version),
        Ordering::Equal if current.signed == head.signed => Move::Already,
        Ordering::Equal => {
            let snapshot = |head: &PublishedHead| head.signed.claims().map(|head| head.snapshot);
            match snapshot(current) == snapshot(head) {
                false => Move::Diverged,
                true if head.is_behind(current) => Move::Already,
                // A rollout's next stage, or another key.
                true if current.stage() < head.stage() => Move::Moved,
                true if current.signed.key_id != head.signed.key_id => Move::Moved,
                // Signed twice, by a publisher that died before it marked.
                true => Move::Already,
            }
        }
    }
}

/// Moves the bus to `head`, by compare-and-set and never backwards.
pub async fn move_head(bus: &dyn Bus, head: PublishedHead) -> Result<Move, BusError> {
    let current = bus.head(&head.namespace, &head.environment).await?;
    let needed = compare(current.as_ref(), &head);
    if needed == Move::Moved {
        bus.put_head(head, current.map(|current| current.version)).await?;
    }
    Ok(needed)
}

/// One process: heads in memory, blobs where they are anyway, in the database.
#[derive(Debug)]
pub struct InProcessBus {
    store: Store,
    heads: Mutex<BTreeMap<(String, String), PublishedHead>>,
    changes: watch::Sender<u64>,
}

impl InProcessBus {
    pub fn new(store: Store) -> InProcessBus {
        InProcessBus { store, heads: Mutex::default(), changes: watch::Sender::new(0) }
    }

    fn ring(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

impl Bus for InProcessBus {
    fn put_blob<'a>(&'a self, _: &'a str, _: Digest, _: Bytes) -> BusFuture<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    /// Of whichever namespace: who may have it is asked by who serves it.
    fn blob<'a>(&'a self, _: &'a str, digest: Digest) -> BusFuture<'a, Option<Bytes>> {
        Box::pin(async move {
            blobs::stored(&self.store, digest)
                .await
                .map_err(|error| BusError::Unreachable(error.into()))
        })
    }

    fn head<'a>(
        &'a self,
        namespace: &'a str,
        environment: &'a str,
    ) -> BusFuture<'a, Option<PublishedHead>> {
        let at = (namespace.to_owned(), environment.to_owned());
        Box::pin(async move {
            let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(heads.get(&at).cloned())
        })
    }

    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()> {
        Box::pin(async move {
            {
                let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
                let at = (head.namespace.clone(), head.environment.clone());
                let there = heads.get(&at);
                let current = there.map(|head| head.version);
                if current != expected || there.is_some_and(|there| head.is_behind(there)) {
                    return Err(BusError::Conflict { current });
                }
                heads.insert(at, head);
            }
            self.ring();
            Ok(())
        })
    }

    fn remove_head<'a>(&'a self, namespace: &'a str, environment: &'a str) -> BusFuture<'a, ()> {
        let at = (namespace.to_owned(), environment.to_owned());
        Box::pin(async move {
            let removed =
                self.heads.lock().unwrap_or_else(PoisonError::into_inner).remove(&at).is_some();
            if removed {
                self.ring();
            }
            Ok(())
        })
    }

    fn heads(&self) -> BusFuture<'_, Vec<PublishedHead>> {
        Box::pin(async move {
            let heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(heads.values().cloned().collect())
        })
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use rules::blob::Digest;
    use rules::head::{BlobRef, Head, Previous};

    use super::*;

    fn head(generation: u64, revision: u64, content: &[u8], key: u8) -> PublishedHead {
        staged(generation, revision, content, key, STAGE_ALL)
    }

    fn staged(
        generation: u64,
        revision: u64,
        content: &[u8],
        key: u8,
        stage: u16,
    ) -> PublishedHead {
        let version = Version { generation, revision };
        let head = Head {
            namespace: "shop".to_owned(),
            environment: "production".to_owned(),
            version,
            snapshot: BlobRef { digest: Digest::of(content), bytes: content.len() as u64 },
            client: None,
            previous: (stage < STAGE_ALL).then(|| Previous {
                version: Version { generation: 1, revision: 1 },
                snapshot: BlobRef { digest: Digest::of(b"previous"), bytes: 8 },
                client: None,
                stage,
            }),
            min_reader: 1,
            issued_at_ms: 0,
            epoch: 0,
        };
        let key = SigningKey::from_bytes(&[key; 32]);
        PublishedHead::of(SignedHead::sign(&head, &key).unwrap()).unwrap()
    }

    #[test]
    fn a_head_moves_forward_by_generation_then_revision_and_never_back() {
        let here = head(1, 5, b"five", 1);
        assert_eq!(compare(None, &here), Move::Moved);
        assert_eq!(compare(Some(&head(1, 4, b"four", 1)), &here), Move::Moved);
        assert_eq!(compare(Some(&head(0, 9, b"nine", 1)), &here), Move::Moved);
        assert_eq!(compare(Some(&here), &here), Move::Already);
        for newer in [head(1, 6, b"six", 1), head(2, 1, b"one", 1)] {
            assert_eq!(compare(Some(&newer), &here), Move::Ahead(newer.version));
        }
    }

    #[test]
    fn a_version_keeps_its_snapshot_whoever_says_otherwise() {
        let here = head(1, 5, b"five", 1);
        assert_eq!(compare(Some(&head(1, 5, b"other", 1)), &here), Move::Diverged);
        assert_eq!(compare(Some(&head(1, 5, b"five", 2)), &here), Move::Moved, "another key");
    }

    #[test]
    fn a_stage_of_one_version_moves_forward_and_never_back() {
        let [first, third, all] = [1, 3_000, STAGE_ALL].map(|at| staged(1, 5, b"five", 1, at));
        assert_eq!(compare(Some(&first), &third), Move::Moved);
        assert_eq!(compare(Some(&third), &all), Move::Moved);
        for (there, late) in [(&third, &first), (&all, &first), (&all, &third)] {
            assert_eq!(compare(Some(there), late), Move::Already);
            assert!(late.is_behind(there) && !there.is_behind(late));
        }
        let with_another_key = staged(1, 5, b"five", 2, 1);
        assert_eq!(compare(Some(&third), &with_another_key), Move::Already, "a late one");
        assert_eq!(compare(Some(&all), &staged(1, 6, b"six", 1, 1)), Move::Moved, "a new version");
    }

    #[tokio::test]
    async fn a_stage_that_was_decided_long_ago_does_not_pass_compare_and_set() {
        let folder = tempfile::tempdir().unwrap();
        let database = crate::store::Database::embedded(folder.path());
        let bus = InProcessBus::new(Store::open(&database).await.unwrap());
        let version = Some(Version { generation: 1, revision: 5 });
        bus.put_head(staged(1, 5, b"five", 1, 3_000), None).await.unwrap();
        let late = bus.put_head(staged(1, 5, b"five", 1, 1), version).await;
        assert!(matches!(late, Err(BusError::Conflict { .. })), "{late:?}");
        bus.put_head(staged(1, 5, b"five", 1, STAGE_ALL), version).await.unwrap();
    }
}
