//! Brings the schema up to date, while others read and write.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use serde::Serialize;
use sqlx::migrate::{AppliedMigration, Migrate, MigrateError, Migration, Migrator};
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::Instant;

use super::prepare::{self, Step, is_lock_conflict};
use super::{Database, DatabaseError};
use crate::config::RolesConfig;

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // A deployment that is rolled back finds the schema of the newer version. The lock is taken in
    // `bring_up_to_date`, which holds it until announce() is replaced too.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
});

/// How long bringing the schema up to date may take in a request.
const REQUEST_LIMIT: Duration = Duration::from_secs(25);
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(25);
/// The pause before a lock is tried again, in which those pass that waited meanwhile.
const LOCK_PAUSE: Duration = Duration::from_millis(400);
/// The time between two attempts to become the one that migrates.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// The time between two log lines about the same obstacle.
const REMINDER_INTERVAL: Duration = Duration::from_secs(10);
/// How long a step waits for a lock; everybody else waits behind it. Longer after some attempts: of tables that are always
/// in use, the lock is free as soon as those have ended who use it now.
const LOCK_TIMEOUTS: [&str; 2] = ["100ms", "500ms"];
/// The number of attempts with the shorter time.
const SHORT_ATTEMPTS: u32 = 10;

/// How far a migration came that has brought the schema up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Migrated {
    /// The number of jobs that it has summarized for lists ([`Database::summarize_jobs`]).
    pub summarized_jobs: u64,
    /// Whether none is left. Otherwise the reaper continues.
    pub complete: bool,
}

impl Database {
    /// Brings the schema up to date as [`Self::migrate_within`] does, within the time of a request. With a role that may
    /// not, only checks that no migration is missing.
    pub async fn migrate(&self) -> Result<(), DatabaseError> {
        match self.migrate_within(REQUEST_LIMIT, &RolesConfig::default()).await {
            Err(DatabaseError::NotAllowed(_)) if self.missing_migrations().await? == 0 => Ok(()),
            result => result,
        }
    }

    /// Brings the schema up to date: of an empty database, of one that the Python service made, of an earlier version
    /// of this one. What a newer version made stays. Idempotent; of two at once, one waits for the other. Others may
    /// use the database: they wait for a fraction of a second. Then does for roles what `roles` says.
    ///
    /// # Errors
    /// [`DatabaseError::MigrationUnfinished`] if `limit` is too short. What is done is done: the next call goes on there.
    pub async fn migrate_within(&self, limit: Duration, roles: &RolesConfig) -> Result<(), DatabaseError> {
        let progress = Progress::default();
        let migrate = async {
            let mut connection = self.connect_to_migrate(&progress).await?;
            bring_up_to_date(&mut connection, &progress).await?;
            progress.begin("creating roles".to_owned());
            self.prepare_roles(&mut connection, roles).await?;
            Ok(connection.close().await?)
        };
        let result = tokio::time::timeout(limit, migrate).await;
        result.unwrap_or_else(|_| Err(DatabaseError::MigrationUnfinished(progress.step())))
    }

    /// As [`Self::migrate_within`], and then summarizes old jobs in the time that is left of `limit`.
    ///
    /// # Errors
    /// As [`Self::migrate_within`]. An error in what follows that is logged: the reaper goes on.
    pub async fn migrate_to_the_end(&self, limit: Duration, roles: &RolesConfig) -> Result<Migrated, DatabaseError> {
        let deadline = Instant::now() + limit;
        self.migrate_within(limit, roles).await?;
        let (summarized_jobs, complete) = self.summarize_all_jobs(deadline).await;
        Ok(Migrated { summarized_jobs, complete })
    }

    /// The number of migrations of this version that the database has not had.
    pub async fn missing_migrations(&self) -> Result<usize, DatabaseError> {
        self.run(async |connection| {
            let applied = match prepare::exists(connection, &MIGRATOR.table_name).await? {
                true => connection.list_applied_migrations(&MIGRATOR.table_name).await?,
                false => Vec::new(),
            };
            Ok(missing(&applied).count())
        })
        .await
    }

