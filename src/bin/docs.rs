//! Lambda function of /, /spec and /api/v1/docs/.

use std::process::ExitCode;

use operator_service::api::docs;
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_router(DatabaseUse::Optional, |config| Ok(docs::router(config))))
}
