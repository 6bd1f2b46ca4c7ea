//! Secrets that control has to read again lie in the database sealed: who has a copy of it has none
//! of them.
//!
//! They are sealed with ChaCha20-Poly1305 under a key in a file of its own, made on the first start and
//! shared by replicas, and bound to what they are of: the sealed secret of one row opens in no other.
//! The database knows which key it is, by a hash, so a control that has another one does not start. What
//! need not be read again (tokens, keys, passwords) is stored as a hash and is not here.
//! Next: `webhooks.rs`, which has such secrets.

use std::io;
use std::path::{Path, PathBuf};

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

use crate::refusal::Refusal;
use crate::signing::write_private;
use crate::store::query::{query, query_scalar};
use crate::store::{Store, Tx, now_us};

const KEY_BYTES: usize = 32;
/// The first byte of what is sealed. Another form has another one.
const FORM: u8 = 1;
/// What sealing adds to a secret.
pub const ADDED_BYTES: usize = 1 + NONCE_LEN + 16;

const KNOWN: &str = "SELECT id FROM secrets_key";
const REMEMBER: &str = "INSERT INTO secrets_key (id, since) VALUES ($1, $2)";
const FORGET: &str = "DELETE FROM secrets_key";

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("the secrets key {path} cannot be read or written")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "the secrets key {path} is not {KEY_BYTES} bytes long; put the key that was made back from a \
         backup or from another control"
    )]
    Malformed { path: PathBuf },
    #[error(
        "the database's secrets are sealed with the key {id}, and there is no key at {path}; put it \
         there from a backup or from another control (--secrets-key-file), or, if it is lost: \
         tidegate control forget-secrets"
    )]
    Missing { path: PathBuf, id: String },
    #[error(
        "the database's secrets are sealed with the key {known}, and {path} holds the key {id}; put \
         the other one there from a backup or from another control (--secrets-key-file), or, if it is \
         lost: tidegate control forget-secrets"
    )]
    Another { path: PathBuf, id: String, known: String },
    #[error("the system gives no randomness: {0}")]
    Entropy(String),
    #[error("the database cannot say which key its secrets are sealed with")]
    Store(#[from] sqlx::Error),
}

/// What was sealed does not open: under another key, for something else, or altered.
#[derive(Debug, thiserror::Error)]
#[error("the secret does not open with this control's secrets key")]
pub struct Shut;

pub struct Vault {
    key: LessSafeKey,
}

