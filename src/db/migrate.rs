//! Brings the schema up to date.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, Migrator};
use sqlx::{Connection, PgConnection};

use super::{Database, DatabaseError};

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!();
    // A deployment that is rolled back finds the schema of the newer version. The lock is taken in
    // `bring_up_to_date`, which holds it until announce() is replaced too.
    migrator.set_ignore_missing(true).set_locking(false);
    migrator
});

/// How long bringing the schema up to date may take.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(25);

impl Database {
    /// Brings the schema up to date: of an empty database, of one that the Python service made, of an earlier
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
}

/// Runs the migrations that are missing, and creates announce() again as they made it. After an error, closing the
/// connection releases the lock.
async fn bring_up_to_date(connection: &mut PgConnection) -> Result<(), MigrateError> {
    connection.lock().await?;
    MIGRATOR.run_direct(None, connection, false).await?;
    let applied = connection.list_applied_migrations(&MIGRATOR.table_name).await?;
    if applied.iter().all(|migration| MIGRATOR.version_exists(migration.version)) {
        sqlx::raw_sql(include_str!("announce.sql")).execute(&mut *connection).await?;
    }
    connection.unlock().await
}
