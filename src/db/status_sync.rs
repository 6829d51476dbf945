//! WorkFlow objects whose status is not the one that the database has.

use super::cursor::PAGE_ROWS;
use super::{Database, DatabaseError};
use crate::domain::{JobId, Namespace, Status};

/// The status that a job's WorkFlow object is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct StatusToSync {
    /// The job's id.
    pub job_id: JobId,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// The status.
    pub status: Option<Status>,
    /// The text for it, as the engine wrote it.
    pub status_text: Option<String>,
    /// Why the job was ended, if it was.
    pub reason: Option<String>,
    /// Seconds since the epoch, with 6 decimals.
    pub date_finished: Option<String>,
}

impl Database {
    /// The jobs whose WorkFlow object has another status than their row, by id, a page at a time. Unfinished jobs that
    /// are not registered are left out: they get their object first. Finished ones may have an object: the process that
    /// created it may have been killed before it recorded that.
    pub async fn statuses_to_sync(
        &self,
        after: &JobId,
        until: Option<&JobId>,
    ) -> Result<Vec<StatusToSync>, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_as!(
                StatusToSync,
                r#"
                SELECT workflowid AS "job_id: JobId", namespace AS "namespace: Namespace", status AS "status: Status",
                       statustext AS status_text, reason,
                       to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') AS date_finished
                FROM jobs
                WHERE NOT mirrored AND (registered OR datefinished IS NOT NULL) AND workflowid > $1
                  AND ($3::text IS NULL OR workflowid <= $3)
                ORDER BY workflowid LIMIT $2
                "#,
                after.as_str(),
                PAGE_ROWS as i64,
                until.map(JobId::as_str)
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }

    /// Records that a job's object has this status, unless the row has changed meanwhile.
    pub async fn record_status_synced(&self, written: &StatusToSync) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET mirrored = true
             WHERE workflowid = $1 AND status IS NOT DISTINCT FROM $2 AND statustext IS NOT DISTINCT FROM $3
               AND reason IS NOT DISTINCT FROM $4
               AND to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') IS NOT DISTINCT FROM $5",
            written.job_id.as_str(),
            written.status.map(Status::code),
            written.status_text.as_deref(),
            written.reason.as_deref(),
            written.date_finished.as_deref()
        ))
        .await?;
        Ok(())
    }
}
