//! How wasm is run: the only crate that sees wasmtime.
//!
//! Promises: foreign code runs under a memory cap, a deadline and a real stack; an instance is
//! never entered by two threads and never used again after a trap; all instances together stay
//! inside one budget of memory. Never hands the guest a clock, randomness or a file.
//!
//! `Sandbox` is one per process; `Environment` (in `environment.rs`) is one loaded snapshot with
//! its instances; `instance.rs` speaks the guest's ABI (`sdk-wasm/src/abi.rs`). `policy.rs` is
//! about other people's wasm: another engine, other limits.

mod cache;
mod environment;
mod fault;
mod instance;
pub mod policy;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use rules::eval::Host;
use rustix::time::{ClockId, clock_gettime};
use wasmtime::{Config, Engine, InstancePre, Linker, Module};

pub use environment::Environment;
use instance::Held;

/// How often the epoch moves; deadlines are late by up to this much.
const TICK: Duration = Duration::from_millis(5);

#[cfg(evaluator_embedded)]
const EMBEDDED: Option<&[u8]> = Some(include_bytes!(env!("TIDEGATE_EVALUATOR_WASM")));
#[cfg(not(evaluator_embedded))]
const EMBEDDED: Option<&[u8]> = None;

#[derive(Debug, Clone)]
pub struct SandboxConfig {
    /// The evaluator as wasm; the embedded one unless given.
    pub evaluator: Option<Vec<u8>>,
    /// Where the compiled evaluator is kept from one start to the next; see `cache.rs`.
    pub cache_dir: Option<PathBuf>,
    /// How long one call may run. Of the second half only what its thread had a processor for counts, so
    /// that a busy machine stops no call that would have been done; see `instance.rs`.
    pub deadline: Duration,
    /// Bytes of linear memory of one instance.
    pub instance_bytes_max: usize,
    /// Bytes of linear memory of all instances of all environments.
    pub total_bytes_max: usize,
    /// Instances of one environment: the number of threads that evaluate at once.
    pub workers: usize,
}

impl Default for SandboxConfig {
    fn default() -> Self {
        SandboxConfig {
            evaluator: None,
            cache_dir: None,
            deadline: Duration::from_millis(50),
            // A snapshot of 32 MiB, its loaded form and the pages between.
            instance_bytes_max: 256 * 1024 * 1024,
            total_bytes_max: 1024 * 1024 * 1024,
            workers: std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("this binary was built without the evaluator; run `cargo xtask wasm` and build again")]
    NoEvaluator,
    #[error("the evaluator cannot be used: {what}")]
    Evaluator { what: String },
    #[error("uploaded policies cannot be run here: {what}")]
    Policies { what: String },
    #[error("the ruleset was refused: {0}")]
    Refused(String),
    #[error("the evaluation ran longer than its deadline")]
    Deadline,
    #[error("the evaluator trapped: {0}")]
    Trapped(String),
    #[error("all instances together would need more than {} MiB of memory", bytes_max / 1_048_576)]
    Budget { bytes_max: usize },
    #[error("every instance of the environment is busy")]
    Busy,
    #[error("the evaluator answered what its ABI does not allow")]
    Abi,
}

/// The engine, the compiled evaluator and the budget. One per process.
pub struct Sandbox {
    config: SandboxConfig,
    evaluator: InstancePre<Held>,
    budget: Arc<Budget>,
    environments: Mutex<Vec<Weak<Environment>>>,
    /// Counts uses of environments, so that the least recently used is known without a clock.
    uses: AtomicU64,
    ticker: Ticker,
}

impl Sandbox {
    /// Compiles the evaluator, once.
    pub fn new(config: SandboxConfig) -> Result<Arc<Sandbox>, SandboxError> {
        let unusable = |error: wasmtime::Error| SandboxError::Evaluator { what: chain(&error) };
        let engine = Engine::new(&engine_config()).map_err(unusable)?;
        let wasm = config.evaluator.as_deref().or(EMBEDDED).ok_or(SandboxError::NoEvaluator)?;
        let module = match &config.cache_dir {
            Some(folder) => cache::module(&engine, wasm, folder),
            None => Module::new(&engine, wasm),
        };
        let module = module.map_err(unusable)?;
        let mut linker = Linker::new(&engine);
        instance::add_imports(&mut linker).map_err(unusable)?;
        let evaluator = linker.instantiate_pre(&module).map_err(unusable)?;
        let ticker = Ticker::start(engine)
            .map_err(|error| SandboxError::Evaluator { what: error.to_string() })?;
        Ok(Arc::new(Sandbox {
            budget: Arc::new(Budget {
                used: AtomicUsize::new(0),
                bytes_max: config.total_bytes_max,
            }),
            config,
            evaluator,
            environments: Mutex::default(),
            uses: AtomicU64::new(0),
            ticker,
        }))
    }

