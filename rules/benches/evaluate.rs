//! What one evaluation costs natively, with its allocations: `cargo bench -p rules`.
//!
//! `floor` is an evaluator without features, written out by hand for the one flag of the
//! three-rule case: no operators as data, no policies, no reasons but one. What Tidegate takes
//! beyond it is the price of being general.

use std::collections::BTreeMap;
use std::sync::Arc;

use divan::{AllocProfiler, Bencher, black_box};
use rules::answer::{Audience, write_all, write_one};
use rules::blob::lists::IdList;
use rules::cel::{At, Mistake, Tree};
use rules::compile::{EnvironmentState, FlagState, SegmentState, compile_with};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, FlagId, Host, Input, NoHost, Outcome, Scratch};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: AllocProfiler = AllocProfiler::system();

fn main() {
    divan::main();
}

/// Ten attributes; the third rule is the one that matches.
const CONTEXT: &[u8] = br#"{"targetingKey":"user-7c2f91ab","email":"ada@tidegate.dev","country":"DE","plan":"business","age":37,"app":{"version":"2.1.4","platform":"ios"},"groups":["beta","staff"],"language":"de-DE","device":"iPhone15,2","sessions":182}"#;

const NOW_MS: i64 = 1_780_000_000_000;

struct OneList(IdList);

impl Host for OneList {
    fn list_contains(&self, _list: u32, id: &str) -> bool {
        self.0.contains(id)
    }
}

fn flag(key: &str, rules: Value, fallthrough: Value) -> FlagState {
    let definition = json!({
        "key": key,
        "type": "boolean",
        "variants": { "on": true, "off": false },
        "metadata": { "team": "checkout" },
    });
    let config = json!({
        "enabled": true, "off": "off", "rules": rules, "fallthrough": fallthrough,
    });
    FlagState {
        definition: serde_json::from_value(definition).expect("a definition"),
        config: serde_json::from_value(config).expect("a configuration"),
    }
}

fn three_rules() -> Value {
    json!([
        { "id": "staff", "serve": { "variant": "on" },
          "when": { "attr": "email", "op": "ends_with", "value": "@example.com" } },
        { "id": "eu", "serve": { "variant": "on" },
          "when": { "all": [
              { "attr": "country", "op": "in", "value": ["AT", "CH", "DE", "FR"] },
              { "attr": "app.version", "op": "semver_gte", "value": "2.3.0" } ] } },
        { "id": "plan", "serve": { "variant": "on" },
          "when": { "all": [
              { "attr": "plan", "op": "eq", "value": "business" },
              { "attr": "age", "op": "gte", "value": 18 } ] } },
    ])
}

/// The recorded trees of the corpus: there is no parser here.
fn tree(source: &str) -> Result<Arc<Tree>, Vec<Mistake>> {
    let text = include_str!("../tests/data/cel-trees.json");
    let mut trees: BTreeMap<String, Tree> = serde_json::from_str(text).expect("trees");
    let found = trees.remove(source).map(Arc::new);
    found.ok_or_else(|| vec![Mistake::new(At::default(), format!("no tree of {source}"))])
}

struct World {
    evaluator: Evaluator,
    list: OneList,
}

impl World {
    fn of(flags: Vec<FlagState>) -> World {
        let segment = json!({ "key": "chosen" });
        let state = EnvironmentState {
            flags,
            segments: vec![SegmentState {
                segment: serde_json::from_value(segment).expect("a segment"),
                has_included: true,
                has_excluded: false,
            }],
            ..EnvironmentState::default()
        };
        let compiled = compile_with(&state, &tree).expect("a valid environment");
        let mut ids: Vec<String> = (0..999).map(|id| format!("user-{id:08x}")).collect();
        ids.push("user-7c2f91ab".to_owned());
        World {
            evaluator: Evaluator::new(compiled.ruleset).expect("a sound ruleset"),
            list: OneList(IdList::from_ids(ids.iter().map(String::as_str))),
        }
    }

    fn id(&self, key: &str) -> FlagId {
        self.evaluator.flag(key).expect("the flag")
    }

    /// Only the evaluation; the context is decoded, the flag found.
    fn evaluate(&self, bencher: Bencher<'_, '_>, key: &str, wanted: &str) {
        let flag = self.id(key);
        let context = ContextBuf::from_json(CONTEXT).expect("a context");
        let context = context.view();
        let mut scratch = Scratch::default();
        let input = Input { context, now_ms: NOW_MS, host: &self.list };
        let outcome = self.evaluator.evaluate(flag, &input, &mut scratch);
        assert_eq!(reason(&outcome), wanted);
        bencher.bench_local(|| {
            self.evaluator.evaluate(black_box(flag), black_box(&input), &mut scratch)
        });
    }
}

