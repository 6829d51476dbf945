//! The configuration: environment variables, read once, checked together.
//!
//! README.md has the table of all variables; each is read here and nowhere else.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use sqlx::postgres::PgSslMode;

use crate::auth::Policy;
use crate::aws::eks::{self, Endpoint};
use crate::domain::Namespace;
use crate::domain::workflow::Completion;

/// What a Lambda function can stream of one answer
/// (<https://docs.aws.amazon.com/lambda/latest/dg/configuration-response-streaming.html>).
const LAMBDA_STREAM_LIMIT: u64 = 200_000_000;

/// Every variable that is wrong, each with what is wrong with it.
#[derive(Debug)]
pub struct ConfigError(Vec<String>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration cannot be used: {}", self.0.join("; "))
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    /// Both in one.
    pub fn and(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// What the service is told by its environment.
#[derive(Debug, Clone)]
pub struct Config {
    /// How to reach Postgres; `None` where nothing says how, which only doors without books allow.
    pub postgres: Option<Postgres>,
    /// The EKS cluster to reach with tokens; `None` where EKS_CLUSTER_NAME is not set.
    pub eks: Option<Eks>,
    /// Who may ask for what.
    pub access: Access,
    /// What every workflow is completed with.
    pub completion: Completion,
    /// The namespace of jobs that name no environment (DEFAULT_NAMESPACE).
    pub default_namespace: String,
    /// The address of the compute environment, for `/` (OPERATOR_ADDRESS).
    pub operator_address: Option<String>,
    /// ALGO_POD_TIMEOUT as it was written, for `/`.
    pub algo_time_limit: Option<String>,
    /// STORAGE_EXPIRY as it was written, for `/`.
    pub storage_expiry: Option<String>,
    /// Where results may be fetched from, and how.
    pub results: Results,
    /// What the reaper goes by.
    pub reaper: ReaperRules,
    /// What is logged, and where to.
    pub log: Log,
}

/// How to reach Postgres.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Host name or address (POSTGRES_HOST); `None` only where a secret may say it.
    pub host: Option<String>,
    /// POSTGRES_PORT; 5432 unless a secret says otherwise.
    pub port: Option<u16>,
    /// POSTGRES_DB; `None` only where a secret may say it.
    pub database: Option<String>,
    /// POSTGRES_USER; `None` only where a secret says it.
    pub user: Option<String>,
    /// With what to be let in.
    pub login: Login,
    /// POSTGRES_SSLMODE, default `prefer`, in a Lambda function and with IAM authentication `verify-full`.
    pub ssl_mode: PgSslMode,
    /// POSTGRES_CA_FILE: PEM file of the authorities that `verify-ca` and `verify-full` trust.
    pub ca_file: Option<PathBuf>,
    /// The most connections that one process opens (POSTGRES_POOL_SIZE, default 10, in a Lambda function 1).
    pub pool_size: u32,
}

/// With what Postgres lets us in.
#[derive(Debug, Clone)]
pub enum Login {
    /// POSTGRES_PASSWORD; `None` lets the server decide whether it lets us in without.
    Password(Option<SecretString>),
    /// The ARN or name of a secret in AWS Secrets Manager (POSTGRES_SECRET_ARN).
    Secret(String),
    /// A password made of the process's AWS credentials (POSTGRES_IAM_AUTH=1).
    Iam,
}

/// How to reach an EKS cluster with tokens made here.
#[derive(Debug, Clone)]
pub struct Eks {
    /// EKS_CLUSTER_NAME
    pub name: String,
    /// EKS_CLUSTER_ENDPOINT and EKS_CLUSTER_CA; `None` lets EKS be asked.
    pub endpoint: Option<Endpoint>,
    /// EKS_ROLE_ARN: the role that the cluster knows, if it is not the process's own.
    pub role_arn: Option<String>,
}

/// What the reaper goes by. All times are in seconds.
#[derive(Debug, Clone)]
pub struct ReaperRules {
    /// The namespace of jobs whose row names none (DEFAULT_NAMESPACE).
    pub default_namespace: Namespace,
    /// How long an algorithm may run, whatever else is said; `None` for no limit (ALGO_POD_TIMEOUT).
    pub algorithm_limit: Option<u64>,
    /// How long outputs are kept whose job does not say; `None` for ever (STORAGE_EXPIRY).
    pub storage_expiry: Option<u64>,
    /// How long a job may stay dispatched without being begun until it is requeued (REAP_DISPATCH_GRACE).
    pub dispatch_grace: f64,
    /// How long trouble may last that the cluster tries to overcome (REAP_RETRY_GRACE).
    pub retry_grace: f64,
    /// How long a step may wait for room (REAP_SCHEDULE_GRACE).
    pub schedule_grace: f64,
    /// For how long the cluster has to hold nothing of a running job (REAP_ABSENT_GRACE).
    pub absent_grace: f64,
    /// How long beyond its limit a job may stand still (REAP_LIMIT_GRACE).
    pub limit_grace: f64,
    /// Minimum age of an unknown WorkFlow object before it is deleted (REAP_UNKNOWN_GRACE).
    pub unknown_grace: f64,
    /// How long a WorkFlow object stays after its job's end; `None` for ever (WORKFLOW_TTL).
    pub workflow_ttl: Option<f64>,
    /// How far below its signer's highest a used nonce is kept: far enough that it cannot pass again.
    pub nonces_kept: f64,
    /// The most requests that are made of the cluster (REAP_RATE).
    pub requests_per_second: NonZeroU32,
}

/// Who may ask for what.
#[derive(Debug, Clone)]
pub struct Access {
    /// Whose signatures are accepted.
    pub policy: Policy,
    /// ALLOWED_ADMINS, in lower case; `None` where the variable is not set.
    pub allowed_admins: Option<Vec<String>>,
}

/// Where results may be fetched from, and how.
#[derive(Debug, Clone)]
pub struct Results {
    /// Hosts that results are fetched from although their addresses are not public (RESULT_HOSTS_ALLOWED).
    pub hosts_allowed: Vec<HostPattern>,
    /// Hosts that get the API key and client id (RESULT_API_KEY_HOSTS, else RESULT_HOSTS_ALLOWED).
    pub api_key_hosts: Vec<HostPattern>,
    /// X-API-KEY or X_API_KEY
    pub api_key: Option<SecretString>,
    /// CLIENT-ID or CLIENT_ID
    pub client_id: Option<SecretString>,
    /// How long an origin may take until its answer begins (RESULT_TIMEOUT).
    pub timeout: Duration,
    /// How long an origin may pause within its answer (RESULT_IDLE_TIMEOUT).
    pub idle_timeout: Duration,
    /// Buckets whose objects are read with the process's own AWS credentials (OUTPUT_BUCKETS).
    pub output_buckets: Vec<String>,
    /// Where S3 is, if not where it always is (AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL).
    pub s3_endpoint: Option<url::Url>,
    /// The most bytes of a result that one answer holds (RESULT_STREAM_LIMIT); in a Lambda function 200 MB by default.
    pub stream_limit: Option<u64>,
}

/// A host by name or address, with or without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    port: Option<u16>,
}

