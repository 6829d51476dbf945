//! Starting a job: inserts its row.

use sqlx::{Acquire, PgConnection};

use super::{JobFilter, ListRange};
use crate::auth::{Address, NonceUse};
use crate::db::{Database, DatabaseError, NonceError, nonces};
use crate::domain::workflow::Summary;
use crate::domain::{AgreementId, ChainId, Job, JobId, Namespace, Owner, Status, StopRequest, environment};

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
    /// What the status object shows of the workflow.
    pub summary: Summary,
}

/// The result of a start. The nonce is taken in each case.
#[derive(Debug, Clone)]
pub enum StartOutcome {
    /// The job is inserted.
    Accepted(Box<Job>),
    /// The agreement has an unfinished job.
    AgreementInUse,
    /// No engine has announced the environment for the job's chain.
    EnvironmentUnknown,
}

impl Database {
    /// Takes the nonce, checks agreement and environment, and inserts the job, in one transaction.
    ///
    /// # Errors
    /// If the nonce is refused or the database fails. Then nothing was written, not even the nonce.
    pub async fn start(&self, job: NewJob, nonce: Option<NonceUse>) -> Result<StartOutcome, NonceError> {
        let result = self
            .run(async |connection| {
                let mut transaction = connection.begin().await?;
                if let Some(nonce) = &nonce {
                    nonces::take(&mut transaction, nonce).await?;
                }
                let outcome = match refusal(&mut transaction, &job).await? {
                    Some(refused) => refused,
                    None => insert(&mut transaction, &job).await?,
                };
                transaction.commit().await?;
                Ok(outcome)
            })
            .await;
        match result {
            // No connection was acquired, so nothing was sent.
            Err(NonceError::Database(DatabaseError::Unavailable(sqlx::Error::PoolTimedOut))) => result,
            // The connection may have been lost after the commit. Then the job is there, and an error would make the
            // caller's next attempt fail.
            Err(NonceError::Database(error)) => {
                let filter = JobFilter { job_id: Some(job.job_id), ..JobFilter::default() };
                let found = self.list_jobs(filter, ListRange { limit: 1, offset: 0 }).await.unwrap_or_default();
                let job = found.into_iter().next().ok_or(error)?;
                Ok(StartOutcome::Accepted(Box::new(job)))
            }
            result => result,
        }
    }
}

/// Checks agreement and environment. Returns why the job cannot be started; `None` if it can.
async fn refusal(connection: &mut PgConnection, job: &NewJob) -> Result<Option<StartOutcome>, DatabaseError> {
    let found = sqlx::query!(
        r#"
        SELECT EXISTS (SELECT FROM jobs WHERE agreementid = $1 AND datefinished IS NULL) AS "in_use!",
               EXISTS (SELECT FROM envs WHERE namespace = $2) AS "announced!",
               (SELECT status FROM envs WHERE namespace = $2) AS announcement
        "#,
        job.agreement_id.as_str(),
        job.environment.as_str(),
    )
    .fetch_one(connection)
    .await?;
    if found.in_use {
        return Ok(Some(StartOutcome::AgreementInUse));
    }
    let announcement = found.announcement.unwrap_or_default();
    let accepts = found.announced && environment::allows_chain(&announcement, job.chain_id.as_ref());
    Ok((job.must_be_announced && !accepts).then_some(StartOutcome::EnvironmentUnknown))
}

async fn insert(connection: &mut PgConnection, job: &NewJob) -> Result<StartOutcome, DatabaseError> {
    // Another start of the same agreement may be under way: then this waits for its end, and the index
    // jobs_active_agreement decides.
    let date_created = sqlx::query_scalar!(
        r#"
        INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, laststatusupdate, workflow,
                          namespace, provider, chainid, validuntil, signerverified, registered)
        VALUES ($1, $2, $3, $4, $5, clock_timestamp() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', $6, $7, $8, $9, $10,
                true, false)
        ON CONFLICT (agreementid) WHERE datefinished IS NULL AND signerverified DO NOTHING
        RETURNING to_char(extract(epoch FROM datecreated), 'FM9999999999990.000000')
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
    )
    .fetch_optional(connection)
    .await?;
    let Some(date_created) = date_created else {
        return Ok(StartOutcome::AgreementInUse);
    };
    Ok(StartOutcome::Accepted(Box::new(Job {
        id: job.job_id.clone(),
        agreement_id: job.agreement_id.clone(),
        owner: Some(job.owner.clone()),
        status: Some(Status::WarmingUp),
        status_text: None,
        date_created,
        date_finished: None,
        outputs: None,
        namespace: Some(job.environment.clone()),
        stop_requested: StopRequest::NONE,
        removed: false,
        summary: job.summary.clone(),
        reason: None,
    })))
}
