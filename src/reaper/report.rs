//! The report of a sweep.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::db::Waits;
use crate::domain::JobId;

/// The maximum number of actions on jobs that a report lists.
const MAX_ENTRIES: usize = 1000;

/// A duty of the reaper: the kind of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Duty {
    /// Ends algorithms that are over their time limit.
    TimeLimits,
    /// Ends steps that cannot finish.
    StuckSteps,
    /// Ends algorithms of stopped and deleted jobs.
    Stops,
    /// Requeues jobs that were dispatched and not begun.
    Requeues,
    /// Finishes jobs that may not be started any more.
    NeverStarted,
    /// Finishes jobs that no engine continues.
    Orphans,
    /// Creates WorkFlow objects for jobs that have none.
    Registrations,
    /// Writes the status of jobs into their WorkFlow objects.
    StatusSync,
    /// Deletes what engines left of finished jobs.
    Cleanups,
    /// Deletes outputs that have expired or were deleted by their owners.
    Expiries,
    /// Deletes WorkFlow objects without a row in the database.
    UnknownObjects,
    /// Deletes WorkFlow objects of jobs that finished long ago.
    OldObjects,
    /// Deletes used nonces that cannot be accepted again.
    Nonces,
    /// Stores what lists show of the workflows of old rows.
    Summaries,
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// It is done.
    Done,
    /// It would be done, in a dry run.
    Planned,
    /// It failed, and is tried again later.
    Failed,
    /// Something changed meanwhile: the next sweep decides again.
    Skipped,
    /// It may not be done yet: a later sweep decides again.
    Left,
}

/// The numbers of actions of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Those that were due, as far as the sweep looked.
    pub found: u64,
    /// Those that were done.
    pub done: u64,
    /// Those that failed, and are tried again later.
    pub failed: u64,
    /// Those that are left for the next sweep.
    pub left: u64,
}

/// An action on a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// The job's id.
    pub job: JobId,
    /// The kind of the action.
    pub kind: Duty,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was done, why it failed, or what remains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a sweep found and did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Why nothing was done at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Whether the sweep went through everything that was due, in time.
    pub complete: bool,
    /// The numbers of actions, by kind.
    pub kinds: BTreeMap<Duty, Count>,
    /// The actions on jobs, up to 1,000; of the status syncs, only those that failed.
    pub jobs: Vec<Entry>,
    /// The number of further actions that are not listed.
    pub jobs_omitted: u64,
    /// Environments that could not be read, and whatever else concerns no single job.
    pub problems: Vec<String>,
    /// For how many seconds the oldest job has waited for its WorkFlow object.
    pub oldest_unregistered: u64,
    /// For how many seconds the oldest job that no engine has taken has waited for one.
    pub oldest_waiting: u64,
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

/// A report under construction.
#[derive(Debug)]
pub(super) struct ReportBuilder(Mutex<Report>);

impl ReportBuilder {
    pub(super) fn new(dry_run: bool) -> Self {
        Self(Mutex::new(Report { dry_run, ..Report::default() }))
    }

    fn lock(&self) -> MutexGuard<'_, Report> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds actions that are due.
    pub(super) fn found(&self, duty: Duty, number: u64) {
        if number > 0 {
            self.lock().kinds.entry(duty).or_default().found += number;
        }
    }

    /// Adds actions that are done as they are found, unless this is a dry run, and concern no single job.
    pub(super) fn found_and_done(&self, duty: Duty, number: u64) {
        self.found(duty, number);
        let mut report = self.lock();
        if !report.dry_run
            && let Some(count) = report.kinds.get_mut(&duty)
        {
            count.done += number;
        }
    }

    fn ended(&self, duty: Duty, outcome: Outcome) {
        let mut report = self.lock();
        let count = report.kinds.entry(duty).or_default();
        match outcome {
            Outcome::Done => count.done += 1,
            Outcome::Failed => count.failed += 1,
            Outcome::Planned | Outcome::Skipped | Outcome::Left => {}
        }
    }

    /// Adds an action on a job that ended, and logs it.
    pub(super) fn job(&self, job: &JobId, duty: Duty, outcome: Outcome, reason: Option<String>) {
        self.ended(duty, outcome);
        // Too many to be listed.
        if duty == Duty::StatusSync && outcome != Outcome::Failed {
            return;
        }
        match outcome {
            Outcome::Failed => tracing::warn!(%job, kind = ?duty, reason, "an action of the sweep failed"),
            _ => tracing::info!(%job, kind = ?duty, ?outcome, reason, "an action of the sweep"),
        }
        let mut report = self.lock();
        if report.jobs.len() < MAX_ENTRIES {
            report.jobs.push(Entry { job: job.clone(), kind: duty, outcome, reason });
        } else {
            report.jobs_omitted += 1;
        }
    }

    /// Adds a problem that concerns no single job.
    pub(super) fn problem(&self, text: String) {
        tracing::warn!(problem = text, "a problem of the sweep");
        let mut report = self.lock();
        if !report.problems.contains(&text) {
            report.problems.push(text);
        }
    }

    /// Sets how long the oldest jobs have waited.
    pub(super) fn waits(&self, waits: Waits) {
        let mut report = self.lock();
        (report.oldest_unregistered, report.oldest_waiting) = (waits.unregistered as u64, waits.waiting as u64);
    }

    /// Returns the report. Actions that were found and have neither been done nor failed are left.
    pub(super) fn finish(&self, complete: bool) -> Report {
        let mut report = self.lock().clone();
        report.complete = complete;
        for count in report.kinds.values_mut() {
            count.left = count.found.saturating_sub(count.done + count.failed);
        }
        report
    }
}
