//! What browsers' SDKs ask for, below `/sdk/v1`. Keys, origins and failures are as below `/ofrep/v1`.
//!
//! - `GET snapshot`: the rules of the flags that browsers evaluate themselves, as control signed them.
//!   Nothing here looks into them: what a browser may not see is not in what control signed.
//! - `POST evaluate`: the answers of those flags whose rules do not leave the edge, for one context.
//! - `GET stream` (`sdk/stream.rs`): that something changed, and of the snapshot also what.
//! - `POST events` (`sdk/events.rs`): how often a browser used what.

pub mod events;
mod patch;
pub mod ring;
mod stream;

use std::time::Instant;

use http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use rules::answer::Audience;

use crate::ofrep::{self, Failure};
use crate::serve::{Body, Shared};
use crate::state::Grant;

const PREFIX: &str = "/sdk/v1/";

pub async fn answer(shared: &Shared, path: &str, request: Request<Incoming>) -> Response<Body> {
    let origin = request.headers().get(ORIGIN).cloned();
    let answered = match path.strip_prefix(PREFIX) {
        Some("snapshot") => snapshot(shared, &request),
        Some("evaluate") => evaluate(shared, request).await,
        Some("stream") => stream::open(shared, &request).await,
        Some("events") => events::take(shared, request).await,
        _ => Err(Failure::other(StatusCode::NOT_FOUND, "there is no such path")),
    };
    let mut answer = answered.unwrap_or_else(|failure| failure.answer(None));
    if let Some(origin) = origin {
        ofrep::allow_origin(&shared.state.table(), origin, answer.headers_mut());
    }
    answer
}

fn snapshot(shared: &Shared, request: &Request<Incoming>) -> Result<Response<Body>, Failure> {
    only(&Method::GET, request)?;
    let headers = request.headers();
    let grant = admit(shared, headers)?;
    let client = grant.served.client.load_full().ok_or_else(no_client)?;
    let offers = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let offers = offers.collect::<Vec<_>>().join(",");
    let chosen = client.for_request(&offers).ok_or_else(no_client)?;
    // What the client has may have come in another coding; it is the same container.
    let known = client.representations().iter().any(|one| ofrep::is_known(headers, &one.etag));
    let mut answer = match known {
        true => Response::new(Body::empty()),
        false => Response::new(Body::full(chosen.body.clone())),
    };
    if known {
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = answer.headers_mut();
    headers.insert(ETAG, chosen.etag.clone());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(
        VARY,
        HeaderValue::from_static("Authorization, X-API-Key, Origin, Accept-Encoding"),
    );
    if !known {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(rules::client::CONTENT_TYPE));
        if let Some(coding) = chosen.coding.name() {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static(coding));
        }
    }
    Ok(answer)
}

async fn evaluate(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, Failure> {
    let began = Instant::now();
    only(&Method::POST, &request)?;
    let grant = admit(shared, request.headers())?;
    let (parts, body) = request.into_parts();
    let body = ofrep::read_body(body, shared.timeouts.body).await?;
    let context = ofrep::context_of(&body)?;
    grant.served.offer_sample(&body);
    ofrep::all(&grant, Audience::BrowserAtEdge, context, &parts.headers, began).await
}

fn only(method: &Method, request: &Request<Incoming>) -> Result<(), Failure> {
    match request.method() == method {
        true => Ok(()),
        false => {
            let details = format!("only {method} is answered here");
            Err(Failure::other(StatusCode::METHOD_NOT_ALLOWED, details))
        }
    }
}

/// The key's grant, if it does not ask too often.
fn admit(shared: &Shared, headers: &HeaderMap) -> Result<Grant, Failure> {
    let grant = ofrep::authorize(shared, headers)?;
    ofrep::within_rate(&grant)?;
    Ok(grant)
}

fn no_client() -> Failure {
    Failure::other(
        StatusCode::NOT_FOUND,
        "control has published no client snapshot of this environment; publishing it again makes one",
    )
}
