//! What is due: rows and objects in, actions out. Pure.
//!
//! The rules are the contract's (`engine.md`, "Facts that decide how to stop a job"). What decides about a time has
//! been told by one clock: ages of rows by the database's, ages of objects by the cluster's.

use serde_json::Value;

use crate::cluster::{Component, Hope, Listed, Step, StepState, Trouble};
use crate::config::Reaper as Rules;
use crate::job::{self, environment, workflow};
use crate::store::{FinishedJob, Known, LiveJob, SETTLING};

use super::report::Kind;

/// As often an engine is given a job that none begins.
const HAND_BACKS: i16 = 5;

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
    fn of(job: &LiveJob, announced: Option<f64>, rules: &Rules) -> Self {
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
pub fn live(job: &LiveJob, seen: Seen<'_>, announced: Option<f64>, rules: &Rules) -> Option<Action> {
    match job.status {
        job::WARMING_UP => called_off(job),
        10..20 if !matches!(seen, Seen::Steps([_, ..])) => handed_out(job, rules),
        10.. => running(job, seen, Limit::of(job, announced, rules), rules),
        _ => None,
    }
}

/// A job that no engine has begun and none is to begin any more.
fn called_off(job: &LiveJob) -> Option<Action> {
    let finish = |status, reason: &str| Action::Finish { kind: Kind::NeverStarted, status, reason: reason.to_owned() };
    if job.stop_requested > 0 || job.removed {
        Some(finish(70, "The job was stopped before it was started."))
    } else if job.valid_for.is_some_and(|left| left < 0.0) {
        Some(finish(41, "No environment had room for the job before its validUntil."))
    } else {
        None
    }
}

/// A job that an engine was given.
fn handed_out(job: &LiveJob, rules: &Rules) -> Option<Action> {
    if job.handed_out_age <= rules.hand_out_grace {
        return None;
    }
    let failed = |reason: &str| Action::Finish { kind: Kind::NeverStarted, status: 41, reason: reason.to_owned() };
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
fn running(job: &LiveJob, seen: Seen<'_>, limit: Limit, rules: &Rules) -> Option<Action> {
    let long_past = limit.is_long_past(job.status_age, rules.limit_grace);
    let action = match seen {
        Seen::Unknown => None,
        Seen::Steps([]) => match job.absent_for {
            None => Some(Action::NoteAbsence(true)),
            Some(seconds) if seconds >= rules.absent_grace => Some(Action::Finish {
                kind: Kind::Orphans,
                status: last_status(job),
                reason: orphaned(job, "The environment lost the job while it ran."),
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
        }),
        (None, Seen::Steps([_, ..])) if job.absent_for.is_some() => Some(Action::NoteAbsence(false)),
        (None, _) => None,
    }
}

fn of_step(job: &LiveJob, step: &Step, limit: Limit, rules: &Rules) -> Option<Action> {
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
fn grace(hope: Hope, rules: &Rules) -> f64 {
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
pub fn object(found: &Listed, known: Option<&Known>, rules: &Rules) -> Option<Kind> {
    match known {
        // Others may keep objects of their own there.
        None => (found.ours && found.age > rules.stray_grace).then_some(Kind::Strays),
        Some(known) => {
            let old = known.finished_age? >= rules.workflow_ttl?;
            (old && known.settled).then_some(Kind::OldObjects)
        }
    }
}

/// What is to be done with a finished job now, and in how many seconds there is next something to do.
pub fn finished(job: &FinishedJob, rules: &Rules) -> (Option<Duty>, Option<f64>) {
    let settles_in = if job::is_settled(job.status) { 0.0 } else { SETTLING as f64 - job.age };
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
