//! How to log in to the database: with a given password, one from a secret, or one made from AWS credentials.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::DatabaseError;
use crate::aws::{Account, AwsError, rds, secrets};
use crate::cache::{Cached, Versioned};
use crate::config::{DatabaseConfig, Login};

/// How long a password made from credentials is used for new connections; the database accepts it for 15 minutes.
const IAM_PASSWORD_MAX_AGE: Duration = Duration::from_secs(5 * 60);
/// The lifetime of a password that does not expire: 100 years.
const UNLIMITED_AGE: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Makes the connection options, with the password that is valid now.
pub(super) struct Logins {
    config: DatabaseConfig,
    account: Account,
    cached: Cached<Arc<PgConnectOptions>, AwsError>,
}

impl Logins {
    pub(super) fn new(config: &DatabaseConfig, account: Account) -> Self {
        Self { config: config.clone(), account, cached: Cached::default() }
    }

    /// The account that secrets and credentials are of.
    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Returns what to connect with now. `refused` is the version that the database refused, if it did.
    pub(super) async fn get(&self, refused: Option<u64>) -> Result<Versioned<Arc<PgConnectOptions>>, DatabaseError> {
        let now = SystemTime::now();
        let made = self.cached.get(now, refused, async || {
            let (options, life) = self.make(now).await?;
            Ok((Arc::new(options), now + life))
        });
        made.await.map_err(DatabaseError::NoPassword)
    }

    /// Returns whether a refused login may be tried again, because the password may have changed.
    pub(super) fn can_change(&self) -> bool {
        !matches!(self.config.login, Login::Password(_))
    }

    async fn make(&self, now: SystemTime) -> Result<(PgConnectOptions, Duration), AwsError> {
        let DatabaseConfig { host, port, database, user, login, .. } = &self.config;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let port = port.unwrap_or(5432);
        Ok(match login {
            Login::Password(password) => {
                (self.options(&text(host), port, &text(database), &text(user), password.as_ref()), UNLIMITED_AGE)
            }
            Login::Secret(arn) => {
                let secret = secrets::database(&self.account, arn).await?;
                let missing = |name| move || AwsError::Incomplete(name);
                let host = secret.host.as_ref().or(host.as_ref()).ok_or_else(missing("POSTGRES_HOST"))?;
                let database = secret.dbname.as_ref().or(database.as_ref()).ok_or_else(missing("POSTGRES_DB"))?;
                let port = secret.port.unwrap_or(port);
                tracing::info!("the database's secret was read");
                (self.options(host, port, database, &secret.username, Some(&secret.password)), UNLIMITED_AGE)
            }
            Login::Iam => {
                let credentials = self.account.credentials().await?;
                let region = self.account.region().await?;
                let password = rds::password(&text(host), port, &text(user), region, &credentials, now)?;
                (self.options(&text(host), port, &text(database), &text(user), Some(&password)), IAM_PASSWORD_MAX_AGE)
            }
        })
    }

    fn options(
        &self,
        host: &str,
        port: u16,
        database: &str,
        user: &str,
        password: Option<&SecretString>,
    ) -> PgConnectOptions {
        let DatabaseConfig { ssl_mode, ca_file, .. } = &self.config;
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .database(database)
            .username(user)
            .ssl_mode(*ssl_mode)
            .application_name("operator-service");
        if let Some(password) = password {
            options = options.password(password.expose_secret());
        }
        match ca_file {
            Some(ca_file) => options.ssl_root_cert(ca_file),
            // In addition to the public authorities, which sqlx trusts by itself.
            None if matches!(ssl_mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull) => {
                options.ssl_root_cert_from_pem(rds::AUTHORITIES.to_vec())
            }
            None => options,
        }
    }
}
