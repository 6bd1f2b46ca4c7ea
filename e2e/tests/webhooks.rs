//! Webhooks of a control that runs as a process, told to receivers of another language over TLS: npm's
//! `standardwebhooks`, which is the standard's own, verifies them. The certificates are of a CA that this
//! test makes, and control is told of it as any program is, by `SSL_CERT_FILE`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use e2e::http::{Admin, DEADLINE, until};
use e2e::process::Process;
use e2e::world::{admin_of, furnish, workspace};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

const HOOKS: &str = "/api/v1/namespaces/demo/webhooks";

fn authority(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::new([]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA")
}

/// A server's certificate and key in `folder`.
fn certificate(
    folder: &Path,
    name: &str,
    by: &CertifiedIssuer<'static, KeyPair>,
    host: &str,
    last_year: i32,
) {
    let mut params = CertificateParams::new([host.to_owned()]).expect("parameters");
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let made = params.signed_by(&key, by).expect("a certificate");
    std::fs::write(folder.join(format!("{name}.pem")), made.pem()).expect("a file");
    std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("a file");
}

struct Receivers {
    _process: Child,
    secrets: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// By the certificate's name.
    urls: BTreeMap<String, String>,
}

impl Receivers {
    async fn start(folder: &Path, certificates: &[&str]) -> Receivers {
        let scripts = workspace().join("e2e/interop/node");
        assert!(
            scripts.join("node_modules/standardwebhooks").is_dir(),
            "the npm packages are not installed: run `cargo xtask test` (or `npm ci` in e2e/interop/node)"
        );
        let mut process = Command::new("node")
            .current_dir(scripts)
            .arg("webhooks.mjs")
            .env("FOLDER", folder)
            .env("CERTIFICATES", certificates.join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let secrets = process.stdin.take().expect("its input");
        let urls = serde_json::from_value(next(&mut lines).await).expect("addresses");
        Receivers { _process: process, secrets, lines, urls }
    }

    fn url(&self, certificate: &str, path: &str) -> String {
        format!("{}{path}", self.urls[certificate])
    }

    async fn learn(&mut self, secret: &str) {
        self.secrets.write_all(format!("{secret}\n").as_bytes()).await.expect("it reads");
    }

    /// The next that fits. A delivery may come twice, and one that failed is told again; but nothing ever
    /// comes to a server that is not who it should be, nor to where a redirect leads.
    async fn told(&mut self, fits: impl Fn(&Value) -> bool) -> Value {
        loop {
            let got = next(&mut self.lines).await;
            assert_eq!(got["at"], "good", "{got}");
            assert!(got["path"] == "/hook" || got["path"] == "/redirect", "{got}");
            if fits(&got) {
                return got;
            }
        }
    }

    /// What told of this flag.
    async fn told_of(&mut self, flag: &str) -> Value {
        self.told(|got| got["path"] == "/hook" && got["event"]["data"]["target"] == flag).await
    }
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = tokio::time::timeout(DEADLINE, lines.next_line()).await.expect("in time");
    serde_json::from_str(&line.expect("its output").expect("a line")).expect("JSON")
}

/// An endpoint that is not told anything yet: its path and its secret.
async fn hook(admin: &Admin, url: &str, actions: Value) -> (String, String) {
    let body = json!({ "url": url, "actions": actions, "enabled": false });
    let made = admin.post(HOOKS, &body).await.ok().json();
    let text = |name: &str| made[name].as_str().expect("text").to_owned();
    (format!("{HOOKS}/{}", text("id")), text("secret"))
}

async fn enable(admin: &Admin, hook: &str) {
    let patch = admin.request(http::Method::PATCH, hook).header("if-match", "*");
    e2e::http::send(patch.json(&json!({ "enabled": true }))).await.ok();
}

/// Waits until an attempt of an endpoint's first delivery ended like this. Not the first attempt: on a busy
/// machine that one may have run out of its time.
async fn ended(admin: &Admin, hook: &str, what: &str, like: impl Fn(&Value) -> bool) {
    let deliveries = format!("{hook}/deliveries");
    until(what, async || {
        let page = admin.get(&deliveries).await.json();
        match page["items"][0]["log"].as_array() {
            Some(log) if log.iter().any(&like) => Ok(()),
            _ => Err(page.to_string()),
        }
    })
    .await;
}

fn flag(key: &str) -> Value {
    json!({ "key": key, "type": "boolean", "variants": { "on": true, "off": false } })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_told_over_tls_is_verified_by_the_standards_own_library_and_no_wrong_server_is_told()
 {
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, theirs) = (authority("Ours"), authority("Theirs"));
    certificate(folder.path(), "good", &ours, "localhost", 2090);
    certificate(folder.path(), "elsewhere", &ours, "elsewhere.example", 2090);
    certificate(folder.path(), "expired", &ours, "localhost", 2021);
    certificate(folder.path(), "unknown", &theirs, "localhost", 2090);
    let trusted = folder.path().join("ca.pem");
    std::fs::write(&trusted, ours.pem()).expect("a file");
    let wrong = ["elsewhere", "expired", "unknown"];
    let mut receivers = Receivers::start(folder.path(), &[&["good"][..], &wrong].concat()).await;

    let data = folder.path().join("control");
    let control = Process::start(
        &[
            "control",
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data.to_str().expect("UTF-8"),
            // The receivers are on this machine.
            "--webhook-allow-private",
        ],
        &[("SSL_CERT_FILE", trusted.to_str().expect("UTF-8"))],
    )
    .await;
    let admin = admin_of(&control, &control).await;
    furnish(&admin).await;

    let (good, first) = hook(&admin, &receivers.url("good", "/hook"), json!(["flag.create"])).await;
    receivers.learn(&first).await;
    enable(&admin, &good).await;
    admin.create_flag(&flag("one")).await.ok();
    let got = receivers.told_of("one").await;
    assert_eq!((&got["method"], &got["contentType"]), (&json!("POST"), &json!("application/json")));
    assert_eq!(got["verified"], json!([true]), "{got}");
    assert_eq!((&got["altered"], &got["moved"]), (&json!(false), &json!(false)), "{got}");

    // While a secret is rotated the library takes either, and then the new one alone.
    let rotate = format!("{good}/rotate");
    let mut known = 1;
    for (overlap_s, verified) in [(3_600, json!([true, true])), (0, json!([false, false, true]))] {
        let made = admin.post(&rotate, &json!({ "overlapSeconds": overlap_s })).await.ok().json();
        receivers.learn(made["secret"].as_str().expect("a secret")).await;
        known += 1;
        let key = format!("rotated-{known}");
        admin.create_flag(&flag(&key)).await.ok();
        let got = receivers.told_of(&key).await;
        assert_eq!(got["verified"], verified, "{got}");
    }

    // A redirect is an answer, and no way to go.
    let (redirected, _) =
        hook(&admin, &receivers.url("good", "/redirect"), json!(["environment.create"])).await;
    enable(&admin, &redirected).await;
    // No server that is not who it should be is told anything.
    let mut refused = Vec::new();
    for name in wrong {
        let (path, _) =
            hook(&admin, &receivers.url(name, "/hook"), json!(["environment.create"])).await;
        enable(&admin, &path).await;
        refused.push(path);
    }
    let path = "/api/v1/namespaces/demo/environments";
    admin.post(path, &json!({ "key": "staging" })).await.ok();
    receivers.told(|got| got["path"] == "/redirect").await;
    ended(&admin, &redirected, "a redirect", |attempt| attempt["status"] == 307).await;
    for (hook, why) in refused.iter().zip(["not valid for name", "expired", "UnknownIssuer"]) {
        ended(&admin, hook, why, |attempt| {
            let error = attempt["error"].as_str().unwrap_or_default();
            error.contains("certificate") && error.contains(why)
        })
        .await;
    }
    // Nothing came to the others meanwhile, nor to where the redirect led.
    admin.create_flag(&flag("last")).await.ok();
    receivers.told_of("last").await;
    control.kill().await;
}
