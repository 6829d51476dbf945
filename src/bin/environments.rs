//! Lambda function of /environments.

use std::process::ExitCode;

use operator_service::api::environments;
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_router(DatabaseUse::Required, |config| Ok(environments::router(runtime::db(&config)?))))
}
