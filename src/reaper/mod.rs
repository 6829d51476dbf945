//! The reaper: reconciles the cluster with the database, ends jobs that are stuck, and cleans up.
//!
//! Each duty has a file with its rule, its query and its action. The rules are pure functions: rows and objects in,
//! actions out. A sweep may be killed at any line, run twice and run concurrently with another: what is due stays due
//! until it is done, and a change is made only if the job or object is still in the state that it was decided on.
//! docs/reaper.md has the rules and the invariants.

mod breaker;
mod budget;
mod cleanup;
mod counts;
mod environments;
mod expiry;
mod job;
mod lease;
mod metrics;
mod never_started;
mod nonces;
mod orphans;
mod report;
mod requeues;
mod stuck_steps;
mod summaries;
mod sweep;
mod time_limits;
mod unfinished;
mod workflow_objects;

#[cfg(test)]
mod fixture;

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::kubernetes::Cluster;
use crate::storage::Storage;
use sweep::Sweep;

pub use counts::SweepCounts;
pub use report::{Count, Duty, Entry, Outcome, Report};

/// The reaper. Cheap to clone.
#[derive(Clone)]
pub struct Reaper {
    db: Database,
    cluster: Cluster,
    storage: Storage,
    rules: ReaperRules,
}

impl Reaper {
    /// Makes a reaper for this database, cluster and storage. Its requests to the cluster are rate-limited.
    pub fn new(db: Database, cluster: &Cluster, storage: Storage, rules: ReaperRules) -> Self {
        let cluster = cluster.rate_limited(rules.requests_per_second);
        Self { db, cluster, storage, rules }
    }

    /// Does what is due, within `time`; with `dry_run`, only reports it. Does nothing if another sweep is under way.
    ///
    /// # Errors
    /// If the database cannot be read at the start. Whatever else fails is in the report.
    pub async fn sweep(&self, dry_run: bool, time: Duration) -> Result<Report, DatabaseError> {
        let sweep = Sweep::new(self, dry_run, Instant::now() + time);
        if dry_run {
            return sweep.run().await;
        }
        let holder = Uuid::new_v4().to_string();
        if !self.db.acquire_sweep_lease(&holder).await? {
            let skipped = Some("another sweep is under way".to_owned());
            return Ok(Report { skipped, ..sweep.report.finish(false) });
        }
        let result = tokio::select! {
            result = sweep.run() => result,
            () = self.db.keep_sweep_lease(&holder) => {
                sweep.report.problem("another sweep has begun: the lease of this one expired".to_owned());
                Ok(sweep.report.finish(false))
            }
        };
        if let Ok(report) = &result
            && let Err(error) = self.db.add_sweep(report).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "the sweep's counts could not be added");
        }
        // If this fails, the lease expires.
        if let Err(error) = self.db.release_sweep_lease(&holder).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the sweep lease could not be released");
        }
        result
    }
}
