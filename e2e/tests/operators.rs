//! docs/OPERATORS.md as an operator follows it: the very lines of the page, in their order, in one shell.
//! The page's ports are this test's own, and its provider is npm's `oidc-provider`.

use std::process::Stdio;
use std::time::Duration;

use e2e::oidc::Provider;
use e2e::world::workspace;
use serde_json::json;
use tokio::io::AsyncReadExt as _;

/// All of the page; it waits for states, and would wait for ever for one that never comes.
const PATIENCE: Duration = Duration::from_secs(300);

fn page() -> String {
    let page = std::fs::read_to_string(workspace().join("docs/OPERATORS.md")).expect("the page");
    let mut script = String::new();
    let mut blocks = 0;
    let mut rest = page.as_str();
    while let Some((_, fenced)) = rest.split_once("\n```sh\n") {
        let (text, after) = fenced.split_once("\n```").expect("an end");
        script.push_str(text);
        script.push('\n');
        blocks += 1;
        rest = after;
    }
    assert!(blocks > 10, "{blocks} blocks");
    script
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_leads_from_an_empty_folder_to_a_restored_backup() {
    let port = || e2e::ports::free().expect("a port").port();
    let (control, edge) = (port(), port());
    let (url, people) =
        (format!("http://127.0.0.1:{control}"), json!({ "ann": { "email": "ann@example.com" } }));
    let secret = "what the provider calls the client secret";
    let provider = Provider::start(&url, secret, &people, false).await;
    let issuer = &provider.issuer;
    let script = page()
        .replace("127.0.0.1:8080", &format!("127.0.0.1:{control}"))
        .replace("127.0.0.1:8016", &format!("127.0.0.1:{edge}"))
        .replace("https://login.example.com", issuer);
    let folder = tempfile::tempdir().expect("a folder");
    // Whatever becomes of it, nothing that it started outlives it.
    let script = format!(
        "set -eu\nend() {{ set +e; for it in $(jobs -p); do kill $it; done; wait; }}\ntrap end EXIT\n{script}\n\
         echo 'the page is done'"
    );
    let binary = e2e::process::binary();
    let tools = binary.parent().expect("a folder");
    let path = std::env::var("PATH").expect("a PATH");
    let mut shell = tokio::process::Command::new("bash");
    shell
        .arg("-c")
        .arg(&script)
        .current_dir(folder.path())
        .env("PATH", format!("{}:{path}", tools.display()))
        .env("TIDEGATE_SESSIONS_FILE", folder.path().join("sessions.json"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("TIDEGATE_") && name != "TIDEGATE_SESSIONS_FILE" {
            shell.env_remove(&*name);
        }
    }
    let mut shell = shell.spawn().expect("bash starts");
    let (mut said, mut errors) = (String::new(), String::new());
    let mut out = shell.stdout.take().expect("piped");
    let mut err = shell.stderr.take().expect("piped");
    let all = async {
        let (one, two) =
            tokio::join!(out.read_to_string(&mut said), err.read_to_string(&mut errors));
        one.and(two).expect("text");
        shell.wait().await.expect("an end")
    };
    let status = tokio::time::timeout(PATIENCE, all).await.expect("it ends in time");
    let read = |file: &str| std::fs::read_to_string(folder.path().join(file)).unwrap_or_default();
    let (control_log, edge_log) = (read("control.log"), read("edge.log"));
    for log in ["control.log", "edge.log"] {
        e2e::run::keep_log(log, &folder.path().join(log));
    }
    for file in ["sessions.json", "control/setup-token", "bobs-session"] {
        e2e::run::secrets_in(&read(file));
    }
    e2e::run::secret("password", &read("owner-password"));
    e2e::run::secret("password", "four words of his own");
    let told = format!("{said}\n{errors}\ncontrol: {control_log}\nedge: {edge_log}");
    assert!(status.success() && said.contains("the page is done"), "{told}");
    // What the page promises, beside that no line failed.
    let redirect = format!("303 {issuer}/auth?");
    assert!(said.contains(&redirect) || said.contains(&redirect.replace("303", "302")), "{told}");
    let answered = said.matches("\"value\":true").count();
    assert_eq!(answered, 2, "the flag before and after the restore: {told}");
}
