//! An unfinished job as the duties see it, its environment, and what they may decide.

use super::report::Duty;
use super::sweep::Applied;
use crate::db::column;
use crate::domain::{JobId, Namespace, Status, StopRequest};
use crate::kubernetes::{Step, StepState};

/// An environment: what its engine announced, and what earlier sweeps recorded.
#[derive(Debug, Clone)]
pub(super) struct Environment {
    pub(super) namespace: Namespace,
    /// The `maxJobDuration` that its engine announced, in seconds, if there is one.
    pub(super) announced_limit: Option<f64>,
    /// How many seconds ago it last announced itself; `None` if it never has.
    pub(super) announced_age: Option<f64>,
    /// When the engine last announced that it has no jobs, in seconds since the epoch.
    pub(super) idle_at: Option<f64>,
    /// How many seconds ago its WorkFlow objects were last scanned.
    pub(super) scan_age: f64,
}

/// An unfinished job, with what the decision on it depends on.
#[derive(Debug, Clone)]
pub(super) struct UnfinishedJob {
    pub(super) job_id: JobId,
    pub(super) status: Status,
    pub(super) stop_requested: StopRequest,
    /// Whether it was deleted.
    pub(super) removed: bool,
    /// Whether it has published something.
    pub(super) has_outputs: bool,
    /// In how many seconds its `validUntil` passes; below 0 if it has passed.
    pub(super) valid_for: Option<f64>,
    /// When it was dispatched to an engine, in seconds since the epoch.
    pub(super) dispatched_at: f64,
    /// How many seconds ago that was.
    pub(super) dispatched_age: f64,
    /// How often it was dispatched, not begun, and requeued.
    pub(super) requeues: i16,
    /// What the last sweep saw of it, if no step was in progress.
    pub(super) seen: Option<Seen>,
    /// For how many seconds it has had its status and has been seen like that.
    pub(super) seen_for: f64,
    /// Its workflow, if no other limit applies to it.
    pub(super) workflow: Option<String>,
}

/// What a sweep sees of a begun job no step of which is in progress (`reaperjobs.seen`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// The cluster holds no step of it.
    Absent,
    /// Its steps have ended, and none follows.
    Idle,
    /// A step has a problem of which the cluster does not record since when: the uid of its Kubernetes Job.
    Trouble(String),
}

impl Seen {
    pub(super) fn of(steps: &[Step]) -> Option<Self> {
        if steps.is_empty() {
            return Some(Self::Absent);
        }
        let in_trouble = |step: &&Step| matches!(&step.state, StepState::Stuck(trouble) if trouble.seconds.is_none());
        if let Some(step) = steps.iter().find(in_trouble) {
            return Some(Self::Trouble(step.uid.clone()));
        }
        let has_ended = |step: &Step| matches!(step.state, StepState::Done | StepState::Terminating);
        steps.iter().all(has_ended).then_some(Self::Idle)
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Absent => "absent",
            Self::Idle => "idle",
            Self::Trouble(uid) => uid,
        }
    }

    fn stored(text: String) -> Self {
        match text.as_str() {
            "absent" => Self::Absent,
            "idle" => Self::Idle,
            _ => Self::Trouble(text),
        }
    }
}

column!(Seen, String, Seen::stored, Seen::as_str);

/// An action on an unfinished job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Finish it in the database.
    Finish(Duty, Finish),
    /// Requeue it, to be dispatched again.
    Requeue,
    /// Report that it was dispatched, not begun, and may not be requeued.
    ReportUnbegun,
    /// End one of its steps: the engine continues with the next.
    EndStep(StepEnd),
    /// Record what was seen of it.
    Record(Option<Seen>),
}

/// How a job is finished.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Finish {
    /// The status that it ends with.
    pub(super) status: Status,
    /// Why, for its owner.
    pub(super) reason: String,
    /// What the last sweep has to have seen of the job, still.
    pub(super) seen: Option<Seen>,
}

impl Finish {
    pub(super) fn new(status: Status, reason: &str) -> Self {
        Self { status, reason: reason.to_owned(), seen: None }
    }
}

/// A step that is to be ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepEnd {
    /// Why, as a duty of the reaper.
    pub(super) duty: Duty,
    pub(super) step: Step,
    /// Why, for the job's owner; `None` if nothing is to be recorded.
    pub(super) reason: Option<String>,
}

/// Why an action was skipped: an engine continued the job.
pub(super) const CONTINUED: Applied = Applied::Skipped("the job was continued meanwhile");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_read_back() {
        for seen in [Seen::Absent, Seen::Idle, Seen::Trouble("uid".to_owned())] {
            assert_eq!(Seen::stored(seen.as_str().to_owned()), seen);
        }
    }
}
