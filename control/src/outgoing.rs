//! Requests that control makes to addresses which people typed in: webhooks, identity providers.
//!
//! Whoever may name an address could have control ask what only control can reach: the metadata of a
//! cloud, a database, a neighbour. So a name is looked up here, what is not a public address is left
//! out, and the connection is made to one of the addresses that were checked and to no other: a name
//! that means something else a moment later (DNS rebinding) means nothing. No redirect is followed, no
//! proxy is asked, no cookie is kept, and what comes back is read up to a limit.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

const URL_BYTES_MAX: usize = 2048;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Where people put a server of theirs that speaks TLS.
const PORTS: [u16; 4] = [443, 4443, 8443, 9443];
/// Answers are looked at by people, if at all.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What addresses of a name are.
pub type Looked = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
/// Looks a name up.
pub type Lookup = Arc<dyn Fn(String) -> Looked + Send + Sync>;

/// Which addresses may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Public ones, over TLS.
    Public,
    /// Any, also without TLS: for developing, for tests, and where all who may name an address are
    /// trusted with the network that control is in.
    Anywhere,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    #[error("it is {0} bytes long, the limit is {URL_BYTES_MAX}")]
    TooLong(usize),
    #[error("it is no URL")]
    Malformed,
    #[error("it must begin with https://")]
    NotHttps,
    #[error("it must begin with https:// or http://")]
    NotHttp,
    #[error("it must not hold a user or a password")]
    Credentials,
    #[error("it must not hold a fragment")]
    Fragment,
    #[error("port {0} is not one of 443, 4443, 8443 and 9443")]
    Port(u16),
    #[error("{0} is not a public address")]
    NotPublic(IpAddr),
}

#[derive(Debug, thiserror::Error)]
pub enum SendError {
    #[error("the address cannot be used: {0}")]
    Url(#[from] UrlError),
    #[error("nothing came within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Failed(String),
}

/// What was answered; the body up to its limit.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Clone)]
pub struct Outgoing {
    http: reqwest::Client,
    reach: Reach,
}

/// As the system looks names up.
pub fn system_lookup() -> Lookup {
    Arc::new(|name| {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name, 0)).await?;
            Ok(found.map(|address| address.ip()).collect())
        })
    })
}

struct Checked {
    reach: Reach,
    lookup: Lookup,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (reach, looked) = (self.reach, (self.lookup)(name.as_str().to_owned()));
        Box::pin(async move {
            let found = looked.await?;
            let public: Vec<SocketAddr> = found
                .iter()
                .filter(|address| reach == Reach::Anywhere || is_public(**address))
                .map(|address| SocketAddr::new(*address, 0))
                .collect();
            match public.is_empty() {
                false => Ok(Box::new(public.into_iter()) as Addrs),
                true => Err(io::Error::other("the name has no public address").into()),
            }
        })
    }
}

impl Outgoing {
    pub fn new(reach: Reach, lookup: Lookup) -> Result<Outgoing, reqwest::Error> {
        // An error says that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .dns_resolver(Arc::new(Checked { reach, lookup }))
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(reach == Reach::Public)
            .connect_timeout(CONNECT_TIMEOUT)
            // An address that was public when it was connected to is asked anew soon.
            .pool_idle_timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(1)
            .referer(false)
            .build()?;
        Ok(Outgoing { http, reach })
    }

    /// What can be told without looking its name up. Asked again before each request: the rules may
    /// have become stricter since an address was kept.
    pub fn check(&self, text: &str) -> Result<Url, UrlError> {
        check(self.reach, text)
    }

