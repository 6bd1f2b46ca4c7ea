//! Which control plane a command talks to: options, environment variables, and what `tidegate dev`
//! left in `.tidegate/dev.json`.
//!
//! The file's token is sent to the file's own address only: `--url elsewhere` needs a token of its
//! own, so that a token never reaches a host that it was not made for.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::client::Client;
use crate::failure::{Exit, Failure};
use crate::session;

/// What `tidegate dev` writes for programs and for the commands here. A contract: other tools
/// read it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevFile {
    pub control_url: String,
    pub edge_url: String,
    pub namespace: String,
    pub environment: String,
    pub admin_token: String,
    pub server_key: String,
    pub browser_key: String,
    /// What browsers' SDKs pin: `ed25519:` and base64.
    #[serde(default)]
    pub public_key: String,
    /// Where the demo page is, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub demo_url: Option<String>,
}

pub const DEV_FILE: &str = "dev.json";

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection (defaults: .tidegate/dev.json, if there is one)")]
pub struct Connection {
    /// Address of the control plane [default: http://127.0.0.1:8080].
    #[arg(long, env = "TIDEGATE_URL", value_name = "URL")]
    url: Option<String>,
    /// Token: personal, of a service, or of `tidegate dev`. Prefer the variable or --token-file: other users can read command lines.
    #[arg(long, env = "TIDEGATE_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File that holds the token.
    #[arg(long, env = "TIDEGATE_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Folder of `tidegate dev`, whose dev.json gives the defaults.
    #[arg(long, env = "TIDEGATE_DIR", value_name = "DIR", default_value = ".tidegate")]
    dir: PathBuf,
}

/// Which environment a command is about.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Connection (defaults: .tidegate/dev.json, if there is one)")]
pub struct Place {
    #[command(flatten)]
    pub connection: Connection,
    /// Namespace.
    #[arg(short, long, env = "TIDEGATE_NAMESPACE", value_name = "KEY")]
    namespace: Option<String>,
    /// Environment.
    #[arg(short, long, env = "TIDEGATE_ENVIRONMENT", value_name = "KEY")]
    environment: Option<String>,
}

pub const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// Without a slash at its end.
pub fn checked_url(url: &str) -> Result<String, Failure> {
    let url = url.trim_end_matches('/').to_owned();
    match url.starts_with("http://") || url.starts_with("https://") {
        true => Ok(url),
        false => {
            Err(Failure::usage(format!("the URL {url:?} does not begin with http:// or https://")))
        }
    }
}

impl Connection {
    /// What dev.json says, if it is there.
    pub fn dev_file(&self) -> Result<Option<DevFile>, Failure> {
        read_dev_file(&self.dir)
    }

    /// Where control is, by the options, dev.json, or as nobody says anything.
    pub fn url(&self) -> Result<String, Failure> {
        let dev = self.dev_file()?;
        checked_url(match (&self.url, &dev) {
            (Some(url), _) => url,
            (None, Some(dev)) => &dev.control_url,
            (None, None) => DEFAULT_URL,
        })
    }

    pub fn client(&self) -> Result<Client, Failure> {
        let dev = self.dev_file()?;
        let url = self.url()?;
        let from_file = dev.filter(|dev| dev.control_url.trim_end_matches('/') == url);
        let token = match (&self.token, &self.token_file, from_file) {
            (Some(token), _, _) => token.trim().to_owned(),
            (None, Some(path), _) => secret_from_file(path)?,
            (None, None, Some(dev)) => dev.admin_token,
            (None, None, None) if session::is_kept(&url) => return Client::of_session(url),
            (None, None, None) => {
                return Err(Failure::usage(format!("no token for {url}")).mend(format!(
                    "sign in with `tidegate login`, set TIDEGATE_TOKEN or --token-file, or run where `tidegate dev` left {}",
                    self.dir.join(DEV_FILE).display()
                )));
            }
        };
        Client::new(url, &token)
    }
}

impl Place {
    pub fn resolve(&self) -> Result<(Client, Environment), Failure> {
        let client = self.connection.client()?;
        let dev = self.connection.dev_file()?;
        let (dev_namespace, dev_environment) =
            dev.map(|dev| (dev.namespace, dev.environment)).unzip();
        let missing = |what: &str| {
            Failure::usage(format!("which {what}?")).mend(format!(
                "give --{what} or TIDEGATE_{}, or run where `tidegate dev` left its dev.json",
                what.to_uppercase()
            ))
        };
        let namespace =
            self.namespace.clone().or(dev_namespace).ok_or_else(|| missing("namespace"))?;
        let environment =
            self.environment.clone().or(dev_environment).ok_or_else(|| missing("environment"))?;
        Ok((client, Environment { namespace, environment }))
    }
}

#[derive(Debug, Clone)]
pub struct Environment {
    pub namespace: String,
    pub environment: String,
}

impl Environment {
    /// `/api/v1/namespaces/…/environments/…` and further segments, each percent-encoded whole.
    pub fn path(&self, rest: &[&str]) -> String {
        let mut segments = vec!["namespaces", &self.namespace, "environments", &self.environment];
        segments.extend(rest);
        api_path(&segments)
    }
}

pub fn api_path(segments: &[&str]) -> String {
    let mut path = "/api/v1".to_owned();
    for segment in segments {
        path.push('/');
        path.push_str(&percent_encoded(segment));
    }
    path
}

/// Every byte but the unreserved ones of RFC 3986: a flag's key may hold slashes and unicode.
pub fn percent_encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

pub fn read_dev_file(dir: &Path) -> Result<Option<DevFile>, Failure> {
    let path = dir.join(DEV_FILE);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::new(Exit::Failed, format!("{}: {error}", path.display())));
        }
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        Failure::new(Exit::Failed, format!("{}: {error}", path.display()))
            .mend("remove the file; `tidegate dev` writes it again")
    })
}

/// A secret from a file: its text without surrounding white space.
pub fn secret_from_file(path: &Path) -> Result<String, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", path.display())))?;
    let text = text.trim();
    if text.is_empty() {
        return Err(Failure::usage(format!("{} is empty", path.display())));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_with_slashes_and_unicode_is_one_path_segment() {
        assert_eq!(api_path(&["flags", "checkout/grün?"]), "/api/v1/flags/checkout%2Fgr%C3%BCn%3F");
    }

    #[test]
    fn the_dev_files_token_is_not_sent_to_another_host() {
        let dir = tempfile::tempdir().unwrap();
        let dev = DevFile {
            control_url: "http://127.0.0.1:1".to_owned(),
            edge_url: "http://127.0.0.1:2".to_owned(),
            namespace: "demo".to_owned(),
            environment: "production".to_owned(),
            admin_token: "tg_admin_x".to_owned(),
            server_key: String::new(),
            browser_key: String::new(),
            public_key: String::new(),
            demo_url: None,
        };
        std::fs::write(dir.path().join(DEV_FILE), serde_json::to_vec(&dev).unwrap()).unwrap();
        let mut connection =
            Connection { url: None, token: None, token_file: None, dir: dir.path().to_owned() };
        assert!(connection.client().is_ok());
        connection.url = Some("http://example.com".to_owned());
        let failure = connection.client().err().unwrap();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains("no token for http://example.com"));
    }
}
