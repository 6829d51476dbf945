//! Stuck steps: how long a problem may last before the step is ended, and the reason for the job's owner.

use crate::config::ReaperRules;
use crate::domain::Component;
use crate::kubernetes::{Problem, Recovery};

/// For how many seconds a problem may last before its step is ended.
pub(super) fn grace(recovery: Recovery, rules: &ReaperRules) -> f64 {
    match recovery {
        Recovery::None => 0.0,
        Recovery::Retry => rules.retry_grace,
        // Short enough to read the reason from the pod: the cluster deletes it after about five minutes, when it gives
        // up.
        Recovery::Restart => rules.retry_grace / 5.0,
        Recovery::Capacity => rules.schedule_grace,
    }
}

/// Why a step was ended, for the job's owner.
pub(super) fn reason(component: Component, problem: &Problem) -> String {
    let step = match component {
        Component::Configure => "Fetching the job's data",
        Component::Algorithm => "The algorithm",
        Component::Filter => "Filtering the results",
        Component::Publish => "Publishing the results",
    };
    match problem {
        Problem::OutOfMemory(Some(limit)) => format!("{step} ran out of memory: {limit} were allowed."),
        Problem::OutOfMemory(None) => format!("{step} ran out of memory."),
        Problem::ExitCode(code) => format!("{step} failed with exit code {code}."),
        Problem::Evicted => format!("{step} was evicted by a node that ran short of resources."),
        Problem::DeadlineExceeded => format!("{step} took longer than allowed."),
        Problem::Failed => format!("{step} failed."),
        Problem::ImagePull => format!("{step} could not begin: its image cannot be pulled."),
        Problem::InvalidImageName => format!("{step} could not begin: its image has no valid name."),
        Problem::ContainerCreation => format!("{step} could not begin: its container cannot be created."),
        Problem::Unschedulable(Some(resource)) => {
            format!("{step} could not begin: no node has enough {resource} for it.")
        }
        Problem::Unschedulable(None) => format!("{step} could not begin: no node can run it."),
        Problem::NoPod => format!("{step} could not begin: the cluster created no pod for it."),
    }
}
