//! The database: pools, transactions, migrations.
//!
//! SQLite: WAL, synchronous FULL, one writer connection whose transactions begin IMMEDIATE, so
//! that a writer never fails halfway for want of the lock; a pool of readers, each of whose
//! transactions sees one consistent state. SQL is shared text with `$1` placeholders.

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};

pub type Connection = sqlx::SqliteConnection;

const READERS_MAX: u32 = 4;
/// A writer that waits longer than this behind others gives up; the client may try again.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the database {path} cannot be opened")]
    Open {
        path: String,
        #[source]
        source: sqlx::Error,
    },
    #[error("the database {path} cannot be migrated")]
    Migrate {
        path: String,
        #[source]
        source: sqlx::migrate::MigrateError,
    },
}

#[derive(Debug, Clone)]
pub struct Store {
    writer: SqlitePool,
    reader: SqlitePool,
}

/// A write. Nothing of it is there until `commit`.
pub struct Tx {
    inner: sqlx::Transaction<'static, sqlx::Sqlite>,
    reader: SqlitePool,
}

impl Store {
    /// Opens the database file, made if missing, and brings it to this build's schema.
    pub async fn open(path: &Path) -> Result<Store, OpenError> {
        let shown = || path.display().to_string();
        let opened = |source| OpenError::Open { path: shown(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        sqlx::migrate!("../migrations/sqlite")
            .run(&writer)
            .await
            .map_err(|source| OpenError::Migrate { path: shown(), source })?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.pragma("query_only", "1"))
            .await
            .map_err(opened)?;
        Ok(Store { writer, reader })
    }

    /// The versions of the schema that the database has, oldest first.
    pub async fn schema_versions(&self) -> Result<Vec<i64>, sqlx::Error> {
        const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
        sqlx::query_scalar(APPLIED).fetch_all(&self.reader).await
    }

    pub async fn write(&self) -> Result<Tx, sqlx::Error> {
        let inner = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Tx { inner, reader: self.reader.clone() })
    }

    /// One consistent state, for as long as the transaction is held.
    pub async fn read(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, sqlx::Error> {
        self.reader.begin().await
    }

    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

impl Tx {
    /// The state as it is for everybody else, without what this transaction has done so far.
    pub async fn committed(&self) -> Result<sqlx::Transaction<'static, sqlx::Sqlite>, sqlx::Error> {
        self.reader.begin().await
    }

    pub async fn commit(self) -> Result<(), sqlx::Error> {
        self.inner.commit().await
    }
}

impl std::ops::Deref for Tx {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.inner
    }
}

impl std::ops::DerefMut for Tx {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.inner
    }
}

/// The stored form of a time.
pub fn now_us() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

pub fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// RFC 3339 of a stored time.
pub fn rfc3339(us: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000)
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}
