//! Calls on WorkFlow objects (docs/contract/engine.md, "WorkFlow objects").

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::client::{LIST_PAGE_SIZE, delete, each_item, next_page, unchanged, within};
use super::{Cluster, ClusterError, Deletion, WorkFlow, WorkFlowSpec, WorkFlowStatus};
use crate::domain::{JobId, Namespace};
use crate::telemetry::waiting_for_cluster;

/// How long a read for an HTTP request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// The label that marks an object as created by this service.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "operator-service");

/// A page of a list.
#[derive(Debug)]
pub struct ListPage<T> {
    /// The page's items.
    pub items: Vec<T>,
    /// The token of the next page; `None` on the last page.
    pub next: Option<String>,
}

/// What a list shows of a WorkFlow object.
#[derive(Debug, Clone)]
pub struct WorkflowListing {
    /// The job that the object is named after.
    pub job_id: JobId,
    /// The object's uid.
    pub uid: String,
    /// The object's version when it was read.
    pub resource_version: String,
    /// Whether this service created the object.
    pub managed: bool,
    /// Seconds since the object was created, by the cluster's clock.
    pub age_seconds: f64,
}

impl Cluster {
    /// Creates a job's WorkFlow object, unless it exists already. The caller limits the time.
    pub async fn create_workflow(
        &self,
        job_id: &JobId,
        namespace: &Namespace,
        spec: WorkFlowSpec,
    ) -> Result<(), ClusterError> {
        let mut object = WorkFlow::new(job_id.as_str(), spec);
        let labels = [("workflow", job_id.as_str()), MANAGED_BY];
        let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned()));
        object.metadata.labels = Some(BTreeMap::from(labels));
        waiting_for_cluster(async {
            let workflows: Api<WorkFlow> = self.job_api(job_id, namespace).await?;
            match workflows.create(&PostParams::default(), &object).await {
                Ok(_) => Ok(()),
                Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Reads a job's WorkFlow object; `None` if there is none. Fails after 20 seconds.
    pub async fn get_workflow(&self, job_id: &JobId, namespace: &Namespace) -> Result<Option<WorkFlow>, ClusterError> {
        within(REQUEST_TIMEOUT, async {
            let workflows: Api<WorkFlow> = self.job_api(job_id, namespace).await?;
            Ok(workflows.get_opt(job_id.as_str()).await?)
        })
        .await
    }

    /// Lists the names of all WorkFlow objects in these namespaces. A namespace that this service may not read is
    /// logged and left out: environments that announced themselves long ago may not exist any more. Fails after 20
    /// seconds.
    pub async fn workflow_names(&self, namespaces: BTreeSet<Namespace>) -> Result<Vec<String>, ClusterError> {
        within(REQUEST_TIMEOUT, async {
            let mut names = Vec::new();
            for namespace in namespaces {
                match self.names_in(&namespace).await {
                    Ok(found) => names.extend(found),
                    Err(error @ (ClusterError::Refused { code: 403, .. } | ClusterError::InvalidNamespace)) => {
                        tracing::warn!(%namespace, %error, "the workflows of an environment cannot be listed");
                    }
                    Err(error) => return Err(error),
                }
            }
            Ok(names)
        })
        .await
    }

    async fn names_in(&self, namespace: &Namespace) -> Result<Vec<String>, ClusterError> {
        let workflows: &Api<WorkFlow> = &self.api(namespace).await?;
        let page = |params| async move { workflows.list_metadata(&params).await };
        let mut names = Vec::new();
        each_item(None, page, |item| names.push(item.name_any())).await?;
        Ok(names)
    }

    /// Reads one page of a namespace's WorkFlow objects: those that are named and labelled after a job, and are not
    /// being deleted. `from` is the previous page's [`ListPage::next`].
    pub async fn list_workflows(
        &self,
        namespace: &Namespace,
        from: Option<String>,
    ) -> Result<ListPage<WorkflowListing>, ClusterError> {
        let mut params = ListParams::default().labels("workflow").limit(LIST_PAGE_SIZE);
        params.continue_token = from;
        let page = waiting_for_cluster(async {
            let workflows: Api<WorkFlow> = self.api(namespace).await?;
            Ok::<_, ClusterError>(workflows.list_metadata(&params).await?)
        })
        .await?;
        let now = self.now();
        let items = page.items.iter().filter(|item| item.metadata.deletion_timestamp.is_none()).filter_map(|item| {
            let created = item.metadata.creation_timestamp.as_ref()?;
            Some(WorkflowListing {
                job_id: JobId::of_object(&item.name_any())?,
                uid: item.uid()?,
                resource_version: item.resource_version()?,
                managed: item.labels().get(MANAGED_BY.0).is_some_and(|by| by == MANAGED_BY.1),
                age_seconds: now.duration_since(created.0).as_secs_f64(),
            })
        });
        Ok(ListPage { items: items.collect(), next: next_page(&page) })
    }

    /// Writes the status of a job's WorkFlow object. Returns false if there is no such object.
    pub async fn update_workflow_status(
        &self,
        job_id: &JobId,
        namespace: &Namespace,
        status: &WorkFlowStatus,
    ) -> Result<bool, ClusterError> {
        // A null removes a field that has no value any more.
        let patch = Patch::Merge(json!({ "status": {
            "status": status.status,
            "statusText": status.status_text,
            "reason": status.reason,
            "dateFinished": status.date_finished,
        }}));
        waiting_for_cluster(async {
            let workflows: Api<WorkFlow> = self.job_api(job_id, namespace).await?;
            match workflows.patch_status(job_id.as_str(), &PatchParams::default(), &patch).await {
                Ok(_) => Ok(true),
                Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Deletes a job's WorkFlow object; with `seen`, only if it has not changed since it was listed.
    pub async fn delete_workflow(
        &self,
        job_id: &JobId,
        namespace: &Namespace,
        seen: Option<&WorkflowListing>,
    ) -> Result<Deletion, ClusterError> {
        let mut params = DeleteParams::background();
        params.preconditions = seen.map(|seen| unchanged(&seen.uid, &seen.resource_version));
        waiting_for_cluster(async {
            let workflows: Api<WorkFlow> = self.job_api(job_id, namespace).await?;
            delete(&workflows, job_id.as_str(), &params).await
        })
        .await
    }
}