impl HostPattern {
    /// Whether the URL lies on this host (and port, if one was named).
    pub fn matches(&self, url: &url::Url) -> bool {
        self.names_host_of(url) && self.port.is_none_or(|port| url.port_or_known_default() == Some(port))
    }

    /// Whether the URL lies on this host, on whatever port.
    pub fn names_host_of(&self, url: &url::Url) -> bool {
        url.host_str().is_some_and(|host| self.is_host(host))
    }

    /// Whether a name or address is this host's.
    pub fn is_host(&self, host: &str) -> bool {
        host.trim_matches(['[', ']']).eq_ignore_ascii_case(&self.host)
    }
}

impl FromStr for HostPattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // The URL parser knows how hosts and ports are written, IPv6 addresses included.
        let bare_ipv6 = text.parse::<std::net::Ipv6Addr>().is_ok();
        let authority = if bare_ipv6 { format!("[{text}]") } else { text.to_owned() };
        let url = url::Url::parse(&format!("results://{authority}")).map_err(|_| ())?;
        let plain = url.path().is_empty() && url.query().is_none() && url.username().is_empty();
        let host = url.host_str().filter(|host| plain && !host.is_empty()).ok_or(())?;
        Ok(Self { host: host.trim_matches(['[', ']']).to_ascii_lowercase(), port: url.port() })
    }
}

