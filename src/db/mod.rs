//! The books: Postgres. Every SQL statement of the service lives here and in migrations/.

mod environments;
mod jobs;
mod login;
mod nonces;
mod reaper;

use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection};

use crate::aws::{Account, AwsError};
use crate::cache::Versioned;
use crate::config::Postgres;
use crate::telemetry;
use login::Logins;

pub use environments::Announcement;
pub use jobs::{Change, Changed, NewJob, Page, RequestedBy, ResultRow, Started, TouchedJob, Which};
pub use reaper::{After, FinishedJob, Known, LiveJob, Mirrored, Noted, SweptEnvironment, UnregisteredJob};

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // A deployment that is rolled back finds the schema of the newer version. The lock is ours: it holds for longer.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
});

/// How long a request waits for a connection: when many come at once, those before it have theirs.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(3500);
/// How long a connection that was kept may take to show that it is still one: after a freeze it often is not.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a request's statements may take, waiting for a connection included. Below the 5 s within which a
/// start is answered.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);
/// How long bringing the schema up to date may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(25);

/// Why the books could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    /// The database cannot be reached, is full, restarts, or was too slow. Nothing was half done.
    #[error("The database is not available, please try again")]
    Unavailable(#[source] sqlx::Error),
    /// The server's certificate is not one to trust.
    #[error(
        "The database's certificate was refused: its name or its authority is not the one that POSTGRES_SSLMODE and \
         POSTGRES_CA_FILE ask for"
    )]
    Untrusted(#[source] sqlx::Error),
    /// There is nothing to log in with.
    #[error("The database cannot be logged in to, please try again: {0}")]
    NoLogin(#[source] AwsError),
    /// A statement took longer than its limit.
    #[error("The database did not answer in time, please try again")]
    TimedOut,
    /// The schema is older than this program.
    #[error("The database's schema is not up to date: run `operator-service migrate` or POST /pgsqlinit")]
    NotMigrated(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("The database's schema could not be brought up to date: {0}")]
    Migration(#[source] MigrateError),
    /// Something that should not happen.
    #[error("An internal error occurred; it has been logged")]
    Bug(#[source] sqlx::Error),
}

impl DatabaseError {
    /// Whether the same may succeed a little later. Rights that were given a moment ago count among what passes.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::NoLogin(_) | Self::TimedOut)
    }
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Database(database) => match database.code().as_deref() {
                Some("42P01" | "42703" | "42883") => Self::NotMigrated(error),
                Some(code) if is_transient(code) => Self::Unavailable(error),
                _ => Self::Bug(error),
            },
            E::Io(io) if is_untrusted(io) => Self::Untrusted(error),
            E::Io(_) | E::Tls(_) | E::Protocol(_) | E::PoolTimedOut | E::PoolClosed | E::WorkerCrashed => {
                Self::Unavailable(error)
            }
            _ => Self::Bug(error),
        }
    }
}

/// Whether a SQLSTATE says that the same request may succeed later
/// (<https://www.postgresql.org/docs/current/errcodes-appendix.html>): connections (08), authentication (28), an
/// unknown database (3D), rollbacks (40), resources (53), locks and read-only replicas (55, 25006), an operator's
/// intervention (57), the system (58).
fn is_transient(code: &str) -> bool {
    code == "25006" || ["08", "28", "3D", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
}

fn is_untrusted(error: &std::io::Error) -> bool {
    let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::InvalidCertificate(_)))
}

/// Whether the database refused the password or the user.
fn is_refused(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some("28P01" | "28000"))
}

/// The books. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    logins: Arc<Logins>,
    /// Which login the pool connects with; 0 for none yet.
    in_use: Arc<Mutex<u64>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The pool would show the password.
        f.debug_struct("Database").field("connections", &self.pool.size()).finish()
    }
}

