//! What happens to instances: guests that misbehave in every way the ABI allows, budgets, threads.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};
use std::time::{Duration, Instant};

use rules::answer::{Audience, Status};
use rules::blob::encode_ruleset;
use rules::compile::{EnvironmentState, FlagState, SegmentState, compile};
use rules::context::ContextBuf;
use rules::eval::{Host, NoHost};
use sandbox::{Environment, Sandbox, SandboxConfig, SandboxError};
use serde_json::json;

/// A guest that speaks the ABI and does what the flag's key begins with: `l`oops, `t`raps,
/// `g`rows until it may not and traps, `r`ecurses, answers from `b`eyond its memory, `a`sks its host and
/// loops if that says yes, `w`aits for its host and then counts to ten, or is fine. It asks its host when
/// it loads, too.
/// It counts the calls of the instance, which the answer's body says.
const GUEST: &str = r#"(module
  (import "tidegate" "list_contains" (func $ask (param i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (global $calls (mut i32) (i32.const 0))
  (func (export "tg_abi") (result i32) i32.const 1)
  (func (export "tg_buffer") (param i32) (result i32) i32.const 1024)
  (func (export "tg_load") (param i32) (result i64)
    (drop (call $ask (i32.const 7) (i32.const 0) (i32.const 0)))
    (i64.const 0))
  (func $recurse (param i32) (result i32)
    (i32.add (i32.const 1) (call $recurse (i32.add (local.get 0) (i32.const 1)))))
  (func (export "tg_evaluate") (param $len i32) (param $now i64) (result i64)
    (local $what i32) (local $counted i32)
    (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
    (local.set $what (i32.load8_u (i32.const 1028)))
    (if (i32.eq (local.get $what) (i32.const 97)) (then
      (if (call $ask (i32.const 0) (i32.const 0) (i32.const 0)) (then (loop $again (br $again))))))
    (if (i32.eq (local.get $what) (i32.const 119)) (then
      (drop (call $ask (i32.const 0) (i32.const 0) (i32.const 0)))
      (loop $count
        (local.set $counted (i32.add (local.get $counted) (i32.const 1)))
        (br_if $count (i32.lt_u (local.get $counted) (i32.const 10))))))
    (if (i32.eq (local.get $what) (i32.const 108)) (then (loop $again (br $again))))
    (if (i32.eq (local.get $what) (i32.const 116)) (then unreachable))
    (if (i32.eq (local.get $what) (i32.const 103)) (then
      (loop $more
        (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))
        unreachable)))
    (if (i32.eq (local.get $what) (i32.const 114)) (then (drop (call $recurse (i32.const 0)))))
    (if (i32.eq (local.get $what) (i32.const 98)) (then
      (return (i64.const 0x7fffffff_00000010))))
    ;; 200, and the number of calls as a digit
    (i32.store16 (i32.const 0) (i32.const 200))
    (i32.store8 (i32.const 2) (i32.add (i32.const 48) (global.get $calls)))
    (i64.const 3)))"#;

fn config() -> SandboxConfig {
    SandboxConfig {
        evaluator: Some(wat::parse_str(GUEST).expect("the guest parses")),
        // By the wall clock: not so short that a thread which is stopped for a moment misses it.
        deadline: Duration::from_millis(500),
        instance_bytes_max: 4 * 1024 * 1024,
        workers: 1,
        ..SandboxConfig::default()
    }
}

fn environment(config: SandboxConfig) -> Arc<Environment> {
    let sandbox = Sandbox::new(config).expect("the guest compiles");
    sandbox.load(Arc::from(&b"anything"[..]), Arc::new(NoHost)).expect("the guest takes anything")
}

fn ask(environment: &Environment, key: &str) -> Result<String, SandboxError> {
    let mut out = Vec::new();
    environment.evaluate_one(key, Audience::Server, &ContextBuf::default(), 0, &mut out)?;
    Ok(String::from_utf8(out).expect("text"))
}

/// After the failure the next call has a new instance, which counts from one again.
fn fails_once(key: &str) -> SandboxError {
    let environment = environment(config());
    assert_eq!(ask(&environment, "fine").expect("a first call"), "1");
    assert_eq!(ask(&environment, "fine").expect("the same instance"), "2");
    let error = ask(&environment, key).expect_err("it misbehaves");
    assert_eq!(environment.instances(), 0, "the instance that failed is gone");
    assert_eq!(ask(&environment, "fine").expect("a healthy instance"), "1");
    error
}

#[test]
fn a_loop_without_end_is_stopped_at_its_deadline() {
    assert!(matches!(fails_once("loop"), SandboxError::Deadline));
}

#[test]
fn a_call_whose_thread_was_not_let_run_is_not_stopped_for_it() {
    let deadline = Duration::from_millis(100);
    let (environment, host) = scripted(SandboxConfig { deadline, ..config() });
    host.rests_ms.store(500, Ordering::SeqCst);
    assert_eq!(ask(&environment, "wait").expect("it did next to nothing"), "1");
    host.says_yes.store(true, Ordering::SeqCst);
    let endless = ask(&environment, "ask").expect_err("it loops");
    assert!(matches!(endless, SandboxError::Deadline), "{endless:?}");
}

#[test]
fn a_trapped_instance_is_never_used_again() {
    assert!(matches!(fails_once("trap"), SandboxError::Trapped(_)));
}

#[test]
fn memory_grows_to_the_cap_of_an_instance_and_not_beyond() {
    assert!(matches!(fails_once("grow"), SandboxError::Trapped(_)));
}

#[test]
fn a_recursion_without_end_overflows_the_guests_stack_only() {
    assert!(matches!(fails_once("recurse"), SandboxError::Trapped(_)));
}

#[test]
fn an_answer_from_beyond_the_guests_memory_is_refused() {
    assert!(matches!(fails_once("beyond"), SandboxError::Abi));
}

#[test]
fn memory_is_given_back_with_the_instance_and_with_the_environment() {
    let sandbox = Sandbox::new(config()).expect("the guest compiles");
    let load = || sandbox.load(Arc::from(&b"anything"[..]), Arc::new(NoHost)).expect("it loads");
    let environment = load();
    assert_eq!(sandbox.memory_bytes(), 64 * 1024);
    ask(&environment, "grow").expect_err("it grows until it may not");
    assert_eq!(sandbox.memory_bytes(), 0);
    ask(&environment, "fine").expect("a new instance");
    assert_eq!(sandbox.memory_bytes(), 64 * 1024);
    sandbox.trim(Duration::ZERO);
    assert_eq!(sandbox.memory_bytes(), 0);
    assert_eq!(ask(&environment, "fine").expect("made again"), "1");
    drop(environment);
    assert_eq!(sandbox.memory_bytes(), 0);
}

#[test]
fn over_the_budget_idle_instances_of_the_least_recently_used_environment_go_first() {
    let sandbox = Sandbox::new(SandboxConfig { total_bytes_max: 128 * 1024, ..config() });
    let sandbox = sandbox.expect("the guest compiles");
    let load = || sandbox.load(Arc::from(&b"anything"[..]), Arc::new(NoHost)).expect("it loads");
    let (first, second) = (load(), load());
    ask(&first, "fine").expect("it has its instance");
    let third = load();
    assert_eq!((first.instances(), second.instances(), third.instances()), (1, 0, 1));
    assert_eq!(ask(&second, "fine").expect("made again at the cost of another"), "1");
    assert_eq!(sandbox.memory_bytes(), 128 * 1024);
}

#[test]
fn a_budget_that_holds_nothing_is_an_error_that_says_so() {
    let sandbox = Sandbox::new(SandboxConfig { total_bytes_max: 1024, ..config() });
    let loaded = sandbox.expect("it compiles").load(Arc::from(&b"anything"[..]), Arc::new(NoHost));
    assert!(matches!(loaded, Err(SandboxError::Budget { bytes_max: 1024 })), "{loaded:?}");
}

#[test]
fn a_module_that_is_no_evaluator_is_refused_at_the_start() {
    for text in ["(module)", "(module (import \"wasi\" \"fd_write\" (func)))"] {
        let evaluator = Some(wat::parse_str(text).expect("it parses"));
        let config = SandboxConfig { evaluator, ..SandboxConfig::default() };
        let refused = match Sandbox::new(config) {
            Err(error) => error,
            Ok(sandbox) => {
                sandbox.load(Arc::from(&b""[..]), Arc::new(NoHost)).expect_err("it exports nothing")
            }
        };
        assert!(
            matches!(refused, SandboxError::Evaluator { .. } | SandboxError::Abi),
            "{refused:?}"
        );
    }
}

/// What the host does when the guest asks it.
#[derive(Default)]
struct Scripted {
    /// Panics when the list of this number is asked for.
    panics_at: AtomicU32,
    /// Whether the guest loops then.
    says_yes: AtomicBool,
    /// How long the thread has no processor then.
    rests_ms: AtomicU32,
    asked: AtomicU32,
    /// Leads back into this one.
    re_enters: OnceLock<Weak<Environment>>,
    inner: Mutex<Option<Result<String, SandboxError>>>,
}

impl Scripted {
    const NEVER: u32 = u32::MAX;

    fn new() -> Arc<Scripted> {
        let host = Scripted::default();
        host.panics_at.store(Scripted::NEVER, Ordering::SeqCst);
        Arc::new(host)
    }
}

impl Host for Scripted {
    fn list_contains(&self, list: u32, _: &str) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        assert_ne!(self.panics_at.load(Ordering::SeqCst), list, "as this test wants it");
        if list == 0
            && let Some(environment) = self.re_enters.get().and_then(Weak::upgrade)
        {
            *self.inner.lock().expect("a lock") = Some(ask(&environment, "fine"));
        }
        let rested =
            Instant::now() + Duration::from_millis(self.rests_ms.load(Ordering::SeqCst).into());
        while let Some(rest) = rested.checked_duration_since(Instant::now()) {
            std::thread::park_timeout(rest);
        }
        self.says_yes.load(Ordering::SeqCst)
    }
}

fn scripted(config: SandboxConfig) -> (Arc<Environment>, Arc<Scripted>) {
    let host = Scripted::new();
    let sandbox = Sandbox::new(config).expect("the guest compiles");
    let loaded = sandbox.load(Arc::from(&b"anything"[..]), host.clone());
    (loaded.expect("the guest takes anything"), host)
}

fn panics(environment: &Environment, key: &str) -> bool {
    let call = std::panic::AssertUnwindSafe(|| ask(environment, key));
    std::panic::catch_unwind(call).is_err()
}

#[test]
fn a_host_that_panics_costs_the_instance_and_not_its_place() {
    let (environment, host) = scripted(config());
    assert_eq!(ask(&environment, "ask").expect("a first call"), "1");
    for _ in 0..3 {
        host.panics_at.store(0, Ordering::SeqCst);
        assert!(panics(&environment, "ask"), "in an evaluation");
        assert_eq!(environment.instances(), 0, "the instance that it went through is gone");
        host.panics_at.store(7, Ordering::SeqCst);
        assert!(panics(&environment, "fine"), "while the next one is made");
        assert_eq!(environment.instances(), 0, "what was never made has no place");
        host.panics_at.store(Scripted::NEVER, Ordering::SeqCst);
        assert_eq!(ask(&environment, "ask").expect("a healthy instance"), "1");
    }
}

#[test]
fn a_host_that_leads_back_into_the_environment_gets_another_instance_or_none() {
    let (environment, host) = scripted(SandboxConfig { workers: 2, ..patient() });
    host.re_enters.set(Arc::downgrade(&environment)).expect("once");
    assert_eq!(ask(&environment, "fine").expect("a first call"), "1");
    assert_eq!(ask(&environment, "ask").expect("the outer one"), "2");
    let inner = host.inner.lock().expect("a lock").take().expect("it was called");
    assert_eq!(inner.expect("the inner one"), "1", "an instance of its own");
    assert_eq!(environment.instances(), 2);

    // With one place the inner call is told that it is taken, rather than waiting for itself.
    let (environment, host) = scripted(config());
    host.re_enters.set(Arc::downgrade(&environment)).expect("once");
    // The time that the host took is the call's own.
    let _ = ask(&environment, "ask");
    let inner = host.inner.lock().expect("a lock").take().expect("it was called");
    assert!(matches!(inner, Err(SandboxError::Busy)), "{inner:?}");
    ask(&environment, "fine").expect("the place is there again");
    assert_eq!(environment.instances(), 1);
}

/// By the wall clock: long enough for a call on a machine that is busy with other tests.
fn patient() -> SandboxConfig {
    SandboxConfig { deadline: Duration::from_secs(20), ..config() }
}

#[test]
fn whoever_waits_behind_a_call_that_never_ends_is_answered_after_its_deadline() {
    let (environment, host) = scripted(config());
    let asked = host.asked.load(Ordering::SeqCst);
    host.says_yes.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        let endless = scope.spawn(|| ask(&environment, "ask"));
        while host.asked.load(Ordering::SeqCst) == asked {
            std::thread::yield_now();
        }
        let answered = loop {
            let was_over = endless.is_finished();
            match ask(&environment, "fine") {
                // The one before is stopped by a clock that may be late, and patience by one that is not.
                Err(SandboxError::Busy) if !was_over => {}
                answered => break answered,
            }
        };
        assert_eq!(answered.expect("a healthy instance"), "1");
        let ended = endless.join().expect("no panic");
        assert!(matches!(ended, Err(SandboxError::Deadline)), "{ended:?}");
    });
}

