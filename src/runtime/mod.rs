//! How an entry point runs: its process, its errors, and what it opens. [`lambda`] runs it as a Lambda function,
//! [`server`] as a server.

pub mod lambda;
pub mod server;

mod health;
mod metrics;
mod streaming;

use std::error::Error;
use std::process::ExitCode;

use crate::aws::Account;
use crate::config::Config;
use crate::db::Database;
use crate::kubernetes::Cluster;
use crate::reaper::Reaper;
use crate::storage::Storage;

/// Why an entry point did not start, or failed.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// Runs an entry point to its end. Prints its error on standard error.
pub fn run(entry_point: impl Future<Output = Result<(), BoxError>>) -> ExitCode {
    // For all TLS connections of the process. Only a second call could fail.
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(BoxError::from).and_then(|runtime| runtime.block_on(entry_point)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// An error whose text includes its causes, for a terminal or the output of a deployment.
pub fn with_causes(error: impl Error) -> BoxError {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        // The texts of some errors end with that of their cause.
        if !text.ends_with(&cause) {
            text.push_str(&format!(": {cause}"));
        }
        source = error.source();
    }
    text.into()
}

/// The database that the configuration names. Connects on first use.
pub fn db(config: &Config) -> Result<Database, BoxError> {
    config.database.as_ref().map(Database::new).ok_or_else(|| "POSTGRES_HOST must be set".into())
}

/// The cluster that the configuration names. Connects on first use.
pub fn cluster(config: &Config) -> Cluster {
    Cluster::configured(config, Account::of_process())
}

/// The storage of results. Connects on first use.
pub fn storage(config: &Config) -> Result<Storage, BoxError> {
    let config = &config.storage;
    if !config.api_keys.is_empty() && config.api_key_hosts.is_empty() {
        tracing::warn!("X-API-KEY and CLIENT-ID are sent to no host: set RESULT_API_KEY_HOSTS to those that need them");
    }
    Ok(Storage::new(config)?)
}

/// The reaper, with the database and the cluster that the configuration names.
pub fn reaper(config: &Config) -> Result<Reaper, BoxError> {
    Ok(Reaper::new(db(config)?, &cluster(config), storage(config)?, config.reaper.clone()))
}
