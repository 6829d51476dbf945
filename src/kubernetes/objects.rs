//! What belongs to a job in the cluster (contract: `engine.md`, "What the engine makes in the cluster").

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::io::AsyncReadExt;
use k8s_openapi::api::batch::v1::Job as EngineJob;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Resource, ResourceExt};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{Cluster, ClusterError, WorkFlow, WorkFlowSpec, within};
use crate::domain::JobId;
use crate::telemetry::waiting_for_cluster;

/// A write that a request waits for: with the books' own limit it stays below the 5 s within which a start
/// is answered.
const WRITE_LIMIT: Duration = Duration::from_secs(3);
/// Everything that one read-only request does.
const READ_LIMIT: Duration = Duration::from_secs(20);
/// Objects per page of a list.
const PAGE: u32 = 500;
/// The most of a log that is handed out, in bytes, so that it fits a buffered Lambda answer (6 MB).
const LOG_LIMIT: usize = 5 * 1024 * 1024;

/// A step of a job, which is a Kubernetes Job of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// Fetches inputs and algorithm.
    Configure,
    /// Runs the algorithm.
    Algorithm,
    /// Filters its outputs.
    Filter,
    /// Publishes them.
    Publish,
}

impl Component {
    /// All steps, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Configure, Self::Algorithm, Self::Filter, Self::Publish];

    /// The step's name, as in labels and in names of objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Filter => "filter",
            Self::Publish => "publish",
        }
    }

    /// The step of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    pub(super) fn job_name(self, job_id: &JobId) -> String {
        format!("{job_id}-{}-job", self.as_str())
    }
}

