//! Steps that cannot finish: how long a problem may last, and what the job's owner reads about it.

use crate::config::ReaperRules;
use crate::kubernetes::{Component, Hope, Trouble};

/// For how many seconds a problem may last before its step is ended.
pub(super) fn grace(hope: Hope, rules: &ReaperRules) -> f64 {
    match hope {
        Hope::None => 0.0,
        Hope::Retry => rules.retry_grace,
        // Short enough to read why: the cluster deletes the pod when it gives up, after about five minutes.
        Hope::Restart => rules.retry_grace / 5.0,
        Hope::Room => rules.schedule_grace,
    }
}

/// Why a step was ended, for the job's owner.
pub(super) fn reason(component: Component, trouble: &Trouble) -> String {
    let step = match component {
        Component::Configure => "Fetching the job's data",
        Component::Algorithm => "The algorithm",
        Component::Filter => "Filtering the results",
        Component::Publish => "Publishing the results",
    };
    match trouble {
        Trouble::OutOfMemory(Some(limit)) => format!("{step} ran out of memory: {limit} were allowed."),
        Trouble::OutOfMemory(None) => format!("{step} ran out of memory."),
        Trouble::Exit(code) => format!("{step} failed with exit code {code}."),
        Trouble::Evicted => format!("{step} was evicted by a node that ran short of resources."),
        Trouble::Deadline => format!("{step} took longer than allowed."),
        Trouble::Failed => format!("{step} failed."),
        Trouble::Image => format!("{step} could not begin: its image cannot be pulled."),
        Trouble::ImageName => format!("{step} could not begin: its image has no valid name."),
        Trouble::Container => format!("{step} could not begin: its container cannot be created."),
        Trouble::Node(Some(lacks)) => format!("{step} could not begin: no node has enough {lacks} for it."),
        Trouble::Node(None) => format!("{step} could not begin: no node can run it."),
        Trouble::NoPod => format!("{step} could not begin: the cluster created no pod for it."),
    }
}
