//! The door of /environments as a Lambda function.

use std::process::ExitCode;

use operator_service::api::{environments, with_cors};
use operator_service::config::DatabaseUse;
use operator_service::runtime;

fn main() -> ExitCode {
    runtime::run(runtime::lambda(DatabaseUse::Required, |config| {
        Ok(with_cors(environments::router(runtime::db(&config)?)))
    }))
}
