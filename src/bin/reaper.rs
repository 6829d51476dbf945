//! Scheduled Lambda function: each invocation is one sweep of the reaper.

use std::process::ExitCode;

use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_events(DatabaseUse::Required, |config| {
        let reaper = runtime::reaper(&config)?;
        Ok(async move |event: lambda::Event| lambda::sweep(&reaper, event).await)
    }))
}
