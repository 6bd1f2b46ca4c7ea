//! Sessions of pages: tokens in cookies that no script can read and no other site can use.
//!
//! The cookies are `__Host-` ones: of this host alone, over TLS alone (browsers take localhost for it),
//! sent by pages of ours alone. A request that changes something also proves that a page of ours made
//! it, by the browser's word (`Sec-Fetch-Site`, `Origin`) and by a token that only such a page has read.

use axum::response::Response;
use http::header::{HOST, ORIGIN, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use super::extract::cookie;
use super::problem::Stop;
use crate::authorize::callers::Authority;
use crate::oidc::LOGIN_S_MAX;
use crate::refusal::Refusal;
use crate::sessions::{ACCESS_S, IDLE_US, Started};

pub const SESSION: &str = "__Host-tidegate-session";
pub const REFRESH: &str = "__Host-tidegate-refresh";
/// Of a browser that is on its way to an identity provider and back: a way that begins at another
/// site, so that this one is sent along.
pub const BROWSER: &str = "__Host-tidegate-oidc";
pub const CSRF: &str = "x-csrf-token";

const ATTRIBUTES: &str = "Path=/; Secure; HttpOnly";
const STRICT: &str = "Strict";
const LAX: &str = "Lax";

pub fn set(mut response: Response, started: &Started) -> Response {
    put(&mut response, SESSION, started.access.reveal(), ACCESS_S, STRICT);
    put(&mut response, REFRESH, started.refresh.reveal(), IDLE_US / 1_000_000, STRICT);
    response
}

pub fn clear(mut response: Response) -> Response {
    put(&mut response, SESSION, "", 0, STRICT);
    put(&mut response, REFRESH, "", 0, STRICT);
    response
}

pub fn set_browser(mut response: Response, value: &str) -> Response {
    put(&mut response, BROWSER, value, LOGIN_S_MAX, LAX);
    response
}

pub fn clear_browser(mut response: Response) -> Response {
    put(&mut response, BROWSER, "", 0, LAX);
    response
}

fn put(response: &mut Response, name: &str, value: &str, seconds: i64, sent: &str) {
    let text = format!("{name}={value}; Max-Age={seconds}; {ATTRIBUTES}; SameSite={sent}");
    if let Ok(mut value) = HeaderValue::from_str(&text) {
        value.set_sensitive(true);
        response.headers_mut().append(SET_COOKIE, value);
    }
}

/// Whether a page of ours sent this.
pub fn check(
    authority: &Authority,
    session_id: &str,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), Stop> {
    same_origin(uri, headers)?;
    let sent = headers.get(CSRF).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match authority.sessions.is_csrf(session_id, sent) {
        true => Ok(()),
        false => Err(refused("send X-CSRF-Token as GET /api/v1/me gives it")),
    }
}

fn same_origin(uri: &Uri, headers: &HeaderMap) -> Result<(), Stop> {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let fetched = text("sec-fetch-site").map(|site| site == "same-origin");
    let own = text(HOST.as_str()).or(uri.authority().map(|authority| authority.as_str()));
    let origin = text(ORIGIN.as_str()).map(|origin| {
        let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        host.is_some() && host.map(str::to_lowercase) == own.map(str::to_lowercase)
    });
    match (fetched, origin) {
        // A browser says at least one of them.
        (None, None) | (Some(false), _) | (_, Some(false)) => {
            Err(refused("a request with cookies that changes something comes from a page of ours"))
        }
        _ => Ok(()),
    }
}

fn refused(detail: &str) -> Stop {
    Stop::new(StatusCode::FORBIDDEN, "csrf", detail)
}

/// The refresh token of a page.
pub fn refresh_token(headers: &HeaderMap) -> Option<&str> {
    cookie(headers, REFRESH)
}

pub fn csrf_token(authority: &Authority, session_id: &str) -> Result<String, Refusal> {
    authority.sessions.csrf(session_id)
}