#[test]
fn snapshots_are_swapped_under_load_and_each_call_sees_one() {
    let sandbox = Sandbox::new(SandboxConfig { evaluator: None, ..patient() });
    let sandbox = sandbox.expect("the evaluator compiles");
    // Who is a member says which snapshot answered.
    let hosts: [Arc<dyn Host + Send + Sync>; 2] = [Arc::new(Ada), Arc::new(NoHost)];
    let load =
        |which: usize| sandbox.load(ruleset().into(), hosts[which].clone()).expect("it loads");
    let served = RwLock::new((0, load(0)));
    let (stop, answers) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::SeqCst) {
                    let (which, environment) = served.read().expect("a lock").clone();
                    assert_eq!(value_for(&environment, "ada"), json!(which == 0));
                    answers.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let began = Instant::now();
        for swap in 1..=20 {
            let before = answers.load(Ordering::SeqCst);
            let which = swap % hosts.len();
            let next = load(which);
            *served.write().expect("a lock") = (which, next);
            // Those that failed answer no more.
            while answers.load(Ordering::SeqCst) < before + 20 && began.elapsed().as_secs() < 120 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    assert!(answers.load(Ordering::SeqCst) >= 20 * 20, "{answers:?} answers");
    drop(served);
    assert_eq!(sandbox.memory_bytes(), 0, "nothing of the former ones is left");
}

fn real() -> Arc<Sandbox> {
    let deadline = Duration::from_secs(20);
    match Sandbox::new(SandboxConfig { workers: 2, deadline, ..SandboxConfig::default() }) {
        Ok(sandbox) => sandbox,
        Err(error) => panic!("{error}"),
    }
}

/// One boolean flag that is on for members of one segment with an id list.
fn ruleset() -> Vec<u8> {
    let flag = FlagState {
        definition: serde_json::from_value(json!({
            "key": "beta", "type": "boolean", "variants": { "on": true, "off": false },
        }))
        .expect("a definition"),
        config: serde_json::from_value(json!({
            "enabled": true,
            "rules": [{ "id": "members", "when": { "segment": "members" },
                        "serve": { "variant": "on" } }],
            "fallthrough": { "variant": "off" },
        }))
        .expect("a configuration"),
    };
    let segment = serde_json::from_value(json!({ "key": "members" })).expect("a segment");
    let segments = vec![SegmentState { segment, has_included: true, has_excluded: false }];
    let state = EnvironmentState { flags: vec![flag], segments, ..Default::default() };
    encode_ruleset(&compile(&state).expect("it compiles").ruleset)
}

struct Ada;

impl Host for Ada {
    fn list_contains(&self, list: u32, id: &str) -> bool {
        list == 0 && id == "ada"
    }
}

fn value_for(environment: &Environment, targeting_key: &str) -> serde_json::Value {
    let context = json!({ "targetingKey": targeting_key }).to_string();
    let context = ContextBuf::from_json(context.as_bytes()).expect("a context");
    let mut out = Vec::new();
    let status = environment.evaluate_one("beta", Audience::Server, &context, 0, &mut out);
    assert_eq!(status.expect("it answers"), Status::Ok);
    let answer: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
    answer["value"].clone()
}

#[test]
fn membership_in_id_lists_is_asked_of_the_host() {
    let environment = real().load(ruleset().into(), Arc::new(Ada)).expect("it loads");
    assert_eq!(value_for(&environment, "ada"), json!(true));
    assert_eq!(value_for(&environment, "bob"), json!(false));
}

#[test]
fn a_damaged_ruleset_is_refused_with_the_reason() {
    let mut damaged = ruleset();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    let refused = real().load(damaged.into(), Arc::new(NoHost)).expect_err("it is damaged");
    assert!(refused.to_string().contains("checksum"), "{refused}");
}

#[test]
fn many_threads_share_a_few_instances_and_all_are_answered() {
    // Whoever waits for an instance waits for the deadline at most, by the wall clock, and eight threads may
    // take turns on one core.
    let deadline = Duration::from_secs(20);
    let config = SandboxConfig { workers: 2, deadline, ..SandboxConfig::default() };
    let sandbox = Sandbox::new(config).expect("the evaluator compiles");
    let environment = sandbox.load(ruleset().into(), Arc::new(Ada)).expect("it loads");
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let environment = &environment;
            scope.spawn(move || {
                for call in 0..500 {
                    let (key, value) =
                        if (thread + call) % 2 == 0 { ("ada", true) } else { ("bob", false) };
                    assert_eq!(value_for(environment, key), json!(value));
                }
            });
        }
    });
    assert!(environment.instances() <= 2, "{}", environment.instances());
}

