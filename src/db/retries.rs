//! Failed actions on jobs, which are retried after 10 seconds, then after twice as long each time.

use super::{Database, DatabaseError};
use crate::domain::JobId;

impl Database {
    /// Records that an action on a job failed. No sweep acts on the job until the pause is over, which lasts at most
    /// ten minutes, or an hour if the job is finished. A finished job is then cleaned up from the beginning.
    pub async fn record_job_failure(&self, job_id: &JobId) -> Result<(), DatabaseError> {
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

    /// Records that an action on an unfinished job has succeeded: earlier failures do not delay it any more.
    pub async fn record_job_recovery(&self, job_id: &JobId) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs SET reapfailures = 0, reapat = '-infinity'
             WHERE workflowid = $1 AND reapfailures > 0 AND datefinished IS NULL",
            job_id.as_str()
        ))
        .await?;
        Ok(())
    }

    /// Records that a job's registration failed: it is retried after at most ten minutes. Other actions on the job do
    /// not wait for that.
    pub async fn record_registration_failure(&self, job_id: &JobId) -> Result<(), DatabaseError> {
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
