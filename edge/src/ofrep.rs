//! OFREP 0.3 over HTTP: one flag, or all. This is the hot path, so no router and no layers: one
//! table look-up, one pass over the body, one call into the sandbox, bytes out.
//!
//! What real clients need of the answers (each has a test in `tests/edge/ofrep.rs`):
//! - every status carries a JSON object with `metadata`, since the Java provider parses the body
//!   before it looks at the status; on the single path also `key`, `errorCode`, `errorDetails`,
//!   since the JavaScript core otherwise reports "unexpected response";
//! - a body or a context that is too long is a 400 INVALID_CONTEXT and not a 413: every client maps
//!   400, none maps 413, and the Go provider calls it an invalid response;
//! - `Retry-After` is an integer of at least 1: an ISO date is read as 2026 seconds, a 0 as a date;
//! - the ETag is a hash of the body, stream URL included, so a 304 is right whatever changed.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ALLOW, CACHE_CONTROL, CONTENT_TYPE,
    ETAG, IF_NONE_MATCH, ORIGIN, RETRY_AFTER, VARY, WWW_AUTHENTICATE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rules::answer::Audience;
use rules::context::{ContextBuf, ContextError};
use rules::limits::EVALUATION_BODY_BYTES_MAX;
use sandbox::SandboxError;
use serde_json::value::RawValue;

use crate::auth::{self, Denied};
use crate::serve::{Body, Shared};
use crate::state::{Announcement, Grant, Served, Table};
use crate::usage::{source_of, variant_of};

/// Beyond the limit so much is still read, so that the client sees the answer and not a reset.
const SURPLUS_BYTES_MAX: usize = 1024 * 1024;
const PREFIX: &str = "/ofrep/v1/evaluate/flags";

pub fn vary() -> HeaderValue {
    HeaderValue::from_static("Authorization, X-API-Key, Origin")
}

fn no_store() -> HeaderValue {
    HeaderValue::from_static("no-store")
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a> {
    /// Percent-decoded; `%2F` and `/` are the same.
    One(Cow<'a, str>),
    All,
}

/// What a path below `/ofrep/v1/evaluate/flags` asks for.
pub fn target(path: &str) -> Option<Target<'_>> {
    match path.strip_prefix(PREFIX)? {
        "" | "/" => Some(Target::All),
        rest => rest.strip_prefix('/').map(|key| Target::One(percent_decode(key))),
    }
}

/// A request that got no evaluation.
#[derive(Debug)]
pub struct Failure {
    pub status: StatusCode,
    pub code: &'static str,
    pub details: Cow<'static, str>,
    pub retry_after_s: Option<u64>,
}

impl Failure {
    pub fn bad(code: &'static str, details: impl Into<Cow<'static, str>>) -> Failure {
        let details = details.into();
        Failure { status: StatusCode::BAD_REQUEST, code, details, retry_after_s: None }
    }

    pub fn other(status: StatusCode, details: impl Into<Cow<'static, str>>) -> Failure {
        Failure { status, code: "GENERAL", details: details.into(), retry_after_s: None }
    }

    pub fn later(status: StatusCode, details: &'static str, retry_after_s: u64) -> Failure {
        let retry_after_s = Some(retry_after_s.max(1));
        Failure { status, code: "GENERAL", details: details.into(), retry_after_s }
    }

    /// The same object for every status, on every OFREP path; `key` where there is one.
    pub fn answer(&self, key: Option<&str>) -> Response<Body> {
        let mut body = Vec::with_capacity(160);
        body.push(b'{');
        if let Some(key) = key {
            body.extend_from_slice(b"\"key\":");
            write_string(key, &mut body);
            body.push(b',');
        }
        body.extend_from_slice(b"\"errorCode\":\"");
        body.extend_from_slice(self.code.as_bytes());
        body.extend_from_slice(b"\",\"errorDetails\":");
        write_string(&self.details, &mut body);
        body.extend_from_slice(b",\"metadata\":{}}");
        let mut answer = json(self.status, Bytes::from(body));
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let bearer = HeaderValue::from_static("Bearer");
            answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
        }
        answer
    }
}

