//! The jobs.

use futures_util::TryStreamExt;
use sqlx::{Acquire, PgConnection};

use super::{Database, DatabaseError, nonces};
use crate::auth::{Address, NonceRefused, NonceUse};
use crate::domain::{Job, JobId, Status, environment, output, workflow};

/// Which jobs a caller asks for. Without any of the three it asks for none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Which {
    /// Jobs of this agreement.
    pub agreement_id: Option<String>,
    /// The job of this id.
    pub job_id: Option<String>,
    /// Jobs of this owner.
    pub owner: Option<String>,
}

/// Which part of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// At most so many.
    pub limit: i64,
    /// After leaving out so many.
    pub offset: i64,
}

impl Page {
    /// The first so many.
    pub fn first(limit: i64) -> Self {
        Self { limit, offset: 0 }
    }
}

/// A job to be written into the books.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// The job's id.
    pub job_id: JobId,
    /// The agreement that the job serves.
    pub agreement_id: String,
    /// Whose job it is.
    pub owner: String,
    /// Who asked for it.
    pub provider: Address,
    /// The namespace it is to run in.
    pub environment: String,
    /// Whether an engine has to have announced that environment, for the job's chain.
    pub must_be_announced: bool,
    /// The chain, as text.
    pub chain_id: Option<String>,
    /// Seconds since the epoch after which it is not to be started.
    pub valid_until: Option<i64>,
    /// The document that the engine reads, as ASCII.
    pub workflow: String,
}

/// What became of a job that was to be written into the books.
#[derive(Debug, Clone)]
pub enum Started {
    /// It is there.
    Accepted(Box<Job>),
    /// The nonce did not pass.
    NonceRefused(NonceRefused),
    /// The agreement has an unfinished job. The nonce is taken.
    AgreementInUse,
    /// No engine has announced the environment for the job's chain. The nonce is taken.
    EnvironmentUnknown,
}

/// Whose jobs a change may touch.
#[derive(Debug, Clone, Copy)]
pub enum RequestedBy {
    /// Everybody's: signatures are not required.
    Anyone,
    /// Those of this signer, and those of the old service, whose signers it recovered wrongly.
    Signer(Address),
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Unfinished jobs are to stop.
    Stop,
    /// Jobs are to be removed; those not finished are to stop first.
    Delete,
}

/// A job that a change touched, as far as the cluster is concerned.
#[derive(Debug, Clone)]
pub struct TouchedJob {
    /// The job's id.
    pub job_id: String,
    /// Where it runs.
    pub namespace: Option<String>,
    /// It is not finished: its algorithm has to be ended.
    pub unfinished: bool,
    /// It is finished and its engine is done with it: its objects may go
    /// (contract: `engine.md`, "Finished").
    pub settled: bool,
}

/// What a change did.
#[derive(Debug, Clone)]
pub struct Changed {
    /// The jobs that were touched.
    pub touched: Vec<TouchedJob>,
    /// All that match, newest first.
    pub jobs: Vec<Job>,
}

/// What the hand-out of a result depends on.
#[derive(Debug, Clone)]
pub struct ResultRow {
    /// Who asked for the job; lower case.
    pub provider: Option<String>,
    /// Whether `provider` is the true signer: not so in rows of the old service.
    pub signer_verified: bool,
    /// Whether the outputs are gone.
    pub removed: bool,
    /// JSON text: what the job published, with URLs.
    pub outputs: Option<String>,
}

/// A row as it is. Any column but the two ids may be missing in rows of the old service.
struct JobRow {
    agreement_id: String,
    job_id: String,
    owner: Option<String>,
    status: Option<i32>,
    status_text: Option<String>,
    date_created: Option<String>,
    date_finished: Option<String>,
    outputs: Option<String>,
    namespace: Option<String>,
    stop_requested: Option<i16>,
    removed: Option<i16>,
    workflow: Option<String>,
    reason: Option<String>,
}

impl From<JobRow> for Job {
    fn from(row: JobRow) -> Self {
        let summary = workflow::summarize(row.workflow.as_deref());
        if !summary.readable {
            tracing::warn!(job = row.job_id, "the workflow of a job in the books is damaged");
        }
        let outputs = row.outputs.filter(|outputs| !outputs.is_empty());
        if outputs.as_deref().is_some_and(|outputs| output::parse(outputs).is_none()) {
            tracing::warn!(job = row.job_id, "the outputs of a job in the books are damaged or empty");
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
            stop_requested: row.stop_requested.unwrap_or(0),
            removed: row.removed.unwrap_or(0),
            summary,
            reason: row.reason,
        }
    }
}

