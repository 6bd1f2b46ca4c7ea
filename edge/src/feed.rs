//! Where an edge hears of snapshots: the port, and its implementation over HTTP. The one that has a
//! broker beside it is in `nats.rs`.
//!
//! A feed is never believed. What it brings is checked in `sync.rs` (signature, digest, order), so
//! an implementation may lose, repeat or reorder whatever it likes, and that costs time only.

mod delta;
pub mod nats;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use reqwest::StatusCode;
use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, ETAG, IF_NONE_MATCH};
use rules::blob::Digest;
use rules::head::{Heads, Receipts};
use rules::keys::ApiKey;
use rules::sample::{SampleOrders, SampleReport};
use rules::usage::UsageReport;

/// Bytes of an answer with heads: 2,000 environments at the longest head that there can be.
pub const HEADS_BYTES_MAX: u64 = 2_000 * (rules::limits::HEAD_BYTES_MAX as u64 + 256);

/// Orders of many environments, each at its longest.
const SAMPLE_ORDERS_BYTES_MAX: u64 = 16 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without a byte for so long, a transfer is given up; the next tick starts it again. All of an
/// edge's news wait for it.
const STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long control may hold a long poll; it allows 30.
const WAIT_SECONDS: u64 = 25;
const BACK_OFF_FIRST: Duration = Duration::from_millis(250);
const BACK_OFF_MAX: Duration = Duration::from_secs(15);

/// Control, as an edge sees it.
pub trait Feed: Send + Sync + 'static {
    /// The newest heads and their entity tag; None if `etag` is still theirs.
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>>;

    /// A blob of a namespace by its digest, at most `bytes_max` long. The caller verifies the digest.
    fn blob<'a>(
        &'a self,
        namespace: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>>;

    /// As `blob`, for an edge that has another one, `base`: the difference may be all that travels.
    fn blob_from<'a>(
        &'a self,
        namespace: &'a str,
        base: (Digest, Bytes),
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        let _ = base;
        self.blob(namespace, digest, bytes_max)
    }

    /// Tells what this edge serves and what it refused.
    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>>;

    /// Tells how often flags were used. What is sent again under its number counts once. A feed that
    /// leads nowhere takes everything.
    fn usage(&self, report: UsageReport) -> BoxFuture<'_, Result<(), FeedError>> {
        let _ = report;
        Box::pin(async { Ok(()) })
    }

    /// Brings sampled contexts, and is told of which environments to take some. A feed that leads
    /// nowhere orders none.
    fn samples(&self, report: SampleReport) -> BoxFuture<'_, Result<SampleOrders, FeedError>> {
        let _ = report;
        Box::pin(async { Ok(SampleOrders::default()) })
    }

    /// The doorbell: resolves when heads may have changed. A lost ring costs one anti-entropy
    /// interval.
    fn changed(&self) -> BoxFuture<'_, ()>;
}

#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    #[error("control cannot be reached")]
    Unreachable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The edge key is wrong, revoked, or not for this.
    #[error("control refused the edge's key with status {status}")]
    Denied { status: u16 },
    #[error("control answered with status {status}")]
    Status { status: u16 },
    #[error("control's answer is longer than {bytes_max} bytes")]
    TooLong { bytes_max: u64 },
    #[error("control's answer is malformed: {0}")]
    Malformed(String),
}

