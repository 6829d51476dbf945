//! The door of /getResult as a Lambda function.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;
use operator_service::routes::{results, with_cors};

fn main() -> ExitCode {
    door::run(door::lambda_streaming(Books::Needed, |config| {
        let (store, origins) = (door::store(&config)?, door::origins(&config)?);
        Ok(with_cors(results::router(config, store, origins)))
    }))
}
