//! Runs policies: an engine of their own, a fresh store for each call, every fault as data.
//!
//! Instances come from a pool of slots, so a process never holds more guest memory than
//! `CALLS_AT_ONCE` times `MEMORY_BYTES`. The epoch moves only while calls come: a process without
//! policies, or whose policies nobody asks for, is not woken.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rules::blob::Digest;
use rules::limits::{
    POLICY_ATTRIBUTE_BYTES_MAX, POLICY_ATTRIBUTES_MAX, POLICY_CALLS_AT_ONCE_MAX,
    POLICY_DEADLINE_MS_MAX, POLICY_FUEL_MAX, POLICY_HOST_CALL_FUEL, POLICY_HOST_CALLS_MAX,
    POLICY_INPUT_BYTES_MAX, POLICY_LOG_BYTES_MAX, POLICY_MEMORY_BYTES_MAX, POLICY_OUTPUT_BYTES_MAX,
    POLICY_STACK_BYTES_MAX, POLICY_TABLE_ELEMENTS_MAX, POLICY_WALL_MS_MAX,
};
use wasmparser::WasmFeatures;
use wasmtime::{
    Caller, Config, Engine, InstanceAllocationStrategy, InstancePre, Linker, Memory, Module,
    OperatorCost, OptLevel, PoolConcurrencyLimitError, PoolingAllocationConfig, RegallocAlgorithm,
    ResourceLimiter, Store, Trap, TypedFunc, UpdateDeadline,
};

use super::helper::{Helper, HelperError};
use super::shape::FEATURES;
use crate::{SandboxError, cache, chain, processor_time};

/// How often the epoch moves while policies are called.
const TICK: Duration = Duration::from_millis(1);
/// The tick that comes first may come at once, so one more than the deadline has.
const DEADLINE_TICKS: u64 = 6;
/// What the thread may work for a call.
const DEADLINE: Duration = Duration::from_millis(POLICY_DEADLINE_MS_MAX);
/// And what it may last, waiting for a processor included.
const WALL: Duration = Duration::from_millis(POLICY_WALL_MS_MAX);
/// Ticks without a call after which nobody ticks; longer than any call may last.
const IDLE_TICKS: u32 = 256;

#[derive(Debug, Clone)]
pub struct PolicyConfig {
    /// Compiles, in a process of its own.
    pub helper: Helper,
    /// Where compiled code is kept from one start to the next; see `cache.rs`.
    pub cache_dir: Option<PathBuf>,
}

/// The engine of strangers. One per process.
pub struct Policies {
    config: PolicyConfig,
    engine: Arc<PolicyEngine>,
}

/// Compiled, and ready to be called by any number of threads.
pub struct Policy {
    engine: Arc<PolicyEngine>,
    module: InstancePre<Guest>,
    digest: Digest,
}

/// What a call did, whatever came of it.
#[derive(Debug, Clone)]
pub struct Called {
    /// The answer's bytes as the policy gave them, at most `POLICY_OUTPUT_BYTES_MAX`. Not looked at.
    pub outcome: Result<Vec<u8>, Fault>,
    /// Exact, and the same in every run; of a call that the deadline stopped it says nothing.
    pub fuel: u64,
    pub took: Duration,
    /// Of its memory, at the end and so at its largest.
    pub memory_bytes: usize,
    pub log: String,
}

/// Why a call gave no answer. The text is for the trace: it names no address and no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("the policy trapped: {0}")]
    Trap(String),
    #[error("the policy used up its {} units of fuel", POLICY_FUEL_MAX)]
    Fuel,
    /// The one fault that depends on the machine and its load.
    #[error(
        "the policy ran longer than its {} ms of a processor's time, or {} ms in all",
        POLICY_DEADLINE_MS_MAX,
        POLICY_WALL_MS_MAX
    )]
    Deadline,
    #[error("the policy needed more than its {} MiB of memory", POLICY_MEMORY_BYTES_MAX / 1_048_576)]
    Memory,
    #[error("the policy could not be given its input: {0}")]
    Input(String),
    #[error("the policy's answer cannot be read: {0}")]
    Output(String),
    #[error("too many policies run at once")]
    Busy,
    /// For whoever keeps a breaker; a call itself never gives it.
    #[error("the policy is switched off here after repeated faults")]
    Open,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the bytes are not those of {0}")]
    Digest(Digest),
    #[error("the policy could not be compiled")]
    Compile(#[from] HelperError),
    #[error("the compiled policy cannot be used: {what}")]
    Unusable { what: String },
}

