//! WorkFlow objects: each unfinished job has one with the status that the database has; those of removed and of old jobs,
//! and unknown ones, are deleted.

use super::budget::{Budget, Stop};
use super::cleanup::KnownJob;
use super::job::Environment;
use super::report::Duty;
use super::sweep::{ActionError, ActionResult, Applied, Due, Sweep, held_remark};
use crate::config::ReaperRules;
use crate::db::{Cursor, Database, DatabaseError, end_of_page};
use crate::domain::{AgreementId, JobId, Namespace, Owner, Status, effective_namespace, workflow};
use crate::kubernetes::{Deletion, WorkFlowSpec, WorkFlowStatus, WorkflowListing};

/// The longest time between two full scans of an environment, in seconds.
const FULL_SCAN_INTERVAL: f64 = 3600.0;
/// The number of rows in a page. A row may come with a workflow of 400 KiB.
const PAGE_ROWS: usize = 50;

/// A job whose object is missing, shows another status than its row, or is to be deleted.
#[derive(Debug, Clone)]
struct OutdatedObject {
    job_id: JobId,
    /// The namespace that its row names.
    namespace: Option<Namespace>,
    owner: Option<Owner>,
    agreement_id: AgreementId,
    status: Option<Status>,
    /// The text for it, as the engine wrote it.
    status_text: Option<String>,
    /// Why the job was ended, if it was.
    reason: Option<String>,
    /// Seconds since the epoch, with 6 decimals.
    date_finished: Option<String>,
    /// Whether its object is to be created. That of a finished job is not; it may exist even if that was not recorded.
    missing: bool,
    /// The document that the engine reads, if it is missing.
    workflow: Option<String>,
    /// Whether its object is to be deleted: it was deleted, or has expired, and is settled.
    removed: bool,
    /// Since when it is due, in seconds since the epoch.
    due: f64,
}

impl OutdatedObject {
    fn duty(&self) -> Duty {
        match self {
            Self { removed: true, .. } => Duty::OldObjects,
            Self { missing: true, .. } => Duty::Registrations,
            _ => Duty::StatusSync,
        }
    }
}

/// Decides whether a WorkFlow object is to be deleted, and as which duty. `known` is the job of its name.
fn decide(object: &WorkflowListing, known: Option<&KnownJob>, rules: &ReaperRules) -> Option<Duty> {
    match known {
        // Objects that this service did not create may have another owner.
        None => (object.managed && object.age_seconds > rules.unknown_grace).then_some(Duty::UnknownObjects),
        Some(known) => {
            let age = known.finished_age?;
            let is_old = known.removed || rules.workflow_ttl.is_some_and(|ttl| age >= ttl);
            (is_old && known.settled).then_some(Duty::OldObjects)
        }
    }
}

