//! What control and edges agree on about the broker: how things are called there, how blobs are cut,
//! how it is reached. Pure: who speaks to it is in `control/src/bus` and `edge/src/feed`.
//!
//! Everything of a namespace has the namespace in the name of its stream or in a subject's fixed
//! place, because that is what a broker's permissions can tell apart. Inside one stream they cannot:
//! the filter of a read stands in its body, and a direct read takes wildcards.
//!
//! | what | where |
//! |---|---|
//! | a head | key `<environment>` of the KV bucket `heads_<namespace>` |
//! | a blob | messages `tidegate.blobs.<namespace>.<digest>.<part>` of the stream `BLOBS_<namespace>` |
//! | an anchor of an audit chain | key `<namespace's id>` of the KV bucket `audit_anchors` |
//! | a change | messages `tidegate.changes.<namespace>` of the stream `TG_CHANGES_<namespace>` |
//! | receipts | requests on `tidegate.receipts.<edge key id>` |
//! | deltas | messages `tidegate.deltas.<namespace>.<environment>`; nobody sends any yet |

use std::time::Duration;

use crate::blob::Digest;
use crate::secret::Secret;

/// A broker takes messages of 1 MiB unless told otherwise; half leaves room for headers.
pub const BLOB_PART_BYTES: usize = 512 * 1024;
/// What a blob keeps on the broker for. Control renews, long before this, what a head names.
pub const BLOB_AGE_MAX: Duration = Duration::from_secs(48 * 60 * 60);

const HEADS: &str = "heads_";
const KV_STREAM: &str = "KV_";
const BLOBS: &str = "BLOBS_";
const CHANGES: &str = "TG_CHANGES_";

/// The KV bucket of the newest signed ends of audit chains.
pub const ANCHORS_BUCKET: &str = "audit_anchors";

/// The subject of every edge's receipts, for who listens.
pub const RECEIPTS: &str = "tidegate.receipts.*";
/// The subject of every key of every KV bucket, for control; `heads_namespace` sorts out ours.
pub const EVERY_KV: &str = "$KV.*.>";

/// A key as one token of a subject, and as part of a stream's name: letters, digits and `-` stand
/// for themselves, every other byte is `_` and two hexadecimal digits. Two keys never share a token.
pub fn token(key: &str) -> String {
    let mut token = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("_{byte:02x}"));
        }
    }
    // A token must not be empty. `_` alone is nothing else's.
    if token.is_empty() { "_".to_owned() } else { token }
}

/// The key that a token stands for; None if no key has that token.
pub fn key_of(tokened: &str) -> Option<String> {
    if tokened == "_" {
        return Some(String::new());
    }
    let mut key = Vec::with_capacity(tokened.len());
    let mut bytes = tokened.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'_' {
            key.push(byte);
            continue;
        }
        let digits = [bytes.next()?, bytes.next()?];
        key.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
    }
    let key = String::from_utf8(key).ok()?;
    // Upper-case digits, signs and escaped letters would be second names of the same key.
    (token(&key) == tokened).then_some(key)
}

/// The KV bucket of a namespace's heads.
pub fn heads_bucket(namespace: &str) -> String {
    format!("{HEADS}{}", token(namespace))
}

/// The stream that holds that bucket.
pub fn heads_stream(namespace: &str) -> String {
    format!("{KV_STREAM}{}", heads_bucket(namespace))
}

/// The namespace whose heads a stream holds; None for every other stream.
pub fn heads_namespace(stream: &str) -> Option<String> {
    key_of(stream.strip_prefix(KV_STREAM)?.strip_prefix(HEADS)?)
}

pub fn head_subject(namespace: &str, environment: &str) -> String {
    format!("$KV.{}.{}", heads_bucket(namespace), token(environment))
}

/// Every head of a namespace.
pub fn head_subjects(namespace: &str) -> String {
    format!("$KV.{}.>", heads_bucket(namespace))
}

/// Namespace and environment of a head's subject.
pub fn head_of_subject(subject: &str) -> Option<(String, String)> {
    let (bucket, environment) = subject.strip_prefix("$KV.")?.split_once('.')?;
    Some((key_of(bucket.strip_prefix(HEADS)?)?, key_of(environment)?))
}

pub fn blobs_stream(namespace: &str) -> String {
    format!("{BLOBS}{}", token(namespace))
}

pub fn blob_subjects(namespace: &str) -> String {
    format!("tidegate.blobs.{}.>", token(namespace))
}

pub fn blob_part_subject(namespace: &str, digest: Digest, part: u64) -> String {
    format!("tidegate.blobs.{}.{digest}.{part}", token(namespace))
}

/// The stream of what was done in a namespace.
pub fn changes_stream(namespace: &str) -> String {
    format!("{CHANGES}{}", token(namespace))
}

pub fn changes_subject(namespace: &str) -> String {
    format!("tidegate.changes.{}", token(namespace))
}

/// How many parts a blob of so many bytes has. An empty one has one, so that it is there at all.
pub fn blob_parts(bytes: u64) -> u64 {
    bytes.div_ceil(BLOB_PART_BYTES as u64).max(1)
}

/// What the edges of one key report on. The broker lets only them, so the subject says who it is.
pub fn receipts_subject(edge_key_id: &str) -> String {
    format!("tidegate.receipts.{}", token(edge_key_id))
}

/// The edge key whose edges report on a subject.
pub fn key_of_receipts(subject: &str) -> Option<String> {
    key_of(subject.strip_prefix("tidegate.receipts.")?)
}

/// Where replies to a user go: a place of its own, or one could read another's.
pub fn inbox_prefix(user: &str) -> String {
    format!("_INBOX_{}", token(user))
}

