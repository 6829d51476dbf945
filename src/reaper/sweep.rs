//! One sweep: the order of the duties, their time, and how an action is performed or only reported.

use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use tokio::time::Instant;

use super::Reaper;
use super::availability::{Availability, is_outage};
use super::report::{Duty, Outcome, Report, ReportBuilder};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError, SweptEnvironment};
use crate::domain::{JobId, Namespace, effective_namespace};
use crate::kubernetes::{Cluster, ClusterError, HeldObject};
use crate::storage::StorageError;

/// How long a sweep may take after its deadline to complete what it has begun.
const COMPLETION_TIME: Duration = Duration::from_secs(4);
/// The maximum number of actions that are performed concurrently.
pub(super) const CONCURRENCY: u32 = 8;

/// One sweep.
pub(super) struct Sweep<'a> {
    pub(super) reaper: &'a Reaper,
    /// The name under which the lease is held.
    pub(super) holder: String,
    pub(super) dry_run: bool,
    /// The time after which nothing new is begun.
    pub(super) deadline: Instant,
    pub(super) report: ReportBuilder,
    pub(super) availability: Availability,
}

/// How far a sweep got with a duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(super) enum Progress {
    /// To the end.
    Complete,
    /// There was no time for everything, or the cluster is down: the rest is left for the next sweep.
    Partial,
}

impl Progress {
    /// Complete if both parts are.
    pub(super) fn and(self, other: Self) -> Self {
        match self {
            Self::Complete => other,
            Self::Partial => Self::Partial,
        }
    }
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
    /// It was not tried: its namespace cannot be read, which is reported once for all its jobs.
    #[error("its namespace cannot be read")]
    NamespaceForbidden,
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

impl<'a> Sweep<'a> {
    pub(super) fn new(reaper: &'a Reaper, holder: String, dry_run: bool, deadline: Instant) -> Self {
        let report = ReportBuilder::new(dry_run);
        Self { reaper, holder, dry_run, deadline, report, availability: Availability::default() }
    }

    /// Runs all duties, and returns the report.
    pub(super) async fn run(&self) -> Result<Report, DatabaseError> {
        let environments = self.db().environments_to_sweep(&self.rules().default_namespace).await?;
        let duties = self.run_duties(&environments).boxed();
        let complete = match tokio::time::timeout_at(self.deadline + COMPLETION_TIME, duties).await {
            Ok(progress) => progress == Progress::Complete && Instant::now() < self.deadline,
            Err(_) => false,
        };
        let report = self.report.finish(complete);
        for (duty, count) in report.kinds.iter().filter(|(_, count)| count.found > 0) {
            let super::Count { found, done, failed, left } = count;
            tracing::info!(kind = ?duty, found, done, failed, left, dry_run = self.dry_run, "sweep");
        }
        tracing::debug!(complete, "the sweep has ended");
        Ok(report)
    }

    /// Runs the duties, the most urgent first. None takes more than half of the time that is left, so that each sweep
    /// reaches all of them.
    async fn run_duties(&self, environments: &[SweptEnvironment]) -> Progress {
        // Boxed, here and in the duties: nested futures take too much stack, and their types exceed the recursion
        // limit.
        let results = [
            // First, in case there is no time for it at the end.
            self.run_duty(self.measure_registrations().boxed()).await,
            self.run_duty(self.sweep_environments(environments, self.half_time()).boxed()).await,
            self.run_duty(self.register_jobs(self.half_time()).boxed()).await,
            self.run_duty(self.sync_statuses(self.half_time()).boxed()).await,
            self.run_duty(self.sweep_finished_jobs(self.half_time()).boxed()).await,
            self.run_duty(self.scan_workflow_objects(environments, self.half_time()).boxed()).await,
            self.run_duty(self.prune_nonces(self.half_time()).boxed()).await,
            self.run_duty(self.summarize_jobs(self.deadline).boxed()).await,
            self.run_duty(self.measure_registrations().boxed()).await,
        ];
        results.into_iter().fold(Progress::Complete, Progress::and)
    }