impl Sweep<'_> {
    /// Creates the objects that are missing, writes the status where it is another, and deletes those of removed jobs; those
    /// first that have waited longest.
    pub(super) async fn update_workflow_objects(&self, budget: Budget) -> Result<(), Stop> {
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            let (jobs, next) = self.db.outdated_objects(&from).await?;
            let due = jobs.into_iter().map(|job| Due::new(job.duty(), job.job_id.clone(), self.update(job)));
            let due: Vec<Due<'_>> = due.collect();
            self.count(&due);
            self.breaker.check()?;
            self.perform(due, budget).await?;
            after = next;
        }
        Ok(())
    }

    async fn update(&self, job: OutdatedObject) -> ActionResult {
        let namespace = effective_namespace(job.namespace.as_ref(), &self.rules.default_namespace);
        if job.missing {
            let metadata = job.workflow.as_deref().and_then(workflow::stored);
            let metadata = metadata.ok_or(ActionError::Job("its workflow cannot be read"))?;
            let owner = job.owner.as_ref().map(ToString::to_string);
            let spec = WorkFlowSpec { owner, agreement_id: Some(job.agreement_id.to_string()), metadata };
            let create = self.cluster.create_workflow(&job.job_id, namespace, spec);
            self.request(namespace, Duty::Registrations, create).await?;
            self.db.record_registration(&job.job_id).await?;
        }
        let status = WorkFlowStatus {
            status: job.status.map(Status::code),
            status_text: job.status_text.clone(),
            reason: job.reason.clone(),
            date_finished: job.date_finished.clone(),
        };
        // A job whose id or namespace is not a valid name has no object.
        let may_exist = job.job_id.can_name_objects() && namespace.is_valid();
        if may_exist && job.removed {
            let delete = self.cluster.delete_workflow(&job.job_id, namespace, None);
            self.request(namespace, Duty::OldObjects, delete).await?;
        } else if may_exist {
            let write = self.cluster.update_workflow_status(&job.job_id, namespace, &status);
            self.request(namespace, Duty::StatusSync, write).await?;
        }
        self.db.record_object_updated(&job).await?;
        Ok(Applied::Done(None))
    }

    /// Scans the WorkFlow objects of the environments whose last scan is too long ago.
    pub(super) async fn scan_workflow_objects(&self, environments: &[Environment], budget: Budget) -> Result<(), Stop> {
        let rules = self.rules;
        let ttl = rules.workflow_ttl.unwrap_or(FULL_SCAN_INTERVAL);
        let interval = ttl.min(rules.unknown_grace).min(FULL_SCAN_INTERVAL);
        for environment in environments.iter().filter(|it| it.scan_age >= interval) {
            budget.check()?;
            self.breaker.check()?;
            if self.scan_namespace(&environment.namespace, budget).await? {
                self.change(self.db.record_scan(&environment.namespace)).await.transpose()?;
            }
        }
        Ok(())
    }

    /// Deletes a namespace's objects that are to be deleted. Returns false if it cannot be read.
    async fn scan_namespace(&self, namespace: &Namespace, budget: Budget) -> Result<bool, Stop> {
        let mut from = None;
        loop {
            let page = self.read(namespace, budget, self.cluster.list_workflows(namespace, from)).await;
            let Some(page) = page else { return Ok(false) };
            let names: Vec<JobId> = page.items.iter().map(|item| item.job_id.clone()).collect();
            let known = self.db.known_jobs(&names).await?;
            let due = page.items.into_iter().filter_map(|item| {
                let duty = decide(&item, known.get(&item.job_id), self.rules)?;
                Some(Due::new(duty, item.job_id.clone(), self.delete_workflow_object(item, duty, namespace)))
            });
            self.apply_all(due.collect(), budget).await?;
            from = page.next;
            if from.is_none() {
                return Ok(true);
            }
        }
    }

    async fn delete_workflow_object(&self, item: WorkflowListing, duty: Duty, namespace: &Namespace) -> ActionResult {
        let deletion = self.cluster.delete_workflow(&item.job_id, namespace, Some(&item));
        Ok(match self.request(namespace, duty, deletion).await? {
            Deletion::Gone | Deletion::NotFound => Applied::Done(None),
            Deletion::Changed => Applied::Skipped("the object changed meanwhile"),
            Deletion::Held(held) => Applied::Done(held_remark(&[held])),
        })
    }
}

