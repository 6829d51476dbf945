//! Requeues: jobs that were dispatched and that no engine has begun wait again, once no engine can have a thread for them;
//! or they are finished, if they may not be started any more.

use super::job::{Action, CONTINUED, Environment, Finish, UnfinishedJob};
use super::never_started;
use super::report::Duty;
use super::sweep::{ActionResult, Applied, Sweep};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::domain::{Status, StopRequest};

/// The maximum number of times that a job is requeued.
const MAX_REQUEUES: i16 = 5;
/// Why a job is left.
pub(super) const MAY_HAVE_A_THREAD: &str =
    "its engine has not begun it, and may still: it announces jobs ever since it was given this one";

/// Decides on a job that was dispatched and of which there is no step.
pub(super) fn decide(job: &UnfinishedJob, environment: &Environment, rules: &ReaperRules) -> Option<Action> {
    if job.dispatched_age <= rules.dispatch_grace {
        return None;
    }
    let called_off = job.stop_requested != StopRequest::NONE || job.removed;
    if called_off || job.valid_for.is_some_and(|seconds| seconds <= 0.0) {
        // An engine that comes back to it finds that its status is above 10, and leaves it.
        return Some(Action::Finish(Duty::NeverStarted, never_started::finish(called_off)));
    }
    // An engine counts every thread that has not returned, also one that hangs or has died. So it has none for this job if
    // it has announced since that it has no jobs: every engine that is started again does.
    let has_announced_none = environment.idle_at.is_some_and(|at| at > job.dispatched_at);
    let is_silent = environment.announced_age.is_none_or(|seconds| seconds > rules.limit_grace);
    Some(match job.requeues {
        _ if !(has_announced_none || is_silent) => Action::ReportUnbegun,
        MAX_REQUEUES.. => Action::Finish(
            Duty::NeverStarted,
            Finish::new(Status::AlgorithmFailed, "The job could not be started: its environment did not begin it."),
        ),
        _ => Action::Requeue,
    })
}

impl Sweep<'_> {
    pub(super) async fn requeue(&self, job: UnfinishedJob) -> ActionResult {
        let requeued = self.db.requeue(&job, self.rules.dispatch_grace).await?;
        Ok(if requeued { Applied::Done(None) } else { CONTINUED })
    }
}

impl Database {
    /// Requeues a job that was dispatched at least `seconds` ago. Returns false if an engine has begun it since.
    async fn requeue(&self, job: &UnfinishedJob, seconds: f64) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE jobs SET status = $2, statustext = $3, dispatchedat = NULL
                 FROM reaperjobs AS state
                 WHERE jobs.workflowid = $1 AND state.workflowid = $1 AND datefinished IS NULL AND status = $4
                   AND coalesce(dispatchedat AT TIME ZONE 'UTC', seensince)
                       <= clock_timestamp() - make_interval(secs => $5)",
                job.job_id.as_str(),
                Status::WarmingUp.code(),
                Status::WarmingUp.text(),
                job.status.code(),
                seconds
            ))
            .await?;
        Ok(changed > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{environment, job, rules, step, steps, summary};
    use super::super::unfinished;
    use super::*;
    use crate::domain::Component;
    use crate::kubernetes::StepState;

    #[test]
    fn jobs_that_no_engine_has_begun() {
        let idle = Environment { idle_at: Some(1.0), ..environment() };
        // The time at which it was given the job.
        let busy = Environment { idle_at: Some(0.5), ..environment() };
        let decided = |job: &UnfinishedJob, environment: &Environment| {
            summary(unfinished::decide(job, None, environment, &rules()))
        };
        let stopped = "70 NeverStarted The job was stopped before it was started.";
        let late = "41 NeverStarted No environment had room for the job before its validUntil.";
        let old = |job: UnfinishedJob| UnfinishedJob { dispatched_age: 301.0, ..job };
        for (job, expected) in [
            (UnfinishedJob { dispatched_age: 300.0, ..job(10) }, "nothing"),
            (UnfinishedJob { dispatched_age: -1e9, ..job(10) }, "nothing"),
            (old(job(10)), "requeue"),
            (old(job(11)), "requeue"),
            (old(UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(10) }), stopped),
            (old(UnfinishedJob { removed: true, ..job(10) }), stopped),
            (old(UnfinishedJob { valid_for: Some(-1.0), ..job(10) }), late),
            (old(UnfinishedJob { valid_for: Some(-1.0), removed: true, ..job(10) }), stopped),
            (old(UnfinishedJob { valid_for: Some(0.1), ..job(10) }), "requeue"),
            (old(UnfinishedJob { requeues: 4, ..job(10) }), "requeue"),
            (
                old(UnfinishedJob { requeues: i16::MAX, ..job(10) }),
                "41 NeverStarted The job could not be started: its environment did not begin it.",
            ),
        ] {
            assert_eq!(decided(&job, &idle), expected, "{job:?}");
            // Otherwise it may still have a thread for the job.
            let reported = if expected == "requeue" || job.requeues > 5 { "report" } else { expected };
            assert_eq!(decided(&job, &busy), reported, "{job:?}");
        }
        // An engine that announces nothing any more is gone.
        for (announced_age, expected) in [(Some(3600.0), "report"), (Some(3600.1), "requeue"), (None, "requeue")] {
            let silent = Environment { announced_age, ..busy.clone() };
            assert_eq!(decided(&old(job(10)), &silent), expected);
        }
        // A job with a step is begun, even if its status does not say so yet.
        let steps = steps([step(Component::Configure, 1.0, StepState::Running)]);
        let decided = unfinished::decide(&old(job(10)), Some(&steps), &idle, &rules());
        assert_eq!(summary(decided), "nothing");
    }
}