    /// Opens a connection that waits longer than others may, and holds the migrator's lock until it is closed.
    async fn connect_to_migrate(&self, progress: &Progress) -> Result<PgConnection, DatabaseError> {
        progress.begin("connecting to the database".to_owned());
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.connect().boxed());
        let mut connection = connected.await.unwrap_or(Err(DatabaseError::TimedOut))?;
        // The role may have limits. A build of an index ends even if its client is gone, so that the next call finds it
        // done.
        const UNLIMITED: &str = "SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN
            ('statement_timeout', 'lock_timeout', 'idle_in_transaction_session_timeout', 'client_connection_check_interval')";
        connection.execute(UNLIMITED).await?;
        // Polled: a session that waits for the lock in a statement has a snapshot, for whose end a concurrent build of an
        // index waits.
        progress.begin("waiting for another migration".to_owned());
        loop {
            let locked = sqlx::query_scalar!(
                r#"SELECT pg_try_advisory_lock(hashtextextended('operator-service migrate', 0)) AS "locked!""#
            );
            if locked.fetch_one(&mut connection).await? {
                return Ok(connection);
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }
}

/// What a migration is doing, for its log and its errors.
#[derive(Default)]
struct Progress(Mutex<String>);

impl Progress {
    fn begin(&self, step: String) {
        tracing::debug!(step, "migration");
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = step;
    }

    fn step(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The migrations of this version that are not among these.
fn missing(applied: &[AppliedMigration]) -> impl Iterator<Item = &'static Migration> {
    MIGRATOR.iter().filter(|migration| applied.iter().all(|applied| applied.version != migration.version))
}

/// Prepares and runs the migrations that are missing, and creates announce() again as they made it.
async fn bring_up_to_date(connection: &mut PgConnection, progress: &Progress) -> Result<(), MigrateError> {
    connection.ensure_migrations_table(&MIGRATOR.table_name).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    let missing: Vec<&str> = missing(&applied).map(|migration| migration.sql.as_str()).collect();
    // An empty database needs no preparation.
    if !missing.is_empty() && prepare::exists(connection, "jobs").await? {
        let steps = prepare::steps(missing.iter().copied());
        let indexes: BTreeSet<&str> = steps.iter().filter_map(Step::index_name).collect();
        let mut ensured = BTreeSet::new();
        for step in &steps {
            progress.begin(match step.index_name() {
                Some(name) => {
                    ensured.insert(name);
                    format!("building index {} of {}, {name}", ensured.len(), indexes.len())
                }
                None => "changing the tables".to_owned(),
            });
            let mut retries = Retries::new();
            while retries.needed_after(step.run(connection, retries.lock_timeout()).await.map_err(Into::into)).await? {}
        }
    }
    // Earlier versions of this service take this lock, and no other.
    progress.begin("waiting for another migration".to_owned());
    connection.lock().await?;
    progress.begin("changing the tables".to_owned());
    let replaces_announce = applied.iter().all(|migration| MIGRATOR.version_exists(migration.version));
    let mut retries = Retries::new();
    while retries.needed_after(run_migrations(connection, !missing.is_empty(), replaces_announce).await).await? {}
    Ok(())
}

/// Runs the migrations that are missing, in one transaction, which has all of its locks before it changes anything.
async fn run_migrations(
    connection: &mut PgConnection,
    changes_tables: bool,
    replaces_announce: bool,
) -> Result<(), MigrateError> {
    let mut transaction = connection.begin().await?;
    let updates_jobs = changes_tables && prepare::exists(&mut transaction, "jobs").await?;
    if updates_jobs {
        sqlx::raw_sql(include_str!("lock_tables.sql")).execute(&mut *transaction).await?;
        // Skips the rows that are as the migrations want them already.
        const SKIP: &str = "CREATE TRIGGER unchanged BEFORE UPDATE ON jobs
                            FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()";
        transaction.execute(SKIP).await?;
    }
    MIGRATOR.run_direct(None, &mut *transaction, false).await?;
    if updates_jobs {
        transaction.execute("DROP TRIGGER unchanged ON jobs").await?;
    }
    if replaces_announce {
        sqlx::raw_sql(include_str!("announce.sql")).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// Waits for other transactions to release their locks, by trying again.
struct Retries {
    attempts: u32,
    reminder: Instant,
}

impl Retries {
    fn new() -> Self {
        Self { attempts: 0, reminder: Instant::now() + REMINDER_INTERVAL }
    }

    /// How long the next attempt may wait for a lock.
    fn lock_timeout(&self) -> &'static str {
        LOCK_TIMEOUTS[usize::from(self.attempts >= SHORT_ATTEMPTS)]
    }

    /// Returns whether an attempt with this result has to be repeated, after a pause: another transaction holds a lock
    /// that it needs.
    async fn needed_after(&mut self, result: Result<(), MigrateError>) -> Result<bool, MigrateError> {
        match result {
            Err(MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _))
                if is_lock_conflict(&error) =>
            {
                if Instant::now() >= self.reminder {
                    tracing::warn!("the migration waits for other transactions, which have locked its tables");
                    self.reminder += REMINDER_INTERVAL;
                }
                self.attempts += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
                Ok(true)
            }
            result => result.map(|()| false),
        }
    }
}
