//! Random modules through admission and calls: none may panic, crash, leave its budget, or answer
//! differently the second time.
//!
//! A short run is part of the tests. A long one: `TIDEGATE_FUZZ_SECONDS=600 cargo test --release
//! -p sandbox fuzz -- --nocapture`. The seed of a failure is printed; `TIDEGATE_FUZZ_SEED` begins
//! with it.

use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use rules::blob::Digest;
use rules::limits::{
    POLICY_FUEL_MAX, POLICY_INPUT_BYTES_MAX, POLICY_LOG_BYTES_MAX, POLICY_OUTPUT_BYTES_MAX,
};
use wasm_smith::{Config, Module};

use super::run::{Fault, PolicyEngine};
use super::{admission, check};

const SEEDS: u64 = 150;

/// What a policy exports; wasm-smith fills in the functions.
const ABI: &str = r#"(module
  (memory (export "memory") 1 64)
  (func (export "tidegate_abi") (result i32) unreachable)
  (func (export "tidegate_alloc") (param i32) (result i32) unreachable)
  (func (export "tidegate_describe") (result i64) unreachable)
  (func (export "evaluate") (param i32 i32) (result i64) unreachable))"#;

/// splitmix64: the same bytes for the same seed for ever.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }
}

/// Most are of a shape that could be admitted, some are anything that wasm can say.
fn module(random: &mut Random) -> Option<Vec<u8>> {
    let anything = random.next().is_multiple_of(8);
    let mut config = Config::default();
    if !anything {
        config.exports = Some(wat::parse_str(ABI).unwrap());
        config.allow_start_export = false;
        config.available_imports = None;
        config.max_imports = 0;
        config.max_memories = 1;
        config.max_memory32_bytes = 4 * 1024 * 1024;
        config.memory_max_size_required = true;
        config.max_tables = 1;
        config.max_table_elements = 1_000;
        config.table_max_size_required = true;
        config.max_exports = 8;
        config.max_instructions = 400;
        config.max_tags = 0;
        config.exceptions_enabled = false;
        config.gc_enabled = false;
        config.memory64_enabled = false;
        config.reference_types_enabled = false;
        config.relaxed_simd_enabled = false;
        config.simd_enabled = false;
        config.tail_call_enabled = false;
        config.threads_enabled = false;
        config.extended_const_enabled = false;
    }
    let bytes = random.bytes(16 * 1024);
    let mut wasm = Module::new(config, &mut Unstructured::new(&bytes)).ok()?.to_bytes();
    if random.next().is_multiple_of(4) {
        // A few bytes are not what the author wrote.
        for _ in 0..=random.next() % 4 {
            let at = (random.next() as usize).checked_rem(wasm.len())?;
            *wasm.get_mut(at)? = random.next() as u8;
        }
    }
    Some(wasm)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_modules_stay_within_their_budget() {
    let engine = PolicyEngine::new(2).unwrap();
    let first = setting("TIDEGATE_FUZZ_SEED").unwrap_or(1);
    let until = setting("TIDEGATE_FUZZ_SECONDS").map(|s| Instant::now() + Duration::from_secs(s));
    let (mut made, mut fit, mut admitted, mut answered) = (0u64, 0u64, 0u64, 0u64);
    let mut faults = std::collections::BTreeMap::<String, u64>::new();
    let mut refusals = std::collections::BTreeMap::<_, u64>::new();
    let mut seed = first;
    let mut slowest = (Duration::ZERO, 0u64);
    while until.map_or(seed < first + SEEDS, |until| Instant::now() < until) {
        let told = Told(seed);
        let mut random = Random(seed);
        seed += 1;
        let Some(wasm) = module(&mut random) else { continue };
        made += 1;
        let started = Instant::now();
        let shape = check(&wasm);
        if let Err(refused) = &shape {
            *refusals.entry(refused.rule.clone()).or_default() += 1;
        }
        let verdict = admission::admit(&engine, &wasm, &[]);
        if started.elapsed() > slowest.0 {
            slowest = (started.elapsed(), told.0);
        }
        admitted += u64::from(verdict.admitted);
        if shape.is_err() {
            assert!(!verdict.admitted);
        } else if let Ok(module) = admission::compile(&engine, &wasm) {
            fit += 1;
            // Also what is not admitted is called, since that reaches further into it.
            let policy = engine.policy(&module, Digest::of(&wasm)).unwrap();
            for len in [0, 20, 200, POLICY_INPUT_BYTES_MAX, POLICY_INPUT_BYTES_MAX + 1] {
                let input = random.bytes(len);
                let (first, second) = (policy.call(&input), policy.call(&input));
                for called in [&first, &second] {
                    assert!(called.fuel <= POLICY_FUEL_MAX);
                    assert!(called.log.len() <= POLICY_LOG_BYTES_MAX);
                    if let Ok(answer) = &called.outcome {
                        assert!(answer.len() <= POLICY_OUTPUT_BYTES_MAX);
                    }
                }
                let by_load = |outcome| outcome == &Err(Fault::Deadline);
                if !by_load(&first.outcome) && !by_load(&second.outcome) {
                    assert_eq!(first.outcome, second.outcome);
                    assert_eq!(first.fuel, second.fuel);
                }
                match first.outcome {
                    Ok(_) => answered += 1,
                    Err(fault) => {
                        let text = fault.to_string();
                        let kind = text.split(|c: char| c.is_ascii_digit()).next();
                        *faults.entry(kind.unwrap_or_default().to_owned()).or_default() += 1;
                    }
                }
            }
        }
    }
    println!(
        "seeds {first}..{seed}: {made} modules, {fit} of a shape that may be compiled, {admitted} admitted, \
         {answered} calls answered, slowest {} ms (seed {}), faults {faults:#?}, refusals {refusals:?}",
        slowest.0.as_millis(),
        slowest.1
    );
    // A generator that only made rubbish would prove nothing.
    assert!(fit * 4 > made, "only {fit} of {made} modules could be compiled");
}

/// Says the seed when a panic unwinds through it.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("TIDEGATE_FUZZ_SEED={}", self.0);
        }
    }
}
