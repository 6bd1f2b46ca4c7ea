//! An identity provider of a test's own: npm's `oidc-provider`, of `interop/oidc`.

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, ChildStdout, Command};

use crate::world::workspace;

/// Who control is to it.
pub const CLIENT: &str = "tidegate";

/// Killed when dropped.
pub struct Provider {
    process: Child,
    /// Closed, its next word would be its last.
    _said: ChildStdout,
    pub issuer: String,
}

impl Provider {
    /// For the client at `control`, with its secret. `people` are claims by the name that a browser has
    /// in its cookie `who`; with `user_info` they are told only where they are asked for once more.
    pub async fn start(control: &str, secret: &str, people: &Value, user_info: bool) -> Provider {
        let folder = workspace().join("e2e/interop/oidc");
        assert!(
            folder.join("node_modules/oidc-provider").is_dir(),
            "the npm packages are not installed: run `cargo xtask test` (or `npm ci` in e2e/interop/oidc)"
        );
        crate::run::secret("client secret", secret);
        let mut process = Command::new("node")
            .current_dir(folder)
            .arg("provider.mjs")
            .env("PEOPLE", people.to_string())
            .env("CLIENT_ID", CLIENT)
            .env("CLIENT_SECRET", secret)
            .env("REDIRECT_URI", format!("{control}/api/v1/oidc/callback"))
            .env("USER_INFO", if user_info { "1" } else { "0" })
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("node starts");
        let mut lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let line = tokio::time::timeout(crate::http::DEADLINE, lines.next_line());
        let line = line.await.expect("in time").expect("its output").expect("a line");
        let said: Value = serde_json::from_str(&line).expect("JSON");
        let issuer = said["issuer"].as_str().expect("an issuer").to_owned();
        Provider { process, _said: lines.into_inner().into_inner(), issuer }
    }

    pub async fn kill(mut self) {
        self.process.kill().await.expect("it ran");
    }
}
