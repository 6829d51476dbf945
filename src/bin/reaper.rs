//! The door of the schedule: each invocation is one sweep.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;

fn main() -> ExitCode {
    door::run(door::on_events(Books::Needed, |config| {
        let reaper = door::reaper(&config)?;
        Ok(async move |event: door::Event| door::sweep(&reaper, event).await)
    }))
}
