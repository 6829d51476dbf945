//! Lambda function that brings the schema up to date during a deployment, which cannot reach the database itself.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use operator_service::config::{DatabaseUse, RolesConfig};
use operator_service::db::{Database, Migrated};
use operator_service::runtime::{self, BoxError, lambda};
use serde_json::json;

/// How long after the first attempt another one may begin: a new role, a secret's policy and a security group may take
/// that long to take effect.
const RETRY_PERIOD: Duration = Duration::from_secs(90);
/// The time that another attempt needs.
const MIN_ATTEMPT_TIME: Duration = Duration::from_secs(35);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(2);
/// The time for reporting how far the migration came.
const REPORT_TIME: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    runtime::run(lambda::run_events(DatabaseUse::Required, |config| {
        let db = runtime::db(&config)?;
        let roles = config.roles();
        Ok(async move |event: lambda::Event| {
            let migrated = migrate(&db, &roles, event.context.deadline()).await?;
            Ok(json!({ "schema": "up to date", "oldJobs": migrated }))
        })
    }))
}

/// Migrates, and retries temporary errors as long as there is time.
async fn migrate(db: &Database, roles: &RolesConfig, deadline: SystemTime) -> Result<Migrated, BoxError> {
    let last_start = (SystemTime::now() + RETRY_PERIOD).min(deadline - MIN_ATTEMPT_TIME);
    loop {
        let remaining = deadline.duration_since(SystemTime::now()).unwrap_or_default();
        match db.migrate_to_the_end(remaining.saturating_sub(REPORT_TIME), roles).await {
            Ok(migrated) => return Ok(migrated),
            Err(error) if error.is_temporary() && SystemTime::now() + RETRY_PAUSE < last_start => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the migration failed and is retried");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(runtime::with_causes(error)),
        }
    }
}
