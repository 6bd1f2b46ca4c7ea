//! One loaded snapshot and its instances: made lazily, lent to one caller at a time, dropped when
//! idle, thrown away when they fail. A new snapshot is a new `Environment` beside the old one.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rules::answer::{Audience, Status};
use rules::context::ContextBuf;
use rules::eval::Lists;

use crate::instance::{Ask, Instance};
use crate::{Sandbox, SandboxError};

pub struct Environment {
    sandbox: Arc<Sandbox>,
    /// Kept, because instances are made again whenever one is needed.
    ruleset: Arc<[u8]>,
    lists: Arc<dyn Lists + Send + Sync>,
    pool: Mutex<Pool>,
    returned: Condvar,
    last_use: AtomicUsize,
}

#[derive(Default)]
struct Pool {
    /// The last one returned is lent first: its memory is warm, and the others get old.
    idle: Vec<Idle>,
    /// Idle ones and lent ones.
    alive: usize,
}

struct Idle {
    instance: Box<Instance>,
    since: Instant,
}

impl Environment {
    pub(crate) fn load(
        sandbox: &Arc<Sandbox>,
        ruleset: Arc<[u8]>,
        lists: Arc<dyn Lists + Send + Sync>,
    ) -> Result<Arc<Environment>, SandboxError> {
        let environment = Environment {
            sandbox: Arc::clone(sandbox),
            ruleset,
            lists,
            pool: Mutex::default(),
            returned: Condvar::new(),
            last_use: AtomicUsize::new(sandbox.uses.fetch_add(1, Ordering::Relaxed)),
        };
        let first = environment.lend()?;
        environment.take_back(first);
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
        let mut instance = self.lend()?;
        let context = context.as_bytes();
        let answer = instance.evaluate(&self.sandbox, ask, audience, context, now_ms, out);
        match &answer {
            Ok(_) => self.take_back(instance),
            Err(error) => {
                tracing::error!(%error, "an instance failed and was thrown away");
                self.throw_away(instance);
            }
        }
        answer
    }

    fn lend(&self) -> Result<Box<Instance>, SandboxError> {
        let now = self.sandbox.uses.fetch_add(1, Ordering::Relaxed);
        self.last_use.store(now, Ordering::Relaxed);
        let mut pool = self.pool();
        let until = Instant::now().checked_add(self.sandbox.config.deadline);
        loop {
            if let Some(idle) = pool.idle.pop() {
                return Ok(idle.instance);
            }
            if pool.alive < self.sandbox.config.workers.max(1) {
                pool.alive = pool.alive.saturating_add(1);
                drop(pool);
                return self.make().inspect_err(|_| self.forget());
            }
            let left = until.and_then(|until| until.checked_duration_since(Instant::now()));
            let Some(left) = left.filter(|left| !left.is_zero()) else {
                return Err(SandboxError::Busy);
            };
            let (again, _) =
                self.returned.wait_timeout(pool, left).unwrap_or_else(PoisonError::into_inner);
            pool = again;
        }
    }

    fn make(&self) -> Result<Box<Instance>, SandboxError> {
        let make = || Instance::new(&self.sandbox, &self.ruleset, Arc::clone(&self.lists));
        let made = match make() {
            Err(SandboxError::Budget { .. }) => {
                // The loaded form and the bytes it is read from, at the worst.
                self.sandbox.make_room(self.ruleset.len().saturating_mul(4));
                make()
            }
            made => made,
        };
        made.map(Box::new)
    }

    fn take_back(&self, instance: Box<Instance>) {
        self.pool().idle.push(Idle { instance, since: Instant::now() });
        self.returned.notify_one();
    }

    fn throw_away(&self, instance: Box<Instance>) {
        drop(instance);
        self.forget();
    }

    fn forget(&self) {
        let mut pool = self.pool();
        pool.alive = pool.alive.saturating_sub(1);
        drop(pool);
        self.returned.notify_one();
    }

    pub(crate) fn trim(&self, idle: Duration) {
        let mut pool = self.pool();
        let before = pool.idle.len();
        pool.idle.retain(|kept| kept.since.elapsed() < idle);
        pool.alive = pool.alive.saturating_sub(before.saturating_sub(pool.idle.len()));
    }

    pub(crate) fn last_use(&self) -> usize {
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
