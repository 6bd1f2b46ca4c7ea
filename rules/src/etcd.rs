//! What control and edges agree on about etcd: how things are called there, what an edge says of
//! itself, how it is reached. Pure: who speaks to it is `control/src/etcd.rs` and
//! `edge/src/register.rs`.
//!
//! | what | where |
//! |---|---|
//! | which etcd this is | `<prefix>/incarnation`: a random name, made once |
//! | who leads | `<prefix>/leader`, under the leader's lease; its create revision is the epoch |
//! | an edge | `<prefix>/edges/<edge key id>/<edge>`, under the edge's lease |
//!
//! An edge's place begins with its key's id, because a prefix is what etcd's roles can tell apart.

use serde::{Deserialize, Serialize};

use crate::secret::Secret;

pub const PREFIX_DEFAULT: &str = "/tidegate";
const PREFIX_BYTES_MAX: usize = 128;
/// Of one registration, key or value; what is longer was not written by an edge.
pub const REGISTRATION_BYTES_MAX: usize = 2_048;
/// Of one text in a registration.
const TEXT_BYTES_MAX: usize = 256;

/// How etcd is reached. The password is no part of an address, which ends up in logs.
#[derive(Debug, Clone)]
pub struct Etcd {
    endpoints: Vec<String>,
    prefix: String,
    pub user: String,
    pub password: Option<Secret<String>>,
    /// PEM; without it, of https:// addresses, the system's roots are trusted.
    pub roots: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EtcdError {
    #[error("{0:?} is not the address of an etcd: http://host:port or https://host:port")]
    Endpoint(String),
    // Not shown: it holds a secret.
    #[error(
        "an etcd's address must not hold a user or a password; they have settings of their own"
    )]
    Credentials,
    #[error("no etcd is named")]
    Nowhere,
    #[error(
        "{0:?} is not a prefix of keys: it begins with /, does not end with it, has no spaces and \
         at most 128 bytes"
    )]
    Prefix(String),
}

impl Etcd {
    /// `endpoints` are the members of one cluster.
    pub fn new(
        endpoints: Vec<String>,
        prefix: impl Into<String>,
        user: impl Into<String>,
        password: Option<Secret<String>>,
    ) -> Result<Etcd, EtcdError> {
        if endpoints.is_empty() {
            return Err(EtcdError::Nowhere);
        }
        for endpoint in &endpoints {
            if endpoint.contains('@') {
                return Err(EtcdError::Credentials);
            }
            let host =
                endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['/', '?', '#'])) {
                return Err(EtcdError::Endpoint(endpoint.clone()));
            }
        }
        let prefix = prefix.into();
        let odd = |byte: u8| byte <= b' ' || byte == 0x7f;
        if !prefix.starts_with('/')
            || prefix.ends_with('/')
            || prefix.len() > PREFIX_BYTES_MAX
            || prefix.bytes().any(odd)
        {
            return Err(EtcdError::Prefix(prefix));
        }
        Ok(Etcd { endpoints, prefix, user: user.into(), password, roots: None })
    }

    /// Never empty. Attempts go through them one after the other, so a dead member costs one.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    pub fn incarnation_key(&self) -> String {
        format!("{}/incarnation", self.prefix)
    }

    pub fn leader_key(&self) -> String {
        format!("{}/leader", self.prefix)
    }

    /// What every edge's key begins with.
    pub fn edges_prefix(&self) -> String {
        format!("{}/edges/", self.prefix)
    }

    pub fn edge_key(&self, edge_key_id: &str, edge: &str) -> String {
        format!("{}{edge_key_id}/{edge}", self.edges_prefix())
    }

    /// Edge and edge key id of a registration's key.
    pub fn edge_of(&self, key: &str) -> Option<(String, String)> {
        let (edge_key_id, edge) = key.strip_prefix(&self.edges_prefix())?.split_once('/')?;
        Some((edge.to_owned(), edge_key_id.to_owned()))
    }
}

/// What an edge says of itself when it registers. Nothing of it is secret, and nothing is decided by
/// it: it is shown to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Registration {
    /// Of the edge's build.
    pub version: String,
    /// Where it answers, as far as it knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Microseconds since the epoch, by the edge's clock.
    pub started_at_us: i64,
    /// When it registered, which it does again after its lease was lost.
    pub registered_at_us: i64,
}

impl Registration {
    /// None if no edge can have written it.
    pub fn parse(bytes: &[u8]) -> Option<Registration> {
        if bytes.len() > REGISTRATION_BYTES_MAX {
            return None;
        }
        let registration: Registration = serde_json::from_slice(bytes).ok()?;
        let short = |text: &str| text.len() <= TEXT_BYTES_MAX;
        (short(&registration.version) && registration.address.as_deref().is_none_or(short))
            .then_some(registration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etcd(prefix: &str) -> Result<Etcd, EtcdError> {
        Etcd::new(vec!["http://one:2379".to_owned()], prefix, "", None)
    }

    #[test]
    fn names_are_what_etcds_already_hold() {
        let etcd = etcd(PREFIX_DEFAULT).unwrap();
        assert_eq!(etcd.leader_key(), "/tidegate/leader");
        assert_eq!(etcd.incarnation_key(), "/tidegate/incarnation");
        let key = etcd.edge_key("a1b2", "eu/1");
        assert_eq!(key, "/tidegate/edges/a1b2/eu/1");
        assert_eq!(etcd.edge_of(&key), Some(("eu/1".to_owned(), "a1b2".to_owned())));
        assert_eq!(etcd.edge_of("/tidegate/leader"), None);
    }

    #[test]
    fn an_address_with_a_password_in_it_is_refused_and_not_shown() {
        let refused = Etcd::new(vec!["http://root:hunter2@etcd:2379".to_owned()], "/t", "", None);
        let text = refused.unwrap_err().to_string();
        assert!(!text.contains("hunter2"), "{text}");
        for wrong in ["etcd:2379", "tcp://etcd", "http://", "https://etcd/path"] {
            let refused = Etcd::new(vec![wrong.to_owned()], "/t", "", None);
            assert_eq!(refused.unwrap_err(), EtcdError::Endpoint(wrong.to_owned()));
        }
        assert_eq!(Etcd::new(Vec::new(), "/t", "", None).unwrap_err(), EtcdError::Nowhere);
    }

    #[test]
    fn a_prefix_is_a_path() {
        for wrong in ["", "/", "tidegate", "/tidegate/", "/a b", "/a\n"] {
            assert_eq!(etcd(wrong).unwrap_err(), EtcdError::Prefix(wrong.to_owned()));
        }
        assert!(etcd(&format!("/{}", "a".repeat(127))).is_ok());
        assert!(etcd(&format!("/{}", "a".repeat(128))).is_err());
    }

    #[test]
    fn what_no_edge_wrote_is_no_registration() {
        let written =
            br#"{"version":"0.1.0","address":"127.0.0.1:8016","startedAtUs":1,"registeredAtUs":2}"#;
        let read = Registration::parse(written).unwrap();
        assert_eq!(serde_json::to_vec(&read).unwrap(), written);
        assert!(Registration::parse(b"{}").is_none());
        let mut long = read.clone();
        long.version = "1".repeat(TEXT_BYTES_MAX + 1);
        assert!(Registration::parse(&serde_json::to_vec(&long).unwrap()).is_none());
        assert!(Registration::parse(&[b' '; REGISTRATION_BYTES_MAX + 1]).is_none());
    }
}