impl Cluster {
    /// The objects of a kind in a namespace. The only way to them: names come from outside, and become part of paths.
    pub(super) async fn namespaced<K>(&self, namespace: &str) -> Result<Api<K>, ClusterError>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        if !names_namespace(namespace) {
            return Err(ClusterError::NoNamespace);
        }
        Ok(Api::namespaced(self.client().await?, namespace))
    }

    /// Registers a job: creates its WorkFlow object, unless that is there already.
    pub async fn register(&self, job_id: &JobId, namespace: &str, spec: WorkFlowSpec) -> Result<(), ClusterError> {
        let mut object = WorkFlow::new(job_id.as_str(), spec);
        let labels = [("workflow", job_id.as_str()), super::sweep::MANAGED_BY];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        object.metadata.labels = Some(BTreeMap::from(labels));
        let create = async {
            let api: Api<WorkFlow> = self.namespaced(namespace).await?;
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                Err(error) => Err(error.into()),
            }
        };
        match self.pace {
            None => within(WRITE_LIMIT, create).await,
            // It may have to wait for its turn.
            Some(_) => waiting_for_cluster(create).await,
        }
    }

    /// Ends a job's algorithm: deletes its Kubernetes Job with the pods. The engine takes that for the end of
    /// the algorithm and goes on to publishing, so everything else stays.
    pub async fn end_algorithm(&self, job_id: &JobId, namespace: &str) -> Result<(), ClusterError> {
        within(WRITE_LIMIT, async {
            let jobs: Api<EngineJob> = self.namespaced(namespace).await?;
            delete(&jobs, &Component::Algorithm.job_name(job_id)).await
        })
        .await
    }

    /// Removes everything that belongs to a finished job: Jobs with their pods, claims, ConfigMap, WorkFlow
    /// object. At most ten requests; one that fails does not keep the others from being made.
    pub async fn remove(&self, job_id: &JobId, namespace: &str) -> Result<(), ClusterError> {
        within(WRITE_LIMIT, async {
            let jobs: Api<EngineJob> = self.namespaced(namespace).await?;
            let claims: Api<PersistentVolumeClaim> = self.namespaced(namespace).await?;
            let config_maps: Api<ConfigMap> = self.namespaced(namespace).await?;
            let workflows: Api<WorkFlow> = self.namespaced(namespace).await?;

            let mut result = Ok(());
            for component in Component::ALL {
                result = result.and(delete(&jobs, &component.job_name(job_id)).await);
            }
            for claim in self::claims(job_id) {
                result = result.and(delete(&claims, &claim).await);
            }
            result = result.and(delete(&config_maps, job_id.as_str()).await);
            result.and(delete(&workflows, job_id.as_str()).await)
        })
        .await
    }

    /// A job's WorkFlow object; `None` if there is none.
    pub async fn workflow(&self, job_id: &JobId, namespace: &str) -> Result<Option<WorkFlow>, ClusterError> {
        within(READ_LIMIT, async {
            let api: Api<WorkFlow> = self.namespaced(namespace).await?;
            Ok(api.get_opt(job_id.as_str()).await?)
        })
        .await
    }

    /// The names of the WorkFlow objects in some namespaces. A namespace that this service may not look into is
    /// left out and logged: environments that once announced themselves may be long gone.
    pub async fn workflow_names(&self, namespaces: BTreeSet<String>) -> Result<Vec<String>, ClusterError> {
        within(READ_LIMIT, async {
            let mut names = Vec::new();
            for namespace in namespaces {
                let found = match self.namespaced(&namespace).await {
                    Ok(api) => names_in(&api, &mut names).await.map_err(ClusterError::from),
                    Err(error) => Err(error),
                };
                match found {
                    Err(error @ (ClusterError::Refused { code: 403, .. } | ClusterError::NoNamespace)) => {
                        tracing::warn!(namespace, %error, "the workflows of an environment cannot be listed");
                    }
                    found => found?,
                }
            }
            Ok(names)
        })
        .await
    }

    /// The log of a step's youngest pod, at most the first 5 MiB of it, what is no UTF-8 replaced; `None` if there
    /// is no such pod.
    pub async fn log(
        &self,
        job_id: &JobId,
        component: Component,
        namespace: &str,
    ) -> Result<Option<String>, ClusterError> {
        within(READ_LIMIT, async {
            let pods: Api<Pod> = self.namespaced(namespace).await?;
            let labels = format!("workflow={job_id},component={}", component.as_str());
            let found = pods.list(&ListParams::default().labels(&labels).limit(PAGE)).await?;
            let Some(pod) = found.items.iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone()) else {
                return Ok(None);
            };
            let params = LogParams { limit_bytes: Some(LOG_LIMIT as i64), ..LogParams::default() };
            let mut log = Vec::new();
            let stream = match pods.log_stream(&pod.name_any(), &params).await {
                Ok(stream) => stream,
                Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(None),
                // A pod that has not started has no log yet; the API server says so with a 400.
                Err(kube::Error::Api(status)) if status.code == 400 => {
                    return Ok(Some(String::new()));
                }
                Err(error) => return Err(error.into()),
            };
            let mut stream = std::pin::pin!(stream.take(LOG_LIMIT as u64));
            stream.read_to_end(&mut log).await.map_err(kube::Error::ReadEvents)?;
            Ok(Some(String::from_utf8_lossy(&log).into_owned()))
        })
        .await
    }
}

/// Whether a namespace may be called so.
pub fn names_namespace(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.len() <= 63 && name.bytes().all(plain)
}

/// The names of a job's claims. The engine of 2020 had one each for input and output, too.
pub(super) fn claims(job_id: &JobId) -> [String; 4] {
    ["data", "adminlogs", "input", "output"].map(|claim| format!("{job_id}-{claim}"))
}

async fn names_in(api: &Api<WorkFlow>, names: &mut Vec<String>) -> Result<(), kube::Error> {
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list_metadata(&params).await?;
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(()),
        }
    }
}

/// Deletes an object with everything that hangs on it; one that is not there is deleted.
async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), ClusterError>
where
    K: Clone + Debug + DeserializeOwned,
{
    match api.delete(name, &DeleteParams::background()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}
