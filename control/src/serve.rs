//! The accept loop. Our own, because `axum::serve` gives hyper no timer, which leaves its timeouts
//! inert, and because a shutdown has to drain. The limits of a connection are kept in `guard.rs`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;

use hyper_util::rt::{TokioExecutor, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::attempts::counted_as;
use crate::guard::{Guarded, Phase, Timeouts};
use crate::http::Peer;
use crate::http::walls::Standing;

const HEADERS_MAX: usize = 64;
/// Of a connection's read buffer, which also bounds its headers.
const BUFFER_BYTES: usize = 32 * 1024;
const H2_STREAMS_MAX: u32 = 100;
const H2_PING: Duration = Duration::from_secs(20);
/// After a failed accept (no file descriptors left) trying at once would burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts until told to stop, then drains; after `drain` the rest is cut.
pub async fn listen(
    listener: TcpListener,
    router: axum::Router,
    walls: Arc<Standing>,
    connections_max: usize,
    timeouts: Timeouts,
    drain: Duration,
    stopping: CancellationToken,
) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(connections_max));
    let per_address = Addresses::default();
    let cut = CancellationToken::new();
    let builder = Arc::new(builder());
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            metrics::counter!("tidegate_control_connections_refused_total").increment(1);
            continue;
        };
        let most = match walls.walls.trusts(peer.ip()) {
            true => usize::MAX,
            false => walls.walls.connections_per_address,
        };
        let Some(address) = per_address.enter(peer.ip(), most) else {
            metrics::counter!("tidegate_control_connections_refused_total").increment(1);
            continue;
        };
        let (watcher, cut, builder) = (graceful.watcher(), cut.clone(), builder.clone());
        let router = router.clone();
        tokio::spawn(async move {
            let phase = Arc::new(Phase::default());
            let service = {
                let phase = phase.clone();
                service_fn(move |mut request: Request<Incoming>| {
                    let (router, phase) = (router.clone(), phase.clone());
                    async move {
                        phase.begin();
                        request.extensions_mut().insert(Peer(peer.ip()));
                        let multiplexed = request.version() == Version::HTTP_2;
                        let Ok(answer) = router.oneshot(request).await;
                        if !multiplexed {
                            phase.end();
                        }
                        Ok::<_, Infallible>(answer)
                    }
                })
            };
            let _ = stream.set_nodelay(true);
            let stream = Guarded::new(stream, phase, timeouts);
            let connection = builder.serve_connection(stream, service);
            tokio::select! {
                result = watcher.watch(connection) => if let Err(error) = result {
                    tracing::trace!(%peer, error, "a connection ended badly");
                },
                () = cut.cancelled() => {}
            }
            drop(address);
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not drain in time and are cut");
    }
    cut.cancel();
    let all = u32::try_from(connections_max).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(Duration::from_secs(1), places.acquire_many(all)).await;
}

/// Connections by the address that they come from; no more addresses than there are connections.
#[derive(Debug, Clone, Default)]
struct Addresses(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection's place among those of its address.
struct Entered {
    addresses: Addresses,
    address: IpAddr,
}

impl Addresses {
    fn enter(&self, address: IpAddr, most: usize) -> Option<Entered> {
        let address = counted_as(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Entered { addresses: self.clone(), address })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.addresses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // See `guard.rs`.
        .header_read_timeout(None)
        .max_headers(HEADERS_MAX)
        .max_buf_size(BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_header_list_size(BUFFER_BYTES as u32)
        .max_pending_accept_reset_streams(20)
        .keep_alive_interval(H2_PING)
        .keep_alive_timeout(H2_PING);
    builder
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_of_ipv6_has_the_connections_of_one_address() {
        let addresses = Addresses::default();
        let enter = |text: &str| addresses.enter(text.parse().unwrap(), 2);
        let (one, two) = (enter("2001:db8::1"), enter("2001:db8::ffff:2"));
        assert!(one.is_some() && two.is_some() && enter("2001:db8::3").is_none());
        assert!(enter("2001:db8:0:1::1").is_some());
        drop(one);
        assert!(enter("2001:db8::3").is_some());
        drop(two);
        assert!(addresses.0.lock().unwrap().is_empty(), "nothing is remembered");
    }
}
