//! Runs chores step by step, says what each does before it starts, and sums up at the end.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// What happened so far.
pub struct Report {
    rows: Vec<Row>,
    started: Instant,
}

struct Row {
    name: &'static str,
    took: Duration,
    result: Result<String, String>,
}

impl Report {
    pub fn new() -> Report {
        Report { rows: Vec::new(), started: Instant::now() }
    }

    /// Runs `work`; a failure is kept for the summary and does not end the chore.
    pub fn step(
        &mut self,
        name: &'static str,
        what: &str,
        work: impl FnOnce() -> anyhow::Result<String>,
    ) -> bool {
        eprintln!("==> {name}: {what}");
        let started = Instant::now();
        let result = work().map_err(|error| format!("{error:#}"));
        match &result {
            Ok(note) if note.is_empty() => {}
            Ok(note) => eprintln!("    {note}"),
            Err(error) => eprintln!("    FAILED: {error}"),
        }
        let ok = result.is_ok();
        self.rows.push(Row { name, took: started.elapsed(), result });
        ok
    }

    pub fn failed(&self) -> bool {
        self.rows.iter().any(|row| row.result.is_err())
    }

    /// Prints one line per step; an error if any failed.
    pub fn finish(self) -> anyhow::Result<()> {
        eprintln!();
        for row in &self.rows {
            let (mark, note) = match &row.result {
                Ok(note) => ("ok    ", note.as_str()),
                Err(error) => ("FAILED", error.lines().next().unwrap_or_default()),
            };
            eprintln!("{mark}  {:<10} {:>7.1} s  {note}", row.name, row.took.as_secs_f64());
        }
        eprintln!("        {:<10} {:>7.1} s", "all", self.started.elapsed().as_secs_f64());
        let failed: Vec<&str> =
            self.rows.iter().filter(|row| row.result.is_err()).map(|row| row.name).collect();
        if failed.is_empty() {
            return Ok(());
        }
        bail!("failed: {}", failed.join(", "))
    }
}

/// Runs a program with our own output; an error names it and how it ended.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = show(command);
    eprintln!("    $ {shown}");
    let status = command.status().with_context(|| format!("cannot run `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` ended with {status}");
    }
    Ok(())
}

/// As `run`, for what comes over a network: only its third failure counts.
#[expect(clippy::disallowed_methods, reason = "nothing tells when a network is there again")]
pub fn fetch(command: &mut Command) -> anyhow::Result<()> {
    for pause in [5, 20] {
        match run(command) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("    {error:#}; once more in {pause} s"),
        }
        std::thread::sleep(Duration::from_secs(pause));
    }
    run(command)
}

/// Debian's packages, for whoever is root; `how` is what anybody else is told.
pub fn install_packages(packages: &[&str], how: &str) -> anyhow::Result<()> {
    // A refusal would only be told after the package lists were fetched.
    let user = ask(Command::new("id").arg("-u"))?;
    anyhow::ensure!(user == "0", "only root may install packages; {how}");
    let apt = || {
        let mut apt = Command::new("apt-get");
        // A new machine may be busy with its own upgrades.
        apt.args(["-o", "DPkg::Lock::Timeout=300", "-qq"]);
        apt.env("DEBIAN_FRONTEND", "noninteractive");
        // In single-user mode Debian's packages do not start the servers that they bring; the tests
        // start their own.
        apt.env("RUNLEVEL", "1");
        apt
    };
    fetch(apt().arg("update")).context(how.to_owned())?;
    let mut install = apt();
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    fetch(&mut install).context(how.to_owned())
}

/// Runs a program and gives its trimmed output.
pub fn ask(command: &mut Command) -> anyhow::Result<String> {
    let shown = show(command);
    let output = command.output().with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!(
            "`{shown}` ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn show(command: &Command) -> String {
    let program = std::path::Path::new(command.get_program());
    let mut shown = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for argument in command.get_args() {
        shown.push(' ');
        shown.push_str(&argument.to_string_lossy());
    }
    shown
}