    /// Runs a duty. An error of the database is reported as a problem: the other duties are still tried.
    async fn run_duty(&self, duty: BoxFuture<'_, Result<Progress, DatabaseError>>) -> Progress {
        duty.await.unwrap_or_else(|error| {
            self.report.problem(error.to_string());
            Progress::Partial
        })
    }

    fn half_time(&self) -> Instant {
        halfway_to(self.deadline)
    }

    pub(super) fn db(&self) -> &Database {
        &self.reaper.db
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.reaper.cluster
    }

    pub(super) fn rules(&self) -> &ReaperRules {
        &self.reaper.rules
    }

    /// Performs an action on a job and records how it ended. A dry run only records that it is planned, with `reason`;
    /// the future is not polled then.
    pub(super) async fn apply(
        &self,
        duty: Duty,
        job_id: &JobId,
        reason: Option<String>,
        action: impl Future<Output = ActionResult>,
    ) {
        if self.dry_run {
            return self.report.job(job_id, duty, Outcome::Planned, reason);
        }
        let error = match action.await {
            Ok(Applied::Done(remark)) => return self.report.job(job_id, duty, Outcome::Done, remark),
            Ok(Applied::Skipped(why)) => return self.report.job(job_id, duty, Outcome::Skipped, Some(why.to_owned())),
            Err(ActionError::NamespaceForbidden) => return,
            Err(error) => error,
        };
        self.report.job(job_id, duty, Outcome::Failed, Some(error.to_string()));
        // After an outage the next sweep tries again; an error of this job alone delays the job.
        let concerns_job_alone = match &error {
            ActionError::Database(_) => false,
            ActionError::Cluster(error) => !is_outage(error),
            _ => true,
        };
        if !concerns_job_alone {
            return;
        }
        let recorded = match duty {
            Duty::Registrations => self.db().record_registration_failure(job_id).await,
            _ => self.db().record_job_failure(job_id).await,
        };
        if let Err(error) = recorded {
            self.report.problem(error.to_string());
        }
    }

    /// Performs actions concurrently, and begins none after `until`.
    pub(super) async fn for_each_concurrently<T, F>(
        &self,
        items: Vec<T>,
        until: Instant,
        action: impl Fn(T) -> F,
    ) -> Progress
    where
        F: Future<Output = ()> + Send,
    {
        let limit = CONCURRENCY.min(self.rules().requests_per_second.get()) as usize;
        let mut progress = Progress::Complete;
        let in_time = items.into_iter().take_while(|_| {
            if Instant::now() >= until {
                progress = Progress::Partial;
            }
            progress == Progress::Complete
        });
        // Boxed: the compiler cannot prove that the futures are Send otherwise.
        let actions = in_time.map(|item| action(item).boxed());
        stream::iter(actions).buffer_unordered(limit).collect::<()>().await;
        progress
    }

    /// Records that a namespace could not be read. If that is not temporary, the sweep does not read it again.
    pub(super) fn namespace_unreadable(&self, namespace: &Namespace, error: &ClusterError) {
        if matches!(error, ClusterError::Refused { code: 401 | 403, .. }) {
            self.availability.forbidden.insert(namespace);
        }
        self.report.problem(format!("{namespace}: {error}"));
    }

    /// The namespace of a job's objects; `None` if it cannot have any, because its id or its namespace is not a valid
    /// name.
    pub(super) fn namespace_of<'n>(&'n self, job_id: &JobId, row: Option<&'n Namespace>) -> Option<&'n Namespace> {
        let namespace = effective_namespace(row, &self.rules().default_namespace);
        (job_id.can_name_objects() && namespace.is_valid()).then_some(namespace)
    }
}

/// What the report says about objects that finalizers hold; `None` if there are none.
pub(super) fn held_remark(held: &[HeldObject]) -> Option<String> {
    let held: Vec<String> = held.iter().map(HeldObject::to_string).collect();
    (!held.is_empty()).then(|| format!("held by others' finalizers: {}", held.join("; ")))
}

/// The moment when half of the time until `until` has passed.
pub(super) fn halfway_to(until: Instant) -> Instant {
    let now = Instant::now();
    now + until.saturating_duration_since(now) / 2
}
