//! The door of /compute and /runningjobs as a Lambda function.

use std::process::ExitCode;

use operator_service::api::{compute, with_cors};
use operator_service::config::DatabaseUse;
use operator_service::runtime;

fn main() -> ExitCode {
    runtime::run(runtime::lambda(DatabaseUse::Required, |config| {
        let (db, cluster) = (runtime::db(&config)?, runtime::cluster(&config));
        Ok(with_cors(compute::router(config, db, cluster)))
    }))
}
