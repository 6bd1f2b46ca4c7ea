//! One loaded snapshot and its instances: made lazily, lent to one caller at a time, dropped when
//! idle, thrown away when they fail. A new snapshot is a new `Environment` beside the old one.
//!
//! Lending is on the way of every evaluation: it asks no clock and wakes nobody unless somebody
//! waits. A caller that finds no instance makes one, which takes as long as loading the ruleset
//! (a quarter of a millisecond for 100 flags, 4 ms for 5,000): the first calls at once, and the
//! one after a failure.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rules::answer::{self, Audience, Status};
use rules::context::ContextBuf;
use rules::eval::{ErrorCode, Host};

use crate::instance::{Ask, Instance};
use crate::{Sandbox, SandboxError, TICK};

pub struct Environment {
    sandbox: Arc<Sandbox>,
    /// Kept, because instances are made again whenever one is needed.
    ruleset: Arc<[u8]>,
    host: Arc<dyn Host + Send + Sync>,
    pool: Mutex<Pool>,
    returned: Condvar,
    last_use: AtomicU64,
}

#[derive(Default)]
struct Pool {
    /// The last one returned is lent first: its memory is warm, and the others get old.
    idle: Vec<Idle>,
    /// Idle ones and lent ones.
    alive: usize,
    /// Callers that wait for one to be returned.
    waiting: usize,
}

struct Idle {
    instance: Box<Instance>,
    since_tick: u64,
}

/// A place among the environment's instances, and the instance that nobody else has. Dropped without
/// `give_back` (an error, a panic in the host's code, also while the instance was being made), the
/// instance is thrown away and its place is free.
struct Lease<'a> {
    environment: &'a Environment,
    instance: Option<Box<Instance>>,
    is_given_back: bool,
}

impl<'a> Lease<'a> {
    fn of(environment: &'a Environment, instance: Option<Box<Instance>>) -> Lease<'a> {
        Lease { environment, instance, is_given_back: false }
    }
}

impl Lease<'_> {
    fn give_back(mut self) {
        if let Some(instance) = self.instance.take() {
            self.is_given_back = true;
            let since_tick = self.environment.sandbox.ticks();
            let mut pool = self.environment.pool();
            pool.idle.push(Idle { instance, since_tick });
            let is_awaited = pool.waiting > 0;
            drop(pool);
            if is_awaited {
                self.environment.returned.notify_one();
            }
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if !self.is_given_back {
            drop(self.instance.take());
            self.environment.forget();
        }
    }
}

/// A caller waits for an instance for so many deadlines: whoever has one gives it back or loses it within
/// one and a tick, so one deadline would be over just before.
const PATIENCE: u32 = 4;
/// What the ABI's length field holds.
const KEY_BYTES_MAX: usize = u16::MAX as usize;

impl Environment {
    pub(crate) fn load(
        sandbox: &Arc<Sandbox>,
        ruleset: Arc<[u8]>,
        host: Arc<dyn Host + Send + Sync>,
    ) -> Result<Arc<Environment>, SandboxError> {
        let environment = Environment {
            sandbox: Arc::clone(sandbox),
            ruleset,
            host,
            pool: Mutex::default(),
            returned: Condvar::new(),
            last_use: AtomicU64::new(0),
        };
        environment.lend()?.give_back();
        Ok(Arc::new(environment))
    }

    /// Appends one flag's OFREP body to `out`; see `rules::answer::write_one`.
    pub fn evaluate_one(
        &self,
        key: &str,
        audience: Audience,
        context: &ContextBuf,
        now_ms: i64,
        out: &mut Vec<u8>,
    ) -> Result<Status, SandboxError> {
        self.call(Ask::One(key), audience, context, now_ms, out)
    }

    /// Appends `{"flags":[…],"metadata":{…}}` to `out`; see `rules::answer::write_all`.
    pub fn evaluate_all(
        &self,
        audience: Audience,
        context: &ContextBuf,
        now_ms: i64,
        out: &mut Vec<u8>,
    ) -> Result<(), SandboxError> {
        self.call(Ask::All, audience, context, now_ms, out).map(|_| ())
    }

