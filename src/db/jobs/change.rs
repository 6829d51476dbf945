//! Stopping and deleting jobs.

use sqlx::PgConnection;
use uuid::Uuid;

use super::{JobFilter, ListRange, Page, select};
use crate::auth::{Address, NonceUse};
use crate::db::nonces::{NonceArguments, NonceResult, Verdict};
use crate::db::session::STATEMENT_EXPIRY;
use crate::db::{Database, DatabaseError, NonceError};
use crate::domain::{AgreementId, JobId, Namespace, Owner};

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
    pub page: Page,
}

impl Database {
    /// Uses the nonce and marks the selected jobs, in one statement. Returns the jobs that were touched, and all that
    /// match in the range. The same request again touches none.
    ///
    /// # Errors
    /// If the nonce is refused or the database fails. Then nothing was changed, or the same request may find out what
    /// was.
    pub async fn change(
        &self,
        change: Change,
        selector: JobSelector,
        requested_by: RequestedBy,
        nonce: Option<NonceUse>,
        range: ListRange,
    ) -> Result<ChangedJobs, NonceError> {
        let attempt = Uuid::new_v4().simple().to_string();
        let (rows, listed) = self
            .run(async |connection| {
                let rows = mark(connection, change, &selector, requested_by, nonce.as_ref(), &attempt).await?;
                Ok((rows, select(connection, &selector.filter(), range, None).await?))
            })
            .await?;
        let result = rows.first().map(|row| NonceResult {
            refusal: row.refusal.clone(),
            highest: row.highest.clone(),
            made: row.made.clone(),
        });
        if let Some(Verdict::Refused(refused)) = result.map(|result| result.verdict(nonce.as_ref())) {
            return Err(refused.into());
        }
        let touched = rows.into_iter().filter_map(MarkedRow::touched).collect();
        Ok(ChangedJobs { touched, page: listed.page(None, range)? })
    }
}

/// A job that was marked, if there is one, and what the database says of the request's nonce.
struct MarkedRow {
    refusal: Option<String>,
    highest: Option<String>,
    made: Option<String>,
    job_id: Option<JobId>,
    namespace: Option<Namespace>,
    unfinished: Option<bool>,
    settled: Option<bool>,
}

impl MarkedRow {
    fn touched(self) -> Option<TouchedJob> {
        Some(TouchedJob {
            job_id: self.job_id?,
            namespace: self.namespace,
            unfinished: self.unfinished?,
            settled: self.settled?,
        })
    }
}

/// Requests a stop of the selected unfinished jobs, and with [`Change::Delete`] marks the selected jobs as removed, but
/// those that are. The end of a finished job never changes.
macro_rules! mark_jobs {
    ($connection:expr, $change:expr, $requested_by:expr, $nonce:expr, $attempt:expr, $condition:literal,
     $($argument:expr),*) => {{
        let nonce = NonceArguments::new($nonce);
        let signer = match $requested_by {
            RequestedBy::Anyone => None,
            RequestedBy::Signer(signer) => Some(signer.to_lowercase()),
        };
        Ok(sqlx::query_as!(
            MarkedRow,
            r#"
            WITH nonce AS MATERIALIZED (
                SELECT refusal, highest, made FROM use_nonce($1, $2, $3, $4, $5, $6)
            ), marked AS (
                UPDATE jobs
                SET stopreq = CASE WHEN datefinished IS NULL THEN 1 ELSE stopreq END,
                    removed = CASE WHEN $7 THEN 1 ELSE removed END
                FROM nonce
                WHERE nonce.refusal IS NULL
                  AND CASE WHEN $7 THEN coalesce(removed, 0) <> 1 ELSE datefinished IS NULL END
                  AND ($8::text IS NULL OR NOT signerverified OR lower(provider) = $8)
                  AND "# + $condition + r#"
                RETURNING workflowid, namespace, datefinished IS NULL AS unfinished,
                          is_settled(status, datefinished) AS settled
            )
            SELECT nonce.refusal AS "refusal?", nonce.highest AS "highest?", nonce.made AS "made?",
                   marked.workflowid AS "job_id?: JobId", marked.namespace AS "namespace?: Namespace",
                   marked.unfinished AS "unfinished?", marked.settled AS "settled?"
            FROM nonce LEFT JOIN marked ON true
            WHERE in_time($9, (SELECT count(*) FROM marked))
            "#,
            nonce.signer,
            nonce.nonce,
            nonce.window,
            nonce.shared,
            nonce.request,
            $attempt,
            $change == Change::Delete,
            signer,
            STATEMENT_EXPIRY.as_secs_f64(),
            $($argument),*
        )
        .fetch_all($connection)
        .await?)
    }};
}

/// One statement for each index, the narrowest first: one with optional conditions would be planned to read all jobs of
/// the owner, of which there may be hundreds of thousands.
async fn mark(
    connection: &mut PgConnection,
    change: Change,
    selector: &JobSelector,
    requested_by: RequestedBy,
    nonce: Option<&NonceUse>,
    attempt: &str,
) -> Result<Vec<MarkedRow>, DatabaseError> {
    let owner = selector.owner.as_str();
    let agreement_id = selector.agreement_id.as_ref().map(AgreementId::as_str);
    match (&selector.job_id, agreement_id) {
        (Some(job_id), agreement_id) => mark_jobs!(
            connection,
            change,
            requested_by,
            nonce,
            attempt,
            "workflowid = $10 AND owner = $11 AND ($12::text IS NULL OR agreementid = $12)",
            job_id.as_str(),
            owner,
            agreement_id
        ),
        (None, Some(agreement_id)) => mark_jobs!(
            connection,
            change,
            requested_by,
            nonce,
            attempt,
            "agreementid = $10 AND owner = $11",
            agreement_id,
            owner
        ),
        (None, None) => mark_jobs!(connection, change, requested_by, nonce, attempt, "owner = $10", owner),
    }
}
