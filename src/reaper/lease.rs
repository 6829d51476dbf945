//! The sweep lease: a row that expires. Its holder may be killed, and no session is bound to it.

use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior};

use crate::db::{Database, DatabaseError};

/// How long the lease lasts if it is not renewed, in seconds.
const LEASE_SECONDS: f64 = 60.0;
/// The time between two renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(15);
/// The number of consecutive renewals that may fail before the lease counts as lost.
const MAX_FAILED_RENEWALS: u32 = 3;

impl Database {
    /// Acquires or renews the lease. Returns false if another process holds it.
    pub(super) async fn acquire_sweep_lease(&self, holder: &str) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE sweeps SET holder = $1, helduntil = clock_timestamp() + make_interval(secs => $2)
                 WHERE holder = $1 OR helduntil <= clock_timestamp()",
                holder,
                LEASE_SECONDS
            ))
            .await?;
        Ok(changed == 1)
    }

    /// Renews the lease, and returns when it is lost.
    pub(super) async fn keep_sweep_lease(&self, holder: &str) {
        let mut tick = tokio::time::interval_at(Instant::now() + RENEWAL_INTERVAL, RENEWAL_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut failures = 0;
        while failures < MAX_FAILED_RENEWALS {
            tick.tick().await;
            match self.acquire_sweep_lease(holder).await {
                Ok(true) => failures = 0,
                Ok(false) => return,
                Err(_) => failures += 1,
            }
        }
    }

    /// Releases the lease, if this holder has it.
    pub(super) async fn release_sweep_lease(&self, holder: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE sweeps SET holder = NULL, helduntil = '-infinity' WHERE holder = $1",
            holder
        ))
        .await?;
        Ok(())
    }
}
