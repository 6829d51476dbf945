//! Time limits: an algorithm that runs longer than it may, or that was to be stopped, is ended
//! (docs/contract/engine.md, "Stopping a job").

use super::job::{StepEnd, UnfinishedJob};
use super::report::Duty;
use crate::config::ReaperRules;
use crate::domain::{Component, StopRequest, workflow};
use crate::kubernetes::Step;

/// For how many seconds an algorithm may run, from the start of its Kubernetes Job: the shortest of the limits that are set;
/// if there is none and no `validUntil`, the stored `maxtime`.
fn limit(job: &UnfinishedJob, announced: Option<f64>, rules: &ReaperRules) -> Option<f64> {
    let configured = rules.algorithm_limit.map(|limit| limit as f64);
    match (configured, announced) {
        (Some(configured), Some(announced)) => Some(configured.min(announced)),
        (None, None) if job.valid_for.is_none() => job.workflow.as_deref().and_then(workflow::stored_max_time),
        (configured, announced) => configured.or(announced),
    }
}

/// Why an algorithm is over its limit, if it is.
fn exceeded(job: &UnfinishedJob, step: &Step, announced: Option<f64>, rules: &ReaperRules) -> Option<String> {
    match limit(job, announced, rules) {
        Some(limit) if step.running_for > limit => {
            Some(format!("The algorithm was stopped at its time limit of {limit} seconds."))
        }
        _ if job.valid_for.is_some_and(|left| left < 0.0) => {
            Some("The algorithm was stopped because the job's validUntil has passed.".to_owned())
        }
        _ => None,
    }
}

/// Decides whether a step that has not ended is to be ended: an algorithm that was to be stopped or is over its limit.
/// `announced` is the limit that the engine announced.
pub(super) fn decide(job: &UnfinishedJob, step: &Step, announced: Option<f64>, rules: &ReaperRules) -> Option<StepEnd> {
    if step.component != Component::Algorithm {
        return None;
    }
    let exceeded = exceeded(job, step, announced, rules);
    let (duty, reason) = match job.stop_requested {
        stop if stop == StopRequest::BY_OWNER || job.removed => (Duty::Stops, None),
        // Its engine has found that it is over its limit, but has not ended it.
        stop if stop == StopRequest::TIME_LIMIT => (Duty::TimeLimits, exceeded),
        _ => (Duty::TimeLimits, Some(exceeded?)),
    };
    Some(StepEnd { duty, step: step.clone(), reason })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::fixture::{document, job, rules, step};
    use super::*;
    use crate::kubernetes::StepState;

    #[test]
    fn the_shortest_limit_applies() {
        let limit = |configured, announced, valid_for, maxtime: Value| {
            let job = UnfinishedJob { valid_for, workflow: document(json!({ "maxtime": maxtime })), ..job(40) };
            super::limit(&job, announced, &ReaperRules { algorithm_limit: configured, ..rules() })
        };
        for (found, expected) in [
            (limit(Some(50), Some(60.0), Some(9.0), json!(1)), Some(50.0)),
            (limit(Some(60), Some(50.0), None, json!(1)), Some(50.0)),
            (limit(None, Some(50.0), None, json!(1)), Some(50.0)),
            (limit(None, None, Some(9.0), json!(1)), None),
            (limit(None, None, None, json!(7)), Some(7.0)),
            (limit(None, None, None, json!("7.9")), Some(7.0)),
            (limit(None, None, None, json!(1e300)), Some(u64::MAX as f64)),
        ] {
            assert_eq!(found, expected);
        }
        for nothing in
            [json!(0), json!(-5), json!("NaN"), json!("inf"), json!("1e999"), json!(""), json!([1]), json!(null)]
        {
            assert_eq!(limit(None, None, None, nothing.clone()), None, "{nothing}");
        }
        for damaged in [None, Some(""), Some("null"), Some("{"), Some("[[[["), Some(r#"{"spec": 1e999}"#)] {
            let job = UnfinishedJob { workflow: damaged.map(str::to_owned), ..job(40) };
            assert_eq!(super::limit(&job, None, &rules()), None, "{damaged:?}");
        }
    }

    #[test]
    fn an_algorithm_is_stopped_only_after_its_limit() {
        let exceeded = |running_for, valid_for| {
            let step = step(Component::Algorithm, running_for, StepState::Running);
            let job = UnfinishedJob { valid_for, ..job(40) };
            super::exceeded(&job, &step, Some(50.0), &rules())
        };
        assert_eq!(exceeded(50.0, Some(0.0)), None);
        assert_eq!(exceeded(50.1, None).as_deref(), Some("The algorithm was stopped at its time limit of 50 seconds."));
        let passed = "The algorithm was stopped because the job's validUntil has passed.";
        assert_eq!(exceeded(1.0, Some(-0.1)).as_deref(), Some(passed));
    }
}
