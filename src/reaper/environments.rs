//! Sweeps of environments: their unfinished jobs, and orphaned objects of finished ones.

use std::collections::BTreeMap;

use futures_util::FutureExt;
use tokio::time::Instant;

use super::action::Action;
use super::report::Duty;
use super::sweep::{Progress, Sweep};
use super::time_limits;
use super::unfinished::{self, Observed};
use crate::db::{Cursor, DatabaseError, KnownJob, SweptEnvironment, UnfinishedJob};
use crate::domain::{JobId, Namespace};
use crate::kubernetes::{ClusterError, Step, StepState};

/// The steps in a namespace, by job.
type Steps = BTreeMap<JobId, Vec<Step>>;

impl Sweep<'_> {
    /// Sweeps the environments in turn.
    pub(super) async fn sweep_environments(
        &self,
        environments: &[SweptEnvironment],
        until: Instant,
    ) -> Result<Progress, DatabaseError> {
        let mut progress = Progress::Complete;
        for environment in environments {
            if Instant::now() >= until {
                return Ok(Progress::Partial);
            }
            progress = progress.and(self.sweep_environment(environment, until).await?);
        }
        Ok(progress)
    }

    async fn sweep_environment(
        &self,
        environment: &SweptEnvironment,
        until: Instant,
    ) -> Result<Progress, DatabaseError> {
        let namespace = &environment.namespace;
        let Some(steps) = self.list_steps(environment, until).await? else {
            let progress = self.sweep_unfinished_jobs(environment, None, until).await?;
            if !self.dry_run {
                self.db().record_environment_skipped(namespace).await?;
            }
            return Ok(progress);
        };
        let progress = self.sweep_unfinished_jobs(environment, Some(&steps), until).await?;
        let progress = progress.and(self.delete_orphaned_objects(namespace, &steps, until).await?);
        if !self.dry_run {
            self.db().record_environment_swept(namespace).await?;
        }
        Ok(progress)
    }

    /// Lists the steps in an environment; `None` if it cannot be read.
    async fn list_steps(&self, environment: &SweptEnvironment, until: Instant) -> Result<Option<Steps>, DatabaseError> {
        let namespace = &environment.namespace;
        if environment.paused {
            self.availability.forbidden.insert(namespace);
        }
        if environment.paused || self.availability.is_cluster_down() {
            return Ok(None);
        }
        // Limited: a slow environment must not take the time of the others.
        let list = tokio::time::timeout_at(until, self.cluster().list_steps(namespace).boxed());
        let error = match self.availability.observe(list.await.unwrap_or(Err(ClusterError::TimedOut))) {
            Ok(steps) => return Ok(Some(steps)),
            Err(error) => error,
        };
        self.namespace_unreadable(namespace, &error);
        if matches!(error, ClusterError::Refused { .. } | ClusterError::InvalidNamespace) && !self.dry_run {
            self.db().record_environment_failure(namespace).await?;
        }
        Ok(None)
    }

    /// Decides on each unfinished job of an environment, and acts. `steps` is `None` if it cannot be read.
    async fn sweep_unfinished_jobs(
        &self,
        environment: &SweptEnvironment,
        steps: Option<&Steps>,
        until: Instant,
    ) -> Result<Progress, DatabaseError> {
        let announced = time_limits::announced_limit(environment.announcement.as_deref());
        let has_shared_limit = announced.is_some() || self.rules().algorithm_limit.is_some();
        let is_default = environment.namespace == self.rules().default_namespace;
        let observed = |job_id: &JobId| match steps {
            Some(steps) => Observed::Steps(steps.get(job_id).map_or(&[], Vec::as_slice)),
            None => Observed::Unknown,
        };
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            let (jobs, next) =
                self.db().unfinished_jobs(&environment.namespace, is_default, has_shared_limit, &from).await?;
            let due: Vec<(UnfinishedJob, Action)> = jobs
                .into_iter()
                .filter_map(|job| {
                    let action = unfinished::decide(&job, observed(&job.job_id), announced, self.rules())?;
                    Some((job, action))
                })
                .collect();
            for duty in due.iter().filter_map(|(_, action)| action.duty()) {
                self.report.found(duty, 1);
            }
            let act = |(job, action)| self.act(job, action);
            if self.for_each_concurrently(due, until, act).await == Progress::Partial {
                return Ok(Progress::Partial);
            }
            after = next;
        }
        Ok(Progress::Complete)
    }

    /// Deletes the objects of settled jobs that have steps, unless that is due anyway.
    async fn delete_orphaned_objects(
        &self,
        namespace: &Namespace,
        steps: &Steps,
        until: Instant,
    ) -> Result<Progress, DatabaseError> {
        let is_terminating = |step: &Step| step.state == StepState::Terminating;
        let remaining = steps.iter().filter(|(_, steps)| !steps.iter().all(is_terminating));
        let names: Vec<JobId> = remaining.map(|(job_id, _)| job_id.clone()).collect();
        let known = self.db().known_jobs(&names).await?;
        let due: Vec<KnownJob> = known.into_iter().filter(|job| job.settled && !job.due).collect();
        self.report.found(Duty::Cleanups, due.len() as u64);
        let clean_up = |job: KnownJob| async move {
            let action = self.delete_engine_objects(&job.job_id, Some(namespace));
            self.apply(Duty::Cleanups, &job.job_id, None, action).await;
        };
        Ok(self.for_each_concurrently(due, until, clean_up).await)
    }
}