    /// Loads a framed ruleset into a first instance, which proves that it loads.
    pub fn load(
        self: &Arc<Self>,
        ruleset: Arc<[u8]>,
        host: Arc<dyn Host + Send + Sync>,
    ) -> Result<Arc<Environment>, SandboxError> {
        let environment = Environment::load(self, ruleset, host)?;
        let mut known = self.known();
        known.retain(|known| known.strong_count() > 0);
        known.push(Arc::downgrade(&environment));
        Ok(environment)
    }

    /// Drops instances that nobody used for `idle`. Called from time to time.
    pub fn trim(&self, idle: Duration) {
        let environments: Vec<_> = self.known().iter().filter_map(Weak::upgrade).collect();
        for environment in environments {
            environment.trim(idle);
        }
    }

    /// Bytes of linear memory that instances hold now.
    pub fn memory_bytes(&self) -> usize {
        self.budget.used.load(Ordering::Relaxed)
    }

    /// Not exact: two that count at once may get one number. Exactness would cost every evaluation.
    fn next_use(&self) -> u64 {
        let next = self.uses.load(Ordering::Relaxed).wrapping_add(1);
        self.uses.store(next, Ordering::Relaxed);
        next
    }

    /// Ticks since the start: a clock that costs a load.
    fn ticks(&self) -> u64 {
        self.ticker.ticks.load(Ordering::Relaxed)
    }

    /// Drops idle instances, least recently used environment first, until `bytes` are free.
    fn make_room(&self, bytes: usize) {
        let mut environments: Vec<_> = self.known().iter().filter_map(Weak::upgrade).collect();
        environments.sort_by_key(|environment| environment.last_use());
        for environment in environments {
            let used = self.budget.used.load(Ordering::Relaxed);
            if used.saturating_add(bytes) <= self.budget.bytes_max {
                return;
            }
            environment.trim(Duration::ZERO);
        }
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Environment>>> {
        // A panic while holding it leaves a list that is still one.
        self.environments.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sandbox").field("config", &self.config.deadline).finish_non_exhaustive()
    }
}

/// Linear memory of all instances together.
#[derive(Debug)]
struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    fn take(&self, bytes: usize) -> bool {
        let taken = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max)
        });
        taken.is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The evaluator is our own and trusted, so it is compiled for speed; what it does not use is off
/// all the same, since every proposal has had its advisory.
fn engine_config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(1024 * 1024)
        .wasm_simd(false)
        .wasm_relaxed_simd(false)
        .wasm_multi_memory(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_extended_const(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false);
    config
}

/// Moves the engine's epoch, by which calls find out that their deadline has passed.
struct Ticker {
    stop: Arc<AtomicBool>,
    ticks: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: Engine) -> std::io::Result<Ticker> {
        let stop = Arc::new(AtomicBool::new(false));
        let ticks = Arc::new(AtomicU64::new(0));
        let (stopped, ticked) = (Arc::clone(&stop), Arc::clone(&ticks));
        let thread =
            std::thread::Builder::new().name("sandbox-epoch".to_owned()).spawn(move || {
                while !stopped.load(Ordering::Acquire) {
                    std::thread::park_timeout(TICK);
                    engine.increment_epoch();
                    ticked.fetch_add(1, Ordering::Relaxed);
                }
            })?;
        Ok(Ticker { stop, ticks, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic, and there is nobody to tell.
            let _ = thread.join();
        }
    }
}

/// What this thread has worked since it began.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// An error with its causes on one line.
fn chain(error: &wasmtime::Error) -> String {
    let causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    causes.join(": ")
}
