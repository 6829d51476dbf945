//! The connection to the cluster, and what all calls share: checked names, pages of lists, deletion, time limits.

use std::fmt::{self, Debug};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::http::header::USER_AGENT;
use axum::http::{HeaderValue, Request, Response};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, ObjectList, Preconditions};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;
use tower::BoxError;
use tower::util::{BoxService, MapResponseLayer, option_layer};

use super::layers::{ClusterClock, EksAuthLayer, RateLimit};
use super::{ClusterError, Deletion, HeldObject};
use crate::aws::eks::TokenSource;
use crate::aws::{self, Account};
use crate::config::{Config, EksConfig};
use crate::domain::{JobId, Namespace};
use crate::telemetry::waiting_for_cluster;

/// How long the API server may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the API server may pause within a response.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The number of objects in a page of a list.
pub(super) const LIST_PAGE_SIZE: u32 = 250;
/// Kubernetes' own finalizers, which it removes itself.
const KUBERNETES_FINALIZERS: [&str; 4] =
    ["kubernetes.io/pvc-protection", "foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"];

/// The cluster. Cheap to clone; connects on first use.
#[derive(Clone)]
pub struct Cluster {
    client: Arc<OnceCell<Client>>,
    location: ClusterLocation,
    clock: ClusterClock,
    rate_limit: Option<RateLimit>,
}

/// How a cluster is found.
#[derive(Clone)]
enum ClusterLocation {
    /// As kubectl finds it: KUBECONFIG, else ~/.kube/config, else the pod's service account.
    Inferred,
    /// An EKS cluster, used with this account's tokens.
    Eks(Arc<(EksConfig, Account)>),
    /// A configuration that has been read already.
    Known(Box<kube::Config>),
}

impl Cluster {
    /// The cluster of the configuration: an EKS cluster, used with this account's tokens, else the one that kubectl
    /// would use.
    pub fn configured(config: &Config, account: Account) -> Self {
        Self::at(match config.eks.clone() {
            Some(eks) => ClusterLocation::Eks(Arc::new((eks, account))),
            None => ClusterLocation::Inferred,
        })
    }

    /// The cluster that a kubeconfig's text names.
    pub async fn from_kubeconfig(yaml: &str) -> Result<Self, ClusterError> {
        let kubeconfig =
            kube::config::Kubeconfig::from_yaml(yaml).map_err(|error| ClusterError::Configuration(error.into()))?;
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .map_err(|error| ClusterError::Configuration(error.into()))?;
        Ok(Self::at(ClusterLocation::Known(Box::new(config))))
    }

    fn at(location: ClusterLocation) -> Self {
        Self { client: Arc::default(), location, clock: ClusterClock::default(), rate_limit: None }
    }

    /// The same cluster by a connection of its own, with at most this many requests per second. Each request has 10
    /// seconds to be answered once it is sent, and is retried if the API server refuses it with 429.
    pub fn rate_limited(&self, requests_per_second: NonZeroU32) -> Self {
        let rate_limit = Some(RateLimit::new(requests_per_second));
        Self { rate_limit, ..Self::at(self.location.clone()) }
    }

    /// The objects of a kind in a namespace. All calls use this or [`Cluster::job_api`], which check the names: these
    /// come from outside and become part of paths.
    pub(super) async fn api<K>(&self, namespace: &Namespace) -> Result<Api<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if !namespace.is_valid() {
            return Err(ClusterError::InvalidNamespace);
        }
        Ok(Api::namespaced(self.client().await?, namespace.as_str()))
    }

    /// As [`Cluster::api`], for objects that are named after a job.
    pub(super) async fn job_api<K>(&self, job_id: &JobId, namespace: &Namespace) -> Result<Api<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if !job_id.can_name_objects() {
            return Err(ClusterError::InvalidName);
        }
        self.api(namespace).await
    }

    /// The time by the cluster's clock.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn client(&self) -> Result<Client, ClusterError> {
        self.client.get_or_try_init(|| self.connect()).await.cloned()
    }

    async fn connect(&self) -> Result<Client, ClusterError> {
        let (config, tokens) = match &self.location {
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
        let clock = self.clock.clone();
        let set_clock = MapResponseLayer::new(move |response: Response<Box<DynBody>>| {
            clock.observe(response.headers());
            response
        });
        // Where there is no rate limit with its own retries, kube retries what the API server answers with 429, 503 or
        // 504.
        Ok(builder(config, self.rate_limit.is_none())?
            .with_layer(&set_clock)
            .with_layer(&option_layer(tokens.map(EksAuthLayer)))
            .with_layer(&option_layer(self.rate_limit.clone()))
            .build())
    }
}

