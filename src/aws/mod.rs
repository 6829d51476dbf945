//! AWS: the process's credentials, tokens for an EKS cluster, passwords for PostgreSQL, presigned URLs of S3.
//!
//! Whatever can be made from credentials alone is made here without a call, so that a function's first request does not
//! wait for one. There are calls only for a role (`sts:AssumeRole`), a cluster whose endpoint is not configured
//! (`eks:DescribeCluster`) and a secret (`secretsmanager:GetSecretValue`), each with time limits and one retry.
//!
//! No variable of the service itself is read here; the AWS SDK reads its own (AWS_REGION, AWS_ACCESS_KEY_ID,
//! AWS_PROFILE, AWS_ENDPOINT_URL …).

pub mod eks;
pub mod rds;
pub mod s3;
pub mod secrets;
mod sign;

use std::error::Error;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls;
use tokio::sync::OnceCell;

use crate::cache::Cached;

/// How long an AWS service may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one attempt of a call may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a call may take, its second attempt included.
const CALL_TIMEOUT: Duration = Duration::from_secs(6);
/// The maximum number of attempts of a call.
const MAX_ATTEMPTS: u32 = 2;
/// How long before they expire credentials are renewed.
const CREDENTIALS_MARGIN: Duration = Duration::from_secs(5 * 60);
/// How long credentials without an expiry are used.
const CREDENTIALS_MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// Why AWS could not be used. Never contains a secret. Cheap to clone, since many requests may wait for one call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AwsError {
    /// No region is configured.
    #[error("no AWS region is configured: set AWS_REGION")]
    Region,
    /// There are no credentials, or the role cannot be assumed.
    #[error("there are no AWS credentials to use")]
    Credentials(#[source] Cause),
    /// `eks:DescribeCluster` failed.
    #[error(
        "the endpoint of the cluster {0} cannot be read from EKS; set EKS_CLUSTER_ENDPOINT and EKS_CLUSTER_CA to make the \
         call unnecessary"
    )]
    Cluster(String, #[source] Cause),
    /// `secretsmanager:GetSecretValue` failed, or the secret cannot be used.
    #[error("the secret that POSTGRES_SECRET_ARN names cannot be read")]
    Secret(#[source] Cause),
    /// As [`Self::Secret`], of a secret whose name begins with POSTGRES_ROLE_SECRETS.
    #[error("the secret {0} cannot be read")]
    RoleSecret(String, #[source] Cause),
    /// As [`Self::Secret`], of the secret with the headers for origins of results.
    #[error("the secret that RESULT_SECRET_ARN names cannot be read")]
    ResultSecret(#[source] Cause),
    /// Neither the environment nor the secret has one of the database's parameters. The name of its variable.
    #[error("{0} is not set, and the secret that POSTGRES_SECRET_ARN names does not contain its value")]
    Incomplete(&'static str),
    /// A request could not be signed.
    #[error("a request for AWS cannot be signed")]
    Signing(#[source] Cause),
}

/// The source of an [`AwsError`].
#[derive(Debug, Clone)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Cause {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

impl Cause {
    fn of(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(Arc::from(error.into()))
    }
}

/// Credentials, a region and the configuration of the SDK's clients. Cheap to clone; reads nothing before it is used.
#[derive(Clone)]
pub struct Account {
    sdk: Arc<OnceCell<SdkConfig>>,
    /// The region, if it is not the one that the SDK finds.
    region: Option<String>,
    credentials: Arc<Cached<Credentials, AwsError>>,
}

impl Account {
    /// The process's account, as the SDK's default chain finds it: environment, profile, web identity, container,
    /// instance. All callers share its credentials.
    pub fn of_process() -> Self {
        static PROCESS: LazyLock<Account> = LazyLock::new(|| Account::new(OnceCell::new(), None));
        PROCESS.clone()
    }

    /// The process's account in a region other than the environment's.
    pub fn of_process_in(region: &str) -> Self {
        Self::new(OnceCell::new(), Some(region.to_owned()))
    }

    /// An account with this configuration.
    pub fn with(sdk: SdkConfig) -> Self {
        Self::new(OnceCell::new_with(Some(sdk)), None)
    }

    fn new(sdk: OnceCell<SdkConfig>, region: Option<String>) -> Self {
        Self { sdk: Arc::new(sdk), region, credentials: Arc::default() }
    }

    /// The account after assuming a role, possibly one of another account. CloudTrail shows the name `session`.
    pub async fn in_role(&self, role_arn: &str, session: &str) -> Self {
        let sdk = self.sdk().await;
        let role = AssumeRoleProvider::builder(role_arn).configure(sdk).session_name(session).build().await;
        Self::with(sdk.to_builder().credentials_provider(SharedCredentialsProvider::new(role)).build())
    }

    /// The configuration of the SDK's clients.
    pub(crate) async fn sdk(&self) -> &SdkConfig {
        self.sdk
            .get_or_init(|| async {
                let timeouts = TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT)
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                    .operation_timeout(CALL_TIMEOUT)
                    .build();
                let http = aws_smithy_http_client::Builder::new()
                    .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
                    .build_https();
                let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
                    .http_client(http)
                    .timeout_config(timeouts)
                    .retry_config(RetryConfig::standard().with_max_attempts(MAX_ATTEMPTS));
                match &self.region {
                    Some(region) => loader.region(Region::new(region.clone())).load().await,
                    None => loader.load().await,
                }
            })
            .await
    }

    /// The region, such as `eu-west-1`.
    pub async fn region(&self) -> Result<&str, AwsError> {
        self.sdk().await.region().map(Region::as_ref).ok_or(AwsError::Region)
    }

    /// Credentials that are valid for five minutes at least, if their source has such. They are renewed before they
    /// expire by the wall clock.
    pub async fn credentials(&self) -> Result<Credentials, AwsError> {
        let now = SystemTime::now();
        let cached = self.credentials.get(now, None, async || {
            let provider = self
                .sdk()
                .await
                .credentials_provider()
                .ok_or_else(|| AwsError::Credentials(Cause::of("the SDK has no source of credentials")))?;
            let credentials =
                provider.provide_credentials().await.map_err(|error| AwsError::Credentials(Cause::of(error)))?;
            let until = match credentials.expiry() {
                Some(end) => end.checked_sub(CREDENTIALS_MARGIN).unwrap_or(now),
                None => now + CREDENTIALS_MAX_AGE,
            };
            Ok((credentials, until))
        });
        Ok(cached.await?.value)
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account").field("region", &self.region).field("looked_up", &self.sdk.initialized()).finish()
    }
}

/// The domain of a region's services (<https://docs.aws.amazon.com/general/latest/gr/rande.html>).
/// GovCloud has the common one, China its own.
fn domain(region: &str) -> &'static str {
    match region.split('-').next() {
        Some("cn") => "amazonaws.com.cn",
        Some("eusc") => "amazonaws.eu",
        _ => "amazonaws.com",
    }
}

#[cfg(test)]
mod vectors {
    //! tests/aws/vectors.json: the output of awscli and botocore for the same clocks and keys.

    use std::time::{Duration, SystemTime};

    use aws_credential_types::Credentials;
    use serde_json::Value;

    pub(super) fn all(kind: &str) -> Vec<Value> {
        let all: Value = serde_json::from_str(include_str!("../../tests/aws/vectors.json")).unwrap();
        let vectors = all[kind].as_array().unwrap().clone();
        assert!(vectors.len() > 5, "{kind}");
        vectors
    }

    pub(super) fn text<'a>(vector: &'a Value, name: &str) -> &'a str {
        vector[name].as_str().unwrap_or_else(|| panic!("{name} of {vector}"))
    }

    pub(super) fn credentials(vector: &Value) -> Credentials {
        let token = vector["session_token"].as_str().map(str::to_owned);
        Credentials::new(text(vector, "access_key"), text(vector, "secret_key"), token, None, "vector")
    }

    pub(super) fn clock(vector: &Value) -> SystemTime {
        let seconds = match text(vector, "clock") {
            "2026-11-22T00:44:14Z" => 1_795_308_254,
            "2024-02-29T23:59:59Z" => 1_709_251_199,
            other => panic!("{other}"),
        };
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// Splits a URL into what precedes its parameters, and these, decoded and in alphabetical order.
    pub(super) fn split_url(url: &str) -> (String, Vec<(String, String)>) {
        let (base, query) = url.split_once('?').unwrap();
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned();
        let mut parameters: Vec<_> =
            query.split('&').map(|pair| pair.split_once('=').unwrap()).map(|(k, v)| (decode(k), decode(v))).collect();
        parameters.sort();
        (base.to_owned(), parameters)
    }
}
