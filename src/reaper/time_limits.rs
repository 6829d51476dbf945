//! Time limits: how long an algorithm may run (docs/contract/engine.md, "Stopping a job").

use serde_json::Value;

use crate::config::ReaperRules;
use crate::db::UnfinishedJob;
use crate::domain::{environment, workflow};

/// The time limit of an algorithm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct TimeLimit {
    /// Seconds from the start of its Job.
    seconds: Option<f64>,
    /// In how many seconds the job's `validUntil` passes.
    valid_for: Option<f64>,
}

impl TimeLimit {
    /// The shortest of the limits that are set; if none is, the stored `maxtime`.
    pub(super) fn of(job: &UnfinishedJob, announced: Option<f64>, rules: &ReaperRules) -> Self {
        let configured = rules.algorithm_limit.map(|limit| limit as f64);
        let seconds = match (configured, announced) {
            (Some(configured), Some(announced)) => Some(configured.min(announced)),
            (configured, announced) => configured.or(announced),
        };
        let valid_for = job.valid_for;
        let seconds = match (seconds, valid_for) {
            (None, None) => job.workflow.as_deref().and_then(workflow::stored_max_time),
            (seconds, _) => seconds,
        };
        Self { seconds, valid_for }
    }

    /// Why an algorithm that has run for `running_for` seconds is over its limit, if it is.
    pub(super) fn exceeded_by(self, running_for: f64) -> Option<String> {
        match self {
            Self { seconds: Some(limit), .. } if running_for > limit => {
                Some(format!("The algorithm was stopped at its time limit of {limit} seconds."))
            }
            Self { valid_for: Some(left), .. } if left < 0.0 => {
                Some("The algorithm was stopped because the job's validUntil has passed.".to_owned())
            }
            _ => None,
        }
    }

    /// Returns whether a job whose status has not changed for `unchanged_for` seconds cannot be running any more:
    /// longer than its algorithm may run, and `grace` seconds on top. False for a job without a limit.
    pub(super) fn is_exceeded_for_long(self, unchanged_for: f64, grace: f64) -> bool {
        let limit = match self {
            Self { seconds: Some(limit), .. } => limit,
            Self { valid_for: Some(left), .. } if left < 0.0 => 0.0,
            _ => return false,
        };
        unchanged_for > limit + grace
    }
}

/// The `maxJobDuration` of an announcement, in seconds, if it sets one.
pub(super) fn announced_limit(announcement: Option<&str>) -> Option<f64> {
    let announcement = environment::parse(announcement?)?;
    let seconds = match announcement.get("maxJobDuration")? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Some(seconds).filter(|seconds: &f64| *seconds > 0.0 && seconds.is_finite())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{document, job, rules};
    use super::*;

    #[test]
    fn the_shortest_limit_applies() {
        let limit = |configured, announced, valid_for, maxtime: Value| {
            let job = UnfinishedJob { valid_for, workflow: document(json!({ "maxtime": maxtime })), ..job(40) };
            TimeLimit::of(&job, announced, &ReaperRules { algorithm_limit: configured, ..rules() }).seconds
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
            assert_eq!(TimeLimit::of(&job, None, &rules()).seconds, None, "{damaged:?}");
        }
    }

    #[test]
    fn announced_limits() {
        for (duration, expected) in [
            ("3600", Some(3600.0)),
            ("\"3600\"", Some(3600.0)),
            ("\" 0.5 \"", Some(0.5)),
            ("0", None),
            ("-1", None),
            ("\"\"", None),
            ("\"abc\"", None),
            ("\"NaN\"", None),
            ("\"inf\"", None),
            ("\"1e400\"", None),
            ("1e400", None),
            ("null", None),
            ("[1]", None),
        ] {
            let announcement = format!(r#"{{"maxJobDuration": {duration}}}"#);
            assert_eq!(announced_limit(Some(&announcement)), expected, "{duration}");
        }
        for nothing in [None, Some(""), Some("null"), Some("[]"), Some("3600"), Some("{}"), Some("{\"maxJob")] {
            assert_eq!(announced_limit(nothing), None, "{nothing:?}");
        }
    }
}
