//! What a change of one flag costs in an environment of 1,000: `cargo bench -p rules --bench compile`.
//! The flags are those of `cargo xtask load propagation`: five rules of two conditions each.

use divan::{Bencher, black_box};
use rules::blob;
use rules::compile::{EnvironmentState, FlagState, compile};
use rules::eval::Evaluator;
use rules::model::{FlagConfig, FlagDefinition};
use serde_json::{Value, json};

fn main() {
    divan::main();
}

const FLAGS: usize = 1_000;

fn rule(n: usize, r: usize) -> Value {
    json!({ "id": format!("r{r}"), "when": { "all": [
        { "attr": "country", "op": "in", "value": [format!("C{}", (n * 7 + r) % 200), "DE"] },
        { "attr": "app.version", "op": "semver_gte", "value": format!("{r}.{}.0", n % 50) }] },
        "serve": { "variant": "on" } })
}

fn texts() -> Vec<(String, String)> {
    let flag = |n: usize| {
        let definition = json!({ "key": format!("flag-{n:04}"), "type": "boolean",
            "variants": { "on": true, "off": false } });
        let rules: Vec<Value> = (0..5).map(|r| rule(n, r)).collect();
        let config = json!({ "enabled": true, "off": "off", "rules": rules,
            "fallthrough": { "variant": "off" } });
        (definition.to_string(), config.to_string())
    };
    (0..FLAGS).map(flag).collect()
}

fn parse(texts: &[(String, String)]) -> EnvironmentState {
    let flag = |(definition, config): &(String, String)| FlagState {
        definition: serde_json::from_str::<FlagDefinition>(definition).expect("a definition"),
        config: serde_json::from_str::<FlagConfig>(config).expect("a configuration"),
    };
    EnvironmentState { flags: texts.iter().map(flag).collect(), ..EnvironmentState::default() }
}

#[divan::bench]
fn parse_the_stored_texts(bencher: Bencher<'_, '_>) {
    let texts = texts();
    bencher.bench_local(|| parse(black_box(&texts)));
}

#[divan::bench]
fn compile_all(bencher: Bencher<'_, '_>) {
    let state = parse(&texts());
    bencher.bench_local(|| compile(black_box(&state)).expect("it compiles"));
}

#[divan::bench]
fn encode(bencher: Bencher<'_, '_>) {
    let compiled = compile(&parse(&texts())).expect("it compiles");
    bencher.bench_local(|| blob::encode_ruleset(black_box(&compiled.ruleset)));
}

#[divan::bench]
fn load(bencher: Bencher<'_, '_>) {
    let compiled = compile(&parse(&texts())).expect("it compiles");
    let bytes = blob::encode_ruleset(&compiled.ruleset);
    bencher.bench_local(|| Evaluator::load(black_box(&bytes)).map(drop).expect("it loads"));
}