impl Policies {
    pub fn new(config: PolicyConfig) -> Result<Arc<Policies>, SandboxError> {
        let engine = PolicyEngine::new(POLICY_CALLS_AT_ONCE_MAX)?;
        Ok(Arc::new(Policies { config, engine }))
    }

    /// From the local cache, or else compiled in the helper process and put there. Takes up to the
    /// helper's time; never to be called where a request waits.
    pub fn load(&self, digest: Digest, wasm: &[u8]) -> Result<Arc<Policy>, LoadError> {
        if Digest::of(wasm) != digest {
            return Err(LoadError::Digest(digest));
        }
        let unusable = |error: wasmtime::Error| LoadError::Unusable { what: chain(&error) };
        let engine = &self.engine.engine;
        let folder = self.config.cache_dir.as_deref();
        if let Some(module) = folder.and_then(|folder| cache::kept_policy(engine, digest, folder)) {
            return Ok(Arc::new(self.engine.policy(&module, digest).map_err(unusable)?));
        }
        let code = self.config.helper.compile(wasm)?;
        let module = cache::fresh_policy(engine, digest, &code, folder).map_err(unusable)?;
        Ok(Arc::new(self.engine.policy(&module, digest).map_err(unusable)?))
    }

    /// Of the engine's version and settings: compiled code of one is of no use to another.
    pub fn engine(&self) -> String {
        cache::engine_name(&self.engine.engine)
    }
}

impl Policy {
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// One call of `evaluate` in a store of its own. Never panics, never outlives its budget by
    /// more than one instruction of bulk memory.
    pub fn call(&self, input: &[u8]) -> Called {
        self.run(|store, guest| {
            if input.len() > POLICY_INPUT_BYTES_MAX {
                let found = input.len();
                let what = format!("{found} bytes; {} are allowed", POLICY_INPUT_BYTES_MAX);
                return Err(Fault::Input(what));
            }
            let alloc = guest.function::<i32, u32>(store, "tidegate_alloc")?;
            let evaluate = guest.function::<(u32, u32), u64>(store, "evaluate")?;
            let len = u32::try_from(input.len()).map_err(|_| Fault::Memory)?;
            let at = alloc.call(&mut *store, len.cast_signed()).map_err(|e| fault(store, &e))?;
            if at == 0 && len > 0 {
                return Err(Fault::Memory);
            }
            guest.memory.write(&mut *store, at as usize, input).map_err(|_| {
                Fault::Input(format!(
                    "tidegate_alloc answered {at}, where there is no room for {len} bytes"
                ))
            })?;
            let packed = evaluate.call(&mut *store, (at, len)).map_err(|e| fault(store, &e))?;
            guest.read(store, packed, POLICY_OUTPUT_BYTES_MAX)
        })
    }

    /// What `tidegate_describe` says, not looked at.
    pub(crate) fn describe(&self) -> Called {
        // The attributes with what JSON needs around them.
        const BYTES: usize = POLICY_ATTRIBUTES_MAX * (POLICY_ATTRIBUTE_BYTES_MAX + 8);
        self.run(|store, guest| {
            let describe = guest.function::<(), u64>(store, "tidegate_describe")?;
            let packed = describe.call(&mut *store, ()).map_err(|error| fault(store, &error))?;
            guest.read(store, packed, BYTES)
        })
    }

    /// The version of the ABI that it says it speaks: four bytes, little endian.
    pub(crate) fn abi(&self) -> Called {
        self.run(|store, guest| {
            let abi = guest.function::<(), u32>(store, "tidegate_abi")?;
            let version = abi.call(&mut *store, ()).map_err(|error| fault(store, &error))?;
            Ok(version.to_le_bytes().to_vec())
        })
    }

