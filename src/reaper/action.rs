//! The actions on an unfinished job.

use super::report::Duty;
use crate::domain::Status;
use crate::kubernetes::Step;

/// An action on an unfinished job.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Action {
    /// Finish it in the database.
    Finish {
        duty: Duty,
        /// The status that it ends with.
        status: Status,
        /// Why, for its owner.
        reason: String,
        /// Whether that is because the cluster holds no step of it.
        absent: bool,
    },
    /// Requeue it, to be dispatched again.
    Requeue,
    /// End one of its steps: the engine continues with the next.
    EndStep {
        duty: Duty,
        step: Step,
        /// Why, for its owner; `None` if nothing new is to be recorded.
        reason: Option<String>,
        /// Whether it ran longer than it may.
        timed_out: bool,
    },
    /// Record whether the cluster holds no step of it.
    RecordAbsence(bool),
}

impl Action {
    /// The duty that it is reported under; `None` if it is not reported.
    pub(super) fn duty(&self) -> Option<Duty> {
        match self {
            Self::Finish { duty, .. } | Self::EndStep { duty, .. } => Some(*duty),
            Self::Requeue => Some(Duty::Requeues),
            Self::RecordAbsence(_) => None,
        }
    }

    /// Why, for the report and the job's owner.
    pub(super) fn reason(&self) -> Option<String> {
        match self {
            Self::Finish { reason, .. } => Some(reason.clone()),
            Self::EndStep { reason, .. } => reason.clone(),
            Self::Requeue | Self::RecordAbsence(_) => None,
        }
    }
}
