//! Builds the author kits under `policies/`, one policy in each language, to target/policies/:
//! `sandbox/tests/kits.rs` then sends them through admission with their test vectors.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use crate::steps::{install_packages, run as run_program};
use crate::test::install_npm_in;
use crate::toolchain::{TARGET, Toolchain};
use crate::{cargo, root};

/// Set where the kits have been built, so that their tests do not pass by looking away.
pub const TEST_KITS: &str = "TIDEGATE_TEST_KITS";
/// Names the languages in which docs/POLICIES.md can be followed to the letter here.
pub const TEST_AUTHORS: &str = "TIDEGATE_TEST_AUTHORS";

/// Its value. The page's cargo is the author's own, so Debian's compiler in its place will not do.
pub fn languages() -> anyhow::Result<&'static str> {
    match Toolchain::find()? {
        Toolchain::Own => Ok("rust,assemblyscript,c"),
        Toolchain::Debian(_) => {
            eprintln!(
                "    the page for authors is not followed in Rust: rustup's target is not here"
            );
            Ok("assemblyscript,c")
        }
    }
}

pub fn run() -> anyhow::Result<String> {
    let folder = root().join("target/policies");
    std::fs::create_dir_all(&folder)?;
    let kits = root().join("policies");
    let keep = |built: &Path, name: &str| {
        let to = folder.join(format!("{name}.wasm"));
        std::fs::copy(built, to).map(drop).with_context(|| built.display().to_string())
    };
    keep(&rust(&kits.join("rust"))?, "rust")?;
    let script = kits.join("assemblyscript");
    install_npm_in(&script)?;
    run_program(Command::new("npm").current_dir(&script).args(["run", "--silent", "build"]))?;
    keep(&script.join("build/policy.wasm"), "assemblyscript")?;
    install_clang()?;
    run_program(&mut Command::new(kits.join("c/build.sh")))?;
    keep(&kits.join("c/build/policy.wasm"), "c")?;
    Ok("Rust, AssemblyScript and C; the text format needs no building".to_owned())
}

/// A workspace of its own, so that what checks the repository's does not see it.
fn rust(kit: &Path) -> anyhow::Result<std::path::PathBuf> {
    let target = root().join("target/policies-rust");
    let own = |arguments: &[&str]| {
        let mut command = Command::new(cargo());
        command.current_dir(kit).args(arguments).env("CARGO_TARGET_DIR", &target);
        run_program(&mut command)
    };
    own(&["fmt", "--all", "--check"])?;
    own(&[
        "clippy",
        "--quiet",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ])?;
    own(&["test", "--quiet", "--locked", "--workspace"])?;
    let toolchain = Toolchain::find()?;
    let mut build = toolchain.cargo();
    build.args(["build", "--quiet", "--locked", "--release", "--target", TARGET]);
    build.arg("--manifest-path").arg(kit.join("Cargo.toml"));
    run_program(build.arg("--target-dir").arg(&target))?;
    Ok(target.join(TARGET).join("release/policy.wasm"))
}

/// Debian's compiler for C, which knows wasm32; installed for whoever is root.
fn install_clang() -> anyhow::Result<()> {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if is_there("clang") && is_there("wasm-ld") {
        return Ok(());
    }
    let how = "clang 14 and lld are needed for the C policy (Debian: apt-get install clang lld)";
    install_packages(&["clang", "lld"], how)?;
    anyhow::ensure!(
        is_there("clang") && is_there("wasm-ld"),
        "clang was installed and is not there"
    );
    Ok(())
}