    fn run(
        &self,
        work: impl FnOnce(&mut Store<Guest>, &Exports) -> Result<Vec<u8>, Fault>,
    ) -> Called {
        let started = Instant::now();
        self.engine.ticker.wake();
        let mut store = Store::new(&self.engine.engine, Guest::default());
        store.limiter(|guest| guest);
        store.set_epoch_deadline(DEADLINE_TICKS);
        let processor_started = processor_time();
        store.epoch_deadline_callback(move |_| {
            let worked = processor_time().saturating_sub(processor_started);
            Ok(match worked < DEADLINE && started.elapsed() < WALL {
                // It waited for a processor that others had.
                true => UpdateDeadline::Continue(1),
                false => UpdateDeadline::Interrupt,
            })
        });
        let outcome = match store.set_fuel(self.engine.fuel) {
            Ok(()) => self.instantiate(&mut store).and_then(|guest| work(&mut store, &guest)),
            Err(error) => Err(Fault::Trap(chain(&error))),
        };
        let fuel = self.engine.fuel.saturating_sub(store.get_fuel().unwrap_or(0));
        let memory_bytes = store.data().memory.map_or(0, |memory| memory.data_size(&store));
        let took = started.elapsed();
        Called { outcome, fuel, took, memory_bytes, log: store.into_data().log }
    }

    fn instantiate(&self, store: &mut Store<Guest>) -> Result<Exports, Fault> {
        let instance = self.module.instantiate(&mut *store).map_err(|e| fault(store, &e))?;
        let memory = instance.get_memory(&mut *store, "memory");
        let memory = memory.ok_or_else(|| Fault::Trap("it exports no memory".to_owned()))?;
        store.data_mut().memory = Some(memory);
        Ok(Exports { instance, memory })
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("digest", &self.digest).finish_non_exhaustive()
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies").field("config", &self.config).finish_non_exhaustive()
    }
}

struct Exports {
    instance: wasmtime::Instance,
    memory: Memory,
}

impl Exports {
    fn function<P, R>(&self, store: &mut Store<Guest>, name: &str) -> Result<TypedFunc<P, R>, Fault>
    where
        P: wasmtime::WasmParams,
        R: wasmtime::WasmResults,
    {
        let found = self.instance.get_typed_func(&mut *store, name);
        found.map_err(|_| Fault::Trap(format!("it exports no {name} of the right type")))
    }

    /// What a packed `ptr << 32 | len` points at.
    fn read(&self, store: &Store<Guest>, packed: u64, bytes_max: usize) -> Result<Vec<u8>, Fault> {
        let at = (packed >> 32) as usize;
        let len = (packed & 0xffff_ffff) as usize;
        if len > bytes_max {
            let what = format!("it has {len} bytes; {bytes_max} are allowed");
            return Err(Fault::Output(what));
        }
        let bytes = at.checked_add(len).and_then(|end| self.memory.data(store).get(at..end));
        let outside = || Fault::Output(format!("{len} bytes at {at} are not all in its memory"));
        Ok(bytes.ok_or_else(outside)?.to_vec())
    }
}

/// What a store holds for its instance.
#[derive(Default)]
pub(crate) struct Guest {
    memory: Option<Memory>,
    log: String,
    host_calls: u32,
    /// Set when it asked for more than it may have. Asking is no fault; failing afterwards is.
    was_refused_memory: bool,
}

impl ResourceLimiter for Guest {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let allowed = maximum.unwrap_or(0).min(POLICY_MEMORY_BYTES_MAX);
        self.was_refused_memory |= desired > allowed;
        Ok(desired <= allowed)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= maximum.unwrap_or(0).min(POLICY_TABLE_ELEMENTS_MAX))
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        1
    }

    fn instances(&self) -> usize {
        1
    }
}

/// `tidegate.v1.log`: keeps the first bytes and charges for all of them.
fn log(mut caller: Caller<'_, Guest>, at: u32, len: u32) -> wasmtime::Result<()> {
    let cost = POLICY_HOST_CALL_FUEL.saturating_add(len.into());
    let left = caller.get_fuel()?.checked_sub(cost).ok_or(Trap::OutOfFuel)?;
    caller.set_fuel(left)?;
    let guest = caller.data_mut();
    guest.host_calls = guest.host_calls.saturating_add(1);
    if guest.host_calls > POLICY_HOST_CALLS_MAX {
        return Err(wasmtime::Error::msg(format!(
            "it called the host more than {} times",
            POLICY_HOST_CALLS_MAX
        )));
    }
    let Some(memory) = guest.memory else {
        return Err(wasmtime::Error::msg("it called the host before it was ready"));
    };
    let (bytes, guest) = memory.data_and_store_mut(&mut caller);
    let (at, len) = (at as usize, len as usize);
    let text = at.checked_add(len).and_then(|end| bytes.get(at..end));
    let text = text.ok_or_else(|| wasmtime::Error::msg("it logged bytes outside of its memory"))?;
    // What is kept is bounded, whatever the guest hands over; so is what is read of it.
    let kept = text.get(..POLICY_LOG_BYTES_MAX).unwrap_or(text);
    for character in String::from_utf8_lossy(kept).chars() {
        if guest.log.len().saturating_add(character.len_utf8()) > POLICY_LOG_BYTES_MAX {
            break;
        }
        // A log line must not forge another one.
        guest.log.push(if character.is_control() { ' ' } else { character });
    }
    Ok(())
}

