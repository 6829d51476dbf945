//! Starting a job: inserts its row.

use serde_json::Value;
use sqlx::PgConnection;

use super::{JobFilter, ListRange};
use crate::auth::{Address, NonceUse};
use crate::db::nonces::{NonceArguments, NonceResult, Verdict};
use crate::db::session::STATEMENT_EXPIRY;
use crate::db::{Database, DatabaseError, NonceError};
use crate::domain::workflow::Summary;
use crate::domain::{AgreementId, ChainId, Job, JobId, Namespace, Owner, Status, StopRequest};

/// A job to insert.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The job's id.
    pub job_id: JobId,
    /// The agreement that the job serves.
    pub agreement_id: AgreementId,
    /// The account that the job belongs to.
    pub owner: Owner,
    /// The signer who starts it.
    pub provider: Address,
    /// The environment that is to run it.
    pub environment: Namespace,
    /// Whether an engine has to have announced that environment, for the job's chain.
    pub must_be_announced: bool,
    /// The job's chain, if the caller named one.
    pub chain_id: Option<ChainId>,
    /// The time after which it may not be started, in seconds since the epoch.
    pub valid_until: Option<i64>,
    /// The document that the engine reads, as ASCII.
    pub workflow: String,
    /// What lists show of the workflow.
    pub summary: Summary,
}

/// The result of a start. The nonce is used in each case.
#[derive(Debug, Clone)]
pub enum StartOutcome {
    /// The job is inserted.
    Accepted(Box<Job>),
    /// The same request was accepted before, and started this job.
    Repeated(Box<Job>),
    /// The agreement has an unfinished job.
    AgreementInUse,
    /// No engine has announced the environment for the job's chain.
    EnvironmentUnknown,
}

impl Database {
    /// Uses the nonce, checks agreement and environment, and inserts the job, in one statement.
    ///
    /// # Errors
    /// If the nonce is refused or the database fails. Then nothing was written, or the same request may find out what
    /// was.
    pub async fn start(&self, job: NewJob, nonce: Option<NonceUse>) -> Result<StartOutcome, NonceError> {
        let insertion = self.run(async |connection| insert(connection, &job, nonce.as_ref()).await).await?;
        let refusal = match insertion {
            Insertion { in_use: true, .. } => Some(StartOutcome::AgreementInUse),
            Insertion { accepted_by_environment: false, .. } => Some(StartOutcome::EnvironmentUnknown),
            _ => None,
        };
        let result = NonceResult { refusal: insertion.refusal, highest: insertion.highest, made: insertion.made };
        match result.verdict(nonce.as_ref()) {
            Verdict::Refused(refused) => Err(refused.into()),
            Verdict::Repeated { made, refused } => match (self.job(JobId::stored(made)).await?, refusal) {
                (Some(job), _) => Ok(StartOutcome::Repeated(Box::new(job))),
                (None, Some(refusal)) => Ok(refusal),
                // What it was refused for has passed since.
                (None, None) => Err(refused.into()),
            },
            Verdict::Accepted => match (insertion.date_created, refusal) {
                (Some(date_created), _) => Ok(StartOutcome::Accepted(Box::new(job.accepted(date_created)))),
                (None, Some(refusal)) => Ok(refusal),
                // The agreement has another job since a moment ago, or this very one: inserted on a connection that
                // was lost.
                (None, None) => {
                    let found = self.job(job.job_id).await?;
                    Ok(found.map_or(StartOutcome::AgreementInUse, |job| StartOutcome::Accepted(Box::new(job))))
                }
            },
        }
    }

    async fn job(&self, job_id: JobId) -> Result<Option<Job>, NonceError> {
        let filter = JobFilter { job_id: Some(job_id), ..JobFilter::default() };
        let page = self.list_jobs(filter, ListRange { limit: 1, offset: 0 }, None).await?;
        Ok(page.jobs.into_iter().next())
    }
}

impl NewJob {
    /// The job as it is after its insertion.
    fn accepted(self, date_created: String) -> Job {
        Job {
            id: self.job_id,
            agreement_id: self.agreement_id,
            owner: Some(self.owner),
            status: Some(Status::WarmingUp),
            status_text: None,
            date_created: Some(date_created),
            date_finished: None,
            outputs: None,
            namespace: Some(self.environment),
            stop_requested: StopRequest::NONE,
            removed: false,
            summary: self.summary,
            reason: None,
        }
    }
}

/// What the insertion of a job found.
struct Insertion {
    refusal: Option<String>,
    highest: Option<String>,
    made: Option<String>,
    /// Whether the agreement has another unfinished job.
    in_use: bool,
    accepted_by_environment: bool,
    /// Seconds since the epoch; `None` if the job was not inserted.
    date_created: Option<String>,
}

async fn insert(
    connection: &mut PgConnection,
    job: &NewJob,
    nonce: Option<&NonceUse>,
) -> Result<Insertion, DatabaseError> {
    let nonce = NonceArguments::new(nonce);
    // Another start of the same agreement may be under way: then this waits for its end, and the index
    // jobs_active_agreement decides. If the very same one was run before, on a connection that was lost, its job may have
    // finished since: then the key of `jobs` decides.
    Ok(sqlx::query_as!(
        Insertion,
        r#"
        WITH nonce AS MATERIALIZED (
            SELECT refusal, highest, made FROM use_nonce($13, $14, $15, $16, $17, $2)
        ), checks AS MATERIALIZED (
            SELECT EXISTS (SELECT FROM jobs WHERE agreementid = $1 AND datefinished IS NULL AND workflowid <> $2) AS in_use,
                   NOT $18 OR EXISTS (SELECT FROM envs
                                      WHERE envs.namespace = $7 AND announcement_allows(envs.status, $9)) AS accepted
        ), inserted AS (
            INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, laststatusupdate,
                              workflow, namespace, provider, chainid, validuntil, algodid, inputdids, workflowchain,
                              signerverified, registered)
            SELECT $1, $2, $3, $4, $5, clock_timestamp() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', $6, $7, $8, $9, $10,
                   $11, $12, $19, true, false
            FROM nonce, checks
            WHERE nonce.refusal IS NULL AND checks.accepted AND NOT checks.in_use
            ON CONFLICT DO NOTHING
            RETURNING to_char(extract(epoch FROM datecreated), 'FM9999999999990.000000') AS date_created
        )
        SELECT nonce.refusal, nonce.highest, nonce.made, checks.in_use AS "in_use!",
               checks.accepted AS "accepted_by_environment!", (SELECT date_created FROM inserted) AS date_created
        FROM nonce, checks
        WHERE in_time($20, (SELECT count(*) FROM inserted))
        "#,
        job.agreement_id.as_str(),
        job.job_id.as_str(),
        job.owner.as_str(),
        Status::WarmingUp.code(),
        Status::WarmingUp.text(),
        job.workflow,
        job.environment.as_str(),
        job.provider.to_lowercase(),
        job.chain_id.as_ref().map(ChainId::as_str),
        job.valid_until,
        job.summary.algo_did,
        job.summary.input_dids_json(),
        nonce.signer,
        nonce.nonce,
        nonce.window,
        nonce.shared,
        nonce.request,
        job.must_be_announced,
        job.summary.chain_id.as_ref().map(Value::to_string),
        STATEMENT_EXPIRY.as_secs_f64(),
    )
    .fetch_one(connection)
    .await?)
}
