//! The bus: a cache of heads and blobs, and a doorbell. It may lose, double, reorder or forget
//! everything, and that costs time, never correctness.
//!
//! A port: in-process here, a broker later. Boxed futures, so that it can be a trait object.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use rules::blob::Digest;
use rules::head::{SignedHead, Version};
use tokio::sync::watch;

use crate::publisher;
use crate::store::Store;

pub type BusFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, BusError>> + Send + 'a>>;

#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The head there is not the one that was expected.
    #[error("the bus holds another head, {current:?}")]
    Conflict { current: Option<Version> },
    #[error("the bus cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

#[derive(Debug, Clone, PartialEq)]
pub struct PublishedHead {
    pub namespace: String,
    pub environment: String,
    pub version: Version,
    pub signed: SignedHead,
}

pub trait Bus: Send + Sync + 'static {
    fn put_blob(&self, digest: Digest, bytes: Bytes) -> BusFuture<'_, ()>;
    fn blob(&self, digest: Digest) -> BusFuture<'_, Option<Bytes>>;
    /// Compare-and-set: only where the bus holds `expected`, and never backwards.
    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()>;
    fn remove_head(&self, namespace: &str, environment: &str) -> BusFuture<'_, ()>;
    fn heads(&self) -> BusFuture<'_, Vec<PublishedHead>>;
    /// Whether every control sees the same one, so that one of them is enough to fill it.
    fn is_shared(&self) -> bool;
    /// Counts up whenever heads may have changed.
    fn changed(&self) -> watch::Receiver<u64>;
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
    fn put_blob(&self, _digest: Digest, _bytes: Bytes) -> BusFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn blob(&self, digest: Digest) -> BusFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            publisher::stored_blob(&self.store, digest)
                .await
                .map_err(|error| BusError::Unreachable(error.into()))
        })
    }

    fn put_head(&self, head: PublishedHead, expected: Option<Version>) -> BusFuture<'_, ()> {
        Box::pin(async move {
            {
                let mut heads = self.heads.lock().unwrap_or_else(PoisonError::into_inner);
                let at = (head.namespace.clone(), head.environment.clone());
                let current = heads.get(&at).map(|head| head.version);
                if current != expected || current.is_some_and(|current| current > head.version) {
                    return Err(BusError::Conflict { current });
                }
                heads.insert(at, head);
            }
            self.ring();
            Ok(())
        })
    }

    fn remove_head(&self, namespace: &str, environment: &str) -> BusFuture<'_, ()> {
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
