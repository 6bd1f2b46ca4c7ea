//! Whether an uploaded module may become a version: asked of the sandbox's helper process, one at
//! a time, with few waiting. Compiled policies for dry runs live here too, since both run the code
//! of strangers and nothing else in control does.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use rules::blob::Digest;
use rules::policy::PolicyFault;
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{Policies, Policy, PolicyConfig, Vector, Verdict};
use tokio::sync::Semaphore;

/// Uploads that wait for the one under way; each takes seconds at most.
const WAITING_MAX: usize = 8;
/// Compiled policies that are kept for dry runs: half a megabyte each at the worst.
const KEPT_MAX: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    #[error("{WAITING_MAX} uploads wait for their admission already")]
    Busy,
    #[error("the module could not be looked at: {0}")]
    Helper(#[from] HelperError),
    #[error("policies cannot be run here: {0}")]
    Broken(String),
}

pub struct Admission {
    helper: Helper,
    turn: Semaphore,
    waiting: AtomicUsize,
    /// Made at the first dry run that calls a policy.
    engine: OnceLock<Option<Arc<Policies>>>,
    /// The last ones, newest last.
    kept: Mutex<Vec<(Digest, Arc<Policy>)>>,
}

/// A place in the line, given back whatever becomes of the request.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Admission {
    pub fn new(helper: Helper) -> Admission {
        Admission {
            helper,
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            engine: OnceLock::new(),
            kept: Mutex::default(),
        }
    }

    /// The verdict, also of a module that is refused.
    pub async fn admit(
        self: &Arc<Self>,
        wasm: Bytes,
        vectors: Vec<Vector>,
    ) -> Result<Verdict, AdmissionError> {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _place = Waiting(&self.waiting);
        if before > WAITING_MAX {
            return Err(AdmissionError::Busy);
        }
        let broken = |error: &dyn std::fmt::Display| AdmissionError::Broken(error.to_string());
        let turn = self.turn.acquire().await.map_err(|error| broken(&error))?;
        let helper = self.helper.clone();
        let judged = tokio::task::spawn_blocking(move || helper.admit(&wasm, &vectors)).await;
        drop(turn);
        Ok(judged.map_err(|error| broken(&error))??)
    }

    /// Compiled, for a dry run. Blocking.
    pub fn policy(&self, digest: Digest, wasm: &[u8]) -> Result<Arc<Policy>, PolicyFault> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, policy)) = kept().iter().find(|(of, _)| *of == digest) {
            return Ok(policy.clone());
        }
        let engine = self.engine.get_or_init(|| {
            let config = PolicyConfig { helper: self.helper.clone(), cache_dir: None };
            let made = Policies::new(config);
            made.inspect_err(|error| tracing::error!(%error, "policies cannot be run")).ok()
        });
        let engine = engine.as_ref().ok_or(PolicyFault::Unavailable)?;
        let loaded = engine.load(digest, wasm).map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, %digest, "a policy");
            PolicyFault::Unavailable
        })?;
        let mut kept = kept();
        if kept.len() >= KEPT_MAX {
            kept.remove(0);
        }
        kept.push((digest, loaded.clone()));
        Ok(loaded)
    }
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission").field("helper", &self.helper).finish_non_exhaustive()
    }
}
