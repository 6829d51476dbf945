//! Lambda function that brings the schema up to date during a deployment, which cannot reach the database itself.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use operator_service::config::DatabaseUse;
use operator_service::db::Database;
use operator_service::runtime::{self, BoxError, lambda};
use serde_json::json;

/// How long after the first attempt another one may begin: a new role, a secret's policy and a security group may take
/// that long to take effect.
const RETRY_PERIOD: Duration = Duration::from_secs(90);
/// The maximum duration of an attempt, and of reporting that it failed.
const MAX_ATTEMPT_TIME: Duration = Duration::from_secs(35);
/// The pause between two attempts.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    runtime::run(lambda::run_events(DatabaseUse::Required, |config| {
        let db = runtime::db(&config)?;
        Ok(async move |event: lambda::Event| {
            migrate(&db, event.context.deadline()).await?;
            Ok(json!({ "schema": "up to date" }))
        })
    }))
}

/// Migrates, and retries temporary errors as long as there is time.
async fn migrate(db: &Database, deadline: SystemTime) -> Result<(), BoxError> {
    let last_start = (SystemTime::now() + RETRY_PERIOD).min(deadline - MAX_ATTEMPT_TIME);
    loop {
        match db.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_temporary() && SystemTime::now() + RETRY_PAUSE < last_start => {
                tracing::warn!(error = &error as &dyn std::error::Error, "the migration failed and is retried");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            Err(error) => return Err(runtime::with_causes(error)),
        }
    }
}
