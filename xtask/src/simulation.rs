//! The simulation (`e2e/tests/simulation`) with as many seeds as wanted, and the bugs that are planted
//! to prove that it and the other tests see them.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use crate::check::FEATURES;
use crate::postgres::run::COMPILED_DIR;
use crate::steps::run as run_program;
use crate::{cargo, protoc, root, test, wasm};

const PLANTED: &str = "TIDEGATE_PLANTED_BUG";

pub fn run(seeds: u64, seed: u64, trace: bool) -> anyhow::Result<()> {
    wasm::run()?;
    let mut command = simulation(seeds, seed);
    command.env(COMPILED_DIR, test::compiled_dir()?);
    if trace {
        command.env("TIDEGATE_SIM_TRACE", "1");
    }
    run_program(protoc::with(&mut command)?)
}

fn simulation(seeds: u64, seed: u64) -> Command {
    let mut command = cargo_test("simulation");
    command.args(["--", "--nocapture", "whatever_happens"]);
    command.env("TIDEGATE_SIM_SEEDS", seeds.to_string());
    command.env("TIDEGATE_SIM_SEED", seed.to_string());
    command
}

/// One test binary, with the features of all: nothing is built twice.
fn cargo_test(test: &str) -> Command {
    let mut command = Command::new(cargo());
    command.current_dir(root()).args(["test", "--locked", "--quiet", "--workspace"]);
    command.args(["--features", FEATURES, "--test", test]);
    command
}

/// What notices a bug.
#[derive(Debug, Clone, Copy)]
enum Catcher {
    Simulation,
    /// A test binary, and the test in it.
    Test(&'static str, &'static str),
    /// A test beside the code.
    Unit(&'static str),
}

/// Bugs that can be planted (`seam::planted`) and what catches each; `docs/FAULTS.md` explains them.
const BUGS: &[(&str, Catcher)] = &[
    ("no-fence", Catcher::Simulation),
    ("lease-ignored", Catcher::Simulation),
    ("lease-from-the-answer", Catcher::Simulation),
    ("torn-read", Catcher::Simulation),
    ("revision-of-the-bus", Catcher::Simulation),
    ("failed-is-forgotten", Catcher::Simulation),
    ("failed-commit-acknowledged", Catcher::Simulation),
    ("no-audit-row", Catcher::Simulation),
    ("no-outbox-row", Catcher::Simulation),
    ("used-blobs-pruned", Catcher::Simulation),
    ("nothing-read-is-nothing-there", Catcher::Simulation),
    ("head-before-blobs", Catcher::Simulation),
    ("edge-goes-back", Catcher::Simulation),
    ("no-signature-check", Catcher::Simulation),
    ("no-digest-check", Catcher::Simulation),
    ("no-file-sync", Catcher::Simulation),
    ("no-folder-sync", Catcher::Simulation),
    ("oldest-file-first", Catcher::Simulation),
    (
        "bus-goes-back",
        Catcher::Unit("a_head_moves_forward_by_generation_then_revision_and_never_back"),
    ),
    ("any-base-of-a-delta", Catcher::Unit("the_right_base_gives_the_target_and_another_does_not")),
    (
        "etag-kept-when-unfinished",
        Catcher::Test("edge", "bytes_that_are_not_those_of_the_digest_are_refused_until"),
    ),
    (
        "generation-ignored",
        Catcher::Test(
            "edge",
            "an_older_head_never_replaces_a_newer_one_and_a_higher_generation_does",
        ),
    ),
    (
        "no-growth-gate",
        Catcher::Test("http", "a_snapshot_that_more_than_doubles_or_halves_waits_for_allow_growth"),
    ),
    (
        "usage-counted-again",
        Catcher::Test("http", "a_report_counts_once_and_shows_by_variant_source_and_time"),
    ),
    ("always-not-modified", Catcher::Test("path", "a_long_poll_answers_when_the_heads_differ")),
];

/// Enough for the rarest; most are caught by one of the first ten.
const SEEDS_FOR_A_BUG: u64 = 2_000;

/// Fails if a bug goes unnoticed.
pub fn mutants(name: &str) -> anyhow::Result<()> {
    wasm::run()?;
    let bugs: Vec<_> = BUGS.iter().filter(|(bug, _)| bug.contains(name)).collect();
    if bugs.is_empty() {
        bail!("no bug is called {name:?}");
    }
    let mut rows = Vec::new();
    for (bug, catcher) in bugs {
        eprintln!("==> {bug}");
        let began = Instant::now();
        let mut command = match catcher {
            Catcher::Simulation => simulation(SEEDS_FOR_A_BUG, 1),
            Catcher::Test(binary, test) => {
                let mut command = cargo_test(binary);
                command.args(["--", test]);
                command
            }
            Catcher::Unit(test) => {
                let mut command = Command::new(cargo());
                command.current_dir(root()).args(["test", "--locked", "--quiet", "--workspace"]);
                command.args(["--features", FEATURES, "--lib", "--", test]);
                command
            }
        };
        let output = protoc::with(&mut command)?
            .env(PLANTED, bug)
            .stdin(Stdio::null())
            .output()
            .context("cargo")?;
        let told = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        if told.contains("could not compile") {
            bail!("{told}");
        }
        let how = match catcher {
            Catcher::Simulation => told
                .lines()
                .find(|line| line.starts_with("seed "))
                .unwrap_or("the simulation")
                .chars()
                .take(110)
                .collect(),
            Catcher::Test(binary, test) => format!("{binary}: {test}"),
            Catcher::Unit(test) => (*test).to_owned(),
        };
        // A test that does not exist fails nobody.
        let caught = !output.status.success() && told.contains("test result: FAILED");
        rows.push((*bug, caught, began.elapsed(), how));
    }
    let mut missed = Vec::new();
    for (bug, caught, took, how) in rows {
        let word = if caught { "caught" } else { "MISSED" };
        let took = Duration::as_secs_f64(&took);
        println!("{word}  {bug:<28} {took:>6.1} s  {how}");
        if !caught {
            missed.push(bug);
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => bail!("nobody noticed {}", missed.join(", ")),
    }
}
