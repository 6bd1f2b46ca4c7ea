//! Signing in with an identity provider: OpenID Connect's code flow with PKCE.
//!
//! A sign-in that has begun is a row, found by its state once, and bound to the browser that began it by
//! a cookie. What the provider says is believed when its ID token is: signed by a key of the issuer's own
//! (asymmetric ones only), for this client, with the nonce of the row. People are known by issuer and
//! subject; the first time, by an e-mail address that the provider has verified.
//! Next: `http/oidc.rs` (the two routes), `sessions.rs` (what a sign-in ends in).

use std::time::{Duration, Instant};

use openidconnect::core::{
    CoreAuthenticationFlow, CoreClient, CoreJwsSigningAlgorithm, CoreProviderMetadata,
    CoreUserInfoClaims,
};
use openidconnect::{
    AccessTokenHash, AuthorizationCode, ClientId, ClientSecret, CsrfToken, HttpRequest,
    HttpResponse, IssuerUrl, Nonce, OAuth2TokenResponse as _, PkceCodeChallenge, PkceCodeVerifier,
    RedirectUrl, Scope, TokenResponse as _,
};
use rules::secret::Secret;
use sha2::{Digest as _, Sha256};
use tokio::sync::Mutex;
use url::Url;

use crate::authorize::callers::Caller;
use crate::refusal::Refusal;
use crate::sessions::Device;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, now_us};
use crate::users::{self, User};

/// A provider, and who we are to it.
#[derive(Debug, Clone)]
pub struct Settings {
    pub issuer: String,
    pub client_id: String,
    pub client_secret: Option<Secret<String>>,
    /// Where browsers find this control, without a slash at its end.
    public_url: String,
    /// Whoever has an address there gets an account, without roles, at their first sign-in.
    pub allowed_domains: Vec<String>,
}

/// How long a sign-in may take at the provider.
const LOGIN_US_MAX: i64 = 10 * 60 * 1_000_000;
pub const LOGIN_S_MAX: i64 = LOGIN_US_MAX / 1_000_000;
/// Begun by strangers, so bounded.
const LOGINS_MAX: i64 = 10_000;
/// What the provider says of itself is asked again after this, or when a signature is of no known key.
const METADATA_AGE_MAX: Duration = Duration::from_secs(10 * 60);
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

const SWEEP: &str = "DELETE FROM oidc_login WHERE created_at < $1";
const COUNT: &str = "SELECT COUNT(*) FROM oidc_login";
const INSERT: &str = "INSERT INTO oidc_login (state_hash, browser_hash, nonce, verifier, return_to, \
    created_at) VALUES ($1, $2, $3, $4, $5, $6)";
const TAKE: &str = "DELETE FROM oidc_login WHERE state_hash = $1 \
    RETURNING browser_hash, nonce, verifier, return_to, created_at";
const IDENTITY: &str = "SELECT user_id FROM user_identity WHERE issuer = $1 AND subject = $2";
const IDENTITY_INSERT: &str = "INSERT INTO user_identity (issuer, subject, user_id, created_at) \
    VALUES ($1, $2, $3, $4) ON CONFLICT (issuer, subject) DO NOTHING";

