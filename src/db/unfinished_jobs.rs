//! Unfinished jobs: what the reaper decides by, and what it changes. Every change depends on the state that was read:
//! it does nothing if the job has another state meanwhile.
//!
//! Ages are measured by the database's clock alone: the process that asks may have another.

use super::cursor::{Cursor, PAGE_ROWS};
use super::{Database, DatabaseError};
use crate::domain::{JobId, Namespace, Status, StopRequest};

/// An unfinished job, with what the reaper decides by.
#[derive(Debug, Clone)]
pub struct UnfinishedJob {
    /// The job's id.
    pub job_id: JobId,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// Its status; code 0 where the row has none.
    pub status: Status,
    /// For how many seconds it has had this status.
    pub status_age: f64,
    /// The stop request, if any.
    pub stop_requested: StopRequest,
    /// Whether it was deleted.
    pub removed: bool,
    /// Whether it has published something.
    pub has_outputs: bool,
    /// In how many seconds its `validUntil` passes; below 0 if it has passed.
    pub valid_for: Option<f64>,
    /// How many seconds ago it was dispatched to an engine.
    pub dispatched_age: f64,
    /// How often it was dispatched, not begun, and requeued.
    pub requeues: i16,
    /// How many seconds ago a sweep first found no step of it in the cluster; `None` if the last sweep found one.
    pub absent_for: Option<f64>,
    /// The document that the engine reads, if the decision depends on it: of jobs that no engine has begun, and of
    /// those with no other limit than their own.
    pub workflow: Option<String>,
}

/// What [`Database::record_reason`] recorded that was not recorded before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NewlyRecorded {
    /// Whether the job had no reason before.
    pub reason: bool,
    /// Whether the job was not marked as over its time limit, or stopped, before.
    pub timed_out: bool,
}

