//! Builds the evaluator for browsers: cargo (feature `browser`), then wasm-opt, once for each tier,
//! and the TypeScript that calls it as one module, so that a test can run what browsers load.
//! Into target/browser: `core.wasm`, `full.wasm` and `engine.js`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::steps::{ask, run as run_program};
use crate::toolchain::{TARGET, Toolchain};
use crate::{root, test};

/// What rustc uses on its own and every browser has had since 2022. Named one by one: by default
/// wasm-opt refuses some of these, and `--all-features` would let it use what browsers lack.
const FEATURES: [&str; 6] = [
    "bulk-memory",
    "nontrapping-float-to-int",
    "sign-ext",
    "mutable-globals",
    "reference-types",
    "multivalue",
];

/// The module of a tier: its name, and the features of `sdk-wasm` that make it.
const TIERS: [(&str, &str); 2] = [("core", "browser"), ("full", "browser,full")];

const PROFILE: &str = "wasm-small";

/// Builds, and prints what a browser downloads.
pub fn run() -> anyhow::Result<PathBuf> {
    let package = root().join("sdk-wasm");
    test::install_npm_in(&package)?;
    let toolchain = Toolchain::find()?;
    let browser = root().join("target/browser");
    std::fs::create_dir_all(&browser)?;
    for (tier, features) in TIERS {
        run_program(
            toolchain
                .cargo()
                .args(["build", "--quiet", "--locked", "--package", "sdk-wasm"])
                .args(["--no-default-features", "--features", features])
                .args(["--profile", PROFILE, "--target", TARGET]),
        )?;
        let module = toolchain.output()?.join(PROFILE).join("sdk_wasm.wasm");
        let shipped = browser.join(tier).with_extension("wasm");
        optimise(&package, &module, &shipped)?;
        let sizes = ask(Command::new("node").arg(package.join("sizes.mjs")).arg(&shipped))?;
        eprintln!("    {tier}: {sizes}");
    }
    run_program(
        Command::new(package.join("node_modules/.bin/esbuild"))
            .arg(package.join("npm/src/engine.ts"))
            .args(["--bundle", "--format=esm", "--target=es2022", "--log-level=warning"])
            .arg(format!("--outfile={}", browser.join("engine.js").display())),
    )
    .context("esbuild")?;
    Ok(browser)
}

/// Names are dropped: they are a tenth of the module, and only a debugger reads them.
fn optimise(package: &Path, module: &Path, shipped: &Path) -> anyhow::Result<()> {
    let mut command = Command::new(package.join("node_modules/.bin/wasm-opt"));
    command.args(optimiser_arguments()).arg(module).arg("-o").arg(shipped);
    run_program(&mut command).context("wasm-opt, of npm's binaryen")
}

fn optimiser_arguments() -> Vec<String> {
    let mut arguments = vec!["-Os".to_owned(), "--strip-debug".to_owned()];
    // Nothing but what is named, whatever the module says of itself or wasm-opt thinks by default.
    arguments.push("--mvp-features".to_owned());
    arguments.extend(FEATURES.iter().map(|feature| format!("--enable-{feature}")));
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wasm_opt_may_use_what_is_named_and_nothing_else() {
        let arguments = optimiser_arguments();
        let enabled: Vec<_> =
            arguments.iter().filter_map(|argument| argument.strip_prefix("--enable-")).collect();
        assert_eq!(enabled, FEATURES);
        let first = arguments.iter().position(|argument| argument.starts_with("--enable-"));
        let none = arguments.iter().position(|argument| argument == "--mvp-features");
        assert!(none < first, "a later --mvp-features would take them back: {arguments:?}");
        assert!(!arguments.iter().any(|argument| argument == "--all-features"));
    }
}