#[test]
fn long_keys_and_contexts_fit_through_the_door() {
    let environment = real().load(ruleset().into(), Arc::new(Ada)).expect("it loads");
    let long = "x".repeat(60_000);
    assert_eq!(value_for(&environment, &long), json!(false));
    assert_eq!(value_for(&environment, "ada"), json!(true));
    let mut out = Vec::new();
    let status =
        environment.evaluate_one(&long, Audience::Server, &ContextBuf::default(), 0, &mut out);
    assert_eq!(status.expect("it answers"), Status::NotFound);
}

#[test]
fn compiled_code_is_read_back_only_as_this_machine_wrote_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = || SandboxConfig { cache_dir: Some(folder.path().join("compiled")), ..config() };
    let answers = |config: SandboxConfig| ask(&environment(config), "fine").expect("it answers");
    assert_eq!(answers(config()), "1");
    let code = || {
        let files = std::fs::read_dir(folder.path().join("compiled")).expect("the cache");
        let files = files.map(|file| file.expect("a file").path());
        let is_code = |path: &std::path::PathBuf| !path.ends_with("compiled.key");
        let code: Vec<_> = files.filter(is_code).collect();
        assert_eq!(code.len(), 1, "{code:?}");
        code.into_iter().next().expect("one")
    };
    let good = std::fs::read(code()).expect("readable");

    // A byte of the code changed: a MAC that does not hold, compiled anew, written over.
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(code(), &damaged).expect("writable");
    assert_eq!(answers(config()), "1");
    assert_ne!(std::fs::read(code()).expect("readable"), damaged);

    // Cut short, even to less than a MAC.
    std::fs::write(code(), &good[..20]).expect("writable");
    assert_eq!(answers(config()), "1");

    // Another key: what was written under the old one is not ours.
    std::fs::write(folder.path().join("compiled/compiled.key"), [7u8; 32]).expect("writable");
    assert_eq!(answers(config()), "1");

    // A folder that cannot be made costs the cache only.
    let file = folder.path().join("file");
    std::fs::write(&file, b"").expect("writable");
    let blocked = SandboxConfig { cache_dir: Some(file.join("compiled")), ..config() };
    assert_eq!(answers(blocked), "1");
}
