//! Stopping and deleting jobs.

use sqlx::{Acquire, PgConnection};

use super::{JobFilter, ListRange, select};
use crate::auth::{Address, NonceUse};
use crate::db::{Database, DatabaseError, NonceError, nonces};
use crate::domain::{AgreementId, Job, JobId, Namespace, Owner, SETTLING_SECONDS, Status};

/// A change of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Stops unfinished jobs.
    Stop,
    /// Deletes jobs; unfinished ones are stopped first.
    Delete,
}

/// Selects the jobs that a change applies to. A type of its own, so that what is added to [`JobFilter`] cannot widen a
/// change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobSelector {
    /// Only jobs of this owner.
    pub owner: Owner,
    /// Only the job with this id, if there is one.
    pub job_id: Option<JobId>,
    /// Only jobs of this agreement, if there is one.
    pub agreement_id: Option<AgreementId>,
}

impl JobSelector {
    /// The filter that lists the same jobs.
    fn filter(&self) -> JobFilter {
        let Self { owner, job_id, agreement_id } = self.clone();
        JobFilter { agreement_id, job_id, owner: Some(owner) }
    }
}

/// The caller of a change, which decides whose jobs it may touch.
#[derive(Debug, Clone, Copy)]
pub enum RequestedBy {
    /// Anyone, who may change all jobs: signatures are not required.
    Anyone,
    /// A signer, who may change the jobs that it started, and those of the Python service, which recorded wrong
    /// signers.
    Signer(Address),
}

/// A job that a change touched, as far as the cluster is concerned.
#[derive(Debug, Clone)]
pub struct TouchedJob {
    /// The job's id.
    pub job_id: JobId,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// Whether it is unfinished: then its algorithm has to be ended.
    pub unfinished: bool,
    /// Whether it is settled: then its objects may be deleted
    /// (docs/contract/engine.md, "Finished jobs").
    pub settled: bool,
}

/// What a change did.
#[derive(Debug, Clone)]
pub struct ChangedJobs {
    /// The jobs that were touched.
    pub touched: Vec<TouchedJob>,
    /// All jobs that match, newest first.
    pub jobs: Vec<Job>,
}

impl Database {
    /// Takes the nonce and marks the selected jobs, in one transaction. Returns the jobs that were touched, and all
    /// that match in the range.
    ///
    /// # Errors
    /// If the nonce is refused or the database fails. Then nothing was changed.
    pub async fn change(
        &self,
        change: Change,
        selector: JobSelector,
        requested_by: RequestedBy,
        nonce: Option<NonceUse>,
        range: ListRange,
    ) -> Result<ChangedJobs, NonceError> {
        self.run(async |connection| {
            let mut transaction = connection.begin().await?;
            if let Some(nonce) = &nonce {
                nonces::take(&mut transaction, nonce).await?;
            }
            let touched = mark(&mut transaction, change, &selector, requested_by).await?;
            let jobs = select(&mut transaction, &selector.filter(), range).await?;
            transaction.commit().await?;
            Ok(ChangedJobs { touched, jobs })
        })
        .await
    }
}

/// Requests a stop of the selected unfinished jobs, and with [`Change::Delete`] marks all selected jobs as removed. The
/// end of a finished job never changes.
async fn mark(
    connection: &mut PgConnection,
    change: Change,
    selector: &JobSelector,
    requested_by: RequestedBy,
) -> Result<Vec<TouchedJob>, DatabaseError> {
    let signer = match requested_by {
        RequestedBy::Anyone => None,
        RequestedBy::Signer(signer) => Some(signer.to_lowercase()),
    };
    // One statement serves every selector: `owner` is always given and has an index; where an id or an agreement is
    // given, the planner uses the index on that.
    Ok(sqlx::query_as!(
        TouchedJob,
        r#"
        UPDATE jobs
        SET stopreq = CASE WHEN datefinished IS NULL THEN 1 ELSE stopreq END,
            removed = CASE WHEN $5 THEN 1 ELSE removed END
        WHERE owner = $1
          AND ($2::text IS NULL OR workflowid = $2)
          AND ($3::text IS NULL OR agreementid = $3)
          AND ($4::text IS NULL OR NOT signerverified OR lower(provider) = $4)
          AND ($5 OR datefinished IS NULL)
        RETURNING workflowid AS "job_id: JobId", namespace AS "namespace: Namespace",
                  datefinished IS NULL AS "unfinished!",
                  coalesce(datefinished IS NOT NULL
                           AND (status = ANY ($6)
                                OR datefinished < now() AT TIME ZONE 'UTC' - make_interval(secs => $7)), false)
                      AS "settled!"
        "#,
        selector.owner.as_str(),
        selector.job_id.as_ref().map(JobId::as_str),
        selector.agreement_id.as_ref().map(AgreementId::as_str),
        signer,
        change == Change::Delete,
        &Status::settled_codes(),
        SETTLING_SECONDS as f64,
    )
    .fetch_all(connection)
    .await?)
}
