//! Ports for servers that are started again where they were.
//!
//! A port stays the test process's own until that ends, also while its server is down: a locked file
//! tells other test processes.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Mutex;

/// Below those that the system gives to connections (Linux: from 32768 on), or one of them could have
/// the port while its server is down.
const FIRST: u64 = 12_000;
const COUNT: u64 = 20_000;
const TRIES: u32 = 100;

/// Locked for as long as this process lives.
static OURS: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The files of whoever made the folder; another user of the machine has another one.
fn locks() -> io::Result<PathBuf> {
    for name in std::iter::once("tidegate-test-ports".to_owned())
        .chain((1..100).map(|other| format!("tidegate-test-ports-{other}")))
    {
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder)?;
        match File::create(folder.join("mine")) {
            Ok(_) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("every folder for the locks of ports is somebody else's"))
}

/// A port that is nobody's.
pub fn free() -> io::Result<SocketAddr> {
    let locks = locks()?;
    let mut taken = io::Error::other("no port was tried");
    for _ in 0..TRIES {
        // Keys of their own, from the system's randomness: processes that ask at once differ.
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(FIRST + random % COUNT).unwrap_or(u16::MAX);
        let lock = File::create(locks.join(port.to_string()))?;
        if let Err(error) = lock.try_lock() {
            taken = error.into();
            continue;
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|one| one.local_addr()) {
            Ok(address) => {
                OURS.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(lock);
                return Ok(address);
            }
            Err(error) => taken = error,
        }
    }
    Err(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let address = free().expect("a port");
        let path = locks().expect("a folder").join(address.port().to_string());
        let other = File::create(path).expect("its file");
        assert!(other.try_lock().is_err(), "another process could have it");
    }
}
