//! Requeues: jobs that no engine has begun are requeued, or finished if they may not be started any more.

use super::action::Action;
use super::report::Duty;
use crate::config::ReaperRules;
use crate::db::UnfinishedJob;
use crate::domain::{Status, StopRequest, may_be_dispatched, workflow};

/// The maximum number of times that a job is requeued.
const MAX_REQUEUES: i16 = 5;

/// Decides on a job that waits: it is finished if it may not be dispatched any more.
pub(super) fn decide_waiting(job: &UnfinishedJob) -> Option<Action> {
    // Also for a job that would wait again after being requeued.
    if may_be_dispatched(Status::WarmingUp, job.stop_requested, job.removed, job.valid_for) {
        None
    } else if job.stop_requested != StopRequest::NONE || job.removed {
        Some(never_started(Status::Completed, "The job was stopped before it was started."))
    } else {
        Some(never_started(Status::AlgorithmFailed, "No environment had room for the job before its validUntil."))
    }
}

/// Decides on a job that was dispatched and of which there is no step.
pub(super) fn decide_dispatched(job: &UnfinishedJob, rules: &ReaperRules) -> Option<Action> {
    if job.dispatched_age <= rules.dispatch_grace {
        return None;
    }
    let failed = |reason| never_started(Status::AlgorithmFailed, reason);
    let readable = job.workflow.as_deref().is_some_and(workflow::is_readable);
    Some(match decide_waiting(job) {
        Some(finish) => finish,
        None if !readable => failed("The job could not be started: its workflow cannot be read."),
        None if job.requeues >= MAX_REQUEUES => {
            failed("The job could not be started: its environment did not begin it.")
        }
        None => Action::Requeue,
    })
}

fn never_started(status: Status, reason: &str) -> Action {
    Action::Finish { duty: Duty::NeverStarted, status, reason: reason.to_owned(), absent: false }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{job, rules, step, summary};
    use super::super::unfinished::{Observed, decide};
    use super::*;
    use crate::domain::Component;
    use crate::kubernetes::StepState;

    #[test]
    fn jobs_that_no_engine_has_begun() {
        let decided = |job: UnfinishedJob| summary(decide(&job, Observed::Unknown, None, &rules()));
        let stopped = "70 NeverStarted The job was stopped before it was started.";
        let late = "41 NeverStarted No environment had room for the job before its validUntil.";
        let old = |job: UnfinishedJob| UnfinishedJob { dispatched_age: 301.0, ..job };
        for (job, expected) in [
            (UnfinishedJob { status_age: 1e12, dispatched_age: 1e12, ..job(1) }, "nothing"),
            (UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(1) }, stopped),
            (UnfinishedJob { removed: true, ..job(1) }, stopped),
            (UnfinishedJob { valid_for: Some(-0.1), ..job(1) }, late),
            (UnfinishedJob { valid_for: Some(0.1), ..job(1) }, "nothing"),
            (UnfinishedJob { valid_for: Some(-1e18), stop_requested: StopRequest::BY_OWNER, ..job(1) }, stopped),
            (UnfinishedJob { dispatched_age: 300.0, ..job(10) }, "nothing"),
            (UnfinishedJob { dispatched_age: -1e9, ..job(10) }, "nothing"),
            (old(job(10)), "requeue"),
            (old(job(11)), "requeue"),
            (old(UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(10) }), stopped),
            (old(UnfinishedJob { valid_for: Some(-1.0), ..job(10) }), late),
            (old(UnfinishedJob { requeues: 4, ..job(10) }), "requeue"),
            (
                old(UnfinishedJob { requeues: i16::MAX, ..job(10) }),
                "41 NeverStarted The job could not be started: its environment did not begin it.",
            ),
            (
                old(UnfinishedJob { workflow: Some("null".to_owned()), ..job(10) }),
                "41 NeverStarted The job could not be started: its workflow cannot be read.",
            ),
            (UnfinishedJob { status_age: 1e12, ..job(0) }, "nothing"),
            (UnfinishedJob { status_age: 1e12, ..job(-1) }, "nothing"),
        ] {
            assert_eq!(decided(job.clone()), expected, "{job:?}");
        }
        // A job with a step is begun, even if its status does not say so yet: it is not requeued.
        let steps = [step(Component::Configure, 1.0, StepState::Running)];
        assert_eq!(summary(decide(&old(job(10)), Observed::Steps(&steps), None, &rules())), "nothing");
    }
}
