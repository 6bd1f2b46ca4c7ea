//! Ports for servers that are started again where they were.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below those that the system gives to connections (Linux: from 32768 on), or one of them could have
/// the port while its server is down.
const FIRST: u64 = 12_000;
const COUNT: u64 = 20_000;
const TRIES: u32 = 100;

/// A port that was free a moment ago.
pub fn free() -> io::Result<SocketAddr> {
    let mut taken = io::Error::other("no port was tried");
    for _ in 0..TRIES {
        // Keys of their own, from the system's randomness: processes that ask at once differ.
        let random = RandomState::new().build_hasher().finish();
        let port = u16::try_from(FIRST + random % COUNT).unwrap_or(u16::MAX);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).and_then(|one| one.local_addr()) {
            Ok(address) => return Ok(address),
            Err(error) => taken = error,
        }
    }
    Err(taken)
}
