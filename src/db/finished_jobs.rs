//! Finished jobs: when something is due for them, and what was deleted.

use super::cursor::{Cursor, PAGE_ROWS};
use super::{Database, DatabaseError};
use crate::domain::{JobId, Namespace, SETTLING_SECONDS, Status};

/// The maximum that is added to a timestamp, in seconds: a thousand years. More could exceed the range of PostgreSQL's
/// types.
const MAX_INTERVAL: i64 = 1000 * 365 * 24 * 3600;

/// A finished job for which something may be due.
#[derive(Debug, Clone)]
pub struct FinishedJob {
    /// The job's id.
    pub job_id: JobId,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// Its status; code 0 where the row has none.
    pub status: Status,
    /// How many seconds ago it finished.
    pub age: f64,
    /// Whether it was deleted, or has expired.
    pub removed: bool,
    /// Whether the objects that the engine made for it are deleted.
    pub cleaned_up: bool,
    /// Whether its outputs and their URLs are deleted.
    pub outputs_deleted: bool,
    /// For how many seconds its outputs are kept, 0 for ever, -1 as configured; `None` if that has not been read from
    /// its workflow yet.
    pub expiry: Option<i64>,
    /// The document that the engine read, if `expiry` is not known.
    pub workflow: Option<String>,
    /// JSON text: what the job published, with URLs.
    pub outputs: Option<String>,
}

/// A finished job whose expiry has not been read from its workflow yet.
#[derive(Debug, Clone)]
pub struct UnscheduledJob {
    /// The job's id.
    pub job_id: JobId,
    /// The document that the engine read.
    pub workflow: Option<String>,
}

/// A job that objects in the cluster are named after.
#[derive(Debug, Clone)]
pub struct KnownJob {
    /// The job's id.
    pub job_id: JobId,
    /// How many seconds ago it finished; `None` while it is not.
    pub finished_age: Option<f64>,
    /// Whether its engine is done with its objects.
    pub settled: bool,
    /// Whether an action on it is due anyway, now or when one that failed is tried again.
    pub due: bool,
}