/// How a key is called where people see it.
fn id(key: &[u8; KEY_BYTES]) -> String {
    let hash = Sha256::new().chain_update(b"tidegate secrets key\0").chain_update(key).finalize();
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn load(path: &Path) -> Result<Option<[u8; KEY_BYTES]>, VaultError> {
    match std::fs::read(path) {
        Ok(bytes) => match bytes.try_into() {
            Ok(key) => Ok(Some(key)),
            Err(_) => Err(VaultError::Malformed { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(VaultError::File { path: path.to_owned(), source }),
    }
}

fn make(path: &Path) -> Result<[u8; KEY_BYTES], VaultError> {
    let mut key = [0u8; KEY_BYTES];
    getrandom::fill(&mut key).map_err(|error| VaultError::Entropy(error.to_string()))?;
    let failed = |source| VaultError::File { path: path.to_owned(), source };
    write_private(path, &key).map_err(failed)?;
    Ok(key)
}

/// The key in the file, made if there is none: for who sets several processes up.
pub fn load_or_make(path: &Path) -> Result<(), VaultError> {
    if load(path)?.is_none() {
        make(path)?;
    }
    Ok(())
}

/// Where the key is unless it is said: where replicas share a folder of keys, they share this one too.
pub fn beside(signing_key_file: &Path) -> PathBuf {
    signing_key_file.with_file_name("secrets-key")
}

impl Vault {
    fn of(key: &[u8; KEY_BYTES]) -> Result<Vault, VaultError> {
        let key = UnboundKey::new(&CHACHA20_POLY1305, key);
        let key = key.map_err(|error| VaultError::Entropy(error.to_string()))?;
        Ok(Vault { key: LessSafeKey::new(key) })
    }

    /// With the key that the database's secrets are sealed with. A database that has none yet takes the
    /// one in the file, which is made if it is missing; then, and only then.
    pub async fn open(store: &Store, path: &Path) -> Result<Vault, VaultError> {
        let mut tx = store.write().await?;
        // Of replicas that start at once, one makes it.
        tx.take_turn("secrets key").await?;
        let known: Option<String> = query_scalar(KNOWN).fetch_optional(&mut tx).await?;
        let key = match (load(path)?, known) {
            (Some(key), Some(known)) if id(&key) == known => key,
            (Some(key), Some(known)) => {
                return Err(VaultError::Another { path: path.to_owned(), id: id(&key), known });
            }
            (None, Some(id)) => return Err(VaultError::Missing { path: path.to_owned(), id }),
            (found, None) => {
                let key = match found {
                    Some(key) => key,
                    None => make(path)?,
                };
                query(REMEMBER).bind(id(&key)).bind(now_us()).execute(&mut tx).await?;
                tx.commit().await?;
                key
            }
        };
        Vault::of(&key)
    }

    /// `of` is what it is the secret of; it opens for nothing else.
    pub fn seal(&self, of: &str, secret: &[u8]) -> Result<Vec<u8>, Refusal> {
        let mut nonce = [0u8; NONCE_LEN];
        seam::random(&mut nonce)
            .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
        let mut sealed = secret.to_vec();
        // Random ones of 96 bits: that two of a few thousand are the same is out of the question.
        let unique = Nonce::assume_unique_for_key(nonce);
        self.key
            .seal_in_place_append_tag(unique, Aad::from(of.as_bytes()), &mut sealed)
            .map_err(|_| Refusal::Internal("a secret cannot be sealed".to_owned()))?;
        Ok([&[FORM][..], &nonce, &sealed].concat())
    }

    pub fn unseal(&self, of: &str, sealed: &[u8]) -> Result<Vec<u8>, Shut> {
        let (form, rest) = sealed.split_first().ok_or(Shut)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN).ok_or(Shut)?;
        if *form != FORM {
            return Err(Shut);
        }
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Shut)?;
        let mut sealed = sealed.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(of.as_bytes()), &mut sealed);
        Ok(opened.map_err(|_| Shut)?.to_vec())
    }
}

/// Of a key that is lost: the next control that starts brings another one. Whose secrets are lost with
/// it is the business of who has them.
pub async fn forget(tx: &mut Tx) -> Result<(), sqlx::Error> {
    tx.take_turn("secrets key").await?;
    query(FORGET).execute(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_for_what_it_is_of_and_for_nothing_else() {
        let (ours, theirs) = (Vault::of(&[7; 32]).unwrap(), Vault::of(&[8; 32]).unwrap());
        let sealed = ours.seal("webhook one", b"a secret").unwrap();
        assert_eq!(sealed.len(), 8 + ADDED_BYTES);
        assert_eq!(ours.unseal("webhook one", &sealed).unwrap(), b"a secret");
        assert_ne!(ours.seal("webhook one", b"a secret").unwrap(), sealed, "it is salted");
        assert!(ours.unseal("webhook two", &sealed).is_err());
        assert!(theirs.unseal("webhook one", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(ours.unseal("webhook one", &altered).is_err(), "byte {at}");
            assert!(ours.unseal("webhook one", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn a_key_is_made_once_for_its_owner_alone_and_one_of_another_length_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets-key");
        load_or_make(&path).unwrap();
        let made = std::fs::read(&path).unwrap();
        load_or_make(&path).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), made.len()), (made, KEY_BYTES));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(load_or_make(&path), Err(VaultError::Malformed { .. })));
    }
}