/// Rows of `jobs`, one by one: a workflow may hold hundreds of kilobytes, and a list thousands of jobs.
/// (The timestamps carry no zone; as the old service did, read them as UTC.)
macro_rules! select_jobs {
    ($connection:expr, $which:literal, $($argument:expr),*) => {
        sqlx::query_as!(
            JobRow,
            r#"SELECT agreementid AS agreement_id, workflowid AS job_id, owner, status, statustext AS status_text,
                      to_char(extract(epoch FROM datecreated), 'FM9999999999990.000000') AS date_created,
                      to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') AS date_finished,
                      outputsurl AS outputs, namespace, stopreq AS stop_requested, removed, workflow, reason
               FROM jobs "# + $which,
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
    /// Takes the nonce, decides on agreement and environment, and writes the job: all or nothing. Where the
    /// request is refused after its nonce has passed, the nonce stays taken.
    pub async fn start(&self, job: NewJob, nonce: Option<NonceUse>) -> Result<Started, DatabaseError> {
        let by_id = Which { job_id: Some(job.job_id.to_string()), ..Which::default() };
        let result = self
            .run(async |connection| {
                let mut transaction = connection.begin().await?;
                let started = start(&mut transaction, &job, nonce.as_ref()).await?;
                transaction.commit().await?;
                Ok(started)
            })
            .await;
        match result {
            // Nothing was sent.
            Err(DatabaseError::Unavailable(sqlx::Error::PoolTimedOut)) => result,
            // The connection may have been lost after the commit: then the job is there, and saying that it is
            // not would make the caller's next attempt fail.
            Err(error) => match self.jobs(by_id, Page::first(1)).await {
                Ok(found) => found.into_iter().next().map(|job| Started::Accepted(Box::new(job))).ok_or(error),
                Err(_) => Err(error),
            },
            result => result,
        }
    }

    /// Notes that a job's object is in the cluster.
    pub async fn registered(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!("UPDATE jobs SET registered = true WHERE workflowid = $1", job_id.as_str())).await?;
        Ok(())
    }

    /// The jobs asked for, newest first.
    pub async fn jobs(&self, which: Which, page: Page) -> Result<Vec<Job>, DatabaseError> {
        self.run(async |connection| select(connection, &which, page).await).await
    }

    /// Every unfinished job, oldest first.
    pub async fn unfinished(&self, page: Page) -> Result<Vec<Job>, DatabaseError> {
        self.run(async |connection| {
            select_jobs!(
                connection,
                "WHERE datefinished IS NULL ORDER BY datecreated, workflowid LIMIT $1 OFFSET $2",
                page.limit,
                page.offset
            )
        })
        .await
    }

    /// Takes the nonce and marks the jobs asked for: all or nothing. Answers with the jobs that were touched,
    /// and with all that match, newest first.
    pub async fn change(
        &self,
        change: Change,
        which: Which,
        by: RequestedBy,
        nonce: Option<NonceUse>,
        page: Page,
    ) -> Result<Result<Changed, NonceRefused>, DatabaseError> {
        self.run(async |connection| {
            let mut transaction = connection.begin().await?;
            if let Some(nonce) = &nonce
                && let Err(refused) = nonces::take(&mut transaction, nonce).await?
            {
                return Ok(Err(refused));
            }
            let touched = mark(&mut transaction, change, &which, by).await?;
            let jobs = select(&mut transaction, &which, page).await?;
            transaction.commit().await?;
            Ok(Ok(Changed { touched, jobs }))
        })
        .await
    }

    /// What the hand-out of a job's results depends on; `None` unless the job exists and is the owner's.
    pub async fn result(&self, job_id: &str, owner: &str) -> Result<Option<ResultRow>, DatabaseError> {
        let (job_id, owner) = (job_id.to_owned(), owner.to_owned());
        self.run(async |connection| {
            Ok(sqlx::query_as!(
                ResultRow,
                r#"
                    SELECT provider, signerverified AS signer_verified, coalesce(removed, 0) <> 0 AS "removed!",
                           outputsurl AS outputs
                    FROM jobs
                    WHERE workflowid = $1 AND owner = $2
                    LIMIT 1
                    "#,
                job_id,
                owner,
            )
            .fetch_optional(connection)
            .await?)
        })
        .await
    }

    /// The namespace that the book has for a job; `None` if it has none or does not know the job.
    pub async fn namespace(&self, job_id: &str) -> Result<Option<String>, DatabaseError> {
        let job_id = job_id.to_owned();
        self.run(async |connection| {
            let namespace = sqlx::query_scalar!("SELECT namespace FROM jobs WHERE workflowid = $1 LIMIT 1", job_id)
                .fetch_optional(connection)
                .await?;
            Ok(namespace.flatten())
        })
        .await
    }
}

async fn start(
    connection: &mut PgConnection,
    job: &NewJob,
    nonce: Option<&NonceUse>,
) -> Result<Started, DatabaseError> {
    if let Some(nonce) = nonce
        && let Err(refused) = nonces::take(connection, nonce).await?
    {
        return Ok(Started::NonceRefused(refused));
    }

    let found = sqlx::query!(
        r#"
        SELECT EXISTS (SELECT FROM jobs WHERE agreementid = $1 AND datefinished IS NULL) AS "in_use!",
               EXISTS (SELECT FROM envs WHERE namespace = $2) AS "announced!",
               (SELECT status FROM envs WHERE namespace = $2) AS announcement
        "#,
        job.agreement_id,
        job.environment,
    )
    .fetch_one(&mut *connection)
    .await?;
    if found.in_use {
        return Ok(Started::AgreementInUse);
    }
    let chain_id = job.chain_id.as_deref();
    let announcement = found.announcement.unwrap_or_default();
    if job.must_be_announced && !(found.announced && environment::allows_chain(&announcement, chain_id)) {
        return Ok(Started::EnvironmentUnknown);
    }

    // Another start of the same agreement may be under way: then this waits for its end, and the index
    // jobs_active_agreement decides.
    let provider = job.provider.to_lowercase();
    let date_created = sqlx::query_scalar!(
        r#"
        INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, laststatusupdate, workflow,
                          namespace, provider, chainid, validuntil, signerverified, registered)
        VALUES ($1, $2, $3, $4, $5, clock_timestamp() AT TIME ZONE 'UTC', now() AT TIME ZONE 'UTC', $6, $7, $8, $9, $10,
                true, false)
        ON CONFLICT (agreementid) WHERE datefinished IS NULL AND signerverified DO NOTHING
        RETURNING to_char(extract(epoch FROM datecreated), 'FM9999999999990.000000')
        "#,
        job.agreement_id,
        job.job_id.as_str(),
        job.owner,
        Status::WarmingUp.code(),
        Status::WarmingUp.text(),
        job.workflow,
        job.environment,
        provider,
        job.chain_id,
        job.valid_until,
    )
    .fetch_optional(connection)
    .await?;
    let Some(date_created) = date_created else {
        return Ok(Started::AgreementInUse);
    };
    Ok(Started::Accepted(Box::new(Job {
        id: job.job_id.to_string(),
        agreement_id: job.agreement_id.clone(),
        owner: Some(job.owner.clone()),
        status: Some(Status::WarmingUp.code()),
        status_text: None,
        date_created,
        date_finished: None,
        outputs: None,
        namespace: Some(job.environment.clone()),
        stop_requested: 0,
        removed: 0,
        summary: workflow::summarize(Some(&job.workflow)),
        reason: None,
    })))
}

