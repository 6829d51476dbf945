//! Cleanup: what engines left of finished jobs is deleted once these are settled. By what lists show, not by what was
//! deleted before: an engine may come back to a job and create objects again.

use std::collections::{BTreeMap, HashMap};

use super::budget::{Budget, Stop};
use super::report::Duty;
use super::sweep::{ActionResult, Applied, Due, Sweep, held_remark};
use crate::db::{Database, DatabaseError};
use crate::domain::{JobId, Namespace};
use crate::kubernetes::{EngineObject, Steps};

/// The number of jobs that are looked up at once.
const LOOKUP_JOBS: usize = 500;

/// A job that objects in the cluster are named after.
#[derive(Debug, Clone)]
pub(super) struct KnownJob {
    pub(super) job_id: JobId,
    /// How many seconds ago it finished; `None` while it is not.
    pub(super) finished_age: Option<f64>,
    /// Whether its engine is done with its objects.
    pub(super) settled: bool,
    /// Whether it was deleted, or has expired.
    pub(super) removed: bool,
}

impl Sweep<'_> {
    /// Deletes what engines left in a namespace: the Kubernetes Jobs of `steps` and claims of settled jobs.
    pub(super) async fn clean_up(&self, namespace: &Namespace, steps: &Steps, budget: Budget) -> Result<(), Stop> {
        let claims = self.read(namespace, budget, self.cluster.list_claims(namespace)).await;
        let jobs = steps.values().flatten().filter_map(EngineObject::of_step);
        let mut objects: BTreeMap<JobId, Vec<EngineObject>> = BTreeMap::new();
        for object in jobs.chain(claims.into_iter().flatten()) {
            objects.entry(object.job_id.clone()).or_default().push(object);
        }
        let names: Vec<JobId> = objects.keys().cloned().collect();
        for names in names.chunks(LOOKUP_JOBS) {
            budget.check()?;
            let known = self.db.known_jobs(names).await?;
            let due = known.into_values().filter(|job| job.settled).filter_map(|job| {
                let (job_id, objects) = objects.remove_entry(&job.job_id)?;
                Some(Due::new(Duty::Cleanups, job_id.clone(), self.delete_objects(job_id, namespace, objects)))
            });
            self.apply_all(due.collect(), budget).await?;
        }
        Ok(())
    }

    async fn delete_objects(&self, job_id: JobId, namespace: &Namespace, objects: Vec<EngineObject>) -> ActionResult {
        let deletion = self.cluster.delete_engine_objects(&job_id, namespace, &objects);
        let held = self.request(namespace, Duty::Cleanups, deletion).await?;
        Ok(Applied::Done(held_remark(&held)))
    }
}

impl Database {
    /// The jobs that have one of these ids.
    pub(super) async fn known_jobs(&self, names: &[JobId]) -> Result<HashMap<JobId, KnownJob>, DatabaseError> {
        let names: Vec<String> = names.iter().map(JobId::to_string).collect();
        self.run(async |connection| {
            let jobs = sqlx::query_as!(
                KnownJob,
                r#"
                SELECT workflowid AS "job_id: JobId",
                       extract(epoch FROM clock_timestamp() AT TIME ZONE 'UTC' - datefinished)::float8 AS finished_age,
                       is_settled(status, datefinished) AS "settled!",
                       coalesce(removed, 0) = 1 AS "removed!"
                FROM jobs WHERE workflowid = ANY($1)
                "#,
                &names
            )
            .fetch_all(connection)
            .await?;
            Ok(jobs.into_iter().map(|job| (job.job_id.clone(), job)).collect())
        })
        .await
    }
}