pub async fn evaluate(
    shared: &Shared,
    target: Target<'_>,
    request: Request<Incoming>,
) -> Response<Body> {
    let began = Instant::now();
    let key = match &target {
        Target::One(key) => Some(key.as_ref()),
        Target::All => None,
    };
    let origin = request.headers().get(ORIGIN).cloned();
    let mut answer = match try_evaluate(shared, key, request, began).await {
        Ok(answer) => answer,
        Err(failure) => failure.answer(key),
    };
    if let Some(origin) = origin {
        allow_origin(&shared.state.table(), origin, answer.headers_mut());
    }
    answer
}

async fn try_evaluate(
    shared: &Shared,
    key: Option<&str>,
    request: Request<Incoming>,
    began: Instant,
) -> Result<Response<Body>, Failure> {
    if request.method() != Method::POST {
        return Err(Failure::other(StatusCode::METHOD_NOT_ALLOWED, "only POST is answered here"));
    }
    let grant = authorize(shared, request.headers())?;
    within_rate(&grant)?;
    let (parts, body) = request.into_parts();
    let body = read_body(body, shared.timeouts.body).await?;
    let context = context_of(&body)?;
    grant.served.offer_sample(&body);
    match key {
        Some(key) => Ok(one(&grant, key, context, began).await),
        None => {
            let grant = match parts.uri.query() {
                Some(query) => catch_up(shared, grant, query, &parts.headers).await?,
                None => grant,
            };
            all(&grant, grant.audience, context, &parts.headers, began).await
        }
    }
}

/// The key's grant, of the snapshot that the whole request will see.
pub fn authorize(shared: &Shared, headers: &HeaderMap) -> Result<Grant, Failure> {
    let table = shared.state.table();
    auth::check(&table, headers, crate::now_ms())
        .cloned()
        .map_err(|denied| denied_as(shared, &table, denied))
}

pub fn within_rate(grant: &Grant) -> Result<(), Failure> {
    let Some(seconds) = grant.over_limit() else { return Ok(()) };
    grant.served.tenant.metrics.limited.increment(1);
    Err(Failure::later(StatusCode::TOO_MANY_REQUESTS, "this key asks too often", seconds))
}

pub fn denied_as(shared: &Shared, table: &Table, denied: Denied) -> Failure {
    // A cold edge does not know its keys yet. A 401 would end a web provider for good.
    if table.is_empty() || (denied == Denied::UnknownKey && !shared.is_settled()) {
        shared.metrics.not_ready.increment(1);
        return Failure::later(StatusCode::SERVICE_UNAVAILABLE, "this edge has no snapshot yet", 1);
    }
    shared.metrics.denied.increment(1);
    let status = match denied {
        Denied::NoKey | Denied::UnknownKey | Denied::Expired => StatusCode::UNAUTHORIZED,
        Denied::Origin => StatusCode::FORBIDDEN,
    };
    Failure::other(status, denied.details())
}

