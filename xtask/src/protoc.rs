//! The compiler that etcd's client is built with: the machine's own, or the one that comes as a
//! crate, so that nothing has to be installed. Cargo without xtask needs one of the machine's.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;

/// Where builds look for it.
const PROTOC: &str = "PROTOC";

/// Tells a build where it is, unless the build finds it by itself.
pub fn with(command: &mut Command) -> anyhow::Result<&mut Command> {
    match bundled()? {
        Some(protoc) => Ok(command.env(PROTOC, protoc)),
        None => Ok(command),
    }
}

/// None: the machine has one.
fn bundled() -> anyhow::Result<Option<PathBuf>> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has_one = std::env::split_paths(&path).any(|folder| folder.join("protoc").is_file());
    if has_one || std::env::var_os(PROTOC).is_some_and(|file| !file.is_empty()) {
        return Ok(None);
    }
    let protoc = protoc_bin_vendored::protoc_bin_path();
    protoc.map(Some).context("there is no protoc (Debian: apt-get install protobuf-compiler)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_comes_as_a_crate_runs() {
        let protoc = protoc_bin_vendored::protoc_bin_path().unwrap();
        let said = crate::steps::ask(Command::new(protoc).arg("--version")).unwrap();
        assert!(said.starts_with("libprotoc "), "{said}");
    }
}
