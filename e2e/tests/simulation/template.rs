//! The database that every run begins with: two namespaces with two environments each, two flags in
//! each namespace, keys of two edges; everything published.

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::authorize::NamespaceScope;
use control::authorize::callers::{self, Asking, Authority};
use control::bus::{Bus, InProcessBus};
use control::change::Expected;
use control::keys::NewKey;
use control::lead::Lead;
use control::publisher::Publisher;
use control::sessions::Keys;
use control::store::{Database, Store};
use control::{audit, configs, environments, flags, keys, namespaces, relay};
use ed25519_dalek::SigningKey;
use rules::head::Version;
use rules::keys::KeyKind;
use rules::model::{FlagConfig, FlagDefinition};
use seam::FileStep;
use serde_json::json;

use crate::oracle::{Environment, Name, Values};
use crate::sim::Rng;

pub const NAMESPACES: [&str; 2] = ["one", "two"];
pub const ENVIRONMENTS: [&str; 2] = ["production", "staging"];
pub const FLAGS: [&str; 2] = ["alpha", "beta"];
/// Variants of a flag, and so the writes that a run can tell apart.
pub const VALUES: i64 = 24;

pub struct Template {
    pub database: Vec<u8>,
    pub scopes: Vec<NamespaceScope>,
    /// Sees the first namespace.
    pub narrow_key: String,
    /// Sees all.
    pub wide_key: String,
    pub environments: Vec<(Name, String, Version)>,
    /// Rows of each namespace's audit log.
    pub audit_rows: Vec<i64>,
}

pub fn signing_key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub fn definition(key: &str) -> FlagDefinition {
    let variants: serde_json::Map<String, serde_json::Value> =
        (0..VALUES).map(|value| (format!("v{value}"), json!(value))).collect();
    let definition = json!({ "key": key, "type": "integer", "variants": variants });
    serde_json::from_value(definition).expect("a definition")
}

pub fn config(value: i64) -> FlagConfig {
    let config = json!({ "enabled": true, "fallthrough": { "variant": format!("v{value}") } });
    serde_json::from_value(config).expect("a configuration")
}

impl Template {
    pub fn truth(&self) -> impl Iterator<Item = (Name, Environment)> {
        let values: Values = FLAGS.iter().map(|flag| ((*flag).to_owned(), Some(0))).collect();
        self.environments.iter().map(move |(name, id, version)| {
            let mut environment = Environment { id: id.clone(), ..Environment::default() };
            environment.versions.insert(*version, values.clone());
            (name.clone(), environment)
        })
    }
}

/// Nothing happens, and always the same.
struct Quiet(Mutex<Rng>);

impl seam::World for Quiet {
    fn now_us(&self) -> i64 {
        self.shared_now_us()
    }

    fn shared_now_us(&self) -> i64 {
        1_767_139_200_000_000
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut rng = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        bytes.fill_with(|| rng.next() as u8);
    }

    fn step(&self, _: &'static str) -> Pin<Box<dyn Future<Output = io::Result<()>> + Send>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn fault(&self, _: &'static str) -> io::Result<()> {
        Ok(())
    }

    fn file(&self, _: FileStep, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

pub fn make(folder: &Path) -> Template {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    seam::enter(Some(Arc::new(Quiet(Mutex::new(Rng::new(1))))));
    let template = runtime.block_on(furnish(folder));
    seam::enter(None);
    template
}

async fn furnish(folder: &Path) -> Template {
    let path = folder.join("template.sqlite");
    let store = Store::open(&Database::Sqlite(path.clone())).await.expect("a store");
    let mut tx = store.write().await.expect("a write");
    let token = keys::random(KeyKind::Admin).expect("a token");
    callers::begin(&mut tx, &token).await.expect("the first");
    let token = Some(token.reveal());
    let asking = Asking { bearer: token, ..Asking::default() };
    let authority = Authority::new(true, Keys::of(&signing_key()));
    let admin = callers::caller(&mut tx, &authority, asking).await.expect("in");
    let mut scopes = Vec::new();
    for namespace in NAMESPACES {
        namespaces::create(&mut tx, &admin, namespace, "").await.expect("a namespace");
        let scope = admin.namespace(&mut tx, namespace).await.expect("a scope");
        for flag in FLAGS {
            flags::create(&mut tx, &scope, &definition(flag)).await.expect("a flag");
        }
        for environment in ENVIRONMENTS {
            environments::create(&mut tx, &scope, environment, "").await.expect("one");
            let kind = KeyKind::Server;
            let key = NewKey { kind, name: "", origins: &[], expires_at: None, per_second: None };
            keys::create(&mut tx, &scope, environment, key).await.expect("a key");
            for flag in FLAGS {
                let any = Expected::Any;
                configs::set(&mut tx, &scope, environment, flag, any, &config(0))
                    .await
                    .expect("set");
            }
        }
        scopes.push(scope);
    }
    let narrow = keys::Sees::Namespaces(vec![NAMESPACES[0].to_owned()]);
    let (narrow, _) =
        keys::edge_create(&mut tx, &admin, "narrow", &narrow, None).await.expect("a key");
    let (wide, _) =
        keys::edge_create(&mut tx, &admin, "wide", &keys::Sees::All, None).await.expect("a key");
    tx.commit().await.expect("a commit");

    let bus: Arc<dyn Bus> = Arc::new(InProcessBus::new(store.clone()));
    let lead = Lead::new(store.clone(), "template".to_owned(), Duration::from_secs(60));
    let lead = Arc::new(lead);
    lead.take().await.expect("asked").expect("the first");
    let publisher = Publisher::new(store.clone(), bus, signing_key(), lead.clone());
    relay::pass(&publisher, &mut relay::Retries::default()).await.expect("published");
    lead.resign().await.expect("resigned");

    let mut read = store.read().await.expect("a read");
    let (mut all, mut audit_rows) = (Vec::new(), Vec::new());
    for scope in &scopes {
        for environment in ENVIRONMENTS {
            let found = environments::get(&mut read, scope, environment).await.expect("there");
            let version =
                Version { generation: found.generation as u64, revision: found.revision as u64 };
            all.push(((scope.key().to_owned(), environment.to_owned()), found.id, version));
        }
        audit_rows
            .push(audit::verify(&mut read, scope.id()).await.expect("a read").expect("valid"));
    }
    drop(read);
    store.close().await;
    Template {
        database: std::fs::read(path).expect("the database"),
        scopes,
        narrow_key: narrow.reveal().to_owned(),
        wide_key: wide.reveal().to_owned(),
        environments: all,
        audit_rows,
    }
}
