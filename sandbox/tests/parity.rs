//! Every case of the conformance corpus gives the same bytes in wasmtime as natively.

#[path = "../../rules/tests/corpus/mod.rs"]
mod corpus;

use std::sync::Arc;
use std::time::Duration;

use rules::answer::{write_all, write_one};
use rules::context::ContextBuf;
use rules::eval::{Evaluator, Input, Scratch};
use sandbox::{Sandbox, SandboxConfig};

/// The embedded evaluator; without it there is nothing to compare, which is a failure.
fn sandbox() -> Arc<Sandbox> {
    // What is compared is bytes: a call that was not scheduled for a while is none that failed.
    let deadline = Duration::from_secs(20);
    match Sandbox::new(SandboxConfig { deadline, ..SandboxConfig::default() }) {
        Ok(sandbox) => sandbox,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_corpus_gives_the_same_bytes_in_the_sandbox_as_natively() {
    let sandbox = sandbox();
    let mut compared = 0;
    for file in corpus::load() {
        let native = Evaluator::load(&file.ruleset).expect("the corpus loads");
        let lists = Arc::new(file.host.clone());
        let guest = sandbox
            .load(file.ruleset.clone().into(), lists)
            .unwrap_or_else(|error| panic!("{}: {error}", file.name));
        let mut scratch = Scratch::default();
        for case in &file.cases {
            let place = format!("{}: {}", file.name, case.name);
            // As in the native run, where each of them is.
            let context = ContextBuf::from_json(&case.context)
                .unwrap_or_else(|error| panic!("{place}: its context: {error}"));
            let input = Input { context: context.view(), now_ms: case.now_ms, host: &file.host };
            let (mut expected, mut got) = (Vec::new(), Vec::new());
            let status =
                write_one(&native, &case.flag, case.audience, &input, &mut scratch, &mut expected);
            let answered = guest
                .evaluate_one(&case.flag, case.audience, &context, case.now_ms, &mut got)
                .unwrap_or_else(|error| panic!("{}: {}: {error}", file.name, case.name));
            same(&got, &expected, &format!("{}: {}", file.name, case.name));
            assert_eq!(answered, status, "{}: {}", file.name, case.name);

            let (mut expected, mut got) = (Vec::new(), Vec::new());
            write_all(&native, case.audience, &input, &mut scratch, &mut expected);
            guest
                .evaluate_all(case.audience, &context, case.now_ms, &mut got)
                .unwrap_or_else(|error| panic!("{}: {}: {error}", file.name, case.name));
            same(&got, &expected, &format!("all of {}: {}", file.name, case.name));
            compared += 1;
        }
    }
    println!("{compared} cases compared, one flag and all flags each");
    // A little below what there were when this was written, so that none go missing unseen.
    assert!(compared >= 1_900, "only {compared} cases were compared");
}

/// A hundred flags are too much to read: shows the surroundings of the first difference.
fn same(got: &[u8], expected: &[u8], place: &str) {
    let Some(first) = got
        .iter()
        .zip(expected)
        .position(|(one, other)| one != other)
        .or((got.len() != expected.len()).then_some(got.len().min(expected.len())))
    else {
        return;
    };
    let around = |bytes: &[u8]| {
        let (from, to) = (first.saturating_sub(120), bytes.len().min(first + 120));
        String::from_utf8_lossy(&bytes[from..to]).into_owned()
    };
    panic!(
        "{place}: at byte {first}\n  sandbox: …{}…\n   native: …{}…\n\
         If the rules changed since `cargo xtask wasm`, run it again.",
        around(got),
        around(expected)
    );
}
