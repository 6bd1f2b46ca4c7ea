//! What every request has to get past before anybody looks at what it asks, and what every answer
//! says to browsers.
//!
//! Rates are counted per address before a key is looked at, and per caller once one is known. Both
//! maps are bounded: whoever comes from a hundred thousand addresses makes the oldest forgotten, and
//! is then held up by nothing but the limit of connections. Of edges only addresses are counted, as
//! one key may be that of a thousand edges.

use std::hash::Hash;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::Clock as _;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD,
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, ORIGIN, REFERRER_POLICY, STRICT_TRANSPORT_SECURITY,
    VARY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;

use super::Peer;
use super::problem::Stop;
use crate::attempts::counted_as;
use crate::authorize::Scope;

/// Path and query.
pub const URL_BYTES_MAX: usize = 8 * 1024;
/// Names and values of a request's headers together.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Addresses, and callers, that are remembered at once.
const REMEMBERED_MAX: u64 = 100_000;
/// Of proxies that stand one behind the other.
const HOPS_MAX: usize = 20;
/// How long a browser keeps what a preflight said.
const PREFLIGHT_SECONDS: &str = "600";

/// Nothing is loaded, framed or sent by an answer of the API.
const API_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
);
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// Requests in a second, and how many may come at once after a rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[derive(Debug, thiserror::Error)]
#[error("a rate is REQUESTS_A_SECOND:BURST, as 20:100, each at least 1")]
pub struct RateError;

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Rate, RateError> {
        let (per_second, burst) = text.split_once(':').ok_or(RateError)?;
        let number = |text: &str| text.trim().parse().map_err(|_| RateError);
        Ok(Rate { per_second: number(per_second)?, burst: number(burst)? })
    }
}

/// What the walls are made of: `Config.walls`.
#[derive(Debug, Clone)]
pub struct Walls {
    /// Of one address, before anybody is asked who they are. None: no limit.
    pub address: Option<Rate>,
    /// Of one account or service token. None: no limit.
    pub caller: Option<Rate>,
    /// Connections of one address; more are closed at once.
    pub connections_per_address: usize,
    /// Whose `X-Forwarded-For` is believed. They themselves have no limit.
    pub trusted_proxies: Vec<IpNet>,
    /// Exact origins whose pages may read the admin API's answers, with a token that they have.
    pub cors_origins: Vec<String>,
    /// People come over HTTPS alone: browsers are told to stay there.
    pub https_only: bool,
}

impl Default for Walls {
    fn default() -> Walls {
        const fn rate(per_second: u32, burst: u32) -> Option<Rate> {
            match (NonZeroU32::new(per_second), NonZeroU32::new(burst)) {
                (Some(per_second), Some(burst)) => Some(Rate { per_second, burst }),
                _ => None,
            }
        }
        Walls {
            // Behind one address there may be an office, or a cluster's edges.
            address: const { rate(100, 1_000) },
            caller: const { rate(20, 100) },
            connections_per_address: 200,
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            https_only: false,
        }
    }
}

impl Walls {
    /// As tests and `tidegate dev` have it: one machine asks as fast as it can.
    pub fn without_rates() -> Walls {
        Walls { address: None, caller: None, ..Walls::default() }
    }

    pub fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }

    /// Who asked, as far as it is known: from the nearest hop backwards, the first that is no proxy
    /// of ours. What is left of it could be anybody's invention.
    fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if !self.trusts(client) {
            return client;
        }
        let lines = headers.get_all(FORWARDED_FOR).iter().rev();
        let hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
        for hop in hops.take(HOPS_MAX) {
            let Some(address) = address_of(hop.trim()) else { break };
            client = address;
            if !self.trusts(client) {
                break;
            }
        }
        client
    }
}

/// A network as people write it, or one address.
pub fn network(text: &str) -> Option<IpNet> {
    let one = text.parse::<IpAddr>().map(IpNet::from);
    one.or_else(|_| text.parse()).ok()
}

/// An address, as proxies write it: alone, or with a port.
fn address_of(hop: &str) -> Option<IpAddr> {
    let bare = hop.strip_prefix('[').and_then(|rest| rest.split_once(']')).map(|(inner, _)| inner);
    let address = bare.unwrap_or(hop).parse::<IpAddr>();
    let address =
        address.or_else(|_| hop.parse().map(|with_port: std::net::SocketAddr| with_port.ip()));
    address.ok().map(|address| address.to_canonical())
}

