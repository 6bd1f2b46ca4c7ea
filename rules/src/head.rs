//! The head: the small signed record that names an environment's newest snapshot, and what edges
//! say back. Wire types of the bus and of `/edge/v1`.
//!
//! The signature covers the head's bytes as they were sent, so no canonical form is needed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::blob::Digest;

/// Order of heads of one environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// Raised by an operator after a database restore.
    pub generation: u64,
    /// Monotone per environment, never reused.
    pub revision: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BlobRef {
    pub digest: Digest,
    pub bytes: u64,
}

/// The browsers' snapshot, with a signature of its own, since a browser never sees the head around it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientRef {
    pub digest: Digest,
    pub bytes: u64,
    /// The text of a `client::ClientHead`.
    pub head: String,
    /// Base64 of the Ed25519 signature over `head`'s bytes, by the key that signed the outer head.
    pub signature: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    pub namespace: String,
    pub environment: String,
    #[serde(flatten)]
    pub version: Version,
    pub snapshot: BlobRef,
    /// The browsers' snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    pub min_reader: u16,
    pub issued_at_ms: i64,
    /// Of the leader that published it.
    pub epoch: u64,
}

/// What edges that the rollout has not reached yet serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Previous {
    #[serde(flatten)]
    pub version: Version,
    pub snapshot: BlobRef,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<ClientRef>,
    /// Share of the fleet, of [`STAGE_ALL`], that shall serve the new one.
    pub stage: u16,
}

/// A stage that has come to every edge.
pub const STAGE_ALL: u16 = 10_000;

/// Where an edge stands in the order in which a staged rollout comes to edges, below [`STAGE_ALL`].
/// The same for ever, and another one in each environment, so that not always the same edge is first.
pub fn place(namespace: &str, environment: &str, edge: &str) -> u16 {
    let Digest([a, b, c, d, ..]) =
        Digest::of(format!("{edge}\n{namespace}\n{environment}").as_bytes());
    let place = u32::from_le_bytes([a, b, c, d]).checked_rem(u32::from(STAGE_ALL));
    place.and_then(|place| u16::try_from(place).ok()).unwrap_or_default()
}

impl Head {
    /// How far it has come; heads of one version never go back in it.
    pub fn stage(&self) -> u16 {
        self.previous.as_ref().map_or(STAGE_ALL, |previous| previous.stage)
    }

    /// Whether it is this edge's turn to serve the newest snapshot.
    pub fn reaches(&self, edge: &str) -> bool {
        place(&self.namespace, &self.environment, edge) < self.stage()
    }
}

/// A head as it travels: `head` is the signed text, parsed only once the signature holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SignedHead {
    pub head: String,
    pub key_id: String,
    /// Base64 of the Ed25519 signature over `head`'s bytes.
    pub signature: String,
}

/// The answer of `GET /edge/v1/heads`: every environment that the edge key may see.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Heads {
    pub heads: Vec<SignedHead>,
}

/// An edge's report of what it serves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub edge: String,
    pub namespace: String,
    pub environment: String,
    #[serde(flatten)]
    pub version: Version,
    pub digest: Digest,
    pub reader: u16,
    /// Why a newer head was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejected: Option<Rejection>,
    /// Of the policies that the snapshot's rules call; what the edge counted since it started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyReport>,
}

/// What an edge knows of one policy of an environment. Counts are since the edge loaded the version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyReport {
    pub name: String,
    pub digest: Digest,
    pub state: PolicyHealth,
    pub calls: u64,
    /// By the names of `PolicyFault`; only what happened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, u64>,
    /// Of all calls together.
    pub fuel: u64,
    pub micros: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowReport>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PolicyHealth {
    Running,
    /// Its breaker is open: it failed too often, and its rules serve their fallback.
    Open,
    /// It is not compiled yet, or cannot be.
    Absent,
}

/// How the answers of a version that runs beside compare with those that were served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowReport {
    pub digest: Digest,
    pub same: u64,
    pub different: u64,
    /// Calls that gave no answer.
    pub faults: u64,
    /// Calls that were not run, because those before were not done.
    pub dropped: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rejection {
    #[serde(flatten)]
    pub version: Version,
    pub reason: String,
    /// Its bytes could not be had, which says nothing of the snapshot; it is fetched again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unfetched: bool,
}

