//! Sessions of people: a short token that is checked without asking anybody who made it, and a
//! refresh token that is good once.
//!
//! The short one is a JWT of RFC 8725's strict kind: one algorithm, one type, every claim required and
//! of one form, a header of three fields. jsonwebtoken checks it with the cryptography below, which
//! knows Ed25519 and nothing else. That its session still stands is read from the database each time.
//!
//! Who comes with a refresh token a second time has a stolen one, or was stolen from: the session ends.
//! Next: `authorize.rs` (who a token's owner is), `http/identity.rs` (how they sign in).

use std::net::IpAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, new_error};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rules::keys::{ApiKey, KeyKind};
use rules::secret::Secret;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::authorize::callers::Caller;
use crate::page::{Page, Paged};
use crate::refusal::Refusal;
use crate::store::query::{query, query_as, query_scalar};
use crate::store::{Connection, Tx, new_id, now_us};
use crate::users::{self, User};

pub const ACCESS_S: i64 = 10 * 60;
const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 24 * 60 * 60 * SECOND_US;
/// Without a refresh for so long it is over.
pub const IDLE_US: i64 = 30 * DAY_US;
/// Whatever they do, they sign in again after so long.
const AGE_US_MAX: i64 = 90 * DAY_US;
/// Of one person; the one that was used longest ago goes first.
const SESSIONS_MAX: i64 = 100;

const TYP: &str = "tg-session+jwt";
const ISSUER: &str = "urn:tidegate:control";
const AUDIENCE: &str = "urn:tidegate:admin-api";
/// Between the clocks of two controls.
const LEEWAY_S: u64 = 5;
/// Of a token; ours have some 400.
const TOKEN_BYTES_MAX: usize = 2048;

const INSERT: &str = "INSERT INTO session (id, user_id, how, address, user_agent, created_at, \
    last_used_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $6, $7)";
const REFRESH_INSERT: &str =
    "INSERT INTO refresh_token (id, session_id, hash, created_at) VALUES ($1, $2, $3, $4)";
const REFRESH_ONE: &str = "SELECT r.session_id, r.hash, r.used_at, s.user_id, s.created_at, \
    s.expires_at, s.revoked_at, u.disabled_at FROM refresh_token r \
    JOIN session s ON s.id = r.session_id JOIN user_account u ON u.id = s.user_id WHERE r.id = $1";
const REFRESH_USE: &str = "UPDATE refresh_token SET used_at = $2 WHERE id = $1 AND used_at IS NULL";
const USED: &str = "UPDATE session SET last_used_at = $2, expires_at = $3 WHERE id = $1";
const REVOKE: &str = "UPDATE session SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
const REVOKE_OF: &str = "UPDATE session SET revoked_at = $3 WHERE id = $1 AND user_id = $2 \
    AND revoked_at IS NULL";
const REVOKE_ALL: &str = "UPDATE session SET revoked_at = $2 WHERE user_id = $1 \
    AND revoked_at IS NULL AND id <> $3";
const PAGE: &str = "SELECT id, how, address, user_agent, created_at, last_used_at, expires_at \
    FROM session WHERE user_id = $1 AND id > $2 AND revoked_at IS NULL AND expires_at > $4 \
    ORDER BY id LIMIT $3";
/// Those that are over are kept for a while: a refresh token that comes back then is still told apart.
const FORGET: &str = "DELETE FROM session WHERE expires_at < $1 OR revoked_at < $1";
const CROWD: &str = "DELETE FROM session WHERE user_id = $1 AND id IN (SELECT id FROM session \
    WHERE user_id = $1 ORDER BY last_used_at DESC, id DESC LIMIT 1000 OFFSET $2)";
const COUNT: &str = "SELECT COUNT(*) FROM session WHERE user_id = $1";

/// What a token says. All of it, and nothing beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: String,
    aud: String,
    /// The account's id.
    sub: String,
    /// The session's id.
    sid: String,
    nbf: i64,
    iat: i64,
    exp: i64,
}

/// A header has these and no other: none that could name a key, or what must be understood.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StrictHeader {
    alg: String,
    typ: String,
    kid: String,
}

struct Pair {
    kid: String,
    seed: [u8; 32],
    public: [u8; 32],
    /// Of CSRF tokens.
    binding: [u8; 32],
}

struct Ring {
    current: Arc<Pair>,
    /// The one before, and until when (microseconds) tokens of it may come.
    before: Option<(Arc<Pair>, i64)>,
}

