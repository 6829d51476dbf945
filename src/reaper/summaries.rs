//! Summaries: what lists show of the workflows of old rows is stored.

use super::budget::{Budget, Stop};
use super::report::Duty;
use super::sweep::Sweep;
use crate::db::Cursor;

/// The most jobs that one sweep summarizes.
const MAX_JOBS: u64 = 20_000;

impl Sweep<'_> {
    /// Summarizes the workflows of rows that are older than the columns for it. A dry run leaves them out: it concerns
    /// no job's fate.
    pub(super) async fn summarize_jobs(&self, budget: Budget) -> Result<(), Stop> {
        self.change(self.summarize(budget)).await.unwrap_or(Ok(()))
    }

    async fn summarize(&self, budget: Budget) -> Result<(), Stop> {
        let (mut after, mut total) = (Cursor::default(), 0);
        loop {
            let (count, next) = self.db.summarize_jobs(&after).await?;
            self.report.found_and_done(Duty::Summaries, count);
            total += count;
            match next {
                Some(_) if total >= MAX_JOBS => return Err(Stop::OutOfTime),
                Some(next) => after = next,
                None => return Ok(()),
            }
            budget.check()?;
        }
    }
}
