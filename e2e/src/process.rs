//! `tidegate` as processes of their own, for tests that kill them.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

/// A running `tidegate`; killed when dropped.
pub struct Process {
    child: Child,
    /// The line that it announced itself with.
    pub announced: Value,
}

/// The binary, built into the folder that this test was built into.
///
/// Cargo builds another package's binary for nobody, so the test asks for it; where it is fresh,
/// that costs a moment.
async fn binary() -> PathBuf {
    // …/target/debug/deps/this-test
    let test = std::env::current_exe().expect("this test's own path");
    let profile = test.ancestors().nth(2).expect("a profile folder");
    let target = profile.parent().expect("a target folder");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(crate::world::workspace())
        .env("CARGO_TARGET_DIR", target)
        .args(["build", "--quiet", "--package", "cli", "--bin", "tidegate"])
        .status()
        .await
        .expect("cargo runs");
    assert!(built.success(), "the tidegate binary is not built: {built}");
    profile.join("tidegate")
}

impl Process {
    pub async fn start(arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        let mut command = Command::new(binary().await);
        command.args(["--output", "json"]).args(arguments).envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("tidegate starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = tokio::time::timeout(crate::http::DEADLINE, lines.next_line());
        let line = line.await.expect("it announces itself in time").expect("its output");
        let line = line.unwrap_or_else(|| panic!("tidegate {arguments:?} ended without a word"));
        let announced = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        Process { child, announced }
    }

    #[track_caller]
    pub fn text(&self, member: &str) -> String {
        let text = self.announced[member].as_str();
        text.unwrap_or_else(|| panic!("no {member} in {}", self.announced)).to_owned()
    }

    /// SIGKILL, to this process alone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it was running");
    }
}
