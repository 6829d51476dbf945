//! Expiry: outputs that have expired, or whose job was deleted, are deleted. The cluster is not asked: a namespace may be
//! gone for long.

use futures_util::{StreamExt, TryStreamExt, stream};

use super::budget::{Budget, Stop};
use super::report::Duty;
use super::sweep::{ActionResult, Applied, CONCURRENCY, Due, Sweep};
use crate::db::{Cursor, Database, DatabaseError, PAGE_ROWS, end_of_page};
use crate::domain::{JobId, output, workflow};

/// The number of jobs that a dry run reads at once. A constant of its statement, as its plan depends on it.
const DRY_RUN_ROWS: usize = 200;
/// The longest expiry, in seconds: a thousand years. More could exceed the range of PostgreSQL's timestamps.
const MAX_EXPIRY: u64 = 1000 * 365 * 24 * 3600;

/// A finished job whose outputs are to be deleted.
#[derive(Debug, Clone)]
struct ExpiredJob {
    job_id: JobId,
    /// JSON text: what the job published, with URLs.
    outputs: Option<String>,
    /// Its place in the list.
    position: f64,
}

impl Sweep<'_> {
    /// Deletes the outputs of jobs that have expired or were deleted.
    pub(super) async fn expire_outputs(&self, budget: Budget) -> Result<(), Stop> {
        let configured = self.rules.storage_expiry.unwrap_or(0).min(MAX_EXPIRY) as i64;
        // For half of the time, so that some expire even if very many are to be scheduled.
        let scheduled = self.change(self.schedule_expiries(configured, budget.half())).await;
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            budget.check()?;
            let (jobs, next) = match self.dry_run {
                true => self.db.jobs_to_expire(configured, &from).await?,
                false => self.db.expired_jobs(&from).await?,
            };
            let due = jobs.into_iter().map(|job| Due::new(Duty::Expiries, job.job_id.clone(), self.expire(job)));
            self.apply_all(due.collect(), budget).await?;
            after = next;
        }
        scheduled.unwrap_or(Ok(()))
    }

    /// Computes when the jobs expire that have no expiry of their own, where that was not done yet or STORAGE_EXPIRY was
    /// another.
    async fn schedule_expiries(&self, configured: i64, budget: Budget) -> Result<(), Stop> {
        while self.db.schedule_expiries(configured).await? > 0 {
            budget.check()?;
        }
        Ok(())
    }

    /// Deletes a job's files first, then the URLs in the database: if it is killed in between, the job is still due.
    async fn expire(&self, job: ExpiredJob) -> ActionResult {
        let outputs = job.outputs.as_deref().and_then(output::parse);
        let urls = outputs.iter().flatten().filter_map(output::url_of);
        let deletions: Vec<_> = urls.map(|url| self.storage.delete(url)).collect();
        stream::iter(deletions).buffer_unordered(CONCURRENCY as usize).try_collect::<Vec<bool>>().await?;
        let is_damaged = outputs.is_none() && job.outputs.as_deref().is_some_and(|text| !matches!(text, "" | "[]"));
        let without_urls = outputs.map(|outputs| workflow::to_ascii_json(&output::without_urls(outputs).into()));
        if !self.db.record_expired(&job, without_urls.as_deref()).await? {
            return Ok(Applied::Skipped("the job has published something meanwhile"));
        }
        let remark = is_damaged.then(|| "the list of its outputs is damaged: files may be left".to_owned());
        Ok(Applied::Done(remark))
    }
}

