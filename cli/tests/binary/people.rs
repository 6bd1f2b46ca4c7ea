//! Signing in and out, tokens and members, against a control of its own.

use serde_json::Value;

use crate::world::{Done, Server, owner, run, tidegate};

/// A control of a test's own, whose data is there.
fn control(data: &std::path::Path) -> Server {
    let listen = ["control", "--output", "json", "--listen", "127.0.0.1:0", "--log", "warn"];
    Server::start(tidegate().args(listen).arg("--data-dir").arg(data))
}

#[test]
fn an_owner_signs_in_gives_roles_and_tokens_and_signs_out() {
    let folder = tempfile::tempdir().unwrap();
    let control = control(&folder.path().join("control"));
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

/// Types lines into a terminal of a program's own, each once the program hides what is typed; prints what
/// the terminal showed.
const TYPIST: &str = r#"
import os, pty, sys, termios, time
lines, command = sys.argv[1].split("|"), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
shown, deadline = b"", time.monotonic() + 120
def hidden():
    return not termios.tcgetattr(terminal)[3] & termios.ECHO
os.set_blocking(terminal, False)
def look():
    global shown
    try:
        shown += os.read(terminal, 4096)
    except BlockingIOError:
        pass
for number, line in enumerate(lines, 1):
    while not (hidden() and shown.count(b": ") >= number):
        assert time.monotonic() < deadline, ("it asks and hides nothing", shown)
        look()
        time.sleep(0.005)
    os.write(terminal, line.encode() + b"\n")
os.set_blocking(terminal, True)
try:
    while piece := os.read(terminal, 4096):
        shown += piece
except OSError:
    pass
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.stdout.write(shown.decode())
sys.exit(status)
"#;

#[test]
fn a_password_that_is_typed_is_not_shown_and_a_new_one_is_typed_twice() {
    let folder = tempfile::tempdir().unwrap();
    let control = control(&folder.path().join("control"));
    let typing = |lines: &str, arguments: &[&str]| -> Done {
        let mut python = std::process::Command::new("python3");
        python.args(["-c", TYPIST, lines]).arg(tidegate().get_program()).args(arguments);
        python.env("TIDEGATE_URL", control.text("control_url"));
        run(python.env("XDG_CONFIG_HOME", folder.path().join("config")))
    };
    let setup =
        ["setup", "--email", "ann@example.com", "--token-file", control.text("setup_token_file")];
    let other = typing("typed unseen and well|typed unseen and wrong", &setup);
    assert!(other.code == 2 && other.out.contains("not the same"), "{other:?}");
    let done = typing("typed unseen and well|typed unseen and well", &setup);
    assert!(done.code == 0 && done.out.contains("Once more: "), "{done:?}");
    let login = ["login", "--email", "ann@example.com"];
    let wrong = typing("typed unseen and wrong", &login);
    assert!(wrong.code == 1 && wrong.out.contains("password is wrong"), "{wrong:?}");
    let done = typing("typed unseen and well", &login);
    assert!(done.code == 0 && done.out.contains("signed in"), "{done:?}");
    for done in [other, wrong, done] {
        assert!(!done.out.contains("typed unseen"), "{done:?}");
    }
    let nothing = typing("", &login);
    assert!(nothing.code == 2 && nothing.out.contains("no password"), "{nothing:?}");
}

#[test]
fn a_lost_setup_token_is_made_anew_until_there_is_an_owner_and_then_never() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("control");
    let control = control(&data);
    let lost = folder.path().join("lost");
    std::fs::rename(data.join("setup-token"), &lost).unwrap();
    let anew = |more: &[&str]| {
        run(tidegate().args(["control", "new-setup-token", "--data-dir"]).arg(&data).args(more))
    };
    assert!(anew(&[]).ok().out.contains("tidegate setup --token-file"));
    let made = std::fs::read_to_string(data.join("setup-token")).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(data.join("setup-token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let elsewhere = folder.path().join("elsewhere");
    anew(&["--file", elsewhere.to_str().unwrap()]).ok();
    assert_ne!(std::fs::read_to_string(&elsewhere).unwrap(), made);

    std::fs::write(folder.path().join("password"), "four words of mine").unwrap();
    let setup = |token: &std::path::Path| {
        let mut command = tidegate();
        command.args(["setup", "--email", "ann@example.com", "--url", control.text("control_url")]);
        command.arg("--token-file").arg(token);
        run(command.arg("--password-file").arg(folder.path().join("password")))
    };
    for void in [&lost, &data.join("setup-token")] {
        let refused = setup(void);
        assert!(refused.code != 0 && refused.err.contains("setup token"), "{refused:?}");
    }
    setup(&elsewhere).ok();
    let before = std::fs::read(data.join("setup-token")).unwrap();
    let refused = anew(&[]);
    assert!(refused.code == 5 && refused.err.contains("an owner already"), "{refused:?}");
    assert_eq!(std::fs::read(data.join("setup-token")).unwrap(), before);
}
