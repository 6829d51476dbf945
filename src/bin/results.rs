//! Lambda function of /getResult.

use std::process::ExitCode;

use operator_service::api::results;
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_streaming(DatabaseUse::Required, |config| {
        let (db, storage) = (runtime::db(&config)?, runtime::storage(&config)?);
        Ok(results::router(config, db, storage))
    }))
}
