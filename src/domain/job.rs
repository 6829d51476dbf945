//! A job, as its row describes it.

use serde_json::Value;

use super::workflow::Summary;
use super::{AgreementId, JobId, Namespace, Owner, Status, StopRequest};

/// A job as every caller may see it: without URLs, secrets and code. What is missing in a row of the Python service is
/// missing here.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The job's id.
    pub id: JobId,
    /// The agreement that the job serves.
    pub agreement_id: AgreementId,
    /// The account that the job belongs to.
    pub owner: Option<Owner>,
    /// The job's state.
    pub status: Option<Status>,
    /// The state's text, as the engine wrote it.
    pub status_text: Option<String>,
    /// Seconds since the epoch, with 6 decimals.
    pub date_created: Option<String>,
    /// Seconds since the epoch, with 6 decimals; `None` while the job is not finished.
    pub date_finished: Option<String>,
    /// What the job has published, without URLs.
    pub outputs: Option<Vec<Value>>,
    /// The namespace that its row names.
    pub namespace: Option<Namespace>,
    /// The stop request, if any.
    pub stop_requested: StopRequest,
    /// Whether the job was deleted or its outputs have expired.
    pub removed: bool,
    /// What callers may see of its workflow.
    pub summary: Summary,
    /// Why the reaper ended the job or one of its steps, if it did.
    pub reason: Option<String>,
}
