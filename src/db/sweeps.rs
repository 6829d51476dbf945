//! The sweep lease, and when each environment was last read.

use super::{Database, DatabaseError};
use crate::domain::Namespace;

/// An environment, and what earlier sweeps recorded of it.
#[derive(Debug, Clone)]
pub struct SweptEnvironment {
    /// The namespace.
    pub namespace: Namespace,
    /// The engine's announcement, if there is one.
    pub announcement: Option<String>,
    /// Whether it could not be read recently and is not to be read yet.
    pub paused: bool,
    /// How many seconds ago its WorkFlow objects were last scanned.
    pub scan_age: f64,
}

impl Database {
    /// Acquires or renews the sweep lease for a number of seconds. Returns false if another process holds it. The lease
    /// is a row that expires: its holder may be killed, and no session is bound to it.
    pub async fn acquire_sweep_lease(&self, holder: &str, seconds: f64) -> Result<bool, DatabaseError> {
        let changed = self
            .execute(sqlx::query!(
                "UPDATE sweeps SET holder = $1, helduntil = clock_timestamp() + make_interval(secs => $2)
                 WHERE holder = $1 OR helduntil <= clock_timestamp()",
                holder,
                seconds
            ))
            .await?;
        Ok(changed == 1)
    }

    /// Releases the sweep lease, if this holder has it.
    pub async fn release_sweep_lease(&self, holder: &str) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE sweeps SET holder = NULL, helduntil = '-infinity' WHERE holder = $1",
            holder
        ))
        .await?;
        Ok(())
    }

    /// Every environment that has jobs or was announced, the one first that was swept longest ago. Jobs without a
    /// namespace count as those of `default`.
    pub async fn environments_to_sweep(&self, default: &Namespace) -> Result<Vec<SweptEnvironment>, DatabaseError> {
        self.run(async |connection| {
            // Finds the namespaces of millions of rows in as many index probes as there are namespaces.
            Ok(sqlx::query_as!(
                SweptEnvironment,
                r#"
                WITH RECURSIVE used AS (
                    (SELECT namespace FROM jobs WHERE namespace IS NOT NULL ORDER BY namespace LIMIT 1)
                    UNION ALL
                    SELECT (SELECT jobs.namespace FROM jobs WHERE jobs.namespace > used.namespace
                            ORDER BY jobs.namespace LIMIT 1)
                    FROM used WHERE used.namespace IS NOT NULL
                ), known AS (
                    SELECT namespace FROM used WHERE namespace IS NOT NULL
                    UNION SELECT $1 WHERE EXISTS (SELECT FROM jobs WHERE namespace IS NULL)
                    UNION SELECT namespace FROM envs
                )
                SELECT known.namespace AS "namespace!: Namespace", envs.status AS announcement,
                       coalesce(sweptenvs.retryat > now(), false) AS "paused!",
                       coalesce(extract(epoch FROM now() - nullif(sweptenvs.searched, '-infinity')), 1e12)::float8
                           AS "scan_age!"
                FROM known
                LEFT JOIN envs ON envs.namespace = known.namespace
                LEFT JOIN sweptenvs ON sweptenvs.namespace = known.namespace
                ORDER BY sweptenvs.swept NULLS FIRST, known.namespace
                "#,
                default.as_str()
            )
            .fetch_all(connection)
            .await?)
        })
        .await
    }

    /// Records that an environment's unfinished jobs were swept.
    pub async fn record_environment_swept(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.record_environment_read(namespace, false).await
    }

    /// Records that an environment's WorkFlow objects were scanned.
    pub async fn record_environment_scanned(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.record_environment_read(namespace, true).await
    }

    async fn record_environment_read(&self, namespace: &Namespace, scanned: bool) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept, searched)
             VALUES ($1, now(), CASE WHEN $2 THEN now() ELSE '-infinity' END)
             ON CONFLICT (namespace) DO UPDATE SET swept = now(), failures = 0, retryat = '-infinity',
                 searched = CASE WHEN $2 THEN now() ELSE sweptenvs.searched END",
            namespace.as_str(),
            scanned
        ))
        .await?;
        Ok(())
    }

    /// Records that an environment was skipped, because it could not be read: other environments come first in the next
    /// sweep.
    pub async fn record_environment_skipped(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept) VALUES ($1, now())
             ON CONFLICT (namespace) DO UPDATE SET swept = now()",
            namespace.as_str()
        ))
        .await?;
        Ok(())
    }

    /// Records that an environment could not be read. It is paused for 10 seconds, and twice as long each time, up to
    /// ten minutes.
    pub async fn record_environment_failure(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept, failures, retryat)
             VALUES ($1, now(), 1, now() + make_interval(secs => 10))
             ON CONFLICT (namespace) DO UPDATE SET swept = now(), failures = least(sweptenvs.failures + 1, 20),
                 retryat = now() + make_interval(secs => least(10 * 2 ^ sweptenvs.failures, 600))",
            namespace.as_str()
        ))
        .await?;
        Ok(())
    }
}
