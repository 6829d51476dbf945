//! The engine's statements, as the real one sends them.

use std::time::Duration;

use serde_json::Value;
use sqlx::{
    PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// The database, by a pool of the engine's own.
#[derive(Debug)]
pub(super) struct Books {
    pool: PgPool,
}

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

impl Books {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        let pool =
            PgPoolOptions::new().max_connections(5).acquire_timeout(Duration::from_secs(10)).connect_lazy_with(options);
        Self { pool }
    }

    pub(super) async fn close(&self) {
        let _ = tokio::time::timeout(Duration::from_secs(5), self.pool.close()).await;
    }

    /// Files the announcement and takes up to `limit` jobs.
    pub(super) async fn announce(
        &self,
        namespace: &str,
        announcement: &Value,
        limit: usize,
    ) -> Result<Vec<String>, sqlx::Error> {
        sqlx::query_scalar("SELECT * FROM announce($1, $2, $3)")
            .bind(namespace)
            .bind(announcement.to_string())
            .bind(i32::try_from(limit).unwrap_or(i32::MAX))
            .fetch_all(&self.pool)
            .await
    }

    pub(super) async fn workflow(&self, job: &str) -> Result<Option<String>, sqlx::Error> {
        let row: Option<Option<String>> = sqlx::query_scalar("SELECT workflow FROM jobs WHERE workflowId=$1 LIMIT 1")
            .bind(job)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.flatten())
    }

    /// The job's status, -1 where there is no such job.
    pub(super) async fn status(&self, job: &str) -> Result<i32, sqlx::Error> {
        let row: Option<Option<i32>> = sqlx::query_scalar("SELECT status FROM jobs WHERE workflowId=$1 LIMIT 1")
            .bind(job)
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.flatten().unwrap_or(-1))
    }

    pub(super) async fn set_status(&self, job: &str, status: i32) {
        let statement = sqlx::query("UPDATE jobs SET status=$1,statusText=$2 WHERE workflowId=$3")
            .bind(status)
            .bind(status_text(status))
            .bind(job)
            .execute(&self.pool);
        match statement.await {
            Ok(_) => tracing::info!(job, status, "{}", status_text(status)),
            // The real engine, too, goes on.
            Err(error) => tracing::error!(job, status, %error, "could not set the status"),
        }
    }

    /// Whether a stop was asked for.
    pub(super) async fn stop_requested(&self, job: &str) -> bool {
        let row: Result<Option<Option<i16>>, _> =
            sqlx::query_scalar("SELECT stopreq FROM jobs WHERE workflowId=$1 LIMIT 1")
                .bind(job)
                .fetch_optional(&self.pool)
                .await;
        match row {
            Ok(row) => row.flatten() == Some(1),
            Err(error) => {
                tracing::error!(job, %error, "could not ask whether to stop");
                false
            }
        }
    }

    pub(super) async fn set_timed_out(&self, job: &str) {
        let statement = sqlx::query("UPDATE jobs SET stopreq=2 WHERE workflowId=$1").bind(job).execute(&self.pool);
        if let Err(error) = statement.await {
            tracing::error!(job, %error, "could not note that the time is over");
        }
    }

    pub(super) async fn set_finished(&self, job: &str) {
        let statement =
            sqlx::query("UPDATE jobs SET dateFinished=NOW() WHERE workflowId=$1").bind(job).execute(&self.pool);
        if let Err(error) = statement.await {
            tracing::error!(job, %error, "could not set the date of its end");
        }
    }

    /// What the publishing pod does.
    pub(super) async fn set_outputs(&self, job: &str, outputs: &Value) -> Result<(), sqlx::Error> {
        sqlx::query("UPDATE jobs SET outputsURL=$1 WHERE workflowId=$2")
            .bind(outputs.to_string())
            .bind(job)
            .execute(&self.pool)
            .await
            .map(drop)
    }

    /// Follows a file server that had to change its port.
    pub(super) async fn move_results(&self, namespace: &str, before: &str, now: &str) -> Result<u64, sqlx::Error> {
        sqlx::query(
            "UPDATE jobs SET outputsURL = replace(outputsURL, $2, $3)
             WHERE namespace = $1 AND position($2 in outputsURL) > 0",
        )
        .bind(namespace)
        .bind(format!("http://{before}/"))
        .bind(format!("http://{now}/"))
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
    }
}
