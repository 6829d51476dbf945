//! The cluster: the WorkFlow object of a job, what the engine made for it, pods and their logs.
//!
//! Every write is idempotent and named after the job: what is there already is there, what is gone is gone.

mod eks_auth;
mod objects;
mod rate_limit;
mod repeatable;
mod steps;
mod sweep;
mod workflow;

use std::error::Error;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::USER_AGENT;
use axum::http::{HeaderValue, Request, Response};
use kube::Client;
use kube::client::{Body, ClientBuilder, DynBody};
use tokio::sync::OnceCell;
use tower::BoxError;
use tower::util::BoxService;

use crate::aws::eks::TokenSource;
use crate::aws::{self, Account, AwsError};
use crate::config::{Config, EksConfig};
use crate::telemetry;
use eks_auth::EksAuth;
use rate_limit::RateLimit;
use repeatable::InManner;

pub use objects::{Component, names_namespace};
pub use steps::{Hope, Step, StepState, Trouble};
pub use sweep::{Deleted, Listed, Page};
pub use workflow::{WorkFlow, WorkFlowSpec, WorkFlowStatus, definition};

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the API server may pause within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the cluster could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// Neither a kubeconfig nor the environment of a pod says where the cluster is, or what they say is wrong.
    #[error("The cluster is not configured: set EKS_CLUSTER_NAME or KUBECONFIG, or run inside the cluster")]
    Configuration(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The cluster refused. Its own words are left out: they may repeat what was sent, data URLs and code included.
    #[error("The cluster refused what it was asked for ({code} {reason}), please try again")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Kubernetes' one-word reason.
        reason: String,
    },
    /// The cluster could not be reached, or did not answer as one does.
    #[error("The cluster is not available, please try again")]
    Unavailable(#[source] Box<kube::Error>),
    /// The API server's certificate is not one to trust.
    #[error(
        "The cluster's certificate was refused: its name or its authority is not the one that EKS_CLUSTER_CA or the \
             kubeconfig gives"
    )]
    Untrusted(#[source] Box<kube::Error>),
    /// AWS did not say where the cluster is.
    #[error("The cluster cannot be reached, please try again: {0}")]
    Aws(#[from] AwsError),
    /// What should name a namespace can name none (RFC 1123), and might lead elsewhere in a request's path.
    #[error("The job's environment is no name of a namespace")]
    NoNamespace,
    /// The cluster took longer than its limit.
    #[error("The cluster did not answer in time, please try again")]
    TimedOut,
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, reason: status.reason.clone() },
            error if is_untrusted(&error) => Self::Untrusted(Box::new(error)),
            error => Self::Unavailable(Box::new(error)),
        }
    }
}

fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // What an io::Error holds is not its source.
    let held =
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|error| error as &(dyn Error + 'static));
    held.or_else(|| error.source()).is_some_and(is_untrusted)
}

/// The cluster. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Cluster {
    client: Arc<OnceCell<Client>>,
    place: ClusterLocation,
    pace: Option<RateLimit>,
}

/// Where a cluster is.
#[derive(Clone)]
enum ClusterLocation {
    /// Where the usual rules say: KUBECONFIG, else ~/.kube/config, else the pod's own.
    Inferred,
    /// An EKS cluster, reached with this account's tokens.
    Eks(Arc<(EksConfig, Account)>),
    /// Known already.
    Known(Box<kube::Config>),
}

impl Cluster {
    /// The cluster that the configuration names: an EKS cluster, reached with this account's tokens, else what the
    /// usual rules name.
    pub fn configured(config: &Config, account: Account) -> Self {
        Self::at(match config.eks.clone() {
            Some(eks) => ClusterLocation::Eks(Arc::new((eks, account))),
            None => ClusterLocation::Inferred,
        })
    }

    /// The cluster that a kubeconfig's text names.
    pub async fn from_kubeconfig(yaml: &str) -> Result<Self, ClusterError> {
        let configuration = |error: Box<dyn std::error::Error + Send + Sync>| ClusterError::Configuration(error);
        let kubeconfig = kube::config::Kubeconfig::from_yaml(yaml).map_err(|error| configuration(error.into()))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .map_err(|error| configuration(error.into()))?;
        Ok(Self::at(ClusterLocation::Known(Box::new(config))))
    }

    fn at(place: ClusterLocation) -> Self {
        Self { client: Arc::default(), place, pace: None }
    }

    /// The same for a sweep: at most so many requests a second, and as many more as nobody but the cluster asks for.
    pub fn paced(&self, requests_per_second: NonZeroU32) -> Self {
        Self { client: Arc::default(), place: self.place.clone(), pace: Some(RateLimit::of(requests_per_second)) }
    }

    async fn client(&self) -> Result<Client, ClusterError> {
        self.client.get_or_try_init(|| self.connect()).await.cloned()
    }

    async fn connect(&self) -> Result<Client, ClusterError> {
        let (config, tokens) = match &self.place {
            ClusterLocation::Inferred => {
                let config = kube::Config::infer().await.map_err(|error| ClusterError::Configuration(error.into()))?;
                (config, None)
            }
            ClusterLocation::Known(config) => (kube::Config::clone(config), None),
            ClusterLocation::Eks(eks) => {
                let (eks, account) = &**eks;
                let tokens = TokenSource::new(account.clone(), &eks.name, eks.role_arn.as_deref());
                (eks_config(eks, account).await?, Some(tokens))
            }
        };
        let builder = builder(config, self.pace.is_none())?;
        Ok(match (tokens, self.pace.clone()) {
            (None, None) => builder.build(),
            (None, Some(pace)) => builder.with_layer(&InManner(pace)).build(),
            (Some(tokens), None) => builder.with_layer(&InManner(EksAuth(tokens))).build(),
            (Some(tokens), Some(pace)) => {
                builder.with_layer(&InManner(EksAuth(tokens))).with_layer(&InManner(pace)).build()
            }
        })
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("connected", &self.client.initialized()).finish()
    }
}

async fn eks_config(eks: &EksConfig, account: &Account) -> Result<kube::Config, ClusterError> {
    let endpoint = match &eks.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => aws::eks::describe(account, &eks.name).await?,
    };
    let url = endpoint.url.parse().map_err(|error| ClusterError::Configuration(Box::new(error)))?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(endpoint.authority).filter(|authority| !authority.is_empty());
    Ok(config)
}

/// What kube makes of a configuration.
type Plain = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

fn builder(mut config: kube::Config, retry: bool) -> Result<ClientBuilder<Plain>, ClusterError> {
    config.default_retry = retry;
    // The defaults, 30 and 295 s, outlast the gateway in front of a Lambda function.
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(READ_TIMEOUT);
    // Else the time that a kept connection was idle counts as the server's pause.
    config.reset_reader_on_write = true;
    let name = HeaderValue::from_static(concat!("operator-service/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, name));
    ClientBuilder::try_from(config).map_err(ClusterError::from)
}

/// Ends a call that takes too long.
async fn within<T>(limit: Duration, call: impl Future<Output = Result<T, ClusterError>>) -> Result<T, ClusterError> {
    let call = telemetry::waiting_for_cluster(tokio::time::timeout(limit, call));
    call.await.unwrap_or(Err(ClusterError::TimedOut))
}
