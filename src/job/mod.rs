//! What a job is: its identifier, its status codes, the workflow it runs. Pure: no I/O, no clock.

pub mod environment;
pub mod nonce;
pub mod output;
pub mod workflow;

use std::fmt;

use serde::Serialize;
use serde_json::Value;

use workflow::Summary;

/// A job's identifier: 32 hex digits, no dashes. It is also the name of everything that belongs to the job
/// in the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct JobId(String);

impl JobId {
    /// An identifier that no other job has.
    pub fn new() -> Self {
        Self(uuid::Uuid::new_v4().simple().to_string())
    }

    /// Reads an identifier that came from outside; `None` if no job can have it.
    ///
    /// Rows of the books may hold others than this service gives out, so whatever may name a Kubernetes
    /// object (RFC 1123, with room for the longest suffix, `-configure-job`) is taken.
    pub fn parse(text: &str) -> Option<Self> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let fits = (1..=49).contains(&text.len())
            && text.bytes().all(|byte| plain(byte) || byte == b'-')
            && text.bytes().next().is_some_and(plain)
            && text.bytes().next_back().is_some_and(plain);
        fits.then(|| Self(text.to_owned()))
    }

    /// The identifier's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for JobId {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

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

/// The status of a job that has just been accepted. From then on the engine writes the status.
pub const WARMING_UP: i32 = 1;

/// The words for a status code (contract: `http.md`, "Status object"); empty for a code nobody knows.
pub fn status_text(status: i32) -> &'static str {
    match status {
        WARMING_UP => "Warming up",
        10 => "Job started",
        20 => "Configuring volumes",
        30 => "Provisioning success",
        31 => "Data provisioning failed",
        32 => "Algorithm provisioning failed",
        40 => "Running algorithm",
        41 => "Algorithm failed",
        50 => "Filtering results",
        60 => "Publishing results",
        70 => "Job finished",
        _ => "",
    }
}

/// Whether the engine is done with a finished job's objects, judged by the job's status alone.
///
/// A finished job with another status may still be publishing: its objects stay for an hour after its end
/// (contract: `engine.md`, "Finished").
pub fn is_settled(status: i32) -> bool {
    matches!(status, 31 | 32 | 70)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn job_ids_name_kubernetes_objects() {
        assert_eq!(JobId::new().as_str().len(), 32);
        assert!(JobId::parse(JobId::new().as_str()).is_some());
        assert!(JobId::parse("old-job-1").is_some());
        for bad in ["", "-a", "a-", "A", "a,b", "a/b", "ä", &"a".repeat(50)] {
            assert_eq!(JobId::parse(bad), None, "{bad}");
        }
    }
}