/// What is logged, and where to.
#[derive(Debug, Clone)]
pub struct Log {
    /// LOG_LEVEL: DEBUG, INFO, WARNING, ERROR, or a filter of the `tracing` kind.
    pub filter: String,
    /// LOG_CFG: a file that logs also go to.
    pub file: Option<PathBuf>,
}

/// Where `serve` listens.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// HOST, default 127.0.0.1.
    pub host: IpAddr,
    /// PORT, default 8050.
    pub port: u16,
}

/// What a door needs of the configuration beyond the defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseConfig {
    /// POSTGRES_HOST, POSTGRES_DB and POSTGRES_USER have to be set.
    Required,
    /// The door works without a database.
    Optional,
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env(books: DatabaseConfig) -> Result<Self, ConfigError> {
        Self::read(&|name| std::env::var(name).ok(), books)
    }

    /// Reads variables from wherever `variable` finds them. An empty variable counts as unset.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>, books: DatabaseConfig) -> Result<Self, ConfigError> {
        let mut vars = Variables { variable, wrong: Vec::new() };
        let config = Self {
            postgres: vars.postgres(books),
            eks: vars.eks(),
            access: vars.access(),
            completion: Completion {
                max_time: vars.number("ALGO_POD_TIMEOUT", 0),
                storage_expiry: vars.number("STORAGE_EXPIRY", 0),
                input_volume_size: vars.quantity("inputVolumesize", "1Gi"),
                output_volume_size: vars.quantity("outputVolumesize", "1Gi"),
                adminlogs_volume_size: vars.quantity("adminlogsVolumesize", "1Gi"),
                requests_cpu: vars.quantity("requests_cpu", "200m"),
                requests_memory: vars.quantity("requests_memory", "100Mi"),
                limits_cpu: vars.quantity("limits_cpu", "1"),
                limits_memory: vars.quantity("limits_memory", "500Mi"),
            },
            default_namespace: vars.default_namespace(),
            operator_address: vars.text("OPERATOR_ADDRESS"),
            algo_time_limit: vars.text("ALGO_POD_TIMEOUT"),
            storage_expiry: vars.text("STORAGE_EXPIRY"),
            results: vars.results(),
            reaper: vars.reaper(),
            log: vars.log(),
        };
        vars.finish(config)
    }
}

impl Listen {
    /// Reads HOST and PORT from the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        let mut vars = Variables { variable: &|name| std::env::var(name).ok(), wrong: Vec::new() };
        let listen = Self {
            host: vars.parsed("HOST", IpAddr::from([127, 0, 0, 1]), "an IP address, such as 127.0.0.1 or 0.0.0.0"),
            port: vars.parsed("PORT", 8050, "a port number from 0 to 65535"),
        };
        vars.finish(listen)
    }
}

struct Variables<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
    wrong: Vec<String>,
}