async fn one(grant: &Grant, key: &str, context: ContextBuf, began: Instant) -> Response<Body> {
    let metrics = &grant.served.tenant.metrics;
    let (audience, now_ms) = (grant.audience, crate::now_ms());
    let evaluate = move |served: &Served, key: &str| {
        let mut body = Vec::with_capacity(320);
        let status = served.evaluator.evaluate_one(key, audience, &context, now_ms, &mut body)?;
        Ok::<_, SandboxError>((status, body))
    };
    let evaluated = match &grant.served.callers {
        Some(callers) if callers.has(key) => {
            let (served, key) = (grant.served.clone(), key.to_owned());
            callers.run(move || evaluate(&served, &key)).await.unwrap_or_else(panicked)
        }
        _ => evaluate(&grant.served, key),
    };
    let (status, body) = match evaluated {
        Ok((status, body)) => (status as u16, body),
        Err(error) => {
            // The sandbox has thrown the instance away; the next request gets a healthy one.
            tracing::error!(environment = ?grant.served.tenant.name, key, %error, "an evaluation failed");
            metrics.traps.increment(1);
            metrics.count_one(500, &[], began.elapsed());
            let failure =
                Failure::other(StatusCode::INTERNAL_SERVER_ERROR, "the evaluation failed");
            return failure.answer(Some(key));
        }
    };
    metrics.count_one(status, &body, began.elapsed());
    if status == 200 {
        let (usage, source) = (&grant.served.tenant.usage, source_of(grant.key.record.kind));
        usage.count(key, variant_of(&body).as_deref(), source, now_ms.div_euclid(60_000), 1);
    }
    json(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body.into())
}

/// A panic was logged where it happened; the evaluator's instance is thrown away with it.
fn panicked<T>() -> Result<T, SandboxError> {
    Err(SandboxError::Trapped("the code around it panicked".to_owned()))
}

/// Every flag that the audience may see.
pub async fn all(
    grant: &Grant,
    audience: Audience,
    context: ContextBuf,
    headers: &HeaderMap,
    began: Instant,
) -> Result<Response<Body>, Failure> {
    let metrics = &grant.served.tenant.metrics;
    let now_ms = crate::now_ms();
    let evaluate = move |served: &Served| {
        // Answers of one environment are much alike in length.
        let mut body = Vec::with_capacity(served.bulk_bytes());
        served.evaluator.evaluate_all(audience, &context, now_ms, &mut body)?;
        Ok::<_, SandboxError>(body)
    };
    let evaluated = match &grant.served.callers {
        Some(callers) => {
            let served = grant.served.clone();
            callers.run(move || evaluate(&served)).await.unwrap_or_else(panicked)
        }
        None => evaluate(&grant.served),
    };
    let mut body = match evaluated {
        Ok(body) => body,
        Err(error) => {
            tracing::error!(environment = ?grant.served.tenant.name, %error, "an evaluation failed");
            metrics.traps.increment(1);
            metrics.bulk_failed.increment(1);
            return Err(Failure::other(StatusCode::INTERNAL_SERVER_ERROR, "the evaluation failed"));
        }
    };
    if audience == Audience::BrowserAtEdge {
        // A guest that is older than this audience answers with an error in an answer's place.
        if !body.starts_with(b"{\"flags\":[") {
            return Err(Failure::other(StatusCode::INTERNAL_SERVER_ERROR, "the evaluation failed"));
        }
    } else {
        // `{"flags":[…],"metadata":{…}}` gets one more member.
        if body.pop() == Some(b'}') {
            body.extend_from_slice(&grant.stream_tail(now_ms.div_euclid(1000)));
        }
        grant.served.remember_bulk_bytes(body.len());
    }
    let etag = etag(&body);
    let not_modified = is_known_bytes(headers, &etag);
    let mut answer = if not_modified {
        metrics.bulk_not_modified.increment(1);
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        answer.headers_mut().insert(CACHE_CONTROL, no_store());
        answer.headers_mut().insert(VARY, vary());
        answer
    } else {
        metrics.bulk.increment(1);
        json(StatusCode::OK, body.into())
    };
    metrics.latency_bulk.record(began.elapsed().as_secs_f64());
    if let Ok(etag) = HeaderValue::from_bytes(&etag) {
        answer.headers_mut().insert(ETAG, etag);
    }
    Ok(answer)
}

