//! Looks for rot: what is served and what lies on disk is hashed again from time to time, one thing after
//! the other and beside the requests, since a byte that flips in memory or on disk says nothing by itself.
//!
//! What is damaged on disk is set aside; a snapshot that is served and damaged, in memory or on disk, is
//! loaded and written anew in the next round, from the disk if that is whole, or else from control. Until
//! then it goes on serving: a flipped byte is no reason to have no flags, and the evaluators that live have
//! a copy of their own. That copy is not looked at: the guest alone knows its form.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rules::blob::Digest;
use rules::blob::lists::IdList;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

use super::{Refusal, Source, Stored, Sync, Target, Unsaved, lock};
use crate::disk::{Disk, Entry, ReadError, Role};
use crate::feed::jittered;
use crate::state::{Name, Served};
use rules::head::{SignedHead, Version};

/// What was found, and is to be mended.
#[derive(Debug, Default)]
pub(super) struct Found {
    damaged: Mutex<BTreeSet<Name>>,
    bell: Notify,
}

impl Found {
    pub(super) async fn something(&self) {
        self.bell.notified().await;
    }

    pub(super) fn is_nothing(&self) -> bool {
        lock(&self.damaged).is_empty()
    }

    pub(super) fn has(&self, name: &Name) -> bool {
        lock(&self.damaged).contains(name)
    }

    pub(super) fn mended(&self, name: &Name) {
        lock(&self.damaged).remove(name);
    }
}

/// What rot is noticed by, where no digest is kept beside the bytes.
pub(super) fn sum(bytes: &[u8]) -> u64 {
    // With the feature `failpoints` a test has the bytes rot.
    fail::fail_point!("edge-memory-rot", |_| xxh3_64(bytes) ^ 1);
    xxh3_64(bytes)
}

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    Damaged(&'static str),
    Unreadable(String),
}

fn fault_of(disk: &Disk, entry: &Entry) -> Option<Fault> {
    let stored = match disk.read(entry) {
        Ok(stored) => stored,
        // Old ones are removed meanwhile.
        Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(ReadError::Io(error)) => return Some(Fault::Unreadable(error.to_string())),
        Err(ReadError::Damaged(why)) => return Some(Fault::Damaged(why)),
    };
    let named = stored.head.claims().and_then(|claims| match stored.role {
        Role::Newest => Some(claims.snapshot.digest),
        Role::Previous => claims.previous.map(|previous| previous.snapshot.digest),
    });
    let is_whole = named == Some(Digest::of(&stored.blob));
    (!is_whole).then_some(Fault::Damaged("its bytes are not those that its head names"))
}

