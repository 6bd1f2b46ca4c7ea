//! Policies as an edge runs them: compiled by a real helper process, called under the budget.

mod in_time;

use std::sync::Arc;

use rules::blob::Digest;
use rules::limits::{
    POLICY_HOST_CALLS_MAX, POLICY_INPUT_BYTES_MAX, POLICY_LOG_BYTES_MAX, POLICY_OUTPUT_BYTES_MAX,
};
use sandbox::policy::helper::{Helper, HelperError};
use sandbox::policy::{Called, Fault, LoadError, Policies, Policy, PolicyConfig, Vector};
use serde_json::json;

fn helper() -> Helper {
    Helper { program: env!("CARGO_BIN_EXE_tidegate-sandbox-helper").into(), arguments: Vec::new() }
}

fn policies(cache_dir: Option<&std::path::Path>) -> Arc<Policies> {
    let cache_dir = cache_dir.map(Into::into);
    Policies::new(PolicyConfig { helper: helper(), cache_dir }).unwrap()
}

/// A whole policy around the body of `evaluate`; `$in` and `$len` are its input.
fn module(evaluate: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
          (import "tidegate.v1" "log" (func $log (param i32 i32)))
          (memory (export "memory") 1 64)
          (data (i32.const 0) "{{\"abstain\":true}}")
          (data (i32.const 64) "{{\"attributes\":[\"user.score\"]}}")
          (func (export "tidegate_abi") (result i32) i32.const 1)
          (func (export "tidegate_alloc") (param i32) (result i32) i32.const 4096)
          (func (export "tidegate_describe") (result i64)
            (i64.or (i64.shl (i64.const 64) (i64.const 32)) (i64.const 29)))
          (func $evaluate (export "evaluate") (param $in i32) (param $len i32) (result i64)
            {evaluate}))"#
    );
    wat::parse_str(text).unwrap()
}

fn load(evaluate: &str) -> Arc<Policy> {
    loaded(&policies(None), &module(evaluate))
}

fn loaded(policies: &Policies, wasm: &[u8]) -> Arc<Policy> {
    let load = || policies.load(Digest::of(wasm), wasm);
    let is_late = |loaded: &Result<Arc<Policy>, LoadError>| {
        matches!(loaded, Err(LoadError::Compile(HelperError::Time)))
    };
    in_time::in_time(load, is_late).unwrap()
}

/// A call's time is the wall's: one that was not scheduled for a while is made again.
fn call(policy: &Policy, input: &[u8]) -> Called {
    let in_time = |called: &Called| !matches!(called.outcome, Err(Fault::Deadline));
    (0..100).map(|_| policy.call(input)).find(in_time).expect("a call in time")
}

/// Gives its input back as the answer.
const ECHO: &str = "(i64.or (i64.shl (i64.extend_i32_u (local.get $in)) (i64.const 32))
                            (i64.extend_i32_u (local.get $len)))";
const ABSTAIN: &str = "i64.const 16";

#[test]
fn a_policy_answers_and_says_what_it_used() {
    let policy = load(ECHO);
    let called = call(&policy, b"{\"flag\":\"x\"}");
    assert_eq!(called.outcome.unwrap(), b"{\"flag\":\"x\"}");
    assert!((1..100).contains(&called.fuel), "{}", called.fuel);
    assert_eq!(called.log, "");
}

#[test]
fn a_call_leaves_nothing_behind_for_the_next() {
    // Writes its input over its constant, and answers with what the constant was.
    let policy = load(
        "(i32.store8 (i32.const 1024) (i32.load8_u (i32.const 0)))
         (i32.store8 (i32.const 0) (i32.const 120))
         (i64.or (i64.shl (i64.const 1024) (i64.const 32)) (i64.const 1))",
    );
    for _ in 0..100 {
        assert_eq!(call(&policy, b"").outcome.unwrap(), b"{");
    }
}

#[test]
fn the_limits_of_a_call_hold_at_n_and_at_one_more() {
    let echo = load(ECHO);
    let most = vec![b'x'; POLICY_OUTPUT_BYTES_MAX];
    assert_eq!(call(&echo, &most).outcome.unwrap(), most);
    let more = vec![b'x'; POLICY_OUTPUT_BYTES_MAX + 1];
    assert!(matches!(call(&echo, &more).outcome, Err(Fault::Output(_))));

    let abstain = load(ABSTAIN);
    assert!(call(&abstain, &vec![b'x'; POLICY_INPUT_BYTES_MAX]).outcome.is_ok());
    let more = call(&abstain, &vec![b'x'; POLICY_INPUT_BYTES_MAX + 1]).outcome;
    assert_eq!(
        more.unwrap_err().to_string(),
        "the policy could not be given its input: 16385 bytes; 16384 are allowed"
    );
}

