//! Every chore of the repository: `cargo xtask <chore>`.
//!
//! Nothing here needs a tool beyond cargo, Node and Python; what a chore installs, and where, it
//! says before it does so. Chores: `test.rs` (everything that proves the house), `simulation.rs`
//! (seeds, and planted bugs), `secrets.rs` (that no log has one), `check.rs` (format, lints, arrows), `tree.rs` (the rules of the
//! dependency tree), `wasm.rs` (the evaluator as wasm),
//! `browser.rs` (the same for browsers), `size.rs` (what browsers download), `toolchain.rs` (the compiler for both), `protoc.rs` (what
//! etcd's client is built with).

mod browser;
mod check;
#[path = "../../e2e/src/etcd.rs"]
#[allow(dead_code, reason = "tests of the whole system use the rest")]
mod etcd;
mod package;
mod policies;
#[path = "../../e2e/src/postgres.rs"]
#[allow(dead_code, reason = "tests of the whole system use the rest")]
mod postgres;
mod protoc;
mod secrets;
mod simulation;
mod size;
mod steps;
mod test;
mod toolchain;
mod tree;
mod wasm;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

/// Chores of the Tidegate repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Builds the evaluator and runs `tidegate dev`: control, edge and demo flags in one process.
    Dev {
        /// Passed on to `tidegate dev`; see `cargo xtask dev -- --help`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Installs what the tests need into this repository and runs all of them.
    Test {
        /// Runs this step alone (and what it needs).
        #[arg(long, value_name = "STEP")]
        only: Option<test::Step>,
        /// Runs a test that failed once more; what passes only then is named in the summary, and more than three are a failure.
        #[arg(long)]
        second_try: bool,
        /// Passed on to the test runner of the Rust tests.
        #[arg(last = true)]
        arguments: Vec<OsString>,
    },
    /// Builds the evaluator as wasm into target/wasm/evaluator.wasm.
    Wasm {
        /// Builds it for browsers instead, into target/browser.
        #[arg(long)]
        browser: bool,
    },
    /// The npm package for browsers, as a file to install, in target/package.
    Package,
    /// Evaluations a second in Chromium, beside two other packages of npm.
    BenchBrowser,
    /// Formatting, lints, the wasm32 build of `rules`, arrows, licences and sources.
    Check,
    /// What continuous integration runs: check, then test.
    Ci,
    /// Drives an edge over loopback beside a bare hyper server and prints both; `load propagation`
    /// measures how long a change takes to reach edges and clients, `load bombs` what hostile
    /// policies do to everybody else.
    Load {
        /// Passed on to the load command.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
    /// Kills, pauses and robs everything, seed after seed, and checks what edges answer meanwhile.
    Chaos {
        /// How many seeds.
        #[arg(long, value_name = "N", default_value_t = 10)]
        runs: u64,
        /// The first seed.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// How many seeds at once, each with servers of its own. Two cores stand three.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=16))]
        jobs: u64,
    },
    /// Runs the product's own code on a simulated network, seed after seed, and checks what holds.
    Simulate {
        /// How many seeds.
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        seeds: u64,
        /// The first seed.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// Prints everything that happened.
        #[arg(long)]
        trace: bool,
    },
    /// Plants one bug after the other and looks whether the tests notice.
    Mutants {
        /// Only the bugs whose name contains this.
        #[arg(default_value = "")]
        name: String,
    },
    /// Builds the modules for browsers and prints what they and the npm package weigh.
    Size,
    /// Writes the generated documents: docs/CLI.md, docs/CONFIGURATION.md.
    Docs,
}

fn main() -> ExitCode {
    let result = match Cli::parse().chore {
        Chore::Dev { arguments } => dev(&arguments),
        Chore::Test { only, second_try, arguments } => test::run(only, second_try, &arguments),
        Chore::Wasm { browser } => {
            let built = if browser { browser::run() } else { wasm::run() };
            built.map(|path| println!("{}", path.display()))
        }
        Chore::Package => package::file().map(|path| println!("{}", path.display())),
        Chore::BenchBrowser => package::bench(),
        Chore::Check => check::run_and_finish(),
        Chore::Ci => check::run_and_finish().and_then(|()| test::run(None, true, &[])),
        Chore::Load { arguments } => load(&arguments),
        Chore::Chaos { runs, seed, jobs } => test::chaos(runs, seed, jobs),
        Chore::Simulate { seeds, seed, trace } => simulation::run(seeds, seed, trace),
        Chore::Mutants { name } => simulation::mutants(&name),
        Chore::Size => size::run(),
        Chore::Docs => docs(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root: xtask is always run from a checkout.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The cargo that runs us.
pub fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// Where cargo builds to, also when CARGO_TARGET_DIR says elsewhere.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    Ok(metadata.target_directory.into())
}

fn dev(arguments: &[OsString]) -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt as _;
    let mut report = steps::Report::new();
    report.step("wasm", "the evaluator, to target/wasm/evaluator.wasm", || {
        wasm::run().map(|path| path.display().to_string())
    });
    if report.failed() {
        bail!("the evaluator could not be built");
    }
    // Without Node, or off line, there is a Tidegate all the same.
    let mut demo = None;
    report.step("demo", "the npm package and its page, to target/demo", || {
        demo = Some(package::demo()?);
        Ok(String::new())
    });
    eprintln!("==> tidegate dev (building it takes some minutes the first time)");
    let arguments = arguments.iter().filter(|argument| *argument != "--");
    let demo = demo.map(|folder| ["--demo-dir".into(), folder.into_os_string()]);
    // exec, not spawn: ctrl-c and SIGTERM then reach the server itself.
    let error = Command::new(cargo())
        .args(["run", "--quiet", "--locked", "--package", "cli", "--bin", "tidegate", "--", "dev"])
        .args(demo.into_iter().flatten())
        .args(arguments)
        .exec();
    Err(error).context("cargo run")
}

fn load(arguments: &[OsString]) -> anyhow::Result<()> {
    wasm::run()?;
    // One after the other: built together, the server would get the features of the test clients.
    let arguments: Vec<&OsString> = arguments.iter().filter(|argument| *argument != "--").collect();
    let (load, mode, arguments) = match arguments.split_first() {
        Some((first, rest)) if *first == "propagation" => ("propagation", None, rest),
        Some((first, rest)) if *first == "bombs" => ("load", Some("bombs"), rest),
        _ => ("load", None, arguments.as_slice()),
    };
    for (package, binary) in [("cli", "tidegate"), ("e2e", load)] {
        steps::run(Command::new(cargo()).current_dir(root()).args([
            "build",
            "--locked",
            "--release",
            "--package",
            package,
            "--bin",
            binary,
        ]))?;
    }
    let release = target_dir()?.join("release");
    steps::run(
        Command::new(release.join(load))
            .args(mode)
            .arg("--tidegate")
            .arg(release.join("tidegate"))
            .args(arguments),
    )
}

fn docs() -> anyhow::Result<()> {
    for (of, file) in [("commands", "CLI.md"), ("configuration", "CONFIGURATION.md")] {
        let path = root().join("docs").join(file);
        let output = Command::new(cargo())
            .current_dir(root())
            .args(["run", "--quiet", "--locked", "--package", "cli", "--bin", "tidegate"])
            .args(["--", "reference", of])
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("cargo run")?;
        if !output.status.success() {
            bail!("tidegate reference {of}: {}", output.status);
        }
        std::fs::write(&path, &output.stdout).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
    }
    Ok(())
}