/// A limiter for each key that came lately.
struct Rates<K> {
    quota: Quota,
    limiters: moka::sync::Cache<K, Arc<DefaultDirectRateLimiter>>,
}

impl<K: Hash + Eq + Send + Sync + 'static> Rates<K> {
    fn new(rate: Rate) -> Rates<K> {
        // After so long a rest a limiter knows nothing that a new one does not.
        let rest = u64::from(rate.burst.get() / rate.per_second.get()) + 1;
        Rates {
            quota: Quota::per_second(rate.per_second).allow_burst(rate.burst),
            limiters: moka::sync::Cache::builder()
                .max_capacity(REMEMBERED_MAX)
                .time_to_idle(Duration::from_secs(rest.max(60)))
                .build(),
        }
    }

    /// How many seconds who asks too often shall wait.
    fn over(&self, key: K) -> Option<u64> {
        let limiter = self.limiters.get_with(key, || Arc::new(RateLimiter::direct(self.quota)));
        let early = limiter.check().err()?;
        Some(early.wait_time_from(limiter.clock().now()).as_secs() + 1)
    }
}

/// The walls as they stand.
pub struct Standing {
    pub walls: Walls,
    addresses: Option<Rates<IpAddr>>,
    callers: Option<Rates<String>>,
}

impl Standing {
    pub fn new(walls: Walls) -> Standing {
        Standing {
            addresses: walls.address.map(Rates::new),
            callers: walls.caller.map(Rates::new),
            walls,
        }
    }

    /// Whether a caller who is known now may go on.
    pub fn admits(&self, request: &Request) -> Result<(), Stop> {
        let (Some(rates), Some(scope)) = (&self.callers, request.extensions().get::<Scope>())
        else {
            return Ok(());
        };
        match rates.over(scope.caller().key()) {
            None => Ok(()),
            Some(seconds) => Err(limited("caller", "you ask too often", seconds)),
        }
    }

    fn check(&self, request: &Request, client: Option<IpAddr>) -> Result<(), Stop> {
        if let (Some(rates), Some(client)) = (&self.addresses, client)
            && !self.walls.trusts(client)
            && let Some(seconds) = rates.over(counted_as(client))
        {
            return Err(limited("address", "this address asks too often", seconds));
        }
        let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
        if target > URL_BYTES_MAX {
            let detail = format!("a path with its query is at most {URL_BYTES_MAX} bytes");
            return Err(Stop::new(StatusCode::URI_TOO_LONG, "url-too-long", detail));
        }
        let headers = request.headers().iter();
        let bytes: usize = headers.map(|(name, value)| name.as_str().len() + value.len()).sum();
        if bytes > HEADER_BYTES_MAX {
            let detail = format!("a request's headers are at most {HEADER_BYTES_MAX} bytes");
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return Err(Stop::new(status, "headers-too-large", detail));
        }
        Ok(())
    }

    /// The origin of the request, if pages of it may read answers.
    fn allowed_origin(&self, request: &Request) -> Option<HeaderValue> {
        let origin = request.headers().get(ORIGIN)?;
        let allowed = self.walls.cors_origins.iter();
        allowed.into_iter().any(|one| one.as_bytes() == origin.as_bytes()).then(|| origin.clone())
    }

    fn dress(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>) {
        headers.entry(CONTENT_SECURITY_POLICY).or_insert(API_POLICY);
        // Lists of what a tenant has stay in no cache that others share.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        for (name, value) in [
            (X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (X_FRAME_OPTIONS, "DENY"),
            (REFERRER_POLICY, "no-referrer"),
            (OPENER_POLICY, "same-origin"),
            (RESOURCE_POLICY, "same-origin"),
            (PERMISSIONS_POLICY, "camera=(), geolocation=(), microphone=(), payment=()"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if self.walls.https_only {
            let two_years = HeaderValue::from_static("max-age=63072000; includeSubDomains");
            headers.insert(STRICT_TRANSPORT_SECURITY, two_years);
        }
        if !self.walls.cors_origins.is_empty() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let readable = "etag, location, retry-after, tidegate-fractional, tidegate-live, \
                            tidegate-refused";
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(readable));
        }
    }
}

fn limited(whose: &'static str, what: &str, seconds: u64) -> Stop {
    metrics::counter!("tidegate_control_limited_total", "whose" => whose).increment(1);
    Stop::too_often(format!("{what}; come again in {seconds} s"), seconds)
}