/// A client that was told of a version by one edge may ask another that has not got it yet. The
/// answer waits for it a moment rather than giving back what the client already has; then it is
/// given all the same: `flagConfigEtag` is metadata and no condition.
async fn catch_up(
    shared: &Shared,
    grant: Grant,
    query: &str,
    headers: &HeaderMap,
) -> Result<Grant, Failure> {
    let wanted = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("flagConfigEtag="))
        .and_then(|id| Announcement::version_of(&percent_decode(id)));
    let Some(wanted) = wanted.filter(|wanted| *wanted > grant.served.version) else {
        return Ok(grant);
    };
    let Ok(_place) = shared.catching_up.try_acquire() else { return Ok(grant) };
    let mut announcements = grant.served.tenant.announcements.subscribe();
    let arrives = announcements.wait_for(|now| now.version >= Some(wanted));
    let arrived = tokio::time::timeout(shared.catch_up, arrives).await.is_ok();
    if arrived { authorize(shared, headers) } else { Ok(grant) }
}

/// The whole body, in one piece without a copy if it came in one.
pub async fn read_body(body: Incoming, within: Duration) -> Result<Bytes, Failure> {
    read_at_most(EVALUATION_BODY_BYTES_MAX, body, within).await
}

pub async fn read_at_most(
    bytes_max: usize,
    mut body: Incoming,
    within: Duration,
) -> Result<Bytes, Failure> {
    let too_long =
        || Failure::bad("INVALID_CONTEXT", format!("the body is longer than {bytes_max} bytes"));
    let announced = body.size_hint().lower() as usize;
    if announced > bytes_max + SURPLUS_BYTES_MAX {
        return Err(too_long());
    }
    let read = async {
        let mut first = Bytes::new();
        let mut rest = BytesMut::new();
        let mut len = 0usize;
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(drop)?.into_data() else { continue };
            len = len.saturating_add(data.len());
            if len > bytes_max {
                rest = BytesMut::new();
                first = Bytes::new();
                if len > bytes_max + SURPLUS_BYTES_MAX {
                    break;
                }
            } else if first.is_empty() {
                first = data;
                if body.is_end_stream() {
                    break;
                }
            } else {
                if rest.is_empty() {
                    rest.reserve(announced.clamp(len, bytes_max));
                    rest.extend_from_slice(&first);
                }
                rest.extend_from_slice(&data);
            }
        }
        Ok::<_, ()>((len, if rest.is_empty() { first } else { rest.freeze() }))
    };
    match tokio::time::timeout(within, read).await {
        Ok(Ok((len, _))) if len > bytes_max => Err(too_long()),
        Ok(Ok((_, body))) => Ok(body),
        Ok(Err(())) => Err(Failure::bad("PARSE_ERROR", "the body broke off")),
        Err(_) => Err(Failure::other(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    }
}

/// The context of a body. None at all is as good as an empty one (flagd's clients send no body, the
/// Python provider sends `{}`); what then lacks a targeting key fails by itself.
pub fn context_of(body: &[u8]) -> Result<ContextBuf, Failure> {
    #[derive(serde::Deserialize)]
    struct Asked<'a> {
        #[serde(borrow, default)]
        context: Option<&'a RawValue>,
    }
    let json: &[u8] = match body.trim_ascii_start().first() {
        None => b"",
        Some(b'{') => serde_json::from_slice::<Asked<'_>>(body)
            .map_err(|error| {
                Failure::bad("PARSE_ERROR", format!("the body is not valid JSON: {error}"))
            })?
            .context
            .map_or(&b""[..], |context| context.get().as_bytes()),
        // Also where the body is an array, which a derived struct would accept.
        Some(_) => {
            return Err(match serde_json::from_slice::<serde::de::IgnoredAny>(body) {
                Ok(_) => Failure::bad("PARSE_ERROR", "the body is not a JSON object"),
                Err(error) => {
                    Failure::bad("PARSE_ERROR", format!("the body is not valid JSON: {error}"))
                }
            });
        }
    };
    ContextBuf::from_json(json).map_err(|error| {
        let code = match &error {
            ContextError::Json(_) => "PARSE_ERROR",
            _ => "INVALID_CONTEXT",
        };
        Failure::bad(code, error.to_string())
    })
}

