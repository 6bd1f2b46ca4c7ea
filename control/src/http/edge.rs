//! What edges ask and tell over HTTP: heads (with a long poll), blobs, receipts, usage.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use rules::blob::Digest;
use rules::head::Receipts;
use rules::limits::ADMIN_BODY_BYTES_MAX;
use rules::sample::SampleReport;
use rules::usage::UsageReport;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::{self, Asked, At, Handled, Shared, boxed, parse, read};
use super::problem::{Stop, respond};
use crate::authorize::EdgeScope;
use crate::edges;
use crate::refusal::Refusal;
use crate::samples as sampled;
use crate::usage as uses;

const WAIT_SECONDS_MAX: u64 = 30;

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new()
        .routes(routes!(heads))
        .routes(routes!(blob))
        .routes(routes!(receipts))
        .routes(routes!(usage))
        .routes(routes!(samples))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    #[serde(default)]
    wait: u64,
}

/// The newest signed head of every environment that the key may see.
#[utoipa::path(get, path = "/edge/v1/heads", tag = "edge",
    params(("wait" = Option<u64>, Query, description = "seconds to wait for a change, at most 30")),
    responses((status = 200, body = serde_json::Value), (status = 304)))]
#[boxed]
async fn heads(
    State(shared): State<Shared>,
    scope: EdgeScope,
    Asked(asked): Asked<Wait>,
    headers: HeaderMap,
) -> Handled {
    if asked.wait > WAIT_SECONDS_MAX {
        let message = format!("the limit is {WAIT_SECONDS_MAX} seconds");
        return Err(Refusal::invalid("/wait", message).into());
    }
    let known = headers.get(IF_NONE_MATCH).and_then(|value| value.to_str().ok());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(asked.wait);
    // Registered before the heads are read, so that no change falls between the two.
    let mut changed = shared.bus.changed();
    loop {
        changed.borrow_and_update();
        let heads = edges::heads(shared.bus.as_ref(), &scope).await?;
        let body = serde_json::to_vec(&heads)
            .map_err(|error| Stop::from(Refusal::Internal(error.to_string())))?;
        let etag = format!("\"{}\"", Digest::of(&body));
        if known != Some(etag.as_str())
            && !(seam::planted("always-not-modified") && known.is_some())
        {
            return Ok(answer(StatusCode::OK, &etag, body));
        }
        tokio::select! {
            news = changed.changed() => if news.is_ok() { continue },
            () = tokio::time::sleep_until(deadline) => {}
            () = shared.stopping.cancelled() => {}
        }
        return Ok(answer(StatusCode::NOT_MODIFIED, &etag, Vec::new()));
    }
}

fn answer(status: StatusCode, etag: &str, body: Vec<u8>) -> Response {
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    if let Ok(etag) = HeaderValue::from_str(etag) {
        headers.insert(ETAG, etag);
    }
    response
}

/// A snapshot or an id list by its SHA-256, if a namespace of the key references it. Whoever has
/// another one and says so as RFC 9842 asks (Available-Dictionary, and dcz in Accept-Encoding) may be
/// given the difference.
#[utoipa::path(get, path = "/edge/v1/blobs/{digest}", tag = "edge",
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>)))]
#[boxed]
async fn blob(
    State(shared): State<Shared>,
    scope: EdgeScope,
    at: At,
    headers: HeaderMap,
) -> Handled {
    let digest: Digest = at.digest.parse().map_err(|_| Stop::from(Refusal::NotFound("blob")))?;
    let mut read = shared.store.read().await?;
    let parsed = shared.store.parsed();
    let bytes = edges::blob(&mut read, parsed, &scope, digest).await?;
    let base = match dictionary(&headers) {
        // Only what the key may read, or deltas would tell what is in foreign blobs.
        Some(base) => {
            let bytes = edges::blob(&mut read, parsed, &scope, base).await;
            bytes.ok().map(|bytes| (base, bytes))
        }
        None => None,
    };
    drop(read);
    let delta = match base {
        Some(base) => shared.deltas.between(base, (digest, bytes.clone())).await,
        None => None,
    };
    let mut response = match delta {
        Some(delta) => {
            let coding = [(CONTENT_ENCODING, HeaderValue::from_static("dcz"))];
            (StatusCode::OK, coding, delta).into_response()
        }
        None => (StatusCode::OK, bytes).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept-encoding, available-dictionary"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let forever = "private, max-age=31536000, immutable";
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(forever));
    Ok(response)
}

/// The digest of the dictionary that the caller has, if it knows what to do with it.
fn dictionary(headers: &HeaderMap) -> Option<Digest> {
    let accepted = headers.get(ACCEPT_ENCODING)?.to_str().ok()?;
    if !accepted.split(',').any(|coding| coding.trim() == "dcz") {
        return None;
    }
    let said = headers.get("available-dictionary")?.to_str().ok()?.trim();
    let digest = BASE64.decode(said.strip_prefix(':')?.strip_suffix(':')?).ok()?;
    Some(Digest(digest.try_into().ok()?))
}

/// What an edge serves.
#[utoipa::path(post, path = "/edge/v1/receipts", tag = "edge", request_body = serde_json::Value, responses((status = 204)))]
#[boxed]
async fn receipts(State(shared): State<Shared>, scope: EdgeScope, request: Request) -> Handled {
    let body = read(request.into_body(), ADMIN_BODY_BYTES_MAX, shared.body_timeout).await?;
    let receipts: Receipts = parse(&body)?;
    let mut tx = shared.store.write().await?;
    edges::receive(&mut tx, &scope, &receipts).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Contexts that an edge took, and of which environments it shall take some from now on. Most reports
/// are empty and write nothing.
#[utoipa::path(post, path = "/edge/v1/samples", tag = "edge", request_body = serde_json::Value, responses((status = 200, body = serde_json::Value)))]
#[boxed]
async fn samples(State(shared): State<Shared>, scope: EdgeScope, request: Request) -> Handled {
    let body = read(request.into_body(), ADMIN_BODY_BYTES_MAX, shared.body_timeout).await?;
    let report: SampleReport = parse(&body)?;
    if !report.environments.is_empty() {
        let mut tx = shared.store.write().await?;
        sampled::receive(&mut tx, &scope, &report).await?;
        tx.commit().await?;
    }
    let orders = sampled::orders(&mut *shared.store.read().await?, &scope).await?;
    Ok(respond(extract::answer(StatusCode::OK, None, &orders)))
}

/// How often flags were used. A report that comes again under its number counts once.
#[utoipa::path(post, path = "/edge/v1/usage", tag = "edge", request_body = serde_json::Value, responses((status = 204)))]
#[boxed]
async fn usage(State(shared): State<Shared>, scope: EdgeScope, request: Request) -> Handled {
    let body = read(request.into_body(), ADMIN_BODY_BYTES_MAX, shared.body_timeout).await?;
    let report: UsageReport = parse(&body)?;
    let mut tx = shared.store.write().await?;
    uses::receive(&mut tx, &scope, &report).await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
