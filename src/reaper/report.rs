//! What a sweep found and did.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

/// As many jobs are named.
const NAMED: usize = 1000;

/// Kinds of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// Algorithms over their limit, ended.
    TimeLimits,
    /// Steps that can never finish, ended.
    StuckSteps,
    /// Stops asked for and not carried out, carried out.
    Stops,
    /// Jobs that an engine was given and did not begin, offered again.
    HandBacks,
    /// Jobs that nobody began, finished.
    NeverStarted,
    /// Jobs that no engine goes on with, finished.
    Orphans,
    /// Jobs not yet registered in the cluster, registered.
    Registrations,
    /// WorkFlow objects that did not say what the book says, brought in line.
    Mirrors,
    /// What engines should have removed, removed.
    Leftovers,
    /// Outputs that have expired or were deleted, removed.
    Expired,
    /// WorkFlow objects that are in no book, removed.
    Strays,
    /// WorkFlow objects of jobs that ended long ago, removed.
    OldObjects,
    /// Used nonces, forgotten.
    Nonces,
}

/// How a piece of work ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It is done.
    Done,
    /// It would be done.
    Would,
    /// It failed, and is tried again later.
    Failed,
    /// Something else happened meanwhile; the next run looks again.
    Left,
}

/// How much of a kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// What was due, as far as this run looked.
    pub found: u64,
    /// What was done.
    pub done: u64,
    /// What failed, and is tried again later.
    pub failed: u64,
    /// What is left for the next run.
    pub left: u64,
}

/// A job that something was done with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// Its id.
    pub job: String,
    /// What was done, or was to be.
    pub kind: Kind,
    /// How that ended.
    pub outcome: Outcome,
    /// Why it was done, why it failed, or what remains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a sweep found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Nothing was changed.
    pub dry_run: bool,
    /// Why nothing was done at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Whether it came to its end before its time was up.
    pub complete: bool,
    /// How much of each kind.
    pub kinds: BTreeMap<Kind, Count>,
    /// The jobs, the first thousand; those of which only the WorkFlow object was brought in line are left out.
    pub jobs: Vec<Entry>,
    /// How many more jobs there were.
    pub jobs_not_named: u64,
    /// Environments that could not be read, and other trouble that is no single job's.
    pub troubles: Vec<String>,
    /// For how many seconds the job has waited that has waited longest for its registration.
    pub oldest_unregistered: u64,
}

impl Report {
    /// The sum over all kinds.
    pub fn total(&self) -> Count {
        self.kinds.values().fold(Count::default(), |sum, count| Count {
            found: sum.found + count.found,
            done: sum.done + count.done,
            failed: sum.failed + count.failed,
            left: sum.left + count.left,
        })
    }
}

/// A report that is being written.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Report>);

impl Notes {
    pub(super) fn of(dry_run: bool) -> Self {
        Self(Mutex::new(Report { dry_run, ..Report::default() }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Work was found.
    pub(super) fn found(&self, kind: Kind, much: u64) {
        if much == 0 {
            return;
        }
        self.lock().kinds.entry(kind).or_default().found += much;
    }

    /// Work was found, and ended like this.
    pub(super) fn ended(&self, kind: Kind, much: u64, outcome: Outcome) {
        if much == 0 {
            return;
        }
        let mut report = self.lock();
        let count = report.kinds.entry(kind).or_default();
        match outcome {
            Outcome::Done => count.done += much,
            Outcome::Failed => count.failed += much,
            Outcome::Would | Outcome::Left => {}
        }
    }

    /// A job's work ended like this.
    pub(super) fn job(&self, job: &str, kind: Kind, outcome: Outcome, reason: Option<String>) {
        self.ended(kind, 1, outcome);
        match outcome {
            Outcome::Failed => tracing::warn!(job, ?kind, reason, "the reaper could not do something"),
            _ => tracing::info!(job, ?kind, ?outcome, reason, "the reaper did something"),
        }
        let mut report = self.lock();
        if report.jobs.len() < NAMED {
            report.jobs.push(Entry { job: job.to_owned(), kind, outcome, reason });
        } else {
            report.jobs_not_named += 1;
        }
    }

    /// Trouble that is no single job's.
    pub(super) fn trouble(&self, text: String) {
        tracing::warn!(trouble = text, "the reaper had trouble");
        let mut report = self.lock();
        if !report.troubles.contains(&text) {
            report.troubles.push(text);
        }
    }

    /// The report as it stands: what was found and has neither been done nor failed is left.
    pub(super) fn finished(&self, complete: bool) -> Report {
        let mut report = self.lock().clone();
        report.complete = complete;
        for count in report.kinds.values_mut() {
            count.left = count.found.saturating_sub(count.done + count.failed);
        }
        report
    }
}
