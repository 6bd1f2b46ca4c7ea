//! Prints what browsers download: the two modules, the TypeScript that calls them, and the npm
//! package's files if they were built. `docs/SIZES.md` says what is in them and why.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::steps::{ask, run as run_program};
use crate::{browser, root};

/// Builds the modules, so that the table is of this source.
pub fn run() -> anyhow::Result<()> {
    let built = browser::run()?;
    let package = root().join("sdk-wasm");
    let minified = built.join("engine.min.js");
    run_program(
        Command::new(package.join("node_modules/.bin/esbuild"))
            .arg(package.join("npm/src/engine.ts"))
            .args(["--bundle", "--minify", "--format=esm", "--target=es2022"])
            .arg("--log-level=warning")
            .arg(format!("--outfile={}", minified.display())),
    )
    .context("esbuild")?;
    let mut files = vec![
        ("core.wasm".to_owned(), built.join("core.wasm")),
        ("full.wasm".to_owned(), built.join("full.wasm")),
        ("engine and contexts, minified".to_owned(), minified),
    ];
    let dist = package.join("npm/dist");
    let scripts = scripts(&dist)?;
    if scripts.is_empty() {
        eprintln!(
            "    {} is not built, so the package's files are not in the table",
            dist.display()
        );
    }
    files.extend(scripts);
    let rows = files.iter().map(|(name, path)| format!("{name}={}", path.display()));
    println!("{}", ask(Command::new("node").arg(package.join("sizes.mjs")).args(rows))?);
    Ok(())
}

/// JavaScript and wasm under `folder`, by name; none where it is not.
fn scripts(folder: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    if !folder.is_dir() {
        return Ok(found);
    }
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if let (Some("js" | "mjs" | "wasm"), Some(name)) = (extension, path.file_name()) {
            found.push((format!("dist/{}", name.to_string_lossy()), path));
        }
    }
    found.sort();
    Ok(found)
}