    pub async fn post(
        &self,
        url: &str,
        headers: HeaderMap,
        body: Vec<u8>,
        within: Duration,
    ) -> Result<Reply, SendError> {
        // An address instead of a name is not looked up, so it is this that checks it.
        let url = self.check(url)?;
        let asking = async {
            let request = self.http.post(url).headers(headers).body(body);
            let mut response = request.send().await.map_err(|error| failed(&error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            let mut body = Vec::new();
            while body.len() < ANSWER_BYTES_MAX {
                match response.chunk().await {
                    Ok(Some(chunk)) => body.extend_from_slice(&chunk),
                    Ok(None) => break,
                    Err(error) => return Err(failed(&error)),
                }
            }
            body.truncate(ANSWER_BYTES_MAX);
            Ok(Reply { status, headers, body: body.into() })
        };
        match tokio::time::timeout(within, asking).await {
            Ok(done) => done,
            Err(_) => Err(SendError::Timeout(within)),
        }
    }
}

/// The innermost reason, without the URL: it can hold secrets of its owner.
fn failed(error: &reqwest::Error) -> SendError {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    match deepest.downcast_ref::<reqwest::Error>() {
        Some(_) => SendError::Failed("the request failed".to_owned()),
        None => SendError::Failed(deepest.to_string()),
    }
}

pub fn check(reach: Reach, text: &str) -> Result<Url, UrlError> {
    if text.len() > URL_BYTES_MAX {
        return Err(UrlError::TooLong(text.len()));
    }
    let url: Url = text.parse().map_err(|_| UrlError::Malformed)?;
    match (reach, url.scheme()) {
        (_, "https") | (Reach::Anywhere, "http") => {}
        (Reach::Public, _) => return Err(UrlError::NotHttps),
        (Reach::Anywhere, _) => return Err(UrlError::NotHttp),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(UrlError::Credentials);
    }
    if url.fragment().is_some() {
        return Err(UrlError::Fragment);
    }
    // In whichever way it was written (decimal, octal, hexadecimal, cut short), it is a number here.
    let address = match url.host() {
        None => return Err(UrlError::Malformed),
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
    };
    if reach == Reach::Public {
        if let Some(address) = address.filter(|address| !is_public(*address)) {
            return Err(UrlError::NotPublic(address));
        }
        if let Some(port) = url.port_or_known_default().filter(|port| !PORTS.contains(port)) {
            return Err(UrlError::Port(port));
        }
    }
    Ok(url)
}

/// Whether an address is anybody's on the internet and not somebody's in particular here. From the
/// registries of special-purpose addresses (RFC 6890 and its successors), which lists what is not
/// global; of IPv6 only what is given out at all (2000::/3).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    let special = match (a, b, c) {
        // This network; private; shared between customers; loopback; link-local, where clouds keep
        // credentials; private.
        (0 | 10 | 127, _, _) | (169, 254, _) | (192, 168, _) => true,
        (100, 64..=127, _) | (172, 16..=31, _) => true,
        // Protocol assignments; documentation; old relays of 6to4; benchmarks.
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 18..=19, _) => true,
        (198, 51, 100) | (203, 0, 113) => true,
        // Azure's own services answer each of its machines here.
        (168, 63, 129) => d == 16,
        // Multicast; reserved; broadcast.
        (224.., _, _) => true,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    let given_out = a & 0xe000 == 0x2000;
    let special = match (a, b) {
        // Teredo, benchmarks, identifiers and other protocols; documentation; 6to4, which wraps an
        // address of IPv4; documentation.
        (0x2001, 0..=0x1ff | 0xdb8) | (0x2002, _) | (0x3fff, 0..=0xfff) => true,
        _ => false,
    };
    given_out && !special
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// What may not be asked, and why.
    const REFUSED: [&str; 63] = [
        // Not TLS, and not HTTP.
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/_SET",
        "unix:/var/run/docker.sock",
        "javascript:alert(1)",
        "//example.com/",
        "example.com",
        "",
        // Secrets in it, ambiguous parts.
        "https://user:password@example.com/",
        "https://example.com@127.0.0.1/",
        "https://example.com/#fragment",
        // Ports of other services.
        "https://example.com:22/",
        "https://example.com:5432/",
        "https://example.com:6379/",
        "https://example.com:80/",
        "https://example.com:99999/",
        // Loopback, in every way of writing it.
        "https://127.0.0.1/",
        "https://127.1/",
        "https://127.255.255.254/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.0.0.1/",
        "https://0177.0.0.1/",
        "https://017700000001/",
        "https://0.0.0.0/",
        "https://0/",
        "https://127.0.0.1./",
        "https://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
        "https://127\u{3002}0\u{3002}0\u{3002}1/",
        "https://[::1]/",
        "https://[::]/",
        "https://[0:0:0:0:0:0:0:1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::ffff:7f00:1]/",
        "https://[::127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::]/",
        // Private networks.
        "https://10.0.0.1/",
        "https://172.16.0.1/",
        "https://172.31.255.255/",
        "https://192.168.1.1/",
        "https://100.64.0.1/",
        "https://100.127.255.255/",
        "https://[fc00::1]/",
        "https://[fd12:3456::1]/",
        "https://[fe80::1]/",
        "https://[fec0::1]/",
        // Where clouds keep credentials.
        "https://169.254.169.254/latest/meta-data/",
        "https://2852039166/",
        "https://0xa9fea9fe/",
        "https://[::ffff:169.254.169.254]/",
        "https://[fd00:ec2::254]/",
        "https://100.100.100.200/",
        "https://168.63.129.16/",
        "https://192.0.0.192/",
        // Documentation, benchmarks, multicast, broadcast, reserved.
        "https://192.0.2.1/",
        "https://198.18.0.1/",
        "https://198.51.100.7/",
        "https://203.0.113.7/",
        "https://224.0.0.1/",
        "https://255.255.255.255/",
        "https://[2001:db8::1]/",
    ];

