//! Connections: one operation runs on one connection of the pool, within a time limit.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::query::Query;
use sqlx::{Connection, PgConnection};

use super::DatabaseError;
use super::error::is_refused;
use super::login::Logins;
use crate::aws::Account;
use crate::cache::Versioned;
use crate::config::DatabaseConfig;
use crate::telemetry;

/// How long an operation waits for a connection of the pool while others use them all.
const ACQUIRE_TIMEOUT: Duration = Duration::from_millis(3500);
/// How long a pooled connection may take to answer a ping: after a Lambda environment was frozen it is often dead.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// How long an operation may take, waiting for a connection included. Below the 5 s within which a start is answered.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(4);

/// The database. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Database {
    pool: PgPool,
    logins: Arc<Logins>,
    /// The version of the login that the pool connects with; 0 for none yet.
    in_use: Arc<Mutex<u64>>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The pool would show the password.
        f.debug_struct("Database").field("connections", &self.pool.size()).finish()
    }
}

impl Database {
    /// Prepares the pool; opens no connection yet.
    pub fn new(config: &DatabaseConfig) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(config.pool_size)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // sqlx's own test has no time limit.
            .test_before_acquire(false)
            .before_acquire(|connection, _| {
                Box::pin(async move {
                    let ping = tokio::time::timeout(PING_TIMEOUT, connection.ping());
                    ping.await.unwrap_or_else(|elapsed| Err(sqlx::Error::Io(elapsed.into())))?;
                    Ok(true)
                })
            })
            // The login is looked up on first use: see `connect_with`.
            .connect_lazy_with(PgConnectOptions::new_without_pgpass());
        let logins = Arc::new(Logins::new(config, Account::of_process()));
        Self { pool, logins, in_use: Arc::default() }
    }

    /// Takes a connection that works. If the database refuses the password, because it has been rotated, the password
    /// is looked up again and tried once more.
    async fn acquire(&self) -> Result<PoolConnection<sqlx::Postgres>, DatabaseError> {
        let login = self.logins.get(None).await?;
        self.connect_with(&login);
        match self.pool.acquire().await {
            Err(error) if is_refused(&error) && self.logins.can_change() => {
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

    /// Opens a connection outside the pool, for an operation that may take longer than a request.
    pub(super) async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        let login = self.logins.get(None).await?;
        match PgConnection::connect_with(&login.value).await {
            Err(error) if is_refused(&error) && self.logins.can_change() => {
                let login = self.logins.get(Some(login.version)).await?;
                Ok(PgConnection::connect_with(&login.value).await?)
            }
            connected => Ok(connected?),
        }
    }

    /// Runs one statement, within [`OPERATION_TIMEOUT`]. Returns how many rows it changed.
    pub(super) async fn execute(
        &self,
        statement: Query<'static, sqlx::Postgres, PgArguments>,
    ) -> Result<u64, DatabaseError> {
        self.run(async |connection| Ok(statement.execute(connection).await?.rows_affected())).await
    }

    /// Runs an operation on one connection, within [`OPERATION_TIMEOUT`]. A connection whose operation was given up is
    /// closed and not used again: a statement may still be running on it.
    pub(super) async fn run<T, E: From<DatabaseError>>(
        &self,
        operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        telemetry::waiting_for_database(async {
            let deadline = tokio::time::Instant::now() + OPERATION_TIMEOUT;
            // Boxed: connecting is rare, and its future is large.
            let acquired = tokio::time::timeout_at(deadline, self.acquire().boxed());
            let mut connection = acquired.await.unwrap_or(Err(DatabaseError::TimedOut))?;
            match tokio::time::timeout_at(deadline, operation(&mut connection)).await {
                Ok(result) => result,
                Err(_) => {
                    drop(connection.detach());
                    Err(DatabaseError::TimedOut.into())
                }
            }
        })
        .await
    }
}
