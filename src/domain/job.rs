//! A job, as its row describes it.

use serde_json::Value;

use super::workflow::Summary;

/// A job as anyone may know it: no URL, no secret, no code. What is missing in a row of the old service is
/// missing here.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// The job's id; in rows of the old service not necessarily a [`JobId`].
    pub id: String,
    /// The agreement that the job serves.
    pub agreement_id: String,
    /// Whose job it is.
    pub owner: Option<String>,
    /// See [`status_text`].
    pub status: Option<i32>,
    /// The words for it, as the engine wrote them.
    pub status_text: Option<String>,
    /// Seconds since the epoch, with 6 decimals.
    pub date_created: Option<String>,
    /// Seconds since the epoch, with 6 decimals; `None` while the job is not finished.
    pub date_finished: Option<String>,
    /// What the job has published, without URLs.
    pub outputs: Option<Vec<Value>>,
    /// Where the job runs.
    pub namespace: Option<String>,
    /// 0 none, 1 a stop was asked for, 2 over its time limit.
    pub stop_requested: i16,
    /// 1 once the job was deleted or has expired.
    pub removed: i16,
    /// What its workflow says.
    pub summary: Summary,
    /// Why the job was ended, if somebody had to.
    pub reason: Option<String>,
}
