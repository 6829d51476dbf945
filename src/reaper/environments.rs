//! Environments: each is read once in a sweep, for the decisions on its unfinished jobs and for the cleanup of what
//! engines left of finished ones.

use serde_json::Value;

use super::budget::{Budget, Stop};
use super::job::Environment;
use super::sweep::Sweep;
use crate::db::{Database, DatabaseError};
use crate::domain::{Namespace, environment};

fn announced_limit(announcement: &str) -> Option<f64> {
    let seconds = match environment::parse(announcement)?.get("maxJobDuration")? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Some(seconds).filter(|seconds: &f64| *seconds > 0.0 && seconds.is_finite())
}

impl Sweep<'_> {
    /// Sweeps the environments, the one first whose turn was longest ago.
    pub(super) async fn sweep_environments(&self, environments: &[Environment], budget: Budget) -> Result<(), Stop> {
        let mut result = Ok(());
        for environment in environments {
            budget.check()?;
            let namespace = &environment.namespace;
            // Before it is read: one that kills the sweep is not the first again.
            self.change(self.db.record_turn(namespace)).await.transpose()?;
            let steps = self.read(namespace, budget, self.cluster.list_steps(namespace)).await;
            self.sweep_unfinished_jobs(environment, steps.as_ref(), budget).await?;
            match steps {
                Some(steps) => self.clean_up(namespace, &steps, budget).await?,
                None => result = self.breaker.check(),
            }
        }
        result
    }
}

impl Database {
    /// Every environment that has jobs or was announced, the one first that was swept longest ago. Jobs without a
    /// namespace count as those of `default`.
    pub(super) async fn environments_to_sweep(&self, default: &Namespace) -> Result<Vec<Environment>, DatabaseError> {
        self.run(async |connection| {
            // Finds the namespaces of millions of rows in as many index probes as there are namespaces.
            let rows = sqlx::query!(
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
                       extract(epoch FROM clock_timestamp() - envs.announcedat)::float8 AS announced_age,
                       extract(epoch FROM envs.idleat)::float8 AS idle_at,
                       coalesce(extract(epoch FROM now() - nullif(sweptenvs.scanned, '-infinity')), 1e12)::float8
                           AS "scan_age!"
                FROM known
                LEFT JOIN envs ON envs.namespace = known.namespace
                LEFT JOIN sweptenvs ON sweptenvs.namespace = known.namespace
                ORDER BY sweptenvs.swept NULLS FIRST, known.namespace
                "#,
                default.as_str()
            )
            .fetch_all(connection)
            .await?;
            let environments = rows.into_iter().map(|row| Environment {
                namespace: row.namespace,
                announced_limit: row.announcement.as_deref().and_then(announced_limit),
                announced_age: row.announced_age,
                idle_at: row.idle_at,
                scan_age: row.scan_age,
            });
            Ok(environments.collect())
        })
        .await
    }

    /// Records that a sweep begins with an environment.
    async fn record_turn(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, swept) VALUES ($1, clock_timestamp())
             ON CONFLICT (namespace) DO UPDATE SET swept = EXCLUDED.swept",
            namespace.as_str()
        ))
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_limits() {
        for (duration, expected) in [
            ("3600", Some(3600.0)),
            ("\"3600\"", Some(3600.0)),
            ("\" 0.5 \"", Some(0.5)),
            ("0", None),
            ("-1", None),
            ("\"\"", None),
            ("\"abc\"", None),
            ("\"NaN\"", None),
            ("\"inf\"", None),
            ("\"1e400\"", None),
            ("1e400", None),
            ("null", None),
            ("[1]", None),
        ] {
            let announcement = format!(r#"{{"maxJobDuration": {duration}}}"#);
            assert_eq!(announced_limit(&announcement), expected, "{duration}");
        }
        for nothing in ["", "null", "[]", "3600", "{}", "{\"maxJob"] {
            assert_eq!(announced_limit(nothing), None, "{nothing:?}");
        }
    }
}
