//! Signing in and out, tokens and members, against a control of its own.

use serde_json::Value;

use crate::world::{Done, Server, owner, run, tidegate};

#[test]
fn an_owner_signs_in_gives_roles_and_tokens_and_signs_out() {
    let folder = tempfile::tempdir().unwrap();
    let control = Server::start(
        tidegate()
            .args(["control", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"])
            .arg("--data-dir")
            .arg(folder.path().join("control")),
    );
    let url = control.text("control_url").to_owned();
    let owner_token = owner(&control, folder.path());
    let sessions = folder.path().join("config/tidegate/sessions.json");
    let ask = |arguments: &[&str]| -> Done {
        let mut command = tidegate();
        command.args(arguments).env("TIDEGATE_URL", &url).current_dir(folder.path());
        run(command.env("XDG_CONFIG_HOME", folder.path().join("config")))
    };
    let json = |arguments: &[&str]| -> Value {
        let done = ask(&[arguments, &["--output", "json"]].concat()).ok();
        serde_json::from_str(&done.out).unwrap()
    };
    assert!(ask(&["whoami"]).err.contains("tidegate login"));
    std::fs::write(folder.path().join("wrong"), "not this one, either").unwrap();
    let login = ["login", "--email", "owner@example.com", "--password-file"];
    let refused = ask(&[&login[..], &["wrong"]].concat());
    assert!(refused.code == 1 && refused.err.contains("password is wrong"), "{refused:?}");
    assert!(!sessions.exists());
    let said = ask(&[&login[..], &["password"]].concat()).ok();
    assert_eq!(said.out, format!("signed in to {url} as owner@example.com\n"));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&sessions).unwrap().permissions().mode() & 0o777, 0o600);
    let me = json(&["whoami"]);
    assert_eq!((&me["name"], &me["operator"]), (&"owner@example.com".into(), &true.into()));

    // What is about to end is refreshed, once, by however many commands at once.
    let mut kept: Value = serde_json::from_slice(&std::fs::read(&sessions).unwrap()).unwrap();
    let before = kept[&url]["refresh_token"].clone();
    kept[&url]["expires_at"] = 1.into();
    std::fs::write(&sessions, kept.to_string()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(json(&["whoami"])["kind"], "user"));
        }
    });
    let kept: Value = serde_json::from_slice(&std::fs::read(&sessions).unwrap()).unwrap();
    assert_ne!(kept[&url]["refresh_token"], before);

    let token = std::fs::read_to_string(owner_token).unwrap();
    let made = |path: &str, body: &str| {
        let (status, text) =
            crate::world::http("POST", &format!("{url}{path}"), token.trim(), body);
        assert_eq!(status, 201, "{text}");
    };
    made("/api/v1/namespaces", r#"{"key":"shop"}"#);
    made("/api/v1/namespaces/shop/environments", r#"{"key":"staging"}"#);
    let set = ["member", "set", "bob@example.com", "--namespace", "shop"];
    let set = json(&[&set[..], &["--role", "viewer", "--in", "staging=editor+kill"]].concat());
    assert!(set["invitation"]["token"].as_str().unwrap().starts_with("tg_invite_"), "{set}");
    let listed = ask(&["member", "list", "--namespace", "shop"]).ok();
    assert_eq!(listed.out, "bob@example.com  viewer, staging: editor+kill  (invited)\n");
    ask(&["member", "remove", "bob@example.com", "--namespace", "shop"]).ok();
    assert_eq!(ask(&["member", "list", "--namespace", "shop"]).ok().out, "");

    let own = ask(&["token", "create", "laptop", "--scope", "read"]).ok().out;
    let with = |token: &str, arguments: &[&str]| -> Done {
        let mut command = tidegate();
        command.args(arguments).env("TIDEGATE_URL", &url).env("TIDEGATE_TOKEN", token.trim());
        run(&mut command)
    };
    assert!(with(&own, &["whoami"]).ok().out.contains("by a token"));
    let refused = with(&own, &["token", "create", "more", "--scope", "read"]);
    assert!(refused.code == 1 && refused.err.contains("sign in"), "{refused:?}");
    let ci = ["token", "create", "ci", "--namespace", "shop", "--in", "staging=editor"];
    let ci = json(&ci);
    let shown = with(ci["token"].as_str().unwrap(), &["whoami"]).ok().out;
    assert!(shown.contains("(service)") && shown.contains("shop: staging: editor"), "{shown}");
    let id = ci["id"].as_str().unwrap();
    assert!(ask(&["token", "list", "--namespace", "shop"]).ok().out.contains(id));
    ask(&["token", "delete", id, "--namespace", "shop"]).ok();
    assert_eq!(with(ci["token"].as_str().unwrap(), &["whoami"]).code, 1);

    ask(&["logout"]).ok();
    assert!(ask(&["whoami"]).err.contains("tidegate login"));
    assert_eq!(ask(&["logout"]).code, 3);
}
