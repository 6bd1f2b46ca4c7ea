//! The commands against a running `tidegate dev`: what they print, and every exit code.

use crate::ports;
use crate::world::{Dev, run, tidegate, until};
use serde_json::{Value, json};

#[test]
fn dev_is_seeded_and_answers_over_ofrep_with_both_keys() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());

    let path = dev.dir.join("dev.json");
    let file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let fields: Vec<&String> = file.as_object().unwrap().keys().collect();
    assert_eq!(
        fields,
        [
            "control_url",
            "edge_url",
            "namespace",
            "environment",
            "admin_token",
            "server_key",
            "browser_key",
            "public_key"
        ]
    );
    assert!(file["public_key"].as_str().is_some_and(|key| key.starts_with("ed25519:")), "{file}");
    assert_eq!(file, dev.server.said);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let staff = json!({"targetingKey": "user-1", "email": "ann@example.com"});
    let (status, body) = until("the edge knows its flags", || {
        Some(dev.ofrep("server_key", "checkout", staff.clone())).filter(|(code, _)| *code == 200)
    });
    assert_eq!((status, &body["value"]), (200, &json!("one-page")), "{body}");
    assert_eq!(body["reason"], "TARGETING_MATCH", "{body}");

    let (status, body) = dev.ofrep("server_key", "cartFailure", json!({}));
    assert_eq!((status, &body["reason"]), (200, &json!("STATIC")), "{body}");

    let (status, body) = dev.ofrep("browser_key", "upload-limit-mb", json!({"plan": "pro"}));
    assert_eq!((status, &body["value"]), (200, &json!(250)), "{body}");
    let (status, body) = dev.ofrep("browser_key", "search%2Franking", json!({}));
    assert_eq!(status, 404, "a flag that is not for clients does not exist for a browser: {body}");
}

#[test]
fn a_flag_that_is_set_is_served_by_the_edge_and_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    let subject = json!({"targetingKey": "user-1"});

    until("the edge reports", || {
        let done = dev.tidegate(&["flag", "set", "adFailure", "--variant", "off", "--wait", "1"]);
        done.out.contains("live on 1 of 1 edges").then_some(())
    });
    let done = dev.tidegate(&["flag", "set", "adFailure", "--variant", "on", "--wait", "60"]).ok();
    assert!(done.out.contains("everybody else: off → on"), "{done:?}");
    assert!(done.out.contains("live on 1 of 1 edges"), "{done:?}");
    // At once: the command has waited.
    let (_, body) = dev.ofrep("server_key", "adFailure", subject.clone());
    assert_eq!(body["value"], true, "{body}");
    dev.tidegate(&["flag", "off", "payments-up"]).ok();
    until("a flag falls back with its prerequisite", || {
        let staff = json!({"targetingKey": "u", "email": "ann@example.com"});
        let (_, body) = dev.ofrep("server_key", "checkout", staff);
        (body["value"] == "three-pages").then_some(())
    });

    let before = dev.server.said.clone();
    let Dev { server, .. } = dev;
    assert_eq!(server.terminate(), 0);
    let dev = Dev::start(folder.path());
    for kept in ["admin_token", "server_key", "browser_key"] {
        assert_eq!(dev.server.said[kept], before[kept], "{kept}");
    }
    until("the old keys and flags are served again", || {
        let (_, body) = dev.ofrep("server_key", "adFailure", subject.clone());
        (body["value"] == true).then_some(())
    });
    let listed = dev.tidegate(&["flag", "get", "payments-up", "--output", "json"]).ok().json();
    assert_eq!(listed["config"]["enabled"], false);
}

