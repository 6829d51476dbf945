//! The cluster: the WorkFlow object of a job, what the engine made for it, pods and their logs.
//!
//! Every write is idempotent and named after the job: what is there already is there, what is gone is gone.

mod authorized;
mod objects;
mod workflow;

use std::error::Error;
use std::io;
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
use crate::config::{Config, Eks};
use crate::telemetry;
use authorized::AuthorizedLayer;

pub use objects::Component;
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
#[derive(Clone, Default)]
pub struct Cluster {
    client: Arc<OnceCell<Client>>,
    eks: Option<Arc<(Eks, Account)>>,
}

impl Cluster {
    /// The cluster that the usual rules name: KUBECONFIG, else ~/.kube/config, else the pod's own.
    pub fn inferred() -> Self {
        Self::default()
    }

    /// The cluster that the configuration names: an EKS cluster, reached with this account's tokens, else what the
    /// usual rules name.
    pub fn configured(config: &Config, account: Account) -> Self {
        let eks = config.eks.clone().map(|eks| Arc::new((eks, account)));
        Self { client: Arc::default(), eks }
    }

    /// The cluster that a kubeconfig's text names.
    pub async fn from_kubeconfig(yaml: &str) -> Result<Self, ClusterError> {
        let configuration = |error: Box<dyn std::error::Error + Send + Sync>| ClusterError::Configuration(error);
        let kubeconfig = kube::config::Kubeconfig::from_yaml(yaml).map_err(|error| configuration(error.into()))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .map_err(|error| configuration(error.into()))?;
        Ok(Self { client: Arc::new(OnceCell::new_with(Some(builder(config)?.build()))), eks: None })
    }

    async fn client(&self) -> Result<Client, ClusterError> {
        self.client
            .get_or_try_init(|| async {
                if let Some((eks, account)) = self.eks.as_deref() {
                    return eks_client(eks, account).await;
                }
                let config = kube::Config::infer().await.map_err(|error| ClusterError::Configuration(error.into()))?;
                Ok(builder(config)?.build())
            })
            .await
            .cloned()
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("connected", &self.client.initialized()).finish()
    }
}

async fn eks_client(eks: &Eks, account: &Account) -> Result<Client, ClusterError> {
    let endpoint = match &eks.endpoint {
        Some(endpoint) => endpoint.clone(),
        None => aws::eks::describe(account, &eks.name).await?,
    };
    let url = endpoint.url.parse().map_err(|error| ClusterError::Configuration(Box::new(error)))?;
    let mut config = kube::Config::new(url);
    config.root_cert = Some(endpoint.authority).filter(|authority| !authority.is_empty());
    let tokens = TokenSource::new(account.clone(), &eks.name, eks.role_arn.as_deref());
    Ok(builder(config)?.with_layer(&AuthorizedLayer(tokens)).build())
}

/// What kube makes of a configuration.
type Plain = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

fn builder(mut config: kube::Config) -> Result<ClientBuilder<Plain>, ClusterError> {
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