/// How the broker is reached. The password is no part of the address, which ends up in logs.
#[derive(Debug, Clone)]
pub struct Broker {
    urls: Vec<String>,
    pub user: String,
    pub password: Option<Secret<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    #[error("{0:?} is not the address of a broker: nats://host:port or tls://host:port")]
    Url(String),
    // Not shown: it holds a secret.
    #[error(
        "a broker's address must not hold a user or a password; they have settings of their own"
    )]
    Credentials,
    #[error("no broker is named")]
    Nowhere,
}

impl Broker {
    /// `urls` are the servers of one cluster.
    pub fn new(
        urls: Vec<String>,
        user: impl Into<String>,
        password: Option<Secret<String>>,
    ) -> Result<Broker, BrokerError> {
        if urls.is_empty() {
            return Err(BrokerError::Nowhere);
        }
        for url in &urls {
            if url.contains('@') {
                return Err(BrokerError::Credentials);
            }
            let host = url.strip_prefix("nats://").or_else(|| url.strip_prefix("tls://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#'])) {
                return Err(BrokerError::Url(url.clone()));
            }
        }
        Ok(Broker { urls, user: user.into(), password })
    }

    pub fn urls(&self) -> &[String] {
        &self.urls
    }
}

const RECONNECT_FIRST: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(30);

/// How long to wait before the next try to connect: full jitter up to a bound that doubles, so that
/// a fleet that lost its broker together does not come back together. `random` is from 0 up to 1.
pub fn reconnect_delay(attempts: usize, random: f64) -> Duration {
    let doublings = u32::try_from(attempts.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let bound = RECONNECT_FIRST.saturating_mul(1u32 << doublings).min(RECONNECT_MAX);
    bound.mul_f64(if random.is_finite() { random.clamp(0.0, 1.0) } else { 1.0 })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fits_a_stream_name(name: &str) -> bool {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    }

    proptest! {
        #[test]
        fn a_token_is_one_token_and_leads_back_to_its_key(key in ".*") {
            let token = token(&key);
            prop_assert!(fits_a_stream_name(&token), "{token:?}");
            let back = key_of(&token);
            prop_assert_eq!(back.as_ref(), Some(&key));
        }

        #[test]
        fn a_token_that_is_read_is_the_only_one_of_its_key(text in "[-_a-zA-Z0-9.+]{0,12}") {
            if let Some(key) = key_of(&text) {
                prop_assert_eq!(token(&key), text);
            }
        }

        #[test]
        fn two_heads_never_share_a_subject(a in "[a-z_.2e>*]{0,4}", b in "[a-z_.2e>*]{0,4}",
                                           c in "[a-z_.2e>*]{0,4}", d in "[a-z_.2e>*]{0,4}") {
            let (one, other) = (head_subject(&a, &b), head_subject(&c, &d));
            prop_assert_eq!((&a, &b) == (&c, &d), one == other);
            prop_assert_eq!(head_of_subject(&one), Some((a, b)));
        }
    }

    #[test]
    fn names_are_what_brokers_already_hold() {
        let digest = Digest([0xab; 32]);
        assert_eq!(head_subject("shop.eu", "prod"), "$KV.heads_shop_2eeu.prod");
        assert_eq!(head_subjects("my_ns"), "$KV.heads_my_5fns.>");
        assert_eq!(heads_stream("shop"), "KV_heads_shop");
        assert_eq!(heads_namespace("KV_heads_shop_2eeu").as_deref(), Some("shop.eu"));
        assert_eq!(heads_namespace("KV_other"), None);
        assert_eq!(heads_namespace("BLOBS_shop"), None);
        assert_eq!(blob_part_subject("shop", digest, 3), format!("tidegate.blobs.shop.{digest}.3"));
        assert_eq!(receipts_subject("a1B2c3D4"), "tidegate.receipts.a1B2c3D4");
        assert_eq!(key_of_receipts("tidegate.receipts.a1B2c3D4").as_deref(), Some("a1B2c3D4"));
        assert_eq!(head_of_subject("$KV.heads_shop.a.b"), None);
    }

    #[test]
    fn a_blob_has_as_many_parts_as_it_needs() {
        let part = BLOB_PART_BYTES as u64;
        for (bytes, parts) in [(0, 1), (1, 1), (part, 1), (part + 1, 2), (64 * part, 64)] {
            assert_eq!(blob_parts(bytes), parts, "{bytes}");
        }
    }

    #[test]
    fn an_address_with_a_password_in_it_is_refused_and_not_shown() {
        let refused = Broker::new(vec!["nats://edge:hunter2@broker:4222".to_owned()], "", None);
        let text = refused.unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "{text}");
        for wrong in ["broker:4222", "http://broker", "nats://", "nats://broker/path"] {
            let refused = Broker::new(vec![wrong.to_owned()], "", None);
            assert_eq!(refused.unwrap_err(), BrokerError::Url(wrong.to_owned()));
        }
        let password = Some(Secret::new("hunter2".to_owned()));
        let broker = Broker::new(vec!["tls://broker:4222".to_owned()], "edge", password).unwrap();
        assert!(!format!("{broker:?}").contains("hunter2"));
    }

    #[test]
    fn waits_between_tries_grow_to_their_bound_and_are_spread_over_all_of_it() {
        for attempts in [0, 1, 2, 8, 40, usize::MAX] {
            assert_eq!(reconnect_delay(attempts, 0.0), Duration::ZERO);
            assert!(reconnect_delay(attempts, 1.0) <= RECONNECT_MAX, "{attempts}");
        }
        assert_eq!(reconnect_delay(1, 1.0), RECONNECT_FIRST);
        assert_eq!(reconnect_delay(40, 1.0), RECONNECT_MAX);
        assert_eq!(reconnect_delay(40, f64::NAN), RECONNECT_MAX);
    }
}
