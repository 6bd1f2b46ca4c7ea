//! What a simulation decides in tests and the machine decides otherwise: the time of day,
//! randomness, work on other threads, faults of database and disk; and the bugs that are planted to
//! prove that the tests see them.
//!
//! Without the feature `simulation` every function here is the machine's own answer, `step` is
//! always right and no bug is ever planted. With it, and outside of a simulation, the same; inside,
//! the [`World`] of the running thread decides. Time that passes is tokio's, paused by the simulation.
#![forbid(unsafe_code)]

#[cfg(feature = "simulation")]
mod simulation;

use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

#[cfg(feature = "simulation")]
pub use simulation::{World, enter, is_busy};

/// A step of writing a file, as far as a power cut tells it from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FileStep {
    Create,
    Write,
    Sync,
    Rename,
    SyncDir,
}

/// Whether a simulation decides.
#[inline]
pub fn is_simulated() -> bool {
    #[cfg(feature = "simulation")]
    return simulation::world().is_some();
    #[cfg(not(feature = "simulation"))]
    false
}

/// Microseconds since the epoch, by this process's clock. Before 1970 is 1970.
pub fn now_us() -> i64 {
    #[cfg(feature = "simulation")]
    if let Some(world) = simulation::world() {
        return world.now_us();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

/// As [`now_us`], by the clock that all processes share: an embedded database's.
pub fn shared_now_us() -> i64 {
    #[cfg(feature = "simulation")]
    if let Some(world) = simulation::world() {
        return world.shared_now_us();
    }
    now_us()
}

pub fn random(bytes: &mut [u8]) -> Result<(), getrandom::Error> {
    #[cfg(feature = "simulation")]
    if let Some(world) = simulation::world() {
        world.random(bytes);
        return Ok(());
    }
    getrandom::fill(bytes)
}

/// Work that takes long enough to be in the way of others, on a thread of its own. An error says
/// that it panicked.
pub fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, tokio::task::JoinError>> + Send {
    enum Work<T> {
        Done(T),
        Under(tokio::task::JoinHandle<T>),
    }
    // Begun here, also where the caller waits for it later.
    let work = match is_simulated() {
        true => Work::Done(work()),
        false => Work::Under(tokio::task::spawn_blocking(work)),
    };
    async move {
        match work {
            Work::Done(result) => Ok(result),
            Work::Under(task) => task.await,
        }
    }
}

/// A place where others may come between, and where the database or the network may fail.
#[inline]
pub async fn step(_name: &'static str) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(step) = simulation::world().map(|world| world.step(_name)) {
        return step.await;
    }
    Ok(())
}

/// A place where something may fail and nobody comes between.
#[inline]
pub fn fault(_name: &'static str) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(world) = simulation::world() {
        return world.fault(_name);
    }
    Ok(())
}

/// A step of writing `path`, about to be made.
#[inline]
pub fn file(_step: FileStep, _path: &Path) -> io::Result<()> {
    #[cfg(feature = "simulation")]
    if let Some(world) = simulation::world() {
        return world.file(_step, _path);
    }
    Ok(())
}

/// Waits for `work` that another thread does: a simulation waits with it, instead of letting others
/// run and time pass.
#[inline]
pub async fn real<T>(work: impl Future<Output = T>) -> T {
    #[cfg(feature = "simulation")]
    if simulation::world().is_some() {
        return simulation::real(work).await;
    }
    work.await
}

/// Whether this bug was planted: by the name in `TIDEGATE_PLANTED_BUG`, in builds for tests only.
#[inline]
pub fn planted(_bug: &str) -> bool {
    #[cfg(feature = "simulation")]
    return simulation::planted(_bug);
    #[cfg(not(feature = "simulation"))]
    false
}
