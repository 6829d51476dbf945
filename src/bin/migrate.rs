//! Lambda function that brings the schema up to date during a deployment, which cannot reach the database itself.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use operator_service::config::DatabaseUse;
use operator_service::db::Database;
use operator_service::runtime::{self, BoxError, lambda};
use serde_json::json;

/// How long after the first attempt another one may begin: a new role, the policy of a secret and a security group take
/// that long to apply everywhere.
const RETRY_LIMIT: Duration = Duration::from_secs(90);
/// The maximum duration of an attempt, and of reporting that it failed.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(35);
/// The pause between two attempts.
const PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    runtime::run(lambda::run_events(DatabaseUse::Required, |config| {
        let db = runtime::db(&config)?;
        Ok(async move |event: lambda::Event| {
            migrate(&db, event.context.deadline()).await?;
            Ok(json!({ "schema": "up to date" }))
        })
    }))
}

/// Migrates, and retries errors that may pass as long as there is time.
async fn migrate(db: &Database, deadline: SystemTime) -> Result<(), BoxError> {
    let last_start = (SystemTime::now() + RETRY_LIMIT).min(deadline - ATTEMPT_LIMIT);
    loop {
        match db.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.may_pass() && SystemTime::now() + PAUSE < last_start => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the migration failed and is retried");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(runtime::with_causes(error)),
        }
    }
}
