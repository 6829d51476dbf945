//! The door of /, /spec and /api/v1/docs/ as a Lambda function.

use std::process::ExitCode;

use operator_service::api::{docs, with_cors};
use operator_service::config::DatabaseUse;
use operator_service::runtime;

fn main() -> ExitCode {
    runtime::run(runtime::lambda(DatabaseUse::Optional, |config| Ok(with_cors(docs::router(config)))))
}
