//! One instance of the evaluator, and its ABI: bytes in, a call, bytes out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rules::answer::{Audience, Status};
use rules::eval::Host;
use rules::limits::POLICY_OUTPUT_BYTES_MAX;
use rules::policy::PolicyFault;
use wasmtime::{
    AsContextMut, Caller, Linker, Memory, ResourceLimiter, Store, Trap, TypedFunc, UpdateDeadline,
};

use crate::{Budget, Sandbox, SandboxError, TICK, chain, processor_time};

const ABI: u32 = 1;
/// The input buffer's first size: most requests are smaller, so it is asked for once.
const BUFFER: usize = 4 * 1024;
/// Loading 32 MiB takes longer than an evaluation; a ruleset that takes so many deadlines is refused.
const DEADLINES_OF_A_LOAD: u32 = 200;
/// The longest that a call may last in deadlines, waiting for a processor included.
const DEADLINES_WALL: u32 = 20;

/// What a store holds for its instance.
pub(crate) struct Held {
    host: Arc<dyn Host + Send + Sync>,
    memory: Option<Memory>,
    limits: Limits,
    deadline: Deadline,
}

/// When a call has run for too long. Half of its time goes by the epoch, which costs a call nothing and
/// counts what its thread waited for a processor as well; whoever is not done then is watched, and has
/// the other half for what the thread itself works.
struct Deadline {
    half: Duration,
    /// That half in ticks; the one that comes first may come at once.
    ticks: u64,
    /// What runs now may take so many times as long as a call.
    times: u32,
    /// What its thread had worked when the first half was over, and the end of all waiting.
    watched: Option<(Duration, Instant)>,
}

impl Deadline {
    fn new(of_a_call: Duration) -> Deadline {
        let half = of_a_call / 2;
        let ticks = half.as_millis().div_ceil(TICK.as_millis()).saturating_add(1);
        let ticks = u64::try_from(ticks).unwrap_or(u64::MAX);
        Deadline { half, ticks, times: 1, watched: None }
    }

    /// Something begins; gives the ticks of its first half.
    fn begin(&mut self, times: u32) -> u64 {
        self.times = times;
        self.watched = None;
        // The epoch adds to it what it is at.
        self.ticks.saturating_mul(times.into()).min(u64::MAX / 2)
    }

    /// With each tick after the first half.
    fn look(&mut self) -> UpdateDeadline {
        let half = self.half.saturating_mul(self.times);
        let Some((worked_before, end)) = self.watched else {
            let wall = half.saturating_mul(2 * DEADLINES_WALL);
            let now = Instant::now();
            self.watched = Some((processor_time(), now.checked_add(wall).unwrap_or(now)));
            return UpdateDeadline::Continue(1);
        };
        let worked = processor_time().saturating_sub(worked_before);
        match worked < half && Instant::now() < end {
            true => UpdateDeadline::Continue(1),
            false => UpdateDeadline::Interrupt,
        }
    }
}

struct Limits {
    budget: Arc<Budget>,
    /// What of the budget this instance has.
    bytes: usize,
    bytes_max: usize,
    /// Set when the budget of all, not the instance's cap, refused to grow.
    over_budget: bool,
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = desired.saturating_sub(current);
        if desired > self.bytes_max {
            return Ok(false);
        }
        if !self.budget.take(more) {
            self.over_budget = true;
            return Ok(false);
        }
        self.bytes = self.bytes.saturating_add(more);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= 10_000)
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

