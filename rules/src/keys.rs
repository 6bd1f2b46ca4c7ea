//! API keys: `tg_<kind>_<id>_<secret>_<check>`. Shown once, kept as SHA-256, checked at edges from
//! the hashes in the snapshot. The check digits let a scanner or a typo be told from a real key.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyKind {
    /// Secret; all flags of one environment.
    Server,
    /// Public; flags marked for clients of one environment.
    Browser,
    /// An edge node; a set of namespaces.
    Edge,
    /// Everything, in the database that `tidegate dev` makes and in tests; nowhere else.
    Admin,
    /// The admin API, as one person, within the token's scopes.
    Personal,
    /// The admin API, as a program, with roles of its own.
    Service,
    /// A new session for an old one, once.
    Refresh,
    /// The first owner of an installation, once.
    Setup,
    /// A password for one account, once.
    Invite,
}

impl KeyKind {
    pub fn name(self) -> &'static str {
        match self {
            KeyKind::Server => "server",
            KeyKind::Browser => "browser",
            KeyKind::Edge => "edge",
            KeyKind::Admin => "admin",
            KeyKind::Personal => "personal",
            KeyKind::Service => "service",
            KeyKind::Refresh => "refresh",
            KeyKind::Setup => "setup",
            KeyKind::Invite => "invite",
        }
    }
}

/// What travels in a snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeyRecord {
    pub id: String,
    pub kind: KeyKind,
    /// SHA-256 of the whole key's text.
    pub hash: [u8; 32],
    /// Of browser keys: exact origins; empty allows every origin.
    pub origins: Vec<String>,
}

/// A key as its holder has it. Debug prints stars.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    pub kind: KeyKind,
    pub id: String,
    text: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Tidegate key: {0}")]
pub struct KeyError(&'static str);

/// Bytes of randomness that a key is made of: 6 for the id, 32 for the secret.
pub const KEY_ENTROPY_BYTES: usize = 38;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

impl ApiKey {
    /// `entropy` must come from the system's random source; none is asked here.
    pub fn new(kind: KeyKind, entropy: &[u8; KEY_ENTROPY_BYTES]) -> ApiKey {
        let (id, secret) = entropy.split_at(6);
        let body = format!("tg_{}_{}_{}", kind.name(), base62(id, 8), base62(secret, 43));
        let check = check_digits(&body);
        let text = format!("{body}_{check}");
        ApiKey { kind, id: base62(id, 8), text }
    }

    pub fn parse(text: &str) -> Result<ApiKey, KeyError> {
        if text.len() > 128 {
            return Err(KeyError("it is too long"));
        }
        let (body, check) = text.rsplit_once('_').ok_or(KeyError("it has no parts"))?;
        let mut parts = body.split('_');
        if parts.next() != Some("tg") {
            return Err(KeyError("it does not begin with tg_"));
        }
        let kind = match parts.next() {
            Some("server") => KeyKind::Server,
            Some("browser") => KeyKind::Browser,
            Some("edge") => KeyKind::Edge,
            Some("admin") => KeyKind::Admin,
            Some("personal") => KeyKind::Personal,
            Some("service") => KeyKind::Service,
            Some("refresh") => KeyKind::Refresh,
            Some("setup") => KeyKind::Setup,
            Some("invite") => KeyKind::Invite,
            _ => return Err(KeyError("its kind is none of ours")),
        };
        let (Some(id), Some(_secret), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError("it has not five parts"));
        };
        if check_digits(body) != check {
            return Err(KeyError("its check digits are wrong, so it was mistyped or cut"));
        }
        Ok(ApiKey { kind, id: id.to_owned(), text: text.to_owned() })
    }

    pub fn hash(&self) -> [u8; 32] {
        use sha2::Digest as _;
        sha2::Sha256::digest(self.text.as_bytes()).into()
    }

    /// The key itself: for the one answer that shows it.
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tg_{}_{}_***", self.kind.name(), self.id)
    }
}

/// Big-endian bytes as base 62, at least `width` digits.
fn base62(bytes: &[u8], width: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = Vec::new();
    while number.iter().any(|byte| *byte != 0) {
        let mut rest = 0u32;
        for byte in &mut number {
            let value = rest << 8 | u32::from(*byte);
            *byte = (value / 62) as u8;
            rest = value % 62;
        }
        digits.push(BASE62.get(rest as usize).copied().unwrap_or(b'0'));
    }
    while digits.len() < width {
        digits.push(b'0');
    }
    digits.iter().rev().map(|digit| char::from(*digit)).collect()
}

fn check_digits(body: &str) -> String {
    base62(&crate::hash::crc32(body.as_bytes()).to_be_bytes(), 6)
}
