//! The door of /environments as a Lambda function.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;
use operator_service::routes::{environments, with_cors};

fn main() -> ExitCode {
    door::run(door::lambda(Books::Needed, |config| Ok(with_cors(environments::router(door::store(&config)?)))))
}
