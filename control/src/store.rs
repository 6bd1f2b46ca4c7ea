//! The database: pools, transactions, migrations; SQLite embedded, PostgreSQL in production.
//!
//! Both run the same statements (`query.rs`) in the same domain functions. What differs is here:
//!
//! - SQLite: WAL, synchronous FULL, one writer connection whose transactions begin IMMEDIATE, so
//!   that a writer never fails halfway for want of the lock; a pool of readers.
//! - PostgreSQL: writers at READ COMMITTED, whose first statement takes the namespace's row lock
//!   and with it their turn; readers at REPEATABLE READ, so that each of their transactions sees
//!   one consistent state. Waiting has bounds on the server's side: lock, statement, idleness.

pub mod query;

use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sqlx::{
    AssertSqlSafe, Connection as _, Postgres, SqlSafeStr as _, SqlStr, Sqlite, Transaction,
};

use rules::secret::Secret;

use crate::parsed::Parsed;

const READERS_MAX: u32 = 4;
/// A writer that waits longer than this behind others gives up; the client may try again.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Of one process. A replica that needs more than this waits in line; PostgreSQL's own default is
/// 100 for all of them.
const POSTGRES_WRITERS_MAX: u32 = 8;
const POSTGRES_READERS_MAX: u32 = 12;
/// Longer than any statement of ours takes on the biggest environment, shorter than patience.
const POSTGRES_SETTINGS: [(&str, &str); 4] = [
    ("statement_timeout", "20s"),
    ("lock_timeout", "5s"),
    // A process that is paused in the middle of a write holds what others have to write.
    ("idle_in_transaction_session_timeout", "10s"),
    ("application_name", "tidegate-control"),
];

/// What PostgreSQL and whoever asks it are given time for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection, before a request is told to come again (a 503).
    pub connection: Duration,
    /// Of silence in a write that holds up all others, before it is taken back.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience { connection: Duration::from_secs(2), silence: Duration::from_secs(1) }
    }
}

/// Which database, and where.
#[derive(Debug, Clone)]
pub enum Database {
    /// A file, made if it is missing.
    Sqlite(PathBuf),
    /// `postgres://user:password@host:port/database?sslmode=…`; the database must be there.
    Postgres(Secret<String>),
}

impl Database {
    /// The embedded default: a file in the data folder.
    pub fn embedded(data_dir: &Path) -> Database {
        Database::Sqlite(data_dir.join("control.sqlite"))
    }

    /// What people may see of it: no user, no password.
    pub fn place(&self) -> String {
        match self {
            Database::Sqlite(path) => path.display().to_string(),
            Database::Postgres(url) => match PgConnectOptions::from_str(url.reveal()) {
                Ok(options) => place(&options),
                Err(_) => "PostgreSQL".to_owned(),
            },
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the database {place} cannot be opened")]
    Open {
        place: String,
        #[source]
        source: sqlx::Error,
    },
    #[error("the database {place} cannot be migrated")]
    Migrate {
        place: String,
        #[source]
        source: sqlx::migrate::MigrateError,
    },
    /// Without its source, which could repeat the password.
    #[error("the database URL is malformed: write postgres://user:password@host:port/database")]
    Url,
}

fn place(options: &PgConnectOptions) -> String {
    let database = options.get_database().unwrap_or("postgres");
    format!("{database} on {}:{}", options.get_host(), options.get_port())
}

impl OpenError {
    /// Whether the same may work later: the server is not there yet, or is busy starting.
    pub fn is_passing(&self) -> bool {
        match self {
            OpenError::Open { source, .. } => is_passing(source),
            OpenError::Migrate { source: sqlx::migrate::MigrateError::Execute(source), .. } => {
                is_passing(source)
            }
            OpenError::Migrate { .. } | OpenError::Url => false,
        }
    }
}

/// Whether it failed because what the database lies on takes no more.
pub fn is_full(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    match (error.code(), sqlite_code(&**error)) {
        (_, Some(code)) => code == SQLITE_FULL,
        (Some(code), None) => code == "53100",
        (None, None) => false,
    }
}

const SQLITE_FULL: u32 = 13;
const SQLITE_IOERR: u32 = 10;

/// Without what tells failures of one kind apart.
fn sqlite_code(error: &dyn sqlx::error::DatabaseError) -> Option<u32> {
    let error = error.try_downcast_ref::<sqlx::sqlite::SqliteError>()?;
    let code: u32 = sqlx::error::DatabaseError::code(error)?.parse().ok()?;
    Some(code & 0xff)
}

/// Whether a statement that failed so may work when it is tried again.
pub fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed => true,
        // A disk is emptied, or answers again.
        sqlx::Error::Database(error)
            if matches!(sqlite_code(&**error), Some(SQLITE_FULL | SQLITE_IOERR)) =>
        {
            true
        }
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection exceptions, serialization and deadlock, too many connections, shutting
            // down or starting, a lock that was not had in time, a write that was silent for too
            // long; of SQLite: busy.
            ["08", "40", "53", "57P"].iter().any(|class| code.starts_with(class))
                || matches!(&*code, "55P03" | "57014" | "25P03" | "5" | "517")
        }),
        _ => false,
    }
}

