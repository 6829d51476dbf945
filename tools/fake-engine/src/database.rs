//! The engine's statements, as the real one sends them (docs/contract/engine.md, "Database").

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

/// The service's database, through a pool of the engine's own.
pub(super) struct Database(PgPool);

/// The texts that go with the states.
fn status_text(status: i32) -> &'static str {
    match status {
        20 => "Configuring volumes",
        30 => "Provisioning success",
        31 => "Data provisioning failed",
        32 => "Algorithm provisioning failed",
        40 => "Running algorithm",
        50 => "Filtering results",
        60 => "Publishing results",
        70 => "Job finished",
        _ => "Unknown status",
    }
}

impl Database {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(10));
        Self(pool.connect_lazy_with(options))
    }

    /// Records the announcement and takes up to `limit` jobs.
    pub(super) async fn announce(
        &self,
        namespace: &str,
        announcement: &Value,
        limit: usize,
    ) -> sqlx::Result<Vec<String>> {
        sqlx::query_scalar("SELECT * FROM announce($1, $2, $3)")
            .bind(namespace)
            .bind(announcement.to_string())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(&self.0)
            .await
    }

    pub(super) async fn workflow(&self, job: &str) -> sqlx::Result<Option<String>> {
        let statement = sqlx::query_scalar("SELECT workflow FROM jobs WHERE workflowId=$1 LIMIT 1").bind(job);
        let row: Option<Option<String>> = statement.fetch_optional(&self.0).await?;
        Ok(row.flatten())
    }

    /// The job's status, -1 where there is no such job.
    pub(super) async fn status(&self, job: &str) -> sqlx::Result<i32> {
        let statement = sqlx::query_scalar("SELECT status FROM jobs WHERE workflowId=$1 LIMIT 1").bind(job);
        let row: Option<Option<i32>> = statement.fetch_optional(&self.0).await?;
        Ok(row.flatten().unwrap_or(-1))
    }

    /// Whether a stop is requested.
    pub(super) async fn stop_requested(&self, job: &str) -> bool {
        let statement = sqlx::query_scalar("SELECT stopreq FROM jobs WHERE workflowId=$1 LIMIT 1").bind(job);
        let row: sqlx::Result<Option<Option<i16>>> = statement.fetch_optional(&self.0).await;
        row.inspect_err(|error| tracing::error!(job, %error, "could not read the stop request"))
            .is_ok_and(|row| row.flatten() == Some(1))
    }

    pub(super) async fn set_status(&self, job: &str, status: i32) {
        let statement = sqlx::query("UPDATE jobs SET status=$2,statusText=$3 WHERE workflowId=$1");
        self.update(job, statement.bind(job).bind(status).bind(status_text(status))).await;
    }

    pub(super) async fn set_timed_out(&self, job: &str) {
        self.update(job, sqlx::query("UPDATE jobs SET stopreq=2 WHERE workflowId=$1").bind(job)).await;
    }

    pub(super) async fn set_finished(&self, job: &str) {
        self.update(job, sqlx::query("UPDATE jobs SET dateFinished=NOW() WHERE workflowId=$1").bind(job)).await;
    }

    pub(super) async fn set_outputs(&self, job: &str, outputs: &Value) {
        let statement = sqlx::query("UPDATE jobs SET outputsURL=$2 WHERE workflowId=$1");
        self.update(job, statement.bind(job).bind(outputs.to_string())).await;
    }

    /// Runs a statement. The real engine, too, goes on if it fails.
    async fn update(&self, job: &str, statement: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>) {
        if let Err(error) = statement.execute(&self.0).await {
            tracing::error!(job, %error, "could not update the row");
        }
    }
}
