//! What the reaper asks of the cluster. A [`Cluster::paced`] one sets the time limit of each request; what takes many
//! is given up by whoever asks.

use std::collections::BTreeMap;

use bytes::BytesMut;
use futures_util::io::AsyncReadExt;
use k8s_openapi::api::batch::v1::Job as EngineJob;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{Cluster, ClusterError, Component, Step, WorkFlow, WorkFlowStatus, steps};
use crate::domain::JobId;
use crate::telemetry::waiting_for_cluster;

/// Objects per page of a list.
const PAGE: u32 = 250;
/// The engine's Jobs and their pods.
const STEPS: &str = "workflow,component in (configure,algorithm,filter,publish)";
/// How much of a log is kept, in bytes: its end.
const LOG_KEPT: usize = 64 * 1024;
/// How far back in a log that may be, in lines; fewer where so many are more than is read, in bytes.
const LOG_LINES: [i64; 3] = [10_000, 100, 1];
const LOG_READ: usize = 16 * 1024 * 1024;
/// What marks an object as this service's own.
pub(super) const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "operator-service");
/// Finalizers of Kubernetes itself: what they wait for comes by itself.
const COMMON_FINALIZERS: [&str; 4] =
    ["kubernetes.io/pvc-protection", "foregroundDeletion", "orphan", "batch.kubernetes.io/job-tracking"];

/// What became of an object that was to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is gone, or goes as soon as what hangs on it has.
    Gone,
    /// It is not the one that was looked at any more.
    Changed,
    /// It goes when somebody takes these finalizers off.
    Held(Vec<String>),
}

/// A page of a list.
#[derive(Debug)]
pub struct Page<T> {
    /// What is on it.
    pub items: Vec<T>,
    /// Where the list goes on; `None` at its end.
    pub next: Option<String>,
}

/// A WorkFlow object as a list shows it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its version, as it was looked at.
    pub resource_version: String,
    /// Whether this service made it.
    pub ours: bool,
    /// How many seconds ago it was made, by the cluster's clock.
    pub age: f64,
}

impl Cluster {
    /// The time by the cluster's clock.
    fn now(&self) -> Timestamp {
        self.pace.as_ref().map_or_else(Timestamp::now, super::RateLimit::now)
    }

    /// All the engine's Jobs in a namespace, by job.
    pub async fn steps(&self, namespace: &str) -> Result<BTreeMap<String, Vec<Step>>, ClusterError> {
        waiting_for_cluster(async {
            let jobs: Vec<EngineJob> = all(&self.namespaced(namespace).await?).await?;
            let pods: Vec<Pod> = match jobs.iter().any(steps::is_open) {
                true => all(&self.namespaced(namespace).await?).await?,
                false => Vec::new(),
            };
            let now = self.now();
            let mut by_job: BTreeMap<String, Vec<Step>> = BTreeMap::new();
            for step in jobs.iter().filter_map(|job| steps::step(job, &pods, now)) {
                by_job.entry(step.job_id.to_string()).or_default().push(step);
            }
            Ok(by_job)
        })
        .await
    }

    /// Whether there is any of the engine's Jobs for a job.
    pub async fn has_steps(&self, job_id: &JobId, namespace: &str) -> Result<bool, ClusterError> {
        let jobs: Api<EngineJob> = self.namespaced(namespace).await?;
        let params = ListParams::default().labels(&format!("workflow={job_id}")).limit(1);
        Ok(!waiting_for_cluster(jobs.list_metadata(&params)).await?.items.is_empty())
    }

    /// Deletes a step's Job with its pods, if it is still the one that was looked at.
    pub async fn end_step(&self, step: &Step, namespace: &str) -> Result<Deleted, ClusterError> {
        let preconditions =
            Preconditions { uid: Some(step.uid.clone()), resource_version: Some(step.resource_version.clone()) };
        let params = DeleteParams::foreground().preconditions(preconditions);
        let jobs: Api<EngineJob> = self.namespaced(namespace).await?;
        delete(&jobs, &step.component.job_name(&step.job_id), &params).await
    }

    /// The last 64 KiB of the log of a step's youngest pod; `None` if there is none, or it has not begun.
    pub async fn end_of_log(&self, step: &Step, namespace: &str) -> Result<Option<Vec<u8>>, ClusterError> {
        waiting_for_cluster(async {
            let pods: Api<Pod> = self.namespaced(namespace).await?;
            let Some(name) = youngest(&pods, &step.job_id, step.component).await? else { return Ok(None) };
            // Lines may be long, and only lines can be counted from the end.
            for lines in LOG_LINES {
                let params = LogParams { tail_lines: Some(lines), ..LogParams::default() };
                let stream = match pods.log_stream(&name, &params).await {
                    Ok(stream) => stream,
                    // A pod that is gone, or has not started.
                    Err(kube::Error::Api(status)) if matches!(status.code, 400 | 404) => return Ok(None),
                    Err(error) => return Err(error.into()),
                };
                let mut stream = std::pin::pin!(stream.take(LOG_READ as u64));
                let (mut end, mut chunk, mut all) = (BytesMut::new(), vec![0; LOG_KEPT], 0);
                loop {
                    let read = stream.read(&mut chunk).await.map_err(kube::Error::ReadEvents)?;
                    if read == 0 {
                        break;
                    }
                    all += read;
                    end.extend_from_slice(&chunk[..read]);
                    let _ = end.split_to(end.len().saturating_sub(LOG_KEPT));
                }
                if all < LOG_READ || lines == 1 {
                    return Ok(Some(end.to_vec()));
                }
            }
            Ok(None)
        })
        .await
    }

