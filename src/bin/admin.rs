//! Lambda function of /pgsqlinit, /info, /list and /logs.

use std::process::ExitCode;

use operator_service::api::admin::{self, Admins};
use operator_service::config::DatabaseUse;
use operator_service::runtime::{self, lambda};

fn main() -> ExitCode {
    runtime::run(lambda::run_router(DatabaseUse::Required, |config| {
        let (db, cluster, admins) =
            (runtime::db(&config)?, runtime::cluster(&config), Admins::configured(&config.access));
        Ok(admin::router(config, db, cluster, admins))
    }))
}
