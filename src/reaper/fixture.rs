//! Values that the tests of the rules share.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::action::Action;
use crate::config::ReaperRules;
use crate::db::UnfinishedJob;
use crate::domain::{Component, JobId, Namespace, Status, StopRequest};
use crate::kubernetes::{Step, StepState};

pub(super) fn rules() -> ReaperRules {
    ReaperRules {
        default_namespace: Namespace::stored("ocean-compute"),
        algorithm_limit: None,
        storage_expiry: None,
        dispatch_grace: 300.0,
        retry_grace: 300.0,
        schedule_grace: 900.0,
        absent_grace: 60.0,
        limit_grace: 3600.0,
        unknown_grace: 3600.0,
        workflow_ttl: Some(1000.0),
        nonce_retention: 86_400.0,
        requests_per_second: NonZeroU32::MIN,
    }
}

/// A stored workflow whose stage has this `compute`.
pub(super) fn document(compute: Value) -> Option<String> {
    Some(json!({ "spec": { "metadata": { "stages": [{ "compute": compute }] } } }).to_string())
}

/// A job whose status has just changed to this code.
pub(super) fn job(status: i32) -> UnfinishedJob {
    UnfinishedJob {
        job_id: JobId::stored("job"),
        namespace: Some(Namespace::stored("environment")),
        status: Status::from_code(status),
        status_age: 0.0,
        stop_requested: StopRequest::NONE,
        removed: false,
        has_outputs: false,
        valid_for: None,
        dispatched_age: 0.0,
        requeues: 0,
        absent_for: None,
        workflow: document(json!({ "maxtime": 3600 })),
    }
}

pub(super) fn step(component: Component, running_for: f64, state: StepState) -> Step {
    let (uid, resource_version) = ("uid".to_owned(), "1".to_owned());
    Step { job_id: JobId::stored("job"), component, uid, resource_version, running_for, state }
}

/// An action in one line: the status or `end`, the duty, the reason.
pub(super) fn summary(action: Option<Action>) -> String {
    match action {
        None => "nothing".to_owned(),
        Some(Action::Requeue) => "requeue".to_owned(),
        Some(Action::RecordAbsence(absent)) => format!("absent {absent}"),
        Some(Action::Finish { duty, status, reason, .. }) => format!("{} {duty:?} {reason}", status.code()),
        Some(Action::EndStep { duty, reason, timed_out, step }) => {
            format!("end {:?} {duty:?} {timed_out} {}", step.component, reason.unwrap_or_default())
        }
    }
}
