//! Adds up what sweeps found and did, in the database: a sweep is a process of its own.

use super::report::{Count, Report};
use crate::db::{Database, DatabaseError};

/// What all sweeps together found and did.
#[derive(Debug, Clone, Default)]
pub struct SweepCounts {
    /// The number of sweeps that ended by themselves.
    pub runs: u64,
    /// How many seconds ago the last of them ended; `None` if there was none.
    pub silence: Option<f64>,
    /// By the duty's name: what was found, done and failed over all sweeps, and what the last one left.
    pub duties: Vec<(String, Count)>,
}

impl Database {
    /// Adds a sweep's counts.
    pub(super) async fn add_sweep(&self, report: &Report) -> Result<(), DatabaseError> {
        let duties: Vec<String> = report.kinds.keys().map(|duty| format!("{duty:?}")).collect();
        let column = |number: fn(&Count) -> u64| report.kinds.values().map(|count| number(count) as i64).collect();
        let (found, done): (Vec<i64>, Vec<i64>) = (column(|count| count.found), column(|count| count.done));
        let (failed, left): (Vec<i64>, Vec<i64>) = (column(|count| count.failed), column(|count| count.left));
        // The duties that this sweep had nothing to do for, too: it has left nothing of them.
        self.execute(sqlx::query!(
            r#"
            WITH run AS (UPDATE sweeps SET runs = runs + 1, lastrun = clock_timestamp())
            INSERT INTO reapercounts AS total (duty, found, done, failed, "left")
            SELECT duty, coalesce(sweep.found, 0), coalesce(sweep.done, 0), coalesce(sweep.failed, 0),
                   coalesce(sweep."left", 0)
            FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
                     AS sweep (duty, found, done, failed, "left")
            FULL JOIN reapercounts AS known USING (duty)
            ON CONFLICT (duty) DO UPDATE
            SET found = total.found + EXCLUDED.found, done = total.done + EXCLUDED.done,
                failed = total.failed + EXCLUDED.failed, "left" = EXCLUDED."left"
            "#,
            &duties,
            &found,
            &done,
            &failed,
            &left
        ))
        .await?;
        Ok(())
    }

    /// What all sweeps together found and did.
    pub async fn sweep_counts(&self) -> Result<SweepCounts, DatabaseError> {
        self.run(async |connection| {
            let sweeps = sqlx::query!(
                r#"SELECT runs, extract(epoch FROM clock_timestamp() - lastrun)::float8 AS silence FROM sweeps"#
            )
            .fetch_one(&mut *connection)
            .await?;
            let duties = sqlx::query!(r#"SELECT duty, found, done, failed, "left" FROM reapercounts ORDER BY duty"#)
                .fetch_all(connection)
                .await?;
            let count = |number: i64| number.max(0) as u64;
            let duties = duties.into_iter().map(|row| {
                let [found, done, failed, left] = [row.found, row.done, row.failed, row.left].map(count);
                (row.duty, Count { found, done, failed, left })
            });
            Ok(SweepCounts { runs: count(sweeps.runs), silence: sweeps.silence, duties: duties.collect() })
        })
        .await
    }
}
