//! Calls on what the engine creates for a job (docs/contract/engine.md, "Objects of a job").

use std::fmt;

use k8s_openapi::api::batch::v1::Job as EngineJob;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt};

use super::client::{delete, each_item, unchanged};
use super::steps::{Steps, StepsBuilder};
use super::{Cluster, ClusterError, Deletion, Step, StepState};
use crate::domain::{Component, JobId, Namespace};
use crate::telemetry::waiting_for_cluster;

/// Selects the engine's Jobs and their pods.
const STEPS: &str = "workflow,component in (configure,algorithm,filter,publish)";
/// How the names of a job's claims end. The engine of 2020 also made one each for input and output.
const CLAIMS: [&str; 4] = ["-data", "-adminlogs", "-input", "-output"];

/// The kind of an object that an engine made and that lists show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A Kubernetes Job, with its pods.
    Job,
    /// A PersistentVolumeClaim.
    Claim,
}

/// An object that an engine made for a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineObject {
    /// The job that it is named after.
    pub job_id: JobId,
    /// Its kind.
    pub kind: ObjectKind,
    /// Its name.
    pub name: String,
    /// Its uid, if it was listed.
    pub uid: Option<String>,
}

impl EngineObject {
    /// The Kubernetes Job of a step; `None` if it is being deleted.
    pub fn of_step(step: &Step) -> Option<Self> {
        (step.state != StepState::Terminating).then(|| Self {
            job_id: step.job_id.clone(),
            kind: ObjectKind::Job,
            name: step.component.job_name(&step.job_id),
            uid: Some(step.uid.clone()),
        })
    }

    /// Whatever an engine may have made for a job, by name.
    pub fn possible(job_id: &JobId) -> Vec<Self> {
        let object = |kind, name| Self { job_id: job_id.clone(), kind, name, uid: None };
        let jobs = Component::ALL.map(|component| object(ObjectKind::Job, component.job_name(job_id)));
        let claims = CLAIMS.map(|end| object(ObjectKind::Claim, format!("{job_id}{end}")));
        jobs.into_iter().chain(claims).collect()
    }
}

/// An object that is marked as deleted and stays until finalizers that are not Kubernetes' own are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldObject {
    /// The object's kind.
    pub kind: String,
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
    /// Lists all steps in a namespace. Holds a page of Jobs or pods at a time, and of each what decides on it.
    pub async fn list_steps(&self, namespace: &Namespace) -> Result<Steps, ClusterError> {
        waiting_for_cluster(async {
            let jobs: &Api<EngineJob> = &self.api(namespace).await?;
            let pods: &Api<Pod> = &self.api(namespace).await?;
            let mut steps = StepsBuilder::default();
            let page = |params| async move { jobs.list(&params).await };
            each_item(Some(STEPS), page, |job| steps.add_job(slim(job), self.now())).await?;
            if steps.needs_pods() {
                let page = |params| async move { pods.list(&params).await };
                each_item(Some(STEPS), page, |pod| steps.add_pod(&pod, self.now())).await?;
            }
            Ok(steps.build(self.now()))
        })
        .await
    }

    /// Lists the claims in a namespace that are named after a job and are not being deleted. They have no labels.
    pub async fn list_claims(&self, namespace: &Namespace) -> Result<Vec<EngineObject>, ClusterError> {
        waiting_for_cluster(async {
            let claims: &Api<PersistentVolumeClaim> = &self.api(namespace).await?;
            let mut found = Vec::new();
            let page = |params| async move { claims.list_metadata(&params).await };
            each_item(None, page, |claim| {
                let name = claim.name_any();
                let job_id = CLAIMS.iter().find_map(|end| JobId::of_object(name.strip_suffix(end)?));
                if let (Some(job_id), None) = (job_id, &claim.metadata.deletion_timestamp) {
                    found.push(EngineObject { job_id, kind: ObjectKind::Claim, name, uid: claim.uid() });
                }
            })
            .await?;
            Ok(found)
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

    /// Deletes what an engine left of a finished job: its ConfigMap, and these objects if they are still the ones that were
    /// listed. The ConfigMap goes first: no list shows it, so the others have to lead to it again. The first request that fails decides the result and does not
    /// prevent the others. Returns the objects that finalizers hold.
    pub async fn delete_engine_objects(
        &self,
        job_id: &JobId,
        namespace: &Namespace,
        objects: &[EngineObject],
    ) -> Result<Vec<HeldObject>, ClusterError> {
        waiting_for_cluster(async {
            let jobs: Api<EngineJob> = self.job_api(job_id, namespace).await?;
            let claims: Api<PersistentVolumeClaim> = self.job_api(job_id, namespace).await?;
            let config_maps: Api<ConfigMap> = self.job_api(job_id, namespace).await?;
            let params = DeleteParams::background();
            let mut deletions = vec![delete(&config_maps, job_id.as_str(), &params).await];
            for EngineObject { kind, name, uid, .. } in objects {
                let params = params.clone().preconditions(Preconditions { uid: uid.clone(), resource_version: None });
                deletions.push(match kind {
                    ObjectKind::Job => delete(&jobs, name, &params).await,
                    ObjectKind::Claim => delete(&claims, name, &params).await,
                });
            }
            let mut held = Vec::new();
            for deletion in deletions {
                if let Deletion::Held(object) = deletion? {
                    held.push(object);
                }
            }
            Ok(held)
        })
        .await
    }
}

/// Removes the fields that are not used here: there may be many Jobs, and their templates are large.
fn slim(mut job: EngineJob) -> EngineJob {
    (job.metadata.managed_fields, job.metadata.annotations) = (None, None);
    if let Some(spec) = &mut job.spec {
        spec.template = Default::default();
    }
    job
}