/// What sessions are signed with: derived from the key that heads are signed with, so that all
/// controls of one installation have the same without telling each other.
pub struct Keys {
    ring: RwLock<Ring>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    pub session_id: String,
    pub user_id: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's token is not valid")]
pub struct Forged;

impl Keys {
    pub fn of(signing: &SigningKey) -> Keys {
        install();
        Keys { ring: RwLock::new(Ring { current: Arc::new(Pair::of(signing)), before: None }) }
    }

    /// Another key was put in the place of the one that heads are signed with. Tokens of the one before
    /// run out by themselves, and sooner than they are taken.
    pub fn follow(&self, signing: &SigningKey) {
        let next = Pair::of(signing);
        let mut ring = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        if ring.current.kid != next.kid {
            let until = now_us() + (ACCESS_S + LEEWAY_S as i64) * SECOND_US;
            let before = std::mem::replace(&mut ring.current, Arc::new(next));
            ring.before = Some((before, until));
        }
    }

    fn current(&self) -> Arc<Pair> {
        self.ring.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    fn named(&self, kid: &str) -> Option<Arc<Pair>> {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        if ring.current.kid == kid {
            return Some(ring.current.clone());
        }
        let (before, until) = ring.before.as_ref()?;
        (before.kid == kid && now_us() < *until).then(|| before.clone())
    }

    fn sign(&self, user_id: &str, session_id: &str) -> Result<Secret<String>, Refusal> {
        let pair = self.current();
        let now = now_us() / SECOND_US;
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            sub: user_id.to_owned(),
            sid: session_id.to_owned(),
            nbf: now,
            iat: now,
            exp: now + ACCESS_S,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.typ = Some(TYP.to_owned());
        header.kid = Some(pair.kid.clone());
        jsonwebtoken::encode(&header, &claims, &EncodingKey::from_ed_der(&pair.seed))
            .map(Secret::new)
            .map_err(|error| Refusal::Internal(format!("a session cannot be signed: {error}")))
    }

    /// Whose token it is, if it is one of ours and its time is not over. Whether the session stands, the
    /// database knows.
    pub fn claimed(&self, token: &str) -> Result<Claimed, Forged> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Forged);
        }
        let header = token.split('.').next().ok_or(Forged)?;
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Forged)?;
        let header: StrictHeader = serde_json::from_slice(&header).map_err(|_| Forged)?;
        if header.alg != "EdDSA" || header.typ != TYP {
            return Err(Forged);
        }
        let pair = self.named(&header.kid).ok_or(Forged)?;
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "nbf", "iss", "aud", "sub"]);
        let key = DecodingKey::from_ed_der(&pair.public);
        let token = jsonwebtoken::decode::<Claims>(token, &key, &validation).map_err(|_| Forged)?;
        let claims = token.claims;
        // Two of ours are never further apart.
        if claims.exp - claims.nbf > ACCESS_S || claims.iat != claims.nbf {
            return Err(Forged);
        }
        Ok(Claimed { session_id: claims.sid, user_id: claims.sub })
    }

    /// What a page of ours sends along with its cookies, and no other page can know.
    pub fn csrf(&self, session_id: &str) -> Result<String, Refusal> {
        binding(&self.current(), session_id)
    }

    pub fn is_csrf(&self, session_id: &str, sent: &str) -> bool {
        let ring = self.ring.read().unwrap_or_else(PoisonError::into_inner);
        let before = ring.before.as_ref().map(|(before, _)| before);
        // The token of a page that was open while the key was changed goes on until it is left.
        [Some(&ring.current), before].into_iter().flatten().any(|pair| {
            binding(pair, session_id).is_ok_and(|own| own.as_bytes().ct_eq(sent.as_bytes()).into())
        })
    }
}

fn binding(pair: &Pair, session_id: &str) -> Result<String, Refusal> {
    Ok(URL_SAFE_NO_PAD.encode(keyed(&pair.binding, session_id.as_bytes())))
}

fn keyed(key: &[u8], message: &[u8]) -> [u8; 32] {
    // HMAC takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return [0; 32] };
    mac.update(message);
    mac.finalize().into_bytes().into()
}

impl Pair {
    fn of(signing: &SigningKey) -> Pair {
        let seed = keyed(&signing.to_bytes(), b"tidegate: key of sessions, 1");
        let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
        let binding = keyed(&signing.to_bytes(), b"tidegate: key of csrf tokens, 1");
        let kid: String =
            Sha256::digest(public).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Pair { kid, seed, public, binding }
    }
}

