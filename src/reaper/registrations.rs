//! Registrations: unfinished jobs without a WorkFlow object get one.

use tokio::time::Instant;

use super::report::Duty;
use super::sweep::{ActionError, ActionResult, Applied, Progress, Sweep};
use crate::db::{Cursor, DatabaseError, UnregisteredJob};
use crate::domain::{effective_namespace, workflow};
use crate::kubernetes::WorkFlowSpec;

impl Sweep<'_> {
    /// Reports for how long the oldest job has waited for its WorkFlow object.
    pub(super) async fn measure_registrations(&self) -> Result<Progress, DatabaseError> {
        let seconds = self.db().oldest_unregistered().await?;
        self.report.oldest_unregistered(seconds.max(0.0) as u64);
        Ok(Progress::Complete)
    }

    /// Registers the jobs that have no WorkFlow object, oldest first.
    pub(super) async fn register_jobs(&self, until: Instant) -> Result<Progress, DatabaseError> {
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            let (jobs, next) = self.db().unregistered_jobs(&from).await?;
            self.report.found(Duty::Registrations, jobs.len() as u64);
            if self.availability.is_cluster_down() {
                return Ok(Progress::Partial);
            }
            let register = |job: UnregisteredJob| async move {
                self.apply(Duty::Registrations, &job.job_id, None, self.register(&job)).await;
            };
            if self.for_each_concurrently(jobs, until, register).await == Progress::Partial {
                return Ok(Progress::Partial);
            }
            after = next;
        }
        Ok(Progress::Complete)
    }

    async fn register(&self, job: &UnregisteredJob) -> ActionResult {
        let namespace = effective_namespace(job.namespace.as_ref(), &self.rules().default_namespace);
        let metadata = job.workflow.as_deref().and_then(workflow::stored);
        let metadata = metadata.ok_or(ActionError::Job("its workflow cannot be read"))?;
        let spec = WorkFlowSpec {
            owner: job.owner.as_ref().map(ToString::to_string),
            agreement_id: Some(job.agreement_id.to_string()),
            metadata,
        };
        self.availability.observe(self.cluster().create_workflow(&job.job_id, namespace, spec).await)?;
        self.db().record_registration(&job.job_id).await?;
        Ok(Applied::Done(None))
    }
}