impl Database {
    /// Finished jobs whose expiry has not been read from their workflow yet, a page at a time.
    pub async fn unscheduled_jobs(
        &self,
        after: &Cursor,
    ) -> Result<(Vec<UnscheduledJob>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id: JobId", workflow, extract(epoch FROM reapat)::float8 AS "position!"
                FROM jobs
                WHERE datefinished IS NOT NULL AND reapat < 'infinity' AND reapat <= now()
                  AND expiry IS NULL AND (reapat, workflowid) > (to_timestamp($2), $3)
                ORDER BY reapat, workflowid LIMIT $1
                "#,
                PAGE_ROWS as i64,
                position,
                name
            )
            .fetch_all(connection)
            .await?;
            let last = rows.last().map(|row| (row.position, row.job_id.to_string()));
            let next = Cursor::after_page(rows.len(), PAGE_ROWS, last);
            let jobs = rows.into_iter().map(|row| UnscheduledJob { job_id: row.job_id, workflow: row.workflow });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// Records for how long the outputs of jobs are kept (see [`FinishedJob::expiry`]). Jobs for which nothing else
    /// becomes due are not looked at again.
    pub async fn schedule_expiries(&self, expiries: Vec<(JobId, i64)>) -> Result<(), DatabaseError> {
        let (job_ids, seconds): (Vec<String>, Vec<i64>) =
            expiries.into_iter().map(|(job_id, seconds)| (job_id.to_string(), seconds)).unzip();
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET expiry = read.expiry,
                 reapat = CASE WHEN tidied AND read.expiry <= 0 AND coalesce(removed, 0) <> 1 THEN 'infinity'
                               ELSE reapat END
             FROM unnest($1::text[], $2::bigint[]) AS read (workflowid, expiry)
             WHERE jobs.workflowid = read.workflowid AND jobs.datefinished IS NOT NULL",
            &job_ids,
            &seconds
        ))
        .await?;
        Ok(())
    }

    /// The finished jobs for which something is due, those first that have waited longest, a page at a time: those
    /// whose time has come, and those that expire `shared_expiry` seconds after their end, as configured. Those whose
    /// expiry has not been read yet are left out, unless `include_unscheduled`.
    pub async fn due_jobs(
        &self,
        shared_expiry: Option<i64>,
        include_unscheduled: bool,
        after: &Cursor,
    ) -> Result<(Vec<FinishedJob>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        let shared_expiry = shared_expiry.map(|seconds| seconds.min(MAX_INTERVAL));
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id!: JobId", namespace AS "namespace: Namespace",
                       coalesce(status, 0) AS "status!: Status",
                       extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8 AS "age!",
                       coalesce(removed, 0) = 1 AS "removed!", tidied AS "cleaned_up!", purged AS "outputs_deleted!",
                       expiry, CASE WHEN expiry IS NULL THEN workflow END AS workflow, outputsurl AS outputs,
                       position AS "position!"
                FROM (
                    (SELECT *, extract(epoch FROM reapat)::float8 AS position FROM jobs
                     WHERE datefinished IS NOT NULL AND reapat < 'infinity' AND reapat <= now()
                       AND (expiry IS NOT NULL OR $5) AND (reapat, workflowid) > (to_timestamp($1), $2)
                     ORDER BY reapat, workflowid LIMIT $3)
                    UNION ALL
                    (SELECT *, extract(epoch FROM datefinished)::float8 AS position FROM jobs
                     WHERE expiry = -1 AND NOT purged AND reapat = 'infinity'
                       AND datefinished <= now() AT TIME ZONE 'UTC' - make_interval(secs => $4::bigint)
                       AND datefinished >= to_timestamp($1) AT TIME ZONE 'UTC'
                       AND (extract(epoch FROM datefinished)::float8, workflowid) > ($1, $2)
                     ORDER BY datefinished, workflowid LIMIT $3)
                ) AS due
                ORDER BY position, workflowid LIMIT $3
                "#,
                position,
                name,
                PAGE_ROWS as i64,
                shared_expiry,
                include_unscheduled,
            )
            .fetch_all(connection)
            .await?;
            let last = rows.last().map(|row| (row.position, row.job_id.to_string()));
            let next = Cursor::after_page(rows.len(), PAGE_ROWS, last);
            let jobs = rows.into_iter().map(|row| FinishedJob {
                job_id: row.job_id,
                namespace: row.namespace,
                status: row.status,
                age: row.age,
                removed: row.removed,
                cleaned_up: row.cleaned_up,
                outputs_deleted: row.outputs_deleted,
                expiry: row.expiry,
                workflow: row.workflow,
                outputs: row.outputs,
            });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// Records that the objects that the engine made for a finished job are deleted.
    pub async fn record_cleanup(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET tidied = true WHERE workflowid = $1 AND datefinished IS NOT NULL",
            job_id.as_str()
        ))
        .await?;
        Ok(())
    }

    /// Marks a finished job as removed and deletes its URLs and kept logs, if its outputs are still those that were
    /// read. `without_urls` is what remains of them. Returns false if the outputs are others.
    pub async fn record_outputs_deleted(
        &self,
        job_id: &JobId,
        read: Option<&str>,
        without_urls: Option<&str>,
    ) -> Result<bool, DatabaseError> {
        self.run_once(async |connection| {
            Ok(sqlx::query_scalar!(
                r#"
                WITH marked AS (
                    UPDATE jobs SET removed = 1, purged = true, tidied = true, outputsurl = $3, configlogurl = NULL,
                        publishlogurl = NULL, algologurl = NULL
                    WHERE workflowid = $1 AND datefinished IS NOT NULL AND outputsurl IS NOT DISTINCT FROM $2
                    RETURNING workflowid
                ), logs AS (
                    DELETE FROM keptlogs USING marked WHERE keptlogs.workflowid = marked.workflowid
                )
                SELECT EXISTS (SELECT FROM marked) AS "marked!"
                "#,
                job_id.as_str(),
                read,
                without_urls
            )
            .fetch_one(connection)
            .await?)
        })
        .await
    }

    /// Records in how many seconds something is next due for a finished job; `None` for never. If it was deleted
    /// meanwhile, or has published something, that is now; unless `removal_waits`, because it is not settled.
    pub async fn schedule_next(
        &self,
        job_id: &JobId,
        seconds: Option<f64>,
        removal_waits: bool,
    ) -> Result<(), DatabaseError> {
        let seconds = seconds.map(|seconds| seconds.min(MAX_INTERVAL as f64));
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET reapfailures = 0, reapat = coalesce(clock_timestamp() + make_interval(secs => $2), 'infinity')
             WHERE workflowid = $1 AND datefinished IS NOT NULL
               AND (purged OR coalesce(removed, 0) <> 1 OR $3)",
            job_id.as_str(),
            seconds,
            removal_waits
        ))
        .await?;
        Ok(())
    }

    /// The jobs that have one of these ids.
    pub async fn known_jobs(&self, names: &[JobId]) -> Result<Vec<KnownJob>, DatabaseError> {
        let names: Vec<String> = names.iter().map(JobId::to_string).collect();
        self.run(async |connection| {
            Ok(sqlx::query_as!(
                KnownJob,
                r#"
                SELECT workflowid AS "job_id: JobId",
                       extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8 AS finished_age,
                       coalesce(datefinished IS NOT NULL
                                AND (status = ANY($3)
                                     OR datefinished < clock_timestamp() AT TIME ZONE 'UTC'
                                                       - make_interval(secs => $2::bigint)), false) AS "settled!",
                       reapfailures > 0 OR reapat <= clock_timestamp() AS "due!"
                FROM jobs WHERE workflowid = ANY($1)
                "#,
                &names,
                SETTLING_SECONDS,
                &Status::settled_codes()
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }
}
