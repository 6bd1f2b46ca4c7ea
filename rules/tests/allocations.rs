//! The hot paths do not allocate once their scratch has grown: native splits, and the trees that
//! flagd's users write most.
#![expect(unsafe_code, reason = "counting allocations takes an allocator of one's own")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use rules::compile::{EnvironmentState, compile};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, NoHost, Outcome, Scratch};
use rules::flagd::{self, ImportOptions};
use serde_json::{Value, json};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

// SAFETY: every call is the system allocator's; the counter is a plain cell of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The variant served, and the allocations of the second evaluation.
fn evaluate(evaluator: &Evaluator, key: &str) -> (String, u32) {
    let context = ContextBuf::from_json(
        br#"{"targetingKey":"user-1","email":"ann@example.com","country":"DE","version":"2.3.1"}"#,
    )
    .unwrap();
    let input = Input { context: context.view(), now_ms: 1_700_000_000_000, host: &NoHost };
    let flag = evaluator.flag(key).unwrap();
    let mut scratch = Scratch::default();
    evaluator.evaluate(flag, &input, &mut scratch);
    let before = ALLOCATIONS.with(Cell::get);
    let outcome = evaluator.evaluate(flag, &input, &mut scratch);
    let allocations = ALLOCATIONS.with(Cell::get) - before;
    let Outcome::Variant { variant, .. } = outcome else { panic!("{key}: {outcome:?}") };
    let rules = evaluator.rules();
    (rules.str(rules.variants[variant as usize].key).to_owned(), allocations)
}

fn evaluator(document: &Value) -> Evaluator {
    let document = document.to_string();
    let imported = flagd::import(document.as_bytes(), ImportOptions::default()).unwrap();
    assert_eq!(imported.refused, []);
    let state = EnvironmentState { flags: imported.flags, ..EnvironmentState::default() };
    Evaluator::new(compile(&state).unwrap().ruleset).unwrap()
}

#[test]
fn the_common_shapes_of_flagd_allocate_nothing() {
    let trees = [
        json!({ "if": [{ "==": [{ "var": "country" }, "DE"] }, "on", "off"] }),
        json!({ "if": [{ "in": [{ "var": "country" }, ["FR", "DE", "IT"]] }, "on"] }),
        json!({ "if": [{ "in": ["@example.com", { "var": "email" }] }, "on"] }),
        json!({ "if": [{ "ends_with": [{ "var": "email" }, "@example.com"] }, "on"] }),
        json!({ "if": [{ "sem_ver": [{ "var": "version" }, ">=", "2.0.0"] }, "on"] }),
        json!({ "if": [{ "and": [{ "!": { "var": "gone" } }, { ">": [{ "var": "$flagd.timestamp" }, 1] }] }, "on"] }),
        json!({ "fractional": [["on", 50], ["on", 50]] }),
        json!({ "fractional": [{ "var": "email" }, ["on", 25], ["on", 75]] }),
        json!({ "fractional": [{ "cat": ["salt:", { "var": "targetingKey" }] }, ["on"], ["on"]] }),
    ];
    for tree in trees {
        let flag = json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off", "targeting": tree });
        let evaluator = evaluator(&json!({ "flags": { "f": flag } }));
        assert_eq!(evaluate(&evaluator, "f"), ("on".to_owned(), 0), "{tree}");
    }
}

#[test]
fn a_native_split_allocates_nothing() {
    let mut state = EnvironmentState::default();
    state.flags.push(rules::compile::FlagState {
        definition: serde_json::from_value(
            json!({ "key": "f", "type": "boolean", "variants": { "on": true, "off": false } }),
        )
        .unwrap(),
        config: serde_json::from_value(json!({
            "enabled": true,
            "fallthrough": { "split": { "weights": { "off": 0, "on": 100_000 } } },
        }))
        .unwrap(),
    });
    let evaluator = Evaluator::new(compile(&state).unwrap().ruleset).unwrap();
    assert_eq!(evaluate(&evaluator, "f"), ("on".to_owned(), 0));
}

#[test]
fn allocations_are_counted() {
    let tree = json!({ "cat": ["o", { "var": "gone" }, "n"] });
    let flag = json!({ "state": "ENABLED", "variants": { "on": true }, "targeting": tree });
    let evaluator = evaluator(&json!({ "flags": { "f": flag } }));
    let (variant, allocations) = evaluate(&evaluator, "f");
    assert!(variant == "on" && allocations > 0);
}
