//! The two routes of a sign-in with an identity provider: a browser is sent there, and comes back.

use std::time::Instant;

use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CACHE_CONTROL, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::cookies;
use super::extract::{Asked, Handled, PeerAddress, Shared, boxed, cookie};
use super::problem::Stop;
use crate::authorize::callers::Asking;
use crate::oidc::{self, OidcError, Provider};
use crate::refusal::Refusal;
use crate::sessions::{self, Device, How};

pub fn router() -> OpenApiRouter<Shared> {
    OpenApiRouter::new().routes(routes!(begin)).routes(routes!(come_back))
}

const RETURN_BYTES_MAX: usize = 512;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Begin {
    /// A path of ours to go to afterwards.
    return_to: Option<String>,
}

/// What a provider sends along; it may say more, which is nothing to us.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct ComeBack {
    state: Option<String>,
    code: Option<String>,
    /// Of a provider that says who it is (RFC 9207).
    iss: Option<String>,
    error: Option<String>,
}

impl From<OidcError> for Stop {
    fn from(error: OidcError) -> Stop {
        match error {
            OidcError::Failed(refusal) => refusal.into(),
            OidcError::Refused(_) => {
                tracing::info!(why = %error, "a sign-in was refused");
                Stop::new(StatusCode::FORBIDDEN, "sign-in", error.to_string())
            }
            OidcError::Unreachable(_) => {
                tracing::error!(why = %error, "no sign-in with the identity provider");
                let detail = "the identity provider cannot be reached just now";
                Stop::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail)
            }
        }
    }
}

fn provider(shared: &Shared) -> Result<&Provider, Stop> {
    let none = || {
        let detail = "no identity provider is set up here";
        Stop::new(StatusCode::NOT_FOUND, "not-found", detail)
    };
    shared.provider.as_ref().ok_or_else(none)
}

fn see_other(place: &str) -> Result<Response, Stop> {
    let place = HeaderValue::from_str(place)
        .map_err(|_| Stop::from(Refusal::invalid("/returnTo", "not a path of ours")))?;
    let mut response = StatusCode::SEE_OTHER.into_response();
    response.headers_mut().insert(LOCATION, place);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Of this very host: one slash at its beginning, and nothing that a browser reads as another.
fn is_own_path(path: &str) -> bool {
    path.len() <= RETURN_BYTES_MAX
        && path.starts_with('/')
        && !path.starts_with("//")
        && path.bytes().all(|byte| (b'!'..=b'~').contains(&byte) && byte != b'\\')
}

/// Sends a browser to the identity provider.
#[utoipa::path(get, path = "/api/v1/oidc/login", tag = "sessions", params(Begin), responses((status = 303, description = "to the identity provider"), (status = 404, description = "there is none")))]
#[boxed]
async fn begin(
    State(shared): State<Shared>,
    PeerAddress(address): PeerAddress,
    Asked(asked): Asked<Begin>,
) -> Handled {
    let provider = provider(&shared)?;
    let return_to = asked.return_to.unwrap_or_else(|| "/".to_owned());
    if !is_own_path(&return_to) {
        return Err(Refusal::invalid("/returnTo", "not a path of ours").into());
    }
    // Nobody is known to be right yet, so all of them count.
    shared
        .attempts
        .begin(None, address, Instant::now())
        .map_err(|often| Stop::too_often(often.to_string(), often.seconds))?;
    let mut bytes = [0u8; 32];
    seam::random(&mut bytes)
        .map_err(|error| Refusal::Internal(format!("no randomness: {error}")))?;
    let browser = URL_SAFE_NO_PAD.encode(bytes);
    let begun = provider.begin().await?;
    let mut tx = shared.store.write().await?;
    oidc::remember(&mut tx, &begun, &browser, &return_to).await?;
    tx.commit().await?;
    Ok(cookies::set_browser(see_other(&begun.url)?, &browser))
}

/// Where the identity provider sends a browser back to: signs in with cookies.
#[utoipa::path(get, path = "/api/v1/oidc/callback", tag = "sessions", params(ComeBack), responses((status = 303, description = "signed in; to the path that was asked for"), (status = 403, description = "the sign-in is not valid"), (status = 404, description = "there is no identity provider")))]
#[boxed]
async fn come_back(
    State(shared): State<Shared>,
    PeerAddress(address): PeerAddress,
    headers: HeaderMap,
    asked: Result<Query<ComeBack>, axum::extract::rejection::QueryRejection>,
) -> Handled {
    let provider = provider(&shared)?;
    let refused = |why| Stop::from(OidcError::Refused(why));
    let Ok(Query(asked)) = asked else { return Err(refused("it says nothing")) };
    let state = asked.state.ok_or_else(|| refused("it has no state"))?;
    let browser = cookie(&headers, cookies::BROWSER).unwrap_or_default();
    let mut tx = shared.store.write().await?;
    let login = oidc::recall(&mut tx, &state, browser).await?;
    tx.commit().await?;
    let login = login.ok_or_else(|| refused("this browser has not begun it, or it is over"))?;
    if asked.iss.is_some_and(|issuer| issuer != provider.issuer()) {
        return Err(refused("another provider answered"));
    }
    if asked.error.is_some() {
        return Err(refused("the provider refused it"));
    }
    let code = asked.code.ok_or_else(|| refused("it has no code"))?;
    let identity = provider.identity(&login, &code).await?;
    let user_agent = headers.get(USER_AGENT).and_then(|value| value.to_str().ok());
    let user_agent = Asking { user_agent, ..Asking::default() }.program();
    let device = Device { address, user_agent };
    let mut tx = shared.store.write().await?;
    let user = provider.user(&mut tx, &identity, &device).await?;
    let keys = &shared.authority.sessions;
    let session = sessions::start(&mut tx, keys, &user, How::Oidc, &device).await?;
    tx.commit().await?;
    let response = cookies::set(see_other(&login.return_to)?, &session);
    Ok(cookies::clear_browser(response))
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_paths_of_our_own_are_gone_to() {
        for own in ["/", "/flags/a?b=c#d", "/a//b"] {
            assert!(super::is_own_path(own), "{own}");
        }
        for foreign in
            ["", "//evil.example", "/\\evil.example", "https://evil.example", "a", "/a\r\nb", "/ü"]
        {
            assert!(!super::is_own_path(foreign), "{foreign}");
        }
    }
}