fn json(status: StatusCode, body: Bytes) -> Response<Body> {
    let mut answer = Response::new(Body::full(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, no_store());
    headers.insert(VARY, vary());
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(ALLOW, HeaderValue::from_static("POST, OPTIONS"));
    }
    answer
}

/// Lets pages read the answer, if some browser key of this edge names their origin: also errors,
/// or a page could not tell a revoked key from a broken network. Never with credentials.
pub fn allow_origin(table: &Table, origin: HeaderValue, headers: &mut HeaderMap) {
    if table.knows_origin(&origin) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers
            .insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("ETag, Retry-After"));
    }
}

/// Quoted. Not against forgers: whoever finds two bodies with one hash fools a cache of their own.
fn etag(body: &[u8]) -> [u8; 34] {
    let hash = xxhash_rust::xxh3::xxh3_128(body);
    let mut text = [b'"'; 34];
    for (place, digit) in text[1..33].iter_mut().enumerate() {
        let nibble = (hash >> (124 - 4 * place)) & 15;
        *digit = b"0123456789abcdef"[nibble as usize];
    }
    text
}

/// Whether the request says that its client has what this tag names.
pub fn is_known(headers: &HeaderMap, etag: &HeaderValue) -> bool {
    is_known_bytes(headers, etag.as_bytes())
}

fn is_known_bytes(headers: &HeaderMap, etag: &[u8]) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|sent| names_etag(sent.as_bytes(), etag))
}

/// Weakly, as RFC 9110 says for If-None-Match: a proxy that compresses makes a tag weak.
fn names_etag(sent: &[u8], etag: &[u8]) -> bool {
    sent.split(|byte| *byte == b',').any(|one| {
        let one = one.trim_ascii();
        one == b"*" || one.strip_prefix(b"W/").unwrap_or(one) == etag
    })
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    // Writing a string to a vector cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// `%` without two digits stays; bytes that are not UTF-8 become U+FFFD, which no flag key has.
pub fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let hex = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match (*byte, hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&decoded).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_slashes_is_the_same_key_encoded_or_raw() {
        let one = |key: &'static str| Some(Target::One(Cow::Borrowed(key)));
        assert_eq!(target("/ofrep/v1/evaluate/flags/a/b"), one("a/b"));
        assert_eq!(target("/ofrep/v1/evaluate/flags/a%2Fb"), one("a/b"));
        assert_eq!(target("/ofrep/v1/evaluate/flags/%C3%A4%20%zz"), one("ä %zz"));
        assert_eq!(target("/ofrep/v1/evaluate/flags"), Some(Target::All));
        assert_eq!(target("/ofrep/v1/evaluate/flags/"), Some(Target::All));
        assert_eq!(target("/ofrep/v1/evaluate/flagsx"), None);
    }

    #[test]
    fn an_entity_tag_is_found_in_a_list_and_when_weak() {
        let etag = etag(b"body");
        let text = std::str::from_utf8(&etag).unwrap();
        for sent in [text.to_owned(), format!("W/{text}"), format!("\"x\" , W/{text},\"y\"")] {
            assert!(names_etag(sent.as_bytes(), &etag), "{sent}");
        }
        assert!(!names_etag(text.trim_matches('"').as_bytes(), &etag));
        assert!(!names_etag(b"", &etag));
    }

    #[test]
    fn a_body_without_a_context_is_an_empty_context() {
        for body in ["", " \n", "{}", r#"{"context":null}"#, r#"{"other":[1]}"#] {
            assert!(context_of(body.as_bytes()).is_ok(), "{body:?}");
        }
        for body in ["[]", "null", "1", "{", r#"{"context":}"#, "[{}]", "\u{feff}{}"] {
            let failure = context_of(body.as_bytes()).unwrap_err();
            assert_eq!(failure.code, "PARSE_ERROR", "{body:?}");
        }
    }
}
