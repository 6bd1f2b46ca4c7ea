//! Passwords, as Argon2id in PHC form: 19 MiB and two passes each, which is what OWASP asks for at
//! least.
//!
//! Hashing is dear on purpose, so only a few are hashed at once and few wait for their turn; more are
//! told to come again. Never called with a transaction open.

use argon2::password_hash::PasswordHasher as _;
use argon2::password_hash::PasswordVerifier as _;
use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Params, Version};
use rules::secret::Secret;
use std::sync::Arc;
use tokio::sync::Semaphore;

use crate::refusal::Refusal;

pub const CHARACTERS_MIN: usize = 12;
/// Bounded only so that nobody sends megabytes.
pub const CHARACTERS_MAX: usize = 128;

const MEMORY_KIB: u32 = 19_456;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// 38 MiB of memory, and two cores of a small machine.
const AT_ONCE_MAX: usize = 2;
const WAITING_MAX: usize = 32;

/// Verified where there is no account, so that an unknown address takes as long as a wrong password.
/// No password has this hash: its tag is not Argon2's.
const DECOY: &str = "$argon2id$v=19$m=19456,t=2,p=1$dGlkZWdhdGUtZGVjb3k$\
    AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[derive(Debug, Clone)]
pub struct Passwords {
    places: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("too many passwords are being checked just now")]
    Busy,
    #[error("a password could not be hashed: {0}")]
    Failed(String),
}

impl Default for Passwords {
    fn default() -> Passwords {
        Passwords {
            places: Arc::new(Semaphore::new(AT_ONCE_MAX)),
            waiting: Arc::new(Semaphore::new(AT_ONCE_MAX + WAITING_MAX)),
        }
    }
}

/// Whether it may be chosen. How it is made up is its owner's business; how long it is, is not.
pub fn check(pointer: &str, password: &Secret<String>) -> Result<(), Refusal> {
    match password.reveal().chars().count() {
        CHARACTERS_MIN..=CHARACTERS_MAX => Ok(()),
        _ => Err(Refusal::invalid(
            pointer,
            format!("a password has {CHARACTERS_MIN} to {CHARACTERS_MAX} characters"),
        )),
    }
}

impl Passwords {
    pub async fn hash(&self, password: Secret<String>) -> Result<String, PasswordError> {
        self.alone(move || {
            let hash = argon2()?.hash_password(password.reveal().as_bytes());
            hash.map(|hash| hash.to_string()).map_err(|error| error.to_string())
        })
        .await
    }

    /// Takes as long without a hash as with one.
    pub async fn matches(
        &self,
        password: Secret<String>,
        hash: Option<String>,
    ) -> Result<bool, PasswordError> {
        self.alone(move || {
            let known = hash.is_some();
            let text = hash.unwrap_or_else(|| DECOY.to_owned());
            let hash = PasswordHash::new(&text).map_err(|error| error.to_string())?;
            // With the parameters of the hash, so that older ones go on.
            let same = argon2()?.verify_password(password.reveal().as_bytes(), &hash).is_ok();
            Ok(same && known)
        })
        .await
    }

    async fn alone<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, String> + Send + 'static,
    ) -> Result<T, PasswordError> {
        let failed = |error: &dyn std::fmt::Display| PasswordError::Failed(error.to_string());
        let waiting = self.waiting.clone().try_acquire_owned().map_err(|_| PasswordError::Busy)?;
        let place = self.places.clone().acquire_owned().await.map_err(|error| failed(&error))?;
        // The places go with the work: who hangs up does not make room for more of it.
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop((place, waiting));
            done
        });
        match done.await {
            Ok(done) => done.map_err(PasswordError::Failed),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn argon2() -> Result<Argon2<'static>, String> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).map_err(|error| error.to_string())?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret<String> {
        Secret::new(text.to_owned())
    }

    #[tokio::test]
    async fn a_password_matches_its_own_hash_and_no_other() {
        let passwords = Passwords::default();
        let hash = passwords.hash(secret("correct horse battery")).await.unwrap();
        assert!(hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{hash}");
        let again = passwords.hash(secret("correct horse battery")).await.unwrap();
        assert_ne!(hash, again, "each has a salt of its own");
        let matches = async |text: &str, hash| passwords.matches(secret(text), hash).await.unwrap();
        assert!(matches("correct horse battery", Some(hash.clone())).await);
        assert!(!matches("correct horse batterz", Some(hash)).await);
        assert!(!matches("correct horse battery", None).await);
    }

    #[tokio::test]
    async fn who_comes_when_all_places_to_wait_are_taken_is_sent_away() {
        let passwords = Passwords::default();
        let all = passwords.waiting.clone();
        let taken = all.try_acquire_many((AT_ONCE_MAX + WAITING_MAX) as u32).unwrap();
        let refused = passwords.hash(secret("correct horse battery")).await;
        assert!(matches!(refused, Err(PasswordError::Busy)), "{refused:?}");
        drop(taken);
        assert!(passwords.hash(secret("correct horse battery")).await.is_ok());
    }

    #[test]
    fn characters_are_counted_and_not_bytes() {
        assert!(check("/password", &secret(&"ü".repeat(CHARACTERS_MAX))).is_ok());
        assert!(check("/password", &secret(&"ü".repeat(CHARACTERS_MAX + 1))).is_err());
        assert!(check("/password", &secret(&"ü".repeat(CHARACTERS_MIN - 1))).is_err());
    }
}
