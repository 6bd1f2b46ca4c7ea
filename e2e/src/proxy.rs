//! A TCP proxy of a test's own, whose link can be made slow, deaf or broken while bytes pass.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What becomes of bytes that pass; of those of connections that are open, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Whole,
    /// Every piece comes so much later.
    Slow(Duration),
    /// Connections stay open and are made, and nothing passes until the link is whole again.
    Deaf,
    /// Connections are reset, new ones at once.
    Broken,
}

pub struct Proxy {
    pub address: SocketAddr,
    link: watch::Sender<Link>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Before a server that need not run yet.
    pub async fn before(server: SocketAddr) -> Proxy {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let (link, state) = watch::channel(Link::Whole);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, server, state.clone()));
            }
        });
        Proxy { address, link, accepting }
    }

    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Link::Broken);
    }
}

async fn pass(mut client: TcpStream, server: SocketAddr, mut link: watch::Receiver<Link>) {
    // Whoever dials a deaf link is let in and waits.
    if open(&mut link).await.is_none() {
        return reset(client);
    }
    let Ok(mut upstream) = TcpStream::connect(server).await else { return reset(client) };
    let _ = (client.set_nodelay(true), upstream.set_nodelay(true));
    let broken = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = upstream.split();
        tokio::select! {
            () = copy(from_client, to_server, link.clone()) => false,
            () = copy(from_server, to_client, link.clone()) => false,
            _ = link.wait_for(|link| *link == Link::Broken) => true,
        }
    };
    if broken {
        reset(client);
        reset(upstream);
    }
}

/// Waits until something can pass; none if nothing ever will.
async fn open(link: &mut watch::Receiver<Link>) -> Option<Duration> {
    match *link.wait_for(|link| *link != Link::Deaf).await.ok()? {
        Link::Whole => Some(Duration::ZERO),
        Link::Slow(delay) => Some(delay),
        Link::Deaf | Link::Broken => None,
    }
}

async fn copy(
    mut from: tokio::net::tcp::ReadHalf<'_>,
    mut to: tokio::net::tcp::WriteHalf<'_>,
    mut link: watch::Receiver<Link>,
) {
    let mut piece = vec![0u8; 16 * 1024];
    loop {
        let Ok(read) = from.read(&mut piece).await else { return };
        let Some(delay) = open(&mut link).await else { return };
        tokio::time::sleep(delay).await;
        let Some(bytes) = piece.get(..read).filter(|bytes| !bytes.is_empty()) else { return };
        if to.write_all(bytes).await.is_err() {
            return;
        }
    }
}

/// Closes without a farewell.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn said_back(stream: &mut TcpStream) -> bool {
        if stream.write_all(b"x").await.is_err() {
            return false;
        }
        let mut byte = [0u8];
        stream.read_exact(&mut byte).await.is_ok()
    }

    #[tokio::test]
    async fn a_deaf_link_says_nothing_until_it_is_whole_and_a_broken_one_ends() {
        let proxy = Proxy::before(echo().await).await;
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        assert!(said_back(&mut stream).await);
        proxy.set(Link::Deaf);
        let deaf = tokio::time::timeout(Duration::from_millis(200), said_back(&mut stream)).await;
        assert!(deaf.is_err(), "something passed");
        proxy.set(Link::Whole);
        let mut byte = [0u8];
        stream.read_exact(&mut byte).await.expect("what was held back");
        proxy.set(Link::Broken);
        assert!(stream.read_exact(&mut byte).await.is_err());
        let mut late = TcpStream::connect(proxy.address).await.unwrap();
        assert!(!said_back(&mut late).await);
        proxy.set(Link::Slow(Duration::from_millis(1)));
        let mut slow = TcpStream::connect(proxy.address).await.unwrap();
        assert!(said_back(&mut slow).await);
    }
}