    fn call(
        &self,
        ask: Ask<'_>,
        audience: Audience,
        context: &ContextBuf,
        now_ms: i64,
        out: &mut Vec<u8>,
    ) -> Result<Status, SandboxError> {
        if let Ask::One(key) = ask
            && key.len() > KEY_BYTES_MAX
        {
            // No flag has such a key; what the ABI cannot carry must not cost an instance.
            let details = "the flag does not exist";
            return Ok(answer::write_error(key, ErrorCode::FlagNotFound, details, out));
        }
        let mut lease = self.lend()?;
        let Some(instance) = lease.instance.as_mut() else { return Err(SandboxError::Busy) };
        let context = context.as_bytes();
        let answer = instance.evaluate(&self.sandbox, ask, audience, context, now_ms, out);
        match &answer {
            Ok(_) => lease.give_back(),
            Err(error) => {
                tracing::error!(%error, "an instance failed and was thrown away");
                drop(lease);
                if let SandboxError::Budget { .. } = error {
                    self.make_room();
                }
            }
        }
        answer
    }

    fn lend(&self) -> Result<Lease<'_>, SandboxError> {
        self.last_use.store(self.sandbox.next_use(), Ordering::Relaxed);
        let mut pool = self.pool();
        if let Some(idle) = pool.idle.pop() {
            return Ok(Lease::of(self, Some(idle.instance)));
        }
        let patience = self.sandbox.config.deadline.saturating_mul(PATIENCE);
        let until = Instant::now().checked_add(patience);
        while pool.alive >= self.sandbox.config.workers.max(1) {
            let left = until.and_then(|until| until.checked_duration_since(Instant::now()));
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return Err(SandboxError::Busy);
            };
            pool.waiting = pool.waiting.saturating_add(1);
            let (again, _) =
                self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner);
            pool = again;
            pool.waiting = pool.waiting.saturating_sub(1);
            if let Some(idle) = pool.idle.pop() {
                return Ok(Lease::of(self, Some(idle.instance)));
            }
        }
        pool.alive = pool.alive.saturating_add(1);
        drop(pool);
        let mut lease = Lease::of(self, None);
        lease.instance = Some(self.make()?);
        Ok(lease)
    }

    fn make(&self) -> Result<Box<Instance>, SandboxError> {
        let make = || Instance::new(&self.sandbox, &self.ruleset, Arc::clone(&self.host));
        let made = match make() {
            Err(SandboxError::Budget { .. }) => {
                self.make_room();
                make()
            }
            made => made,
        };
        made.map(Box::new)
    }

    /// For one more instance: the loaded form and the bytes it is read from, at the worst.
    fn make_room(&self) {
        self.sandbox.make_room(self.ruleset.len().saturating_mul(4));
    }

    /// One less is alive, so somebody who waits may make one.
    fn forget(&self) {
        let mut pool = self.pool();
        pool.alive = pool.alive.saturating_sub(1);
        drop(pool);
        self.returned.notify_one();
    }

    pub(crate) fn trim(&self, idle: Duration) {
        let ticks = u64::try_from(idle.as_millis() / TICK.as_millis()).unwrap_or(u64::MAX);
        let now = self.sandbox.ticks();
        let is_old = |kept: &Idle| now.saturating_sub(kept.since_tick) >= ticks;
        let mut pool = self.pool();
        let old: Vec<Idle> = pool.idle.extract_if(.., |kept| is_old(kept)).collect();
        pool.alive = pool.alive.saturating_sub(old.len());
        drop(pool);
        // Giving megabytes back to the system takes a while; nobody has to wait for it.
        drop(old);
    }

    pub(crate) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Instances that live now, lent or idle.
    pub fn instances(&self) -> usize {
        self.pool().alive
    }

    fn pool(&self) -> MutexGuard<'_, Pool> {
        // Nothing in here panics while holding it; if it did, the list is still a list.
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Environment")
            .field("ruleset_bytes", &self.ruleset.len())
            .field("instances", &self.instances())
            .finish_non_exhaustive()
    }
}
