//! What is due: rows and objects in, actions out. Pure.
//!
//! The rules are the contract's (`engine.md`, "Facts that decide how to stop a job"). What decides about a time has
//! been told by one clock: ages of rows by the database's, ages of objects by the cluster's.

use serde_json::Value;

use crate::config::ReaperRules;
use crate::db::{FinishedJob, Known, LiveJob};
use crate::domain::{Status, environment, settles_in, workflow};
use crate::kubernetes::{Component, Hope, Listed, Step, StepState, Trouble};

use super::report::Kind;

/// As often an engine is given a job that none begins.
const HAND_BACKS: i16 = 5;

/// So many times the grace has a job of which a step other than the algorithm is seen at work.
const AT_WORK: f64 = 24.0;

/// What the cluster holds of a job.
#[derive(Debug, Clone, Copy)]
pub enum Seen<'a> {
    /// Its environment could not be read.
    Unknown,
    /// These steps.
    Steps(&'a [Step]),
}

/// What is to be done with an unfinished job.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Finish it in the book.
    Finish {
        /// Why, for the report.
        kind: Kind,
        /// The status it ends with.
        status: i32,
        /// Why, for its owner.
        reason: String,
        /// Whether that is because the cluster holds nothing of it.
        absent: bool,
    },
    /// Let engines have it again.
    HandBack,
    /// End one of its steps: the engine goes on with the next.
    End {
        /// Why, for the report.
        kind: Kind,
        /// Which.
        step: Step,
        /// Why, for its owner; nothing new where the owner asked for it.
        reason: Option<String>,
        /// Whether it ran longer than it may.
        timed_out: bool,
    },
    /// Note whether the cluster holds something of it.
    NoteAbsence(bool),
}

/// How long an algorithm may run, and who says so.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Limit {
    /// Seconds from the start of its Job.
    seconds: Option<f64>,
    /// Seconds from now until the job is not valid any more.
    valid_for: Option<f64>,
}