fn fault(store: &Store<Guest>, error: &wasmtime::Error) -> Fault {
    match error.downcast_ref::<Trap>() {
        Some(Trap::OutOfFuel) => Fault::Fuel,
        Some(Trap::Interrupt) => Fault::Deadline,
        _ if store.data().was_refused_memory => Fault::Memory,
        Some(Trap::StackOverflow) => Fault::Trap(format!(
            "its calls need more than {} KiB of stack",
            POLICY_STACK_BYTES_MAX / 1024
        )),
        Some(trap) => {
            let text = trap.to_string();
            Fault::Trap(text.strip_prefix("wasm trap: ").unwrap_or(&text).to_owned())
        }
        None if error.is::<PoolConcurrencyLimitError>() => Fault::Busy,
        None => Fault::Trap(chain(error)),
    }
}

/// The engine with what all policies share.
pub(crate) struct PolicyEngine {
    pub(crate) engine: Engine,
    linker: Linker<Guest>,
    ticker: Ticker,
    /// Of a call.
    fuel: u64,
}

impl PolicyEngine {
    pub(crate) fn new(calls_at_once: u32) -> Result<Arc<PolicyEngine>, SandboxError> {
        PolicyEngine::with_fuel(calls_at_once, POLICY_FUEL_MAX)
    }

    /// Only tests give another budget than production's, to come to what fuel is in front of.
    fn with_fuel(calls_at_once: u32, fuel: u64) -> Result<Arc<PolicyEngine>, SandboxError> {
        let unusable = |error: wasmtime::Error| SandboxError::Policies { what: chain(&error) };
        let engine = Engine::new(&config(calls_at_once)).map_err(unusable)?;
        let mut linker = Linker::new(&engine);
        linker.func_wrap("tidegate.v1", "log", log).map_err(unusable)?;
        let ticker = Ticker::start(engine.clone())
            .map_err(|error| SandboxError::Policies { what: error.to_string() })?;
        Ok(Arc::new(PolicyEngine { engine, linker, ticker, fuel }))
    }

    pub(crate) fn policy(
        self: &Arc<Self>,
        module: &Module,
        digest: Digest,
    ) -> wasmtime::Result<Policy> {
        let module = self.linker.instantiate_pre(module)?;
        Ok(Policy { engine: Arc::clone(self), module, digest })
    }
}

/// Compiles fast and predictably rather than well: a valid module of 178 KB took 17 s to compile
/// with optimisation, 0.3 s without. Memory has no guard region of gigabytes, so every access is
/// checked and masked against speculation.
fn config(calls_at_once: u32) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_core_instances(calls_at_once)
        .total_memories(calls_at_once)
        .total_tables(calls_at_once)
        .max_memories_per_module(1)
        .max_tables_per_module(1)
        .max_memory_size(POLICY_MEMORY_BYTES_MAX)
        .table_elements(POLICY_TABLE_ELEMENTS_MAX)
        .linear_memory_keep_resident(KEEP_RESIDENT_BYTES)
        .table_keep_resident(KEEP_RESIDENT_BYTES);
    let mut config = Config::new();
    config
        .cranelift_opt_level(OptLevel::None)
        .cranelift_regalloc_algorithm(RegallocAlgorithm::Backtracking)
        .cranelift_nan_canonicalization(true)
        .consume_fuel(true)
        .operator_cost(OPERATOR_COST)
        .epoch_interruption(true)
        .max_wasm_stack(POLICY_STACK_BYTES_MAX)
        .wasm_features(WasmFeatures::all().difference(FEATURES), false)
        // Neither is for the author, and both cost.
        .wasm_backtrace_max_frames(None)
        .generate_address_map(false)
        .memory_reservation(RESERVATION_BYTES)
        .memory_reservation_for_growth(0)
        .memory_guard_size(GUARD_BYTES)
        .memory_may_move(false)
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
    config
}

