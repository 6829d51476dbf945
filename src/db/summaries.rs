//! Rows of earlier versions and of the Python service, whose workflow has not been summarized yet; finished ones get the
//! reaper's record of their expiry as well.

use tokio::time::Instant;

use super::cursor::Cursor;
use super::{Database, DatabaseError};

/// The most rows that are summarized, and locked, at once.
const BATCH_ROWS: i64 = 200;
/// The most bytes of workflows that are read at once. At least one is read.
const BATCH_BYTES: i64 = 8 << 20;

impl Database {
    /// Summarizes all jobs that have no summary yet, as far as there is time until `deadline` and the database is
    /// available. Returns how many it summarized, and whether none is left. A row that others keep locked is left.
    pub(super) async fn summarize_all_jobs(&self, deadline: Instant) -> (u64, bool) {
        let (mut total, mut of_pass, mut after) = (0, 0, None);
        while Instant::now() < deadline {
            let (count, next) = match self.summarize_jobs(&after.clone().unwrap_or_default()).await {
                Ok(summarized) => summarized,
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "jobs are left to be summarized");
                    break;
                }
            };
            total += count;
            of_pass += count;
            if count > 0 {
                tracing::debug!(total, "jobs were summarized");
            }
            (of_pass, after) = match (next, after) {
                (Some(next), _) => (of_pass, Some(next)),
                (None, None) => return (total, true),
                (None, Some(_)) if of_pass == 0 => break,
                // From the start again: rows may have been locked.
                (None, Some(_)) => (0, None),
            };
        }
        (total, false)
    }

    /// Summarizes the next jobs that have no summary yet: unfinished ones first, then those that finished last. Rows
    /// that others have locked are skipped. Returns how many it summarized, and where to go on; `None` at the end.
    pub async fn summarize_jobs(&self, after: &Cursor) -> Result<(u64, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            // Reads the workflows before it locks the rows: the engine and others wait only for the update.
            let rows = sqlx::query!(
                r#"
                SELECT agreementid, workflowid, position AS "position!", summary.algodid, summary.inputdids,
                       summary.workflowchain
                FROM (SELECT page.*, sum(octet_length(workflow)) OVER upward AS bytes, count(*) OVER upward AS number
                      FROM (SELECT agreementid, workflowid, workflow,
                                   coalesce(-extract(epoch FROM datefinished)::float8, '-infinity') AS position
                            FROM jobs
                            WHERE algodid IS NULL
                              AND (coalesce(-extract(epoch FROM datefinished)::float8, '-infinity'), workflowid)
                                  > ($1::float8, $2::text)
                            ORDER BY coalesce(-extract(epoch FROM datefinished)::float8, '-infinity'), workflowid
                            LIMIT $3) AS page
                      WINDOW upward AS (ORDER BY position, workflowid ROWS UNBOUNDED PRECEDING)) AS pages
                CROSS JOIN LATERAL workflow_summary(workflow) AS summary
                WHERE bytes <= $4 OR bytes IS NULL OR number = 1
                ORDER BY position, workflowid
                "#,
                position,
                name,
                BATCH_ROWS,
                BATCH_BYTES
            )
            .fetch_all(&mut *connection)
            .await?;
            if rows.is_empty() {
                return Ok((0, None));
            }
            let next = rows.last().map(|row| Cursor::at(row.position, &row.workflowid));
            let (mut agreements, mut jobs) = (Vec::new(), Vec::new());
            let (mut algorithms, mut inputs, mut chains) = (Vec::new(), Vec::new(), Vec::new());
            for row in rows {
                agreements.push(row.agreementid);
                jobs.push(row.workflowid);
                algorithms.push(row.algodid);
                inputs.push(row.inputdids);
                chains.push(row.workflowchain);
            }
            let changed = sqlx::query!(
                r#"
                WITH unlocked AS MATERIALIZED (
                    SELECT jobs.agreementid, jobs.workflowid, summary.algodid, summary.inputdids, summary.workflowchain
                    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])
                        AS summary (agreementid, workflowid, algodid, inputdids, workflowchain)
                    JOIN jobs ON jobs.agreementid = summary.agreementid AND jobs.workflowid = summary.workflowid
                    FOR NO KEY UPDATE OF jobs SKIP LOCKED
                ), recorded AS (
                    INSERT INTO reaperjobs (workflowid, expirydue, configuredexpiry)
                    SELECT workflowid, expire.due, expire.configured
                    FROM unlocked JOIN jobs USING (agreementid, workflowid)
                    CROSS JOIN LATERAL outputs_expire(datefinished, removed, workflow) AS expire
                    WHERE datefinished IS NOT NULL
                    ON CONFLICT DO NOTHING
                )
                UPDATE jobs
                SET algodid = unlocked.algodid, inputdids = unlocked.inputdids, workflowchain = unlocked.workflowchain
                FROM unlocked
                WHERE jobs.agreementid = unlocked.agreementid AND jobs.workflowid = unlocked.workflowid
                "#,
                &agreements,
                &jobs,
                &algorithms as &[Option<String>],
                &inputs as &[Option<String>],
                &chains as &[Option<String>]
            )
            .execute(connection)
            .await?;
            Ok((changed.rows_affected(), next))
        })
        .await
    }
}