impl Limit {
    /// The least of those that are set; only if none is, the stored `maxtime` (contract: `engine.md`).
    fn of(job: &LiveJob, announced: Option<f64>, rules: &ReaperRules) -> Self {
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

    /// Why an algorithm is over its limit that has run so long, if it is.
    fn exceeded_by(self, running_for: f64) -> Option<String> {
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

    /// Whether a job that has stood still so long cannot be at work any more: longer than its algorithm may run, and
    /// `grace` seconds on top. What has no limit stands still as long as it likes.
    fn is_long_past(self, standing_still: f64, grace: f64) -> bool {
        let limit = match self {
            Self { seconds: Some(limit), .. } => limit,
            Self { valid_for: Some(left), .. } if left < 0.0 => 0.0,
            _ => return false,
        };
        standing_still > limit + grace
    }
}

/// The `maxJobDuration` of an announcement, in seconds, if it sets one.
pub fn announced_limit(announcement: Option<&str>) -> Option<f64> {
    let announcement = environment::parse(announcement?)?;
    let seconds = match announcement.get("maxJobDuration")? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Some(seconds).filter(|seconds: &f64| *seconds > 0.0 && seconds.is_finite())
}

/// What is to be done with an unfinished job; `announced` is its environment's limit.
pub fn live(job: &LiveJob, seen: Seen<'_>, announced: Option<f64>, rules: &ReaperRules) -> Option<Action> {
    match job.status {
        1 => called_off(job),
        10..20 if !matches!(seen, Seen::Steps([_, ..])) => handed_out(job, rules),
        10.. => running(job, seen, Limit::of(job, announced, rules), rules),
        _ => None,
    }
}

fn never_started(status: i32, reason: &str) -> Action {
    Action::Finish { kind: Kind::NeverStarted, status, reason: reason.to_owned(), absent: false }
}

/// A job that no engine has begun and none is to begin any more.
fn called_off(job: &LiveJob) -> Option<Action> {
    let finish = |status, reason: &str| never_started(status, reason);
    if job.stop_requested > 0 || job.removed {
        Some(finish(70, "The job was stopped before it was started."))
    } else if job.valid_for.is_some_and(|left| left < 0.0) {
        Some(finish(41, "No environment had room for the job before its validUntil."))
    } else {
        None
    }
}

/// A job that an engine was given.
fn handed_out(job: &LiveJob, rules: &ReaperRules) -> Option<Action> {
    if job.handed_out_age <= rules.dispatch_grace {
        return None;
    }
    let failed = |reason: &str| never_started(41, reason);
    let readable = workflow::summarize(job.workflow.as_deref()).readable;
    Some(match called_off(job) {
        Some(finish) => finish,
        None if !readable => failed("The job could not be started: its workflow cannot be read."),
        None if job.hand_backs >= HAND_BACKS => {
            failed("The job could not be started: its environment did not begin it.")
        }
        None => Action::HandBack,
    })
}

/// A job that an engine has begun.
fn running(job: &LiveJob, seen: Seen<'_>, limit: Limit, rules: &ReaperRules) -> Option<Action> {
    // Fetching data and publishing results have no limit of their own, and may take longer than the algorithm.
    let at_work = |step: &Step| step.component != Component::Algorithm && step.state == StepState::Running;
    let grace = match seen {
        Seen::Steps(steps) if steps.iter().any(at_work) => rules.limit_grace * AT_WORK,
        _ => rules.limit_grace,
    };
    let long_past = limit.is_long_past(job.status_age, grace);
    let action = match seen {
        Seen::Unknown => None,
        Seen::Steps([]) => match job.absent_for {
            None => Some(Action::NoteAbsence(true)),
            Some(seconds) if seconds >= rules.absent_grace => Some(Action::Finish {
                kind: Kind::Orphans,
                status: last_status(job),
                reason: orphaned(job, "The environment lost the job while it ran."),
                absent: true,
            }),
            Some(_) => None,
        },
        Seen::Steps(steps) => steps.iter().find_map(|step| of_step(job, step, limit, rules)),
    };
    match (action, seen) {
        (Some(action), _) => Some(action),
        // Nothing of what could be tried has been left out, and the engine has not moved since.
        (None, _) if long_past => Some(Action::Finish {
            kind: Kind::Orphans,
            status: last_status(job),
            reason: orphaned(job, "The environment did not go on with the job."),
            absent: false,
        }),
        (None, Seen::Steps([_, ..])) if job.absent_for.is_some() => Some(Action::NoteAbsence(false)),
        (None, _) => None,
    }
}

fn of_step(job: &LiveJob, step: &Step, limit: Limit, rules: &ReaperRules) -> Option<Action> {
    let end = |kind, reason, timed_out| Some(Action::End { kind, step: step.clone(), reason, timed_out });
    match &step.state {
        StepState::Done | StepState::Going => None,
        StepState::Stuck { trouble, hope, seconds } if *seconds >= grace(*hope, rules) => {
            end(Kind::StuckSteps, Some(in_words(step.component, trouble)), false)
        }
        _ if step.component != Component::Algorithm => None,
        _ if job.stop_requested == 1 || job.removed => end(Kind::Stops, None, false),
        _ => match limit.exceeded_by(step.running_for) {
            Some(reason) => end(Kind::TimeLimits, Some(reason), true),
            None if job.stop_requested == 2 => end(Kind::TimeLimits, None, true),
            None => None,
        },
    }
}

/// For how many seconds trouble may last.
fn grace(hope: Hope, rules: &ReaperRules) -> f64 {
    match hope {
        Hope::None => 0.0,
        Hope::Retry => rules.retry_grace,
        // In time to see why: the cluster throws away the pod that it gives up.
        Hope::Restart => rules.retry_grace / 5.0,
        Hope::Room => rules.schedule_grace,
    }
}

/// What an abandoned job ends with. What went wrong before stays so; what has published is finished; so is what was
/// asked to stop.
fn last_status(job: &LiveJob) -> i32 {
    match job.status {
        31 | 32 | 70 => job.status,
        _ if job.has_outputs || job.stop_requested == 1 || job.removed => 70,
        _ => 41,
    }
}

fn orphaned(job: &LiveJob, what: &str) -> String {
    match last_status(job) {
        70 if job.has_outputs => format!("{what} Its results had been published."),
        70 if job.status != 70 => format!("{what} It had been asked to stop."),
        _ => what.to_owned(),
    }
}

/// Why a step was ended, in words that the job's owner understands.
fn in_words(component: Component, trouble: &Trouble) -> String {
    let what = match component {
        Component::Configure => "Fetching the job's data",
        Component::Algorithm => "The algorithm",
        Component::Filter => "Filtering the results",
        Component::Publish => "Publishing the results",
    };
    match trouble {
        Trouble::OutOfMemory(Some(limit)) => format!("{what} ran out of memory: {limit} were allowed."),
        Trouble::OutOfMemory(None) => format!("{what} ran out of memory."),
        Trouble::Exit(code) => format!("{what} failed with exit code {code}."),
        Trouble::Evicted => format!("{what} was thrown out by a node that ran short of resources."),
        Trouble::Deadline => format!("{what} took longer than allowed."),
        Trouble::Failed => format!("{what} failed."),
        Trouble::Image => format!("{what} could not begin: its image cannot be pulled."),
        Trouble::ImageName => format!("{what} could not begin: its image has no valid name."),
        Trouble::Container => format!("{what} could not begin: its container cannot be made."),
        Trouble::Node(Some(lacks)) => format!("{what} could not begin: no node has enough {lacks} for it."),
        Trouble::Node(None) => format!("{what} could not begin: no node can take it."),
        Trouble::NoPod => format!("{what} could not begin: the cluster made no pod for it."),
    }
}

/// What is to be done with the objects and outputs of a finished job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Remove what the engine should have.
    Tidy,
    /// Remove that and the outputs, and if its owner deleted it, its WorkFlow object.
    Purge,
}

/// What is to be done with a WorkFlow object that was found, if anything, and why; `known` is what the book says.
pub fn object(found: &Listed, known: Option<&Known>, rules: &ReaperRules) -> Option<Kind> {
    match known {
        // Others may keep objects of their own there.
        None => (found.ours && found.age > rules.unknown_grace).then_some(Kind::Strays),
        Some(known) => {
            let old = known.finished_age? >= rules.workflow_ttl?;
            (old && known.settled).then_some(Kind::OldObjects)
        }
    }
}

/// What is to be done with a finished job now, and in how many seconds there is next something to do.
pub fn finished(job: &FinishedJob, rules: &ReaperRules) -> (Option<Duty>, Option<f64>) {
    let settles_in = settles_in(Status::from_code(job.status), job.age);
    if settles_in > 0.0 {
        return (None, Some(settles_in));
    }
    let own = job.expiry.unwrap_or_else(|| own_expiry(job.workflow.as_deref()));
    let expiry = match own {
        -1 => rules.storage_expiry.map(|seconds| seconds as f64),
        seconds => Some(seconds as f64).filter(|seconds| *seconds > 0.0),
    };
    let expires_in = expiry.map(|seconds| seconds - job.age);
    match job {
        // An engine left something behind once more, and that could not be removed.
        FinishedJob { purged: true, tidied, .. } => ((!tidied).then_some(Duty::Tidy), None),
        _ if job.removed || expires_in.is_some_and(|left| left <= 0.0) => (Some(Duty::Purge), None),
        // What the configuration alone lets expire is looked for by its age.
        _ => ((!job.tidied).then_some(Duty::Tidy), expires_in.filter(|_| own != -1)),
    }
}

/// For how many seconds a job's outputs are kept, as its own workflow says: 0 for ever, -1 if it does not say.
pub fn own_expiry(document: Option<&str>) -> i64 {
    document.and_then(workflow::stored_expiry).map_or(-1, |seconds| seconds.min(i64::MAX as u64 / 2) as i64)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use serde_json::json;

    use super::*;
    use crate::domain::JobId;

    fn rules() -> ReaperRules {
        ReaperRules {
            algorithm_limit: None,
            storage_expiry: None,
            dispatch_grace: 300.0,
            retry_grace: 300.0,
            schedule_grace: 900.0,
            absent_grace: 60.0,
            limit_grace: 3600.0,
            unknown_grace: 3600.0,
            workflow_ttl: Some(1000.0),
            nonces_kept: 86_400.0,
            requests_per_second: NonZeroU32::MIN,
        }
    }

    fn document(compute: Value) -> Option<String> {
        Some(json!({ "spec": { "metadata": { "stages": [{ "compute": compute }] } } }).to_string())
    }

    fn job(status: i32) -> LiveJob {
        LiveJob {
            job_id: "job".to_owned(),
            namespace: Some("environment".to_owned()),
            status,
            status_age: 0.0,
            stop_requested: 0,
            removed: false,
            has_outputs: false,
            valid_for: None,
            handed_out_age: 0.0,
            hand_backs: 0,
            absent_for: None,
            workflow: document(json!({ "maxtime": 3600 })),
        }
    }

    fn step(component: Component, running_for: f64, state: StepState) -> Step {
        let (uid, resource_version) = ("uid".to_owned(), "1".to_owned());
        Step { job_id: JobId::stored("job"), component, uid, resource_version, running_for, state }
    }

    /// What is done, in one line: the status or `end`, the kind, the reason.
    fn told(action: Option<Action>) -> String {
        match action {
            None => "nothing".to_owned(),
            Some(Action::HandBack) => "hand back".to_owned(),
            Some(Action::NoteAbsence(absent)) => format!("absent {absent}"),
            Some(Action::Finish { kind, status, reason, .. }) => format!("{status} {kind:?} {reason}"),
            Some(Action::End { kind, reason, timed_out, step }) => {
                format!("end {:?} {kind:?} {timed_out} {}", step.component, reason.unwrap_or_default())
            }
        }
    }

    #[test]
    fn jobs_that_are_not_running() {
        let nobody = |job: LiveJob| told(live(&job, Seen::Unknown, None, &rules()));
        let stopped = "70 NeverStarted The job was stopped before it was started.";
        let late = "41 NeverStarted No environment had room for the job before its validUntil.";
        let old = |job: LiveJob| LiveJob { handed_out_age: 301.0, ..job };
        for (job, expected) in [
            (LiveJob { status_age: 1e12, handed_out_age: 1e12, ..job(1) }, "nothing"),
            (LiveJob { stop_requested: 1, ..job(1) }, stopped),
            (LiveJob { removed: true, ..job(1) }, stopped),
            (LiveJob { valid_for: Some(-0.1), ..job(1) }, late),
            (LiveJob { valid_for: Some(0.1), ..job(1) }, "nothing"),
            (LiveJob { valid_for: Some(-1e18), stop_requested: 1, ..job(1) }, stopped),
            (LiveJob { handed_out_age: 300.0, ..job(10) }, "nothing"),
            (LiveJob { handed_out_age: -1e9, ..job(10) }, "nothing"),
            (old(job(10)), "hand back"),
            (old(job(11)), "hand back"),
            (old(LiveJob { stop_requested: 1, ..job(10) }), stopped),
            (old(LiveJob { valid_for: Some(-1.0), ..job(10) }), late),
            (old(LiveJob { hand_backs: 4, ..job(10) }), "hand back"),
            (
                old(LiveJob { hand_backs: i16::MAX, ..job(10) }),
                "41 NeverStarted The job could not be started: its environment did not begin it.",
            ),
            (
                old(LiveJob { workflow: Some("null".to_owned()), ..job(10) }),
                "41 NeverStarted The job could not be started: its workflow cannot be read.",
            ),
            (LiveJob { status_age: 1e12, ..job(0) }, "nothing"),
            (LiveJob { status_age: 1e12, ..job(-1) }, "nothing"),
        ] {
            assert_eq!(nobody(job.clone()), expected, "{job:?}");
        }
        // One that has begun, though its status does not say so yet, is not given to another.
        let steps = [step(Component::Configure, 1.0, StepState::Running)];
        assert_eq!(told(live(&old(job(10)), Seen::Steps(&steps), None, &rules())), "nothing");
    }

    #[test]
    fn running_jobs_of_which_nothing_is_seen() {
        let lost = "Orphans The environment lost the job while it ran.";
        let stands = "Orphans The environment did not go on with the job.";
        let absent = |job: LiveJob| LiveJob { absent_for: Some(60.0), ..job };
        let long = |job: LiveJob| LiveJob { status_age: 7201.0, ..job };
        for (job, seen, expected) in [
            (job(40), Seen::Steps(&[]), "absent true".to_owned()),
            (LiveJob { absent_for: Some(59.9), ..job(40) }, Seen::Steps(&[]), "nothing".to_owned()),
            (LiveJob { absent_for: Some(-600.0), ..job(40) }, Seen::Steps(&[]), "nothing".to_owned()),
            (absent(job(40)), Seen::Steps(&[]), format!("41 {lost}")),
            (absent(job(31)), Seen::Steps(&[]), format!("31 {lost}")),
            (absent(job(70)), Seen::Steps(&[]), format!("70 {lost}")),
            (
                absent(LiveJob { stop_requested: 1, ..job(60) }),
                Seen::Steps(&[]),
                format!("70 {lost} It had been asked to stop."),
            ),
            (absent(LiveJob { stop_requested: 2, ..job(60) }), Seen::Steps(&[]), format!("41 {lost}")),
            (
                absent(LiveJob { has_outputs: true, ..job(60) }),
                Seen::Steps(&[]),
                format!("70 {lost} Its results had been published."),
            ),
            // The cluster being gone says nothing about a job, time does.
            (absent(job(40)), Seen::Unknown, "nothing".to_owned()),
            (LiveJob { status_age: 7200.0, ..job(40) }, Seen::Unknown, "nothing".to_owned()),
            (long(job(40)), Seen::Unknown, format!("41 {stands}")),
            (long(job(32)), Seen::Unknown, format!("32 {stands}")),
            (long(LiveJob { absent_for: Some(1.0), ..job(40) }), Seen::Steps(&[]), format!("41 {stands}")),
            // What has no limit stands still as long as it likes.
            (LiveJob { status_age: 1e12, workflow: None, ..job(40) }, Seen::Unknown, "nothing".to_owned()),
            (LiveJob { status_age: -1e12, ..job(40) }, Seen::Unknown, "nothing".to_owned()),
            (
                LiveJob { valid_for: Some(-1.0), status_age: 3601.0, workflow: None, ..job(40) },
                Seen::Unknown,
                format!("41 {stands}"),
            ),
            (LiveJob { valid_for: Some(1.0), status_age: 1e12, ..job(40) }, Seen::Unknown, "nothing".to_owned()),
        ] {
            assert_eq!(told(live(&job, seen, None, &rules())), expected, "{job:?} {seen:?}");
        }
    }

    #[test]
    fn running_jobs_with_steps() {
        use Component::{Algorithm, Publish};
        use StepState::{Done, Going, Running};
        let limited = ReaperRules { algorithm_limit: Some(100), ..rules() };
        let over = "end Algorithm TimeLimits true The algorithm was stopped at its time limit of 100 seconds.";
        let stuck = |hope, seconds| StepState::Stuck { trouble: Trouble::Image, hope, seconds };
        let image = "The algorithm could not begin: its image cannot be pulled.";
        for (job, step, expected) in [
            (job(40), step(Algorithm, 100.0, Running), "nothing".to_owned()),
            (job(40), step(Algorithm, 100.1, Running), over.to_owned()),
            (job(40), step(Algorithm, 1e9, Done), "nothing".to_owned()),
            (job(40), step(Algorithm, 1e9, Going), "nothing".to_owned()),
            (job(60), step(Publish, 1e9, Running), "nothing".to_owned()),
            (
                LiveJob { stop_requested: 1, ..job(40) },
                step(Algorithm, 1e9, Running),
                "end Algorithm Stops false ".to_owned(),
            ),
            (
                LiveJob { removed: true, ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm Stops false ".to_owned(),
            ),
            (
                LiveJob { stop_requested: 2, ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm TimeLimits true ".to_owned(),
            ),
            (LiveJob { stop_requested: 1, ..job(60) }, step(Publish, 0.0, Running), "nothing".to_owned()),
            (
                LiveJob { valid_for: Some(-1.0), ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm TimeLimits true The algorithm was stopped because the job's validUntil has passed."
                    .to_owned(),
            ),
            (job(40), step(Algorithm, 0.0, stuck(Hope::Retry, 299.9)), "nothing".to_owned()),
            (
                job(40),
                step(Algorithm, 0.0, stuck(Hope::Retry, 300.0)),
                format!("end Algorithm StuckSteps false {image}"),
            ),
            (
                job(40),
                step(Algorithm, 0.0, stuck(Hope::Restart, 60.0)),
                format!("end Algorithm StuckSteps false {image}"),
            ),
            (job(40), step(Algorithm, 0.0, stuck(Hope::Room, 899.0)), "nothing".to_owned()),
            (job(40), step(Algorithm, 0.0, stuck(Hope::None, 0.0)), format!("end Algorithm StuckSteps false {image}")),
            // What may recover has a limit all the same.
            (job(40), step(Algorithm, 101.0, stuck(Hope::Room, 0.0)), over.to_owned()),
            (LiveJob { absent_for: Some(99.0), ..job(40) }, step(Algorithm, 1.0, Running), "absent false".to_owned()),
        ] {
            let steps = [self::step(Component::Configure, 9e9, Done), step];
            assert_eq!(told(live(&job, Seen::Steps(&steps), None, &limited)), expected, "{job:?} {steps:?}");
        }
    }

    #[test]
    fn the_least_limit_counts() {
        let limit = |configured, announced, valid_for, maxtime: Value| {
            let job = LiveJob { valid_for, workflow: document(json!({ "maxtime": maxtime })), ..job(40) };
            Limit::of(&job, announced, &ReaperRules { algorithm_limit: configured, ..rules() }).seconds
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
            let job = LiveJob { workflow: damaged.map(str::to_owned), ..job(40) };
            assert_eq!(Limit::of(&job, None, &rules()).seconds, None, "{damaged:?}");
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

    #[test]
    fn own_expiries() {
        for (expiry, expected) in [
            (json!(0), 0),
            (json!(500), 500),
            (json!("500"), 500),
            (json!(0.9), 0),
            (json!(-5), 0),
            (json!("-1e300"), 0),
            (json!(1e300), i64::MAX / 2),
            (json!("1e300"), i64::MAX / 2),
            (json!("NaN"), -1),
            (json!("inf"), -1),
            (json!("never"), -1),
            (json!(true), -1),
            (json!(null), -1),
        ] {
            let document = document(json!({ "storageExpiry": expiry }));
            assert_eq!(own_expiry(document.as_deref()), expected, "{expiry}");
        }
        let large = document(json!({ "storageExpiry": 7, "what": "x".repeat(400 * 1024) }));
        assert_eq!(own_expiry(large.as_deref()), 7);
        let deep = format!(r#"{{"spec": {}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
        for damaged in [None, Some(""), Some("null"), Some("{"), Some("\u{0}"), Some(deep.as_str())] {
            assert_eq!(own_expiry(damaged), -1);
        }
    }

    #[test]
    fn finished_jobs() {
        let done = FinishedJob {
            job_id: "job".to_owned(),
            namespace: None,
            status: 70,
            age: 100.0,
            removed: false,
            tidied: false,
            purged: false,
            expiry: Some(-1),
            workflow: None,
            outputs: None,
        };
        let job = |expiry| FinishedJob { expiry: Some(expiry), ..done.clone() };
        let tidied = |expiry| FinishedJob { tidied: true, ..job(expiry) };
        let (tidy, purge) = (Some(Duty::Tidy), Some(Duty::Purge));
        for (job, shared, expected) in [
            (job(-1), None, (tidy, None)),
            (tidied(-1), None, (None, None)),
            (job(-1), Some(100), (purge, None)),
            (job(-1), Some(101), (tidy, None)),
            (job(0), Some(1), (tidy, None)),
            (job(100), None, (purge, None)),
            (job(130), Some(1), (tidy, Some(30.0))),
            (tidied(130), Some(1), (None, Some(30.0))),
            (FinishedJob { age: -600.0, ..tidied(5) }, None, (None, Some(605.0))),
            (FinishedJob { removed: true, ..tidied(0) }, None, (purge, None)),
            (FinishedJob { purged: true, removed: true, ..tidied(1) }, Some(1), (None, None)),
            (FinishedJob { purged: true, removed: true, ..job(1) }, Some(1), (tidy, None)),
            // Its engine may still be publishing.
            (FinishedJob { status: 60, removed: true, ..job(1) }, Some(1), (None, Some(3500.0))),
            (FinishedJob { status: 60, age: -600.0, ..job(1) }, Some(1), (None, Some(4200.0))),
            (FinishedJob { status: 60, age: 3600.0, ..job(1) }, None, (purge, None)),
            (FinishedJob { status: 41, age: 3600.0, ..job(0) }, None, (tidy, None)),
        ] {
            let rules = ReaperRules { storage_expiry: shared, ..rules() };
            assert_eq!(finished(&job, &rules), expected, "{job:?} {shared:?}");
        }
        let unread = FinishedJob { expiry: None, workflow: document(json!({ "storageExpiry": 50 })), ..done };
        assert_eq!(finished(&unread, &rules()).0, purge);
    }

    #[test]
    fn objects() {
        let found = |ours, age| Listed {
            name: "job".to_owned(),
            uid: "uid".to_owned(),
            resource_version: "1".to_owned(),
            ours,
            age,
        };
        let known = |finished_age, settled| Known { job_id: "job".to_owned(), finished_age, settled, due: false };
        for (found, known, expected) in [
            (found(true, 3601.0), None, Some(Kind::Strays)),
            (found(true, 3600.0), None, None),
            (found(true, -99.0), None, None),
            (found(false, 1e12), None, None),
            (found(true, 1e12), Some(known(None, false)), None),
            (found(true, 1e12), Some(known(Some(999.0), true)), None),
            (found(true, 1e12), Some(known(Some(-999.0), true)), None),
            (found(false, 0.0), Some(known(Some(1000.0), true)), Some(Kind::OldObjects)),
            (found(true, 1e12), Some(known(Some(1000.0), false)), None),
        ] {
            assert_eq!(object(&found, known.as_ref(), &rules()), expected, "{found:?} {known:?}");
        }
        let for_ever = ReaperRules { workflow_ttl: None, ..rules() };
        assert_eq!(object(&found(true, 1e12), Some(&known(Some(1e12), true)), &for_ever), None);
    }
}
