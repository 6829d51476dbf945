//! Unfinished jobs that were dispatched: the decision on each, by its row and by the steps that the cluster shows.
//!
//! Ages of rows are measured by the database's clock, ages of objects by the cluster's.

use futures_util::FutureExt;

use super::budget::{Budget, Stop};
use super::job::{Action, Environment, Seen, StepEnd, UnfinishedJob};
use super::report::{Duty, Outcome};
use super::sweep::{Due, Sweep};
use super::{orphans, requeues, stuck_steps, time_limits};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError, PAGE_ROWS, end_of_page};
use crate::domain::{JobId, Namespace, Status, StopRequest};
use crate::kubernetes::{Step, StepState, Steps};

/// Decides what is to be done with a job. `steps` are those of its environment; `None` if it could not be read.
pub(super) fn decide(
    job: &UnfinishedJob,
    steps: Option<&Steps>,
    environment: &Environment,
    rules: &ReaperRules,
) -> Option<Action> {
    let steps = steps.map(|steps| steps.get(&job.job_id).map_or(&[][..], Vec::as_slice));
    match steps {
        // A job with steps is begun, even if its status does not say so yet.
        None | Some([]) if job.status.is_dispatched() => requeues::decide(job, environment, rules),
        None => orphans::decide_unseen(job, environment, rules),
        Some(steps) => {
            let announced = environment.announced_limit;
            let end = steps.iter().find_map(|step| decide_step(job, step, announced, rules)).map(Action::EndStep);
            end.or_else(|| match Seen::of(steps) {
                seen if seen != job.seen => Some(Action::Record(seen)),
                Some(seen) => orphans::decide(job, &seen, rules),
                None => None,
            })
        }
    }
}

/// Decides whether a step is to be ended.
fn decide_step(job: &UnfinishedJob, step: &Step, announced_limit: Option<f64>, rules: &ReaperRules) -> Option<StepEnd> {
    match step.state {
        StepState::Done | StepState::Terminating => None,
        _ => stuck_steps::decide(job, step, rules).or_else(|| time_limits::decide(job, step, announced_limit, rules)),
    }
}

impl Sweep<'_> {
    /// Decides on each dispatched job of an environment, and acts.
    pub(super) async fn sweep_unfinished_jobs(
        &self,
        environment: &Environment,
        steps: Option<&Steps>,
        budget: Budget,
    ) -> Result<(), Stop> {
        let namespace = &environment.namespace;
        let is_default = *namespace == self.rules.default_namespace;
        let reads_limits = self.rules.algorithm_limit.is_none() && environment.announced_limit.is_none();
        let mut after = Some(JobId::stored(""));
        while let Some(from) = after {
            let (jobs, next) = self.db.unfinished_jobs(namespace, is_default, reads_limits, &from).await?;
            let (mut due, mut seen) = (Vec::new(), Vec::new());
            for job in jobs {
                match decide(&job, steps, environment, self.rules) {
                    None => {}
                    Some(Action::Record(now)) => seen.push((job.job_id, now)),
                    Some(Action::ReportUnbegun) => {
                        self.report.found(Duty::Requeues, 1);
                        let why = Some(requeues::MAY_HAVE_A_THREAD.to_owned());
                        self.report.job(&job.job_id, Duty::Requeues, Outcome::Left, why);
                    }
                    Some(Action::Requeue) => {
                        due.push(Due::new(Duty::Requeues, job.job_id.clone(), self.requeue(job)));
                    }
                    Some(Action::Finish(duty, finish)) => {
                        let (job_id, reason) = (job.job_id.clone(), Some(finish.reason.clone()));
                        let action = self.finish_orphan(job, namespace, finish);
                        due.push(Due::new(duty, job_id, action).because(reason));
                    }
                    Some(Action::EndStep(end)) => {
                        let (duty, reason) = (end.duty, end.reason.clone());
                        due.push(Due::new(duty, job.job_id, self.end_step(end, namespace)).because(reason));
                    }
                }
            }
            budget.for_each(self.concurrency(), seen, |(job_id, now)| self.record(job_id, now).boxed()).await?;
            self.apply_all(due, budget).await?;
            after = next;
        }
        Ok(())
    }

    async fn record(&self, job_id: JobId, seen: Option<Seen>) {
        if let Some(Err(error)) = self.change(self.db.record_seen(&job_id, seen.as_ref())).await {
            self.report.problem(error.to_string());
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
                SELECT workflowid AS "job_id!: JobId", status AS "status!: Status",
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