/// The body of `POST /edge/v1/receipts`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipts {
    pub receipts: Vec<Receipt>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("the head is {bytes} bytes long, the limit is {}", crate::limits::HEAD_BYTES_MAX)]
    TooLong { bytes: usize },
    #[error("the head is signed with key {0:?}, which is not trusted here")]
    UnknownKey(String),
    #[error("the head's signature does not hold")]
    BadSignature,
    #[error("the head is malformed: {0}")]
    Malformed(String),
    #[error("a public key is `ed25519:` and the base64 of 32 bytes")]
    BadPublicKey,
}

/// A public key that heads may be signed with. Text form: `ed25519:` and base64.
#[derive(Debug, Clone, PartialEq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    pub fn of(key: &SigningKey) -> PublicKey {
        PublicKey(key.verifying_key())
    }

    /// The first 8 bytes of the key's SHA-256, hexadecimal.
    pub fn id(&self) -> String {
        let digest = Digest::of(self.0.as_bytes()).to_string();
        digest.get(..16).unwrap_or_default().to_owned()
    }

    /// Whether this key signed `message`; the signature in base64.
    pub fn verify(&self, message: &[u8], signature: &str) -> Result<(), HeadError> {
        let signature = BASE64
            .decode(signature)
            .ok()
            .and_then(|bytes| Signature::from_slice(&bytes).ok())
            .ok_or(HeadError::BadSignature)?;
        self.0.verify_strict(message, &signature).map_err(|_| HeadError::BadSignature)
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ed25519:{}", BASE64.encode(self.0.as_bytes()))
    }
}

impl std::str::FromStr for PublicKey {
    type Err = HeadError;

    fn from_str(text: &str) -> Result<Self, HeadError> {
        let encoded = text.strip_prefix("ed25519:").ok_or(HeadError::BadPublicKey)?;
        let bytes = BASE64.decode(encoded).map_err(|_| HeadError::BadPublicKey)?;
        let bytes: [u8; 32] = bytes.try_into().map_err(|_| HeadError::BadPublicKey)?;
        VerifyingKey::from_bytes(&bytes).map(PublicKey).map_err(|_| HeadError::BadPublicKey)
    }
}

impl SignedHead {
    pub fn sign(head: &Head, key: &SigningKey) -> Result<SignedHead, HeadError> {
        let text =
            serde_json::to_string(head).map_err(|error| HeadError::Malformed(error.to_string()))?;
        if text.len() > crate::limits::HEAD_BYTES_MAX {
            return Err(HeadError::TooLong { bytes: text.len() });
        }
        let signature = signature_of(&key.sign(text.as_bytes()));
        Ok(SignedHead { head: text, key_id: PublicKey::of(key).id(), signature })
    }

    /// What the head says of itself, unverified: for sorting and comparing, never for serving.
    pub fn claims(&self) -> Option<Head> {
        if self.head.len() > crate::limits::HEAD_BYTES_MAX {
            return None;
        }
        serde_json::from_str(&self.head).ok()
    }

    /// The head, if one of the trusted keys signed it.
    pub fn verify(&self, trusted: &[PublicKey]) -> Result<Head, HeadError> {
        let text = self.verify_text(trusted)?;
        serde_json::from_str(text).map_err(|error| HeadError::Malformed(error.to_string()))
    }

    /// The signed text, whatever it says, if one of the trusted keys signed it.
    pub fn verify_text(&self, trusted: &[PublicKey]) -> Result<&str, HeadError> {
        if self.head.len() > crate::limits::HEAD_BYTES_MAX {
            return Err(HeadError::TooLong { bytes: self.head.len() });
        }
        let key = trusted
            .iter()
            .find(|key| key.id() == self.key_id)
            .ok_or_else(|| HeadError::UnknownKey(self.key_id.clone()))?;
        key.verify(self.head.as_bytes(), &self.signature)?;
        Ok(&self.head)
    }
}

/// A signature of something that is no head, in base64. Its message must begin as no head does, which
/// is with `{`.
pub fn sign(message: &[u8], key: &SigningKey) -> String {
    signature_of(&key.sign(message))
}

pub(crate) fn signature_of(signature: &Signature) -> String {
    BASE64.encode(signature.to_bytes())
}
