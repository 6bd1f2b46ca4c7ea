//! Who asks: API keys, found by the hashes that snapshots carry, and the tokens of stream URLs.
//!
//! An edge asks nobody. A key belongs to one environment, so the key also says which environment
//! is meant. A stream token allows one thing, to hear *that* something changed, because it stands
//! in URLs, which are logged and which the OFREP web provider keeps for up to 30 days.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::HeaderMap;
use http::header::{AUTHORIZATION, ORIGIN};
use rules::answer::Audience;
use rules::keys::{KeyKind, KeyRecord};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::state::{Grant, Table};

/// How long a stream URL stays the same; a new one changes the ETag of every bulk answer.
pub const STREAM_EPOCH_S: i64 = 12 * 3600;
/// A token outlives its epoch by as much again. So a client that polls gets the next URL (a 200
/// instead of a 304, since the URL is part of the hashed body) hours before this one expires.
pub const STREAM_TOKEN_S: i64 = 2 * STREAM_EPOCH_S;

/// Longer keys do not exist (`ApiKey::parse`), and hashing has a price.
const KEY_BYTES_MAX: usize = 128;
const TOKEN_BYTES_MAX: usize = 2048;
const MAC_BYTES: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// No key in either header.
    NoKey,
    UnknownKey,
    /// It was valid until the time that control gave it.
    Expired,
    /// A browser key from a page that it is not for.
    Origin,
}

impl Denied {
    pub fn details(self) -> &'static str {
        match self {
            Denied::NoKey => "an API key is required: Authorization: Bearer <key>, or X-API-Key",
            Denied::UnknownKey => "the API key is not known here, or was revoked",
            Denied::Expired => "the API key has expired",
            Denied::Origin => "the API key does not allow this origin",
        }
    }
}

/// The grant of the request's key.
pub fn check<'a>(table: &'a Table, headers: &HeaderMap, now_ms: i64) -> Result<&'a Grant, Denied> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
    let plain = headers.get("x-api-key").map(|value| value.as_bytes());
    let mut denied = Denied::NoKey;
    // Both may be there: a proxy in between sets `Authorization` for its own purposes.
    for text in [bearer, plain].into_iter().flatten() {
        denied = Denied::UnknownKey;
        if let Some(grant) = find(table, text) {
            return admit(grant, headers, now_ms);
        }
    }
    Err(denied)
}

fn admit<'a>(grant: &'a Grant, headers: &HeaderMap, now_ms: i64) -> Result<&'a Grant, Denied> {
    if grant.key.is_expired(now_ms) {
        return Err(Denied::Expired);
    }
    if !allows_origin(&grant.key.record, headers) {
        return Err(Denied::Origin);
    }
    grant.key.used(now_ms);
    Ok(grant)
}

/// The grant of a key that stands in a request's body.
pub fn check_text<'a>(
    table: &'a Table,
    text: &[u8],
    headers: &HeaderMap,
    now_ms: i64,
) -> Result<&'a Grant, Denied> {
    admit(find(table, text).ok_or(Denied::UnknownKey)?, headers, now_ms)
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key.trim_ascii())
}

fn find<'a>(table: &'a Table, text: &[u8]) -> Option<&'a Grant> {
    if text.len() > KEY_BYTES_MAX {
        return None;
    }
    let hash: [u8; 32] = Sha256::digest(text).into();
    // Looking a hash up tells nothing about the key: nobody can steer its first bytes.
    let grant = table.grant(&hash)?;
    bool::from(grant.key.record.hash.ct_eq(&hash)).then_some(grant)
}

/// A browser tells its page's origin with every such request and pages cannot change it; anything
/// else can send what it likes. So a request without an origin (an app, a script) is let through:
/// refusing it would protect from nobody.
pub fn allows_origin(key: &KeyRecord, headers: &HeaderMap) -> bool {
    if key.kind != KeyKind::Browser || key.origins.is_empty() {
        return true;
    }
    match headers.get(ORIGIN) {
        None => true,
        Some(origin) => key.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()),
    }
}

pub fn audience(kind: KeyKind) -> Option<Audience> {
    match kind {
        KeyKind::Server => Some(Audience::Server),
        KeyKind::Browser => Some(Audience::Browser),
        _ => None,
    }
}

/// What a stream token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamClaims {
    pub namespace: String,
    pub environment: String,
    /// Of the key that asked for it: revoking the key ends its streams too.
    pub key_id: String,
    pub expires_s: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    Malformed,
    BadSignature,
    Expired,
}

impl StreamClaims {
    /// When tokens that `key` gets now expire; the same for `STREAM_EPOCH_S`, so tokens stay the
    /// same too. Each key's epochs begin at a time of their own, or all clients of the world would
    /// fetch at once.
    pub fn expiry_s(key: &KeyRecord, now_s: i64) -> i64 {
        let [a, b, c, d, ..] = key.hash;
        let shift = i64::from(u32::from_le_bytes([a, b, c, d])) % STREAM_EPOCH_S;
        let began = (now_s + shift).div_euclid(STREAM_EPOCH_S) * STREAM_EPOCH_S - shift;
        began + STREAM_TOKEN_S
    }

