//! The door of /compute and /runningjobs as a Lambda function.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;
use operator_service::routes::{compute, with_cors};

fn main() -> ExitCode {
    door::run(door::lambda(Books::Needed, |config| {
        let (store, cluster) = (door::store(&config)?, door::cluster(&config));
        Ok(with_cors(compute::router(config, store, cluster)))
    }))
}
