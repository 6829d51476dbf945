//! The jobs: lists of them, and what some routes need to know of one.

mod change;
mod start;

pub use change::{Change, ChangedJobs, JobSelector, RequestedBy, TouchedJob};
pub use start::{NewJob, StartOutcome};

use serde::de::DeserializeOwned;
use serde_json::Value;
use sqlx::PgConnection;

use super::nonces::{NonceArguments, NonceResult, Verdict};
use super::{Database, DatabaseError, NonceError};
use crate::auth::{Address, NonceUse};
use crate::domain::workflow::Summary;
use crate::domain::{AgreementId, Job, JobId, Namespace, Owner, Status, StopRequest, output};

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

/// A part of a list.
#[derive(Debug, Clone)]
pub struct Page {
    /// The jobs.
    pub jobs: Vec<Job>,
    /// The offset at which the list continues, if it does.
    pub next: Option<i64>,
}

/// The maximum size of a page as JSON, in bytes: a Lambda function can return 6 MB (docs/contract/http.md, "Lists").
const MAX_PAGE_BYTES: i64 = 5_000_000;

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

/// A row of a list, if there is one, and what the database says of the request's nonce. Any column but the two ids may
/// be missing in rows of the Python service.
struct ListRow {
    refusal: Option<String>,
    highest: Option<String>,
    /// The number of rows from the offset on, up to one more than the limit.
    found: Option<i64>,
    agreement_id: Option<AgreementId>,
    job_id: Option<JobId>,
    owner: Option<Owner>,
    status: Option<Status>,
    status_text: Option<String>,
    date_created: Option<String>,
    date_finished: Option<String>,
    outputs: Option<String>,
    namespace: Option<Namespace>,
    stop_requested: Option<StopRequest>,
    removed: Option<i16>,
    algo_did: Option<String>,
    input_dids: Option<String>,
    workflow_chain: Option<String>,
    reason: Option<String>,
}

impl ListRow {
    /// The job, and whether a part of the row is damaged; `None` if there is no row.
    fn job(self) -> Option<(Job, bool)> {
        let unreadable = self.algo_did.as_deref() == Some("");
        let outputs = self.outputs.filter(|outputs| !outputs.is_empty());
        let entries: Option<Vec<Value>> = read(outputs.as_deref());
        let damaged = unreadable || outputs.is_some() && entries.is_none();
        let job = Job {
            id: self.job_id?,
            agreement_id: self.agreement_id?,
            owner: self.owner,
            status: self.status,
            status_text: self.status_text,
            date_created: self.date_created,
            date_finished: self.date_finished,
            outputs: entries.filter(|entries| !entries.is_empty()).map(output::without_urls),
            namespace: self.namespace,
            stop_requested: self.stop_requested.unwrap_or(StopRequest::NONE),
            removed: self.removed.is_some_and(|removed| removed != 0),
            summary: Summary {
                algo_did: self.algo_did.filter(|did| !did.is_empty()).unwrap_or_else(|| "raw".to_owned()),
                input_dids: read(self.input_dids.as_deref()).unwrap_or_default(),
                chain_id: read(self.workflow_chain.as_deref()),
            },
            reason: self.reason,
        };
        Some((job, damaged))
    }
}

fn read<T: DeserializeOwned>(json: Option<&str>) -> Option<T> {
    serde_json::from_str(json?).ok()
}

/// Selects a page of jobs, if the request's nonce is not refused, in one statement. No list reads a workflow: what it
/// shows of one has columns of its own. The page ends before [`MAX_PAGE_BYTES`]; the sizes of columns are read without
/// their values, and count characters that JSON escapes. Timestamps carry no time zone and are read as UTC.
macro_rules! select_jobs {
    ($connection:expr, $nonce:expr, $range:expr, $condition:literal, $order:literal, $($argument:expr),*) => {{
        let arguments = NonceArguments::new($nonce);
        let rows = sqlx::query_as!(
            ListRow,
            r#"
            SELECT nonce.refusal AS "refusal?", nonce.highest AS "highest?", page.found AS "found?",
                   page.agreementid AS "agreement_id?: AgreementId", page.workflowid AS "job_id?: JobId",
                   page.owner AS "owner?: Owner", page.status AS "status?: Status", page.statustext AS "status_text?",
                   to_char(extract(epoch FROM page.datecreated), 'FM9999999999990.000000') AS date_created,
                   to_char(extract(epoch FROM page.datefinished), 'FM9999999999990.000000') AS date_finished,
                   page.outputsurl AS "outputs?", page.namespace AS "namespace?: Namespace",
                   page.stopreq AS "stop_requested?: StopRequest", page.removed AS "removed?",
                   page.algodid AS "algo_did?", page.inputdids AS "input_dids?",
                   page.workflowchain AS "workflow_chain?", page.reason AS "reason?"
            FROM nonce_refusal($1, $2, $3, NULL) AS nonce
            LEFT JOIN LATERAL (
                SELECT *, count(*) OVER () AS found, row_number() OVER rows AS number, sum(size) OVER rows AS total
                FROM (
                    SELECT agreementid, workflowid, owner, status, statustext, datecreated, datefinished, outputsurl,
                           namespace, stopreq, removed, algodid, inputdids, workflowchain, reason,
                           500 + 2 * (octet_length(agreementid) + coalesce(octet_length(owner), 0)
                                      + coalesce(octet_length(reason), 0))
                           + 6 * coalesce(octet_length(algodid), 0) + coalesce(octet_length(inputdids), 0)
                           + coalesce(octet_length(workflowchain), 0) + coalesce(octet_length(outputsurl), 0) AS size
                    FROM jobs
                    WHERE nonce.refusal IS NULL AND "# + $condition + " ORDER BY " + $order + r#"
                    LIMIT $4::bigint + 1 OFFSET $5
                ) AS listed
                WINDOW rows AS (ORDER BY "# + $order + r#" ROWS UNBOUNDED PRECEDING)
            ) AS page ON page.number <= $4 AND (page.total <= $6 OR page.number = 1)
            ORDER BY page.number
            "#,
            arguments.signer,
            arguments.nonce,
            arguments.window,
            $range.limit,
            $range.offset,
            MAX_PAGE_BYTES,
            $($argument),*
        )
        .fetch_all($connection)
        .await?;
        Ok(Listed(rows))
    }};
}

