//! What handlers take from a request: the caller, the place, the page, and a write with its body,
//! its version and its idempotency key.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, ETAG, IF_MATCH, USER_AGENT,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use rules::limits::{ADMIN_BODY_BYTES_MAX, IMPORT_BYTES_MAX, POLICY_BYTES_MAX};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::authorize::callers::Asking;
use crate::authorize::{EdgeScope, NamespaceScope, Scope};
use crate::change::Expected;
use crate::change_sets::items::BYTES_MAX as CHANGE_SET_BYTES_MAX;
use crate::fleet;
use crate::http::problem::{Stop, respond};
use crate::http::{App, Peer};
use crate::idempotency::{self, Answer};
use crate::page::{Page, Paged};
use crate::refusal::Refusal;
use crate::rollout;
use crate::sessions::Device;
use crate::store::{Connection, Tx};

/// Of a body that comes before anybody knows who sends it.
const SAID_BYTES_MAX: usize = 16 * 1024;

/// Every handler's future is boxed where it is made: axum and tower wrap each in a dozen types, for each
/// of which the compiler proves anew that all that a handler awaits is `Send`. That was half of the time
/// that this crate took to compile.
pub use async_recursion::async_recursion as boxed;

pub type Shared = Arc<App>;
pub type Handled = Result<Response, Stop>;

/// The placeholders of a route's path.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct At {
    pub namespace: String,
    pub environment: String,
    pub flag: String,
    pub segment: String,
    pub list: String,
    pub id: String,
    pub digest: String,
    pub policy: String,
    pub webhook: String,
    pub delivery: String,
    pub user: String,
    /// Of a change set.
    pub number: i64,
    pub version: i64,
}

impl FromRequestParts<Shared> for At {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, shared: &Shared) -> Result<At, Stop> {
        let Path(at) = Path::<At>::from_request_parts(parts, shared)
            .await
            .map_err(|_| Stop::new(StatusCode::NOT_FOUND, "not-found", "there is no such path"))?;
        Ok(at)
    }
}

impl At {
    pub async fn scope(
        &self,
        read: &mut Connection,
        scope: &Scope,
    ) -> Result<NamespaceScope, Refusal> {
        scope.namespace(read, &self.namespace).await
    }
}

/// Put there by the authorizing layer; a route that it does not cover has none.
impl FromRequestParts<Shared> for Scope {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Scope, Stop> {
        parts.extensions.get::<Scope>().cloned().ok_or_else(unscoped)
    }
}

impl FromRequestParts<Shared> for EdgeScope {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<EdgeScope, Stop> {
        parts.extensions.get::<EdgeScope>().cloned().ok_or_else(unscoped)
    }
}

fn unscoped() -> Stop {
    Refusal::Internal("a route was reached without authorization".to_owned()).into()
}

pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// One of our own cookies.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let sent = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = sent.flat_map(|value| value.split(';')).filter_map(|pair| pair.split_once('='));
    pairs.find_map(|(sent, value)| (sent.trim() == name).then(|| value.trim()))
}

/// `?limit=` and `?cursor=`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    limit: Option<usize>,
    cursor: Option<String>,
}

impl FromRequestParts<Shared> for Page {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Page, Stop> {
        let listing: Listing = query(parts)?;
        Ok(Page::new(listing.limit, listing.cursor.as_deref())?)
    }
}

