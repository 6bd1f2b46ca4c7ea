//! Where evaluations run that may call policies: on threads of their own and of a lower priority,
//! so that a slow policy takes its time from those who ask for it. Everybody else is answered on the
//! threads that read the requests, as if there were no policies.
//!
//! Bounded: where too many wait, the evaluation is made at once and its policies are busy.

use std::cell::Cell;
use std::sync::{Arc, OnceLock};

use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

/// Evaluations that run or wait.
const EVALUATIONS_MAX: usize = 64;
/// Added to the niceness of these threads: where everybody wants the processor, a thread that
/// answers requests gets ten times as much of it.
const NICER: i32 = 10;

thread_local! {
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread evaluates without calling policies.
pub fn are_busy() -> bool {
    BUSY.get()
}

/// Made with the first evaluation that needs them.
#[derive(Debug)]
pub struct Workers {
    count: usize,
    places: Arc<Semaphore>,
    runtime: OnceLock<Option<Runtime>>,
}

/// Evaluations that call policies at the same time.
pub fn count() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

/// Lowers the priority of the thread that asks.
pub fn give_way() {
    // Of this thread alone, on Linux.
    if let Err(error) = rustix::process::nice(NICER) {
        tracing::warn!(%error, "policies run at the priority of requests");
    }
}

impl Workers {
    pub fn new() -> Workers {
        let places = Arc::new(Semaphore::new(EVALUATIONS_MAX));
        Workers { count: count(), places, runtime: OnceLock::new() }
    }

    /// Gives what `evaluate` gave; nothing if it panicked.
    pub async fn run<T: Send + 'static>(
        &self,
        evaluate: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let place = self.places.clone().try_acquire_owned();
        let (Some(runtime), Ok(place)) = (self.runtime(), place) else {
            return Some(without_policies(evaluate));
        };
        let run = async move {
            let given = evaluate();
            drop(place);
            given
        };
        // A panic is told by tokio's own hook; the place is free again either way.
        runtime.spawn(run).await.ok()
    }

    fn runtime(&self) -> Option<&Runtime> {
        let make = || {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(self.count).max_blocking_threads(1);
            builder.thread_name("policies").on_thread_start(give_way);
            let made = builder.build();
            made.inspect_err(|error| tracing::error!(%error, "no threads for policies")).ok()
        };
        self.runtime.get_or_init(make).as_ref()
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        // A runtime may not wait for its threads where requests are answered.
        if let Some(runtime) = self.runtime.take().flatten() {
            runtime.shutdown_background();
        }
    }
}

fn without_policies<T>(evaluate: impl FnOnce() -> T) -> T {
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            BUSY.set(false);
        }
    }
    BUSY.set(true);
    let _reset = Reset;
    evaluate()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_finds_no_place_is_answered_at_once_and_without_policies() {
        let workers = Workers::new();
        assert_eq!(workers.run(are_busy).await, Some(false));
        let all = workers.places.clone().try_acquire_many_owned(EVALUATIONS_MAX as u32).unwrap();
        assert_eq!(workers.run(are_busy).await, Some(true));
        assert!(!are_busy(), "only for as long as it evaluates");
        drop(all);
        assert_eq!(workers.run(are_busy).await, Some(false));
    }

    #[tokio::test]
    async fn a_panic_leaves_no_place_taken() {
        let workers = Workers::new();
        for _ in 0..=EVALUATIONS_MAX {
            let panicked = workers.run(|| panic!("as a bug would")).await;
            assert!(panicked.is_none_or(|(): ()| false));
        }
        assert_eq!(workers.places.available_permits(), EVALUATIONS_MAX);
    }
}
