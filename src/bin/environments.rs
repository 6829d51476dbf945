//! Lambda function of /environments.

use std::process::ExitCode;

use operator_service::api::{environments, with_cors};
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_router(DatabaseUse::Required, |config| {
        Ok(with_cors(environments::router(runtime::db(&config)?)))
    }))
}
