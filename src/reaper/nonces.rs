//! Nonces: used ones that cannot be accepted again are deleted.

use tokio::time::Instant;

use super::report::{Duty, Outcome};
use super::sweep::{Progress, Sweep};
use crate::db::DatabaseError;

/// The time between two prunings of used nonces, in seconds.
const PRUNING_INTERVAL: f64 = 3600.0;

impl Sweep<'_> {
    /// Deletes the nonces that are far below their signer's highest.
    pub(super) async fn prune_nonces(&self, until: Instant) -> Result<Progress, DatabaseError> {
        if !self.db().nonce_pruning_due(PRUNING_INTERVAL).await? {
            return Ok(Progress::Complete);
        }
        let mut after = String::new();
        loop {
            let (count, last) = self.db().prune_nonces(self.rules().nonce_retention, &after, self.dry_run).await?;
            self.report.found(Duty::Nonces, count);
            if !self.dry_run {
                self.report.ended(Duty::Nonces, count, Outcome::Done);
            }
            // Otherwise these signers may have more.
            if count == 0 || self.dry_run {
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
            if Instant::now() >= until {
                return Ok(Progress::Partial);
            }
        }
        if !self.dry_run {
            self.db().record_nonces_pruned().await?;
        }
        Ok(Progress::Complete)
    }
}