#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    #[error("the identity provider cannot be reached: {0}")]
    Unreachable(String),
    #[error("the sign-in is not valid: {0}")]
    Refused(&'static str),
    #[error(transparent)]
    Failed(#[from] Refusal),
}

impl From<sqlx::Error> for OidcError {
    fn from(error: sqlx::Error) -> OidcError {
        OidcError::Failed(error.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0:?} is no address of an identity provider: https, or http on this machine")]
    Issuer(String),
    #[error("{0:?} is no public address")]
    PublicUrl(String),
}

impl Settings {
    pub fn new(
        issuer: &str,
        client_id: &str,
        client_secret: Option<Secret<String>>,
        public_url: &str,
        allowed_domains: Vec<String>,
    ) -> Result<Settings, SettingsError> {
        let of_issuer = || SettingsError::Issuer(issuer.to_owned());
        let parsed = Url::parse(issuer).map_err(|_| of_issuer())?;
        if !is_fit(&parsed) {
            return Err(of_issuer());
        }
        let of_ours = || SettingsError::PublicUrl(public_url.to_owned());
        let parsed = Url::parse(public_url).map_err(|_| of_ours())?;
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host().is_none() {
            return Err(of_ours());
        }
        Ok(Settings {
            issuer: issuer.to_owned(),
            client_id: client_id.to_owned(),
            client_secret,
            public_url: public_url.trim_end_matches('/').to_owned(),
            allowed_domains: allowed_domains.iter().map(|domain| domain.to_lowercase()).collect(),
        })
    }
}

/// Codes and tokens go over TLS, but to a provider on this very machine.
fn is_fit(url: &Url) -> bool {
    let local = match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    url.scheme() == "https" || url.scheme() == "http" && local
}

pub struct Provider {
    settings: Settings,
    http: reqwest::Client,
    metadata: Mutex<Option<(CoreProviderMetadata, Instant)>>,
}

/// A sign-in that begins: where the browser goes, and what is remembered of it.
pub struct Begun {
    pub url: String,
    state: String,
    nonce: String,
    verifier: String,
}

/// What was remembered.
#[derive(sqlx::FromRow)]
pub struct Login {
    browser_hash: Vec<u8>,
    nonce: String,
    verifier: String,
    pub return_to: String,
    created_at: i64,
}

/// Who the provider says that it is.
#[derive(Debug, Clone)]
pub struct Identity {
    pub subject: String,
    pub email: Option<String>,
    pub email_verified: bool,
    pub name: String,
}

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("an answer of more than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("its endpoints are not all reached over TLS")]
    Unfit,
    #[error("{0}")]
    Malformed(#[from] http::Error),
}

async fn send(client: reqwest::Client, request: HttpRequest) -> Result<HttpResponse, SendError> {
    let request = reqwest::Request::try_from(request)?;
    if !is_fit(request.url()) {
        return Err(SendError::Unfit);
    }
    let mut answer = client.execute(request).await?;
    let mut response = http::Response::builder().status(answer.status());
    for (name, value) in answer.headers() {
        response = response.header(name, value);
    }
    let mut body = Vec::new();
    while let Some(bytes) = answer.chunk().await? {
        if body.len() + bytes.len() > ANSWER_BYTES_MAX {
            return Err(SendError::TooLong);
        }
        body.extend_from_slice(&bytes);
    }
    Ok(response.body(body)?)
}

fn unreachable(error: impl std::error::Error) -> OidcError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    OidcError::Unreachable(text)
}

impl Provider {
    pub fn new(settings: Settings) -> Result<Provider, reqwest::Error> {
        // An error says that the process has a provider of TLS already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(ANSWER_TIME_MAX)
            .no_proxy();
        if settings.issuer.starts_with("http://") {
            client = client.tls_certs_only([]);
        }
        Ok(Provider { settings, http: client.build()?, metadata: Mutex::new(None) })
    }

    pub fn issuer(&self) -> &str {
        &self.settings.issuer
    }

    async fn metadata(&self, fresh: bool) -> Result<CoreProviderMetadata, OidcError> {
        // Who waits here waits for the same answer.
        let mut kept = self.metadata.lock().await;
        if let Some((metadata, at)) = &*kept
            && !fresh
            && at.elapsed() < METADATA_AGE_MAX
        {
            return Ok(metadata.clone());
        }
        let issuer = IssuerUrl::new(self.settings.issuer.clone()).map_err(unreachable)?;
        let send = |request| send(self.http.clone(), request);
        let metadata = CoreProviderMetadata::discover_async(issuer, &send).await;
        let metadata = metadata.map_err(unreachable)?;
        *kept = Some((metadata.clone(), Instant::now()));
        Ok(metadata)
    }

    fn redirect(&self) -> Result<RedirectUrl, OidcError> {
        let url = format!("{}/api/v1/oidc/callback", self.settings.public_url);
        RedirectUrl::new(url).map_err(unreachable)
    }

    fn secret(&self) -> Option<ClientSecret> {
        let secret = self.settings.client_secret.as_ref();
        secret.map(|secret| ClientSecret::new(secret.reveal().clone()))
    }

    pub async fn begin(&self) -> Result<Begun, OidcError> {
        let metadata = self.metadata(false).await?;
        let id = ClientId::new(self.settings.client_id.clone());
        let client = CoreClient::from_provider_metadata(metadata, id, self.secret())
            .set_redirect_uri(self.redirect()?);
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let flow = CoreAuthenticationFlow::AuthorizationCode;
        let asked = client.authorize_url(flow, CsrfToken::new_random, Nonce::new_random);
        let asked = asked
            .add_scope(Scope::new("email".to_owned()))
            .add_scope(Scope::new("profile".to_owned()));
        let (url, state, nonce) = asked.set_pkce_challenge(challenge).url();
        Ok(Begun {
            url: url.to_string(),
            state: state.secret().clone(),
            nonce: nonce.secret().clone(),
            verifier: verifier.secret().clone(),
        })
    }

    /// Who it is, by the code that the browser came back with.
    pub async fn identity(&self, login: &Login, code: &str) -> Result<Identity, OidcError> {
        let metadata = self.metadata(false).await?;
        let id = ClientId::new(self.settings.client_id.clone());
        let client = CoreClient::from_provider_metadata(metadata, id.clone(), self.secret())
            .set_redirect_uri(self.redirect()?);
        let send = |request| send(self.http.clone(), request);
        let exchange = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(unreachable)?
            .set_pkce_verifier(PkceCodeVerifier::new(login.verifier.clone()));
        let tokens = exchange.request_async(&send).await.map_err(|error| match error {
            openidconnect::RequestTokenError::ServerResponse(_) => {
                OidcError::Refused("the provider does not take its code")
            }
            other => unreachable(other),
        })?;
        let token = tokens.id_token().ok_or(OidcError::Refused("there is no ID token"))?;
        let nonce = Nonce::new(login.nonce.clone());
        // A key that came since the last time is found by asking once more.
        for fresh in [false, true] {
            let metadata = self.metadata(fresh).await?;
            let client = CoreClient::from_provider_metadata(metadata, id.clone(), self.secret());
            let verifier = client.id_token_verifier().set_allowed_algs([
                CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
                CoreJwsSigningAlgorithm::EcdsaP256Sha256,
                CoreJwsSigningAlgorithm::EdDsa,
            ]);
            let claims = match token.claims(&verifier, &nonce) {
                Ok(claims) => claims,
                Err(openidconnect::ClaimsVerificationError::SignatureVerification(_)) if !fresh => {
                    continue;
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "an ID token was refused");
                    return Err(OidcError::Refused("its ID token does not hold"));
                }
            };
            if let Some(expected) = claims.access_token_hash() {
                let made = token.signing_alg().ok().zip(token.signing_key(&verifier).ok());
                let made = made.and_then(|(algorithm, key)| {
                    AccessTokenHash::from_token(tokens.access_token(), algorithm, key).ok()
                });
                if made.as_ref() != Some(expected) {
                    return Err(OidcError::Refused("its access token is another's"));
                }
            }
            let subject = claims.subject().clone();
            let said =
                |name: Option<&openidconnect::LocalizedClaim<openidconnect::EndUserName>>| {
                    let name = name.and_then(|names| names.get(None));
                    name.map(|name| name.as_str().chars().take(64).collect()).unwrap_or_default()
                };
            let mut identity = Identity {
                subject: subject.to_string(),
                email: claims.email().map(|email| email.to_string()),
                email_verified: claims.email_verified().unwrap_or(false),
                name: said(claims.name()),
            };
            // Many say the address only when asked once more, of the same subject.
            if identity.email.is_none()
                && let Ok(asked) = client.user_info(tokens.access_token().clone(), Some(subject))
            {
                let info: CoreUserInfoClaims =
                    asked.request_async(&send).await.map_err(unreachable)?;
                identity.email = info.email().map(|email| email.to_string());
                identity.email_verified = info.email_verified().unwrap_or(false);
                identity.name = said(info.name());
            }
            return Ok(identity);
        }
        Err(OidcError::Refused("its ID token does not hold"))
    }

    /// Whose account that is. The first time it is found by an address that the provider has verified,
    /// or made, if its domain may come in.
    pub async fn user(
        &self,
        tx: &mut Tx,
        identity: &Identity,
        device: &Device,
    ) -> Result<User, OidcError> {
        let user = match self.known(tx, identity).await? {
            Some(user) => user,
            None => self.first_time(tx, identity, device).await?,
        };
        match user.disabled_at {
            Some(_) => Err(OidcError::Refused("the account is disabled")),
            None => Ok(user),
        }
    }

    async fn known(
        &self,
        read: &mut Connection,
        identity: &Identity,
    ) -> Result<Option<User>, OidcError> {
        let id: Option<String> = query_scalar(IDENTITY)
            .bind(&self.settings.issuer)
            .bind(&identity.subject)
            .fetch_optional(&mut *read)
            .await?;
        match id {
            Some(id) => Ok(users::find(read, &id).await?),
            None => Ok(None),
        }
    }

    async fn first_time(
        &self,
        tx: &mut Tx,
        identity: &Identity,
        device: &Device,
    ) -> Result<User, OidcError> {
        let email = identity.email.as_deref().filter(|_| identity.email_verified);
        let email = email.and_then(|email| users::email("/email", email).ok());
        let email =
            email.ok_or(OidcError::Refused("the provider has not verified an e-mail address"))?;
        let user = match users::find(tx, &email).await? {
            Some(user) => user,
            None => {
                let domain = email.rsplit_once('@').map(|(_, domain)| domain).unwrap_or_default();
                if !self.settings.allowed_domains.iter().any(|allowed| allowed == domain) {
                    return Err(OidcError::Refused("there is no account with this address"));
                }
                let caller = Caller::provider(&self.settings.issuer, device);
                users::create(tx, &caller, &email, &identity.name, false).await?
            }
        };
        if user.disabled_at.is_some() {
            return Ok(user);
        }
        query(IDENTITY_INSERT)
            .bind(&self.settings.issuer)
            .bind(&identity.subject)
            .bind(&user.id)
            .bind(now_us())
            .execute(tx)
            .await?;
        let after = serde_json::json!({ "issuer": self.settings.issuer,
            "subject": identity.subject });
        let caller = Caller::person(&user, device);
        users::record(tx, &caller, "user.link", &user.email, None, Some(after)).await?;
        Ok(user)
    }
}

fn hash(text: &str) -> Vec<u8> {
    Sha256::digest(text.as_bytes()).to_vec()
}

/// Remembers a sign-in that begins in the browser that has this cookie.
pub async fn remember(
    tx: &mut Tx,
    begun: &Begun,
    browser: &str,
    return_to: &str,
) -> Result<(), Refusal> {
    let now = now_us();
    query(SWEEP).bind(now - LOGIN_US_MAX).execute(tx).await?;
    if query_scalar::<i64>(COUNT).fetch_one(tx).await? >= LOGINS_MAX {
        return Err(Refusal::TooMany { what: "sign-ins under way", max: LOGINS_MAX as usize });
    }
    query(INSERT)
        .bind(hash(&begun.state))
        .bind(hash(browser))
        .bind(&begun.nonce)
        .bind(&begun.verifier)
        .bind(return_to)
        .bind(now)
        .execute(tx)
        .await?;
    Ok(())
}

/// The sign-in of a state, once; in the browser that began it, and not too late.
pub async fn recall(tx: &mut Tx, state: &str, browser: &str) -> Result<Option<Login>, Refusal> {
    let login: Option<Login> = query_as(TAKE).bind(hash(state)).fetch_optional(tx).await?;
    Ok(login.filter(|login| {
        login.browser_hash == hash(browser) && login.created_at > now_us() - LOGIN_US_MAX
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_reached_over_tls_or_on_this_machine() {
        let new = |issuer| Settings::new(issuer, "id", None, "https://x.example", Vec::new());
        for fit in ["https://id.example.com/realm", "http://127.0.0.1:4000", "http://[::1]:4000"] {
            assert!(new(fit).is_ok(), "{fit}");
        }
        for unfit in ["http://id.example.com", "ftp://127.0.0.1", "id.example.com", ""] {
            assert!(new(unfit).is_err(), "{unfit}");
        }
    }
}
