//! Brings the schema up to date during a deployment, as a Lambda function: nobody else reaches the database then.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use operator_service::config::Books;
use operator_service::door::{self, DoorError};
use operator_service::store::Store;
use serde_json::json;

/// How long after the first try another one may begin. A role, a secret's policy and a security group that were made a moment
/// ago take that long to be known everywhere.
const PATIENCE: Duration = Duration::from_secs(90);
/// What a try may take, and the time to say that it failed.
const TRY: Duration = Duration::from_secs(35);
/// Between two tries.
const PAUSE: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    door::run(door::on_events(Books::Needed, |config| {
        let store = door::store(&config)?;
        Ok(async move |event: door::Event| {
            migrate(&store, event.context.deadline()).await?;
            Ok(json!({ "schema": "up to date" }))
        })
    }))
}

/// Tries until it is done, or cannot be done, or there is no time left.
async fn migrate(store: &Store, deadline: SystemTime) -> Result<(), DoorError> {
    let last = (SystemTime::now() + PATIENCE).min(deadline - TRY);
    loop {
        match store.migrate().await {
            Ok(()) => return Ok(()),
            Err(error) if error.may_pass() && SystemTime::now() + PAUSE < last => {
                tracing::warn!(error = &error as &dyn std::error::Error, "not yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(door::with_causes(error)),
        }
    }
}
