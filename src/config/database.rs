//! How to reach PostgreSQL, and how to log in.

use std::num::NonZeroU32;
use std::path::PathBuf;

use secrecy::SecretString;
use sqlx::postgres::PgSslMode;

use super::DatabaseUse;
use super::aws;
use super::variables::{Off, Reader, Section, Unset, Variable};

const POSTGRES_HOST: Variable<Unset> =
    Variable { name: "POSTGRES_HOST", default: Unset("required"), description: "PostgreSQL's host name or address." };
const POSTGRES_PORT: Variable<Unset> =
    Variable { name: "POSTGRES_PORT", default: Unset("5432"), description: "PostgreSQL's port." };
const POSTGRES_DB: Variable<Unset> =
    Variable { name: "POSTGRES_DB", default: Unset("required"), description: "The name of the database." };
const POSTGRES_USER: Variable<Unset> =
    Variable { name: "POSTGRES_USER", default: Unset("required"), description: "The user." };
const POSTGRES_PASSWORD: Variable<Unset> =
    Variable { name: "POSTGRES_PASSWORD", default: Unset("none"), description: "The password." };
const POSTGRES_SECRET_ARN: Variable<Unset> = Variable {
    name: "POSTGRES_SECRET_ARN",
    default: Unset("none"),
    description: "Instead of user and password: the ARN or name of a secret in AWS Secrets Manager that holds \
        `username` and `password`. If it also holds `host`, `port` or `dbname`, these take precedence over the \
        variables. It is read again when the database refuses the login.",
};
const POSTGRES_IAM_AUTH: Variable<Off> = Variable {
    name: "POSTGRES_IAM_AUTH",
    default: Off,
    description: "1: instead of a password, RDS's IAM authentication with the process's AWS credentials, over TLS \
        only.",
};
const POSTGRES_SSLMODE: Variable<Unset> = Variable {
    name: "POSTGRES_SSLMODE",
    default: Unset("prefer; `verify-full` in a Lambda function and with `POSTGRES_IAM_AUTH`"),
    description: "`disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`.",
};
const POSTGRES_CA_FILE: Variable<Unset> = Variable {
    name: "POSTGRES_CA_FILE",
    default: Unset("RDS's authorities"),
    description: "The path of a PEM file of the authorities that `verify-ca` and `verify-full` trust in addition to the \
        public ones. The binary does not contain RDS's authorities of GovCloud and China.",
};
const POSTGRES_POOL_SIZE: Variable<Unset> = Variable {
    name: "POSTGRES_POOL_SIZE",
    default: Unset("10; 1 in a Lambda function"),
    description: "The maximum number of connections that one process opens.",
};
const POSTGRES_ROLE_LIMITS: Variable<Off> = Variable {
    name: "POSTGRES_ROLE_LIMITS",
    default: Off,
    description: "1: `migrate` limits the statements of this user in this database to 6 s, so that none outlives the \
        request that it was sent for. Not for a user that the engine or the Python service logs in with.",
};
const POSTGRES_ROLES: Variable<Unset> = Variable {
    name: "POSTGRES_ROLES",
    default: Unset("none"),
    description: "A prefix, such as `operator_`: `migrate` creates a role with it for each function and for the engine \
        (`operator_compute`, `operator_results`, `operator_environments`, `operator_admin`, `operator_reaper`, \
        `operator_engine`), grants each what it needs and no more (infra/database/roles.sql), and limits the statements \
        of all but the engine as `POSTGRES_ROLE_LIMITS` does. Its own user owns the tables and may create roles.",
};
const POSTGRES_ROLE_SECRETS: Variable<Unset> = Variable {
    name: "POSTGRES_ROLE_SECRETS",
    default: Unset("none"),
    description: "With `POSTGRES_ROLES`: what precedes `compute`, `results` and so on in the names of the secrets in AWS \
        Secrets Manager that hold `username` and `password` of these roles. `migrate` sets the passwords.",
};

pub(super) const SECTION: Section = Section {
    title: "Database",
    variables: &[
        &POSTGRES_HOST,
        &POSTGRES_PORT,
        &POSTGRES_DB,
        &POSTGRES_USER,
        &POSTGRES_PASSWORD,
        &POSTGRES_SECRET_ARN,
        &POSTGRES_IAM_AUTH,
        &POSTGRES_SSLMODE,
        &POSTGRES_CA_FILE,
        &POSTGRES_POOL_SIZE,
        &POSTGRES_ROLE_LIMITS,
        &POSTGRES_ROLES,
        &POSTGRES_ROLE_SECRETS,
    ],
};

/// How to reach PostgreSQL, and how to log in.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    /// Host name or address (POSTGRES_HOST); `None` only if the login is a secret, which may hold it.
    pub host: Option<String>,
    /// POSTGRES_PORT; 5432 unless a secret holds another.
    pub port: Option<u16>,
    /// POSTGRES_DB; `None` only if the login is a secret, which may hold it.
    pub database: Option<String>,
    /// POSTGRES_USER; `None` only if the login is a secret.
    pub user: Option<String>,
    /// How to log in.
    pub login: Login,
    /// POSTGRES_SSLMODE
    pub ssl_mode: PgSslMode,
    /// POSTGRES_CA_FILE: PEM file of the authorities that `verify-ca` and `verify-full` trust.
    pub ca_file: Option<PathBuf>,
    /// The maximum number of connections that one process opens (POSTGRES_POOL_SIZE).
    pub pool_size: u32,
    /// What `migrate` does for roles.
    pub roles: RolesConfig,
}