#[test]
fn commands_print_for_people_and_for_programs() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());

    let list = dev.tidegate(&["flag", "list"]).ok().out;
    let checkout = list.lines().find(|line| line.starts_with("checkout ")).unwrap();
    assert_eq!(
        checkout.split_whitespace().collect::<Vec<_>>(),
        ["checkout", "string", "on", "2", "classic"]
    );
    assert!(!list.contains('\x1b'), "colour without a terminal");
    let items = dev.tidegate(&["flag", "list", "-o", "json"]).ok().json();
    assert!(items.as_array().unwrap().len() >= 20, "{items}");

    let shown = dev.tidegate(&["flag", "get", "search/ranking"]).ok().out;
    assert!(shown.contains("experiment: if session exists"), "{shown}");

    let args = ["eval", "checkout", "-k", "user-1", "-a", "email=ann@example.com", "--explain"];
    let explained = dev.tidegate(&args).ok().out;
    let mut lines = explained.lines();
    assert_eq!(
        lines.next(),
        Some("checkout = \"one-page\"  variant express  reason TARGETING_MATCH")
    );
    assert!(explained.contains("✓ prerequisite payments-up serves on"), "{explained}");
    assert!(explained.contains("✓ rule staff"), "{explained}");

    let all = dev.tidegate(&["eval", "-k", "user-1", "-o", "json"]).ok().json();
    assert!(all["results"].as_array().unwrap().len() >= 20, "{all}");

    let at_edge = until("the edge answers", || {
        let done = dev.tidegate(&["eval", "upload-limit-mb", "-a", "plan=pro", "--at-edge"]);
        (done.code == 0).then_some(done.out)
    });
    assert!(at_edge.starts_with("upload-limit-mb = 250 "), "{at_edge}");

    let draft = folder.path().join("draft.json");
    std::fs::write(&draft, r#"{"enabled":true,"fallthrough":{"variant":"enterprise"}}"#).unwrap();
    let draft = draft.to_str().unwrap();
    let done = dev.tidegate(&["eval", "upload-limit-mb", "--draft", draft]).ok();
    assert!(done.out.starts_with("upload-limit-mb = 2000 "), "{done:?}");
    let live = dev.tidegate(&["eval", "upload-limit-mb"]).ok();
    assert!(live.out.starts_with("upload-limit-mb = 10 "), "a draft was written: {live:?}");

    let document = dev.tidegate(&["openapi"]).ok().json();
    assert!(document["openapi"].as_str().unwrap().starts_with("3."), "{}", document["openapi"]);
}

#[test]
fn a_document_goes_out_and_in_again() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    let file = folder.path().join("out.json");
    let path = file.to_str().unwrap();

    dev.tidegate(&["export", "--format", "flagd", "--partial", "--file", path]).ok();
    let document: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(document["flags"]["cartFailure"]["defaultVariant"], "off", "{document}");

    let old = r#"{"flags": {"old": {"state": "ENABLED", "variants": {"a": 1, "b": 2},
        "targeting": {"fractional": [["a", 1], ["b", 1]]}}}}"#;
    let export = ["export", "--format", "flagd", "--partial", "--file", path];
    for (version, noted) in [("v1", true), ("v2", false)] {
        std::fs::write(&file, old).unwrap();
        dev.tidegate(&["import", path, "--fractional", version]).ok();
        let done = dev.tidegate(&export).ok();
        let note = done.err.contains("tidegate import --fractional v1");
        assert_eq!(note, noted, "{version}: {done:?}");
    }

    std::fs::write(
        &file,
        r#"{"flags": {
            "fresh": {"state": "ENABLED", "variants": {"a": 1, "b": 2}, "defaultVariant": "a",
                "defaultVarient": "b"},
            "broken": {"state": "ENABLED", "variants": {"a": 1}, "defaultVariant": "zzz"}}}"#,
    )
    .unwrap();
    let dry = dev.tidegate(&["import", path, "--dry-run", "-o", "json"]).failed(4);
    let result = |done: &crate::world::Done, flag: &str| {
        let flags = done.json()["flags"].as_array().unwrap().clone();
        flags.into_iter().find(|each| each["flag"] == flag).unwrap()["result"].clone()
    };
    assert_eq!(result(&dry, "fresh"), "created");
    assert_eq!(result(&dry, "broken"), "refused");
    assert_eq!(dry.json()["ignored"], json!(["/flags/fresh/defaultVarient"]), "{dry:?}");
    dev.tidegate(&["flag", "get", "fresh"]).failed(3);

    let done = dev.tidegate(&["import", path]).failed(4);
    assert!(done.err.starts_with("error: 1 of 2 flags refused\n  /flags/broken"), "{done:?}");
    let left = "fields that flagd does not know, left behind:\n  /flags/fresh/defaultVarient\n";
    assert!(done.out.contains(left), "{done:?}");
    dev.tidegate(&["flag", "get", "fresh"]).ok();
}

