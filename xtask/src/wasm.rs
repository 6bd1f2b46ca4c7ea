//! Builds the evaluator as wasm. No build script calls cargo, so a person or xtask does.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::root;
use crate::steps::run as run_program;
use crate::toolchain::{TARGET, Toolchain};

/// Builds `sdk-wasm` without features and puts it where `sandbox/build.rs` looks for it.
pub fn run() -> anyhow::Result<PathBuf> {
    let toolchain = Toolchain::find()?;
    run_program(
        toolchain.cargo().args(["build", "--quiet", "--locked", "--package", "sdk-wasm"]).args([
            "--profile",
            "wasm",
            "--target",
            TARGET,
        ]),
    )?;
    let built = toolchain.output()?.join("wasm/sdk_wasm.wasm");
    let folder = root().join("target/wasm");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join("evaluator.wasm");
    let module = std::fs::read(&built).with_context(|| built.display().to_string())?;
    // The same bytes are left alone: a newer file would make cargo build every server again.
    if std::fs::read(&path).ok().as_ref() != Some(&module) {
        std::fs::write(&path, &module).with_context(|| path.display().to_string())?;
    }
    Ok(path)
}
