//! Jobs that have no WorkFlow object in the cluster yet.

use super::cursor::Cursor;
use super::{Database, DatabaseError};
use crate::domain::{AgreementId, JobId, Namespace, Owner, Status};

/// The number of rows in a page here: each comes with a workflow of up to 400 KiB.
const WORKFLOW_PAGE_ROWS: usize = 20;

/// A job without a WorkFlow object.
#[derive(Debug, Clone)]
pub struct UnregisteredJob {
    /// The job's id.
    pub job_id: JobId,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// The account that the job belongs to.
    pub owner: Option<Owner>,
    /// The agreement that the job serves.
    pub agreement_id: AgreementId,
    /// The document that the engine reads.
    pub workflow: Option<String>,
}

impl Database {
    /// The unfinished jobs without a WorkFlow object, oldest first, a page at a time. Waiting jobs that may not be
    /// dispatched are left out: the object is what lets the engines of 2019 and 2020 start a job.
    pub async fn unregistered_jobs(
        &self,
        after: &Cursor,
    ) -> Result<(Vec<UnregisteredJob>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            // What may be dispatched: as in announce(), and in `domain::may_be_dispatched`.
            let rows = sqlx::query!(
                r#"
                SELECT workflowid AS "job_id: JobId", namespace AS "namespace: Namespace", owner AS "owner: Owner",
                       agreementid AS "agreement_id: AgreementId", workflow,
                       coalesce(extract(epoch FROM datecreated), 0)::float8 AS "created!"
                FROM jobs
                WHERE NOT registered AND datefinished IS NULL AND registerat <= clock_timestamp()
                  AND (status <> $4 OR coalesce(stopreq, 0) = 0 AND coalesce(removed, 0) = 0
                                       AND (validuntil IS NULL
                                            OR validuntil > extract(epoch FROM clock_timestamp())))
                  AND (coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid) > ($1, $2)
                ORDER BY coalesce(extract(epoch FROM datecreated), 0)::float8, workflowid
                LIMIT $3
                "#,
                position,
                name,
                WORKFLOW_PAGE_ROWS as i64,
                Status::WarmingUp.code(),
            )
            .fetch_all(connection)
            .await?;
            let last = rows.last().map(|row| (row.created, row.job_id.to_string()));
            let next = Cursor::after_page(rows.len(), WORKFLOW_PAGE_ROWS, last);
            let jobs = rows.into_iter().map(|row| UnregisteredJob {
                job_id: row.job_id,
                namespace: row.namespace,
                owner: row.owner,
                agreement_id: row.agreement_id,
                workflow: row.workflow,
            });
            Ok((jobs.collect(), next))
        })
        .await
    }

    /// For how many seconds the oldest unfinished job without a WorkFlow object has waited for it; 0 if there is none.
    pub async fn oldest_unregistered(&self) -> Result<f64, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                r#"
                SELECT coalesce(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - min(datecreated)), 0)::float8
                    AS "age!"
                FROM jobs WHERE NOT registered AND datefinished IS NULL
                "#
            )
            .fetch_one(connection)
            .await?)
        })
        .await
    }
}
