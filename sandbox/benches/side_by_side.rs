//! What an evaluation costs natively and in the sandbox, side by side in one run:
//! `cargo bench -p sandbox`.
//!
//! Both take the compact context and give the OFREP body's bytes. `from_json` cases decode the
//! context's JSON each time, as an edge does for each request.

#[path = "../../rules/benches/fixtures/mod.rs"]
mod fixtures;

use std::sync::Arc;

use divan::{Bencher, black_box};
use fixtures::{CONTEXT, NOW_MS, mixed, ruleset, singles, thousand_ids};
use rules::answer::{Audience, write_all, write_one};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use sandbox::{Environment, Sandbox, SandboxConfig};

fn main() {
    divan::main();
}

const SINGLES: [&str; 4] = ["plain", "rules", "split", "segment"];

fn guest(ruleset: Vec<u8>) -> Arc<Environment> {
    let sandbox = Sandbox::new(SandboxConfig::default()).unwrap_or_else(|e| panic!("{e}"));
    sandbox.load(ruleset.into(), Arc::new(thousand_ids())).expect("it loads")
}

#[divan::bench(args = SINGLES, sample_size = 500)]
fn one_native(bencher: Bencher<'_, '_>, key: &str) {
    let evaluator = Evaluator::load(&ruleset(singles())).expect("it loads");
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let lists = thousand_ids();
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        out.clear();
        let input = Input { context: context.view(), now_ms: NOW_MS, host: &lists };
        let audience = Audience::Server;
        write_one(&evaluator, black_box(key), audience, &input, &mut scratch, &mut out)
    });
}

#[divan::bench(args = SINGLES, sample_size = 500)]
fn one_sandboxed(bencher: Bencher<'_, '_>, key: &str) {
    let guest = guest(ruleset(singles()));
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        guest
            .evaluate_one(black_box(key), Audience::Server, &context, NOW_MS, &mut out)
            .expect("an answer")
    });
}

/// The floor of the sandbox: a guest that answers without looking, through the same door.
#[divan::bench(sample_size = 500)]
fn one_sandboxed_nothing(bencher: Bencher<'_, '_>) {
    const GUEST: &str = r#"(module
      (memory (export "memory") 1)
      (data (i32.const 0) "\c8\00{}")
      (func (export "tg_abi") (result i32) i32.const 1)
      (func (export "tg_buffer") (param i32) (result i32) i32.const 1024)
      (func (export "tg_load") (param i32) (result i64) i64.const 0)
      (func (export "tg_evaluate") (param i32 i64) (result i64) i64.const 4))"#;
    let evaluator = Some(wat::parse_str(GUEST).expect("a guest"));
    let config = SandboxConfig { evaluator, ..SandboxConfig::default() };
    let sandbox = Sandbox::new(config).unwrap_or_else(|error| panic!("{error}"));
    let guest = sandbox.load(Arc::from(&b""[..]), Arc::new(thousand_ids())).expect("it loads");
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        guest
            .evaluate_one(black_box("plain"), Audience::Server, &context, NOW_MS, &mut out)
            .expect("an answer")
    });
}

#[divan::bench(sample_size = 500)]
fn rules_native_from_json(bencher: Bencher<'_, '_>) {
    let evaluator = Evaluator::load(&ruleset(singles())).expect("it loads");
    let lists = thousand_ids();
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        out.clear();
        let context = ContextBuf::from_json(black_box(CONTEXT)).expect("a context");
        let input = Input { context: context.view(), now_ms: NOW_MS, host: &lists };
        write_one(&evaluator, "rules", Audience::Server, &input, &mut scratch, &mut out)
    });
}

#[divan::bench(sample_size = 500)]
fn rules_sandboxed_from_json(bencher: Bencher<'_, '_>) {
    let guest = guest(ruleset(singles()));
    let mut out = Vec::with_capacity(1024);
    bencher.bench_local(|| {
        out.clear();
        let context = ContextBuf::from_json(black_box(CONTEXT)).expect("a context");
        guest
            .evaluate_one("rules", Audience::Server, &context, NOW_MS, &mut out)
            .expect("an answer")
    });
}

#[divan::bench(sample_size = 50)]
fn all_of_100_native(bencher: Bencher<'_, '_>) {
    let evaluator = Evaluator::load(&ruleset(mixed(100))).expect("it loads");
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let lists = thousand_ids();
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(64 * 1024));
    bencher.bench_local(|| {
        out.clear();
        let input = Input { context: context.view(), now_ms: NOW_MS, host: &lists };
        write_all(&evaluator, Audience::Server, &input, &mut scratch, &mut out);
        out.len()
    });
}

#[divan::bench(sample_size = 50)]
fn all_of_100_sandboxed(bencher: Bencher<'_, '_>) {
    let guest = guest(ruleset(mixed(100)));
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let mut out = Vec::with_capacity(64 * 1024);
    bencher.bench_local(|| {
        out.clear();
        guest
            .evaluate_all(Audience::Server, black_box(&context), NOW_MS, &mut out)
            .expect("an answer");
        out.len()
    });
}

/// What a swap costs: a first instance, with the ruleset loaded.
#[divan::bench(args = [100, 1_000, 5_000], sample_count = 10, sample_size = 1)]
fn load_sandboxed(bencher: Bencher<'_, '_>, flags: usize) {
    let sandbox = Sandbox::new(SandboxConfig::default()).unwrap_or_else(|e| panic!("{e}"));
    let ruleset: Arc<[u8]> = ruleset(mixed(flags)).into();
    bencher.bench_local(|| {
        sandbox.load(Arc::clone(&ruleset), Arc::new(thousand_ids())).expect("it loads")
    });
}

/// What a start costs: the evaluator compiled.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn compile_the_evaluator(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| {
        Sandbox::new(SandboxConfig::default()).unwrap_or_else(|error| panic!("{error}"))
    });
}