/// What `migrate` does for the roles of the database.
#[derive(Debug, Clone, Default)]
pub struct RolesConfig {
    /// Whether it limits the statements of its own (POSTGRES_ROLE_LIMITS).
    pub limits_own: bool,
    /// The prefix of those that it creates, if it does (POSTGRES_ROLES). Needs no quotes in SQL.
    pub prefix: Option<String>,
    /// What precedes the name of a function in the name of its role's secret (POSTGRES_ROLE_SECRETS).
    pub secrets: Option<String>,
}

/// How to log in to PostgreSQL.
#[derive(Debug, Clone)]
pub enum Login {
    /// POSTGRES_PASSWORD; `None` if there is none, which the server may accept.
    Password(Option<SecretString>),
    /// The ARN or name of a secret in AWS Secrets Manager (POSTGRES_SECRET_ARN).
    Secret(String),
    /// A password made from the process's AWS credentials (POSTGRES_IAM_AUTH=1).
    Iam,
}

impl DatabaseConfig {
    /// `None` if no variable names a database and none is required.
    pub(super) fn read(reader: &mut Reader<'_>, database_use: DatabaseUse) -> Option<Self> {
        let login = Login::read(reader);
        let host = reader.text(&POSTGRES_HOST);
        // Not trimmed: the names of databases and users may begin or end with a space.
        let (database, user) = (reader.untrimmed(&POSTGRES_DB), reader.untrimmed(&POSTGRES_USER));
        if !matches!(login, Login::Secret(_)) {
            if host.is_none() && database_use == DatabaseUse::Optional {
                return None;
            }
            for (variable, value) in [(&POSTGRES_HOST, &host), (&POSTGRES_DB, &database), (&POSTGRES_USER, &user)] {
                if value.is_none() {
                    reader.must_be(variable.name, "set");
                }
            }
        }
        let strict = aws::is_lambda(reader) || matches!(login, Login::Iam);
        let default_mode = if strict { PgSslMode::VerifyFull } else { PgSslMode::Prefer };
        let ssl_mode = reader
            .optional(&POSTGRES_SSLMODE, "one of disable, allow, prefer, require, verify-ca and verify-full")
            .unwrap_or(default_mode);
        // The server receives the password as it is.
        let unencrypted = matches!(ssl_mode, PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer);
        if matches!(login, Login::Iam) && unencrypted {
            let expected = "require, verify-ca or verify-full where POSTGRES_IAM_AUTH is 1";
            reader.must_be(POSTGRES_SSLMODE.name, expected);
        }
        let pool_size: Option<NonZeroU32> = reader.optional(&POSTGRES_POOL_SIZE, "a number above 0");
        let default_size = if aws::is_lambda(reader) { 1 } else { 10 };
        Some(Self {
            host,
            port: reader.optional(&POSTGRES_PORT, "a port number"),
            database,
            user,
            login,
            ssl_mode,
            ca_file: reader.readable_file(&POSTGRES_CA_FILE),
            pool_size: pool_size.map_or(default_size, NonZeroU32::get),
            roles: RolesConfig::read(reader),
        })
    }
}

impl RolesConfig {
    fn read(reader: &mut Reader<'_>) -> Self {
        let (prefix, secrets) = (reader.text(&POSTGRES_ROLES), reader.text(&POSTGRES_ROLE_SECRETS));
        let is_plain = |text: &str| {
            text.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        // PostgreSQL cuts names after 63 bytes.
        if prefix.as_deref().is_some_and(|text| !is_plain(text) || text.len() > 40) {
            let expected = "at most 40 lower-case letters, digits and underscores, the first no digit";
            reader.must_be(POSTGRES_ROLES.name, expected);
        }
        if secrets.is_some() && prefix.is_none() {
            reader.must_be(POSTGRES_ROLES.name, "set where POSTGRES_ROLE_SECRETS is");
        }
        Self { limits_own: reader.flag(&POSTGRES_ROLE_LIMITS), prefix, secrets }
    }
}

impl Login {
    fn read(reader: &mut Reader<'_>) -> Self {
        // Not trimmed: a password may begin or end with a space.
        let password = reader.untrimmed(&POSTGRES_PASSWORD).map(SecretString::from);
        let secret = reader.text(&POSTGRES_SECRET_ARN);
        let iam = reader.flag(&POSTGRES_IAM_AUTH);
        if usize::from(password.is_some()) + usize::from(secret.is_some()) + usize::from(iam) > 1 {
            let names = "POSTGRES_PASSWORD, POSTGRES_SECRET_ARN and POSTGRES_IAM_AUTH";
            reader.must_be(names, "alternatives: set one of them");
        }
        match secret {
            Some(secret) => Self::Secret(secret),
            None if iam => Self::Iam,
            None => Self::Password(password),
        }
    }
}
