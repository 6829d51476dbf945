//! When a job that something failed with is tried again: after 10 seconds, and twice as long each time.

use super::{Database, DatabaseError};
use crate::domain::JobId;

impl Database {
    /// Records that an action on a job failed: it is left alone, at most for ten minutes, or an hour if it is finished.
    /// Of a finished job, everything is cleaned up again then.
    pub async fn job_failed(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET reapfailures = least(reapfailures + 1, 20), tidied = tidied AND datefinished IS NULL,
                 reapat = clock_timestamp()
                     + make_interval(secs => least(10 * 2 ^ reapfailures,
                                                   CASE WHEN datefinished IS NULL THEN 600 ELSE 3600 END))
             WHERE workflowid = $1",
            job_id.as_str()
        ))
        .await?;
        Ok(())
    }

    /// Records that what had failed with an unfinished job has succeeded.
    pub async fn job_recovered(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET reapfailures = 0, reapat = '-infinity'
             WHERE workflowid = $1 AND reapfailures > 0 AND datefinished IS NULL",
            job_id.as_str()
        ))
        .await?;
        Ok(())
    }

    /// Records that a job's registration failed: it is tried again after at most ten minutes. Nothing else waits for it.
    pub async fn registration_failed(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET registerfailures = least(registerfailures + 1, 20),
                 registerat = clock_timestamp() + make_interval(secs => least(10 * 2 ^ registerfailures, 600))
             WHERE workflowid = $1",
            job_id.as_str()
        ))
        .await?;
        Ok(())
    }
}
