//! Random modules through admission and calls: none may panic, crash, leave its budget, or answer
//! differently the second time. `fuzz/modules.rs` makes them.
//!
//! A short run is part of the tests. A long one, with a line of progress every ten seconds:
//! `TIDEGATE_FUZZ_SECONDS=600 cargo test --release -p sandbox --lib fuzz -- --nocapture`.
//! The seed of a failure is printed; `TIDEGATE_FUZZ_SEED` begins with it.

mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rules::blob::Digest;
use rules::limits::{
    POLICY_FUEL_MAX, POLICY_INPUT_BYTES_MAX, POLICY_LOG_BYTES_MAX, POLICY_MEMORY_BYTES_MAX,
    POLICY_OUTPUT_BYTES_MAX,
};
use serde_json::json;

use self::modules::{Kits, Random, Source, module};
use super::answer::{self, Wanted};
use super::run::{Called, Fault, Policy, PolicyEngine};
use super::{admission, check};

const SEEDS: u64 = 60;
/// Of modules that keep the ABI. Fewer, and what lies behind admission is hardly tested.
const ADMITTED_PERCENT_MIN: u64 = 60;
/// What the process may grow by, from the first modules to the last.
const GROWTH_BYTES_MAX: u64 = 192 * 1024 * 1024;
const WARM_SEEDS: u64 = 20;
const DEADLINE_TRIES: u32 = 20;
const PROGRESS: Duration = Duration::from_secs(10);

#[test]
fn random_modules_stay_within_their_budget() {
    let kits = Kits::found();
    let first = setting("TIDEGATE_FUZZ_SEED").unwrap_or(1);
    let started = Instant::now();
    let until = setting("TIDEGATE_FUZZ_SECONDS").map(|s| started + Duration::from_secs(s));
    let mut run = Run { engine: PolicyEngine::new(2).unwrap(), counts: Counts::default() };
    let (mut seed, mut warm, mut told) = (first, None, started);
    while until.map_or(seed < first + SEEDS, |until| Instant::now() < until) {
        let _told = Told(seed);
        run.seed(seed, &kits);
        seed += 1;
        if seed == first + WARM_SEEDS {
            warm = resident_bytes();
        }
        if until.is_some() && told.elapsed() > PROGRESS {
            told = Instant::now();
            let Counts { calls, answers, .. } = run.counts;
            let (made, admitted) = (run.counts.made(), run.counts.admitted());
            println!(
                "{} s: seed {seed}, {made} modules, {admitted} admitted, {calls} calls, {answers} answers",
                started.elapsed().as_secs()
            );
        }
    }
    let (warm, now) = (warm.unwrap_or(0), resident_bytes().unwrap_or(0));
    let mib = |bytes: u64| bytes / 1_048_576;
    println!(
        "seeds {first} to {}, {} s, {} kits\n{}resident: {} MiB after {WARM_SEEDS} modules, {} MiB at the end",
        seed - 1,
        started.elapsed().as_secs(),
        kits.count(),
        run.counts,
        mib(warm),
        mib(now),
    );
    let counts = &run.counts;
    let keeping =
        [Source::Around, Source::AroundMutated, Source::Kit].map(|source| counts.of(source));
    let (made, admitted) = keeping.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(admitted * 100 >= made * ADMITTED_PERCENT_MIN, "{admitted} of {made} were admitted");
    assert!(counts.answers > 0 && counts.faults.len() >= 3, "{counts}");
    assert!(warm == 0 || now < warm + GROWTH_BYTES_MAX, "{} MiB more", mib(now - warm));
}

struct Run {
    engine: Arc<PolicyEngine>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    /// Made and admitted.
    modules: BTreeMap<Source, (u64, u64)>,
    refused: BTreeMap<String, u64>,
    calls: u64,
    /// That the flag would take.
    answers: u64,
    /// Bytes within the budget that are no answer.
    other_bytes: u64,
    logs: u64,
    grew: u64,
    deadlines: u64,
    /// Seeds whose calls no fuel ends in time.
    always_late: BTreeSet<u64>,
    faults: BTreeMap<String, u64>,
    fuel: u64,
    slowest: (Duration, u64),
}

impl Run {
    fn seed(&mut self, seed: u64, kits: &Kits) {
        let mut random = Random(seed);
        let Some((source, wasm)) = module(&mut random, kits) else { return };
        let counted = self.counts.modules.entry(source).or_default();
        counted.0 += 1;
        let started = Instant::now();
        let shape = check(&wasm);
        let verdict = admission::admit(&self.engine, &wasm, &[]);
        if started.elapsed() > self.counts.slowest.0 {
            self.counts.slowest = (started.elapsed(), seed);
        }
        match &verdict.refused {
            None => counted.1 += 1,
            Some(refused) => {
                let rule = refused.rule.clone().into_owned();
                assert_ne!(rule, "nondeterministic", "{refused}");
                *self.counts.refused.entry(rule).or_default() += 1;
            }
        }
        if let Err(refused) = shape {
            assert_eq!(verdict.refused, Some(refused));
        } else if let Ok(module) = admission::compile(&self.engine, &wasm) {
            // Also what is not admitted is called, since that reaches further into it.
            let policy = self.engine.policy(&module, Digest::of(&wasm)).unwrap();
            for input in inputs(&mut random) {
                let pair = [self.call(&policy, &input, seed), self.call(&policy, &input, seed)];
                self.count(pair);
            }
        }
    }

