//! The npm package of the browsers' evaluator (`sdk-wasm/npm`), and what proves it: its tests drive
//! Chromium and Node against a `tidegate dev` of this checkout.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::check::FEATURES;
use crate::postgres::run::COMPILED_DIR;
use crate::steps::{ask, run as run_program};
use crate::{browser, cargo, protoc, root, target_dir, test};

/// Builds the evaluators and the package, to `sdk-wasm/npm/dist`.
pub fn run() -> anyhow::Result<PathBuf> {
    browser::run()?;
    let package = root().join("sdk-wasm/npm");
    test::install_npm_in(&package)?;
    run_program(Command::new("node").arg(package.join("build.mjs")))?;
    Ok(package.join("dist"))
}

/// The page that `tidegate dev --demo-dir` serves: its own files, and the package beside them.
pub fn demo() -> anyhow::Result<PathBuf> {
    let dist = run()?;
    let folder = root().join("target/demo");
    copy(&root().join("sdk-wasm/demo"), &folder)?;
    copy(&dist, &folder.join("tidegate"))?;
    Ok(folder)
}

/// The package in one file, as npm would publish it. People install that and not the folder: npm only
/// links folders, and the dev servers of their projects do not serve what is linked from elsewhere.
pub fn file() -> anyhow::Result<PathBuf> {
    run()?;
    pack()
}

fn pack() -> anyhow::Result<PathBuf> {
    let package = root().join("sdk-wasm/npm");
    let folder = root().join("target/package");
    std::fs::create_dir_all(&folder)?;
    let mut npm = Command::new("npm");
    npm.current_dir(&package).args(["pack", "--silent", "--pack-destination"]).arg(&folder);
    Ok(folder.join(ask(&mut npm).context("npm pack")?))
}

/// The package in Chromium and Node, against a running Tidegate.
pub fn prove(again: bool) -> anyhow::Result<String> {
    let chromium = chromium().context("Chromium was looked for before")?;
    let demo = demo()?;
    let tarball = pack()?;
    // As the tests of the workspace build it, with a binary beside: what they built is not built again.
    let mut build = Command::new(cargo());
    protoc::with(&mut build)?;
    build.current_dir(root()).args(["test", "--quiet", "--locked", "--workspace", "--no-run"]);
    run_program(build.args(["--test", "binary", "--features", FEATURES]))?;
    let tests = root().join("sdk-wasm/tests/web");
    test::install_npm_in(&tests)?;
    let (tidegate, compiled) = (target_dir()?.join("debug/tidegate"), test::compiled_dir()?);
    let (mut late, mut failed) = (Vec::new(), Vec::new());
    // One file after the other: each has a Tidegate and a Chromium of its own, on two cores.
    for file in files(&tests)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut node = Command::new("node");
        node.current_dir(&tests).args(["--test", "--test-reporter=spec"]).arg(&file);
        node.env("TIDEGATE", &tidegate)
            .env("CHROMIUM", &chromium)
            .env(COMPILED_DIR, &compiled)
            .env("TIDEGATE_DEMO", &demo)
            .env("TIDEGATE_PACKAGE", &tarball);
        match run_program(&mut node) {
            Ok(()) => {}
            Err(_) if again && run_program(&mut node).is_ok() => late.push(name),
            Err(_) => failed.push(name),
        }
    }
    anyhow::ensure!(failed.is_empty(), "{} failed", failed.join(", "));
    test::second_tries("the package in Chromium and Node", &late)
}

/// Evaluations a second in Chromium, beside two other packages of npm.
pub fn bench() -> anyhow::Result<()> {
    let chromium = chromium().context("there is no Chromium; set CHROMIUM to one")?;
    let browser = browser::run()?;
    let corpus = test::corpus()?;
    let bench = root().join("sdk-wasm/bench");
    test::install_npm_in(&bench)?;
    let mut node = Command::new("node");
    node.arg(bench.join("page.mjs")).args([browser, corpus]).env("CHROMIUM", chromium);
    run_program(&mut node)
}

fn files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with(".test.mjs") {
            files.push(path);
        }
    }
    files.sort();
    anyhow::ensure!(!files.is_empty(), "no tests in {}", folder.display());
    Ok(files)
}

/// Debian's, or whichever `CHROMIUM` names.
pub fn chromium() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .flat_map(|folder| {
            ["chromium", "chromium-browser", "google-chrome"].map(|name| folder.join(name))
        })
        .find(|file| file.is_file())
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