/// Whether a connection has no transaction open, and may be used again. SQLite takes a transaction back by
/// itself when its disk is full or fails; the ROLLBACK that follows then finds none and is an error, and sqlx
/// takes the transaction for open for good: on that connection no other could begin.
async fn is_at_rest(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    if connection.is_in_transaction() {
        // A ROLLBACK that is on its way is over with this.
        connection.ping().await?;
    }
    Ok(!connection.is_in_transaction())
}

#[derive(Debug, Clone)]
pub struct Store {
    pools: Pools,
    /// How a write that holds up all others begins on PostgreSQL.
    brief: Arc<str>,
    parsed: Arc<Parsed>,
}

#[derive(Debug, Clone)]
enum Pools {
    Sqlite { writer: SqlitePool, reader: SqlitePool },
    Postgres { writer: PgPool, reader: PgPool, options: Box<PgConnectOptions> },
}

/// A transaction on either database.
pub enum Connection {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A write. Nothing of it is there until `commit`.
pub struct Tx {
    inner: Connection,
    store: Store,
    /// What it raised so far.
    pub touched: Vec<Touched>,
}

/// Where a transaction was, to go back to.
#[must_use]
pub struct Mark {
    touched: usize,
}

/// An environment as a transaction has raised it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Touched {
    pub environment_id: String,
    pub generation: i64,
    pub revision: i64,
}

/// One consistent state, for as long as it is held.
pub struct Read(Connection);

impl Store {
    /// Opens the database and brings it to this build's schema. A failure may pass
    /// (`OpenError::is_passing`): whoever starts decides whether to wait.
    pub async fn open(database: &Database) -> Result<Store, OpenError> {
        Store::open_with(database, Patience::default()).await
    }

    pub async fn open_with(database: &Database, patience: Patience) -> Result<Store, OpenError> {
        let pools = match database {
            Database::Sqlite(path) => Store::open_sqlite(path).await,
            Database::Postgres(url) => Store::open_postgres(url, patience.connection).await,
        }?;
        let silence_ms = patience.silence.as_millis();
        let brief =
            format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {silence_ms}").into();
        Ok(Store { pools, brief, parsed: Arc::default() })
    }

    async fn open_sqlite(path: &Path) -> Result<Pools, OpenError> {
        let place = || path.display().to_string();
        let opened = |source| OpenError::Open { place: place(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What is written over is gone from its page, also a secret; whole pages that are freed are not
            // written once more for it.
            .pragma("secure_delete", "FAST")
            .busy_timeout(ACQUIRE_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A file does not hang up, so it is not asked before each use whether it did.
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(is_at_rest(connection)))
            .connect_with(options.clone())
            .await
            .map_err(opened)?;
        sqlx::migrate!("../migrations/sqlite")
            .run(&writer)
            .await
            .map_err(|source| OpenError::Migrate { place: place(), source })?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .after_release(|connection, _| Box::pin(is_at_rest(connection)))
            .connect_with(options.pragma("query_only", "1"))
            .await
            .map_err(opened)?;
        Ok(Pools::Sqlite { writer, reader })
    }

    async fn open_postgres(url: &Secret<String>, patience: Duration) -> Result<Pools, OpenError> {
        let options = PgConnectOptions::from_str(url.reveal()).map_err(|_| OpenError::Url)?;
        let options = options.options(POSTGRES_SETTINGS);
        let place = || place(&options);
        let opened = |source| OpenError::Open { place: place(), source };
        let pool = |connections: u32| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(patience)
                // A server that was replaced behind its address is noticed within the hour.
                .max_lifetime(Duration::from_secs(60 * 60))
        };
        let writer =
            pool(POSTGRES_WRITERS_MAX).connect_with(options.clone()).await.map_err(opened)?;
        // Replicas that start at once migrate one after the other: sqlx takes an advisory lock.
        sqlx::migrate!("../migrations/postgres")
            .run(&writer)
            .await
            .map_err(|source| OpenError::Migrate { place: place(), source })?;
        let reader =
            pool(POSTGRES_READERS_MAX).connect_with(options.clone()).await.map_err(opened)?;
        let options = Box::new(options);
        Ok(Pools::Postgres { writer, reader, options })
    }

    /// The versions of the schema that the database has, oldest first.
    pub async fn schema_versions(&self) -> Result<Vec<i64>, sqlx::Error> {
        const APPLIED: &str = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
        query::query_scalar(APPLIED).fetch_all(&mut *self.read().await?).await
    }

    pub async fn write(&self) -> Result<Tx, sqlx::Error> {
        self.begin(SqlStr::from_static("BEGIN")).await
    }

    /// A write that holds up all others while it lasts, so nothing is computed in it: PostgreSQL
    /// ends it once its process has been silent for a second, which then is paused or cut off.
    pub async fn write_briefly(&self) -> Result<Tx, sqlx::Error> {
        self.begin(AssertSqlSafe(self.brief.clone()).into_sql_str()).await
    }

    async fn begin(&self, on_postgres: SqlStr) -> Result<Tx, sqlx::Error> {
        seam::step("database write").await?;
        let inner = match &self.pools {
            Pools::Sqlite { writer, .. } => {
                Connection::Sqlite(seam::real(writer.begin_with("BEGIN IMMEDIATE")).await?)
            }
            Pools::Postgres { writer, .. } => {
                Connection::Postgres(writer.begin_with(on_postgres).await?)
            }
        };
        Ok(Tx { inner, store: self.clone(), touched: Vec::new() })
    }

    /// One consistent state, for as long as the transaction is held.
    pub async fn read(&self) -> Result<Read, sqlx::Error> {
        seam::step("database read").await?;
        self.read_at_once().await
    }

    async fn read_at_once(&self) -> Result<Read, sqlx::Error> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY";
        Ok(Read(match &self.pools {
            Pools::Sqlite { reader, .. } => Connection::Sqlite(seam::real(reader.begin()).await?),
            Pools::Postgres { reader, .. } => Connection::Postgres(reader.begin_with(BEGIN).await?),
        }))
    }

