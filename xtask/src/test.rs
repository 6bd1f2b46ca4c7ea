//! Everything that proves the house, in one command.
//!
//! What the tests need is installed into the repository and nowhere else: npm packages beside the
//! package-lock.json that names them, Python packages into `.venv`. The exceptions are rustup's
//! wasm32 target (`toolchain.rs`) and servers that the system packages, for whoever is root. Servers
//! are started by the tests themselves, on free ports.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::check::FEATURES;
use crate::postgres::run::{COMPILED_DIR, TEST_RUN};
use crate::postgres::{PostgresServer, TEST_POSTGRES};
use crate::steps::{Report, ask, fetch, install_packages, run as run_program};
use crate::{
    browser, cargo, package, policies, protoc, root, secrets, simulation, target_dir, wasm,
};

const SIMULATED_SEEDS: u64 = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Step {
    /// The evaluator as wasm.
    Wasm,
    /// npm ci, in every folder with a package-lock.json.
    Npm,
    /// A virtual environment with every requirements.txt.
    Python,
    /// PostgreSQL's programs, nats-server, etcd and Chromium, from Debian's packages where that may be done.
    Servers,
    /// A policy in each language of the author kits, to target/policies.
    Policies,
    /// All tests of the workspace, among them those that drive Node and Python clients.
    Rust,
    /// The tests of control and of the whole system once more, on PostgreSQL.
    Postgres,
    /// That no secret of the run is in the log of any process of it.
    Secrets,
    /// Ten thousand seeds of the simulation.
    Simulation,
    /// The conformance corpus under Node.
    Node,
    /// The same through the door for browsers, packaged as they load it.
    Browser,
    /// The npm package in Chromium and in Node, against a running Tidegate.
    Sdk,
}

/// `again`: what fails is run once more, and told if it passes only then.
pub fn run(only: Option<Step>, again: bool, arguments: &[OsString]) -> anyhow::Result<()> {
    let wanted = |step: Step| only.is_none_or(|only| only == step || needs(only).contains(&step));
    let mut report = Report::new();
    let mut ready = true;
    if wanted(Step::Wasm) {
        ready &= report.step("wasm", "the evaluator, to target/wasm/evaluator.wasm", || {
            wasm::run().map(|path| shown(&path))
        });
    }
    if wanted(Step::Npm) {
        ready &= report.step("npm", "packages of the JavaScript clients", install_npm);
    }
    if wanted(Step::Python) {
        ready &= report.step("python", "packages of the Python client, to .venv", install_python);
    }
    if wanted(Step::Servers) {
        ready &= report.step("servers", "the servers that tests start", install_servers);
    }
    if wanted(Step::Policies) {
        ready &= report.step("policies", "the author kits, to target/policies", policies::run);
    }
    if !ready {
        eprintln!("    the tests are not run: something that they need is missing");
        return report.finish();
    }
    if wanted(Step::Rust) || wanted(Step::Postgres) {
        secrets::begin()?;
    }
    if wanted(Step::Rust) {
        report.step("rust", "every test of the workspace", || rust(again, arguments));
    }
    if wanted(Step::Postgres) {
        report.step("postgres", "the tests that have a database, on PostgreSQL", || {
            postgres_tests(again, arguments)
        });
    }
    if wanted(Step::Rust) || wanted(Step::Postgres) || wanted(Step::Secrets) {
        // Part of the tests starts some of the processes, and has some of the secrets.
        let whole = arguments.is_empty() && only != Some(Step::Postgres);
        report.step("secrets", "that no secret of the tests is in a log of theirs", || {
            let folder = secrets::folder()?;
            match whole || secrets::are_there(&folder) {
                true => secrets::search(&folder, whole),
                false => Ok("none of these tests starts a process that has one".to_owned()),
            }
        });
    }
    if wanted(Step::Simulation) {
        let what = "the real code on a simulated network, for 10,000 seeds";
        report.step("simulation", what, || {
            simulation::run(SIMULATED_SEEDS, 1, false)?;
            Ok(format!("{SIMULATED_SEEDS} seeds"))
        });
    }
    if wanted(Step::Node) {
        report.step("node", "the evaluator under Node", node);
    }
    if wanted(Step::Browser) {
        report.step("browser", "the evaluator as browsers load it, under Node", browser);
    }
    if wanted(Step::Sdk) {
        report.step("sdk", "the npm package in Chromium and Node", || {
            corpus()?;
            package::prove(again)
        });
    }
    report.finish()
}

