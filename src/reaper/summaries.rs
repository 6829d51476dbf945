//! Summaries: what lists show of the workflows of old rows is stored.

use tokio::time::Instant;

use super::report::{Duty, Outcome};
use super::sweep::{Progress, Sweep};
use crate::db::{Cursor, DatabaseError};

/// The most jobs that one sweep summarizes.
const MAX_JOBS: u64 = 20_000;

impl Sweep<'_> {
    /// Summarizes the workflows of rows that are older than the columns for it. A dry run leaves them out: it concerns
    /// no job's fate.
    pub(super) async fn summarize_jobs(&self, until: Instant) -> Result<Progress, DatabaseError> {
        if self.dry_run {
            return Ok(Progress::Complete);
        }
        let (mut after, mut total) = (Cursor::default(), 0);
        loop {
            let (count, next) = self.db().summarize_jobs(&after).await?;
            self.report.found(Duty::Summaries, count);
            self.report.ended(Duty::Summaries, count, Outcome::Done);
            total += count;
            match next {
                Some(next) => after = next,
                None => return Ok(Progress::Complete),
            }
            if total >= MAX_JOBS || Instant::now() >= until {
                return Ok(Progress::Partial);
            }
        }
    }
}