fn reason(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Variant { reason, .. }
        | Outcome::Value { reason, .. }
        | Outcome::CodeDefault { reason } => reason.name(),
        Outcome::Error { code, .. } => code.name(),
    }
}

fn world() -> World {
    let on = json!({ "variant": "on" });
    let off = json!({ "variant": "off" });
    let split = json!({ "split": { "weights": { "on": 30_000, "off": 70_000 } } });
    let mut three_way = flag("split", json!([]), json!("codeDefault"));
    three_way.definition = serde_json::from_value(json!({
        "key": "split", "type": "string", "variants": { "a": "A", "b": "B", "c": "C" },
    }))
    .expect("a definition");
    three_way.config = serde_json::from_value(json!({
        "enabled": true,
        "fallthrough": { "split": { "weights": { "a": 30_000, "b": 30_000, "c": 40_000 } } },
    }))
    .expect("a configuration");
    let member = json!([{ "id": "chosen", "when": { "segment": "chosen" }, "serve": on }]);
    World::of(vec![
        flag("plain", json!([]), off.clone()),
        flag("rules", three_rules(), off.clone()),
        flag("segment", member, off),
        flag("rollout", json!([]), split),
        three_way,
    ])
}

#[divan::bench(sample_size = 500)]
fn no_rules(bencher: Bencher<'_, '_>) {
    world().evaluate(bencher, "plain", "STATIC");
}

#[divan::bench(sample_size = 500)]
fn three_rules_evaluate_only(bencher: Bencher<'_, '_>) {
    world().evaluate(bencher, "rules", "TARGETING_MATCH");
}

/// As the sandbox has it: compact bytes in, OFREP JSON out, buffers that are reused.
#[divan::bench(sample_size = 500)]
fn three_rules_compact_to_json(bencher: Bencher<'_, '_>) {
    let world = world();
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        out.clear();
        let view = rules::context::Context::from_bytes(black_box(context.as_bytes()));
        let input = Input { context: view, now_ms: NOW_MS, host: &NoHost };
        let audience = Audience::Server;
        write_one(&world.evaluator, black_box("rules"), audience, &input, &mut scratch, &mut out)
    });
}

#[divan::bench(sample_size = 500)]
fn three_rules_decode_and_evaluate(bencher: Bencher<'_, '_>) {
    let world = world();
    let flag = world.id("rules");
    let mut scratch = Scratch::default();
    bencher.bench_local(|| {
        let context = ContextBuf::from_json(black_box(CONTEXT)).expect("a context");
        let input = Input { context: context.view(), now_ms: NOW_MS, host: &NoHost };
        world.evaluator.evaluate(black_box(flag), &input, &mut scratch)
    });
}

#[divan::bench(sample_size = 500)]
fn three_rules_json_to_json(bencher: Bencher<'_, '_>) {
    let world = world();
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(1024));
    bencher.bench_local(|| {
        out.clear();
        let context = ContextBuf::from_json(black_box(CONTEXT)).expect("a context");
        let input = Input { context: context.view(), now_ms: NOW_MS, host: &NoHost };
        let audience = Audience::Server;
        write_one(&world.evaluator, black_box("rules"), audience, &input, &mut scratch, &mut out)
    });
}

#[divan::bench(sample_size = 500)]
fn decode_only(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| ContextBuf::from_json(black_box(CONTEXT)));
}

#[divan::bench(sample_size = 500)]
fn three_way_split(bencher: Bencher<'_, '_>) {
    world().evaluate(bencher, "split", "SPLIT");
}

#[divan::bench(sample_size = 500)]
fn segment_of_1000_ids(bencher: Bencher<'_, '_>) {
    world().evaluate(bencher, "segment", "TARGETING_MATCH");
}

/// One flag with one rule.
fn one_condition(when: Value) -> World {
    let rule = json!([{ "id": "r", "when": when, "serve": { "variant": "on" } }]);
    World::of(vec![flag("one", rule, json!({ "variant": "off" }))])
}

/// `plan == 'business' && age >= 18`, as CEL lowers it and as the tree says it: they are the same.
#[divan::bench(sample_size = 500)]
fn condition_of_two_clauses(bencher: Bencher<'_, '_>) {
    let scalar = json!({ "array": "scalar" });
    let tree = json!({ "all": [
        { "attr": "plan", "op": "eq", "value": "business", "policy": scalar },
        { "attr": "age", "op": "gte", "value": 18, "policy": scalar } ] });
    one_condition(tree).evaluate(bencher, "one", "TARGETING_MATCH");
}

