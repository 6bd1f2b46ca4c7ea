//! `tidegate policy`: a new policy works as it is, what is wrong is named, and the versions of one
//! come, run beside each other, and go.

use std::path::Path;

use serde_json::json;

use crate::world::{Dev, Done, run_in_time, tidegate, until};

fn policy(folder: &Path, arguments: &[&str]) -> Done {
    run_in_time(tidegate().current_dir(folder).arg("policy").args(arguments))
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

#[test]
fn versions_of_a_policy_come_run_beside_each_other_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    policy(folder.path(), &["new", "first"]).ok();
    policy(folder.path(), &["new", "second"]).ok();
    let other = folder.path().join("second/policy.wat");
    let text = std::fs::read_to_string(&other).unwrap();
    // It says another reason, so its bytes and its digest are others.
    std::fs::write(&other, text.replace("the score is above", "its score is above")).unwrap();

    let ask = |arguments: &[&str]| {
        let mut command = tidegate();
        command.current_dir(folder.path()).env("TIDEGATE_DIR", &dev.dir).arg("policy");
        run_in_time(command.args(arguments))
    };
    let uploaded = |arguments: &[&str]| {
        let body = ask(&[&["upload", "guard", "-o", "json"], arguments].concat()).ok().json();
        (body["digest"].as_str().unwrap().to_owned(), body)
    };
    let vectors = ["--vectors", "first/vectors.json"];
    let (first, body) = uploaded(&[&["first/policy.wat"][..], &vectors, &["--pin"]].concat());
    assert_eq!(body["pin"]["digest"], first, "{body}");
    assert_eq!(body["verdict"]["vectors"].as_array().unwrap().len(), 6, "{body}");
    // These vectors expect the reason that it does not say any more.
    let refused =
        ask(&[&["upload", "guard", "second/policy.wat"][..], &vectors].concat()).failed(4);
    assert!(refused.err.contains("a score above the maximum is reviewed"), "{refused:?}");
    let (second, body) = uploaded(&["second/policy.wat"]);
    assert!(first != second && body.get("pin").is_none(), "{body}");

    let differs = ask(&["diff", "guard", &second[..12]]).ok().out;
    assert!(differs.contains("vectors passed") && differs.contains("6 of 6"), "{differs}");
    assert!(!differs.contains("reads"), "{differs}");
    let same = ask(&["diff", "guard", &first[..12], &first]).ok().out;
    assert!(same.contains("the same"), "{same}");

    ask(&["promote", "guard"]).failed(4);
    ask(&["shadow", "guard", &second[..12], "--percent", "50"]).ok();
    let pins = ask(&["stats", "-o", "json"]).ok().json();
    let shadow = json!({ "digest": second, "share": 50_000 });
    assert_eq!(pins["items"][0]["shadow"], shadow, "{pins}");
    let promoted = ask(&["promote", "guard", "-o", "json"]).ok().json();
    assert_eq!((&promoted["digest"], &promoted["previousDigest"]), (&json!(second), &json!(first)));
    let back = ask(&["rollback", "guard", "-o", "json"]).ok().json();
    assert_eq!(back["digest"], first.as_str(), "{back}");

    let rules = folder.path().join("flag.json");
    let config = json!({ "enabled": true, "fallthrough": { "variant": "direct" },
        "rules": [{ "id": "guard", "policy": { "name": "guard", "params": { "max": 5 } } }] });
    std::fs::write(&rules, config.to_string()).unwrap();
    let variants = ["--variant", "direct", "--variant", "review"];
    let create = ["flag", "create", "guarded", "--type", "string"];
    dev.tidegate(&[&create[..], &variants].concat()).ok();
    dev.tidegate(&["flag", "create", "guarded"]).failed(5);
    let set = ["flag", "set", "guarded", "--file", rules.to_str().unwrap()];
    dev.tidegate(&[&set[..], &["--wait", "60"]].concat()).ok();
    let context = json!({ "targetingKey": "u", "user": { "score": 7 } });
    until("the policy's answer", || {
        let (status, answer) = dev.ofrep("server_key", "guarded", context.clone());
        ((status, &answer["value"]) == (200, &json!("review"))).then_some(())
    });
    until("the edge tells its counts", || {
        let rows = ask(&["stats", "-o", "json"]).ok().json();
        let calls = rows.pointer("/items/0/edges/0/calls").and_then(|calls| calls.as_u64());
        calls.filter(|calls| *calls > 0)
    });
    let table = ask(&["stats"]).ok().out;
    assert!(table.contains("guard"), "{table}");

    let needed = ask(&["unpin", "guard"]).failed(5);
    assert!(needed.err.contains("guard"), "{needed:?}");
    let plain = json!({ "enabled": true, "fallthrough": { "variant": "direct" } });
    std::fs::write(&rules, plain.to_string()).unwrap();
    dev.tidegate(&set).ok();
    ask(&["unpin", "guard"]).ok();
    ask(&["diff", "guard", &first]).failed(3);
}