    /// Removes what the engine made for a finished job: Jobs with their pods, claims, ConfigMap. At most nine requests;
    /// one that fails does not keep the others from being made. Says what goes only when somebody takes finalizers off.
    pub async fn tidy(&self, job_id: &JobId, namespace: &str) -> Result<Vec<String>, ClusterError> {
        let params = DeleteParams::background();
        let jobs: Api<EngineJob> = self.namespaced(namespace).await?;
        let claims: Api<PersistentVolumeClaim> = self.namespaced(namespace).await?;
        let config_maps: Api<ConfigMap> = self.namespaced(namespace).await?;
        let mut held = Vec::new();
        let mut result = Ok(());
        let mut note = |kind: &str, name: String, deleted: Result<Deleted, ClusterError>| match deleted {
            Ok(Deleted::Held(by)) => held.push(format!("{kind} {name} ({})", by.join(", "))),
            Ok(_) => {}
            Err(error) => {
                if result.is_ok() {
                    result = Err(error);
                }
            }
        };
        for component in Component::ALL {
            let name = component.job_name(job_id);
            let deleted = delete(&jobs, &name, &params).await;
            note("Job", name, deleted);
        }
        for name in super::objects::claims(job_id) {
            let deleted = delete(&claims, &name, &params).await;
            note("PersistentVolumeClaim", name, deleted);
        }
        let deleted = delete(&config_maps, job_id.as_str(), &params).await;
        note("ConfigMap", job_id.to_string(), deleted);
        result.map(|()| held)
    }

    /// Deletes a job's WorkFlow object; with `seen`, only if it is still that one.
    pub async fn delete_workflow(
        &self,
        name: &str,
        namespace: &str,
        seen: Option<&Listed>,
    ) -> Result<Deleted, ClusterError> {
        let mut params = DeleteParams::background();
        params.preconditions = seen.map(|seen| Preconditions {
            uid: Some(seen.uid.clone()),
            resource_version: Some(seen.resource_version.clone()),
        });
        let workflows: Api<WorkFlow> = self.namespaced(namespace).await?;
        delete(&workflows, name, &params).await
    }

    /// Lets a job's WorkFlow object say what the book says; false if there is none.
    pub async fn mirror(&self, job_id: &str, namespace: &str, status: &WorkFlowStatus) -> Result<bool, ClusterError> {
        let workflows: Api<WorkFlow> = self.namespaced(namespace).await?;
        // Null takes away what is not so any more.
        let patch = Patch::Merge(json!({ "status": {
            "status": status.status,
            "statusText": status.status_text,
            "reason": status.reason,
            "dateFinished": status.date_finished,
        }}));
        match waiting_for_cluster(workflows.patch_status(job_id, &PatchParams::default(), &patch)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// A page of the WorkFlow objects of a namespace.
    pub async fn workflows(&self, namespace: &str, from: Option<String>) -> Result<Page<Listed>, ClusterError> {
        let api: Api<WorkFlow> = self.namespaced(namespace).await?;
        let mut params = ListParams::default().labels("workflow").limit(PAGE);
        params.continue_token = from;
        let page = waiting_for_cluster(api.list_metadata(&params)).await?;
        let now = self.now();
        let items = page.items.iter().filter(|item| item.metadata.deletion_timestamp.is_none()).filter_map(|item| {
            let made = item.metadata.creation_timestamp.as_ref()?;
            Some(Listed {
                name: item.name_any(),
                uid: item.uid()?,
                resource_version: item.resource_version()?,
                ours: item.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1),
                age: now.duration_since(made.0).as_secs_f64(),
            })
        });
        Ok(Page { items: items.collect(), next: page.metadata.continue_.filter(|token| !token.is_empty()) })
    }
}

/// All pages of a list of what belongs to steps.
async fn all<K>(api: &Api<K>) -> Result<Vec<K>, ClusterError>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + steps::Slim,
{
    let mut params = ListParams::default().labels(STEPS).limit(PAGE);
    let mut items = Vec::new();
    loop {
        let page = api.list(&params).await?;
        items.extend(page.items.into_iter().map(steps::Slim::slim));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(items),
        }
    }
}

/// The name of the youngest pod of a step.
async fn youngest(pods: &Api<Pod>, job_id: &JobId, component: Component) -> Result<Option<String>, ClusterError> {
    let labels = format!("workflow={job_id},component={}", component.as_str());
    let found = pods.list_metadata(&ListParams::default().labels(&labels).limit(PAGE)).await?;
    let youngest = found.items.into_iter().max_by_key(|pod| pod.metadata.creation_timestamp.clone());
    Ok(youngest.map(|pod| pod.name_any()))
}

/// Deletes an object; one that is not there is gone.
async fn delete<K>(api: &Api<K>, name: &str, params: &DeleteParams) -> Result<Deleted, ClusterError>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + Resource,
{
    match waiting_for_cluster(api.delete(name, params)).await {
        Ok(deleted) => {
            let held: Vec<String> = deleted
                .left()
                .iter()
                .flat_map(|object| object.finalizers())
                .filter(|finalizer| !COMMON_FINALIZERS.contains(&finalizer.as_str()))
                .cloned()
                .collect();
            Ok(if held.is_empty() { Deleted::Gone } else { Deleted::Held(held) })
        }
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(Deleted::Gone),
        Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Deleted::Changed),
        Err(error) => Err(error.into()),
    }
}