#[divan::bench(sample_size = 500)]
fn cel_of_two_clauses(bencher: Bencher<'_, '_>) {
    let world = one_condition(json!({ "cel": "plan == 'business' && age >= 18" }));
    world.evaluate(bencher, "one", "TARGETING_MATCH");
}

/// The same two as nodes: what lowering saves.
#[divan::bench(sample_size = 500)]
fn cel_of_two_comparisons_not_lowered(bencher: Bencher<'_, '_>) {
    let world = one_condition(json!({ "cel": "[plan, age] == ['business', 37]" }));
    world.evaluate(bencher, "one", "TARGETING_MATCH");
}

#[divan::bench(sample_size = 500)]
fn cel_with_a_loop_over_two_groups(bencher: Bencher<'_, '_>) {
    let world = one_condition(json!({ "cel": "groups.exists(g, g.startsWith('sta'))" }));
    world.evaluate(bencher, "one", "TARGETING_MATCH");
}

#[divan::bench(sample_size = 500)]
fn cel_with_arithmetic(bencher: Bencher<'_, '_>) {
    let world = one_condition(json!({ "cel": "age * 2 + 1 > sessions / 3" }));
    world.evaluate(bencher, "one", "TARGETING_MATCH");
}

#[divan::bench(sample_size = 50)]
fn all_of_100_flags(bencher: Bencher<'_, '_>) {
    let off = json!({ "variant": "off" });
    let split = json!({ "split": { "weights": { "on": 30_000, "off": 70_000 } } });
    let flags = (0..100).map(|number| {
        let key = format!("flag-{number:03}");
        // As environments are: most flags are simple, some target, some roll out.
        match number % 4 {
            0 => flag(&key, three_rules(), off.clone()),
            1 => flag(&key, json!([]), split.clone()),
            _ => flag(&key, json!([]), off.clone()),
        }
    });
    let world = World::of(flags.collect());
    let context = ContextBuf::from_json(CONTEXT).expect("a context");
    let (mut scratch, mut out) = (Scratch::default(), Vec::with_capacity(64 * 1024));
    let input = Input { context: context.view(), now_ms: NOW_MS, host: &NoHost };
    bencher.bench_local(|| {
        out.clear();
        let input = black_box(&input);
        write_all(&world.evaluator, Audience::Server, input, &mut scratch, &mut out);
        out.len()
    });
}

/// The same ten attributes and the same three rules, by hand.
mod floor {
    use std::borrow::Cow;

    use divan::{Bencher, black_box};
    use serde::Deserialize;

    use super::CONTEXT;

    #[derive(Deserialize)]
    struct App<'a> {
        #[serde(borrow)]
        version: Cow<'a, str>,
    }

    /// Only what the rules ask for: serde skips the rest of the document.
    #[derive(Deserialize)]
    struct Context<'a> {
        #[serde(borrow)]
        email: Cow<'a, str>,
        #[serde(borrow)]
        country: Cow<'a, str>,
        #[serde(borrow)]
        plan: Cow<'a, str>,
        age: i64,
        #[serde(borrow)]
        app: App<'a>,
    }

    fn version(text: &str) -> Option<[u32; 3]> {
        let mut parts = text.splitn(3, '.').map(|part| part.parse().ok());
        Some([parts.next()??, parts.next()??, parts.next()??])
    }

    fn evaluate(context: &Context<'_>) -> bool {
        context.email.ends_with("@example.com")
            || (["AT", "CH", "DE", "FR"].contains(&&*context.country)
                && version(&context.app.version) >= Some([2, 3, 0]))
            || (context.plan == "business" && context.age >= 18)
    }

    #[divan::bench(sample_size = 500)]
    fn evaluate_only(bencher: Bencher<'_, '_>) {
        let context: Context<'_> = serde_json::from_slice(CONTEXT).expect("a context");
        bencher.bench_local(|| evaluate(black_box(&context)));
    }

    #[divan::bench(sample_size = 500)]
    fn json_to_json(bencher: Bencher<'_, '_>) {
        let mut out: Vec<u8> = Vec::with_capacity(1024);
        bencher.bench_local(|| {
            out.clear();
            let context: Context<'_> =
                serde_json::from_slice(black_box(CONTEXT)).expect("a context");
            out.extend_from_slice(if evaluate(&context) {
                br#"{"key":"rules","value":true,"variant":"on","reason":"TARGETING_MATCH","metadata":{"team":"checkout"}}"#
            } else {
                br#"{"key":"rules","value":false,"variant":"off","reason":"DEFAULT","metadata":{"team":"checkout"}}"#
            });
        });
    }
}