    /// Again if only the machine's load stopped it. What the deadline stops each time is a hole in what
    /// fuel costs; it is named, not asserted, since a machine may be slow enough for anything.
    fn call(&mut self, policy: &Policy, input: &[u8], seed: u64) -> Called {
        for _ in 0..DEADLINE_TRIES {
            self.counts.calls += 1;
            let called = policy.call(input);
            if called.outcome != Err(Fault::Deadline) {
                return called;
            }
            self.counts.deadlines += 1;
        }
        self.counts.always_late.insert(seed);
        policy.call(input)
    }

    fn count(&mut self, [first, second]: [Called; 2]) {
        let counts = &mut self.counts;
        for called in [&first, &second] {
            assert!(called.fuel <= POLICY_FUEL_MAX);
            assert!(called.memory_bytes <= POLICY_MEMORY_BYTES_MAX);
            assert!(called.log.len() <= POLICY_LOG_BYTES_MAX);
            if let Ok(answer) = &called.outcome {
                assert!(answer.len() <= POLICY_OUTPUT_BYTES_MAX);
            }
        }
        if [&first, &second].into_iter().any(|called| called.outcome == Err(Fault::Deadline)) {
            return;
        }
        assert_eq!(first.outcome, second.outcome);
        assert_eq!(first.fuel, second.fuel);
        assert_eq!(first.log, second.log);
        assert_eq!(first.memory_bytes, second.memory_bytes);
        counts.fuel += first.fuel;
        counts.logs += u64::from(!first.log.is_empty());
        counts.grew += u64::from(first.memory_bytes > 65_536);
        match first.outcome {
            Ok(bytes) => {
                let wanted = Wanted { kind: "string", variants: vec!["direct", "review"] };
                match answer::check(&bytes, &wanted) {
                    Ok(_) => counts.answers += 2,
                    Err(_) => counts.other_bytes += 2,
                }
            }
            Err(fault) => {
                // Without what differs from call to call.
                let text: String =
                    fault.to_string().chars().filter(|c| !c.is_ascii_digit()).collect();
                *counts.faults.entry(text).or_default() += 2;
            }
        }
    }
}

/// What an edge sends, that with some bytes changed, noise, and one byte too many.
fn inputs(random: &mut Random) -> Vec<Vec<u8>> {
    let document = json!({
        "flag": "checkout", "type": "string", "variants": ["direct", "review"],
        "targetingKey": format!("u-{}", random.below(1_000)),
        "attributes": { "country": "DE", "user": { "score": random.below(10) } },
        "params": { "max": random.below(10) }, "now": 1_760_000_000_000_i64,
    });
    let document = document.to_string().into_bytes();
    let mut damaged = document.clone();
    for _ in 0..=random.below(4) {
        let at = random.below(damaged.len());
        damaged[at] = random.next() as u8;
    }
    let cut = document[..random.below(document.len())].to_vec();
    let noise = random.bytes(POLICY_INPUT_BYTES_MAX);
    let over = vec![b' '; POLICY_INPUT_BYTES_MAX + 1];
    vec![document, damaged, cut, noise, Vec::new(), over]
}

impl Counts {
    fn of(&self, source: Source) -> (u64, u64) {
        self.modules.get(&source).copied().unwrap_or_default()
    }

    fn made(&self) -> u64 {
        self.modules.values().map(|(made, _)| made).sum()
    }

    fn admitted(&self) -> u64 {
        self.modules.values().map(|(_, admitted)| admitted).sum()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "modules: {} made, {} admitted", self.made(), self.admitted())?;
        for (source, (made, admitted)) in &self.modules {
            writeln!(f, "  {source:?}: {made} made, {admitted} admitted")?;
        }
        let (slowest, seed) = self.slowest;
        writeln!(f, "  longest admission: {} ms (seed {seed})", slowest.as_millis())?;
        writeln!(f, "refused: {:?}", self.refused)?;
        let Counts { calls, answers, other_bytes, deadlines, logs, grew, .. } = self;
        writeln!(
            f,
            "calls: {calls} (each input twice), {answers} with an answer, {other_bytes} with other bytes, \
             {deadlines} stopped by the deadline (always: seeds {:?}), {logs} logged, {grew} with more than a page, \
             {} units of fuel",
            self.always_late, self.fuel
        )?;
        writeln!(f, "faults:")?;
        for (fault, count) in &self.faults {
            writeln!(f, "  {count}: {fault}")?;
        }
        Ok(())
    }
}

/// Of this process, with whatever other tests it runs. Without pages of files, which come as the
/// program's own code is first run.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
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
