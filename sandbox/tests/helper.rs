//! What becomes of a caller whose helper process does not do what it should, and what the real one
//! may use.

mod in_time;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sandbox::policy::helper::{Helper, HelperError};

fn shell(script: &str) -> Helper {
    Helper { program: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script.to_owned()] }
}

/// What a script that does not wait for anything ends with.
fn failed(script: &str) -> HelperError {
    let compile = || shell(script).compile(b"").unwrap_err();
    in_time::in_time(compile, |error| matches!(error, HelperError::Time))
}

#[test]
fn a_helper_that_never_answers_is_stopped() {
    // It reads nothing either.
    let error = shell("exec sleep 600").compile(&[0; 200_000]).unwrap_err();
    assert!(matches!(error, HelperError::Time), "{error:?}");
    let verdict = shell("exec sleep 600").admit(b"", &[]).unwrap();
    assert!(!verdict.admitted);
    assert_eq!(verdict.refused.unwrap().rule, "time");
}

/// Nobody waits for pipes that somebody else keeps open.
#[test]
fn a_helper_that_leaves_a_child_behind_is_stopped_all_the_same() {
    let started = Instant::now();
    let error = shell("sleep 120 & wait").compile(b"").unwrap_err();
    assert!(matches!(error, HelperError::Time), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(100), "it waited for the child");
}

/// It may work for as long as it may last, and the kernel's clock may be the first.
#[test]
fn a_helper_that_is_killed_as_its_time_runs_out_took_too_long() {
    let error = shell("sleep 4.95; kill -KILL $$").compile(b"").unwrap_err();
    assert!(matches!(error, HelperError::Time), "{error:?}");
}

#[test]
fn a_helper_that_answers_without_end_is_stopped() {
    let error = failed("exec yes");
    assert!(matches!(error, HelperError::Answer { .. }), "{error:?}");
}

#[test]
fn a_module_that_takes_its_helper_down_is_refused() {
    let script = shell("cat > /dev/null; kill -SEGV $$");
    let verdict = in_time::admit(&script, b"", &[]).unwrap();
    assert!(!verdict.admitted);
    let refused = verdict.refused.unwrap();
    assert_eq!(refused.rule, "resources");
    assert!(refused.message.contains("signal: 11"), "{refused}");
}

#[test]
fn a_helper_that_cannot_run_is_no_verdict() {
    let missing = Helper { program: "/nonexistent".into(), arguments: Vec::new() };
    assert!(matches!(missing.admit(b"", &[]), Err(HelperError::Start { .. })));
    for script in ["exit 3", "exit 0", "cat", "echo nonsense"] {
        let error = in_time::admit(&shell(script), b"", &[]).unwrap_err();
        assert!(matches!(error, HelperError::Answer { .. }), "{script}: {error:?}");
    }
}

#[test]
fn a_helper_sees_none_of_our_settings() {
    let error = failed("env >&2; exit 3").to_string();
    assert!(!error.contains("CARGO") && !error.contains("HOME="), "{error}");
}

/// What each attempt ended with, by name.
fn probed(argument: &str) -> std::collections::BTreeMap<String, String> {
    let out = Command::new(env!("CARGO_BIN_EXE_tidegate-sandbox-helper"))
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let told = String::from_utf8(out.stdout).unwrap();
    let pairs = told.lines().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{told}")));
    pairs.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

/// In the helper's own process, at the place where it would look at a stranger's bytes.
#[cfg(target_os = "linux")]
#[test]
fn a_module_that_got_out_could_open_start_signal_and_reach_nothing() {
    const EPERM: &str = "1";
    let (free, confined) = (probed("probe-free"), probed("probe"));
    assert_eq!(confined.len(), 19, "{confined:?}");
    for (attempt, outcome) in &confined {
        assert_eq!(outcome, EPERM, "{attempt}, in {confined:?}");
    }
    // The same attempts without the filter, so that it is known what forbids them. Two are forbidden
    // in some containers anyway.
    let known = |attempt: &str| attempt != "trace another" && attempt != "read another's memory";
    for (attempt, outcome) in free.iter().filter(|(attempt, _)| known(attempt)) {
        assert_ne!(outcome, EPERM, "{attempt}, in {free:?}");
    }
    assert_eq!(free["start a process"], "done");
    assert_eq!(free["run a program"], "done");
}

/// Where lines of the log go.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_kernel_without_filters_is_named_once_and_still_admits() {
    let helper = |argument: &[&str]| Helper {
        program: env!("CARGO_BIN_EXE_tidegate-sandbox-helper").into(),
        arguments: argument.iter().map(|text| (*text).to_owned()).collect(),
    };
    let policy =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/wat/policy.wat");
    let wasm = wat::parse_file(policy).unwrap();
    let lines = Lines::default();
    let to = lines.clone();
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(move || to.clone()).finish();
    tracing::subscriber::with_default(log, || {
        assert!(in_time::admit(&helper(&[]), &wasm, &[]).unwrap().admitted);
        assert_eq!(lines.0.lock().unwrap().len(), 0, "where there are filters nothing is said");
        for _ in 0..2 {
            let unfiltered = helper(&["without-seccomp"]);
            assert!(in_time::admit(&unfiltered, &wasm, &[]).unwrap().admitted);
        }
    });
    let said = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("WARN") && said.contains("not implemented"), "{said}");
}

/// The limits are there before the first byte of a stranger is read.
#[test]
fn the_helper_process_limits_itself_before_it_reads() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_tidegate-sandbox-helper"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let file = format!("/proc/{}/limits", child.id());
    let wanted = [
        ("Max address space", "536870912"),
        ("Max cpu time", "5"),
        ("Max core file size", "0"),
        ("Max open files", "32"),
        ("Max file size", "4194304"),
        ("Max processes", "0"),
    ];
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        let limits = std::fs::read_to_string(&file).unwrap();
        let has = |(name, value): &(&str, &str)| {
            limits.lines().any(|line| {
                line.strip_prefix(name).is_some_and(|rest| {
                    rest.split_whitespace().take(2).all(|found| found == *value)
                })
            })
        };
        if wanted.iter().all(has) {
            break;
        }
        assert!(Instant::now() < until, "{limits}");
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}
