//! Calls on what the engine creates for a job (docs/contract/engine.md, "Objects of a job").

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::batch::v1::Job as EngineJob;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, PodSpec};
use kube::Api;
use kube::api::{DeleteParams, ListParams};

use super::client::{all_pages, delete, unchanged};
use super::steps;
use super::{Cluster, ClusterError, Deletion, Step};
use crate::domain::{Component, JobId, Namespace};
use crate::telemetry::waiting_for_cluster;

/// Selects the engine's Jobs and their pods.
const STEPS: &str = "workflow,component in (configure,algorithm,filter,publish)";

/// An object that is marked as deleted and stays until finalizers that are not Kubernetes' own are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldObject {
    /// The object's kind.
    pub kind: &'static str,
    /// The object's name.
    pub name: String,
    /// The finalizers.
    pub finalizers: Vec<String>,
}

impl fmt::Display for HeldObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.kind, self.name, self.finalizers.join(", "))
    }
}

impl Cluster {
    /// Lists all steps in a namespace, by job.
    pub async fn list_steps(&self, namespace: &Namespace) -> Result<BTreeMap<JobId, Vec<Step>>, ClusterError> {
        waiting_for_cluster(async {
            let jobs: &Api<EngineJob> = &self.api(namespace).await?;
            let pods: &Api<Pod> = &self.api(namespace).await?;
            let page = |params| async move { jobs.list(&params).await };
            let jobs: Vec<EngineJob> = all_pages(Some(STEPS), page, Slim::slim).await?;
            let pods: Vec<Pod> = if jobs.iter().any(steps::is_open) {
                let page = |params| async move { pods.list(&params).await };
                all_pages(Some(STEPS), page, Slim::slim).await?
            } else {
                Vec::new()
            };
            let now = self.now();
            let mut by_job: BTreeMap<JobId, Vec<Step>> = BTreeMap::new();
            for step in jobs.iter().filter_map(|job| steps::step(job, &pods, now)) {
                by_job.entry(step.job_id.clone()).or_default().push(step);
            }
            Ok(by_job)
        })
        .await
    }

    /// Returns whether a job has any step.
    pub async fn has_steps(&self, job_id: &JobId, namespace: &Namespace) -> Result<bool, ClusterError> {
        let params = ListParams::default().labels(&format!("workflow={job_id}")).limit(1);
        waiting_for_cluster(async {
            let jobs: Api<EngineJob> = self.job_api(job_id, namespace).await?;
            Ok(!jobs.list_metadata(&params).await?.items.is_empty())
        })
        .await
    }

    /// Deletes a step's Kubernetes Job with its pods, if it has not changed since it was read.
    pub async fn delete_step(&self, step: &Step, namespace: &Namespace) -> Result<Deletion, ClusterError> {
        let params = DeleteParams::foreground().preconditions(unchanged(&step.uid, &step.resource_version));
        waiting_for_cluster(async {
            let jobs: Api<EngineJob> = self.job_api(&step.job_id, namespace).await?;
            delete(&jobs, &step.component.job_name(&step.job_id), &params).await
        })
        .await
    }

    /// Deletes the Kubernetes Job of a job's algorithm with its pods. The engine takes that for the algorithm's end and
    /// goes on to publishing (docs/contract/engine.md, "Stopping a job"), so all other objects stay. The caller limits
    /// the time.
    pub async fn delete_algorithm(&self, job_id: &JobId, namespace: &Namespace) -> Result<(), ClusterError> {
        waiting_for_cluster(async {
            let jobs: Api<EngineJob> = self.job_api(job_id, namespace).await?;
            delete(&jobs, &Component::Algorithm.job_name(job_id), &DeleteParams::background()).await?;
            Ok(())
        })
        .await
    }

    /// Deletes what the engine created for a finished job: Jobs with their pods, claims, ConfigMap. Makes nine
    /// requests; the first that fails decides the result and does not prevent the others. Returns the objects that
    /// finalizers hold. The caller limits the time.
    pub async fn delete_engine_objects(
        &self,
        job_id: &JobId,
        namespace: &Namespace,
    ) -> Result<Vec<HeldObject>, ClusterError> {
        waiting_for_cluster(async {
            let jobs: Api<EngineJob> = self.job_api(job_id, namespace).await?;
            let claims: Api<PersistentVolumeClaim> = self.job_api(job_id, namespace).await?;
            let config_maps: Api<ConfigMap> = self.job_api(job_id, namespace).await?;
            let params = DeleteParams::background();

            let mut deletions = Vec::new();
            for name in Component::ALL.map(|component| component.job_name(job_id)) {
                let deletion = delete(&jobs, &name, &params).await;
                deletions.push(("Job", name, deletion));
            }
            for name in claim_names(job_id) {
                let deletion = delete(&claims, &name, &params).await;
                deletions.push(("PersistentVolumeClaim", name, deletion));
            }
            let deletion = delete(&config_maps, job_id.as_str(), &params).await;
            deletions.push(("ConfigMap", job_id.to_string(), deletion));

            let mut held = Vec::new();
            for (kind, name, deletion) in deletions {
                if let Deletion::Held(finalizers) = deletion? {
                    held.push(HeldObject { kind, name, finalizers });
                }
            }
            Ok(held)
        })
        .await
    }
}

/// Removes fields that are not used here: there may be many objects, and their templates are large.
trait Slim {
    /// Returns the object without these fields.
    fn slim(self) -> Self;
}

impl Slim for EngineJob {
    fn slim(mut self) -> Self {
        (self.metadata.managed_fields, self.metadata.annotations) = (None, None);
        if let Some(spec) = &mut self.spec {
            spec.template = Default::default();
        }
        self
    }
}

impl Slim for Pod {
    fn slim(mut self) -> Self {
        (self.metadata.managed_fields, self.metadata.annotations) = (None, None);
        if let Some(spec) = &mut self.spec {
            let slim = |container: Container| Container {
                name: container.name,
                resources: container.resources,
                ..Container::default()
            };
            let containers = std::mem::take(&mut spec.containers).into_iter().map(slim).collect();
            *spec = PodSpec { containers, ..PodSpec::default() };
        }
        self
    }
}

/// The names of a job's claims. The engine of 2020 also had one each for input and output.
fn claim_names(job_id: &JobId) -> [String; 4] {
    ["data", "adminlogs", "input", "output"].map(|claim| format!("{job_id}-{claim}"))
}
