//! Connections: an operation runs on one connection, within a time limit, and once more if its outcome is unknown.

use std::time::Duration;

use deadpool::managed::{self, Metrics, Object, Pool, PoolError, QueueMode, RecycleError, RecycleResult};
use futures_util::FutureExt;
use scopeguard::ScopeGuard;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;

use super::error::is_refused;
use super::login::Logins;
use super::{DatabaseError, PoolStatus};
use crate::aws::Account;
use crate::config::DatabaseConfig;
use crate::telemetry;

/// How long one run of an operation may take, once it has a connection.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(2);
/// Statements that write for a request take back what they did if they end later after the server received them (function
/// `in_time`), so that what was given up here is not done behind the caller's back. Shorter than [`STATEMENT_TIMEOUT`] by
/// more than a statement takes to arrive.
pub(super) const STATEMENT_EXPIRY: Duration = Duration::from_millis(1700);
/// How long after its begin an operation may still get a connection, so that the time for a run is left.
const CONNECTION_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long a connection may take to answer a ping: after a Lambda environment was frozen it is often dead.
const PING_TIMEOUT: Duration = Duration::from_millis(500);
/// The pause between two attempts to connect, to find out what a lost connection did.
const RECONNECT_PAUSE: Duration = Duration::from_millis(100);
/// After this time a connection is replaced, so that a database that was moved is found.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// The database. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Database {
    pool: Pool<Connections>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("connections", &self.pool.status().size).finish()
    }
}

/// Opens the connections of a pool.
struct Connections {
    logins: Logins,
}

impl Connections {
    /// Opens a connection. If the database refuses the password, because it has been rotated, the password is looked up
    /// again and tried once more.
    async fn open(&self) -> Result<PgConnection, DatabaseError> {
        let login = self.logins.get(None).await?;
        match PgConnection::connect_with(&login.value).await {
            Err(error) if is_refused(&error) && self.logins.can_change() => {
                tracing::info!("the database refused the login; trying once more with a new one");
                let login = self.logins.get(Some(login.version)).await?;
                Ok(PgConnection::connect_with(&login.value).await?)
            }
            connected => Ok(connected?),
        }
    }
}

impl managed::Manager for Connections {
    type Type = PgConnection;
    type Error = DatabaseError;

    async fn create(&self) -> Result<PgConnection, DatabaseError> {
        // Boxed: connecting is rare, and its future is large.
        self.open().boxed().await
    }

    async fn recycle(&self, _: &mut PgConnection, metrics: &Metrics) -> RecycleResult<DatabaseError> {
        if metrics.age() > MAX_CONNECTION_AGE { Err(RecycleError::message("too old")) } else { Ok(()) }
    }
}

impl Database {
    /// Prepares the pool; opens no connection yet.
    pub fn new(config: &DatabaseConfig) -> Self {
        let connections = Connections { logins: Logins::new(config, Account::of_process()) };
        let pool = Pool::builder(connections).max_size(config.pool_size as usize).queue_mode(QueueMode::Lifo);
        // Only a timeout could make this fail: it would need a runtime.
        let pool = pool.build().unwrap_or_else(|error| unreachable!("{error}"));
        Self { pool }
    }

    /// The connections of the pool.
    pub fn pool_status(&self) -> PoolStatus {
        let status = self.pool.status();
        PoolStatus { connections: status.size, idle: status.available, waiting: status.waiting }
    }

    /// The account that its secrets are of.
    pub(super) fn account(&self) -> &Account {
        self.pool.manager().logins.account()
    }

    /// Opens a connection outside the pool, for an operation that may take longer than a request.
    pub(super) async fn connect(&self) -> Result<PgConnection, DatabaseError> {
        self.pool.manager().open().await
    }

    /// Runs an operation that may be run twice, because the second time it finds what the first has done: a read, or a
    /// write that leaves a mark.
    ///
    /// If its outcome is unknown (the connection was lost, or it took too long), it is run again on a new connection,
    /// once. All of it takes at most 4.5 s: requests are answered within 5 s.
    pub(crate) async fn run<T>(
        &self,
        operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, DatabaseError> + Clone,
    ) -> Result<T, DatabaseError> {
        telemetry::waiting_for_database(async {
            let begun = Instant::now();
            let connection = self.connection(begun + CONNECTION_TIMEOUT).await?;
            match attempt(connection, STATEMENT_TIMEOUT, operation.clone()).await {
                Err(error) if error.outcome_is_unknown() && begun.elapsed() < CONNECTION_TIMEOUT => {
                    tracing::info!(error = &error as &dyn std::error::Error, "an operation is run again");
                    match self.new_connection(begun + CONNECTION_TIMEOUT).await {
                        Ok(connection) => attempt(connection, STATEMENT_TIMEOUT, operation).await,
                        Err(_) => Err(error),
                    }
                }
                result => result,
            }
        })
        .await
    }

    /// Runs an operation that must not be run twice. So the connection is tried first.
    pub(crate) async fn run_once<T>(
        &self,
        operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, DatabaseError>,
    ) -> Result<T, DatabaseError> {
        telemetry::waiting_for_database(async {
            let deadline = Instant::now() + CONNECTION_TIMEOUT;
            let mut connection = self.connection(deadline).await?;
            let ping = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
            if !matches!(ping, Ok(Ok(()))) {
                drop(Object::take(connection));
                connection = self.new_connection(deadline).await?;
            }
            attempt(connection, STATEMENT_TIMEOUT, operation).await
        })
        .await
    }

    /// Runs one statement that must not be run twice. Returns how many rows it changed.
    pub(crate) async fn execute(
        &self,
        statement: Query<'static, sqlx::Postgres, PgArguments>,
    ) -> Result<u64, DatabaseError> {
        self.run_once(async |connection| Ok(statement.execute(connection).await?.rows_affected())).await
    }

    /// Takes a connection of the pool, or opens one.
    async fn connection(&self, deadline: Instant) -> Result<Object<Connections>, DatabaseError> {
        match tokio::time::timeout_at(deadline, self.pool.get()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(PoolError::Backend(error))) => Err(error),
            Ok(Err(_)) | Err(_) => Err(DatabaseError::NoConnection),
        }
    }

    /// Opens a connection. While the database cannot be reached, tries again until the deadline: it may be restarting.
    async fn new_connection(&self, deadline: Instant) -> Result<Object<Connections>, DatabaseError> {
        loop {
            // Others may be lost, too.
            self.pool.retain(|_, _| false);
            match self.connection(deadline).await {
                Err(error) if Instant::now() + RECONNECT_PAUSE < deadline && error.is_temporary() => {
                    tokio::time::sleep(RECONNECT_PAUSE).await;
                }
                connection => return connection,
            }
        }
    }
}

/// Runs an operation on a connection, and returns the connection to the pool before the result. After an error, and if
/// the caller drops this future, the connection is closed: a statement may still be running on it.
async fn attempt<T>(
    connection: Object<Connections>,
    timeout: Duration,
    operation: impl AsyncFnOnce(&mut PgConnection) -> Result<T, DatabaseError>,
) -> Result<T, DatabaseError> {
    let mut connection = scopeguard::guard(connection, |connection| drop(Object::take(connection)));
    let result = tokio::time::timeout(timeout, operation(&mut connection)).await;
    let result = result.unwrap_or(Err(DatabaseError::TimedOut))?;
    drop(ScopeGuard::into_inner(connection));
    Ok(result)
}
