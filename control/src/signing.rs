//! The Ed25519 key that heads are signed with: made on the first start, kept in a file that only
//! its owner may read, so that a copy of the database cannot sign.
//!
//! It is changed by putting another key into the file, once the edges trust both: what is published
//! is then signed anew, under the versions that it has, and no edge stops following (docs/KEYS.md).

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use rules::head::PublicKey;
use tokio_util::sync::CancellationToken;

use crate::authorize::callers::Authority;
use crate::publisher::{PublishError, Publisher};
use crate::relay::jittered;

#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("the signing key {path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the signing key {path} is not 32 bytes long")]
    Malformed { path: PathBuf },
    #[error("the system gives no randomness: {0}")]
    Entropy(String),
}

pub fn load_or_make(path: &Path) -> Result<SigningKey, SigningError> {
    let failed = |source| SigningError::File { path: path.to_owned(), source };
    match load(path)? {
        Some(key) => Ok(key),
        None => {
            let mut seed = [0u8; 32];
            getrandom::fill(&mut seed).map_err(|error| SigningError::Entropy(error.to_string()))?;
            write_private(path, &seed).map_err(failed)?;
            Ok(SigningKey::from_bytes(&seed))
        }
    }
}

/// None if there is no such file.
pub fn load(path: &Path) -> Result<Option<SigningKey>, SigningError> {
    match std::fs::read(path) {
        Ok(bytes) => {
            let seed: [u8; 32] =
                bytes.try_into().map_err(|_| SigningError::Malformed { path: path.to_owned() })?;
            Ok(Some(SigningKey::from_bytes(&seed)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SigningError::File { path: path.to_owned(), source }),
    }
}

/// Takes up another key as soon as it is in the file, and while this control leads signs with it what
/// was signed with another. A file that is gone or half written changes nothing.
pub async fn follow(
    publisher: Arc<Publisher>,
    authority: Arc<Authority>,
    path: PathBuf,
    tick: Duration,
    stop: CancellationToken,
) {
    let mut leading = publisher.lead.changes();
    let mut told = false;
    let mut due = true;
    loop {
        leading.mark_unchanged();
        match load(&path) {
            Ok(Some(key)) if PublicKey::of(&key) != publisher.public_key() => {
                let public_key = PublicKey::of(&key);
                tracing::warn!(%public_key, "another signing key: what is published is signed anew");
                authority.sessions.follow(&key);
                publisher.set_key(key);
                (told, due) = (false, true);
            }
            Ok(Some(_)) => told = false,
            Ok(None) | Err(_) if told => {}
            Ok(None) => {
                tracing::error!(path = %path.display(), "the signing key is gone; the one in use stays");
                told = true;
            }
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the signing key cannot be read; the one in use stays");
                told = true;
            }
        }
        if due {
            match publisher.sign_again().await {
                Ok(0) => due = false,
                Ok(heads) => {
                    due = false;
                    tracing::info!(heads, "signed anew");
                }
                // Whoever begins to lead looks for what the one before had signed.
                Err(PublishError::NotLeading) => {}
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "not all heads are signed anew; it is tried again");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            _ = leading.changed() => due = true,
            () = tokio::time::sleep(jittered(tick)) => {}
        }
    }
}

/// Mode 0600 from its first byte, complete or absent after a crash.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let partial = path.with_extension("part");
    let _ = std::fs::remove_file(&partial);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&partial, path)?;
    match path.parent() {
        Some(folder) => std::fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