impl Variables<'_> {
    fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        if self.wrong.is_empty() { Ok(value) } else { Err(ConfigError(self.wrong)) }
    }

    fn text(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
    }

    /// A secret that is sent as a header.
    fn secret(&mut self, names: [&str; 2]) -> Option<SecretString> {
        let (name, text) = names.iter().find_map(|name| Some((name, self.text(name)?)))?;
        if axum::http::HeaderValue::from_str(&text).is_err() {
            self.wrong(name, "text that a header can hold");
        }
        Some(SecretString::from(text))
    }

    fn readable_file(&mut self, name: &str) -> Option<PathBuf> {
        let path = self.text(name).map(PathBuf::from)?;
        if std::fs::File::open(&path).is_err() {
            self.wrong(name, "a file that can be read");
        }
        Some(path)
    }

    fn wrong(&mut self, name: &str, expected: &str) {
        let wrong = format!("{name} must be {expected}");
        // Some are read for more than one purpose.
        if !self.wrong.contains(&wrong) {
            self.wrong.push(wrong);
        }
    }

    fn optional<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<T> {
        let value = self.text(name)?.parse().ok();
        if value.is_none() {
            self.wrong(name, expected);
        }
        value
    }

    fn parsed<T: FromStr>(&mut self, name: &str, default: T, expected: &str) -> T {
        self.optional(name, expected).unwrap_or(default)
    }

    fn number(&mut self, name: &str, default: u64) -> u64 {
        self.parsed(name, default, "a whole number of seconds")
    }

    fn flag(&mut self, name: &str) -> bool {
        match self.text(name).as_deref() {
            None | Some("0") => false,
            Some("1") => true,
            Some(_) => {
                self.wrong(name, "0 or 1");
                false
            }
        }
    }

    /// A Kubernetes quantity: a number and perhaps a unit. The engine hands it to the cluster as it is.
    fn quantity(&mut self, name: &str, default: &str) -> String {
        let text = self.text(name).unwrap_or_else(|| default.to_owned());
        let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
        let number = &text[..text.len() - unit.len()];
        const UNITS: [&str; 15] = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi"];
        if number.parse::<f64>().is_err() || !UNITS.contains(&unit) {
            self.wrong(name, "a Kubernetes quantity, such as 500m, 1 or 2Gi");
        }
        text
    }

    /// A JSON list of texts, or texts separated by commas.
    fn list(&mut self, name: &str) -> Option<Vec<String>> {
        let text = self.text(name)?;
        if !text.starts_with('[') {
            return Some(text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect());
        }
        let list = serde_json::from_str(&text);
        if list.is_err() {
            self.wrong(name, r#"a JSON list of texts, such as ["0x…", "0x…"]"#);
        }
        Some(list.unwrap_or_default())
    }

    fn parsed_list<T: FromStr>(&mut self, name: &str, expected: &str) -> Option<Vec<T>> {
        let items = self.list(name)?;
        let parsed: Result<Vec<T>, _> = items.iter().map(|item| item.parse()).collect();
        if parsed.is_err() {
            self.wrong(name, expected);
        }
        Some(parsed.unwrap_or_default())
    }

    /// Whether this is a Lambda function.
    fn on_lambda(&self) -> bool {
        self.text("AWS_LAMBDA_FUNCTION_NAME").is_some()
    }

    fn postgres(&mut self, books: DatabaseConfig) -> Option<Postgres> {
        let login = self.login();
        let host = self.text("POSTGRES_HOST");
        let untrimmed = |name| (self.variable)(name).filter(|text| !text.is_empty());
        let (database, user) = (untrimmed("POSTGRES_DB"), untrimmed("POSTGRES_USER"));
        if !matches!(login, Login::Secret(_)) {
            if host.is_none() && books == DatabaseConfig::Optional {
                return None;
            }
            for (name, value) in [("POSTGRES_HOST", &host), ("POSTGRES_DB", &database), ("POSTGRES_USER", &user)] {
                if value.is_none() {
                    self.wrong.push(format!("{name} must be set"));
                }
            }
        }
        let strict = self.on_lambda() || matches!(login, Login::Iam);
        let default_mode = if strict { PgSslMode::VerifyFull } else { PgSslMode::Prefer };
        let ssl_mode = self.parsed(
            "POSTGRES_SSLMODE",
            default_mode,
            "one of disable, allow, prefer, require, verify-ca and verify-full",
        );
        // The password goes to the server as it is.
        let in_clear = matches!(ssl_mode, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
        if matches!(login, Login::Iam) && in_clear {
            self.wrong("POSTGRES_SSLMODE", "require, verify-ca or verify-full where POSTGRES_IAM_AUTH is 1");
        }
        let pool_size: Option<NonZeroU32> = self.optional("POSTGRES_POOL_SIZE", "a number above 0");
        let default_size = if self.on_lambda() { 1 } else { 10 };
        Some(Postgres {
            host,
            port: self.optional("POSTGRES_PORT", "a port number"),
            database,
            user,
            login,
            ssl_mode,
            ca_file: self.readable_file("POSTGRES_CA_FILE"),
            pool_size: pool_size.map_or(default_size, NonZeroU32::get),
        })
    }

    fn login(&mut self) -> Login {
        // Not trimmed: a password may begin or end with a space.
        let password = (self.variable)("POSTGRES_PASSWORD").filter(|text| !text.is_empty()).map(SecretString::from);
        let secret = self.text("POSTGRES_SECRET_ARN");
        let iam = self.flag("POSTGRES_IAM_AUTH");
        if usize::from(password.is_some()) + usize::from(secret.is_some()) + usize::from(iam) > 1 {
            let names = "POSTGRES_PASSWORD, POSTGRES_SECRET_ARN and POSTGRES_IAM_AUTH";
            self.wrong(names, "alternatives: set one of them");
        }
        match secret {
            Some(secret) => Login::Secret(secret),
            None if iam => Login::Iam,
            None => Login::Password(password),
        }
    }

    fn eks(&mut self) -> Option<Eks> {
        let name = self.text("EKS_CLUSTER_NAME");
        let role_arn = self.text("EKS_ROLE_ARN");
        let (url, authority) = (self.text("EKS_CLUSTER_ENDPOINT"), self.text("EKS_CLUSTER_CA"));
        if name.is_none() && (url.is_some() || authority.is_some() || role_arn.is_some()) {
            self.wrong("EKS_CLUSTER_NAME", "set where EKS_CLUSTER_ENDPOINT, EKS_CLUSTER_CA or EKS_ROLE_ARN is");
        }
        if role_arn.as_ref().is_some_and(|arn| !arn.starts_with("arn:")) {
            self.wrong("EKS_ROLE_ARN", "a role's ARN");
        }
        let authority = match authority.as_deref().map(eks::authority) {
            Some(None) => {
                self.wrong("EKS_CLUSTER_CA", "a PEM file in base64, as EKS hands it out");
                return None;
            }
            authority => authority.flatten().unwrap_or_default(),
        };
        if url.is_none() && !authority.is_empty() {
            self.wrong("EKS_CLUSTER_ENDPOINT", "set where EKS_CLUSTER_CA is");
        }
        if let Some(url) = &url {
            match url::Url::parse(url) {
                Ok(url) if url.scheme() == "https" && url.has_host() => {
                    if authority.is_empty() {
                        self.wrong("EKS_CLUSTER_CA", "set where EKS_CLUSTER_ENDPOINT is");
                    }
                }
                // A token in clear may go no further than this machine.
                Ok(url) if url.scheme() == "http" && is_loopback(&url) => {}
                _ => self.wrong("EKS_CLUSTER_ENDPOINT", "an https URL"),
            }
        }
        Some(Eks { name: name?, endpoint: url.map(|url| Endpoint { url, authority }), role_arn })
    }

    fn access(&mut self) -> Access {
        let signature_required = self.flag("SIGNATURE_REQUIRED");
        let allowed_providers = self.parsed_list("ALLOWED_PROVIDERS", "a JSON list of Ethereum addresses");
        if signature_required && allowed_providers.as_ref().is_none_or(Vec::is_empty) {
            self.wrong("ALLOWED_PROVIDERS", "a JSON list of at least one address where SIGNATURE_REQUIRED is 1");
        }
        Access {
            policy: Policy {
                signature_required,
                signature_strict: self.flag("SIGNATURE_STRICT"),
                allowed_providers: allowed_providers.unwrap_or_default(),
                nonce_window: Duration::from_secs(self.number("NONCE_WINDOW", 300)),
            },
            allowed_admins: self
                .list("ALLOWED_ADMINS")
                .map(|admins| admins.iter().map(|admin| admin.to_lowercase()).collect()),
        }
    }

    fn results(&mut self) -> Results {
        const EXPECTED: &str = "a JSON list of host names, each with or without a port";
        let hosts_allowed: Vec<HostPattern> = self.parsed_list("RESULT_HOSTS_ALLOWED", EXPECTED).unwrap_or_default();
        let api_key_hosts = self.parsed_list("RESULT_API_KEY_HOSTS", EXPECTED);
        let endpoint = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"].into_iter().find(|name| self.text(name).is_some());
        let stream_limit = match self.optional("RESULT_STREAM_LIMIT", "a whole number of bytes; 0 for no limit") {
            Some(0) => None,
            None if self.on_lambda() => Some(LAMBDA_STREAM_LIMIT),
            limit => limit,
        };
        Results {
            api_key_hosts: api_key_hosts.unwrap_or_else(|| hosts_allowed.clone()),
            hosts_allowed,
            // A Lambda function's environment variables cannot hold a dash.
            api_key: self.secret(["X-API-KEY", "X_API_KEY"]),
            client_id: self.secret(["CLIENT-ID", "CLIENT_ID"]),
            timeout: Duration::from_secs(self.number("RESULT_TIMEOUT", 20)),
            idle_timeout: Duration::from_secs(self.number("RESULT_IDLE_TIMEOUT", 60)),
            output_buckets: self.list("OUTPUT_BUCKETS").unwrap_or_default(),
            s3_endpoint: endpoint.and_then(|name| self.optional(name, "a URL")),
            stream_limit,
        }
    }

    fn default_namespace(&self) -> String {
        self.text("DEFAULT_NAMESPACE").unwrap_or_else(|| "ocean-compute".to_owned())
    }

    fn reaper(&mut self) -> ReaperRules {
        let default_namespace = Namespace::stored(self.default_namespace());
        let mut seconds = |name, default| self.number(name, default) as f64;
        ReaperRules {
            default_namespace,
            dispatch_grace: seconds("REAP_DISPATCH_GRACE", 300),
            retry_grace: seconds("REAP_RETRY_GRACE", 300),
            schedule_grace: seconds("REAP_SCHEDULE_GRACE", 900),
            absent_grace: seconds("REAP_ABSENT_GRACE", 60),
            limit_grace: seconds("REAP_LIMIT_GRACE", 3600),
            unknown_grace: seconds("REAP_UNKNOWN_GRACE", 3600),
            workflow_ttl: Some(seconds("WORKFLOW_TTL", 7 * 24 * 3600)).filter(|seconds| *seconds > 0.0),
            nonces_kept: (2.0 * seconds("NONCE_WINDOW", 300)).max(24.0 * 3600.0),
            algorithm_limit: Some(self.number("ALGO_POD_TIMEOUT", 0)).filter(|seconds| *seconds > 0),
            storage_expiry: Some(self.number("STORAGE_EXPIRY", 0)).filter(|seconds| *seconds > 0),
            requests_per_second: self.parsed("REAP_RATE", const { NonZeroU32::new(20).unwrap() }, "a number above 0"),
        }
    }

    fn log(&mut self) -> Log {
        let level = self.text("LOG_LEVEL").unwrap_or_else(|| "INFO".to_owned());
        let filter = match level.to_uppercase().as_str() {
            // Python's names, which the old service took.
            "WARNING" => "warn".to_owned(),
            "CRITICAL" => "error".to_owned(),
            "DEBUG" | "INFO" | "ERROR" => level.to_lowercase(),
            _ => level,
        };
        if tracing_subscriber::EnvFilter::try_new(&filter).is_err() {
            self.wrong("LOG_LEVEL", "DEBUG, INFO, WARNING, ERROR or a filter such as operator_service=debug");
        }
        Log { filter, file: self.text("LOG_CFG").map(PathBuf::from) }
    }
}

fn is_loopback(url: &url::Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(vars: &[(&str, &str)], books: DatabaseConfig) -> Result<Config, String> {
        let find = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::read(&find, books).map_err(|error| error.to_string())
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
            DatabaseConfig::Required,
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
        let config = read(&[("ALLOWED_PROVIDERS", ""), ("ALLOWED_ADMINS", "")], DatabaseConfig::Optional).unwrap();
        assert!(config.postgres.is_none());
        assert_eq!(config.access.allowed_admins, None);
        assert_eq!(config.default_namespace, "ocean-compute");
        assert_eq!(config.access.policy.nonce_window, Duration::from_secs(300));
    }

    #[test]
    fn hosts_match_with_and_without_a_port() {
        let url = |text: &str| url::Url::parse(text).unwrap();
        let pattern = |text: &str| text.parse::<HostPattern>().unwrap();
        assert!(pattern("Example.org").matches(&url("https://example.org/a")));
        assert!(pattern("example.org:443").matches(&url("https://example.org/a")));
        assert!(!pattern("example.org:8080").matches(&url("https://example.org/a")));
        assert!(!pattern("example.org").matches(&url("https://example.org.evil.net/a")));
        assert!(pattern("::1").matches(&url("http://[::1]:9/")));
        assert!(pattern("[::1]:9").matches(&url("http://[::1]:9/")));
        for bad in ["", "http://x", "a/b", "user@host"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }
}
