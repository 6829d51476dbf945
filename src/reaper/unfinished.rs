//! Unfinished jobs that were dispatched: the decision on each, by its row and by the steps that the cluster shows.
//!
//! Ages of rows are measured by the database's clock, ages of objects by the cluster's.

use futures_util::FutureExt;

use super::budget::{Budget, Stop};
use super::job::{Action, Environment, Seen, StepEnd, UnfinishedJob};
use super::report::{Duty, Outcome};
use super::sweep::Sweep;
use super::time_limits::TimeLimit;
use super::{orphans, requeues, stuck_steps, time_limits};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError, PAGE_ROWS, end_of_page};
use crate::domain::{JobId, Namespace, Status, StopRequest};
use crate::kubernetes::{Step, StepState, Steps};

/// What a sweep has read of an environment.
#[derive(Debug, Clone, Copy)]
pub(super) enum Observed<'a> {
    /// Nothing: it could not be read.
    Nothing,
    /// The steps of its jobs.
    Steps(&'a Steps),
}

/// Decides what is to be done with a job.
pub(super) fn decide(
    job: &UnfinishedJob,
    observed: Observed<'_>,
    environment: &Environment,
    rules: &ReaperRules,
) -> Option<Action> {
    let steps = match observed {
        Observed::Steps(steps) => Some(steps.get(&job.job_id).map_or(&[][..], Vec::as_slice)),
        Observed::Nothing => None,
    };
    match steps {
        // A job with steps is begun, even if its status does not say so yet.
        None | Some([]) if job.status.is_dispatched() => requeues::decide(job, environment, rules),
        None => orphans::decide_unseen(job, environment, rules),
        Some(steps) => {
            let limit = TimeLimit::of(job, environment.announced_limit, rules);
            let end = steps.iter().find_map(|step| decide_step(job, step, limit, rules)).map(Action::EndStep);
            end.or_else(|| match Seen::of(steps) {
                seen if seen != job.seen => Some(Action::Record(seen)),
                Some(seen) => orphans::decide(job, &seen, rules),
                None => None,
            })
        }
    }
}

/// Decides whether a step is to be ended.
fn decide_step(job: &UnfinishedJob, step: &Step, limit: TimeLimit, rules: &ReaperRules) -> Option<StepEnd> {
    match step.state {
        StepState::Done | StepState::Terminating => None,
        _ => stuck_steps::decide(job, step, rules).or_else(|| time_limits::decide(job, step, limit)),
    }
}

impl Sweep<'_> {
    /// Decides on each dispatched job of an environment, and acts.
    pub(super) async fn sweep_unfinished_jobs(
        &self,
        environment: &Environment,
        observed: Observed<'_>,
        budget: Budget,
    ) -> Result<(), Stop> {
        let namespace = &environment.namespace;
        let is_default = *namespace == self.rules().default_namespace;
        let reads_limits = self.rules().algorithm_limit.is_none() && environment.announced_limit.is_none();
        let mut after = Some(JobId::stored(""));
        while let Some(from) = after {
            let (jobs, next) = self.db().unfinished_jobs(namespace, is_default, reads_limits, &from).await?;
            let decide = |job: UnfinishedJob| {
                let action = decide(&job, observed, environment, self.rules())?;
                Some((job, action))
            };
            let due: Vec<(UnfinishedJob, Action)> = jobs.into_iter().filter_map(decide).collect();
            for duty in due.iter().filter_map(|(_, action)| action.duty()) {
                self.report.found(duty, 1);
            }
            budget.for_each(self.concurrency(), due, |(job, action)| self.act(job, action).boxed()).await?;
            after = next;
        }
        Ok(())
    }

    async fn act(&self, job: UnfinishedJob, action: Action) {
        let job_id = &job.job_id;
        match action {
            Action::Finish(duty, finish) => {
                let perform = self.finish_orphan(&job, &finish).boxed();
                self.apply(duty, job_id, Some(finish.reason.clone()), perform).await;
            }
            Action::Requeue => self.apply(Duty::Requeues, job_id, None, self.requeue(&job)).await,
            Action::ReportUnbegun => {
                let why = Some(requeues::MAY_HAVE_A_THREAD.to_owned());
                self.report.job(job_id, Duty::Requeues, Outcome::Left, why);
            }
            Action::EndStep(end) => {
                let perform = self.end_step(&job, &end).boxed();
                self.apply(end.duty, job_id, end.reason.clone(), perform).await;
            }
            Action::Record(seen) => {
                if let Some(Err(error)) = self.change(self.db().record_seen(job_id, seen.as_ref())).await {
                    self.report.problem(error.to_string());
                }
            }
        }
    }
}

