//! Orphans: begun jobs that no engine continues are finished.

use super::action::Action;
use super::report::Duty;
use crate::db::UnfinishedJob;
use crate::domain::{Status, StopRequest};

/// Finishes a job that has had no step in the cluster for the grace.
pub(super) fn lost(job: &UnfinishedJob) -> Action {
    finish(job, "The environment lost the job while it ran.", true)
}

/// Finishes a job that has kept one status beyond its limit and the grace.
pub(super) fn not_continued(job: &UnfinishedJob) -> Action {
    finish(job, "The environment did not continue the job.", false)
}

fn finish(job: &UnfinishedJob, what: &str, absent: bool) -> Action {
    let status = last_status(job);
    let reason = match status {
        Status::Completed if job.has_outputs => format!("{what} Its results had been published."),
        Status::Completed if job.status != Status::Completed => format!("{what} It had been asked to stop."),
        _ => what.to_owned(),
    };
    Action::Finish { duty: Duty::Orphans, status, reason, absent }
}

/// The status that an orphaned job ends with. An earlier failure stays; a job that has published outputs is completed,
/// and so is one that was asked to stop.
fn last_status(job: &UnfinishedJob) -> Status {
    match job.status {
        Status::DataProvisioningFailed | Status::AlgorithmProvisioningFailed | Status::Completed => job.status,
        _ if job.has_outputs || job.stop_requested == StopRequest::BY_OWNER || job.removed => Status::Completed,
        _ => Status::AlgorithmFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{job, rules, summary};
    use super::super::unfinished::{Observed, decide};
    use super::*;

    #[test]
    fn begun_jobs_without_steps() {
        let lost = "Orphans The environment lost the job while it ran.";
        let unchanged = "Orphans The environment did not continue the job.";
        let absent = |job: UnfinishedJob| UnfinishedJob { absent_for: Some(60.0), ..job };
        let long = |job: UnfinishedJob| UnfinishedJob { status_age: 7201.0, ..job };
        for (job, observed, expected) in [
            (job(40), Observed::Steps(&[]), "absent true".to_owned()),
            (UnfinishedJob { absent_for: Some(59.9), ..job(40) }, Observed::Steps(&[]), "nothing".to_owned()),
            (UnfinishedJob { absent_for: Some(-600.0), ..job(40) }, Observed::Steps(&[]), "nothing".to_owned()),
            (absent(job(40)), Observed::Steps(&[]), format!("41 {lost}")),
            (absent(job(31)), Observed::Steps(&[]), format!("31 {lost}")),
            (absent(job(70)), Observed::Steps(&[]), format!("70 {lost}")),
            (
                absent(UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(60) }),
                Observed::Steps(&[]),
                format!("70 {lost} It had been asked to stop."),
            ),
            (
                absent(UnfinishedJob { stop_requested: StopRequest::TIME_LIMIT, ..job(60) }),
                Observed::Steps(&[]),
                format!("41 {lost}"),
            ),
            (
                absent(UnfinishedJob { has_outputs: true, ..job(60) }),
                Observed::Steps(&[]),
                format!("70 {lost} Its results had been published."),
            ),
            // An environment that cannot be read proves nothing about a job; time does.
            (absent(job(40)), Observed::Unknown, "nothing".to_owned()),
            (UnfinishedJob { status_age: 7200.0, ..job(40) }, Observed::Unknown, "nothing".to_owned()),
            (long(job(40)), Observed::Unknown, format!("41 {unchanged}")),
            (long(job(32)), Observed::Unknown, format!("32 {unchanged}")),
            (long(UnfinishedJob { absent_for: Some(1.0), ..job(40) }), Observed::Steps(&[]), format!("41 {unchanged}")),
            // A job without a limit may stay in one state for any time.
            (UnfinishedJob { status_age: 1e12, workflow: None, ..job(40) }, Observed::Unknown, "nothing".to_owned()),
            (UnfinishedJob { status_age: -1e12, ..job(40) }, Observed::Unknown, "nothing".to_owned()),
            (
                UnfinishedJob { valid_for: Some(-1.0), status_age: 3601.0, workflow: None, ..job(40) },
                Observed::Unknown,
                format!("41 {unchanged}"),
            ),
            (
                UnfinishedJob { valid_for: Some(1.0), status_age: 1e12, ..job(40) },
                Observed::Unknown,
                "nothing".to_owned(),
            ),
        ] {
            assert_eq!(summary(decide(&job, observed, None, &rules())), expected, "{job:?} {observed:?}");
        }
    }
}