#[test]
fn logs_are_cut_and_charged() {
    let policy = load("(call $log (i32.const 0) (i32.const 60000)) i64.const 16");
    let called = call(&policy, b"");
    assert!(called.outcome.is_ok());
    assert!(called.log.starts_with("{\"abstain\":true}"), "{}", called.log);
    assert_eq!(called.log.len(), POLICY_LOG_BYTES_MAX);
    assert!(called.fuel > 61_000, "{}", called.fuel);

    let talks = |times: u32| {
        load(&format!(
            "(local $i i32)
             (loop $again
               (call $log (i32.const 0) (i32.const 1))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))
             i64.const 16"
        ))
    };
    assert!(call(&talks(POLICY_HOST_CALLS_MAX), b"").outcome.is_ok());
    let error = call(&talks(POLICY_HOST_CALLS_MAX + 1), b"").outcome.unwrap_err();
    assert!(error.to_string().contains("called the host more than 64 times"), "{error}");
}

#[test]
fn compiled_code_is_kept_and_only_ours_is_believed() {
    let folder = tempfile::tempdir().unwrap();
    let wasm = module(ECHO);
    let digest = Digest::of(&wasm);
    let nobody = Helper { program: "/nonexistent".into(), arguments: Vec::new() };
    let without_helper = || {
        let cache_dir = Some(folder.path().to_owned());
        Policies::new(PolicyConfig { helper: nobody.clone(), cache_dir }).unwrap()
    };
    let kept = || {
        let entries = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path());
        entries
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("policy."))
            .collect::<Vec<_>>()
    };

    assert!(matches!(without_helper().load(digest, &wasm), Err(LoadError::Compile(_))));
    loaded(&policies(Some(folder.path())), &wasm);
    let files = kept();
    assert_eq!(files.len(), 1, "{files:?}");
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&files[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let policy = without_helper().load(digest, &wasm).unwrap();
    assert_eq!(call(&policy, b"1").outcome.unwrap(), b"1");

    // Whatever is changed, the file is not believed, and compiled anew by whoever can.
    let good = std::fs::read(&files[0]).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for broken in [&flipped[..], &good[..good.len() / 2], &good[..10], b""] {
        std::fs::write(&files[0], broken).unwrap();
        assert!(matches!(without_helper().load(digest, &wasm), Err(LoadError::Compile(_))));
    }
    // Another policy's code under this one's name.
    let other = module(ABSTAIN);
    loaded(&policies(Some(folder.path())), &other);
    let others = kept().into_iter().find(|path| *path != files[0]).unwrap();
    std::fs::copy(others, &files[0]).unwrap();
    assert!(matches!(without_helper().load(digest, &wasm), Err(LoadError::Compile(_))));

    loaded(&policies(Some(folder.path())), &wasm);
    assert_eq!(std::fs::read(&files[0]).unwrap(), good);
    // Bytes under a name that is not theirs are not even looked at.
    assert!(matches!(without_helper().load(digest, &other), Err(LoadError::Digest(_))));
}

#[test]
fn admission_runs_the_vectors_and_keeps_what_it_saw() {
    let wasm = module(ABSTAIN);
    let vector = |name: &str, expect| Vector { name: name.to_owned(), input: json!({}), expect };
    let passes = [vector("abstains", Some(json!({ "abstain": true }))), vector("anything", None)];
    let verdict = in_time::admit(&helper(), &wasm, &passes).unwrap();
    assert!(verdict.admitted, "{verdict:?}");
    assert_eq!(verdict.attributes, ["user.score"]);
    assert_eq!(verdict.vectors.len(), 2);
    assert!(verdict.vectors.iter().all(|result| result.passed && result.fuel > 0));
    assert_eq!(verdict.engine, policies(None).engine());

    let fails = [vector("answers", Some(json!({ "variant": "on" })))];
    let verdict = in_time::admit(&helper(), &wasm, &fails).unwrap();
    assert!(!verdict.admitted);
    let refused = verdict.refused.unwrap();
    assert_eq!(refused.rule, "vectors");
    assert_eq!(
        refused.message,
        r#""answers": it answered {"abstain":true}, expected was {"variant":"on"}"#
    );
}

#[test]
fn many_threads_call_one_policy_and_none_sees_another() {
    let policy = load(ECHO);
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let policy = &policy;
            scope.spawn(move || {
                for turn in 0..200u32 {
                    let input = format!("{thread}-{turn}");
                    match policy.call(input.as_bytes()).outcome {
                        Ok(answer) => assert_eq!(answer, input.as_bytes()),
                        // The one fault that a busy machine may cause.
                        Err(fault) => assert_eq!(fault, Fault::Deadline),
                    }
                }
            });
        }
    });
}