/// `?wait=live&timeout=30` and `?rollout=now`, of any write.
#[derive(Debug, Default, Deserialize)]
struct Waiting {
    #[serde(default)]
    wait: Option<WaitFor>,
    #[serde(default)]
    timeout: Option<u64>,
    #[serde(default)]
    rollout: Option<RolloutAs>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RolloutAs {
    Now,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum WaitFor {
    Live,
}

impl Waiting {
    /// How long it waits, and whether it is urgent.
    fn of(parts: &Parts) -> Result<(Option<Duration>, bool), Stop> {
        let Waiting { wait, timeout, rollout } = read_query(&parts.uri)?;
        let max = fleet::WAIT_MAX.as_secs();
        match timeout {
            Some(seconds) if !(1..=max).contains(&seconds) => {
                let message = format!("a timeout is 1 to {max} seconds");
                Err(Refusal::invalid("/timeout", message).into())
            }
            _ => {
                let wait = wait
                    .map(|WaitFor::Live| timeout.map_or(fleet::WAIT_DEFAULT, Duration::from_secs));
                Ok((wait, matches!(rollout, Some(RolloutAs::Now))))
            }
        }
    }
}

/// A route's own parameters, strictly; those that every write has are left out.
pub fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Stop> {
    if parts.method == Method::GET {
        return read_query(&parts.uri);
    }
    let shared =
        |pair: &&str| !["wait=", "timeout=", "rollout="].iter().any(|name| pair.starts_with(name));
    let pairs = parts.uri.query().unwrap_or_default().split('&').filter(shared);
    let own = format!("/?{}", pairs.collect::<Vec<_>>().join("&"));
    match own.parse() {
        Ok(uri) => read_query(&uri),
        Err(_) => read_query(&parts.uri),
    }
}

fn read_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Stop> {
    Query::try_from_uri(uri)
        .map(|Query(query)| query)
        .map_err(|rejection| Stop::new(StatusCode::BAD_REQUEST, "query", rejection.body_text()))
}

/// Strict query parameters of one route.
pub struct Asked<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Shared> for Asked<T> {
    type Rejection = Stop;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Stop> {
        query(parts).map(Asked)
    }
}

/// A write before it has begun: everything of the request is here.
pub struct Writing {
    shared: Shared,
    pub scope: Scope,
    pub expected: Expected,
    body: Bytes,
    headers: HeaderMap,
    request: Option<idempotency::Request>,
    wait: Option<Duration>,
    /// It comes to all edges at once.
    urgent: bool,
}

impl FromRequest<Shared> for Writing {
    type Rejection = Stop;

    async fn from_request(request: Request, shared: &Shared) -> Result<Writing, Stop> {
        let (parts, body) = request.into_parts();
        let scope = parts.extensions.get::<Scope>().cloned().ok_or_else(unscoped)?;
        let expected = expected(&parts.headers)?;
        let (wait, urgent) = Waiting::of(&parts)?;
        let path = parts.uri.path();
        let long =
            path.ends_with("/import") || path.ends_with("/included") || path.ends_with("/excluded");
        let max = match () {
            () if long => IMPORT_BYTES_MAX,
            () if path.ends_with("/versions") => POLICY_BYTES_MAX,
            () if path.contains("/change-sets") => CHANGE_SET_BYTES_MAX,
            () => ADMIN_BODY_BYTES_MAX,
        };
        // Who says that more is coming is not listened to any further.
        let said = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        if said.and_then(|value| value.parse::<u64>().ok()).is_some_and(|said| said > max as u64) {
            return Err(too_large(max));
        }
        let body = read(body, max, shared.body_timeout).await?;
        let request = match parts.headers.get("idempotency-key") {
            None => None,
            Some(key) => {
                let key = key
                    .to_str()
                    .ok()
                    .filter(|key| (1..=idempotency::KEY_BYTES_MAX).contains(&key.len()))
                    .ok_or_else(|| {
                        let detail = "an Idempotency-Key is 1 to 255 visible ASCII characters";
                        Stop::new(StatusCode::BAD_REQUEST, "idempotency-key", detail)
                    })?;
                let target = parts.uri.path_and_query().map_or("/", |target| target.as_str());
                let if_match = parts
                    .headers
                    .get(IF_MATCH)
                    .map_or("", |value| value.to_str().unwrap_or_default());
                let hash =
                    idempotency::request_hash(parts.method.as_str(), target, if_match, &body);
                Some(idempotency::Request {
                    actor: scope.caller().key(),
                    key: key.to_owned(),
                    hash,
                })
            }
        };
        let headers = parts.headers;
        let shared = shared.clone();
        Ok(Writing { shared, scope, expected, body, headers, request, wait, urgent })
    }
}

/// Whose connection a request came over.
pub struct PeerAddress(pub Option<std::net::IpAddr>);

impl FromRequestParts<Shared> for PeerAddress {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Self::Rejection> {
        Ok(PeerAddress(parts.extensions.get::<Peer>().map(|peer| peer.0)))
    }
}

/// What somebody says who is not known yet: to sign in, to set up, to join.
pub struct Said {
    pub shared: Shared,
    pub headers: HeaderMap,
    pub from: Device,
    body: Bytes,
}

impl FromRequest<Shared> for Said {
    type Rejection = Stop;

    async fn from_request(request: Request, shared: &Shared) -> Result<Said, Stop> {
        let (parts, body) = request.into_parts();
        let body = read(body, SAID_BYTES_MAX, shared.body_timeout).await?;
        let address = parts.extensions.get::<Peer>().map(|peer| peer.0);
        let asking = Asking {
            user_agent: parts.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()),
            ..Asking::default()
        };
        let from = Device { address, user_agent: asking.program() };
        Ok(Said { shared: shared.clone(), headers: parts.headers, from, body })
    }
}

impl Said {
    /// The body, strictly; a problem names its place.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Stop> {
        expect_type(&self.headers, &["application/json"])?;
        parse(&self.body)
    }
}

