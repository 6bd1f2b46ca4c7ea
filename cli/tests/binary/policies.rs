//! `tidegate policy` where it asks nobody: a new policy works as it is, and what is wrong is named.

use std::path::Path;

use crate::world::{Done, run, tidegate};

fn policy(folder: &Path, arguments: &[&str]) -> Done {
    run(tidegate().current_dir(folder).arg("policy").args(arguments))
}

const TEST: [&str; 4] = ["test", "fraud-guard/policy.wat", "--vectors", "fraud-guard/vectors.json"];

#[test]
fn a_new_policy_passes_its_own_vectors_and_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    policy(folder.path(), &["new", "fraud-guard"]).ok();
    policy(folder.path(), &["check", "fraud-guard/policy.wat"]).ok();
    let tested = policy(folder.path(), &TEST).ok();
    assert!(tested.out.contains("the maximum itself is not above it"), "{}", tested.out);
    assert!(tested.out.contains("reads user.score"), "{}", tested.out);

    let module = folder.path().join("fraud-guard/policy.wat");
    std::fs::write(&module, "(module)").unwrap();
    let again = policy(folder.path(), &["new", "fraud-guard"]);
    assert_ne!(again.code, 0, "{again:?}");
    assert_eq!(std::fs::read_to_string(&module).unwrap(), "(module)", "somebody wrote that");
    let bare = policy(folder.path(), &["check", "fraud-guard/policy.wat"]);
    assert_ne!(bare.code, 0, "{bare:?}");
    assert!(bare.err.contains("memory"), "{}", bare.err);
}

#[test]
fn a_vector_that_expects_something_else_fails_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    policy(folder.path(), &["new", "fraud-guard"]).ok();
    let vectors = folder.path().join("fraud-guard/vectors.json");
    let wrong = r#"[{"name": "a guess", "input": {"flag": "f", "type": "string",
        "variants": ["direct", "review"], "attributes": {"user": {"score": 7}},
        "params": {"max": 5}}, "expect": {"abstain": true}}]"#;
    std::fs::write(&vectors, wrong).unwrap();
    let tested = policy(folder.path(), &TEST);
    assert_ne!(tested.code, 0, "{tested:?}");
    let told = tested.out + &tested.err;
    assert!(told.contains("a guess") && told.contains("review"), "{told}");
}