    /// What was read from it and parsed before.
    pub(crate) fn parsed(&self) -> &Arc<Parsed> {
        &self.parsed
    }

    /// Whether other processes may write to it.
    pub fn has_others(&self) -> bool {
        matches!(self.pools, Pools::Postgres { .. })
    }

    /// A connection of its own for notifications: a pooled one would go on listening for whoever
    /// has it next. None where one process is all there is.
    pub async fn listener(&self) -> Option<Result<PgListener, sqlx::Error>> {
        let Pools::Postgres { options, .. } = &self.pools else { return None };
        let own = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(Patience::default().connection)
            .connect_lazy_with((**options).clone());
        Some(PgListener::connect_with(&own).await)
    }

    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { writer, reader } => {
                reader.close().await;
                writer.close().await;
            }
            Pools::Postgres { writer, reader, .. } => {
                reader.close().await;
                writer.close().await;
            }
        }
    }
}

impl Connection {
    /// The clock that leases go by: of PostgreSQL its own, since replicas' clocks differ.
    pub async fn clock_us(&mut self) -> Result<i64, sqlx::Error> {
        const CLOCK: &str =
            "SELECT CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)";
        match self {
            Connection::Sqlite(_) => Ok(seam::shared_now_us()),
            Connection::Postgres(_) => query::query_scalar(CLOCK).fetch_one(self).await,
        }
    }
}

impl Tx {
    /// The state as it is for everybody else, without what this transaction has done so far.
    pub async fn committed(&self) -> Result<Read, sqlx::Error> {
        self.store.read_at_once().await
    }

    pub(crate) fn parsed(&self) -> Arc<Parsed> {
        self.store.parsed.clone()
    }

    /// Takes its turn among transactions that name the same thing, until the end. SQLite's writers
    /// take turns anyway.
    pub async fn take_turn(&mut self, name: &str) -> Result<(), sqlx::Error> {
        const TURN: &str = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0)) IS NULL";
        if let Connection::Postgres(_) = self.inner {
            query::query_scalar::<bool>(TURN).bind(name).fetch_one(&mut self.inner).await?;
        }
        Ok(())
    }

    /// What is done from here on can be taken back without the rest. Marks do not nest.
    pub async fn mark(&mut self) -> Result<Mark, sqlx::Error> {
        query::query("SAVEPOINT mark").execute(&mut self.inner).await?;
        Ok(Mark { touched: self.touched.len() })
    }

    /// Takes back what was done since, also if some of it failed. If this fails, the whole is not to be
    /// committed.
    pub async fn back_to(&mut self, mark: Mark) -> Result<(), sqlx::Error> {
        for statement in ["ROLLBACK TO SAVEPOINT mark", "RELEASE SAVEPOINT mark"] {
            query::query(statement).execute(&mut self.inner).await?;
        }
        self.touched.truncate(mark.touched);
        Ok(())
    }

    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match seam::fault("database commit") {
            // Nothing of it is there, and nobody is told.
            Err(_) if seam::planted("failed-commit-acknowledged") => return Ok(()),
            done => done?,
        }
        match self.inner {
            Connection::Sqlite(tx) => seam::real(tx.commit()).await?,
            Connection::Postgres(tx) => tx.commit().await?,
        }
        // Committed; whether the one who asked for it learns that is another matter.
        Ok(seam::step("database committed").await?)
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

impl std::ops::Deref for Read {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl std::ops::DerefMut for Read {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

/// The stored form of a time.
pub fn now_us() -> i64 {
    seam::now_us()
}

pub fn new_id() -> String {
    if seam::is_simulated() {
        let mut random = [0u8; 10];
        let _ = seam::random(&mut random);
        let at_ms = u64::try_from(now_us() / 1000).unwrap_or(0);
        return uuid::Builder::from_unix_timestamp_millis(at_ms, &random).into_uuid().to_string();
    }
    uuid::Uuid::now_v7().to_string()
}

/// RFC 3339 of a stored time.
pub fn rfc3339(us: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(us) * 1000)
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_default()
}