/// A preflight: no cookies are ever allowed, so a page needs a token of its own.
fn preflight() -> Response {
    let headers = [
        (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST, PUT, PATCH, DELETE"),
        (
            ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, if-match, if-none-match, idempotency-key, last-event-id",
        ),
        (ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

pub async fn stand(
    State(standing): State<Arc<Standing>>,
    mut request: Request,
    next: Next,
) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    let client = peer.map(|peer| standing.walls.client(peer, request.headers()));
    if let Some(client) = client {
        request.extensions_mut().insert(Peer(client));
    }
    let is_api = request.uri().path().starts_with("/api/");
    let origin = standing.allowed_origin(&request).filter(|_| is_api);
    let asks_before = request.method() == Method::OPTIONS
        && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = match standing.check(&request, client) {
        Err(stop) => stop.into_response(),
        Ok(()) if asks_before && origin.is_some() => preflight(),
        Ok(()) => next.run(request).await,
    };
    standing.dress(response.headers_mut(), origin);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walls(trusted: &[&str]) -> Walls {
        let trusted_proxies = trusted.iter().map(|network| network.parse().unwrap()).collect();
        Walls { trusted_proxies, ..Walls::default() }
    }

    #[test]
    fn a_client_is_the_first_hop_backwards_that_is_no_proxy_of_ours() {
        let trusting = walls(&["10.0.0.0/8", "fd00::/8"]);
        for (peer, forwarded, client) in [
            ("203.0.113.7", &["198.51.100.1"][..], "203.0.113.7"),
            ("10.0.0.1", &["198.51.100.1"], "198.51.100.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["1.1.1.1, 198.51.100.1, 10.2.3.4"], "198.51.100.1"),
            ("10.0.0.1", &["1.1.1.1", "198.51.100.1", "10.2.3.4"], "198.51.100.1"),
            ("10.0.0.1", &["10.9.9.9, 10.2.3.4"], "10.9.9.9"),
            // Nonsense ends what is believed.
            ("10.0.0.1", &["198.51.100.1, unknown, 10.2.3.4"], "10.2.3.4"),
            ("10.0.0.1", &["198.51.100.1:4711"], "198.51.100.1"),
            ("10.0.0.1", &["[2001:db8::1]:4711"], "2001:db8::1"),
            ("::ffff:10.0.0.1", &["2001:db8::1"], "2001:db8::1"),
            ("10.0.0.1", &["::ffff:198.51.100.1"], "198.51.100.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in forwarded {
                headers.append(FORWARDED_FOR, HeaderValue::from_static(line));
            }
            let found = trusting.client(peer.parse().unwrap(), &headers);
            assert_eq!(found, client.parse::<IpAddr>().unwrap(), "{peer} {forwarded:?}");
            let nobody = walls(&[]).client(peer.parse().unwrap(), &headers);
            assert_eq!(nobody, peer.parse::<IpAddr>().unwrap().to_canonical());
        }
    }

    #[test]
    fn neighbours_in_one_ipv6_network_are_one_and_others_are_not() {
        let counted = |text: &str| counted_as(text.parse().unwrap());
        assert_eq!(counted("2001:db8::1"), counted("2001:db8::ffff:1"));
        assert_ne!(counted("2001:db8::1"), counted("2001:db8:0:1::1"));
        assert_ne!(counted("192.0.2.1"), counted("192.0.2.2"));
    }

    #[test]
    fn a_rate_is_two_numbers() {
        let rate: Rate = "20:100".parse().unwrap();
        assert_eq!((rate.per_second.get(), rate.burst.get()), (20, 100));
        for wrong in ["", "20", "0:1", "1:0", "a:b", "1:2:3", "-1:2"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn each_key_has_its_burst_and_is_then_told_to_wait() {
        let rates = || Rates::new("1:3".parse().unwrap());
        let tried = || {
            let (rates, began) = (rates(), std::time::Instant::now());
            let over = ["a", "b"].map(|key| (0..4).map(|_| rates.over(key)).collect::<Vec<_>>());
            (over, began.elapsed())
        };
        // Within the second after which one more is let through.
        let (over, _) = (0..100)
            .map(|_| tried())
            .find(|(_, took)| *took < Duration::from_secs(1))
            .expect("a second");
        for over in over {
            let [None, None, None, Some(seconds)] = over[..] else { panic!("{over:?}") };
            assert!((1..=2).contains(&seconds), "{seconds}");
        }
    }
}