impl Sync {
    /// Until told to stop.
    pub async fn look_for_rot(&self, stop: CancellationToken) {
        let looks = async {
            loop {
                tokio::time::sleep(jittered(self.verify_every)).await;
                self.look_once().await;
                self.metrics.verifications.increment(1);
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = looks => {}
        }
    }

    async fn look_once(&self) {
        let served: Vec<Arc<Served>> = self.state.table().environments().cloned().collect();
        for served in &served {
            self.look_at_memory(served).await;
        }
        self.look_at_lists(&served).await;
        if let Some(disk) = self.disk.clone() {
            self.look_at_disk(&disk, &served).await;
        }
    }

    fn found_in_memory(&self, name: &Name, what: &str) {
        tracing::error!(?name, what, "what is served has rotted in memory; it is loaded anew");
        self.metrics.rotted_in_memory.increment(1);
        self.mend_soon(name);
    }

    fn mend_soon(&self, name: &Name) {
        lock(&self.found.damaged).insert(name.clone());
        self.found.bell.notify_one();
    }

    async fn look_at_memory(&self, served: &Arc<Served>) {
        let of = served.clone();
        let looked = seam::blocking(move || {
            let ruleset = sum(&of.ruleset) == of.ruleset_sum;
            let client = of.client.load_full();
            let client = client.filter(|of| Digest::of(&of.blob) != of.head.digest);
            (ruleset, client)
        });
        let Ok((ruleset, client)) = looked.await else { return };
        let name = &served.tenant.name;
        if !ruleset {
            self.found_in_memory(name, "its ruleset");
        }
        if let Some(client) = client {
            // Whoever asks meanwhile is better told that there is none; the same bytes would be kept else.
            served.client.compare_and_swap(&Some(client), None);
            self.found_in_memory(name, "its client snapshot");
        }
    }

    async fn look_at_lists(&self, all: &[Arc<Served>]) {
        let lists: Vec<(Digest, Arc<IdList>, u64)> = lock(&self.lists)
            .iter()
            .filter_map(|(digest, kept)| Some((*digest, kept.list.upgrade()?, kept.sum)))
            .collect();
        for (digest, list, kept) in lists {
            let now = seam::blocking(move || sum(&list.encode())).await;
            if now.is_ok_and(|now| now == kept) {
                continue;
            }
            // Or loading anew would take it from there.
            lock(&self.lists).remove(&digest);
            for served in all.iter().filter(|served| names(served, digest)) {
                self.found_in_memory(&served.tenant.name, "an id list");
            }
        }
    }

    async fn look_at_disk(&self, disk: &Disk, all: &[Arc<Served>]) {
        let listed = disk.clone();
        let listed = seam::blocking(move || Ok((listed.entries()?, listed.lists()?))).await;
        let (entries, lists) = match listed.unwrap_or_else(|_| Err(io::Error::other("a panic"))) {
            Ok(listed) => listed,
            Err(error) => return self.disk_failed(&error),
        };
        for entry in entries.into_iter().flatten() {
            let (of, path) = (disk.clone(), entry.path.clone());
            let looked = seam::blocking(move || {
                let fault = fault_of(&of, &entry)?;
                if let Fault::Damaged(_) = fault
                    && let Err(error) = of.quarantine(&entry)
                {
                    tracing::error!(%error, "a damaged snapshot could not be set aside");
                }
                Some(fault)
            });
            let Ok(Some(fault)) = looked.await else { continue };
            tracing::error!(file = %path.display(), ?fault, "a snapshot on disk has rotted");
            self.metrics.rotted_on_disk.increment(1);
            if matches!(fault, Fault::Damaged(_)) {
                self.metrics.quarantined.increment(1);
            }
        }
        for digest in lists {
            let of = disk.clone();
            let looked = seam::blocking(move || match of.is_whole(digest) {
                Ok(false) => of.remove_list(digest).map(|()| false),
                looked => looked,
            });
            match looked.await {
                Ok(Ok(true)) | Err(_) => {}
                Ok(Ok(false)) => {
                    tracing::error!(%digest, "a list on disk has rotted");
                    self.metrics.rotted_on_disk.increment(1);
                }
                Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(Err(error)) => self.disk_failed(&error),
            }
        }
        // Whatever was set aside or is otherwise not there.
        for served in all {
            let name = &served.tenant.name;
            let is_due = lock(&self.progress).unsaved.contains_key(name);
            let table = self.state.table();
            let now = table.environment(&name.0, &name.1);
            let is_newest = now.is_some_and(|now| now.version == served.version);
            if is_newest && !is_due && !is_there(disk, served) {
                self.mend_soon(name);
            }
        }
    }

    fn disk_failed(&self, error: &io::Error) {
        self.metrics.disk_failures.increment(1);
        tracing::error!(%error, "what is on disk could not be looked at");
    }

    /// Loads and writes anew what is served already.
    pub(super) async fn mend(&self, signed: &SignedHead, target: &Target) -> Result<(), Refusal> {
        let name = target.name();
        let (digest, bytes) = (target.blob.digest, target.blob.bytes);
        let blob = match self.kept(&name, target.version, digest).await {
            Some(blob) => blob,
            None => self.fetch("snapshot", &name.0, digest, bytes).await?,
        };
        let loaded = self.load(target, &signed.key_id, &blob, Source::Feed).await?;
        let stored = Stored { head: signed.clone(), role: target.role, blob };
        let lists = loaded.lists.clone();
        self.save(&name, Unsaved { version: target.version, stored, lists }).await;
        self.serve(target, loaded)
    }

    /// A snapshot's bytes as they are on disk, if they are there and whole.
    pub(super) async fn kept(
        &self,
        name: &Name,
        version: Version,
        digest: Digest,
    ) -> Option<Bytes> {
        let (disk, name) = (self.disk.clone()?, name.clone());
        let read = seam::blocking(move || disk.blob(&name, version).ok()).await;
        read.ok().flatten().filter(|blob| Digest::of(blob) == digest)
    }
}

fn names(served: &Served, digest: Digest) -> bool {
    served.manifest.lists.iter().any(|list| list.digest == digest)
}

/// The snapshot's file, and the files that it takes to load it.
fn is_there(disk: &Disk, served: &Served) -> bool {
    let lists = served.manifest.lists.iter().map(|list| list.digest);
    let client = served.client.load().as_ref().map(|client| client.head.digest);
    disk.has(&served.tenant.name, served.version)
        && lists.chain(client).all(|digest| disk.has_list(digest))
}
