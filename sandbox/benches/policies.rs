//! What a policy call costs beside a plain evaluation, in one run:
//! `cargo bench -p sandbox --bench policies`.
//!
//! A call is a fresh store, an instance with fresh memory, the input written, the answer read.

#[path = "../../rules/benches/fixtures/mod.rs"]
mod fixtures;

use std::sync::Arc;

use divan::{Bencher, black_box};
use fixtures::{CONTEXT, NOW_MS, ruleset, singles, thousand_ids};
use rules::answer::Audience;
use rules::blob::Digest;
use rules::context::ContextBuf;
use sandbox::policy::helper::Helper;
use sandbox::policy::{Policies, Policy, PolicyConfig};
use sandbox::{Sandbox, SandboxConfig};

fn main() {
    divan::main();
}

const INPUT: &[u8] = br#"{"flag":"checkout","type":"string","variants":["direct","review"],"targetingKey":"u-1","attributes":{"user":{"score":7}},"params":{"max":5},"now":1760000000000}"#;

fn policy(wasm: &[u8]) -> Arc<Policy> {
    let program = env!("CARGO_BIN_EXE_tidegate-sandbox-helper").into();
    let helper = Helper { program, arguments: Vec::new() };
    let policies = Policies::new(PolicyConfig { helper, cache_dir: None }).expect("an engine");
    policies.load(Digest::of(wasm), wasm).expect("it loads")
}

/// The floor: a policy that abstains without looking.
#[divan::bench(sample_size = 200)]
fn policy_call_nothing(bencher: Bencher<'_, '_>) {
    let text = r#"(module (memory (export "memory") 1 1) (data (i32.const 0) "{\"abstain\":true}")
      (func (export "tidegate_abi") (result i32) i32.const 1)
      (func (export "tidegate_alloc") (param i32) (result i32) i32.const 1024)
      (func (export "tidegate_describe") (result i64) i64.const 0)
      (func (export "evaluate") (param i32 i32) (result i64) i64.const 16))"#;
    let policy = policy(&wat::parse_str(text).expect("a module"));
    bencher.bench_local(|| policy.call(black_box(INPUT)).outcome.expect("an answer"));
}

/// The author kits' policy in each language; those that `cargo xtask test --only policies` built.
#[divan::bench(args = ["wat", "c", "assemblyscript", "rust"], sample_size = 100)]
fn policy_call(bencher: Bencher<'_, '_>, language: &str) {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let file = match language {
        "wat" => root.join("policies/wat/policy.wat"),
        language => root.join(format!("target/policies/{language}.wasm")),
    };
    let Ok(wasm) = wat::parse_file(&file) else { return };
    let policy = policy(&wasm);
    bencher.bench_local(|| policy.call(black_box(INPUT)).outcome.expect("an answer"));
}

/// What it stands beside: a flag with rules, evaluated in the long-lived evaluator.
#[divan::bench(args = ["plain", "rules", "segment"], sample_size = 500)]
fn evaluation(bencher: Bencher<'_, '_>, key: &str) {
    let sandbox = Sandbox::new(SandboxConfig::default()).unwrap_or_else(|e| panic!("{e}"));
    let guest = sandbox
        .load(ruleset(singles()).into(), Arc::new(thousand_ids()))
        .unwrap_or_else(|e| panic!("{e}"));
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        guest
            .evaluate_one(black_box(key), Audience::Server, &context, NOW_MS, &mut out)
            .expect("an answer")
    });
}