fn needs(step: Step) -> &'static [Step] {
    match step {
        // `browser::run` and `policies::run` bring their own npm packages.
        Step::Wasm | Step::Npm | Step::Python | Step::Servers | Step::Browser => &[],
        Step::Policies | Step::Secrets => &[],
        Step::Simulation => &[Step::Wasm],
        Step::Node => &[Step::Wasm, Step::Npm],
        // `package::prove` brings its own npm packages.
        Step::Sdk => &[Step::Wasm, Step::Servers],
        Step::Rust => &[Step::Wasm, Step::Npm, Step::Python, Step::Servers, Step::Policies],
        Step::Postgres => &[Step::Wasm, Step::Npm, Step::Python, Step::Servers],
    }
}

/// The servers that tests start on free ports, by Debian's names: what is missing is installed.
fn install_servers() -> anyhow::Result<String> {
    let missing = || {
        let mut missing = Vec::new();
        if crate::postgres::programs().is_none() {
            missing.push("postgresql");
        }
        if nats_server().is_none() {
            missing.push("nats-server");
        }
        if crate::etcd::program().is_none() {
            missing.push("etcd-server");
        }
        if package::chromium().is_none() {
            missing.push("chromium");
        }
        missing
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok("PostgreSQL, NATS, etcd and Chromium are installed".to_owned());
    }
    let names = packages.join(" ");
    let how = format!(
        "PostgreSQL 15, nats-server 2.9, etcd 3.4 and Chromium 137 or newer are needed (Debian: apt-get install {names})"
    );
    install_packages(&packages, &how)?;
    let missing = missing();
    anyhow::ensure!(missing.is_empty(), "{} was installed and is not there", missing.join(" "));
    Ok(format!("{names} was installed with apt-get"))
}

/// Debian's is where only root's PATH looks.
fn nats_server() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join("nats-server"))
        .find(|file| file.is_file())
}

fn install_npm() -> anyhow::Result<String> {
    let folders = folders_with("package-lock.json")?;
    if folders.is_empty() {
        return Ok("no package-lock.json yet".to_owned());
    }
    let version = ask(Command::new("node").arg("--version")).context("Node 20 is needed")?;
    for folder in &folders {
        install_npm_in(folder)?;
    }
    Ok(format!("{} folder(s), Node {version}", folders.len()))
}

/// `npm ci`, unless what package-lock.json says is there already.
pub fn install_npm_in(folder: &Path) -> anyhow::Result<()> {
    let wanted = std::fs::read(folder.join("package-lock.json"))?;
    let stamp = folder.join("node_modules/.tidegate-installed");
    if std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        eprintln!("    {} is up to date", shown(folder));
        return Ok(());
    }
    eprintln!("    installing into {}/node_modules", shown(folder));
    let mut npm = Command::new("npm");
    fetch(npm.current_dir(folder).args(["ci", "--no-audit", "--no-fund"]))?;
    std::fs::create_dir_all(folder.join("node_modules"))?;
    std::fs::write(&stamp, &wanted)?;
    Ok(())
}

fn install_python() -> anyhow::Result<String> {
    let mut lists = Vec::new();
    for folder in folders_with("requirements.txt")? {
        lists.push(folder.join("requirements.txt"));
    }
    if lists.is_empty() {
        return Ok("no requirements.txt yet".to_owned());
    }
    let venv = root().join(".venv");
    let python = venv.join("bin/python");
    let mut wanted = Vec::new();
    for list in &lists {
        wanted.extend(std::fs::read(list)?);
    }
    let stamp = venv.join(".tidegate-installed");
    if python.exists() && std::fs::read(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(".venv is up to date".to_owned());
    }
    if !python.exists() {
        let made = run_program(Command::new("python3").args(["-m", "venv"]).arg(&venv));
        // Debian keeps pip's bundle in a package of its own; pip itself can then still be there.
        if made.is_err() {
            eprintln!("    this Python has no ensurepip; trying its own pip instead");
            run_program(
                Command::new("python3").args(["-m", "venv", "--clear", "--without-pip"]).arg(&venv),
            )
            .context("a Python 3.11 with venv is needed (Debian: apt-get install python3-venv)")?;
        }
    }
    let mut pip = if venv.join("bin/pip").exists() {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip"]);
        pip
    } else {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "--python"]).arg(&python);
        pip
    };
    pip.args(["install", "--quiet", "--disable-pip-version-check"]);
    for list in &lists {
        pip.arg("-r").arg(list);
    }
    fetch(&mut pip).context("pip is needed (Debian: apt-get install python3-venv python3-pip)")?;
    std::fs::write(&stamp, &wanted)?;
    Ok("installed into .venv".to_owned())
}