/// A unit an instruction, and more where that many would take longer than the deadline: fuel has to
/// end a call first, because only fuel is the same on every machine. Asking for memory is work of the
/// host, and so is the start of what these do to memory and tables, however little it is. A million
/// square roots, each of the one before, took 7 ms, divisions 2.5 ms, and on older processors four
/// times that. Filling and copying are charged for every byte as it is.
const OPERATOR_COST: OperatorCost = OperatorCost {
    MemoryGrow: HOST_WORK,
    MemoryFill: FILLING,
    TableInit: HOST_WORK,
    ElemDrop: HOST_WORK,
    F32Sqrt: SQUARE_ROOT,
    F64Sqrt: SQUARE_ROOT,
    F32Div: DIVISION,
    F64Div: DIVISION,
    I32DivS: DIVISION,
    I32DivU: DIVISION,
    I32RemS: DIVISION,
    I32RemU: DIVISION,
    I64DivS: DIVISION,
    I64DivU: DIVISION,
    I64RemS: DIVISION,
    I64RemU: DIVISION,
    ..OperatorCost::new()
};
const HOST_WORK: u8 = u8::MAX;
const FILLING: u8 = 64;
const SQUARE_ROOT: u8 = 8;
const DIVISION: u8 = 4;

/// Address space of one slot.
const RESERVATION_BYTES: u64 = 16 * 1024 * 1024;
const GUARD_BYTES: u64 = 64 * 1024;
/// Of a slot's memory, cleared by writing instead of by asking the kernel.
const KEEP_RESIDENT_BYTES: usize = 64 * 1024;

