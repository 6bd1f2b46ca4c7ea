//! `xtask-bindgen MODULE.wasm web|nodejs FOLDER`: writes the JavaScript around a module that was
//! built with wasm-bindgen. What the `wasm-bindgen` command does, of the version in Cargo.lock, so
//! that there is no tool to install. A program of its own because its libraries would make every
//! chore of xtask wait half a minute on a fresh checkout. Called by `xtask/src/browser.rs`.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, host, folder] = arguments.as_slice() else {
        bail!("usage: xtask-bindgen MODULE.wasm web|nodejs FOLDER");
    };
    let mut bindgen = Bindgen::new();
    match host.as_str() {
        "web" => bindgen.web(true)?,
        "nodejs" => bindgen.nodejs(true)?,
        other => bail!("a host is web or nodejs, not {other}"),
    };
    bindgen
        .input_path(PathBuf::from(module))
        .out_name("evaluator")
        .typescript(true)
        .generate(folder)
        .with_context(|| format!("wasm-bindgen on {module}"))
}
