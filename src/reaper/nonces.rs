//! Nonces: used ones that cannot be accepted again are deleted.

use super::budget::{Budget, Stop};
use super::report::Duty;
use super::sweep::Sweep;

/// The time between two prunings of used nonces, in seconds.
const PRUNING_INTERVAL: f64 = 3600.0;

impl Sweep<'_> {
    /// Deletes the nonces that are far below their signer's highest.
    pub(super) async fn prune_nonces(&self, budget: Budget) -> Result<(), Stop> {
        if !self.db.nonce_pruning_due(PRUNING_INTERVAL).await? {
            return Ok(());
        }
        let mut after = String::new();
        loop {
            let (count, last) = self.db.prune_nonces(self.rules.nonce_retention, &after, self.dry_run).await?;
            self.report.found_and_done(Duty::Nonces, count);
            // Otherwise these signers may have more.
            if count == 0 || self.dry_run {
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
            budget.check()?;
        }
        self.change(self.db.record_nonces_pruned()).await.transpose()?;
        Ok(())
    }
}
