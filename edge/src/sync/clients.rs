//! The client snapshot's way here: named by the same head, checked like everything, kept beside the
//! snapshot. A snapshot without the one that its head names is not taken up, but for one case: on a
//! disk that an older edge wrote it is missing, and then the flags are served, and browsers wait.

use std::sync::Arc;

use bytes::Bytes;
use rules::client::ClientHead;
use rules::head::{ClientRef, SignedHead};
use rules::limits::SNAPSHOT_BYTES_MAX;

use super::{Refusal, Source, Sync, Target, Unsaved, lock, verify};
use crate::client::Client;
use crate::state::Name;

impl Sync {
    /// None if the head names none.
    pub(super) async fn client_of(
        &self,
        target: &Target,
        key_id: &str,
        source: Source,
        contents: &mut Vec<(rules::blob::Digest, Bytes)>,
    ) -> Result<Option<Arc<Client>>, Refusal> {
        let Some(reference) = &target.client else { return Ok(None) };
        let head = self.client_head(target, reference, key_id)?;
        let (namespace, environment) = target.name();
        let signed = reference.signed(key_id);
        let served = self.state.table().environment(&namespace, &environment).cloned();
        if let Some(client) = served.and_then(|served| served.client.load_full())
            && client.signed == signed
        {
            // Hidden flags changed, or none: the bytes are here, checked and compressed.
            contents.push((reference.digest, client.blob.clone()));
            return Ok(Some(client));
        }
        let (bytes, bytes_max) = (reference.bytes, SNAPSHOT_BYTES_MAX as u64);
        if bytes > bytes_max {
            return Err(Refusal::OverLimit { what: "client snapshot", bytes, bytes_max });
        }
        let wanted = (reference.digest, reference.bytes);
        let blob = match self.bytes_of("client snapshot", source, &namespace, wanted).await {
            Err(Refusal::ListMissing) => {
                tracing::warn!(namespace, environment, "browsers wait: their part is not on disk");
                return Ok(None);
            }
            blob => blob?,
        };
        verify("client snapshot", &blob, reference.digest, reference.bytes)?;
        contents.push((reference.digest, blob.clone()));
        let made = seam::blocking(move || Client::make(head, signed, &blob)).await;
        let made = made.map_err(|_| Refusal::Load("loading it panicked".to_owned()))?;
        made.map(|client| Some(Arc::new(client))).map_err(Refusal::Load)
    }

    fn client_head(
        &self,
        target: &Target,
        reference: &ClientRef,
        key_id: &str,
    ) -> Result<ClientHead, Refusal> {
        let verified = reference.verify(&target.head, key_id, &self.trusted.borrow());
        match (verified, reference.claims()) {
            (Err(_), Some(claims)) if seam::planted("no-signature-check") => Ok(claims),
            (verified, _) => Ok(verified?),
        }
    }

    /// Of a snapshot that is served already: its client's part was signed anew, or was not there yet.
    /// False if it could not be had now.
    pub(super) async fn refresh_client(
        &self,
        name: &Name,
        target: &Target,
        signed: &SignedHead,
    ) -> bool {
        let served = self.state.table().environment(&name.0, &name.1).cloned();
        let (Some(served), Some(reference)) = (served, &target.client) else { return true };
        let now = reference.signed(&signed.key_id);
        if served.client.load().as_ref().is_some_and(|client| client.signed == now) {
            return true;
        }
        let mut contents = Vec::new();
        match self.client_of(target, &signed.key_id, Source::Feed, &mut contents).await {
            Ok(client) => {
                if let Some(client) = &client {
                    served.tenant.ring.keep(client);
                }
                served.client.store(client);
                let (of, version) = (name.clone(), target.version);
                let Some(disk) = self.disk.clone() else { return true };
                let read = seam::blocking(move || disk.blob(&of, version).ok()).await;
                let Some(blob) = read.ok().flatten() else { return true };
                if rules::blob::Digest::of(&blob) == target.blob.digest {
                    let stored = super::Stored { head: signed.clone(), role: target.role, blob };
                    self.save(name, Unsaved { version, stored, lists: contents }).await;
                }
                true
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                tracing::error!(?name, reason, "the client snapshot is refused");
                let lasting = !refusal.is_transient();
                let (version, digest) = (target.version, target.blob.digest);
                let unfetched = refusal.is_unfetched();
                let refused = super::Refused { version, digest, reason, lasting, unfetched };
                lock(&self.refused).insert(name.clone(), refused);
                lasting
            }
        }
    }
}
