//! Brings the schema up to date during a deployment, as a Lambda function: nobody else reaches the database then.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use operator_service::config::DatabaseUse;
use operator_service::db::Database;
use operator_service::runtime::{self, BoxError};
use serde_json::json;

/// How long after the first try another one may begin. A role, a secret's policy and a security group that were made a moment
/// ago take that long to be known everywhere.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a try may take, and the time to say that it failed.
const TRY: Duration = Duration::from_secs(35);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    runtime::run(runtime::on_events(DatabaseUse::Required, |config| {
        let db = runtime::db(&config)?;
        Ok(async move |event: runtime::Event| {
            migrate(&db, event.context.deadline()).await?;
            Ok(json!({ "schema": "up to date" }))
        })
    }))
}

/// Tries until it is done, or cannot be done, or there is no time left.
async fn migrate(db: &Database, deadline: SystemTime) -> Result<(), BoxError> {
    let last = (SystemTime::now() + PATIENCE).min(deadline - TRY);
    loop {
        match db.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.may_pass() && SystemTime::now() + PAUSE < last => {
                tracing::warn!(error = &error as &dyn std::error::Error, "not yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(runtime::with_causes(error)),
        }
    }
}
