//! The Ed25519 key that heads are signed with: made on the first start, kept in a file that only
//! its owner may read, so that a copy of the database cannot sign.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

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
    match std::fs::read(path) {
        Ok(bytes) => {
            let seed: [u8; 32] =
                bytes.try_into().map_err(|_| SigningError::Malformed { path: path.to_owned() })?;
            Ok(SigningKey::from_bytes(&seed))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut seed = [0u8; 32];
            getrandom::fill(&mut seed).map_err(|error| SigningError::Entropy(error.to_string()))?;
            write_private(path, &seed).map_err(failed)?;
            Ok(SigningKey::from_bytes(&seed))
        }
        Err(error) => Err(failed(error)),
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
