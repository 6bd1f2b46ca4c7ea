//! A store of a test's own, without a server in front of it; on SQLite, or on PostgreSQL where xtask
//! started one.

use std::time::Duration;

use control::authorize::callers::{self, Asking, Authority};
use control::authorize::{NamespaceScope, Scope};
use control::sessions::Keys;
use control::store::{Database, Patience, Store};
use control::{environments, namespaces};
use rules::secret::Secret;

#[path = "../../../e2e/src/postgres.rs"]
#[allow(dead_code, reason = "the server is started by xtask")]
mod postgres;

const PATIENCE: Duration = Duration::from_secs(30);

/// One that a machine which stands still for seconds does not disturb.
pub async fn open(dir: &tempfile::TempDir) -> Store {
    open_with(dir, Patience { connection: PATIENCE, silence: PATIENCE }).await
}

pub async fn open_with(dir: &tempfile::TempDir, patience: Patience) -> Store {
    let database = match postgres::database_for_test() {
        Some(url) => Database::Postgres(Secret::new(url)),
        None => Database::embedded(dir.path()),
    };
    Store::open_with(&database, patience).await.expect("a store")
}

/// Namespace `ours` with environment `production`, which waits to be published: its id, and who
/// may do what.
pub async fn furnish(store: &Store) -> (Scope, NamespaceScope, String) {
    let mut tx = store.write().await.expect("a write");
    let token = control::keys::random(rules::keys::KeyKind::Admin).expect("a token");
    callers::begin(&mut tx, &token).await.expect("the first");
    let token = Some(token.reveal());
    let asking = Asking { bearer: token, ..Asking::default() };
    let signing = ed25519_dalek::SigningKey::from_bytes(&[7; 32]);
    let authority = Authority::new(true, Keys::of(&signing));
    let admin = callers::caller(&mut tx, &authority, asking).await.expect("in");
    namespaces::create(&mut tx, &admin, "ours", "").await.expect("a namespace");
    let scope = admin.namespace(&mut tx, "ours").await.expect("a scope");
    let made = environments::create(&mut tx, &scope, "production", "").await.expect("made");
    tx.commit().await.expect("a commit");
    (admin, scope, made.id)
}