fn rust(again: bool, arguments: &[OsString]) -> anyhow::Result<String> {
    let authors = policies::languages()?;
    let told = [(policies::TEST_KITS, "1"), (policies::TEST_AUTHORS, authors)];
    cargo_test(&["--workspace"], &told, again, arguments)
}

/// `e2e/tests/chaos.rs` with more seeds than a test run has time for.
pub fn chaos(runs: u64, seed: u64, jobs: u64) -> anyhow::Result<()> {
    install_servers()?;
    wasm::run()?;
    // All of the workspace is built, since the tests run its binary; one test of it runs.
    let test = |ends: &[&str]| -> anyhow::Result<Command> {
        let mut command = Command::new(cargo());
        protoc::with(&mut command)?;
        command.current_dir(root()).args(["test", "--locked", "--workspace", "--test", "chaos"]);
        command.args(["--bin", "tidegate", "--features", FEATURES]).args(ends);
        Ok(command)
    };
    run_program(&mut test(&["--no-run"])?)?;
    let (jobs, mut running) = (jobs.min(runs), Vec::new());
    for job in 0..jobs {
        let (from, to) = (runs * job / jobs, runs * (job + 1) / jobs);
        let mut command = test(&["--", "--nocapture", "whatever_dies"])?;
        command.env("TIDEGATE_CHAOS_RUNS", (to - from).to_string());
        command.env("TIDEGATE_CHAOS_SEED", (seed + from).to_string());
        running.push((seed + from, command.spawn().context("cargo")?));
    }
    // All are waited for: what one found does not end the others.
    let mut failed = Vec::new();
    for (first, mut child) in running {
        if !child.wait()?.success() {
            failed.push(first.to_string());
        }
    }
    anyhow::ensure!(failed.is_empty(), "a run failed of those from seed {}", failed.join(", "));
    Ok(())
}

/// SQLite hides type errors that PostgreSQL shows, so nothing is believed that ran on one of them.
fn postgres_tests(again: bool, arguments: &[OsString]) -> anyhow::Result<String> {
    let folder = std::env::temp_dir().join(format!("tidegate-postgres-{}", std::process::id()));
    // Of a run that was killed and had the same number.
    let _ = std::fs::remove_dir_all(&folder);
    let server = PostgresServer::start(&folder).context("PostgreSQL for the tests")?;
    let url = server.url("postgres");
    // The whole workspace is named, or its dependencies would be built with other features.
    let tests = ["path", "http", "died", "restart", "lead", "reconciler", "bad_input", "fleet"];
    let tests = tests.iter().flat_map(|test| ["--test", test]);
    let what: Vec<&str> = ["--workspace"].into_iter().chain(tests).collect();
    cargo_test(&what, &[(TEST_POSTGRES, &url)], again, arguments)
        .map(|how| format!("{how}; the server is stopped"))
}

fn cargo_test(
    what: &[&str],
    settings: &[(&str, &str)],
    again: bool,
    arguments: &[OsString],
) -> anyhow::Result<String> {
    let nextest = Command::new(cargo())
        .args(["nextest", "--version"])
        .output()
        .is_ok_and(|output| output.status.success());
    let mut command = Command::new(cargo());
    command.current_dir(root());
    if nextest {
        command.args(["nextest", "run"]);
    } else {
        command.arg("test");
    }
    protoc::with(&mut command)?;
    command.args(["--features", FEATURES]);
    command.args(["--locked", if nextest { "--no-fail-fast" } else { "--quiet" }]).args(what);
    command.envs(settings.iter().copied()).env(TEST_RUN, secrets::folder()?);
    command.env(COMPILED_DIR, compiled_dir()?);
    let again = again && nextest;
    // In the repository, wherever cargo builds to.
    let results = root().join("target/nextest/second-try/junit.xml");
    if again {
        command.args(["--profile", "second-try"]);
        // One of a run before must not speak for this one.
        let _ = std::fs::remove_file(&results);
    }
    if !nextest {
        command.arg("--no-fail-fast");
    }
    command.args(arguments);
    run_program(&mut command)?;
    let how = format!("with {}", if nextest { "cargo nextest" } else { "cargo test" });
    if !again {
        return Ok(how);
    }
    let results =
        std::fs::read_to_string(&results).with_context(|| results.display().to_string())?;
    second_tries(&how, &flaky(&results))
}

/// A busy machine makes one test late; more than that is a defect, of the tests or of Tidegate.
const SECOND_TRIES_MAX: usize = 3;

