//! Expiry: outputs that have expired, or whose job was deleted, are deleted.

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::Instant;

use super::sweep::{ActionResult, Applied, CONCURRENCY, Progress, Sweep};
use crate::config::ReaperRules;
use crate::db::{Cursor, DatabaseError, FinishedJob};
use crate::domain::{output, workflow};

/// The value of `jobs.expiry` of a job whose workflow sets none: the configured expiry applies.
const AS_CONFIGURED: i64 = -1;

/// When the outputs of a job expire.
#[derive(Debug, Clone, Copy)]
pub(super) struct Expiry {
    /// In how many seconds; `None` for never.
    seconds_left: Option<f64>,
    /// Whether the job's own workflow sets it, and not the configuration.
    is_own: bool,
}

impl Expiry {
    pub(super) fn of(job: &FinishedJob, rules: &ReaperRules) -> Self {
        let own = job.expiry.unwrap_or_else(|| own_expiry(job.workflow.as_deref()));
        let seconds = match own {
            AS_CONFIGURED => rules.storage_expiry.map(|seconds| seconds as f64),
            seconds => Some(seconds as f64).filter(|seconds| *seconds > 0.0),
        };
        Self { seconds_left: seconds.map(|seconds| seconds - job.age), is_own: own != AS_CONFIGURED }
    }

    pub(super) fn has_passed(self) -> bool {
        self.seconds_left.is_some_and(|left| left <= 0.0)
    }

    /// In how many seconds the job is due, if its own workflow sets that. Jobs that expire as configured are found by
    /// their age.
    pub(super) fn own_seconds_left(self) -> Option<f64> {
        self.seconds_left.filter(|_| self.is_own)
    }
}

/// For how many seconds a job's outputs are kept by its own workflow: 0 for ever, [`AS_CONFIGURED`] if it sets no
/// expiry.
fn own_expiry(document: Option<&str>) -> i64 {
    document.and_then(workflow::stored_expiry).map_or(AS_CONFIGURED, in_range)
}

/// A number of seconds that can be added to any age.
pub(super) fn in_range(seconds: u64) -> i64 {
    seconds.min(i64::MAX as u64 / 2) as i64
}

impl Sweep<'_> {
    /// Reads the expiry of finished jobs from their workflows, and records it.
    pub(super) async fn schedule_expiries(&self, until: Instant) -> Result<Progress, DatabaseError> {
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            if Instant::now() >= until {
                return Ok(Progress::Partial);
            }
            let (jobs, next) = self.db().unscheduled_jobs(&from).await?;
            let expiries = jobs.into_iter().map(|job| {
                let seconds = own_expiry(job.workflow.as_deref());
                (job.job_id, seconds)
            });
            self.db().schedule_expiries(expiries.collect()).await?;
            after = next;
        }
        Ok(Progress::Complete)
    }

    /// Deletes a job's objects first, then its files, then the URLs in the database: if it is killed in between, the
    /// job is still due.
    pub(super) async fn expire(&self, job: &FinishedJob) -> ActionResult {
        let cleaned_up = self.delete_engine_objects(&job.job_id, job.namespace.as_ref()).await?;
        if job.removed
            && let Some(namespace) = self.namespace_of(&job.job_id, job.namespace.as_ref())
        {
            let deleted = self.cluster().delete_workflow(&job.job_id, namespace, None).await;
            self.availability.observe(deleted)?;
        }
        let outputs = job.outputs.as_deref().and_then(output::parse);
        let urls = outputs.iter().flatten().filter_map(output::url_of);
        let deletions: Vec<_> = urls.map(|url| self.reaper.storage.delete(url)).collect();
        stream::iter(deletions).buffer_unordered(CONCURRENCY as usize).try_collect::<Vec<bool>>().await?;
        let unreadable = outputs.is_none() && job.outputs.as_deref().is_some_and(|text| !matches!(text, "" | "[]"));
        let without_urls = outputs.map(|outputs| workflow::to_ascii_json(&output::without_urls(outputs).into()));
        if !self.db().record_outputs_deleted(&job.job_id, job.outputs.as_deref(), without_urls.as_deref()).await? {
            return Ok(Applied::Skipped("the job has published something meanwhile"));
        }
        self.db().schedule_next(&job.job_id, None, false).await?;
        Ok(match unreadable {
            true => Applied::Done(Some("the list of its outputs is damaged: files may be left".to_owned())),
            false => cleaned_up,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::document;
    use super::*;

    #[test]
    fn own_expiries() {
        for (expiry, expected) in [
            (json!(0), 0),
            (json!(500), 500),
            (json!("500"), 500),
            (json!(0.9), 0),
            (json!(-5), 0),
            (json!("-1e300"), 0),
            (json!(1e300), i64::MAX / 2),
            (json!("1e300"), i64::MAX / 2),
            (json!("NaN"), -1),
            (json!("inf"), -1),
            (json!("never"), -1),
            (json!(true), -1),
            (json!(null), -1),
        ] {
            let document = document(json!({ "storageExpiry": expiry }));
            assert_eq!(own_expiry(document.as_deref()), expected, "{expiry}");
        }
        let large = document(json!({ "storageExpiry": 7, "what": "x".repeat(400 * 1024) }));
        assert_eq!(own_expiry(large.as_deref()), 7);
        let deep = format!(r#"{{"spec": {}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        for damaged in [None, Some(""), Some("null"), Some("{"), Some("\u{0}"), Some(deep.as_str())] {
            assert_eq!(own_expiry(damaged), -1);
        }
    }
}