/// One statement for each index, the narrowest first: a statement with all three optional would be planned
/// without any.
async fn select(connection: &mut PgConnection, which: &Which, page: Page) -> Result<Vec<Job>, DatabaseError> {
    match which {
        Which { job_id: Some(job_id), agreement_id, owner } => select_jobs!(
            connection,
            "WHERE workflowid = $1 AND ($2::text IS NULL OR agreementid = $2) AND ($3::text IS NULL OR owner = $3)
             ORDER BY datecreated DESC, workflowid LIMIT $4 OFFSET $5",
            job_id,
            agreement_id.as_deref(),
            owner.as_deref(),
            page.limit,
            page.offset
        ),
        Which { agreement_id: Some(agreement_id), owner, .. } => select_jobs!(
            connection,
            "WHERE agreementid = $1 AND ($2::text IS NULL OR owner = $2)
             ORDER BY datecreated DESC, workflowid LIMIT $3 OFFSET $4",
            agreement_id,
            owner.as_deref(),
            page.limit,
            page.offset
        ),
        Which { owner: Some(owner), .. } => select_jobs!(
            connection,
            "WHERE owner = $1 ORDER BY datecreated DESC, workflowid LIMIT $2 OFFSET $3",
            owner,
            page.limit,
            page.offset
        ),
        Which { .. } => Ok(Vec::new()),
    }
}

/// Marks the owner's jobs as asked to stop, and as removed if that is asked for. A finished job's end is
/// never changed.
async fn mark(
    connection: &mut PgConnection,
    change: Change,
    which: &Which,
    by: RequestedBy,
) -> Result<Vec<TouchedJob>, DatabaseError> {
    let signer = match by {
        RequestedBy::Anyone => None,
        RequestedBy::Signer(signer) => Some(signer.to_lowercase()),
    };
    // The planner reaches `owner` by its index and the rest, being narrower still, by theirs.
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
        RETURNING workflowid AS job_id, namespace, datefinished IS NULL AS "unfinished!",
                  coalesce(datefinished IS NOT NULL
                           AND (status IN (31, 32, 70)
                                OR datefinished < now() AT TIME ZONE 'UTC' - interval '1 hour'), false) AS "settled!"
        "#,
        which.owner,
        which.job_id.as_deref(),
        which.agreement_id.as_deref(),
        signer,
        change == Change::Delete,
    )
    .fetch_all(connection)
    .await?)
}
