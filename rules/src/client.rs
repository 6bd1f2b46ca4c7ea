//! What browsers get of an environment: the client snapshot. Control makes and signs it, an edge
//! hands it on as it is, the browsers' SDK checks it.
//!
//! Two layers. The blob, named by its SHA-256, holds the rules of the flags whose `clients` is
//! `local` and nothing else of the environment: `"TGCL", format u16, reserved u16 = 0, manifest
//! length u32, manifest, framed ruleset`. No revision inside, so a change of flags that browsers may
//! not see leaves it as it is. The container is what is downloaded: `"TGCS", format u16, head length
//! u16, signed head, blob`. Numbers are little endian, manifest and heads are JSON, because the
//! reader is JavaScript.
//!
//! The ruleset is made by `compile::client_state` and the compiler that makes everybody's.

use ed25519_dalek::{Signer as _, SigningKey};
use serde::{Deserialize, Serialize};

use crate::blob::{Digest, LoadError, decode_ruleset};
use crate::head::{ClientRef, Head, HeadError, PublicKey, SignedHead, Version, signature_of};
use crate::limits::{HEAD_BYTES_MAX, SNAPSHOT_BYTES_MAX};

pub const BLOB_FORMAT: u16 = 1;
pub const CONTAINER_FORMAT: u16 = 1;
/// The HTTP content type of a container.
pub const CONTENT_TYPE: &str = "application/vnd.tidegate.snapshot";

const BLOB_MAGIC: [u8; 4] = *b"TGCL";
const CONTAINER_MAGIC: [u8; 4] = *b"TGCS";
const BLOB_PART: &str = "client blob";
const CONTAINER_PART: &str = "client container";

/// What a browser has to know beside the rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientManifest {
    pub namespace: String,
    pub environment: String,
    /// Which of the browsers' two evaluators the rules need: `core` or `full`.
    pub tier: String,
    pub flags: u32,
    /// Whether there are flags that the edge evaluates for browsers.
    pub edge: bool,
    /// Times at which the answers of these flags can change without a new snapshot.
    pub boundaries_ms: Vec<i64>,
}

/// What control signs of a client snapshot. The version is that of the environment when the digest
/// first came: it stays while the digest does, or a browser would see that hidden flags change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClientHead {
    pub namespace: String,
    pub environment: String,
    #[serde(flatten)]
    pub version: Version,
    pub digest: Digest,
    pub bytes: u64,
    #[serde(rename = "issuedAtMs")]
    pub issued_at_ms: i64,
}

/// `ruleset` is framed already: `blob::encode_ruleset`.
pub fn encode_blob(manifest: &ClientManifest, ruleset: &[u8]) -> Result<Vec<u8>, LoadError> {
    let manifest = serde_json::to_vec(manifest).map_err(|error| malformed(BLOB_PART, error))?;
    let length = u32::try_from(manifest.len()).map_err(|error| malformed(BLOB_PART, error))?;
    let parts: [&[u8]; 6] = [
        &BLOB_MAGIC,
        &BLOB_FORMAT.to_le_bytes(),
        &[0, 0],
        &length.to_le_bytes(),
        &manifest,
        ruleset,
    ];
    let blob = parts.concat();
    within_limit(&blob)?;
    Ok(blob)
}

