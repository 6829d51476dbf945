//! Values that the tests of the rules share.

use std::num::NonZeroU32;

use serde_json::{Value, json};

use super::job::{Action, Environment, Seen, UnfinishedJob};
use crate::config::ReaperRules;
use crate::domain::{Component, JobId, Namespace, Status, StopRequest};
use crate::kubernetes::{Step, StepState, Steps};

/// The defaults.
pub(super) fn rules() -> ReaperRules {
    ReaperRules {
        default_namespace: Namespace::stored("ocean-compute"),
        algorithm_limit: None,
        storage_expiry: None,
        dispatch_grace: 300.0,
        retry_grace: 300.0,
        schedule_grace: 900.0,
        start_grace: 3600.0,
        absent_grace: 300.0,
        limit_grace: 3600.0,
        unknown_grace: 3600.0,
        workflow_ttl: Some(1000.0),
        nonce_retention: 86_400.0,
        requests_per_second: NonZeroU32::MIN,
    }
}

/// An environment whose engine lives, and announces no limit.
pub(super) fn environment() -> Environment {
    Environment {
        namespace: Namespace::stored("environment"),
        announced_limit: None,
        announced_age: Some(1.0),
        idle_at: None,
        scan_age: 0.0,
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
        status: Status::from_code(status),
        stop_requested: StopRequest::NONE,
        removed: false,
        has_outputs: false,
        valid_for: None,
        dispatched_at: 0.5,
        dispatched_age: 0.0,
        requeues: 0,
        seen: None,
        seen_for: 0.0,
        workflow: document(json!({ "maxtime": 3600 })),
    }
}

pub(super) fn step(component: Component, running_for: f64, state: StepState) -> Step {
    let (uid, resource_version) = ("uid".to_owned(), "1".to_owned());
    Step { job_id: JobId::stored("job"), component, uid, resource_version, running_for, state }
}

/// The steps of the job.
pub(super) fn steps(steps: impl Into<Vec<Step>>) -> Steps {
    Steps::from([(JobId::stored("job"), steps.into())])
}

/// An action in one line: the status or `end`, the duty, the reason.
pub(super) fn summary(action: Option<Action>) -> String {
    match action {
        None => "nothing".to_owned(),
        Some(Action::Requeue) => "requeue".to_owned(),
        Some(Action::ReportUnbegun) => "report".to_owned(),
        Some(Action::Record(seen)) => format!("saw {}", seen.as_ref().map_or("nothing", Seen::as_str)),
        Some(Action::Finish(duty, finish)) => format!("{} {duty:?} {}", finish.status.code(), finish.reason),
        Some(Action::EndStep(end)) => {
            format!("end {:?} {:?} {}", end.step.component, end.duty, end.reason.unwrap_or_default())
        }
    }
}
