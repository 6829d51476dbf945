//! The jobs: lists of them, and what some routes need to know of one.

mod change;
mod start;

pub use change::{Change, ChangedJobs, JobSelector, RequestedBy, TouchedJob};
pub use start::{NewJob, StartOutcome};

use futures_util::TryStreamExt;
use sqlx::PgConnection;

use super::{Database, DatabaseError};
use crate::auth::Address;
use crate::domain::{AgreementId, Job, JobId, Namespace, Owner, Status, StopRequest, output, workflow};

/// Selects the jobs of a list: those that match all fields that are given. Without any, none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Jobs of this agreement.
    pub agreement_id: Option<AgreementId>,
    /// The job with this id.
    pub job_id: Option<JobId>,
    /// Jobs of this owner.
    pub owner: Option<Owner>,
}

/// A part of a list, in rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListRange {
    /// The maximum number of rows.
    pub limit: i64,
    /// The number of rows that are skipped.
    pub offset: i64,
}

/// What getResult needs to know of a job.
#[derive(Debug, Clone)]
pub struct ResultRow {
    /// The signer who started the job.
    pub provider: Option<Address>,
    /// Whether `provider` is the true signer: not so in rows of the Python service.
    pub signer_verified: bool,
    /// Whether the job was deleted or its outputs have expired.
    pub removed: bool,
    /// JSON text: what the job published, with URLs.
    pub outputs: Option<String>,
}

/// A row as it is stored. Any column but the two ids may be missing in rows of the Python service.
struct JobRow {
    agreement_id: AgreementId,
    job_id: JobId,
    owner: Option<Owner>,
    status: Option<Status>,
    status_text: Option<String>,
    date_created: Option<String>,
    date_finished: Option<String>,
    outputs: Option<String>,
    namespace: Option<Namespace>,
    stop_requested: Option<StopRequest>,
    removed: Option<i16>,
    workflow: Option<String>,
    reason: Option<String>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        let summary = workflow::summarize(row.workflow.as_deref());
        if !summary.readable {
            tracing::warn!(job = %row.job_id, "the stored workflow of a job is damaged");
        }
        let outputs = row.outputs.filter(|outputs| !outputs.is_empty());
        if outputs.as_deref().is_some_and(|outputs| output::parse(outputs).is_none()) {
            tracing::warn!(job = %row.job_id, "the stored outputs of a job are damaged or empty");
        }
        Self {
            id: row.job_id,
            agreement_id: row.agreement_id,
            owner: row.owner,
            status: row.status,
            status_text: row.status_text,
            date_created: row.date_created,
            date_finished: row.date_finished,
            outputs: outputs.as_deref().and_then(output::parse).map(output::without_urls),
            namespace: row.namespace,
            stop_requested: row.stop_requested.unwrap_or(StopRequest::NONE),
            removed: row.removed.is_some_and(|removed| removed != 0),
            summary,
            reason: row.reason,
        }
    }
}

/// Selects jobs. Rows are converted one by one: a workflow may hold hundreds of kilobytes, and a list thousands of
/// jobs. Timestamps carry no time zone and are read as UTC.
macro_rules! select_jobs {
    ($connection:expr, $condition:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            JobRow,
            r#"SELECT agreementid AS "agreement_id: AgreementId", workflowid AS "job_id: JobId", owner AS "owner: Owner",
                      status AS "status: Status", statustext AS status_text,
                      to_char(extract(epoch FROM datecreated), 'FM9999999999990.000000') AS date_created,
                      to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') AS date_finished,
                      outputsurl AS outputs, namespace AS "namespace: Namespace",
                      stopreq AS "stop_requested: StopRequest", removed, workflow, reason
               FROM jobs "# + $condition,
            $($argument),*
        )
        .fetch($connection)
        .map_ok(Job::from)
        .try_collect::<Vec<Job>>()
        .await
        .map_err(DatabaseError::from)
    };
}

impl Database {
    /// Records that a job's object is in the cluster.
    pub async fn record_registration(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!("UPDATE jobs SET registered = true WHERE workflowid = $1", job_id.as_str())).await?;
        Ok(())
    }

    /// The jobs that match, newest first.
    pub async fn list_jobs(&self, filter: JobFilter, range: ListRange) -> Result<Vec<Job>, DatabaseError> {
        self.run(async |connection| select(connection, &filter, range).await).await
    }

    /// Every unfinished job, oldest first.
    pub async fn list_unfinished(&self, range: ListRange) -> Result<Vec<Job>, DatabaseError> {
        self.run(async |connection| {
            select_jobs!(
                connection,
                "WHERE datefinished IS NULL ORDER BY datecreated, workflowid LIMIT $1 OFFSET $2",
                range.limit,
                range.offset
            )
        })
        .await
    }

    /// What getResult needs to know of a job; `None` unless the job exists and is the owner's.
    pub async fn result(&self, job_id: &JobId, owner: &Owner) -> Result<Option<ResultRow>, DatabaseError> {
        self.run(async |connection| {
            let row = sqlx::query!(
                r#"
                SELECT provider, signerverified AS signer_verified, coalesce(removed, 0) <> 0 AS "removed!",
                       outputsurl AS outputs
                FROM jobs
                WHERE workflowid = $1 AND owner = $2
                LIMIT 1
                "#,
                job_id.as_str(),
                owner.as_str(),
            )
            .fetch_optional(connection)
            .await?;
            Ok(row.map(|row| ResultRow {
                provider: row.provider.and_then(|address| address.parse().ok()),
                signer_verified: row.signer_verified,
                removed: row.removed,
                outputs: row.outputs,
            }))
        })
        .await
    }

    /// The namespace of a job; `None` if its row has none or there is no such job.
    pub async fn namespace(&self, job_id: &JobId) -> Result<Option<Namespace>, DatabaseError> {
        self.run(async |connection| {
            let namespace = sqlx::query_scalar!(
                r#"SELECT namespace AS "namespace: Namespace" FROM jobs WHERE workflowid = $1 LIMIT 1"#,
                job_id.as_str(),
            )
            .fetch_optional(connection)
            .await?;
            Ok(namespace.flatten())
        })
        .await
    }
}

/// One statement for each index, the narrowest first: a statement with all three optional would be planned without any.
async fn select(
    connection: &mut PgConnection,
    filter: &JobFilter,
    range: ListRange,
) -> Result<Vec<Job>, DatabaseError> {
    let agreement_id = filter.agreement_id.as_ref().map(AgreementId::as_str);
    let owner = filter.owner.as_ref().map(Owner::as_str);
    match (&filter.job_id, agreement_id, owner) {
        (Some(job_id), agreement_id, owner) => select_jobs!(
            connection,
            "WHERE workflowid = $1 AND ($2::text IS NULL OR agreementid = $2) AND ($3::text IS NULL OR owner = $3)
             ORDER BY datecreated DESC, workflowid LIMIT $4 OFFSET $5",
            job_id.as_str(),
            agreement_id,
            owner,
            range.limit,
            range.offset
        ),
        (None, Some(agreement_id), owner) => select_jobs!(
            connection,
            "WHERE agreementid = $1 AND ($2::text IS NULL OR owner = $2)
             ORDER BY datecreated DESC, workflowid LIMIT $3 OFFSET $4",
            agreement_id,
            owner,
            range.limit,
            range.offset
        ),
        (None, None, Some(owner)) => select_jobs!(
            connection,
            "WHERE owner = $1 ORDER BY datecreated DESC, workflowid LIMIT $2 OFFSET $3",
            owner,
            range.limit,
            range.offset
        ),
        (None, None, None) => Ok(Vec::new()),
    }
}