/// Who sends a body slower than this is taken for one who only wants to hold a place.
const BODY_BYTES_PER_SECOND_MIN: u32 = 4 * 1024;

/// A body, up to its limit. Its first megabytes are not believed before they came. It has `within`
/// to begin and after each piece to go on, and must come at a least pace on the whole: a byte now and
/// then holds nothing for long.
pub async fn read(
    body: axum::body::Body,
    bytes_max: usize,
    within: Duration,
) -> Result<Bytes, Stop> {
    let mut body = Limited::new(body, bytes_max);
    let mut read = BytesMut::new();
    let began = tokio::time::Instant::now();
    loop {
        let earned = u32::try_from(read.len()).unwrap_or(u32::MAX) / BODY_BYTES_PER_SECOND_MIN;
        let ends = began + within + Duration::from_secs(earned.into());
        let due = ends.min(tokio::time::Instant::now() + within);
        let Ok(frame) = tokio::time::timeout_at(due, body.frame()).await else {
            let detail = format!("the body came too slowly, or not at all within {within:?}");
            return Err(Stop::new(StatusCode::REQUEST_TIMEOUT, "timeout", detail));
        };
        match frame {
            None => return Ok(read.freeze()),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    read.extend_from_slice(data);
                }
            }
            Some(Err(error)) if error.downcast_ref::<LengthLimitError>().is_some() => {
                return Err(too_large(bytes_max));
            }
            Some(Err(_)) => {
                return Err(Stop::new(StatusCode::BAD_REQUEST, "body", "the body broke off"));
            }
        }
    }
}

/// Without reading it as JSON: brackets outside of strings are counted. What is no JSON is refused by
/// who reads it.
fn is_deeper_than(depth_max: usize, body: &[u8]) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => {
                depth += 1;
                if depth > depth_max {
                    return true;
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

fn too_large(bytes_max: usize) -> Stop {
    let detail = format!("the body is over its limit of {bytes_max} bytes");
    Stop::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", detail)
}

fn expected(headers: &HeaderMap) -> Result<Expected, Stop> {
    let Some(value) = headers.get(IF_MATCH) else { return Ok(Expected::Unsaid) };
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(Expected::Any);
    }
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    // Another's ETag is a version that is not the current one, as it was never ours.
    match version {
        Some(version) => Ok(Expected::Version(version.parse().unwrap_or(-1))),
        None => {
            let detail = "If-Match is one ETag in quotes, or *";
            Err(Stop::new(StatusCode::BAD_REQUEST, "if-match", detail))
        }
    }
}

impl Writing {
    /// Strict: an unknown field is named with its place.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Stop> {
        self.expect_type(&["application/json"])?;
        parse(&self.body)
    }

    pub fn expect_type(&self, types: &[&str]) -> Result<(), Stop> {
        expect_type(&self.headers, types)
    }

    /// Without what a repeated request needs: nothing of it may be kept, not even its hash.
    pub fn forgetting(mut self) -> Writing {
        self.request = None;
        self
    }

    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    pub fn body(&self) -> Bytes {
        self.body.clone()
    }

    /// Ends here if this very request was answered before: for handlers whose work before `begin`
    /// costs more than asking.
    pub async fn end_if_answered(&self, read: &mut Connection) -> Result<(), Stop> {
        let Some(request) = &self.request else { return Ok(()) };
        match idempotency::find(read, request).await? {
            Some(answer) => Err(Stop::Replayed(answer)),
            None => Ok(()),
        }
    }

    /// Ends here if this very request was answered before.
    pub async fn begin(self) -> Result<Write, Stop> {
        let mut tx = self.shared.store.write().await?;
        if let Some(request) = &self.request {
            // Before any other lock; the same request at the same time waits for its answer.
            tx.take_turn(&format!("idempotency {} {}", request.actor, request.key)).await?;
            if let Some(answer) = idempotency::find(&mut tx, request).await? {
                return Err(Stop::Replayed(answer));
            }
        }
        Ok(Write {
            tx,
            scope: self.scope,
            expected: self.expected,
            request: self.request,
            shared: self.shared,
            wait: self.wait,
            urgent: self.urgent,
        })
    }
}

fn expect_type(headers: &HeaderMap, types: &[&str]) -> Result<(), Stop> {
    let sent = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let sent = sent.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match types.iter().any(|wanted| sent.eq_ignore_ascii_case(wanted)) {
        true => Ok(()),
        false => Err(Stop::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "content-type",
            format!("send the body as {}", types.join(" or ")),
        )),
    }
}

/// Of arrays and objects within each other. A condition of the deepest nesting that rules may have,
/// in a configuration of an import, takes about forty.
pub const JSON_DEPTH_MAX: usize = 64;

pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Stop> {
    if is_deeper_than(JSON_DEPTH_MAX, body) {
        let message = format!("arrays and objects are nested deeper than {JSON_DEPTH_MAX}");
        return Err(Refusal::invalid("", message).into());
    }
    rules::compile::parse(body).map_err(|problem| Refusal::Invalid(vec![problem]).into())
}

/// A write under way; nothing of it is there until `finish`.
pub struct Write {
    pub tx: Tx,
    pub scope: Scope,
    pub expected: Expected,
    request: Option<idempotency::Request>,
    shared: Shared,
    wait: Option<Duration>,
    urgent: bool,
}

impl Write {
    pub async fn finish(self, answer: Answer) -> Handled {
        let kept = answer.clone();
        self.finish_with_secret(answer, kept).await
    }

    /// With the state of what was changed, which has its version. Of what was so already it is shown, and
    /// nothing is committed.
    pub async fn finish_unless_so(self, done: Result<Value, Refusal>) -> Handled {
        let (state, is_so) = match done {
            Ok(state) => (state, false),
            Err(Refusal::Already(state)) => (state, true),
            Err(refusal) => return Err(refusal.into()),
        };
        let answer = answer(StatusCode::OK, state["version"].as_i64(), &state);
        match is_so {
            true => Ok(respond(answer)),
            false => self.finish(answer).await,
        }
    }

    /// As `finish`; what is kept for a repeated request is without the answer's secret, so that
    /// it is shown once and stored nowhere.
    pub async fn finish_with_secret(mut self, answer: Answer, kept: Answer) -> Handled {
        if let Some(request) = &self.request {
            idempotency::keep(&mut self.tx, request, &kept).await?;
        }
        let touched = std::mem::take(&mut self.tx.touched);
        for touched in touched.iter().filter(|_| self.urgent) {
            rollout::urge(&mut self.tx, &touched.environment_id, touched.revision).await?;
        }
        fail_at("change::commit")?;
        self.tx.commit().await?;
        fail_at("change::committed")?;
        self.shared.doorbell.ring();
        let mut response = respond(answer);
        if let Some(wait) = self.wait {
            // It is committed whatever becomes of the waiting, so that fails nothing.
            let live = tokio::select! {
                live = fleet::wait(&self.shared.store, &touched, wait) => live.ok(),
                () = self.shared.stopping.cancelled() => None,
            };
            let word = match live {
                Some(live) => format!(
                    "live=?{}, serving={}, edges={}{}",
                    u8::from(live.everywhere()),
                    live.serving,
                    live.edges,
                    if live.halted { ", rollout=halted" } else { "" }
                ),
                None => "live=?0".to_owned(),
            };
            if let Ok(word) = HeaderValue::from_str(&word) {
                response.headers_mut().insert("tidegate-live", word);
            }
        }
        Ok(response)
    }
}

/// Where tests let the process die. Nothing is left of it in a build without failpoints.
fn fail_at(_name: &'static str) -> Result<(), Stop> {
    #[cfg(feature = "failpoints")]
    fail::fail_point!(_name, |_| Err(Refusal::Internal(format!("it died at {_name}")).into()));
    Ok(())
}

/// RFC 3339 as stored times are.
pub fn moment(pointer: &str, text: Option<&str>) -> Result<Option<i64>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| {
        Refusal::invalid(pointer, "a time is written as RFC 3339 does: 2026-11-21T12:00:00Z")
    })?;
    Ok(Some(i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)))
}

pub fn answer(status: StatusCode, version: Option<i64>, body: &impl Serialize) -> Answer {
    Answer {
        status: status.as_u16(),
        etag: version.map(|version| format!("\"{version}\"")),
        location: None,
        body: serde_json::to_vec(body).unwrap_or_default(),
    }
}

pub fn no_content() -> Answer {
    Answer { status: 204, etag: None, location: None, body: Vec::new() }
}

/// `{items, nextCursor?}`
pub fn list<T>(paged: Paged<T>, show: impl Fn(&T) -> Value) -> Response {
    let mut body = json!({ "items": paged.items.iter().map(show).collect::<Vec<_>>() });
    if let (Some(cursor), Value::Object(fields)) = (paged.next_cursor, &mut body) {
        fields.insert("nextCursor".to_owned(), json!(cursor));
    }
    respond(answer(StatusCode::OK, None, &body))
}

pub fn with_etag(mut response: Response, etag: &str) -> Response {
    if let Ok(etag) = HeaderValue::from_str(etag) {
        response.headers_mut().insert(ETAG, etag);
    }
    response
}
