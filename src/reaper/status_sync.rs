//! Status sync: WorkFlow objects get the status that the database has.

use tokio::time::Instant;

use super::availability::NamespaceSet;
use super::report::{Duty, Outcome};
use super::sweep::{ActionError, Progress, Sweep};
use crate::db::{DatabaseError, StatusToSync};
use crate::domain::{JobId, Status};
use crate::kubernetes::{ClusterError, WorkFlowStatus};

impl Sweep<'_> {
    /// Writes the status of jobs into their WorkFlow objects.
    pub(super) async fn sync_statuses(&self, until: Instant) -> Result<Progress, DatabaseError> {
        let read_only = NamespaceSet::default();
        // In the order of the ids, from a random one to the end and then from the start up to it: jobs that always fail
        // do not delay the same other jobs in every sweep.
        let start = JobId::random();
        let (mut last, mut end) = (start.clone(), None);
        loop {
            let jobs = self.db().statuses_to_sync(&last, end.as_ref()).await?;
            let Some(job) = jobs.last() else {
                if end.is_some() {
                    return Ok(Progress::Complete);
                }
                (last, end) = (JobId::stored(""), Some(start.clone()));
                continue;
            };
            last = job.job_id.clone();
            self.report.found(Duty::StatusSync, jobs.len() as u64);
            if self.availability.is_cluster_down() {
                return Ok(Progress::Partial);
            }
            let sync = |job: StatusToSync| self.sync_or_report(job, &read_only);
            if self.for_each_concurrently(jobs, until, sync).await == Progress::Partial {
                return Ok(Progress::Partial);
            }
        }
    }

    /// Syncs one status. Only failures are reported with their job. A namespace that refuses writes is skipped from
    /// then on, and the failure does not delay what else is due for the job.
    async fn sync_or_report(&self, job: StatusToSync, read_only: &NamespaceSet) {
        let namespace = self.namespace_of(&job.job_id, job.namespace.as_ref());
        // Planned syncs are counted, but too many to be listed.
        if self.dry_run || namespace.is_some_and(|namespace| read_only.contains(namespace)) {
            return;
        }
        match self.sync(&job).await {
            Ok(()) => self.report.ended(Duty::StatusSync, 1, Outcome::Done),
            Err(ActionError::NamespaceForbidden) => {}
            Err(error) => {
                if let (ActionError::Cluster(ClusterError::Refused { code: 403, .. }), Some(namespace)) =
                    (&error, namespace)
                {
                    read_only.insert(namespace);
                }
                self.report.job(&job.job_id, Duty::StatusSync, Outcome::Failed, Some(error.to_string()));
            }
        }
    }

    async fn sync(&self, job: &StatusToSync) -> Result<(), ActionError> {
        if let Some(namespace) = self.namespace_of(&job.job_id, job.namespace.as_ref()) {
            if self.availability.forbidden.contains(namespace) {
                return Err(ActionError::NamespaceForbidden);
            }
            let status = WorkFlowStatus {
                status: job.status.map(Status::code),
                status_text: job.status_text.clone(),
                reason: job.reason.clone(),
                date_finished: job.date_finished.clone(),
            };
            // Without an object, nothing is left to sync.
            let written = self.cluster().update_workflow_status(&job.job_id, namespace, &status).await;
            self.availability.observe(written)?;
        }
        Ok(self.db().record_status_synced(job).await?)
    }
}
