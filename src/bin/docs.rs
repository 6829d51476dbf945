//! The door of /, /spec and /api/v1/docs/ as a Lambda function.

use std::process::ExitCode;

use operator_service::api::{docs, with_cors};
use operator_service::config::DatabaseConfig;
use operator_service::runtime;

fn main() -> ExitCode {
    runtime::run(runtime::lambda(DatabaseConfig::Optional, |config| Ok(with_cors(docs::router(config)))))
}