pub(crate) fn add_imports(linker: &mut Linker<Held>) -> wasmtime::Result<()> {
    linker.func_wrap(
        "tidegate",
        "list_contains",
        |caller: Caller<'_, Held>, list: u32, start: u32, len: u32| -> i32 {
            let held = caller.data();
            let Some(memory) = held.memory else { return 0 };
            let id = span(memory.data(&caller), start, len)
                .and_then(|bytes| std::str::from_utf8(bytes).ok());
            id.is_some_and(|id| held.host.list_contains(list, id)).into()
        },
    )?;
    linker.func_wrap(
        "tidegate",
        "policy",
        |mut caller: Caller<'_, Held>,
         policy: u32,
         input: u32,
         input_len: u32,
         out: u32,
         out_len: u32|
         -> i32 {
            let Some(memory) = caller.data().memory else { return PolicyFault::Unavailable.code() };
            let mut answer = Vec::with_capacity(POLICY_OUTPUT_BYTES_MAX);
            let called = span(memory.data(&caller), input, input_len)
                .ok_or(PolicyFault::Input)
                .and_then(|input| caller.data().host.policy(policy, input, &mut answer));
            // A policy has a budget of its own and the evaluator bounds the calls: their time is
            // not the evaluator's.
            let ticks = caller.data_mut().deadline.begin(1);
            caller.as_context_mut().set_epoch_deadline(ticks);
            if let Err(fault) = called {
                return fault.code();
            }
            let Some(place) = span_mut(memory.data_mut(&mut caller), out, out_len)
                .and_then(|out| out.get_mut(..answer.len()))
            else {
                return PolicyFault::Output.code();
            };
            place.copy_from_slice(&answer);
            i32::try_from(answer.len()).unwrap_or(PolicyFault::Output.code())
        },
    )?;
    linker.func_wrap("tidegate", "policy_refused", |caller: Caller<'_, Held>, policy: u32| {
        caller.data().host.policy_refused(policy);
    })?;
    Ok(())
}

fn span(memory: &[u8], start: u32, len: u32) -> Option<&[u8]> {
    let start = start as usize;
    memory.get(start..start.checked_add(len as usize)?)
}

fn span_mut(memory: &mut [u8], start: u32, len: u32) -> Option<&mut [u8]> {
    let start = start as usize;
    memory.get_mut(start..start.checked_add(len as usize)?)
}

/// One flag, or all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask<'a> {
    One(&'a str),
    All,
}

pub(crate) struct Instance {
    store: Store<Held>,
    memory: Memory,
    buffer: TypedFunc<u32, u32>,
    evaluate: TypedFunc<(u32, i64), u64>,
    buffer_start: usize,
    buffer_len: usize,
}

impl Instance {
    /// A new instance with the ruleset loaded.
    pub(crate) fn new(
        sandbox: &Sandbox,
        ruleset: &[u8],
        host: Arc<dyn Host + Send + Sync>,
    ) -> Result<Instance, SandboxError> {
        let config = &sandbox.config;
        let limits = Limits {
            budget: Arc::clone(&sandbox.budget),
            bytes: 0,
            bytes_max: config.instance_bytes_max,
            over_budget: false,
        };
        let deadline = Deadline::new(config.deadline);
        let held = Held { host, memory: None, limits, deadline };
        let mut store = Store::new(sandbox.evaluator.module().engine(), held);
        store.limiter(|held| &mut held.limits);
        store.epoch_deadline_callback(|mut store| Ok(store.data_mut().deadline.look()));
        begin(&mut store, DEADLINES_OF_A_LOAD);
        let instance = match sandbox.evaluator.instantiate(&mut store) {
            Ok(instance) => instance,
            Err(error) => return Err(failed(&store, sandbox, &error)),
        };
        let memory = instance.get_memory(&mut store, "memory").ok_or(SandboxError::Abi)?;
        store.data_mut().memory = Some(memory);
        let wrong = |error: wasmtime::Error| SandboxError::Evaluator { what: chain(&error) };
        let abi = instance.get_typed_func::<(), u32>(&mut store, "tg_abi").map_err(wrong)?;
        let buffer = instance.get_typed_func(&mut store, "tg_buffer").map_err(wrong)?;
        let load = instance.get_typed_func::<u32, u64>(&mut store, "tg_load").map_err(wrong)?;
        let evaluate = instance.get_typed_func(&mut store, "tg_evaluate").map_err(wrong)?;
        match abi.call(&mut store, ()) {
            Ok(ABI) => {}
            Ok(other) => {
                return Err(SandboxError::Evaluator {
                    what: format!("it speaks ABI {other}, this host {ABI}"),
                });
            }
            Err(error) => return Err(failed(&store, sandbox, &error)),
        }
        let (buffer_start, buffer_len) = (0, 0);
        let mut made = Instance { store, memory, buffer, evaluate, buffer_start, buffer_len };
        made.write(sandbox, ruleset.len(), |to| to.copy_from_slice(ruleset))?;
        let len = u32::try_from(ruleset.len()).map_err(|_| SandboxError::Abi)?;
        let answer = match load.call(&mut made.store, len) {
            Ok(packed) => made.read(packed)?,
            Err(error) => return Err(failed(&made.store, sandbox, &error)),
        };
        if !answer.is_empty() {
            return Err(SandboxError::Refused(String::from_utf8_lossy(answer).into_owned()));
        }
        // Loading took the buffer with it.
        made.buffer_len = 0;
        Ok(made)
    }