impl Database {
    /// Prepares the way to the database; opens no connection yet.
    pub fn new(config: &Postgres) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(config.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // Nothing but a round trip that belongs to no session, and not for as long as the default's.
            .test_before_acquire(false)
            .before_acquire(|connection, _| {
                Box::pin(async move {
                    let ping = tokio::time::timeout(PING_TIMEOUT, connection.ping());
                    ping.await.unwrap_or_else(|elapsed| Err(sqlx::Error::Io(elapsed.into())))?;
                    Ok(true)
                })
            })
            // What to connect with is known later.
            .connect_lazy_with(PgConnectOptions::new_without_pgpass());
        let logins = Arc::new(Logins::new(config, Account::of_process()));
        Self { pool, logins, in_use: Arc::default() }
    }

    /// A connection that works. If the database does not take the password, because it was changed, it is looked up
    /// again and tried once more.
    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, DatabaseError> {
        let login = self.logins.get(None).await?;
        self.connect_with(&login);
        match self.pool.acquire().await {
            Err(error) if is_refused(&error) && self.logins.change() => {
                tracing::info!("the database refused the login; trying once more with a new one");
                self.connect_with(&self.logins.get(Some(login.version)).await?);
                Ok(self.pool.acquire().await?)
            }
            acquired => Ok(acquired?),
        }
    }

    fn connect_with(&self, login: &Versioned<Arc<PgConnectOptions>>) {
        let mut in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        if login.version > *in_use {
            self.pool.set_connect_options(PgConnectOptions::clone(&login.value));
            *in_use = login.version;
        }
    }

    /// A connection of its own, for what may take longer than a request.
    async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        let login = self.logins.get(None).await?;
        match PgConnection::connect_with(&login.value).await {
            Err(error) if is_refused(&error) && self.logins.change() => {
                let login = self.logins.get(Some(login.version)).await?;
                Ok(PgConnection::connect_with(&login.value).await?)
            }
            connected => Ok(connected?),
        }
    }

    /// Brings the schema up to date: of an empty database, of one that the old service made, of an earlier
    /// version of this one. What a newer version made stays. Idempotent; of two at once, one waits for the other.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        let migrate = async {
            // A connection of its own: it waits longer than others may, and holds the migrator's lock.
            let mut connection = self.connect().await?;
            let result = bring_up_to_date(&mut connection).await;
            connection.close().await.ok();
            result.map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => DatabaseError::from(error),
                error => DatabaseError::Migration(error),
            })
        };
        tokio::time::timeout(MIGRATION_TIMEOUT, migrate).await.unwrap_or(Err(DatabaseError::TimedOut))
    }

    /// Runs one statement, within the time limit. Says how many rows it changed.
    async fn execute(&self, statement: Query<'static, sqlx::Postgres, PgArguments>) -> Result<u64, DatabaseError> {
        self.run(|connection| Box::pin(async move { Ok(statement.execute(connection).await?.rows_affected()) })).await
    }

    /// Runs statements on one connection, within the time limit. A connection that was given up in the middle
    /// of something is closed, not handed to the next request.
    async fn run<T: Send>(
        &self,
        statements: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, DatabaseError>>,
    ) -> Result<T, DatabaseError> {
        telemetry::waiting_for_database(async {
            let deadline = tokio::time::Instant::now() + OPERATION_TIMEOUT;
            // On the heap: what connecting takes is seldom needed, and large.
            let acquired = tokio::time::timeout_at(deadline, self.acquire().boxed());
            let mut connection = acquired.await.unwrap_or(Err(DatabaseError::TimedOut))?;
            match tokio::time::timeout_at(deadline, statements(&mut connection)).await {
                Ok(result) => result,
                Err(_) => {
                    drop(connection.detach());
                    Err(DatabaseError::TimedOut)
                }
            }
        })
        .await
    }
}

/// Runs the migrations that are missing, and makes announce() the one that they made. A lock that is left behind by an
/// error goes with the connection.
async fn bring_up_to_date(connection: &mut PgConnection) -> Result<(), MigrateError> {
    connection.lock().await?;
    MIGRATOR.run_direct(None, connection, false).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    if applied.iter().all(|migration| MIGRATOR.version_exists(migration.version)) {
        sqlx::raw_sql(include_str!("announce.sql")).execute(&mut *connection).await?;
    }
    connection.unlock().await
}