impl Database {
    /// Computes when jobs without an expiry of their own expire, `configured` seconds after their end or never if it is
    /// 0; a batch at a time. Returns how many it computed.
    async fn schedule_expiries(&self, configured: i64) -> Result<u64, DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE reaperjobs AS state
             SET configuredexpiry = $1,
                 expirydue = CASE WHEN $1 = 0 THEN 'infinity'
                                  ELSE (SELECT datefinished FROM jobs WHERE jobs.workflowid = state.workflowid LIMIT 1)
                                       AT TIME ZONE 'UTC' + make_interval(secs => $1::bigint) END
             WHERE workflowid = ANY (ARRAY(
                 (SELECT workflowid FROM reaperjobs WHERE configuredexpiry < $1 ORDER BY configuredexpiry LIMIT 1000)
                 UNION ALL
                 (SELECT workflowid FROM reaperjobs WHERE configuredexpiry > $1 ORDER BY configuredexpiry LIMIT 1000)))",
            configured
        ))
        .await
    }

    /// The settled jobs whose outputs are to be deleted, those first that have waited longest, a page at a time.
    async fn expired_jobs(&self, after: &Cursor) -> Result<(Vec<ExpiredJob>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            let jobs = sqlx::query_as!(
                ExpiredJob,
                r#"
                SELECT workflowid AS "job_id: JobId", outputsurl AS outputs,
                       extract(epoch FROM expirydue)::float8 AS "position!"
                FROM reaperjobs JOIN jobs USING (workflowid)
                WHERE expirydue < 'infinity' AND expirydue <= now() AND (expirydue, workflowid) > (to_timestamp($1), $2)
                  AND is_settled(status, datefinished)
                ORDER BY expirydue, workflowid LIMIT $3
                "#,
                position,
                name,
                PAGE_ROWS as i64
            )
            .fetch_all(connection)
            .await?;
            let next = end_of_page(&jobs, PAGE_ROWS, |job| Cursor::at(job.position, &job.job_id));
            Ok((jobs, next))
        })
        .await
    }

    /// As [`Self::expired_jobs`] after a sweep with this STORAGE_EXPIRY, which changes nothing: reads all finished jobs, by
    /// id. A page may be empty.
    async fn jobs_to_expire(
        &self,
        configured: i64,
        after: &Cursor,
    ) -> Result<(Vec<ExpiredJob>, Option<Cursor>), DatabaseError> {
        let (_, name) = after.parts();
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id!: JobId", outputsurl AS outputs,
                       coalesce(is_settled(status, datefinished)
                                AND CASE WHEN by_configuration AND $2::bigint = 0 THEN 'infinity'
                                         WHEN by_configuration
                                         THEN datefinished AT TIME ZONE 'UTC' + make_interval(secs => $2::bigint)
                                         ELSE due END <= now(), false) AS "due!"
                FROM (SELECT jobs.*,
                             CASE WHEN state.workflowid IS NULL THEN (expire).due ELSE expirydue END AS due,
                             CASE WHEN state.workflowid IS NULL THEN (expire).configured ELSE configuredexpiry END
                                 IS NOT NULL AS by_configuration
                      FROM (SELECT * FROM jobs WHERE workflowid > $1 ORDER BY workflowid LIMIT 200) AS jobs
                      LEFT JOIN reaperjobs AS state USING (workflowid)
                      CROSS JOIN LATERAL (SELECT outputs_expire(datefinished, removed, CASE WHEN state.workflowid IS NULL
                                                                                          THEN workflow END) AS expire
                                         ) AS expiry) AS finished
                ORDER BY workflowid
                "#,
                name,
                configured
            )
            .fetch_all(connection)
            .await?;
            let next = end_of_page(&rows, DRY_RUN_ROWS, |row| Cursor::at(0.0, &row.job_id));
            let due = rows.into_iter().filter(|row| row.due);
            Ok((due.map(|row| ExpiredJob { job_id: row.job_id, outputs: row.outputs, position: 0.0 }).collect(), next))
        })
        .await
    }

    /// Marks a job as removed and deletes its URLs and kept logs, if its outputs are still those that were read.
    /// `without_urls` is what remains of them. Returns false if the outputs are others.
    async fn record_expired(&self, job: &ExpiredJob, without_urls: Option<&str>) -> Result<bool, DatabaseError> {
        self.run_once(async |connection| {
            let mut transaction = sqlx::Connection::begin(connection).await?;
            let removed = sqlx::query!(
                "UPDATE jobs
                 SET removed = 1, outputsurl = $3, configlogurl = NULL, publishlogurl = NULL, algologurl = NULL
                 WHERE workflowid = $1 AND datefinished IS NOT NULL AND outputsurl IS NOT DISTINCT FROM $2",
                job.job_id.as_str(),
                job.outputs.as_deref(),
                without_urls
            );
            let removed = removed.execute(&mut *transaction).await?.rows_affected() > 0;
            if removed {
                let logs = sqlx::query!("DELETE FROM keptlogs WHERE workflowid = $1", job.job_id.as_str());
                logs.execute(&mut *transaction).await?;
                // The trigger has made it due, as for any job that is removed.
                let done = sqlx::query!(
                    "UPDATE reaperjobs SET expirydue = 'infinity', configuredexpiry = NULL, failures = 0
                     WHERE workflowid = $1",
                    job.job_id.as_str()
                );
                done.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            Ok(removed)
        })
        .await
    }
}