/// The rows of a page.
struct Listed(Vec<ListRow>);

impl Listed {
    fn page(self, nonce: Option<&NonceUse>, range: ListRange) -> Result<Page, NonceError> {
        let Some(first) = self.0.first() else { return Ok(Page { jobs: Vec::new(), next: None }) };
        let (refusal, highest, found) = (first.refusal.clone(), first.highest.clone(), first.found.unwrap_or(0));
        if let Verdict::Refused(refused) = (NonceResult { refusal, highest, made: None }).verdict(nonce) {
            return Err(refused.into());
        }
        let (jobs, damaged): (Vec<_>, Vec<_>) = self.0.into_iter().filter_map(ListRow::job).unzip();
        let damaged_rows = damaged.iter().filter(|damaged| **damaged).count();
        if let Some(example) = damaged.iter().position(|damaged| *damaged) {
            let job = &jobs[example].id;
            tracing::warn!(damaged_rows, %job, "stored workflows or outputs of jobs are damaged or empty");
        }
        let returned = jobs.len() as i64;
        Ok(Page { next: (returned < found && range.limit > 0).then_some(range.offset + returned), jobs })
    }
}

impl Database {
    /// Records that a job's object is in the cluster.
    pub async fn record_registration(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.run(async |connection| {
            // A sweep that looked for the object before it was there left it alone: now its status is to be written.
            sqlx::query!(
                "WITH registered AS (UPDATE jobs SET registered = true WHERE workflowid = $1)
                 UPDATE reaperjobs SET objectdue = clock_timestamp() WHERE workflowid = $1 AND objectdue = 'infinity'",
                job_id.as_str()
            )
            .execute(connection)
            .await?;
            Ok(())
        })
        .await
    }

    /// The jobs that match, newest first, if the nonce of the request is not refused. The nonce is not used.
    pub async fn list_jobs(
        &self,
        filter: JobFilter,
        range: ListRange,
        nonce: Option<NonceUse>,
    ) -> Result<Page, NonceError> {
        let listed = self.run(async |connection| select(connection, &filter, range, nonce.as_ref()).await).await?;
        listed.page(nonce.as_ref(), range)
    }

    /// Every unfinished job, oldest first.
    pub async fn list_unfinished(&self, range: ListRange) -> Result<Page, NonceError> {
        let listed = self.run(async |connection| {
            select_jobs!(connection, None, range, "datefinished IS NULL", "datecreated, workflowid",)
        });
        listed.await?.page(None, range)
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
    nonce: Option<&NonceUse>,
) -> Result<Listed, DatabaseError> {
    let agreement_id = filter.agreement_id.as_ref().map(AgreementId::as_str);
    let owner = filter.owner.as_ref().map(Owner::as_str);
    match (&filter.job_id, agreement_id, owner) {
        (Some(job_id), agreement_id, owner) => select_jobs!(
            connection,
            nonce,
            range,
            "workflowid = $7 AND ($8::text IS NULL OR agreementid = $8) AND ($9::text IS NULL OR owner = $9)",
            "datecreated DESC, workflowid",
            job_id.as_str(),
            agreement_id,
            owner
        ),
        (None, Some(agreement_id), owner) => select_jobs!(
            connection,
            nonce,
            range,
            "agreementid = $7 AND ($8::text IS NULL OR owner = $8)",
            "datecreated DESC, workflowid",
            agreement_id,
            owner
        ),
        (None, None, Some(owner)) => {
            select_jobs!(connection, nonce, range, "owner = $7", "datecreated DESC, workflowid", owner)
        }
        (None, None, None) => Ok(Listed(Vec::new())),
    }
}