    const ALLOWED: [&str; 13] = [
        "https://example.com/",
        "https://example.com:8443/hooks?a=b",
        "https://EXAMPLE.com/%2e%2e/",
        "https://b\u{fc}cher.example/",
        // Names are checked when they are looked up.
        "https://localhost/",
        "https://metadata.google.internal/",
        "https://1.1.1.1/",
        "https://172.15.255.255/",
        "https://172.32.0.1/",
        "https://100.63.255.255/",
        "https://100.128.0.1/",
        "https://[2606:4700:4700::1111]/",
        "https://[2a00:1450::1]/",
    ];

    #[test]
    fn what_is_not_a_public_address_over_tls_is_refused_however_it_is_written() {
        for text in REFUSED {
            let checked = check(Reach::Public, text);
            assert!(checked.is_err(), "{text:?} is {checked:?}");
        }
        for text in ALLOWED {
            let checked = check(Reach::Public, text);
            assert!(checked.is_ok(), "{text:?} is {checked:?}");
        }
        let long = format!("https://example.com/{}", "a".repeat(URL_BYTES_MAX));
        assert!(matches!(check(Reach::Public, &long), Err(UrlError::TooLong(_))));
        assert!(check(Reach::Anywhere, "http://127.0.0.1:1234/").is_ok());
        assert!(check(Reach::Anywhere, "http://user@127.0.0.1:1234/").is_err());
        assert!(check(Reach::Anywhere, "file:///etc/passwd").is_err());
    }

    /// A server that answers everything, and counts who connected.
    async fn server(answer: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connected = Arc::new(AtomicUsize::new(0));
        let count = connected.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    let mut asked = [0u8; 4096];
                    let _ = stream.read(&mut asked).await;
                    let _ = stream.write_all(answer).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        (address, connected)
    }

