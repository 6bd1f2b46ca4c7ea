//! The client blobs that an environment had last, and the patches between them: made once, however
//! many streams ask.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use rules::blob::Digest;
use rules::head::Version;

use super::patch;
use crate::client::Client;
use crate::sync::lock;

/// A page that was asleep for longer fetches the whole.
const BLOBS_KEPT: usize = 8;
/// Of one environment, beside what is served.
const BYTES_KEPT: usize = 16 << 20;
const PATCHES_KEPT: usize = 16;
/// Each stream gets a copy of its own; beyond this a download, which is compressed, is shorter.
const PATCH_BYTES_MAX: usize = 128 * 1024;

#[derive(Debug, Default)]
pub struct Ring {
    kept: Mutex<Kept>,
    /// One patch at a time: whoever waits finds it made.
    making: tokio::sync::Mutex<()>,
}

/// Base and target.
type Pair = (Digest, Digest);

#[derive(Debug, Default)]
struct Kept {
    /// Oldest first.
    blobs: VecDeque<(Version, Digest, Bytes)>,
    patches: VecDeque<(Pair, Option<Arc<str>>)>,
}

impl Ring {
    /// Call it before the client snapshot is served.
    pub fn keep(&self, client: &Client) {
        let mut kept = lock(&self.kept);
        let (version, digest) = (client.head.version, client.head.digest);
        if kept.blobs.back().is_some_and(|(last, _, _)| *last >= version) {
            return;
        }
        kept.blobs.push_back((version, digest, client.blob.clone()));
        let bytes = |kept: &Kept| kept.blobs.iter().map(|(_, _, blob)| blob.len()).sum::<usize>();
        while kept.blobs.len() > 1 && (kept.blobs.len() > BLOBS_KEPT || bytes(&kept) > BYTES_KEPT) {
            kept.blobs.pop_front();
        }
    }

    /// What was served at this version, if it is still here.
    pub fn digest_at(&self, version: Version) -> Option<Digest> {
        let kept = lock(&self.kept);
        kept.blobs.iter().find(|(of, _, _)| *of == version).map(|(_, digest, _)| *digest)
    }

    /// From `base` to the client snapshot, in base64. None where the base is gone, or the patch would
    /// not be shorter than half of the whole.
    pub async fn patch(&self, base: Digest, client: &Arc<Client>) -> Option<Arc<str>> {
        let pair = (base, client.head.digest);
        if let Some(known) = self.known(pair) {
            return known;
        }
        let _one_at_a_time = self.making.lock().await;
        if let Some(known) = self.known(pair) {
            return known;
        }
        let from = {
            let kept = lock(&self.kept);
            kept.blobs
                .iter()
                .find(|(_, digest, _)| *digest == base)
                .map(|(_, _, blob)| blob.clone())?
        };
        let client = client.clone();
        let made = seam::blocking(move || {
            let limit = (client.blob.len() / 2).min(PATCH_BYTES_MAX);
            let patch = patch::make(&from, &client.blob, limit)?;
            Some(Arc::from(BASE64.encode(patch)))
        });
        let made: Option<Arc<str>> = made.await.ok().flatten();
        let mut kept = lock(&self.kept);
        kept.patches.push_back((pair, made.clone()));
        if kept.patches.len() > PATCHES_KEPT {
            kept.patches.pop_front();
        }
        made
    }

    fn known(&self, pair: Pair) -> Option<Option<Arc<str>>> {
        let kept = lock(&self.kept);
        kept.patches.iter().find(|(of, _)| *of == pair).map(|(_, patch)| patch.clone())
    }
}
