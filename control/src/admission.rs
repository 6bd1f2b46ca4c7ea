//! Whether an uploaded module may become a version: asked of the sandbox's helper process, one at
//! a time, with few waiting and few a minute from one namespace. Compiled policies for dry runs live
//! here too, since both run the code of strangers and nothing else in control does.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use governor::clock::Clock as _;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use rules::blob::Digest;
use rules::policy::PolicyFault;
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{Policies, Policy, PolicyConfig, Vector, Verdict};
use tokio::sync::Semaphore;

/// Uploads that wait for the one under way; each takes seconds at most.
const WAITING_MAX: usize = 8;
/// Compiled policies that are kept for dry runs, all of one environment: half a megabyte each at
/// the worst.
const KEPT_MAX: usize = rules::limits::POLICIES_MAX;
/// Namespaces that the limiter remembers, before those are forgotten that may ask anyway.
const REMEMBERED_MAX: usize = 1_000;

#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    #[error("{WAITING_MAX} uploads wait for their admission already")]
    Busy,
    #[error("this namespace has had its {per_minute} a minute; try again in {seconds} s")]
    TooOften { per_minute: NonZeroU32, seconds: u64 },
    #[error("the module could not be looked at: {0}")]
    Helper(#[from] HelperError),
    #[error("policies cannot be run here: {0}")]
    Broken(String),
}

/// What the helper is asked. Each kind has a budget of its own, so that an upload and the run of its
/// vectors count as one of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Asking {
    Upload,
    Vectors,
}

pub struct Admission {
    helper: Helper,
    /// By the namespace's id.
    limiter: DefaultKeyedRateLimiter<(String, Asking)>,
    per_minute: NonZeroU32,
    cache_dir: PathBuf,
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
    pub fn new(helper: Helper, per_minute: NonZeroU32, cache_dir: PathBuf) -> Admission {
        Admission {
            helper,
            limiter: RateLimiter::keyed(Quota::per_minute(per_minute)),
            per_minute,
            cache_dir,
            turn: Semaphore::new(1),
            waiting: AtomicUsize::new(0),
            engine: OnceLock::new(),
            kept: Mutex::default(),
        }
    }

    /// The verdict, also of a module that is refused.
    pub async fn admit(
        self: &Arc<Self>,
        namespace_id: &str,
        asking: Asking,
        wasm: Bytes,
        vectors: Vec<Vector>,
    ) -> Result<Verdict, AdmissionError> {
        let before = self.waiting.fetch_add(1, Ordering::AcqRel);
        let _place = Waiting(&self.waiting);
        if before > WAITING_MAX {
            return Err(AdmissionError::Busy);
        }
        self.count(namespace_id, asking)?;
        let broken = |error: &dyn std::fmt::Display| AdmissionError::Broken(error.to_string());
        let turn = self.turn.acquire().await.map_err(|error| broken(&error))?;
        let helper = self.helper.clone();
        let judged = tokio::task::spawn_blocking(move || helper.admit(&wasm, &vectors)).await;
        drop(turn);
        Ok(judged.map_err(|error| broken(&error))??)
    }

    fn count(&self, namespace_id: &str, asking: Asking) -> Result<(), AdmissionError> {
        if self.limiter.len() > REMEMBERED_MAX {
            self.limiter.retain_recent();
        }
        self.limiter.check_key(&(namespace_id.to_owned(), asking)).map_err(|early| {
            let wait = early.wait_time_from(self.limiter.clock().now());
            // Whole seconds, and none of them a zero that says "at once".
            let seconds = wait.as_secs().saturating_add(1);
            AdmissionError::TooOften { per_minute: self.per_minute, seconds }
        })
    }

    /// Compiled, for a dry run. Blocking.
    pub fn policy(&self, digest: Digest, wasm: &[u8]) -> Result<Arc<Policy>, PolicyFault> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, policy)) = kept().iter().find(|(of, _)| *of == digest) {
            return Ok(policy.clone());
        }
        let engine = self.engine.get_or_init(|| {
            let cache_dir = Some(self.cache_dir.clone());
            let config = PolicyConfig { helper: self.helper.clone(), cache_dir };
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