    /// Names that mean something else each time that they are looked up.
    fn changing(answers: Vec<Vec<&'static str>>) -> (Lookup, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let lookup: Lookup = Arc::new(move |_| {
            let at = count.fetch_add(1, Ordering::SeqCst);
            let answer = answers.get(at.min(answers.len() - 1)).cloned().unwrap_or_default();
            let addresses = answer.iter().map(|text| text.parse().expect("an address")).collect();
            Box::pin(async move { Ok(addresses) })
        });
        (lookup, asked)
    }

    const WITHIN: Duration = Duration::from_secs(60);
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

    #[tokio::test]
    async fn a_name_that_means_a_private_address_is_never_connected_to() {
        let (address, connected) = server(OK).await;
        // The connector takes an address's port from the URL, so this is the real server's.
        for answer in
            [vec!["127.0.0.1"], vec!["::1", "127.0.0.1"], vec!["::ffff:127.0.0.1"], vec![]]
        {
            let (lookup, _) = changing(vec![answer.clone()]);
            let http = reqwest::Client::builder()
                .dns_resolver(Arc::new(Checked { reach: Reach::Public, lookup }))
                .no_proxy()
                .build()
                .expect("a client");
            let url = format!("http://rebinding.example:{}/", address.port());
            let error = http.post(url).send().await.expect_err("refused");
            let SendError::Failed(said) = failed(&error) else { panic!("{error:?}") };
            assert_eq!(said, "the name has no public address", "{answer:?}");
        }
        assert_eq!(connected.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_for_a_connection_which_is_made_to_what_was_checked() {
        let (address, connected) = server(OK).await;
        // First it means our server, and from then on nothing that anybody could connect to.
        let (lookup, asked) = changing(vec![vec!["127.0.0.1"], vec!["192.0.2.1"]]);
        let outgoing = Outgoing::new(Reach::Anywhere, lookup).expect("a client");
        let url = format!("http://rebinding.example:{}/", address.port());
        let reply = outgoing.post(&url, HeaderMap::new(), Vec::new(), WITHIN).await;
        assert_eq!(reply.expect("an answer").status, 200);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert_eq!(connected.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn no_redirect_is_followed_and_no_more_is_read_than_the_limit() {
        let (elsewhere, connected) = server(OK).await;
        let answer = format!(
            "HTTP/1.1 302 Found\r\nlocation: http://{elsewhere}/\r\ncontent-length: 0\r\n\
             connection: close\r\n\r\n"
        );
        let (address, _) = server(Box::leak(answer.into_bytes().into_boxed_slice())).await;
        let outgoing = Outgoing::new(Reach::Anywhere, system_lookup()).expect("a client");
        let url = format!("http://{address}/");
        let reply = outgoing.post(&url, HeaderMap::new(), Vec::new(), WITHIN).await;
        assert_eq!(reply.expect("an answer").status, 302);
        assert_eq!(connected.load(Ordering::SeqCst), 0, "it went where it was sent");

        let mut long = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
        long.resize(4 * ANSWER_BYTES_MAX, b'x');
        let (address, _) = server(Box::leak(long.into_boxed_slice())).await;
        let url = format!("http://{address}/");
        let reply = outgoing.post(&url, HeaderMap::new(), Vec::new(), WITHIN).await;
        assert_eq!(reply.expect("an answer").body.len(), ANSWER_BYTES_MAX);
    }

    #[tokio::test]
    async fn where_only_public_addresses_may_be_asked_an_address_in_the_url_is_not_connected_to() {
        let (address, connected) = server(OK).await;
        let outgoing = Outgoing::new(Reach::Public, system_lookup()).expect("a client");
        for url in [format!("http://{address}/"), format!("https://{address}/")] {
            let refused = outgoing.post(&url, HeaderMap::new(), Vec::new(), WITHIN).await;
            assert!(matches!(refused, Err(SendError::Url(_))), "{refused:?}");
        }
        let refused =
            outgoing.post("https://localhost/", HeaderMap::new(), Vec::new(), WITHIN).await;
        let Err(SendError::Failed(said)) = refused else { panic!("{refused:?}") };
        assert_eq!(said, "the name has no public address");
        assert_eq!(connected.load(Ordering::SeqCst), 0);
    }
}
