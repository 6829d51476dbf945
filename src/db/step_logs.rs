//! The ends of the logs of steps whose pods the reaper deleted.

use super::{Database, DatabaseError};
use crate::domain::{Component, JobId};

impl Database {
    /// Keeps the end of a step's log. Replaces what was kept of an earlier pod.
    pub async fn keep_log(&self, job_id: &JobId, component: Component, log: Vec<u8>) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO keptlogs (workflowid, component, log) VALUES ($1, $2, $3)
             ON CONFLICT (workflowid, component) DO UPDATE SET log = EXCLUDED.log",
            job_id.as_str(),
            component.as_str(),
            log
        ))
        .await?;
        Ok(())
    }

    /// The end of a step's log, if it was kept.
    pub async fn kept_log(&self, job_id: &JobId, component: Component) -> Result<Option<Vec<u8>>, DatabaseError> {
        self.run(async |connection| {
            Ok(sqlx::query_scalar!(
                "SELECT log FROM keptlogs WHERE workflowid = $1 AND component = $2",
                job_id.as_str(),
                component.as_str()
            )
            .fetch_optional(connection)
            .await?)
        })
        .await
    }
}