impl Database {
    /// The unfinished jobs of a namespace that were dispatched, or may not be dispatched any more; oldest first, a page
    /// at a time. With `include_without_namespace`, also those without a namespace. `has_shared_limit` states whether a
    /// limit applies to all of them; otherwise their workflows are read, which may set one.
    pub async fn unfinished_jobs(
        &self,
        namespace: &Namespace,
        include_without_namespace: bool,
        has_shared_limit: bool,
        after: &Cursor,
    ) -> Result<(Vec<UnfinishedJob>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            // What may be dispatched: as in announce(), and in `domain::may_be_dispatched`.
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id: JobId", namespace AS "namespace: Namespace",
                       coalesce(status, 0) AS "status!: Status",
                       extract(epoch FROM clock_timestamp() - statussince)::float8 AS "status_age!",
                       coalesce(stopreq, 0::smallint) AS "stop_requested!: StopRequest",
                       coalesce(removed, 0) <> 0 AS "removed!",
                       coalesce(outputsurl, '') NOT IN ('', '[]') AS "has_outputs!",
                       (validuntil - extract(epoch FROM clock_timestamp()))::float8 AS valid_for,
                       coalesce(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - handedout)::float8,
                                extract(epoch FROM clock_timestamp() - statussince)::float8) AS "dispatched_age!",
                       handbacks AS "requeues!",
                       extract(epoch FROM clock_timestamp() - absentsince)::float8 AS absent_for,
                       CASE WHEN status >= $7 AND status < $8 OR NOT $5 AND validuntil IS NULL AND status >= $7
                            THEN workflow END AS workflow,
                       coalesce(extract(epoch FROM datecreated), 0)::float8 AS "created!"
                FROM jobs
                WHERE datefinished IS NULL AND (namespace = $1 OR $9 AND namespace IS NULL)
                  AND reapat <= clock_timestamp()
                  AND (status >= $7
                       OR status = $6 AND NOT (coalesce(stopreq, 0) = 0 AND coalesce(removed, 0) = 0
                                               AND (validuntil IS NULL
                                                    OR validuntil > extract(epoch FROM clock_timestamp()))))
                  AND (coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid) > ($2, $3)
                ORDER BY coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid
                LIMIT $4
                "#,
                namespace.as_str(),
                position,
                name,
                PAGE_ROWS as i64,
                has_shared_limit,
                Status::WarmingUp.code(),
                Status::Dispatched.code(),
                Status::ConfiguringVolumes.code(),
                include_without_namespace,
            )
            .fetch_all(connection)
            .await?;
            let last = rows.last().map(|row| (row.created, row.job_id.to_string()));
            let next = Cursor::after_page(rows.len(), PAGE_ROWS, last);
            let jobs = rows.into_iter().map(|row| UnfinishedJob {
                job_id: row.job_id,
                namespace: row.namespace,
                status: row.status,
                status_age: row.status_age,
                stop_requested: row.stop_requested,
                removed: row.removed,
                has_outputs: row.has_outputs,
                valid_for: row.valid_for,
                dispatched_age: row.dispatched_age,
                requeues: row.requeues,
                absent_for: row.absent_for,
                workflow: row.workflow,
            });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// Finishes a job that still has the status that it was read with. With `absent`, only if it is still recorded as
    /// absent and has published nothing since. Returns false if it was not finished.
    pub async fn finish(
        &self,
        job: &UnfinishedJob,
        status: Status,
        reason: &str,
        absent: bool,
    ) -> Result<bool, DatabaseError> {
        // The status text stays as the engine wrote it where the status stays.
        let changed = self
            .execute(sqlx::query!(
                "UPDATE jobs
                 SET datefinished = clock_timestamp() AT TIME ZONE 'UTC', closed = true, status = $3,
                     statustext = CASE WHEN $2::int = $3::int THEN statustext ELSE $4 END,
                     reason = coalesce(reason, $5)
                 WHERE workflowid = $1 AND datefinished IS NULL AND coalesce(status, 0) = $2
                   AND (NOT $6 OR absentsince IS NOT NULL
                                  AND (coalesce(outputsurl, '') NOT IN ('', '[]')) = $7)",
                job.job_id.as_str(),
                job.status.code(),
                status.code(),
                status.text(),
                reason,
                absent,
                job.has_outputs
            ))
            .await?;
        Ok(changed > 0)
    }

    /// Requeues a job that was dispatched at least `seconds` ago. Returns false if an engine has begun it since.
    pub async fn requeue(&self, job: &UnfinishedJob, seconds: f64) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE jobs
                 SET status = $2, statustext = $3, handedout = NULL, handbacks = handbacks + 1
                 WHERE workflowid = $1 AND datefinished IS NULL AND status = $4
                   AND coalesce(handedout AT TIME ZONE 'UTC', statussince)
                       <= clock_timestamp() - make_interval(secs => $5)",
                job.job_id.as_str(),
                Status::WarmingUp.code(),
                Status::WarmingUp.text(),
                job.status.code(),
                seconds
            ))
            .await?;
        Ok(changed > 0)
    }

    /// Records whether a begun job has no step in the cluster.
    pub async fn record_absence(&self, job_id: &JobId, absent: bool) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET absentsince = CASE WHEN $2 THEN coalesce(absentsince, clock_timestamp()) END
             WHERE workflowid = $1 AND datefinished IS NULL",
            job_id.as_str(),
            absent
        ))
        .await?;
        Ok(())
    }

    /// Records why a step of an unfinished job is ended, and with `timed_out`, that the job is over its time limit. A
    /// first reason stays, and so does a stop that its owner requested. Returns what is new; `None` if the job is
    /// finished.
    pub async fn record_reason(
        &self,
        job_id: &JobId,
        reason: &str,
        timed_out: bool,
    ) -> Result<Option<NewlyRecorded>, DatabaseError> {
        self.run_once(async |connection| {
            Ok(sqlx::query_as!(
                NewlyRecorded,
                r#"
                WITH before AS (
                    SELECT reason, coalesce(stopreq, 0) AS stopreq FROM jobs
                    WHERE workflowid = $1 AND datefinished IS NULL LIMIT 1
                )
                UPDATE jobs
                SET reason = coalesce(reason, $2),
                    stopreq = CASE WHEN NOT $3 OR stopreq = $4 THEN stopreq ELSE $5 END
                WHERE workflowid = $1 AND datefinished IS NULL
                RETURNING (SELECT before.reason FROM before) IS NULL AS "reason!",
                          $3 AND (SELECT before.stopreq FROM before) = 0 AS "timed_out!"
                "#,
                job_id.as_str(),
                reason,
                timed_out,
                StopRequest::BY_OWNER.code(),
                StopRequest::TIME_LIMIT.code()
            )
            .fetch_optional(connection)
            .await?)
        })
        .await
    }

    /// Takes back what [`Database::record_reason`] recorded, because the step was not ended. Does nothing if another
    /// process holds the sweep lease: the statement of a sweep that was killed may arrive late.
    pub async fn withdraw_reason(
        &self,
        job_id: &JobId,
        reason: &str,
        recorded: NewlyRecorded,
        holder: &str,
    ) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET reason = CASE WHEN $4 THEN NULL ELSE reason END,
                 stopreq = CASE WHEN $5 AND stopreq = $6 THEN 0 ELSE stopreq END
             WHERE workflowid = $1 AND datefinished IS NULL AND reason = $2
               AND EXISTS (SELECT FROM sweeps WHERE holder = $3)",
            job_id.as_str(),
            reason,
            holder,
            recorded.reason,
            recorded.timed_out,
            StopRequest::TIME_LIMIT.code()
        ))
        .await?;
        Ok(())
    }
}