    /// Appends the answer's body to `out`. After an error the instance must not be used again.
    pub(crate) fn evaluate(
        &mut self,
        sandbox: &Sandbox,
        ask: Ask<'_>,
        audience: Audience,
        context: &[u8],
        now_ms: i64,
        out: &mut Vec<u8>,
    ) -> Result<Status, SandboxError> {
        let (op, key) = match ask {
            Ask::One(key) => (1, key.as_bytes()),
            // An operation of its own: see the guest's `ALL_AT_EDGE`.
            Ask::All if audience == Audience::BrowserAtEdge => (5, &[][..]),
            Ask::All => (2, &[][..]),
        };
        let key_len = u16::try_from(key.len()).map_err(|_| SandboxError::Abi)?;
        let [low, high] = key_len.to_le_bytes();
        let audience = match audience {
            Audience::Server => 0,
            Audience::Browser => 1,
            Audience::BrowserAtEdge => 2,
        };
        let head = [op, audience, low, high];
        let len = head.len().saturating_add(key.len()).saturating_add(context.len());
        begin(&mut self.store, 1);
        self.store.data_mut().limits.over_budget = false;
        self.write(sandbox, len, |to| {
            let (to_head, rest) = to.split_at_mut(head.len());
            let (to_key, to_context) = rest.split_at_mut(key.len());
            to_head.copy_from_slice(&head);
            to_key.copy_from_slice(key);
            to_context.copy_from_slice(context);
        })?;
        let len = u32::try_from(len).map_err(|_| SandboxError::Abi)?;
        let packed = match self.evaluate.call(&mut self.store, (len, now_ms)) {
            Ok(packed) => packed,
            Err(error) => return Err(failed(&self.store, sandbox, &error)),
        };
        let (status, body) = self.read(packed)?.split_first_chunk().ok_or(SandboxError::Abi)?;
        let status = match u16::from_le_bytes(*status) {
            200 => Status::Ok,
            400 => Status::BadRequest,
            404 => Status::NotFound,
            500 => Status::Failed,
            _ => return Err(SandboxError::Abi),
        };
        out.extend_from_slice(body);
        Ok(status)
    }

    /// Lets `fill` write `len` bytes into the guest's buffer, which grows if it must.
    fn write(
        &mut self,
        sandbox: &Sandbox,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SandboxError> {
        if len > self.buffer_len {
            let wanted = len.max(BUFFER);
            let asked = u32::try_from(wanted).map_err(|_| SandboxError::Abi)?;
            match self.buffer.call(&mut self.store, asked) {
                Ok(start) => self.buffer_start = start as usize,
                Err(error) => return Err(failed(&self.store, sandbox, &error)),
            }
            self.buffer_len = wanted;
        }
        let place = self
            .buffer_start
            .checked_add(len)
            .and_then(|end| self.memory.data_mut(&mut self.store).get_mut(self.buffer_start..end))
            .ok_or(SandboxError::Abi)?;
        fill(place);
        Ok(())
    }

    fn read(&self, packed: u64) -> Result<&[u8], SandboxError> {
        let start = (packed >> 32) as usize;
        let len = (packed & 0xffff_ffff) as usize;
        start
            .checked_add(len)
            .and_then(|end| self.memory.data(&self.store).get(start..end))
            .ok_or(SandboxError::Abi)
    }
}

fn begin(store: &mut Store<Held>, times: u32) {
    let ticks = store.data_mut().deadline.begin(times);
    store.set_epoch_deadline(ticks);
}

fn failed(store: &Store<Held>, sandbox: &Sandbox, error: &wasmtime::Error) -> SandboxError {
    if store.data().limits.over_budget {
        return SandboxError::Budget { bytes_max: sandbox.budget.bytes_max };
    }
    match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => SandboxError::Deadline,
        Some(trap) => SandboxError::Trapped(trap.to_string()),
        None => SandboxError::Trapped(chain(error)),
    }
}
