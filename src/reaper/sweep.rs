//! One sweep: the order of the duties, and how an action is performed or only reported.

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::Instant;

use super::breaker::{Breaker, is_outage};
use super::budget::{Budget, Stop};
use super::report::{Duty, Outcome, Report, ReportBuilder};
use super::{Count, Reaper};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::domain::{JobId, Namespace};
use crate::kubernetes::{Cluster, ClusterError, HeldObject};
use crate::storage::{Storage, StorageError};

/// How long a sweep may take after its deadline to complete what it has begun.
const COMPLETION_TIME: Duration = Duration::from_secs(4);
/// The maximum number of actions that are performed concurrently.
pub(super) const CONCURRENCY: u32 = 8;

/// One sweep.
pub(super) struct Sweep<'a> {
    pub(super) db: &'a Database,
    pub(super) cluster: &'a Cluster,
    pub(super) storage: &'a Storage,
    pub(super) rules: &'a ReaperRules,
    pub(super) dry_run: bool,
    budget: Budget,
    pub(super) report: ReportBuilder,
    pub(super) breaker: Breaker,
}

/// Why an action failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActionError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("an output could not be deleted: {0}")]
    Output(#[from] StorageError),
    #[error("{0}")]
    Job(&'static str),
    /// The circuit breaker is open. The action stays due, and is reported once for all jobs.
    #[error("it was not tried")]
    NotTried,
}

/// The result of an action that did not fail.
#[derive(Debug)]
pub(super) enum Applied {
    /// It is done; with what the report says about it, if anything.
    Done(Option<String>),
    /// The job or object changed meanwhile: the next sweep decides again.
    Skipped(&'static str),
}

pub(super) type ActionResult = Result<Applied, ActionError>;

/// An action on a job that is due.
pub(super) struct Due<'s> {
    duty: Duty,
    job_id: JobId,
    /// Why it is due, for the report of a dry run.
    reason: Option<String>,
    action: BoxFuture<'s, ActionResult>,
}

impl<'s> Due<'s> {
    pub(super) fn new(duty: Duty, job_id: JobId, action: impl Future<Output = ActionResult> + Send + 's) -> Self {
        Self { duty, job_id, reason: None, action: action.boxed() }
    }

    pub(super) fn because(self, reason: Option<String>) -> Self {
        Self { reason, ..self }
    }
}

impl<'a> Sweep<'a> {
    pub(super) fn new(reaper: &'a Reaper, dry_run: bool, deadline: Instant) -> Self {
        let Reaper { db, cluster, storage, rules } = reaper;
        let (report, breaker) = (ReportBuilder::new(dry_run), Breaker::default());
        Self { db, cluster, storage, rules, dry_run, budget: Budget::until(deadline), report, breaker }
    }

    /// Runs all duties, and returns the report.
    pub(super) async fn run(&self) -> Result<Report, DatabaseError> {
        let environments = self.db.environments_to_sweep(&self.rules.default_namespace).await?;
        let duties = async {
            // The most urgent first. None takes more than half of the time that is left, so that each sweep reaches all.
            // Boxed, here and in the duties: nested futures take too much stack, and their types exceed the recursion
            // limit.
            let mut complete = true;
            complete &= self.run_duty(|_| self.measure_waits().boxed()).await;
            complete &= self.run_duty(|budget| self.finish_never_started(budget).boxed()).await;
            complete &= self.run_duty(|budget| self.sweep_environments(&environments, budget).boxed()).await;
            complete &= self.run_duty(|budget| self.update_workflow_objects(budget).boxed()).await;
            complete &= self.run_duty(|budget| self.expire_outputs(budget).boxed()).await;
            complete &= self.run_duty(|budget| self.scan_workflow_objects(&environments, budget).boxed()).await;
            complete &= self.run_duty(|budget| self.prune_nonces(budget).boxed()).await;
            complete &= self.run_duty(|budget| self.summarize_jobs(budget).boxed()).await;
            // Again: some of them are registered now.
            complete &= self.run_duty(|_| self.measure_waits().boxed()).await;
            complete
        };
        let complete = tokio::time::timeout_at(self.budget.deadline() + COMPLETION_TIME, duties.boxed()).await;
        let report = self.report.finish(complete == Ok(true) && self.budget.check().is_ok());
        for (duty, count) in report.kinds.iter().filter(|(_, count)| count.found > 0) {
            let Count { found, done, failed, left } = count;
            tracing::info!(kind = ?duty, found, done, failed, left, dry_run = self.dry_run, "sweep");
        }
        tracing::debug!(report.complete, "the sweep has ended");
        Ok(report)
    }

    /// Reports how long the oldest jobs have waited.
    async fn measure_waits(&self) -> Result<(), Stop> {
        self.report.waits(self.db.waits().await?);
        Ok(())
    }

    /// Runs a duty. Returns whether it came to its end. After an error of the database the other duties are still tried.
    async fn run_duty<'s>(&'s self, duty: impl FnOnce(Budget) -> BoxFuture<'s, Result<(), Stop>>) -> bool {
        let result = duty(self.budget.half()).await;
        if let Err(Stop::Database(error)) = &result {
            self.report.problem(error.to_string());
        }
        result.is_ok()
    }

    /// How many actions may be performed concurrently.
    pub(super) fn concurrency(&self) -> usize {
        CONCURRENCY.min(self.rules.requests_per_second.get()) as usize
    }

    /// Runs what changes something; a dry run does not poll it, and returns `None`.
    pub(super) async fn change<T>(&self, change: impl Future<Output = T>) -> Option<T> {
        if self.dry_run { None } else { Some(change.await) }
    }

    /// Counts these actions as due, and performs them.
    pub(super) async fn apply_all(&self, due: Vec<Due<'_>>, budget: Budget) -> Result<(), Stop> {
        self.count(&due);
        self.perform(due, budget).await
    }

    pub(super) fn count(&self, due: &[Due<'_>]) {
        for due in due {
            self.report.found(due.duty, 1);
        }
    }

    pub(super) async fn perform(&self, due: Vec<Due<'_>>, budget: Budget) -> Result<(), Stop> {
        budget.for_each(self.concurrency(), due, |due| self.apply(due).boxed()).await
    }

    /// Performs an action on a job, and records how it ended. A dry run only records that it is planned, and why.
    async fn apply(&self, Due { duty, job_id, reason, action }: Due<'_>) {
        let job_id = &job_id;
        let Some(result) = self.change(action).await else {
            return self.report.job(job_id, duty, Outcome::Planned, reason);
        };
        let error = match result {
            Ok(Applied::Done(remark)) => return self.report.job(job_id, duty, Outcome::Done, remark),
            Ok(Applied::Skipped(why)) => return self.report.job(job_id, duty, Outcome::Skipped, Some(why.to_owned())),
            Err(ActionError::NotTried) => return,
            Err(error) => error,
        };
        self.report.job(job_id, duty, Outcome::Failed, Some(error.to_string()));
        // After an outage the next sweep tries again; an error of this job alone delays the job.
        let postponed = match &error {
            ActionError::Database(_) => Ok(()),
            ActionError::Cluster(error) if is_outage(error) => Ok(()),
            _ => self.db.postpone(job_id, duty).await,
        };
        if let Err(error) = postponed {
            self.report.problem(error.to_string());
        }
    }

    /// Sends a request for a duty to a namespace, unless the circuit breaker is open for it.
    pub(super) async fn request<T>(
        &self,
        namespace: &Namespace,
        duty: Duty,
        request: impl Future<Output = Result<T, ClusterError>>,
    ) -> Result<T, ActionError> {
        if !self.breaker.allows(namespace, Some(duty)) {
            return Err(ActionError::NotTried);
        }
        let result = request.await;
        self.breaker.observe(namespace, Some(duty), &result);
        Ok(result?)
    }

    /// Reads a namespace; `None`, with the problem in the report, if it cannot be read within the budget.
    pub(super) async fn read<T>(
        &self,
        namespace: &Namespace,
        budget: Budget,
        request: impl Future<Output = Result<T, ClusterError>> + Send,
    ) -> Option<T> {
        if !self.breaker.allows(namespace, None) {
            return None;
        }
        // Limited: a slow namespace must not take the time of the others.
        let result = tokio::time::timeout_at(budget.deadline(), request.boxed()).await;
        let result = result.unwrap_or(Err(ClusterError::TimedOut));
        self.breaker.observe(namespace, None, &result);
        result.map_err(|error| self.report.problem(format!("{namespace}: {error}"))).ok()
    }
}

impl Database {
    /// Records that an action on a job failed that is due at a time: it is due again after 10 s, and after twice as long each
    /// time up to an hour. Others are decided again by each sweep.
    async fn postpone(&self, job_id: &JobId, duty: Duty) -> Result<(), DatabaseError> {
        let of_object = matches!(duty, Duty::Registrations | Duty::StatusSync | Duty::OldObjects);
        self.execute(sqlx::query!(
            "UPDATE reaperjobs
             SET failures = least(failures + 1, 20),
                 objectdue = CASE WHEN $2 THEN later.due ELSE objectdue END,
                 expirydue = CASE WHEN $3 THEN later.due ELSE expirydue END
             FROM (SELECT clock_timestamp() + make_interval(secs => least(10 * 2 ^ failures, 3600)) AS due
                   FROM reaperjobs WHERE workflowid = $1) AS later
             WHERE workflowid = $1 AND ($2 AND objectdue < 'infinity' OR $3 AND expirydue < 'infinity')",
            job_id.as_str(),
            of_object,
            duty == Duty::Expiries
        ))
        .await?;
        Ok(())
    }
}

/// What the report says about objects that finalizers hold; `None` if there are none.
pub(super) fn held_remark(held: &[HeldObject]) -> Option<String> {
    let held: Vec<String> = held.iter().map(HeldObject::to_string).collect();
    (!held.is_empty()).then(|| format!("held by others' finalizers: {}", held.join("; ")))
}
