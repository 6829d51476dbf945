//! The configuration: environment variables, read once and checked together. A file for each section holds its
//! variables, its type, and how that is read.

mod access;
mod aws;
mod database;
mod eks;
mod jobs;
mod log;
mod reaper;
mod server;
mod storage;
mod table;
mod variables;

use std::fmt;

pub use access::AccessConfig;
pub use database::{DatabaseConfig, Login, RolesConfig};
pub use eks::{EksConfig, EksEndpoint};
pub use jobs::{JobsConfig, OptionalSeconds};
pub use log::LogConfig;
pub use reaper::ReaperRules;
pub use server::ServerConfig;
pub use storage::{ApiKeys, HostPattern, StorageConfig};
pub use table::{Entry, markdown, table};

use variables::Reader;

/// Every variable that is wrong, each with what it must be.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used: {}", self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// The configuration of every entry point.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach PostgreSQL; `None` only if it is [`DatabaseUse::Optional`].
    pub database: Option<DatabaseConfig>,
    /// The EKS cluster to use; `None` if EKS_CLUSTER_NAME is unset.
    pub eks: Option<EksConfig>,
    /// The signers and administrators whose requests are accepted.
    pub access: AccessConfig,
    /// What the service sets for every job.
    pub jobs: JobsConfig,
    /// Where outputs may be fetched from, and how.
    pub storage: StorageConfig,
    /// The reaper's rules.
    pub reaper: ReaperRules,
    /// What is logged, and where to.
    pub log: LogConfig,
}

/// Whether an entry point needs a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseUse {
    /// POSTGRES_HOST, POSTGRES_DB and POSTGRES_USER have to be set.
    Required,
    /// The entry point works without a database.
    Optional,
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env(database_use: DatabaseUse) -> Result<Self, ConfigError> {
        Self::read(&from_env, database_use)
    }

    /// Reads the process's environment, HOST and PORT included.
    pub fn of_server() -> Result<(Self, ServerConfig), ConfigError> {
        Reader::run(&from_env, Self::and_server)
    }

    fn and_server(reader: &mut Reader<'_>) -> (Self, ServerConfig) {
        let (config, server) = (Self::sections(reader, DatabaseUse::Required), ServerConfig::read(reader));
        config.access.check_server(reader, server.host);
        (config, server)
    }

    /// Reads the variables that `lookup` finds by name. An empty variable counts as unset.
    pub fn read(lookup: &dyn Fn(&str) -> Option<String>, database_use: DatabaseUse) -> Result<Self, ConfigError> {
        Reader::run(lookup, |reader| Self::sections(reader, database_use))
    }

    /// What `migrate` does for roles: nothing without a database.
    pub fn roles(&self) -> RolesConfig {
        self.database.as_ref().map(|database| database.roles.clone()).unwrap_or_default()
    }

    fn sections(reader: &mut Reader<'_>, database_use: DatabaseUse) -> Self {
        let database = DatabaseConfig::read(reader, database_use);
        let access = AccessConfig::read(reader);
        let jobs = JobsConfig::read(reader);
        Self {
            database,
            eks: EksConfig::read(reader),
            storage: StorageConfig::read(reader),
            reaper: ReaperRules::read(reader, &access, &jobs),
            log: LogConfig::read(reader),
            access,
            jobs,
        }
    }
}

fn from_env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;

    fn read(vars: &[(&str, &str)], database_use: DatabaseUse) -> Result<Config, String> {
        let find = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::read(&find, database_use).map_err(|error| error.to_string())
    }

    #[test]
    fn one_message_names_every_wrong_variable() {
        let error = read(
            &[
                ("POSTGRES_PORT", "many"),
                ("POSTGRES_HOST", "db"),
                ("SIGNATURE_REQUIRED", "yes"),
                ("ALLOWED_PROVIDERS", "[1]"),
                ("requests_cpu", "lots"),
                ("RESULT_HOSTS_ALLOWED", "http://a/b"),
                ("LOG_LEVEL", "a=b=c"),
            ],
            DatabaseUse::Required,
        )
        .unwrap_err();
        let named = [
            "POSTGRES_DB",
            "POSTGRES_USER",
            "POSTGRES_PORT",
            "SIGNATURE_REQUIRED",
            "ALLOWED_PROVIDERS",
            "requests_cpu",
            "RESULT_HOSTS_ALLOWED",
            "LOG_LEVEL",
        ];
        for name in named {
            assert!(error.contains(name), "{name} is not in: {error}");
        }
        assert!(!error.contains("POSTGRES_HOST"), "{error}");
    }

    #[test]
    fn defaults_and_empty_variables() {
        let config = read(&[("ALLOWED_PROVIDERS", ""), ("ALLOWED_ADMINS", "")], DatabaseUse::Optional).unwrap();
        assert!(config.database.is_none());
        assert_eq!(config.access.allowed_admins, None);
        assert_eq!(config.jobs.default_namespace.as_str(), "ocean-compute");
        assert_eq!(config.access.policy.nonce_window, Duration::from_secs(300));
        // Provider waits 10 s for a result to begin (docs/contract/callers.md, "Retries").
        assert_eq!(config.storage.timeout, Duration::from_secs(8));
    }

    #[test]
    fn local_admin_is_refused_in_a_function_and_on_an_address_that_others_can_reach() {
        for (name, value, refused) in [
            ("HOST", "127.0.0.1", false),
            ("HOST", "::1", false),
            ("HOST", "0.0.0.0", true),
            ("HOST", "::", true),
            ("HOST", "192.168.1.2", true),
            ("AWS_LAMBDA_FUNCTION_NAME", "admin", true),
        ] {
            for local_admin in ["0", "1"] {
                let find = |wanted: &str| match wanted {
                    "LOCAL_ADMIN" => Some(local_admin.to_owned()),
                    _ if wanted == name => Some(value.to_owned()),
                    _ => None,
                };
                let error = Reader::run(&find, Config::and_server).unwrap_err().to_string();
                assert_eq!(error.contains("LOCAL_ADMIN"), refused && local_admin == "1", "{name}={value}: {error}");
            }
        }
    }

    #[test]
    fn zero_and_unset_mean_no_limit() {
        for (vars, limit, configured) in [
            (&[][..], None, None),
            (&[("ALGO_POD_TIMEOUT", "0")], None, Some(0)),
            (&[("ALGO_POD_TIMEOUT", "60")], Some(60), Some(60)),
        ] {
            let config = read(vars, DatabaseUse::Optional).unwrap();
            assert_eq!(config.jobs.time_limit.configured(), configured);
            let limits = [config.jobs.time_limit.seconds(), config.jobs.completion.max_time];
            assert_eq!(limits, [limit; 2]);
            assert_eq!(config.reaper.algorithm_limit, limit);
        }
    }

    #[test]
    fn the_table_has_exactly_the_variables_that_are_read() {
        let read = RefCell::new(BTreeSet::new());
        let record = |name: &str| {
            read.borrow_mut().insert(name.to_owned());
            None
        };
        Reader::run(&record, Config::and_server).unwrap_err();
        // What libraries read.
        read.borrow_mut().extend(["KUBECONFIG", "AWS_REGION"].map(str::to_owned));
        let described: Vec<_> = table().into_iter().map(|entry| entry.name.to_owned()).collect();
        let names: BTreeSet<_> = described.iter().cloned().collect();
        assert_eq!(names.len(), described.len(), "a variable is described twice");
        assert_eq!(names, read.into_inner());
    }
}
