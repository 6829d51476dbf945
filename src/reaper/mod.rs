//! The reaper: reconciles the cluster with the database, ends jobs that are stuck, and cleans up.
//!
//! Each duty has a file with its rule and its action. The rules are pure functions: rows and objects in, actions out.
//! A sweep may be killed at any line, run twice and run concurrently with another: what is due stays due until it is
//! done, a change is made only if the job is still in the state that it was decided on, and the steps of an action are
//! ordered so that an action that was interrupted is due again. docs/reaper.md has the rules and the invariants.

mod action;
mod availability;
mod cleanup;
mod environments;
mod expiry;
mod metrics;
mod nonces;
mod orphans;
mod registrations;
mod report;
mod requeues;
mod status_sync;
mod stuck_steps;
mod summaries;
mod sweep;
mod time_limits;
mod unfinished;
mod unknown_objects;

#[cfg(test)]
mod fixture;

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::kubernetes::Cluster;
use crate::storage::Storage;
use sweep::Sweep;

pub use report::{Count, Duty, Entry, Outcome, Report};

/// How long the lease of a sweep lasts if it is not renewed, in seconds.
const LEASE_SECONDS: f64 = 60.0;
/// The time between two renewals of the lease.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);
/// The number of consecutive renewals that may fail before the sweep ends.
const MAX_FAILED_RENEWALS: u32 = 3;

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
        let sweep = Sweep::new(self, Uuid::new_v4().to_string(), dry_run, Instant::now() + time);
        if dry_run {
            return sweep.run().await;
        }
        if !self.db.acquire_sweep_lease(&sweep.holder, LEASE_SECONDS).await? {
            let skipped = Some("another sweep is under way".to_owned());
            return Ok(Report { skipped, ..sweep.report.finish(false) });
        }
        let result = tokio::select! {
            result = sweep.run() => result,
            () = self.renew_lease(&sweep.holder) => {
                sweep.report.problem("another sweep has begun: the lease of this one expired".to_owned());
                Ok(sweep.report.finish(false))
            }
        };
        // If this fails, the lease expires.
        if let Err(error) = self.db.release_sweep_lease(&sweep.holder).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "the sweep lease could not be released");
        }
        result
    }

    /// Renews the lease, and returns when it is lost.
    async fn renew_lease(&self, holder: &str) {
        let mut tick = tokio::time::interval_at(Instant::now() + RENEWAL_INTERVAL, RENEWAL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        while failures < MAX_FAILED_RENEWALS {
            tick.tick().await;
            match self.db.acquire_sweep_lease(holder, LEASE_SECONDS).await {
                Ok(true) => failures = 0,
                Ok(false) => return,
                Err(_) => failures += 1,
            }
        }
    }
}