impl Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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

/// The service that kube makes from a configuration.
type KubeService = BoxService<Request<Body>, Response<Box<DynBody>>, BoxError>;

fn builder(mut config: kube::Config, retry: bool) -> Result<ClientBuilder<KubeService>, ClusterError> {
    config.default_retry = retry;
    // The defaults, 30 and 295 s, exceed the time limit of the gateway in front of a Lambda function.
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    config.write_timeout = Some(READ_TIMEOUT);
    // Otherwise the time for which a pooled connection was idle counts as a pause of the server.
    config.reset_reader_on_write = true;
    let name = HeaderValue::from_static(concat!("operator-service/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, name));
    ClientBuilder::try_from(config).map_err(ClusterError::from)
}

/// Fails a call that takes longer than its limit.
pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<T, ClusterError>>,
) -> Result<T, ClusterError> {
    let call = waiting_for_cluster(tokio::time::timeout(limit, call));
    call.await.unwrap_or(Err(ClusterError::TimedOut))
}

/// Reads all pages of a list; `fetch` reads one, and `each` gets its items, one after another.
pub(super) async fn each_item<K, F>(
    labels: Option<&str>,
    fetch: impl Fn(ListParams) -> F,
    mut each: impl FnMut(K),
) -> Result<(), ClusterError>
where
    K: Clone,
    F: Future<Output = kube::Result<ObjectList<K>>>,
{
    let mut params = ListParams::default().limit(LIST_PAGE_SIZE);
    params.label_selector = labels.map(str::to_owned);
    loop {
        let page = fetch(params.clone()).await?;
        params.continue_token = next_page(&page);
        page.items.into_iter().for_each(&mut each);
        if params.continue_token.is_none() {
            return Ok(());
        }
    }
}

/// The token of the next page; `None` on the last page.
pub(super) fn next_page<K: Clone>(page: &ObjectList<K>) -> Option<String> {
    page.metadata.continue_.clone().filter(|token| !token.is_empty())
}

/// Deletes an object.
pub(super) async fn delete<K>(api: &Api<K>, name: &str, params: &DeleteParams) -> Result<Deletion, ClusterError>
where
    K: Clone + Debug + DeserializeOwned + Resource,
    K::DynamicType: Default,
{
    match api.delete(name, params).await {
        Ok(deleted) => {
            let finalizers = deleted.left().map(|object| object.finalizers().to_vec()).unwrap_or_default();
            let finalizers: Vec<String> = finalizers
                .into_iter()
                .filter(|finalizer| !KUBERNETES_FINALIZERS.contains(&finalizer.as_str()))
                .collect();
            let kind = K::kind(&K::DynamicType::default()).into_owned();
            let held = HeldObject { kind, name: name.to_owned(), finalizers };
            Ok(if held.finalizers.is_empty() { Deletion::Gone } else { Deletion::Held(held) })
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Deletion::NotFound),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Deletion::Changed),
        Err(error) => Err(error.into()),
    }
}

/// Lets a deletion fail with a conflict unless the object is still the one that was read.
pub(super) fn unchanged(uid: &str, resource_version: &str) -> Preconditions {
    Preconditions { uid: Some(uid.to_owned()), resource_version: Some(resource_version.to_owned()) }
}
