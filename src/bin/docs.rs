//! The door of /, /spec and /api/v1/docs/ as a Lambda function.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;
use operator_service::routes::{docs, with_cors};

fn main() -> ExitCode {
    door::run(door::lambda(Books::NotNeeded, |config| Ok(with_cors(docs::router(config)))))
}