/// The manifest and the still framed ruleset, which is checked as the evaluator will.
pub fn decode_blob(bytes: &[u8]) -> Result<(ClientManifest, &[u8]), LoadError> {
    within_limit(bytes)?;
    let cut = |want| LoadError::Truncated { part: BLOB_PART, have: bytes.len(), want };
    let (header, rest) = bytes.split_first_chunk::<12>().ok_or(cut(12))?;
    let [m0, m1, m2, m3, f0, f1, r0, r1, l0, l1, l2, l3] = *header;
    if [m0, m1, m2, m3] != BLOB_MAGIC {
        return Err(LoadError::NotOurs { part: BLOB_PART });
    }
    known_format(BLOB_PART, u16::from_le_bytes([f0, f1]), BLOB_FORMAT)?;
    if [r0, r1] != [0, 0] {
        return Err(malformed(BLOB_PART, "its reserved bytes are not zero"));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let (manifest, ruleset) =
        rest.split_at_checked(length).ok_or(cut(length.saturating_add(12)))?;
    let manifest: ClientManifest =
        serde_json::from_slice(manifest).map_err(|error| malformed(BLOB_PART, error))?;
    if !manifest.boundaries_ms.is_sorted() {
        return Err(malformed(BLOB_PART, "its time boundaries are not in order"));
    }
    decode_ruleset(ruleset)?;
    Ok((manifest, ruleset))
}

/// The bytes before the blob in a container.
pub fn encode_container_head(signed: &SignedHead) -> Result<Vec<u8>, LoadError> {
    let head = serde_json::to_vec(signed).map_err(|error| malformed(CONTAINER_PART, error))?;
    let length = u16::try_from(head.len()).map_err(|_| LoadError::OverLimit {
        part: CONTAINER_PART,
        what: format!("a head of {} bytes, the limit is {}", head.len(), u16::MAX),
    })?;
    let parts: [&[u8]; 4] =
        [&CONTAINER_MAGIC, &CONTAINER_FORMAT.to_le_bytes(), &length.to_le_bytes(), &head];
    Ok(parts.concat())
}

pub fn encode_container(signed: &SignedHead, blob: &[u8]) -> Result<Vec<u8>, LoadError> {
    let mut container = encode_container_head(signed)?;
    container.extend_from_slice(blob);
    Ok(container)
}

/// The signed head and the blob. Neither signature nor digest is looked at.
pub fn decode_container(bytes: &[u8]) -> Result<(SignedHead, &[u8]), LoadError> {
    let cut = |want| LoadError::Truncated { part: CONTAINER_PART, have: bytes.len(), want };
    let (header, rest) = bytes.split_first_chunk::<8>().ok_or(cut(8))?;
    let [m0, m1, m2, m3, f0, f1, l0, l1] = *header;
    if [m0, m1, m2, m3] != CONTAINER_MAGIC {
        return Err(LoadError::NotOurs { part: CONTAINER_PART });
    }
    known_format(CONTAINER_PART, u16::from_le_bytes([f0, f1]), CONTAINER_FORMAT)?;
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    let (head, blob) = rest.split_at_checked(length).ok_or(cut(length.saturating_add(8)))?;
    let signed = serde_json::from_slice(head).map_err(|error| malformed(CONTAINER_PART, error))?;
    Ok((signed, blob))
}

/// Everything that a browser's SDK checks too: that a trusted key signed the head, that the blob is
/// the one that it names, and that the blob is whole. The head and the blob.
pub fn verify_container<'a>(
    bytes: &'a [u8],
    trusted: &[PublicKey],
) -> Result<(ClientHead, &'a [u8]), ClientError> {
    let (signed, blob) = decode_container(bytes)?;
    let text = signed.verify_text(trusted)?;
    let head = ClientHead::parse(text)?;
    if head.bytes != blob.len() as u64 || head.digest != Digest::of(blob) {
        return Err(ClientError::OtherBlob);
    }
    let (manifest, _) = decode_blob(blob)?;
    if (&manifest.namespace, &manifest.environment) != (&head.namespace, &head.environment) {
        return Err(ClientError::OtherEnvironment);
    }
    Ok((head, blob))
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Head(#[from] HeadError),
    #[error("the client blob is not the one that its head names")]
    OtherBlob,
    #[error("the client snapshot is of another environment than its head")]
    OtherEnvironment,
}

impl ClientHead {
    /// For a head that is yet to be signed, with everything in it.
    pub fn unsigned(&self) -> Result<ClientRef, HeadError> {
        let head =
            serde_json::to_string(self).map_err(|error| HeadError::Malformed(error.to_string()))?;
        Ok(ClientRef { digest: self.digest, bytes: self.bytes, head, signature: String::new() })
    }

    fn parse(text: &str) -> Result<ClientHead, HeadError> {
        serde_json::from_str(text).map_err(|error| HeadError::Malformed(error.to_string()))
    }
}

impl ClientRef {
    pub fn sign(head: &ClientHead, key: &SigningKey) -> Result<ClientRef, HeadError> {
        Ok(head.unsigned()?.signed_with(key))
    }

    /// The same, signed with another key.
    pub fn signed_with(self, key: &SigningKey) -> ClientRef {
        let signature = signature_of(&key.sign(self.head.as_bytes()));
        ClientRef { signature, ..self }
    }

    /// As a browser gets it; `key_id` is that of the head that it stands in.
    pub fn signed(&self, key_id: &str) -> SignedHead {
        SignedHead {
            head: self.head.clone(),
            key_id: key_id.to_owned(),
            signature: self.signature.clone(),
        }
    }

    /// What it says of itself, unverified.
    pub fn claims(&self) -> Option<ClientHead> {
        if self.head.len() > HEAD_BYTES_MAX {
            return None;
        }
        ClientHead::parse(&self.head).ok()
    }

    /// Its head, if it is signed as the outer one and says the same.
    pub fn verify(
        &self,
        outer: &Head,
        key_id: &str,
        trusted: &[PublicKey],
    ) -> Result<ClientHead, ClientError> {
        let signed = self.signed(key_id);
        let head = ClientHead::parse(signed.verify_text(trusted)?)?;
        if (head.digest, head.bytes) != (self.digest, self.bytes) {
            return Err(ClientError::OtherBlob);
        }
        if (&head.namespace, &head.environment) != (&outer.namespace, &outer.environment) {
            return Err(ClientError::OtherEnvironment);
        }
        Ok(head)
    }
}

fn known_format(part: &'static str, format: u16, newest: u16) -> Result<(), LoadError> {
    match format {
        0 => Err(malformed(part, "its format is 0, which there is not")),
        format if format > newest => Err(LoadError::Malformed {
            part,
            what: format!("its format is {format}, this reader knows {newest}"),
        }),
        _ => Ok(()),
    }
}

fn within_limit(bytes: &[u8]) -> Result<(), LoadError> {
    match bytes.len() {
        0..=SNAPSHOT_BYTES_MAX => Ok(()),
        bytes => Err(LoadError::OverLimit {
            part: BLOB_PART,
            what: format!("{bytes} bytes, the limit is {SNAPSHOT_BYTES_MAX}"),
        }),
    }
}

fn malformed(part: &'static str, what: impl ToString) -> LoadError {
    LoadError::Malformed { part, what: what.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blob::encode_ruleset;
    use crate::compile::{EnvironmentState, FlagState, compile};

    fn blob() -> (ClientManifest, Vec<u8>) {
        let definition = serde_json::json!({ "key": "banner", "type": "boolean",
            "variants": { "on": true, "off": false }, "clients": "local" });
        let config = serde_json::json!({ "enabled": true, "fallthrough": { "variant": "on" } });
        let mut state = EnvironmentState::default();
        state.flags.push(FlagState {
            definition: serde_json::from_value(definition).unwrap(),
            config: serde_json::from_value(config).unwrap(),
        });
        let manifest = ClientManifest {
            namespace: "shop".to_owned(),
            environment: "production".to_owned(),
            tier: "full".to_owned(),
            flags: 1,
            edge: true,
            boundaries_ms: vec![1, 2],
        };
        let ruleset = encode_ruleset(&compile(&state).unwrap().ruleset);
        let blob = encode_blob(&manifest, &ruleset).unwrap();
        (manifest, blob)
    }

    fn head(blob: &[u8]) -> ClientHead {
        ClientHead {
            namespace: "shop".to_owned(),
            environment: "production".to_owned(),
            version: Version { generation: 1, revision: 7 },
            digest: Digest::of(blob),
            bytes: blob.len() as u64,
            issued_at_ms: 1_700_000_000_000,
        }
    }

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_bytes(&[byte; 32])
    }

    fn container() -> (Vec<u8>, Vec<PublicKey>) {
        let (_, blob) = blob();
        let reference = ClientRef::sign(&head(&blob), &key(1)).unwrap();
        let public = PublicKey::of(&key(1));
        (encode_container(&reference.signed(&public.id()), &blob).unwrap(), vec![public])
    }

    #[test]
    fn what_was_written_is_read_and_starts_as_the_contract_says() {
        let (manifest, blob) = blob();
        assert_eq!(blob[..8], *b"TGCL\x01\0\0\0");
        let (read, ruleset) = decode_blob(&blob).unwrap();
        assert_eq!(read, manifest);
        assert_eq!(decode_ruleset(ruleset).unwrap().flags.len(), 1);
        let length = u32::from_le_bytes(blob[8..12].try_into().unwrap()) as usize;
        let wanted = r#"{"namespace":"shop","environment":"production","tier":"full","flags":1,"edge":true,"boundariesMs":[1,2]}"#;
        assert_eq!(std::str::from_utf8(&blob[12..12 + length]), Ok(wanted));

        let (container, trusted) = container();
        assert_eq!(container[..6], *b"TGCS\x01\0");
        let (head_read, blob_read) = verify_container(&container, &trusted).unwrap();
        assert_eq!((head_read, blob_read), (head(&blob), blob.as_slice()));
        let (signed, _) = decode_container(&container).unwrap();
        let digest = Digest::of(&blob);
        let bytes = blob.len();
        let wanted = format!(
            r#"{{"namespace":"shop","environment":"production","generation":1,"revision":7,"digest":"{digest}","bytes":{bytes},"issuedAtMs":1700000000000}}"#
        );
        assert_eq!(signed.head, wanted);
    }

    #[test]
    fn no_part_and_no_flipped_bit_of_a_container_passes() {
        let (whole, trusted) = container();
        for len in 0..whole.len() {
            assert!(verify_container(&whole[..len], &trusted).is_err(), "{len} bytes");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                let read = verify_container(&flipped, &trusted);
                assert!(read.is_err(), "byte {at}, bit {bit}: {read:?}");
            }
        }
        let surplus = [whole.as_slice(), b"\0"].concat();
        assert_eq!(verify_container(&surplus, &trusted), Err(ClientError::OtherBlob));
    }

    #[test]
    fn a_blob_that_is_cut_or_flipped_never_panics_and_one_of_another_format_is_refused() {
        let (_, whole) = blob();
        for len in 0..whole.len() {
            assert!(decode_blob(&whole[..len]).is_err(), "{len} bytes");
        }
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                // The manifest has no checksum of its own: the digest covers it.
                let _ = decode_blob(&flipped);
            }
        }
        let mut newer = whole.clone();
        newer[4] = 2;
        let refused = decode_blob(&newer).unwrap_err().to_string();
        assert!(refused.contains("format is 2"), "{refused}");
        let mut reserved = whole;
        reserved[6] = 1;
        assert!(decode_blob(&reserved).unwrap_err().to_string().contains("reserved"));
    }

    #[test]
    fn the_limits_are_inclusive() {
        let (manifest, blob) = blob();
        let mut ruleset = vec![0; SNAPSHOT_BYTES_MAX];
        let before = encode_blob(&manifest, &[]).unwrap().len();
        ruleset.truncate(SNAPSHOT_BYTES_MAX - before);
        assert_eq!(encode_blob(&manifest, &ruleset).unwrap().len(), SNAPSHOT_BYTES_MAX);
        ruleset.push(0);
        assert!(matches!(encode_blob(&manifest, &ruleset), Err(LoadError::OverLimit { .. })));
        let long = vec![0; SNAPSHOT_BYTES_MAX + 1];
        assert!(matches!(decode_blob(&long), Err(LoadError::OverLimit { .. })));

        let signed = |bytes: usize| SignedHead {
            head: "x".repeat(bytes),
            key_id: String::new(),
            signature: String::new(),
        };
        let around = serde_json::to_vec(&signed(0)).unwrap().len();
        let most = usize::from(u16::MAX) - around;
        assert!(encode_container(&signed(most), &blob).is_ok());
        let refused = encode_container(&signed(most + 1), &blob);
        assert!(matches!(refused, Err(LoadError::OverLimit { .. })), "{refused:?}");
    }

    #[test]
    fn a_signature_counts_for_its_key_its_blob_and_its_environment_only() {
        let (_, blob) = blob();
        let outer = |namespace: &str| Head {
            namespace: namespace.to_owned(),
            environment: "production".to_owned(),
            version: Version { generation: 1, revision: 9 },
            snapshot: crate::head::BlobRef { digest: Digest([0; 32]), bytes: 0 },
            client: None,
            previous: None,
            min_reader: 1,
            issued_at_ms: 0,
            epoch: 0,
        };
        let (one, other) = (PublicKey::of(&key(1)), PublicKey::of(&key(2)));
        let trusted = [one.clone(), other.clone()];
        let reference = ClientRef::sign(&head(&blob), &key(1)).unwrap();
        let verified = reference.verify(&outer("shop"), &one.id(), &trusted).unwrap();
        assert_eq!(verified.version, Version { generation: 1, revision: 7 });
        let refused = reference.verify(&outer("shop"), &other.id(), &trusted);
        assert_eq!(refused, Err(ClientError::Head(HeadError::BadSignature)));
        let refused = reference.verify(&outer("bank"), &one.id(), &trusted);
        assert_eq!(refused, Err(ClientError::OtherEnvironment));
        let moved = ClientRef { digest: Digest([1; 32]), ..reference.clone() };
        let refused = moved.verify(&outer("shop"), &one.id(), &trusted);
        assert_eq!(refused, Err(ClientError::OtherBlob));
        let again = reference.signed_with(&key(2));
        assert!(again.verify(&outer("shop"), &other.id(), &trusted).is_ok());
        // Neither can be taken for the other, though one key signs both.
        let as_outer = again.signed(&other.id()).verify(&trusted);
        assert!(matches!(as_outer, Err(HeadError::Malformed(_))), "{as_outer:?}");
        let signed = SignedHead::sign(&outer("shop"), &key(1)).unwrap();
        assert!(ClientHead::parse(&signed.head).is_err());
    }
}
