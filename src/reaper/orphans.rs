//! Orphans: begun jobs that no engine continues are finished.

use super::job::{Action, CONTINUED, Environment, Finish, Seen, UnfinishedJob};
use super::report::Duty;
use super::sweep::{ActionResult, Applied, Sweep};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::domain::{JobId, Namespace, Status, StopRequest};

/// Finishes an orphan, with the status that its row allows: an earlier failure stays; a job that has published outputs is
/// completed, and so is one that was asked to stop.
fn finish(job: &UnfinishedJob, what: &str, seen: Option<&Seen>) -> Action {
    let (status, addition) = match job.status {
        Status::DataProvisioningFailed | Status::AlgorithmProvisioningFailed => (job.status, ""),
        _ if job.has_outputs => (Status::Completed, " Its results had been published."),
        Status::Completed => (Status::Completed, ""),
        _ if job.stop_requested == StopRequest::BY_OWNER || job.removed => {
            (Status::Completed, " It had been asked to stop.")
        }
        _ => (Status::AlgorithmFailed, ""),
    };
    Action::Finish(Duty::Orphans, Finish { status, reason: format!("{what}{addition}"), seen: seen.cloned() })
}

/// Decides on a begun job no step of which is in progress. The state that sweeps see has lasted since `seen_for`.
pub(super) fn decide(job: &UnfinishedJob, seen: &Seen, rules: &ReaperRules) -> Option<Action> {
    let (grace, what) = match seen {
        Seen::Absent => (rules.absent_grace, "The environment lost the job while it ran."),
        Seen::Idle => (rules.limit_grace, "The environment did not continue the job."),
        Seen::Trouble(_) => return None,
    };
    (job.seen_for >= grace).then(|| finish(job, what, Some(seen)))
}

/// Decides on a begun job of an environment that cannot be read. That proves nothing about a job; that its engine has not
/// announced itself for long does: an engine does so every five seconds.
pub(super) fn decide_unseen(job: &UnfinishedJob, environment: &Environment, rules: &ReaperRules) -> Option<Action> {
    let is_silent = match environment.announced_age {
        Some(seconds) => seconds.min(job.seen_for) > rules.limit_grace,
        // The engines of 2019 and 2020 announce nothing.
        None => job.seen_for > rules.long_grace(),
    };
    is_silent.then(|| finish(job, "The environment did not continue the job.", None))
}

impl Sweep<'_> {
    pub(super) async fn finish_orphan(
        &self,
        job: UnfinishedJob,
        namespace: &Namespace,
        finish: Finish,
    ) -> ActionResult {
        // A slow engine may have created a step since all were listed.
        if finish.seen == Some(Seen::Absent)
            && job.job_id.can_name_objects()
            && self.request(namespace, Duty::Orphans, self.cluster.has_steps(&job.job_id, namespace)).await?
        {
            return Ok(CONTINUED);
        }
        self.finish(job.job_id, job.status, finish).await
    }

    /// Finishes a job that still has this status.
    pub(super) async fn finish(&self, job_id: JobId, status: Status, finish: Finish) -> ActionResult {
        let finished = self.db.finish(&job_id, status, &finish).await?;
        Ok(if finished { Applied::Done(Some(finish.reason)) } else { CONTINUED })
    }
}

impl Database {
    /// Finishes a job that has this status, and of which the last sweep saw what it is finished for. Returns false if it
    /// was not finished.
    async fn finish(&self, job_id: &JobId, status: Status, finish: &Finish) -> Result<bool, DatabaseError> {
        self.run_once(async |connection| {
            let mut transaction = sqlx::Connection::begin(connection).await?;
            // The status text stays as the engine wrote it where the status stays.
            let finished = sqlx::query!(
                "UPDATE jobs
                 SET datefinished = clock_timestamp() AT TIME ZONE 'UTC', status = $3,
                     statustext = CASE WHEN $2::int = $3::int THEN statustext ELSE $4 END,
                     reason = coalesce(reason, $5)
                 FROM reaperjobs AS state
                 WHERE jobs.workflowid = $1 AND state.workflowid = $1 AND datefinished IS NULL AND status = $2
                   AND ($6::text IS NULL OR seen = $6)",
                job_id.as_str(),
                status.code(),
                finish.status.code(),
                finish.status.text(),
                finish.reason,
                finish.seen.as_ref().map(Seen::as_str)
            );
            let finished = finished.execute(&mut *transaction).await?.rows_affected() > 0;
            if finished {
                let close = sqlx::query!("UPDATE reaperjobs SET closed = true WHERE workflowid = $1", job_id.as_str());
                close.execute(&mut *transaction).await?;
            }
            transaction.commit().await?;
            Ok(finished)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{environment, job, rules, summary};
    use super::super::unfinished::decide;
    use super::*;
    use crate::kubernetes::Steps;

    #[test]
    fn begun_jobs_without_steps() {
        let lost = "Orphans The environment lost the job while it ran.";
        let absent = |seen_for, job| UnfinishedJob { seen: Some(Seen::Absent), seen_for, ..job };
        for (job, expected) in [
            (job(40), "saw absent".to_owned()),
            (UnfinishedJob { seen_for: 1e12, ..job(40) }, "saw absent".to_owned()),
            (UnfinishedJob { seen: Some(Seen::Idle), seen_for: 1e12, ..job(40) }, "saw absent".to_owned()),
            (absent(299.9, job(40)), "nothing".to_owned()),
            (absent(-600.0, job(40)), "nothing".to_owned()),
            (absent(300.0, job(40)), format!("41 {lost}")),
            (absent(300.0, job(31)), format!("31 {lost}")),
            (absent(300.0, job(70)), format!("70 {lost}")),
            (
                absent(300.0, UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(60) }),
                format!("70 {lost} It had been asked to stop."),
            ),
            (absent(300.0, UnfinishedJob { stop_requested: StopRequest::TIME_LIMIT, ..job(60) }), format!("41 {lost}")),
            (
                absent(300.0, UnfinishedJob { has_outputs: true, ..job(60) }),
                format!("70 {lost} Its results had been published."),
            ),
        ] {
            let decided = decide(&job, Some(&Steps::new()), &environment(), &rules());
            assert_eq!(summary(decided), expected, "{job:?}");
        }
    }

    #[test]
    fn begun_jobs_that_cannot_be_seen() {
        let ended = "41 Orphans The environment did not continue the job.";
        for (announced_age, seen_for, expected) in [
            // Its engine lives.
            (Some(5.0), 1e12, "nothing"),
            (Some(3600.0), 1e12, "nothing"),
            (Some(3600.1), 3600.0, "nothing"),
            (Some(3600.1), 3600.1, ended),
            (Some(-1e12), 1e12, "nothing"),
            (None, 86_400.0, "nothing"),
            (None, 86_401.0, ended),
        ] {
            let environment = Environment { announced_age, ..environment() };
            for seen in [None, Some(Seen::Absent), Some(Seen::Idle), Some(Seen::Trouble("uid".to_owned()))] {
                let job = UnfinishedJob { seen, seen_for, workflow: None, ..job(40) };
                let decided = decide(&job, None, &environment, &rules());
                assert_eq!(summary(decided), expected, "{announced_age:?} {seen_for}");
            }
        }
    }
}
