//! What must hold before anything is run: formatting, lints, the arrows.

use std::process::Command;

use crate::steps::{Report, run};
use crate::toolchain::{TARGET, Toolchain};
use crate::{cargo, protoc, root, tree};

/// What tests need beside the defaults. Points where faults are made (`edge/tests/disk_faults.rs`,
/// `control/tests/restart.rs`) and what a simulation decides, which do nothing in other tests; and etcd, whose client
/// is built with protoc.
pub const FEATURES: &str = "edge/failpoints,control/failpoints,e2e/failpoints,cli/etcd,e2e/etcd";

pub fn run_all(report: &mut Report) {
    report.step("fmt", "cargo fmt --check", || {
        run(Command::new(cargo()).current_dir(root()).args(["fmt", "--all", "--check"]))?;
        Ok(String::new())
    });
    report.step("tree", "arrows between crates, bans, licences and sources (deny.toml)", || {
        tree::check()
    });
    report.step("clippy", "the whole workspace with its tests, warnings are errors", || {
        run(protoc::with(Command::new(cargo()).current_dir(root()))?
            .args(["clippy", "--locked", "--workspace", "--all-targets", "--quiet"])
            .args(["--features", FEATURES, "--", "-D", "warnings"]))?;
        Ok(String::new())
    });
    report.step("wasm32", "`rules` and `sdk-wasm` build for wasm32-unknown-unknown", || {
        run(Toolchain::find()?
            .cargo()
            .args(["check", "--locked", "--quiet", "--package", "rules", "--package", "sdk-wasm"])
            .args(["--target", TARGET]))?;
        Ok(String::new())
    });
    // The workspace always has all of `rules`: only here is a new module seen to need what the core is without.
    report.step(
        "core",
        "the browsers' core, without std, builds for wasm32-unknown-unknown",
        || {
            run(Toolchain::find()?
                .cargo()
                .args(["check", "--locked", "--quiet", "--package", "sdk-wasm", "--target", TARGET])
                .args(["--no-default-features", "--features", "browser"]))?;
            Ok(String::new())
        },
    );
}

pub fn run_and_finish() -> anyhow::Result<()> {
    let mut report = Report::new();
    run_all(&mut report);
    report.finish()
}