#[test]
fn every_failure_has_its_exit_code_and_one_line_that_says_why() {
    let folder = tempfile::tempdir().unwrap();
    // One that nobody else gets once the server has ended.
    let port = ports::free().unwrap().port();
    let dev = Dev::start_on(&folder.path().join("state"), port);

    let done = dev.tidegate(&["flag", "get", "no-such-flag"]).failed(3);
    assert!(done.err.starts_with("error: "), "{done:?}");
    let done = dev.tidegate(&["flag", "get", "no-such-flag", "-o", "json"]).failed(3);
    assert_eq!(done.json_error()["error"]["exitCode"], 3);
    dev.tidegate(&["flag", "list", "-n", "nowhere"]).failed(3);
    dev.tidegate(&["eval", "no-such-flag"]).failed(3);

    dev.tidegate(&["flag", "frobnicate"]).failed(2);
    dev.tidegate(&["flag", "set", "checkout"]).failed(2);
    dev.tidegate(&["flag", "on", "checkout", "--variant", "x"]).failed(2);
    let done = dev.tidegate(&["eval", "checkout", "--context", "[1]"]).failed(2);
    assert!(done.err.contains("must be a JSON object"), "{done:?}");

    let done = dev.tidegate(&["flag", "set", "checkout", "--variant", "expres"]).failed(4);
    assert!(done.err.contains("it has classic, express"), "{done:?}");
    let file = folder.path().join("config.json");
    std::fs::write(
        &file,
        r#"{"enabled": true, "fallthrough": {"variant": "classic"}, "rules": [
            {"id": "a", "when": {"attr": "x", "op": "ist", "value": 1}, "serve": {"variant": "classic"}}]}"#,
    )
    .unwrap();
    let done = dev.tidegate(&["flag", "set", "checkout", "--file", file.to_str().unwrap()]);
    let done = done.failed(4);
    assert!(done.err.contains("/rules/0/when/op"), "{done:?}");
    assert!(done.err.contains("unknown operator \"ist\""), "{done:?}");
    std::fs::write(&file, "{").unwrap();
    dev.tidegate(&["flag", "set", "checkout", "--file", file.to_str().unwrap()]).failed(4);

    dev.tidegate(&["import", "/does/not/exist"]).failed(1);
    let url = dev.server.text("control_url").to_owned();
    let denied = run(tidegate()
        .args(["flag", "list", "-n", "demo", "-e", "production"])
        .env("TIDEGATE_URL", &url)
        .env("TIDEGATE_TOKEN", "tg_admin_nope")
        .current_dir(folder.path()))
    .failed(1);
    assert!(denied.err.contains("TIDEGATE_TOKEN"), "{denied:?}");

    let warned = dev.tidegate(&["flag", "list", "--token", dev.server.text("admin_token")]).ok();
    assert!(warned.err.starts_with("warning: --token on the command line"), "{warned:?}");

    let Dev { server, dir } = dev;
    server.terminate();
    let gone = run(tidegate().args(["flag", "list"]).env("TIDEGATE_DIR", &dir)).failed(6);
    assert!(gone.err.starts_with("error: cannot reach http://127.0.0.1:"), "{gone:?}");
    let nowhere = run(tidegate().args(["flag", "list"]).current_dir(folder.path())).failed(2);
    assert!(nowhere.err.contains("no token"), "{nowhere:?}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for option in ["--control-port", "--edge-port"] {
        let other = if option == "--edge-port" { "--control-port" } else { "--edge-port" };
        let done = run(tidegate()
            .args(["dev", option, &port, other, "0", "--log", "off", "--dir"])
            .arg(folder.path().join("state")))
        .failed(1);
        assert!(
            done.err.contains(&format!("cannot listen on 127.0.0.1:{port}: the port is in use")),
            "{done:?}"
        );
    }
}

#[test]
fn migrate_makes_the_database_once_and_finds_it_the_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("control");
    let data_dir = data_dir.to_str().unwrap();
    for _ in 0..2 {
        let done =
            run(tidegate().args(["migrate", "--data-dir", data_dir, "--output", "json"])).ok();
        let said: Value = serde_json::from_str(&done.out).unwrap();
        assert!(said["schema"].as_i64().unwrap() >= 1, "{said}");
    }
    std::fs::write(folder.path().join("control/control.sqlite"), "not a database").unwrap();
    let refused = run(tidegate().args(["migrate", "--data-dir", data_dir]));
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("control.sqlite"), "{refused:?}");
}

#[test]
fn an_export_to_flagd_names_what_flagd_cannot_express() {
    let folder = tempfile::tempdir().unwrap();
    let dev = Dev::start(folder.path());
    let refused = dev.tidegate(&["export", "--format", "flagd"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.err.contains("/flags/checkout"), "{refused:?}");
    let partial = dev.tidegate(&["export", "--format", "flagd", "--partial"]).ok();
    let document: Value = serde_json::from_str(&partial.out).unwrap();
    assert!(document["flags"]["cartFailure"].is_object(), "{document}");
    assert!(document["flags"]["checkout"].is_null(), "{document}");
}
