//! Jobs that were never started: those that wait and may not be dispatched any more are finished.

use super::budget::{Budget, Stop};
use super::job::Finish;
use super::report::Duty;
use super::sweep::{Due, Sweep};
use crate::db::{Database, DatabaseError, PAGE_ROWS, end_of_page};
use crate::domain::{JobId, Status};

/// How a job ends that no engine has begun: stopped or deleted, otherwise past its `validUntil`.
pub(super) fn finish(called_off: bool) -> Finish {
    match called_off {
        true => Finish::new(Status::Completed, "The job was stopped before it was started."),
        false => Finish::new(Status::AlgorithmFailed, "No environment had room for the job before its validUntil."),
    }
}

impl Sweep<'_> {
    /// Finishes the jobs that wait and may not be dispatched any more.
    pub(super) async fn finish_never_started(&self, budget: Budget) -> Result<(), Stop> {
        let mut after = Some(JobId::stored(""));
        while let Some(from) = after {
            budget.check()?;
            let (jobs, next) = self.db.jobs_never_started(&from).await?;
            let due = jobs.into_iter().map(|(job_id, called_off)| {
                let finish = finish(called_off);
                let reason = Some(finish.reason.clone());
                let action = self.finish(job_id.clone(), Status::WarmingUp, finish);
                Due::new(Duty::NeverStarted, job_id, action).because(reason)
            });
            self.apply_all(due.collect(), budget).await?;
            after = next;
        }
        Ok(())
    }
}

impl Database {
    /// The waiting jobs that may not be dispatched any more, by id, a page at a time, and whether each was stopped or
    /// deleted. announce() has the opposite condition.
    async fn jobs_never_started(&self, after: &JobId) -> Result<(Vec<(JobId, bool)>, Option<JobId>), DatabaseError> {
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id!: JobId", called_off AS "called_off!" FROM (
                    (SELECT workflowid, true AS called_off FROM jobs
                     WHERE datefinished IS NULL AND status = 1
                       AND (coalesce(stopreq, 0) <> 0 OR coalesce(removed, 0) <> 0) AND workflowid > $1
                     ORDER BY workflowid LIMIT $2)
                    UNION ALL
                    (SELECT workflowid, false FROM jobs
                     WHERE datefinished IS NULL AND status = 1
                       AND NOT (coalesce(stopreq, 0) <> 0 OR coalesce(removed, 0) <> 0)
                       AND validuntil <= floor(extract(epoch FROM now()))::bigint AND workflowid > $1
                     ORDER BY workflowid LIMIT $2)
                ) AS due
                ORDER BY workflowid LIMIT $2
                "#,
                after.as_str(),
                PAGE_ROWS as i64
            )
            .fetch_all(connection)
            .await?;
            let jobs: Vec<_> = rows.into_iter().map(|row| (row.job_id, row.called_off)).collect();
            let next = end_of_page(&jobs, PAGE_ROWS, |(job_id, _)| job_id.clone());
            Ok((jobs, next))
        })
        .await
    }
}