impl Action {
    /// The duty that it is reported under; `None` if it is not reported.
    fn duty(&self) -> Option<Duty> {
        match self {
            Self::Finish(duty, _) => Some(*duty),
            Self::Requeue | Self::ReportUnbegun => Some(Duty::Requeues),
            Self::EndStep(end) => Some(end.duty),
            Self::Record(_) => None,
        }
    }
}

impl Database {
    /// The dispatched and begun jobs of a namespace, and with `is_default`, those without one; by id, a page at a time.
    /// `reads_limits` states whether a job's own workflow may set its limit.
    async fn unfinished_jobs(
        &self,
        namespace: &Namespace,
        is_default: bool,
        reads_limits: bool,
        after: &JobId,
    ) -> Result<(Vec<UnfinishedJob>, Option<JobId>), DatabaseError> {
        self.run(async |connection| {
            let jobs = sqlx::query_as!(
                UnfinishedJob,
                r#"
                SELECT workflowid AS "job_id!: JobId", namespace AS "namespace: Namespace", status AS "status!: Status",
                       coalesce(stopreq, 0::smallint) AS "stop_requested!: StopRequest",
                       coalesce(removed, 0) <> 0 AS "removed!",
                       coalesce(outputsurl, '') NOT IN ('', '[]') AS "has_outputs!",
                       (validuntil - extract(epoch FROM clock_timestamp()))::float8 AS valid_for,
                       extract(epoch FROM coalesce(dispatchedat AT TIME ZONE 'UTC', seensince))::float8 AS "dispatched_at!",
                       extract(epoch FROM clock_timestamp() - coalesce(dispatchedat AT TIME ZONE 'UTC', seensince))::float8
                           AS "dispatched_age!",
                       requeues AS "requeues!", seen AS "seen: Seen",
                       extract(epoch FROM clock_timestamp() - seensince)::float8 AS "seen_for!",
                       CASE WHEN $3 AND validuntil IS NULL THEN workflow END AS workflow
                FROM ((SELECT agreementid, workflowid FROM jobs
                       WHERE datefinished IS NULL AND status >= 10 AND namespace = $1 AND workflowid > $2
                       ORDER BY workflowid LIMIT $4)
                      UNION ALL
                      (SELECT agreementid, workflowid FROM jobs
                       WHERE datefinished IS NULL AND status >= 10 AND namespace IS NULL AND $5 AND workflowid > $2
                       ORDER BY workflowid LIMIT $4)) AS page
                JOIN jobs USING (agreementid, workflowid)
                JOIN reaperjobs USING (workflowid)
                ORDER BY workflowid LIMIT $4
                "#,
                namespace.as_str(),
                after.as_str(),
                reads_limits,
                PAGE_ROWS as i64,
                is_default
            )
            .fetch_all(connection)
            .await?;
            let next = end_of_page(&jobs, PAGE_ROWS, |job| job.job_id.clone());
            Ok((jobs, next))
        })
        .await
    }

    /// Records what a sweep saw of an unfinished job.
    async fn record_seen(&self, job_id: &JobId, seen: Option<&Seen>) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE reaperjobs SET seen = $2, seensince = clock_timestamp()
             WHERE workflowid = $1 AND seen IS DISTINCT FROM $2",
            job_id.as_str(),
            seen.map(Seen::as_str)
        ))
        .await?;
        Ok(())
    }
}
