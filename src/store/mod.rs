//! The books: Postgres. Every SQL statement of the service lives here and in migrations/.

mod environments;
mod jobs;
mod nonces;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use secrecy::ExposeSecret;
use sqlx::PgConnection;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::config::Postgres;

pub use environments::Announcement;
pub use jobs::{Change, Changed, NewJob, Page, RequestedBy, ResultRow, Started, TouchedJob, Which};
pub use nonces::{NonceUse, Refused};

static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a request waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a request's statements may take, waiting for a connection included. Below the 5 s within which a
/// start is answered.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);
/// How long bringing the schema up to date may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(25);

/// Why the books could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database cannot be reached, is full, restarts, or was too slow. Nothing was half done.
    #[error("The database is not available, please try again")]
    Unavailable(#[source] sqlx::Error),
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

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match &error {
            E::Database(database) => match database.code().as_deref() {
                Some("42P01" | "42703" | "42883") => Self::NotMigrated(error),
                Some(code) if is_transient(code) => Self::Unavailable(error),
                _ => Self::Bug(error),
            },
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

/// The books. Cheap to clone; connects on first use.
#[derive(Debug, Clone)]
pub struct Store {
    pool: PgPool,
    options: Arc<PgConnectOptions>,
}

impl Store {
    /// Prepares the way to the database; opens no connection yet.
    pub fn new(config: &Postgres) -> Self {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&config.host)
            .port(config.port)
            .database(&config.database)
            .username(&config.user)
            .ssl_mode(config.ssl_mode)
            .application_name("operator-service");
        if let Some(password) = &config.password {
            options = options.password(password.expose_secret());
        }
        if let Some(ca_file) = &config.ca_file {
            options = options.ssl_root_cert(ca_file);
        }
        let pool = PgPoolOptions::new()
            .max_connections(config.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options.clone());
        Self { pool, options: Arc::new(options) }
    }

    /// Brings the schema up to date: of an empty database, of one that the old service made, of an earlier
    /// version of this one. Idempotent; of two at once, one waits for the other.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        use sqlx::Connection;
        let migrate = async {
            // A connection of its own: it waits longer than others may, and holds the migrator's lock.
            let mut connection = PgConnection::connect_with(&self.options).await?;
            let result = MIGRATOR.run_direct(None, &mut connection, false).await.map_err(|error| match error {
                MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => StoreError::from(error),
                error => StoreError::Migration(error),
            });
            connection.close().await.ok();
            result
        };
        tokio::time::timeout(MIGRATION_TIMEOUT, migrate).await.unwrap_or(Err(StoreError::TimedOut))
    }

    /// Runs statements on one connection, within the time limit. A connection that was given up in the middle
    /// of something is closed, not handed to the next request.
    async fn run<T: Send>(
        &self,
        statements: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let deadline = tokio::time::Instant::now() + OPERATION_TIMEOUT;
        let mut connection = self.pool.acquire().await?;
        match tokio::time::timeout_at(deadline, statements(&mut connection)).await {
            Ok(result) => result,
            Err(_) => {
                drop(connection.detach());
                Err(StoreError::TimedOut)
            }
        }
    }
}
