//! The door of the schedule: each invocation is one sweep.

use std::process::ExitCode;

use operator_service::config::DatabaseUse;
use operator_service::runtime;

fn main() -> ExitCode {
    runtime::run(runtime::on_events(DatabaseUse::Required, |config| {
        let reaper = runtime::reaper(&config)?;
        Ok(async move |event: runtime::Event| runtime::sweep(&reaper, event).await)
    }))
}