#[derive(Debug, thiserror::Error)]
pub enum HttpFeedError {
    #[error("the control URL is not an http or https URL: {0}")]
    Url(String),
    #[error("the HTTP client could not be set up")]
    Client(#[source] reqwest::Error),
}

/// Control over `/edge/v1`.
#[derive(Debug)]
pub struct HttpFeed {
    client: reqwest::Client,
    /// For long polls, which are silent for as long as there is no news.
    patient: reqwest::Client,
    base: String,
    key: ApiKey,
    /// What control said last. A long poll asks for anything else.
    known: Mutex<Option<String>>,
    /// What a long poll brought; the next `heads` takes it instead of asking again.
    rung: Mutex<Option<(Heads, String)>>,
    failures: AtomicU32,
}

impl HttpFeed {
    pub fn new(control_url: &str, key: ApiKey) -> Result<HttpFeed, HttpFeedError> {
        let base = control_url.trim_end_matches('/').to_owned();
        let plain = base.starts_with("http://");
        if !plain && !base.starts_with("https://") {
            return Err(HttpFeedError::Url(control_url.to_owned()));
        }
        // An error says that the process has one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = |silent_for: Duration| {
            let client = reqwest::Client::builder()
                .user_agent(concat!("tidegate-edge/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(silent_for)
                // A key must not follow a redirect to somewhere else.
                .redirect(reqwest::redirect::Policy::none());
            // Without this a machine that has no root certificates could not even speak HTTP.
            let client = if plain { client.tls_certs_only([]) } else { client };
            client.build().map_err(HttpFeedError::Client)
        };
        Ok(HttpFeed {
            client: client(STALL_TIMEOUT)?,
            patient: client(STALL_TIMEOUT + Duration::from_secs(WAIT_SECONDS))?,
            base,
            key,
            known: Mutex::new(None),
            rung: Mutex::new(None),
            failures: AtomicU32::new(0),
        })
    }

    async fn ask_heads(
        &self,
        etag: Option<String>,
        wait: bool,
    ) -> Result<Option<(Heads, String)>, FeedError> {
        let client = if wait { &self.patient } else { &self.client };
        let mut request = client.get(format!("{}/edge/v1/heads", self.base));
        if wait {
            request = request.query(&[("wait", WAIT_SECONDS)]);
        }
        if let Some(etag) = etag.filter(|etag| !etag.is_empty()) {
            request = request.header(IF_NONE_MATCH, etag);
        }
        let answer = self.send(request).await?;
        if answer.status() == StatusCode::NOT_MODIFIED {
            return Ok(None);
        }
        let etag = answer
            .headers()
            .get(ETAG)
            .and_then(|etag| etag.to_str().ok())
            .ok_or_else(|| FeedError::Malformed("heads come without an ETag".to_owned()))?
            .to_owned();
        let body = read(answer, HEADS_BYTES_MAX).await?;
        let heads = serde_json::from_slice(&body)
            .map_err(|error| FeedError::Malformed(error.to_string()))?;
        if let Ok(mut known) = self.known.lock() {
            *known = Some(etag.clone());
        }
        Ok(Some((heads, etag)))
    }

    async fn post(
        &self,
        path: &str,
        body: &impl serde::Serialize,
    ) -> Result<reqwest::Response, FeedError> {
        let url = format!("{}/edge/v1/{path}", self.base);
        let body =
            serde_json::to_vec(body).map_err(|error| FeedError::Malformed(error.to_string()))?;
        let request = self.client.post(url).body(body);
        let request = request.header(reqwest::header::CONTENT_TYPE, "application/json");
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, FeedError> {
        let answer = request
            .bearer_auth(self.key.reveal())
            .send()
            .await
            .map_err(|error| FeedError::Unreachable(Box::new(error)))?;
        match answer.status() {
            status if status.is_success() || status == StatusCode::NOT_MODIFIED => Ok(answer),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                Err(FeedError::Denied { status: status.as_u16() })
            }
            status => Err(FeedError::Status { status: status.as_u16() }),
        }
    }
}

impl Feed for HttpFeed {
    fn heads(
        &self,
        etag: Option<String>,
    ) -> BoxFuture<'_, Result<Option<(Heads, String)>, FeedError>> {
        Box::pin(async move {
            let rung = self.rung.lock().ok().and_then(|mut rung| rung.take());
            match rung {
                Some((_, brought)) if etag.as_ref() == Some(&brought) => Ok(None),
                Some(rung) => Ok(Some(rung)),
                None => self.ask_heads(etag, false).await,
            }
        })
    }