    pub fn at(namespace: &str, environment: &str, key: &KeyRecord, now_s: i64) -> StreamClaims {
        StreamClaims {
            namespace: namespace.to_owned(),
            environment: environment.to_owned(),
            key_id: key.id.clone(),
            expires_s: StreamClaims::expiry_s(key, now_s),
        }
    }

    pub fn sign(&self, secret: &[u8; 32]) -> String {
        let text = format!(
            "stream1\n{}\n{}\n{}\n{}",
            self.namespace, self.environment, self.key_id, self.expires_s
        );
        let mac = mac(secret, text.as_bytes()).finalize().into_bytes();
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&mac);
        BASE64URL.encode(bytes)
    }

    /// Reads a token. `secret_of` is asked for the environment's secret before anything else of
    /// the token is believed.
    pub fn verify(
        token: &str,
        now_s: i64,
        secret_of: impl FnOnce(&str, &str) -> Option<[u8; 32]>,
    ) -> Result<StreamClaims, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let bytes = BASE64URL.decode(token).map_err(|_| TokenError::Malformed)?;
        let end = bytes.len().checked_sub(MAC_BYTES).ok_or(TokenError::Malformed)?;
        let (text, tag) = bytes.split_at(end);
        let claims = StreamClaims::parse(text).ok_or(TokenError::Malformed)?;
        let secret =
            secret_of(&claims.namespace, &claims.environment).ok_or(TokenError::BadSignature)?;
        mac(&secret, text).verify_slice(tag).map_err(|_| TokenError::BadSignature)?;
        if claims.expires_s <= now_s {
            return Err(TokenError::Expired);
        }
        Ok(claims)
    }

    fn parse(text: &[u8]) -> Option<StreamClaims> {
        let mut parts = std::str::from_utf8(text).ok()?.split('\n');
        let (
            Some("stream1"),
            Some(namespace),
            Some(environment),
            Some(key_id),
            Some(expires),
            None,
        ) = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return None;
        };
        Some(StreamClaims {
            namespace: namespace.to_owned(),
            environment: environment.to_owned(),
            key_id: key_id.to_owned(),
            expires_s: expires.parse().ok()?,
        })
    }
}

fn mac(secret: &[u8; 32], text: &[u8]) -> Hmac<Sha256> {
    // HMAC itself pads a key with zeros to the hash's block of 64 bytes.
    let mut key = [0u8; 64];
    key[..32].copy_from_slice(secret);
    let mut mac = Hmac::<Sha256>::new(&key.into());
    mac.update(text);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_790_000_000;

    fn key(id: &str, seed: u8) -> KeyRecord {
        let hash = Sha256::digest([seed]).into();
        KeyRecord { id: id.to_owned(), kind: KeyKind::Browser, hash, origins: Vec::new() }
    }

    #[test]
    fn a_stream_token_holds_for_at_least_twelve_hours_and_at_most_a_day() {
        for seed in 0..50 {
            let key = key("k", seed);
            let claims = StreamClaims::at("shop", "production", &key, NOW_S);
            let left = claims.expires_s - NOW_S;
            assert!(left > STREAM_EPOCH_S && left <= STREAM_TOKEN_S, "{left} s");
            let next = StreamClaims::at("shop", "production", &key, NOW_S + STREAM_EPOCH_S);
            assert_ne!(claims.sign(&[1; 32]), next.sign(&[1; 32]));
        }
    }

    #[test]
    fn a_stream_token_with_any_byte_changed_or_another_secret_is_refused() {
        let token = StreamClaims::at("shop", "production", &key("k", 1), NOW_S).sign(&[1; 32]);
        let verify = |token: &str, secret: [u8; 32], now_s: i64| {
            StreamClaims::verify(token, now_s, |_, _| Some(secret))
        };
        assert_eq!(verify(&token, [1; 32], NOW_S).unwrap().key_id, "k");
        assert_eq!(verify(&token, [2; 32], NOW_S), Err(TokenError::BadSignature));
        assert_eq!(verify(&token, [1; 32], NOW_S + STREAM_TOKEN_S), Err(TokenError::Expired));
        for at in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            assert!(verify(&changed, [1; 32], NOW_S).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_browser_key_is_refused_only_from_an_origin_that_it_does_not_name() {
        let mut record = key("k", 1);
        record.origins = vec!["https://shop.example".to_owned()];
        let with = |origin: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ORIGIN, http::HeaderValue::from_static(origin));
            headers
        };
        assert!(allows_origin(&record, &with("https://shop.example")));
        assert!(allows_origin(&record, &HeaderMap::new()));
        assert!(!allows_origin(&record, &with("https://shop.example.evil")));
        assert!(!allows_origin(&record, &with("null")));
    }
}
