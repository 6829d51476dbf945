//! Lambda function of /compute and /runningjobs.

use std::process::ExitCode;

use operator_service::api::compute;
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_router(DatabaseUse::Required, |config| {
        let (db, cluster) = (runtime::db(&config)?, runtime::cluster(&config));
        Ok(compute::router(config, db, cluster))
    }))
}