    /// Control knows whose it is.
    fn blob<'a>(
        &'a self,
        _: &'a str,
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let url = format!("{}/edge/v1/blobs/{digest}", self.base);
            read(self.send(self.client.get(url)).await?, bytes_max).await
        })
    }

    fn blob_from<'a>(
        &'a self,
        namespace: &'a str,
        base: (Digest, Bytes),
        digest: Digest,
        bytes_max: u64,
    ) -> BoxFuture<'a, Result<Bytes, FeedError>> {
        Box::pin(async move {
            let url = format!("{}/edge/v1/blobs/{digest}", self.base);
            let dictionary = format!(":{}:", BASE64.encode(base.0.0));
            let request = self
                .client
                .get(url)
                .header(ACCEPT_ENCODING, "dcz")
                .header("available-dictionary", dictionary);
            let answer = self.send(request).await?;
            let coding = answer.headers().get(CONTENT_ENCODING);
            let is_delta = coding.is_some_and(|coding| coding.as_bytes() == b"dcz");
            let body = read(answer, bytes_max).await?;
            if !is_delta {
                return Ok(body);
            }
            let of = (digest, bytes_max);
            let (made, travelled) = tokio::task::spawn_blocking(move || {
                let made = delta::apply((base.0, &base.1), &body, of.1);
                // Here, so that a wrong one falls back like one that cannot be decoded.
                (made.map(|made| (Digest::of(&made) == of.0).then_some(made)), body.len())
            })
            .await
            .map_err(|_| FeedError::Malformed("a delta broke its decoder".to_owned()))?;
            match made {
                Ok(Some(made)) => {
                    tracing::debug!(%digest, travelled, bytes = made.len(), "made from a delta");
                    return Ok(Bytes::from(made));
                }
                Ok(None) => tracing::warn!(%digest, "a delta gave other bytes; fetching the whole"),
                Err(error) => {
                    tracing::warn!(%digest, %error, "a delta is no good; fetching the whole");
                }
            }
            self.blob(namespace, digest, bytes_max).await
        })
    }

    fn receipts(&self, receipts: Receipts) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move { self.post("receipts", &receipts).await.map(drop) })
    }

    fn usage(&self, report: UsageReport) -> BoxFuture<'_, Result<(), FeedError>> {
        Box::pin(async move { self.post("usage", &report).await.map(drop) })
    }

    fn samples(&self, report: SampleReport) -> BoxFuture<'_, Result<SampleOrders, FeedError>> {
        Box::pin(async move {
            let answer = self.post("samples", &report).await?;
            let body = read(answer, SAMPLE_ORDERS_BYTES_MAX).await?;
            serde_json::from_slice(&body).map_err(|error| FeedError::Malformed(error.to_string()))
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            loop {
                let known = self.known.lock().ok().and_then(|known| known.clone());
                let first = known.is_none();
                match self.ask_heads(known, true).await {
                    Ok(Some(heads)) => {
                        self.failures.store(0, Ordering::Relaxed);
                        if let Ok(mut rung) = self.rung.lock() {
                            *rung = Some(heads);
                        }
                        return;
                    }
                    Ok(None) => self.failures.store(0, Ordering::Relaxed),
                    Err(error) => {
                        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
                        tracing::debug!(%error, failures, "the long poll failed");
                        tokio::time::sleep(back_off(failures)).await;
                        if first {
                            // Control was never reached: whoever waits shall try for itself.
                            return;
                        }
                    }
                }
            }
        })
    }
}

async fn read(mut answer: reqwest::Response, bytes_max: u64) -> Result<Bytes, FeedError> {
    let announced = answer.content_length();
    if announced.is_some_and(|length| length > bytes_max) {
        return Err(FeedError::TooLong { bytes_max });
    }
    // What is announced is not yet there, so it is not believed beyond a first megabyte.
    let mut body = BytesMut::with_capacity(announced.unwrap_or(0).min(1 << 20) as usize);
    while let Some(chunk) =
        answer.chunk().await.map_err(|error| FeedError::Unreachable(Box::new(error)))?
    {
        if (body.len() + chunk.len()) as u64 > bytes_max {
            return Err(FeedError::TooLong { bytes_max });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Full jitter: anything up to a bound that doubles with each failure, but never nothing.
pub(crate) fn back_off(failures: u32) -> Duration {
    let bound = BACK_OFF_FIRST.saturating_mul(1 << failures.min(10)).min(BACK_OFF_MAX);
    BACK_OFF_FIRST / 4 + bound.mul_f64(random_fraction())
}

/// `around` ± 50 %.
pub(crate) fn jittered(around: Duration) -> Duration {
    around.mul_f64(0.5 + random_fraction())
}

/// From 0 up to 1. Not for secrets: without the system's source it is a constant, which costs
/// spread and nothing else.
pub(crate) fn random_fraction() -> f64 {
    let mut bytes = [0u8; 4];
    if seam::random(&mut bytes).is_err() {
        return 0.5;
    }
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_grows_to_its_bound_and_is_never_nothing() {
        for failures in 0..40 {
            let wait = back_off(failures);
            assert!(wait >= BACK_OFF_FIRST / 4, "{wait:?}");
            assert!(wait <= BACK_OFF_MAX + BACK_OFF_FIRST, "{wait:?}");
        }
    }
}