/// Moves the epoch while calls come, and sleeps when none do.
struct Ticker {
    state: Arc<TickerState>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct TickerState {
    stop: AtomicBool,
    sleeps: AtomicBool,
    calls: AtomicU64,
}

impl Ticker {
    fn start(engine: Engine) -> std::io::Result<Ticker> {
        let state = Arc::new(TickerState::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("policy-epoch".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || tick(&engine, &shared))?;
        Ok(Ticker { state, thread: Some(thread) })
    }

    /// Before each call. The two orders are sequential so that one of the two sides sees the other:
    /// the caller that the ticker sleeps, or the ticker that there is a call.
    fn wake(&self) {
        self.state.calls.fetch_add(1, Ordering::SeqCst);
        if self.state.sleeps.load(Ordering::SeqCst)
            && self.state.sleeps.swap(false, Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
    }
}

fn tick(engine: &Engine, state: &TickerState) {
    let (mut seen, mut idle) = (0, 0u32);
    while !state.stop.load(Ordering::Acquire) {
        std::thread::park_timeout(TICK);
        engine.increment_epoch();
        let calls = state.calls.load(Ordering::SeqCst);
        idle = if calls == seen { idle.saturating_add(1) } else { 0 };
        seen = calls;
        if idle < IDLE_TICKS {
            continue;
        }
        state.sleeps.store(true, Ordering::SeqCst);
        while state.calls.load(Ordering::SeqCst) == seen && !state.stop.load(Ordering::Acquire) {
            std::thread::park();
        }
        state.sleeps.store(false, Ordering::SeqCst);
        idle = 0;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic, and there is nobody to tell.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use rules::compile::{EnvironmentState, FlagState, PolicyState, compile, parse};
    use rules::context::ContextBuf;
    use rules::eval::{Evaluator, Host, Input, Scratch};
    use rules::policy::PolicyFault;
    use serde_json::{Value, json};

    use super::*;
    use crate::policy::admission;

    /// Compiled in this process, which is ours to waste.
    fn policy(fuel: u64) -> Policy {
        let text = r#"(module
          (memory (export "memory") 1 1)
          (func (export "tidegate_abi") (result i32) i32.const 1)
          (func (export "tidegate_alloc") (param i32) (result i32) i32.const 1024)
          (func (export "tidegate_describe") (result i64) i64.const 0)
          (func (export "evaluate") (param i32 i32) (result i64) (loop (br 0)) unreachable))"#;
        let wasm = wat::parse_str(text).unwrap();
        let engine = PolicyEngine::with_fuel(2, fuel).unwrap();
        let module = admission::compile(&engine, &wasm).unwrap();
        engine.policy(&module, Digest::of(&wasm)).unwrap()
    }

    /// With fuel for ages, only the deadline is left.
    const FUEL_FOR_AGES: u64 = u64::MAX;

    #[test]
    fn a_call_that_comes_after_long_silence_still_has_a_deadline() {
        let policy = policy(FUEL_FOR_AGES);
        assert_eq!(policy.call(b"{}").outcome, Err(Fault::Deadline));
        let ticker = &policy.engine.ticker;
        for _ in 0..3 {
            let until = Instant::now() + Duration::from_secs(60);
            while !ticker.state.sleeps.load(Ordering::SeqCst) {
                assert!(Instant::now() < until, "it ticks though nobody calls");
                std::thread::yield_now();
            }
            assert_eq!(policy.call(b"{}").outcome, Err(Fault::Deadline));
        }
    }

    /// As control's evaluation has it.
    struct Asked(Policy);

    impl Host for Asked {
        fn list_contains(&self, _list: u32, _id: &str) -> bool {
            false
        }

        fn policy(&self, _index: u32, input: &[u8], out: &mut Vec<u8>) -> Result<(), PolicyFault> {
            self.0.call(input).outcome.map(|answer| out.extend_from_slice(&answer)).map_err(
                |fault| {
                    out.extend_from_slice(fault.to_string().as_bytes());
                    fault.kind()
                },
            )
        }
    }

    /// The step of a policy in the trace of a flag whose only rule asks it.
    fn traced(policy: Policy) -> Value {
        let definition = json!({ "key": "f", "type": "boolean",
            "variants": { "on": true, "off": false } });
        let config = json!({ "enabled": true, "fallthrough": { "variant": "off" },
            "rules": [ { "id": "r", "policy": { "name": "p", "fallback": { "variant": "on" } } } ] });
        let state = EnvironmentState {
            flags: vec![FlagState {
                definition: parse(definition.to_string().as_bytes()).unwrap(),
                config: parse(config.to_string().as_bytes()).unwrap(),
            }],
            policies: vec![PolicyState {
                name: "p".to_owned(),
                digest: policy.digest(),
                attributes: Vec::new(),
            }],
            ..EnvironmentState::default()
        };
        let evaluator = Evaluator::new(compile(&state).unwrap().ruleset).unwrap();
        let context = ContextBuf::from_json(b"{}").unwrap();
        let host = Asked(policy);
        let input = Input { context: context.view(), now_ms: 0, host: &host };
        let flag = evaluator.flag("f").unwrap();
        let (_, trace) = evaluator.explain(flag, &input, &mut Scratch::default());
        let steps = serde_json::to_value(&trace.steps).unwrap();
        let step = steps.as_array().unwrap().iter().find(|step| step["step"] == "policy");
        step.unwrap_or_else(|| panic!("{steps}")).clone()
    }

    #[test]
    fn the_trace_tells_a_call_that_the_deadline_stopped_from_one_without_fuel() {
        let step = traced(policy(FUEL_FOR_AGES));
        assert_eq!(step["fault"], "deadline", "{step}");
        assert_eq!(
            step["details"],
            "the policy ran longer than its 5 ms of a processor's time, or 50 ms in all",
            "{step}"
        );
        // A machine that stood still for 5 ms would stop this one by the deadline too, so it gets
        // more tries than machines stand still.
        let step = (0..100)
            .map(|_| traced(policy(POLICY_FUEL_MAX)))
            .find(|step| step["fault"] != "deadline")
            .unwrap();
        assert_eq!(step["fault"], "fuel", "{step}");
        assert_eq!(step["details"], "the policy used up its 1000000 units of fuel", "{step}");
    }

    #[test]
    fn a_call_that_finds_every_slot_taken_is_told_so() {
        let policy = policy(POLICY_FUEL_MAX);
        let inner = policy.run(|_, _| {
            let second = policy.run(|_, _| {
                let third = policy.run(|_, _| Ok(Vec::new()));
                assert_eq!(third.outcome, Err(Fault::Busy));
                Ok(Vec::new())
            });
            second.outcome
        });
        assert_eq!(inner.outcome, Ok(Vec::new()));
        // And the slots are free again.
        assert_eq!(policy.run(|_, _| Ok(Vec::new())).outcome, Ok(Vec::new()));
    }
}