/// Ed25519, and nothing else.
struct Signs(SigningKey);
struct Verifies(VerifyingKey);

impl signature::Signer<Vec<u8>> for Signs {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        Ok(self.0.sign(message).to_bytes().to_vec())
    }
}

impl JwtSigner for Signs {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

impl signature::Verifier<Vec<u8>> for Verifies {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let signature = Signature::from_slice(signature).map_err(|_| signature::Error::new())?;
        self.0.verify_strict(message, &signature).map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Verifies {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

fn signs(
    algorithm: &Algorithm,
    key: &EncodingKey,
) -> jsonwebtoken::errors::Result<Box<dyn JwtSigner>> {
    match (algorithm, key.as_bytes().try_into()) {
        (Algorithm::EdDSA, Ok(seed)) => Ok(Box::new(Signs(SigningKey::from_bytes(seed)))),
        _ => Err(new_error(ErrorKind::InvalidAlgorithm)),
    }
}

fn verifies(
    algorithm: &Algorithm,
    key: &DecodingKey,
) -> jsonwebtoken::errors::Result<Box<dyn JwtVerifier>> {
    let public = key.try_get_as_bytes()?.try_into();
    match (algorithm, public.map(VerifyingKey::from_bytes)) {
        (Algorithm::EdDSA, Ok(Ok(key))) => Ok(Box::new(Verifies(key))),
        _ => Err(new_error(ErrorKind::InvalidAlgorithm)),
    }
}

fn install() {
    static PROVIDER: OnceLock<CryptoProvider> = OnceLock::new();
    let make = || CryptoProvider {
        signer_factory: signs,
        verifier_factory: verifies,
        key_utils: KeyUtils::new_unimplemented(),
    };
    // A second control in this process finds ours.
    let _ = PROVIDER.get_or_init(make).install_default();
}

/// How somebody said who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Password,
    Oidc,
    Setup,
    Invitation,
}

impl How {
    fn name(self) -> &'static str {
        match self {
            How::Password => "password",
            How::Oidc => "oidc",
            How::Setup => "setup",
            How::Invitation => "invitation",
        }
    }
}

/// With what, and from where, a session is begun.
#[derive(Debug, Clone, Default)]
pub struct Device {
    pub address: Option<IpAddr>,
    pub user_agent: Option<String>,
}

/// Shown once.
#[derive(Debug)]
pub struct Started {
    pub session_id: String,
    pub user_id: String,
    pub access: Secret<String>,
    pub refresh: ApiKey,
}

#[derive(Debug, Clone, sqlx::FromRow)]
pub struct Session {
    pub id: String,
    pub how: String,
    pub address: Option<String>,
    pub user_agent: Option<String>,
    pub created_at: i64,
    pub last_used_at: i64,
    pub expires_at: i64,
}

/// Whoever calls this knows that they are who they say.
pub async fn start(
    tx: &mut Tx,
    keys: &Keys,
    user: &User,
    how: How,
    from: &Device,
) -> Result<Started, Refusal> {
    let (now, user_id) = (now_us(), user.id.as_str());
    query(FORGET).bind(now - IDLE_US).execute(tx).await?;
    let count: i64 = query_scalar(COUNT).bind(user_id).fetch_one(tx).await?;
    if count >= SESSIONS_MAX {
        query(CROWD).bind(user_id).bind(SESSIONS_MAX - 1).execute(tx).await?;
    }
    let session_id = new_id();
    query(INSERT)
        .bind(&session_id)
        .bind(user_id)
        .bind(how.name())
        .bind(from.address.map(|address| address.to_string()))
        .bind(&from.user_agent)
        .bind(now)
        .bind(now + IDLE_US)
        .execute(tx)
        .await?;
    let started = go_on(tx, keys, user_id, session_id, now).await?;
    let after = Some(json!({ "how": how.name() }));
    let (caller, id) = (Caller::person(user, from), &started.session_id);
    users::record(tx, &caller, "session.start", id, None, after).await?;
    Ok(started)
}

async fn go_on(
    tx: &mut Tx,
    keys: &Keys,
    user_id: &str,
    session_id: String,
    now: i64,
) -> Result<Started, Refusal> {
    let refresh = crate::keys::random(KeyKind::Refresh)?;
    query(REFRESH_INSERT)
        .bind(&refresh.id)
        .bind(&session_id)
        .bind(refresh.hash().to_vec())
        .bind(now)
        .execute(tx)
        .await?;
    let access = keys.sign(user_id, &session_id)?;
    Ok(Started { session_id, user_id: user_id.to_owned(), access, refresh })
}

#[derive(Debug)]
pub enum Refreshed {
    Started(Started),
    /// Not known, over, or used before; what that means for the session is in the transaction, which
    /// has to be committed.
    Refused,
}

#[derive(sqlx::FromRow)]
struct RefreshRow {
    session_id: String,
    hash: Vec<u8>,
    used_at: Option<i64>,
    user_id: String,
    created_at: i64,
    expires_at: i64,
    revoked_at: Option<i64>,
    disabled_at: Option<i64>,
}

/// The session of a refresh token, whatever became of it.
pub async fn of_refresh(read: &mut Connection, key: &ApiKey) -> Result<Option<String>, Refusal> {
    let row: Option<RefreshRow> = query_as(REFRESH_ONE).bind(&key.id).fetch_optional(read).await?;
    let same = |row: &RefreshRow| bool::from(key.hash().as_slice().ct_eq(&row.hash));
    Ok(row.filter(same).map(|row| row.session_id))
}

/// A new pair for an old refresh token, once.
pub async fn refresh(
    tx: &mut Tx,
    keys: &Keys,
    key: &ApiKey,
    from: &Device,
) -> Result<Refreshed, Refusal> {
    let row: Option<RefreshRow> =
        query_as(REFRESH_ONE).bind(&key.id).fetch_optional(&mut *tx).await?;
    let same = |row: &RefreshRow| bool::from(key.hash().as_slice().ct_eq(&row.hash));
    let Some(row) = row.filter(same) else { return Ok(Refreshed::Refused) };
    let now = now_us();
    // Of two that come at once, one finds it used.
    let first =
        row.used_at.is_none() && query(REFRESH_USE).bind(&key.id).bind(now).execute(tx).await? == 1;
    if !first {
        if query(REVOKE).bind(&row.session_id).bind(now).execute(tx).await? == 1 {
            tracing::warn!(
                session = row.session_id,
                user = row.user_id,
                "a refresh token came a second time; its session is ended"
            );
            let caller = Caller::person(&users::get(tx, &row.user_id).await?, from);
            let why = Some(json!({ "why": "a refresh token came a second time" }));
            users::record(tx, &caller, "session.end", &row.session_id, None, why).await?;
        }
        return Ok(Refreshed::Refused);
    }
    let over = row.expires_at <= now || row.created_at + AGE_US_MAX <= now;
    if over || row.revoked_at.is_some() || row.disabled_at.is_some() {
        return Ok(Refreshed::Refused);
    }
    let expires = (now + IDLE_US).min(row.created_at + AGE_US_MAX);
    query(USED).bind(&row.session_id).bind(now).bind(expires).execute(tx).await?;
    Ok(Refreshed::Started(go_on(tx, keys, &row.user_id, row.session_id, now).await?))
}

/// Those of one person that stand.
pub async fn page(
    read: &mut Connection,
    user_id: &str,
    page: &Page,
) -> Result<Paged<Session>, Refusal> {
    let rows = query_as(PAGE).bind(user_id).bind(&page.after).bind(page.fetch()).bind(now_us());
    Ok(page.cut(rows.fetch_all(read).await?, |row: &Session| row.id.clone()))
}

/// Ends one of somebody's sessions.
pub async fn revoke(
    tx: &mut Tx,
    caller: &Caller,
    user_id: &str,
    session_id: &str,
) -> Result<(), Refusal> {
    match query(REVOKE_OF).bind(session_id).bind(user_id).bind(now_us()).execute(tx).await? {
        0 => Err(Refusal::NotFound("session")),
        _ => users::record(tx, caller, "session.end", session_id, None, None).await,
    }
}

/// Ends all of somebody's sessions but one.
pub async fn revoke_others(tx: &mut Tx, user_id: &str, but: Option<&str>) -> Result<(), Refusal> {
    query(REVOKE_ALL).bind(user_id).bind(now_us()).bind(but.unwrap_or("")).execute(tx).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn signing() -> SigningKey {
        SigningKey::from_bytes(&[7; 32])
    }

    /// A token of these very texts, signed as ours are.
    fn forged(pair: &Pair, header: &str, claims: &str) -> String {
        let body = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let signature = SigningKey::from_bytes(&pair.seed).sign(body.as_bytes()).to_bytes();
        format!("{body}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn header(pair: &Pair) -> Value {
        json!({ "alg": "EdDSA", "typ": TYP, "kid": pair.kid })
    }

    fn claims() -> Value {
        let now = now_us() / SECOND_US;
        json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "u", "sid": "s", "nbf": now, "iat": now,
            "exp": now + ACCESS_S })
    }

