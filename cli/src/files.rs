//! Files that a command reads or writes; `-` is standard input or output.

use std::io::Read as _;
use std::path::Path;

use serde_json::Value;

use crate::failure::{Exit, Failure};
use crate::paint;

/// What an import may be long; control has the same limit.
const BYTES_MAX: u64 = rules::limits::IMPORT_BYTES_MAX as u64;

pub fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| {
        Failure::new(Exit::Failed, format!("cannot read {}: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    // One byte more than allowed, to tell "exactly the limit" from "over it".
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(BYTES_MAX + 1).read_to_end(&mut bytes)
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(BYTES_MAX + 1).read_to_end(&mut bytes)
    };
    read.map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(Failure::new(
            Exit::Refused,
            format!("{} is longer than {BYTES_MAX} bytes", path.display()),
        ));
    }
    Ok(bytes)
}

pub fn read_json(path: &Path) -> Result<Value, Failure> {
    let bytes = read(path)?;
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::new(Exit::Refused, format!("{} is not JSON: {error}", path.display()))
    })
}

/// Writes a whole document, or prints it.
pub fn write(path: Option<&Path>, text: &str) -> Result<(), Failure> {
    match path {
        Some(path) if path != Path::new("-") => std::fs::write(path, text).map_err(|error| {
            Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
        }),
        _ => {
            paint::print(text);
            Ok(())
        }
    }
}

pub fn make_private_folder(dir: &Path) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot make {}: {error}", dir.display()))
    })
}

/// Whole or not at all, and for this user only, from its first byte on.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    control::signing::write_private(path, bytes).map_err(|error| {
        Failure::new(Exit::Failed, format!("cannot write {}: {error}", path.display()))
    })
}
