//! The door of /pgsqlinit, /info, /list and /logs as a Lambda function.

use std::process::ExitCode;

use operator_service::config::Books;
use operator_service::door;
use operator_service::routes::admin::{self, Admins};

fn main() -> ExitCode {
    door::run(door::lambda(Books::Needed, |config| {
        let (store, cluster, admins) = (door::store(&config)?, door::cluster(&config), Admins::listed(&config));
        Ok(admin::router(config, store, cluster, admins))
    }))
}