    /// The value with one member set, or taken away by null.
    fn with(mut value: Value, name: &str, member: Value) -> Value {
        let members = value.as_object_mut().unwrap();
        match member {
            Value::Null => drop(members.shift_remove(name)),
            member => drop(members.insert(name.to_owned(), member)),
        }
        value
    }

    #[test]
    fn no_token_is_taken_but_one_that_is_ours_in_every_part() {
        let keys = Keys::of(&signing());
        let pair = keys.current();
        let ours =
            |header: Value, claims: Value| forged(&pair, &header.to_string(), &claims.to_string());
        let good = ours(header(&pair), claims());
        let claimed = Claimed { session_id: "s".to_owned(), user_id: "u".to_owned() };
        assert_eq!(keys.claimed(&good), Ok(claimed.clone()), "the table tests something");
        assert_eq!(keys.claimed(keys.sign("u", "s").unwrap().reveal()), Ok(claimed));

        let now = now_us() / SECOND_US;
        let leeway = LEEWAY_S as i64;
        let of_header =
            |name: &str, member: Value| ours(with(header(&pair), name, member), claims());
        let of_claims =
            |name: &str, member: Value| ours(header(&pair), with(claims(), name, member));
        let twice = |text: String, name: &str, member: &str| {
            text.replacen('{', &format!("{{\"{name}\":{member},"), 1)
        };
        let (head, body) = (header(&pair).to_string(), claims().to_string());
        let parts: Vec<&str> = good.split('.').collect();
        let other = Pair::of(&SigningKey::from_bytes(&[8; 32]));
        // The published key of the signatures as the secret of a keyed hash.
        let hashed = {
            let header = with(header(&pair), "alg", json!("HS256")).to_string();
            let text =
                format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(&body));
            format!("{text}.{}", URL_SAFE_NO_PAD.encode(keyed(&pair.public, text.as_bytes())))
        };
        let mut flipped = good.clone().into_bytes();
        let last = flipped.len() - 10;
        flipped[last] = if flipped[last] == b'A' { b'B' } else { b'A' };
        let span = |nbf: i64, exp: i64| {
            let claims = with(with(claims(), "nbf", json!(nbf)), "iat", json!(nbf));
            ours(header(&pair), with(claims, "exp", json!(exp)))
        };
        let table = [
            ("nothing", String::new()),
            ("dots", "..".to_owned()),
            ("no signature", format!("{}.{}.", parts[0], parts[1])),
            ("no third part", format!("{}.{}", parts[0], parts[1])),
            ("a fourth part", format!("{good}.{}", parts[2])),
            (
                "another's claims",
                format!(
                    "{}.{}.{}",
                    parts[0],
                    URL_SAFE_NO_PAD.encode(with(claims(), "sub", json!("root")).to_string()),
                    parts[2]
                ),
            ),
            ("a flipped signature", String::from_utf8(flipped).unwrap()),
            ("padded", format!("{good}=")),
            ("another key under our name", forged(&other, &head, &body)),
            ("another key under its own name", forged(&other, &header(&other).to_string(), &body)),
            ("alg none", of_header("alg", json!("none"))),
            ("alg None, unsigned", {
                let header = with(header(&pair), "alg", json!("None")).to_string();
                format!("{}.{}.", URL_SAFE_NO_PAD.encode(header), parts[1])
            }),
            ("HS256 with the public key", hashed),
            ("alg HS256", of_header("alg", json!("HS256"))),
            ("alg RS256", of_header("alg", json!("RS256"))),
            ("alg ES256", of_header("alg", json!("ES256"))),
            ("alg in small letters", of_header("alg", json!("eddsa"))),
            ("no alg", of_header("alg", Value::Null)),
            ("alg twice", forged(&pair, &twice(head.clone(), "alg", "\"none\""), &body)),
            ("typ JWT", of_header("typ", json!("JWT"))),
            ("typ of an access token", of_header("typ", json!("at+jwt"))),
            ("no typ", of_header("typ", Value::Null)),
            ("no kid", of_header("kid", Value::Null)),
            ("a kid that is a path", of_header("kid", json!("../../../../dev/null"))),
            ("a kid that is a query", of_header("kid", json!("' OR '1'='1"))),
            ("an empty kid", of_header("kid", json!(""))),
            (
                "its own key along",
                of_header(
                    "jwk",
                    json!({ "kty": "OKP", "crv": "Ed25519",
                "x": URL_SAFE_NO_PAD.encode(other.public) }),
                ),
            ),
            ("a place to get the key from", of_header("jku", json!("https://evil.example/keys"))),
            ("certificates", of_header("x5c", json!(["MIIB"]))),
            ("something critical", of_header("crit", json!(["exp"]))),
            ("compressed", of_header("zip", json!("DEF"))),
            ("no iss", of_claims("iss", Value::Null)),
            ("another iss", of_claims("iss", json!("https://evil.example"))),
            ("a list of iss", of_claims("iss", json!([ISSUER]))),
            ("no aud", of_claims("aud", Value::Null)),
            ("another aud", of_claims("aud", json!("urn:tidegate:edge"))),
            ("a list of aud", of_claims("aud", json!([AUDIENCE]))),
            ("a list of aud with others", of_claims("aud", json!([AUDIENCE, "x"]))),
            ("no sub", of_claims("sub", Value::Null)),
            ("a number for sub", of_claims("sub", json!(1))),
            ("no sid", of_claims("sid", Value::Null)),
            ("no exp", of_claims("exp", Value::Null)),
            ("exp as text", of_claims("exp", json!((now + 60).to_string()))),
            ("exp with a fraction", of_claims("exp", json!(now as f64 + 60.5))),
            ("exp null", forged(&pair, &head, &body.replace("\"exp\":", "\"exp\":null,\"x\":"))),
            ("a negative exp", of_claims("exp", json!(-1))),
            ("expired", span(now - ACCESS_S - leeway - 1, now - leeway - 2)),
            ("for ever", span(now, now + 10 * ACCESS_S)),
            ("for ever and ever", of_claims("exp", json!(i64::MAX))),
            ("no nbf", of_claims("nbf", Value::Null)),
            ("nbf as text", of_claims("nbf", json!(now.to_string()))),
            ("not yet", span(now + leeway + 60, now + leeway + 120)),
            ("no iat", of_claims("iat", Value::Null)),
            ("something more", of_claims("admin", json!(true))),
            ("sub twice", forged(&pair, &head, &twice(body.clone(), "sub", "\"root\""))),
            ("exp twice", forged(&pair, &head, &twice(body.clone(), "exp", "1"))),
            ("claims that are a list", forged(&pair, &head, "[]")),
            ("claims that are no JSON", forged(&pair, &head, "{")),
            ("something after the claims", forged(&pair, &head, &format!("{body}{{}}"))),
            ("a megabyte", of_claims("sid", json!("s".repeat(1024 * 1024)))),
            ("a long sid", of_claims("sid", json!("s".repeat(TOKEN_BYTES_MAX)))),
        ];
        let taken: Vec<&str> = table
            .iter()
            .filter(|(_, token)| keys.claimed(token).is_ok())
            .map(|(what, _)| *what)
            .collect();
        assert_eq!(taken, Vec::<&str>::new());
        // Clocks may differ a little, and no more. Forging all those took a while.
        let now = || now_us() / SECOND_US;
        let (over, not_yet) = (now() - leeway + 5, now() + leeway - 2);
        assert!(keys.claimed(&span(over - 60, over)).is_ok());
        assert!(keys.claimed(&span(not_yet, now() + 60)).is_ok());
    }

    #[test]
    fn after_a_change_of_keys_the_tokens_of_before_run_out_and_no_older_ones_are_taken() {
        let keys = Keys::of(&signing());
        let first = keys.sign("u", "s").unwrap();
        let csrf = keys.csrf("s").unwrap();
        keys.follow(&SigningKey::from_bytes(&[8; 32]));
        assert!(keys.claimed(first.reveal()).is_ok() && keys.is_csrf("s", &csrf));
        let second = keys.sign("u", "s").unwrap();
        keys.follow(&SigningKey::from_bytes(&[9; 32]));
        assert!(keys.claimed(second.reveal()).is_ok());
        assert_eq!(keys.claimed(first.reveal()), Err(Forged));
        keys.ring.write().unwrap().before.as_mut().unwrap().1 = now_us() - 1;
        assert_eq!(keys.claimed(second.reveal()), Err(Forged));
        assert!(!keys.is_csrf("other", &keys.csrf("s").unwrap()));
    }
}