/// A step's note with the names of what passed only when it ran again.
pub fn second_tries(note: &str, names: &[String]) -> anyhow::Result<String> {
    let names_shown = names.join(", ");
    anyhow::ensure!(
        names.len() <= SECOND_TRIES_MAX,
        "{} passed only when they were run again, more than {SECOND_TRIES_MAX}: {names_shown}",
        names.len(),
    );
    match names.is_empty() {
        true => Ok(note.to_owned()),
        false => Ok(format!("{note}; PASSED ONLY WHEN RUN AGAIN: {names_shown}")),
    }
}

/// The names of tests that failed and then passed, in nextest's JUnit report.
fn flaky(junit: &str) -> Vec<String> {
    let cases = junit.split("<testcase ").skip(1).filter(|case| case.contains("<flakyFailure"));
    cases
        .map(|case| {
            let of = |name: &str| {
                let start = case.find(&format!("{name}=\""))? + name.len() + 2;
                case[start..].split('"').next()
            };
            format!("{} {}", of("classname").unwrap_or("?"), of("name").unwrap_or("?"))
        })
        .collect()
}

/// One compiled evaluator for all that is started in tests.
pub fn compiled_dir() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join("compiled"))
}

/// The corpus' bytes from Node. The clients' own tests are started by the Rust tests, which give
/// them servers to talk to.
fn node() -> anyhow::Result<String> {
    let program = root().join("sdk-wasm/tests/node/parity.mjs");
    let evaluator = root().join("target/wasm/evaluator.wasm");
    run_program(Command::new("node").arg(program).arg(evaluator).arg(corpus()?))?;
    Ok("the conformance corpus gives the native bytes".to_owned())
}

fn browser() -> anyhow::Result<String> {
    let browser = browser::run()?;
    let program = root().join("sdk-wasm/tests/node/browser.mjs");
    let corpus = corpus()?;
    let contexts = target_dir()?.join("debug/examples/corpus");
    run_program(Command::new("node").arg(program).arg(browser).arg(corpus).arg(contexts))?;
    Ok("the conformance corpus gives the native bytes through the browsers' door".to_owned())
}

/// Writes the conformance corpus with the native evaluator's answers.
pub fn corpus() -> anyhow::Result<PathBuf> {
    let corpus = root().join("target/corpus");
    run_program(
        Command::new(cargo())
            .current_dir(root())
            .args(["run", "--quiet", "--locked", "--package", "rules", "--example", "corpus"])
            .arg(&corpus),
    )?;
    Ok(corpus)
}

fn folders_with(name: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    visit(root(), &mut |path| {
        if path.file_name().is_some_and(|file| file == name) {
            found.extend(path.parent().map(Path::to_owned));
        }
    })?;
    found.sort();
    Ok(found)
}

/// Every file of the repository, without what tools have put there.
fn visit(folder: &Path, see: &mut dyn FnMut(&Path)) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if !name.starts_with('.') && name != "target" && name != "node_modules" {
                visit(&entry.path(), see)?;
            }
        } else {
            see(&entry.path());
        }
    }
    Ok(())
}

fn shown(path: &Path) -> String {
    let short = path.strip_prefix(root()).unwrap_or(path).display().to_string();
    if short.is_empty() { ".".to_owned() } else { short }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_alone_brings_what_it_needs() {
        for step in [Step::Rust, Step::Node] {
            assert!(needs(step).contains(&Step::Wasm), "{step:?}");
        }
    }

    #[test]
    fn what_passed_only_when_run_again_is_named_and_bounded() {
        let junit = r#"<testsuite name="e2e::nats" tests="2">
            <testcase name="fine" classname="e2e::nats" time="0.1"></testcase>
            <testcase name="late" classname="e2e::nats" time="0.1">
                <flakyFailure timestamp="2026-11-22T00:00:00Z" time="1.0" type="test failure"></flakyFailure>
            </testcase>
        </testsuite>"#;
        assert_eq!(flaky(junit), ["e2e::nats late"]);
        assert_eq!(second_tries("ran", &[]).unwrap(), "ran");
        assert!(second_tries("ran", &flaky(junit)).unwrap().contains("AGAIN: e2e::nats late"));
        let many = vec!["late".to_owned(); SECOND_TRIES_MAX + 1];
        assert!(second_tries("ran", &many).is_err());
    }

    #[test]
    fn a_path_outside_of_the_repository_is_shown_whole() {
        assert_eq!(shown(Path::new("/elsewhere/x")), "/elsewhere/x");
        assert_eq!(shown(&root().join("e2e")), "e2e");
    }
}
