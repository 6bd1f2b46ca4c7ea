//! `tidegate init`: keys and passwords of a deployment of several processes, made before the first
//! of them starts, because each has to be told some of them. deploy/ shows how they are used.

use std::path::{Path, PathBuf};

use control::signing;
use rules::head::PublicKey;
use rules::keys::{ApiKey, KeyKind};
use serde_json::json;

use crate::connection::secret_from_file;
use crate::failure::{Exit, Failure};
use crate::files::{make_private_folder, write_private};
use crate::paint::{Output, print, print_json};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  tidegate init /etc/tidegate/secrets

DIR gets these files, which only this user can read; those that are there stay as they are:
  signing-key, trust            control's --signing-key-file, edges' --trust-file
  secrets-key                   control's --secrets-key-file
  setup-token, edge-key         control's --first-setup-token-file and --first-edge-key-file,
                                edges' --edge-key-file; the former is for `tidegate setup` too
  owner-password                of the first owner, for `tidegate setup --password-file`
  database-password             of the user tidegate
  database-url                  control's --database-url-file
  nats-control-password,        --nats-password-file of control and of edges
  nats-edge-password
  nats.env                      what deploy/nats.conf takes from the environment")]
pub struct Init {
    /// Where the files are made.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Where PostgreSQL is, for database-url.
    #[arg(long, value_name = "HOST[:PORT]", default_value = "postgres")]
    database_host: String,
}

/// 192 bits, in hexadecimal digits: whole in a URL, in a shell and in a server's configuration.
const PASSWORD_BYTES: usize = 24;

struct Folder {
    dir: PathBuf,
    made: Vec<&'static str>,
}

impl Folder {
    /// The file's text; made by `make` if there is none.
    fn file(
        &mut self,
        name: &'static str,
        make: impl FnOnce() -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let path = self.dir.join(name);
        if path.exists() {
            return secret_from_file(&path);
        }
        let text = make()?;
        write_private(&path, format!("{text}\n").as_bytes())?;
        self.made.push(name);
        Ok(text)
    }

    /// A file that says again what others say.
    fn derived(&mut self, name: &'static str, text: &str) -> Result<(), Failure> {
        let path = self.dir.join(name);
        if std::fs::read_to_string(&path).is_ok_and(|is| is == text) {
            return Ok(());
        }
        write_private(&path, text.as_bytes())?;
        self.made.push(name);
        Ok(())
    }

    fn key(&mut self, name: &'static str, kind: KeyKind) -> Result<ApiKey, Failure> {
        let text = self.file(name, || {
            let key = control::keys::random(kind);
            let key = key.map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
            Ok(key.reveal().to_owned())
        })?;
        let path = self.dir.join(name);
        match ApiKey::parse(&text) {
            Ok(key) if key.kind == kind => Ok(key),
            Ok(key) => Err(Failure::usage(format!(
                "{}: it holds a {} key, and should hold a {} key",
                path.display(),
                key.kind.name(),
                kind.name()
            ))),
            Err(error) => Err(Failure::usage(format!("{}: {error}", path.display()))),
        }
    }
}

fn password() -> Result<String, Failure> {
    let mut bytes = [0u8; PASSWORD_BYTES];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::new(Exit::Failed, format!("no randomness: {error}")))?;
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    // nats-server takes a value of digits for a number, and 3e7 too.
    Ok(format!("p{digits}"))
}

pub fn run(arguments: Init, output: Output) -> Result<(), Failure> {
    make_private_folder(&arguments.dir)?;
    let mut folder = Folder { dir: arguments.dir, made: Vec::new() };
    let made = make(&mut folder, &arguments.database_host)?;
    show(&folder.dir, &folder.made, &made, output);
    Ok(())
}

fn make(folder: &mut Folder, database_host: &str) -> Result<PublicKey, Failure> {
    let signing_file = folder.dir.join("signing-key");
    if !signing_file.exists() {
        folder.made.push("signing-key");
    }
    let signing = signing::load_or_make(&signing_file)
        .map_err(|error| Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::from(error))))?;
    let public_key = PublicKey::of(&signing);
    let secrets_file = folder.dir.join("secrets-key");
    if !secrets_file.exists() {
        folder.made.push("secrets-key");
    }
    control::vault::load_or_make(&secrets_file)
        .map_err(|error| Failure::new(Exit::Failed, format!("{:#}", anyhow::Error::from(error))))?;
    folder.file("trust", || Ok(public_key.to_string()))?;
    folder.key("setup-token", KeyKind::Setup)?;
    folder.file("owner-password", password)?;
    let edge = folder.key("edge-key", KeyKind::Edge)?;
    let database = folder.file("database-password", password)?;
    folder.file("database-url", || {
        Ok(format!("postgres://tidegate:{database}@{database_host}/tidegate"))
    })?;
    let nats_control = folder.file("nats-control-password", password)?;
    let nats_edge = folder.file("nats-edge-password", password)?;
    folder.derived(
        "nats.env",
        &format!(
            "TIDEGATE_NATS_CONTROL_PASSWORD={nats_control}\n\
             TIDEGATE_NATS_EDGE_PASSWORD={nats_edge}\n\
             TIDEGATE_NATS_EDGE_RECEIPTS={}\n",
            rules::bus::receipts_subject(&edge.id)
        ),
    )?;
    Ok(public_key)
}

fn show(dir: &Path, made: &[&str], public_key: &PublicKey, output: Output) {
    match output {
        Output::Json => print_json(&json!({
            "dir": dir.display().to_string(),
            "made": made,
            "public_key": public_key.to_string(),
        })),
        Output::Text if made.is_empty() => {
            print(&format!("everything is in {} already; nothing was made", dir.display()));
        }
        Output::Text => {
            print(&format!(
                "made in {}: {}\nedges trust {public_key}",
                dir.display(),
                made.join(", ")
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn files(dir: &Path) -> std::collections::BTreeMap<String, Vec<u8>> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        entries
            .map(|entry| {
                let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
                assert_eq!(mode, 0o600, "{:?}", entry.path());
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    #[test]
    fn what_is_there_stays_and_what_is_missing_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = || Folder { dir: dir.path().to_owned(), made: Vec::new() };
        let mut first = folder();
        make(&mut first, "db:5433").unwrap();
        let before = files(dir.path());
        assert_eq!(first.made.len(), before.len());
        let mut again = folder();
        make(&mut again, "elsewhere").unwrap();
        assert!(again.made.is_empty());
        assert_eq!(files(dir.path()), before);
        std::fs::remove_file(dir.path().join("nats-edge-password")).unwrap();
        make(&mut folder(), "db:5433").unwrap();
        let after = files(dir.path());
        assert_ne!(after["nats-edge-password"], before["nats-edge-password"]);
        assert_eq!(after["edge-key"], before["edge-key"]);
        let new = String::from_utf8(after["nats-edge-password"].clone()).unwrap();
        let said = String::from_utf8(after["nats.env"].clone()).unwrap();
        assert!(said.contains(&format!("TIDEGATE_NATS_EDGE_PASSWORD={}", new.trim())), "{said}");
        let url = String::from_utf8(before["database-url"].clone()).unwrap();
        assert!(url.trim().ends_with("@db:5433/tidegate"), "{url}");
    }

    #[test]
    fn a_file_of_another_kind_is_told_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("edge-key"), "no key").unwrap();
        let mut folder = Folder { dir: dir.path().to_owned(), made: Vec::new() };
        let failure = make(&mut folder, "db").unwrap_err();
        assert!(failure.message.contains("edge-key"), "{}", failure.message);
    }
}
