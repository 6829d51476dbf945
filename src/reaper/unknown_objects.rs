//! Unknown objects: a full scan of each environment deletes WorkFlow objects without a row in the database, and those
//! of jobs that finished long ago.

use tokio::time::Instant;

use super::report::Duty;
use super::sweep::{ActionResult, Applied, Progress, Sweep, held_remark};
use crate::config::ReaperRules;
use crate::db::{DatabaseError, KnownJob, SweptEnvironment};
use crate::domain::{JobId, Namespace};
use crate::kubernetes::{Deletion, HeldObject, WorkflowListing};

/// The longest time between two full scans of an environment, in seconds.
const FULL_SCAN_INTERVAL: f64 = 3600.0;

/// Decides whether a WorkFlow object is to be deleted, and as which duty. `known` is the job of its name.
fn decide(object: &WorkflowListing, known: Option<&KnownJob>, rules: &ReaperRules) -> Option<Duty> {
    match known {
        // Objects that this service did not create may have another owner.
        None => (object.managed && object.age_seconds > rules.unknown_grace).then_some(Duty::UnknownObjects),
        Some(known) => {
            let old = known.finished_age? >= rules.workflow_ttl?;
            (old && known.settled).then_some(Duty::OldObjects)
        }
    }
}

impl Sweep<'_> {
    /// Scans the WorkFlow objects of the environments whose last scan is too long ago.
    pub(super) async fn scan_workflow_objects(
        &self,
        environments: &[SweptEnvironment],
        until: Instant,
    ) -> Result<Progress, DatabaseError> {
        let rules = self.rules();
        let ttl = rules.workflow_ttl.unwrap_or(FULL_SCAN_INTERVAL);
        let interval = ttl.min(rules.unknown_grace).min(FULL_SCAN_INTERVAL);
        for environment in environments.iter().filter(|it| it.scan_age >= interval && !it.paused) {
            if Instant::now() >= until || self.availability.is_cluster_down() {
                return Ok(Progress::Partial);
            }
            if self.scan_namespace(&environment.namespace, until).await? == Progress::Partial {
                return Ok(Progress::Partial);
            }
        }
        Ok(Progress::Complete)
    }

    async fn scan_namespace(&self, namespace: &Namespace, until: Instant) -> Result<Progress, DatabaseError> {
        let mut from = None;
        loop {
            let page = self.cluster().list_workflows(namespace, from).await;
            let page = match self.availability.observe(page) {
                Ok(page) => page,
                Err(error) => {
                    self.namespace_unreadable(namespace, &error);
                    return Ok(Progress::Complete);
                }
            };
            let names: Vec<JobId> = page.items.iter().map(|item| item.job_id.clone()).collect();
            let known = self.db().known_jobs(&names).await?;
            let due: Vec<(WorkflowListing, Duty)> = page
                .items
                .into_iter()
                .filter_map(|item| {
                    let known = known.iter().find(|known| known.job_id == item.job_id);
                    decide(&item, known, self.rules()).map(|duty| (item, duty))
                })
                .collect();
            for (_, duty) in &due {
                self.report.found(*duty, 1);
            }
            let delete = |(item, duty): (WorkflowListing, Duty)| async move {
                let action = self.delete_workflow_object(&item, namespace);
                self.apply(duty, &item.job_id, None, action).await;
            };
            if self.for_each_concurrently(due, until, delete).await == Progress::Partial {
                return Ok(Progress::Partial);
            }
            from = page.next;
            if from.is_none() {
                break;
            }
        }
        if !self.dry_run {
            self.db().record_environment_scanned(namespace).await?;
        }
        Ok(Progress::Complete)
    }

    async fn delete_workflow_object(&self, item: &WorkflowListing, namespace: &Namespace) -> ActionResult {
        let deleted = self.cluster().delete_workflow(&item.job_id, namespace, Some(item)).await;
        Ok(match self.availability.observe(deleted)? {
            Deletion::Gone => Applied::Done(None),
            Deletion::Changed => Applied::Skipped("the object changed meanwhile"),
            Deletion::Held(finalizers) => {
                let held = HeldObject { kind: "WorkFlow", name: item.job_id.to_string(), finalizers };
                Applied::Done(held_remark(&[held]))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::rules;
    use super::*;

    #[test]
    fn unknown_and_old_objects() {
        let object = |managed, age_seconds| WorkflowListing {
            job_id: JobId::stored("job"),
            uid: "uid".to_owned(),
            resource_version: "1".to_owned(),
            managed,
            age_seconds,
        };
        let known =
            |finished_age, settled| KnownJob { job_id: JobId::stored("job"), finished_age, settled, due: false };
        for (object, known, expected) in [
            (object(true, 3601.0), None, Some(Duty::UnknownObjects)),
            (object(true, 3600.0), None, None),
            (object(true, -99.0), None, None),
            (object(false, 1e12), None, None),
            (object(true, 1e12), Some(known(None, false)), None),
            (object(true, 1e12), Some(known(Some(999.0), true)), None),
            (object(true, 1e12), Some(known(Some(-999.0), true)), None),
            (object(false, 0.0), Some(known(Some(1000.0), true)), Some(Duty::OldObjects)),
            (object(true, 1e12), Some(known(Some(1000.0), false)), None),
        ] {
            assert_eq!(decide(&object, known.as_ref(), &rules()), expected, "{object:?} {known:?}");
        }
        let for_ever = ReaperRules { workflow_ttl: None, ..rules() };
        assert_eq!(decide(&object(true, 1e12), Some(&known(Some(1e12), true)), &for_ever), None);
    }
}
