//! What is measured of the database: how long jobs and environments wait, the pool, and the schema's version.

use super::{Database, DatabaseError};
use crate::domain::Namespace;

/// How long jobs have waited, in seconds; 0 if none does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Waits {
    /// The oldest unfinished job without a WorkFlow object, for it.
    pub unregistered: f64,
    /// The oldest job that no engine has taken, for an engine. (One that may not be taken any more is finished by the next
    /// sweep.)
    pub waiting: f64,
}

/// The connections of this process's pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// All of them.
    pub connections: usize,
    /// Those that are not in use.
    pub idle: usize,
    /// The number of operations that wait for one.
    pub waiting: usize,
}

impl Database {
    /// How long the oldest jobs have waited.
    pub async fn waits(&self) -> Result<Waits, DatabaseError> {
        self.run(async |connection| {
            // As environments_to_sweep() does, as many index probes as there are namespaces with pending jobs.
            let row = sqlx::query!(
                r#"
                WITH RECURSIVE pending AS (
                    (SELECT namespace FROM jobs WHERE status = 1 AND datefinished IS NULL AND namespace IS NOT NULL
                     ORDER BY namespace LIMIT 1)
                    UNION ALL
                    SELECT (SELECT jobs.namespace FROM jobs
                            WHERE jobs.status = 1 AND jobs.datefinished IS NULL AND jobs.namespace > pending.namespace
                            ORDER BY jobs.namespace LIMIT 1)
                    FROM pending WHERE pending.namespace IS NOT NULL
                ), oldest AS (
                    SELECT (SELECT min(datecreated) FROM jobs WHERE NOT registered AND datefinished IS NULL) AS unregistered,
                           (SELECT min(first.datecreated)
                            FROM pending CROSS JOIN LATERAL (
                                SELECT datecreated FROM jobs
                                WHERE jobs.namespace = pending.namespace AND status = 1 AND datefinished IS NULL
                                ORDER BY datecreated LIMIT 1
                            ) AS first) AS waiting
                )
                SELECT greatest(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - unregistered), 0)::float8
                           AS "unregistered!",
                       greatest(extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - waiting), 0)::float8 AS "waiting!"
                FROM oldest
                "#
            )
            .fetch_one(connection)
            .await?;
            Ok(Waits { unregistered: row.unregistered, waiting: row.waiting })
        })
        .await
    }

    /// For each environment that has been announced, for how many seconds it has not been announced again.
    pub async fn environment_silences(&self) -> Result<Vec<(Namespace, f64)>, DatabaseError> {
        self.run(async |connection| {
            let rows = sqlx::query!(
                r#"
                SELECT namespace AS "namespace: Namespace",
                       greatest(extract(epoch FROM clock_timestamp() - announcedat), 0)::float8 AS "seconds!"
                FROM envs WHERE announcedat IS NOT NULL ORDER BY namespace
                "#
            )
            .fetch_all(connection)
            .await?;
            Ok(rows.into_iter().map(|row| (row.namespace, row.seconds)).collect())
        })
        .await
    }
}
