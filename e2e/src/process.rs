//! `tidegate` as processes of their own, for tests that kill them.

use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::http::TALKATIVE;
use crate::run;

/// A running `tidegate`; killed when dropped.
pub struct Process {
    child: Child,
    /// The line that it announced itself with.
    pub announced: Value,
}

/// The binary in the folder that this test was built into.
///
/// A build of the whole workspace puts it there, since `cli` has tests that run it. The test does
/// not build it: `cargo build -p cli` has other features than the workspace, which is minutes.
pub fn binary() -> PathBuf {
    // …/target/debug/deps/this-test
    let test = std::env::current_exe().expect("this test's own path");
    let name = format!("tidegate{}", std::env::consts::EXE_SUFFIX);
    // Or …/target/release/propagation, beside which it lies.
    let folders = test.ancestors().skip(1).take(2);
    let binary = folders.map(|folder| folder.join(&name)).find(|binary| binary.is_file());
    let binary = binary.unwrap_or_default();
    assert!(binary.is_file(), "there is no tidegate: run `cargo xtask test`");
    binary
}

/// Of which command a log is.
fn said_by(arguments: &[&str]) -> String {
    let is_name = |word: &&&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    let words = arguments.iter().take(2).take_while(|word| !word.starts_with('-'));
    words.take_while(is_name).copied().collect::<Vec<_>>().join("-")
}

impl Process {
    pub async fn start(arguments: &[&str], settings: &[(&str, &str)]) -> Process {
        let Some(log) = run::log_of(&said_by(arguments)) else {
            return Process::started(arguments, settings, Stdio::inherit()).await;
        };
        eprintln!("the log of tidegate {arguments:?} is {}", log.display());
        let log = std::fs::File::create(log).expect("a file for the log");
        // Also of a test that wants its own output short: nobody reads this one but the search.
        let settings = [settings, &[("TIDEGATE_LOG", TALKATIVE)]].concat();
        Process::started(arguments, &settings, log.into()).await
    }

    /// With its log in a file, for tests that read it.
    pub async fn start_logging(
        arguments: &[&str],
        settings: &[(&str, &str)],
        log: &std::path::Path,
    ) -> Process {
        let file = match run::log_of(&said_by(arguments)) {
            None => std::fs::File::create(log),
            Some(kept) => {
                let _ = std::fs::remove_file(log);
                std::os::unix::fs::symlink(&kept, log).expect("a link to the log");
                std::fs::File::create(kept)
            }
        };
        Process::started(arguments, settings, file.expect("a file for the log").into()).await
    }

    async fn started(arguments: &[&str], settings: &[(&str, &str)], log: Stdio) -> Process {
        run::settings(settings);
        let mut command = Command::new(binary());
        // One machine asks for everybody, as fast as it can.
        command.env("TIDEGATE_CALLER_RATE", "off").env("TIDEGATE_ADDRESS_RATE", "off");
        command.args(["--output", "json"]).args(arguments).envs(settings.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().expect("tidegate starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let line = tokio::time::timeout(crate::http::DEADLINE, lines.next_line());
        let line = line.await.expect("it announces itself in time").expect("its output");
        let line = line.unwrap_or_else(|| panic!("tidegate {arguments:?} ended without a word"));
        if let Some(log) = run::log_of(&format!("{}-announced", said_by(arguments))) {
            std::fs::write(log, &line).expect("a log");
        }
        let announced = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
        Process { child, announced }
    }

    /// A command that ends: what it printed.
    pub async fn run(arguments: &[&str]) -> Value {
        let mut command = Command::new(binary());
        command.args(["--output", "json"]).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(crate::http::DEADLINE, command.output());
        let done = done.await.expect("it ends in time").expect("tidegate starts");
        let (out, err) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        // What a command was asked for may be a secret; what it says beside that must hold none.
        run::secrets_in(&out);
        if let Some(log) = run::log_of(&said_by(arguments)) {
            std::fs::write(log, err.as_bytes()).expect("a log");
        }
        assert!(done.status.success(), "tidegate {arguments:?}: {} {out} {err}", done.status);
        serde_json::from_str(&out).unwrap_or_else(|_| panic!("no JSON: {out}"))
    }

    /// A command that ends in whichever way: its exit code, and what it said.
    pub async fn exit(arguments: &[&str], settings: &[(&str, &str)]) -> (i32, String) {
        let mut command = Command::new(binary());
        command.args(arguments).envs(settings.iter().copied());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let done = tokio::time::timeout(crate::http::DEADLINE, command.output());
        let done = done.await.expect("it ends in time").expect("tidegate starts");
        run::settings(settings);
        if let Some(log) = run::log_of(&said_by(arguments)) {
            std::fs::write(log, &done.stderr).expect("a log");
        }
        let said = [done.stdout, done.stderr].concat();
        (done.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned())
    }

    #[track_caller]
    pub fn text(&self, member: &str) -> String {
        let text = self.announced[member].as_str();
        text.unwrap_or_else(|| panic!("no {member} in {}", self.announced)).to_owned()
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("it runs")
    }

    /// Sends a signal by its name, to this process alone.
    #[track_caller]
    pub fn signal(&self, name: &str) {
        let pid = self.pid().to_string();
        let sent = std::process::Command::new("kill").args(["-s", name, &pid]).status();
        assert!(sent.expect("kill runs").success(), "SIG{name} to {pid}");
    }

    /// Waits until it has ended by itself.
    pub async fn ended(mut self) {
        let ended = tokio::time::timeout(crate::http::DEADLINE, self.child.wait());
        ended.await.expect("it ends in time").expect("its status");
    }

    /// SIGKILL, to this process alone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("it was running");
    }
}