impl Database {
    /// The jobs whose object is due, a page at a time.
    async fn outdated_objects(&self, after: &Cursor) -> Result<(Vec<OutdatedObject>, Option<Cursor>), DatabaseError> {
        let (position, name) = after.parts();
        self.run(async |connection| {
            let jobs = sqlx::query_as!(
                OutdatedObject,
                r#"
                SELECT workflowid AS "job_id: JobId", namespace AS "namespace: Namespace", owner AS "owner: Owner",
                       agreementid AS "agreement_id: AgreementId", status AS "status: Status", statustext AS status_text, reason,
                       to_char(extract(epoch FROM datefinished), 'FM9999999999990.000000') AS date_finished,
                       NOT registered AND datefinished IS NULL AS "missing!",
                       CASE WHEN NOT registered AND datefinished IS NULL THEN workflow END AS workflow,
                       coalesce(removed, 0) = 1 AND is_settled(status, datefinished) AS "removed!",
                       extract(epoch FROM objectdue)::float8 AS "due!"
                FROM reaperjobs JOIN jobs USING (workflowid)
                WHERE objectdue < 'infinity' AND objectdue <= now() AND (objectdue, workflowid) > (to_timestamp($1), $2)
                ORDER BY objectdue, workflowid LIMIT $3
                "#,
                position,
                name,
                PAGE_ROWS as i64
            )
            .fetch_all(connection)
            .await?;
            let next = end_of_page(&jobs, PAGE_ROWS, |job| Cursor::at(job.due, &job.job_id));
            Ok((jobs, next))
        })
        .await
    }

    /// Records that a job's object is up to date. If the row has changed meanwhile, the object is due: what was written is
    /// old, and may have replaced what a later sweep wrote, if this one was suspended for longer than its lease.
    async fn record_object_updated(&self, written: &OutdatedObject) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            // What changes the job makes its object due from then on. The job's own columns would be those of this
            // statement's snapshot, also if it has waited for a transaction that changes them.
            "UPDATE reaperjobs SET failures = 0,
                 objectdue = CASE WHEN objectdue = to_timestamp($2) THEN 'infinity'
                                  ELSE least(objectdue, clock_timestamp()) END
             WHERE workflowid = $1",
            written.job_id.as_str(),
            written.due
        ))
        .await?;
        Ok(())
    }

    /// Records that an environment's WorkFlow objects were scanned.
    async fn record_scan(&self, namespace: &Namespace) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "INSERT INTO sweptenvs (namespace, scanned) VALUES ($1, clock_timestamp())
             ON CONFLICT (namespace) DO UPDATE SET scanned = EXCLUDED.scanned",
            namespace.as_str()
        ))
        .await?;
        Ok(())
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
            |finished_age, settled| KnownJob { job_id: JobId::stored("job"), finished_age, settled, removed: false };
        let removed = |finished_age, settled| KnownJob { removed: true, ..known(finished_age, settled) };
        for (object, known, expected) in [
            (object(true, 3601.0), None, Some(Duty::UnknownObjects)),
            (object(true, 3600.0), None, None),
            (object(true, -99.0), None, None),
            (object(false, 1e12), None, None),
            (object(true, 1e12), Some(known(None, false)), None),
            (object(true, 1e12), Some(removed(None, false)), None),
            (object(true, 1e12), Some(known(Some(999.0), true)), None),
            (object(true, 1e12), Some(known(Some(-999.0), true)), None),
            (object(false, 0.0), Some(known(Some(1000.0), true)), Some(Duty::OldObjects)),
            (object(true, 1e12), Some(known(Some(1000.0), false)), None),
            (object(true, 0.0), Some(removed(Some(0.0), true)), Some(Duty::OldObjects)),
            (object(true, 0.0), Some(removed(Some(0.0), false)), None),
        ] {
            assert_eq!(decide(&object, known.as_ref(), &rules()), expected, "{object:?} {known:?}");
        }
        let for_ever = ReaperRules { workflow_ttl: None, ..rules() };
        assert_eq!(decide(&object(true, 1e12), Some(&known(Some(1e12), true)), &for_ever), None);
    }

    #[test]
    fn duties_of_objects() {
        let duty = |missing, removed| {
            let object = OutdatedObject {
                job_id: JobId::stored("job"),
                namespace: None,
                owner: None,
                agreement_id: AgreementId::stored("agreement"),
                status: None,
                status_text: None,
                reason: None,
                date_finished: None,
                missing,
                workflow: None,
                removed,
                due: 0.0,
            };
            object.duty()
        };
        assert_eq!(duty(false, false), Duty::StatusSync);
        assert_eq!(duty(true, false), Duty::Registrations);
        assert_eq!(duty(false, true), Duty::OldObjects);
    }
}
