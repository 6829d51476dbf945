//! Cleanup: what an engine left of a finished job is deleted once it is settled.

use futures_util::FutureExt;
use tokio::time::Instant;

use super::expiry::{self, Expiry};
use super::report::Duty;
use super::sweep::{ActionError, ActionResult, Applied, Progress, Sweep, halfway_to, held_remark};
use crate::config::ReaperRules;
use crate::db::{Cursor, DatabaseError, FinishedJob};
use crate::domain::{JobId, Namespace, settles_in};

/// The part of a finished job that is to be deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The objects that the engine created.
    EngineObjects,
    /// These and the outputs, and if its owner deleted the job, its WorkFlow object.
    Everything,
}

/// A decision on a finished job.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Decision {
    /// What is to be deleted now.
    now: Option<Scope>,
    /// In how many seconds something is next due; `None` for never.
    next_in: Option<f64>,
}

/// Decides on a finished job.
fn decide(job: &FinishedJob, rules: &ReaperRules) -> Decision {
    let settles_in = settles_in(job.status, job.age);
    if settles_in > 0.0 {
        return Decision { now: None, next_in: Some(settles_in) };
    }
    let expiry = Expiry::of(job, rules);
    let objects = (!job.cleaned_up).then_some(Scope::EngineObjects);
    match job {
        // An engine has created objects again, and they could not be deleted.
        FinishedJob { outputs_deleted: true, .. } => Decision { now: objects, next_in: None },
        _ if job.removed || expiry.has_passed() => Decision { now: Some(Scope::Everything), next_in: None },
        _ => Decision { now: objects, next_in: expiry.own_seconds_left() },
    }
}

impl Sweep<'_> {
    /// Decides on each finished job for which something is due, and acts.
    pub(super) async fn sweep_finished_jobs(&self, until: Instant) -> Result<Progress, DatabaseError> {
        let scheduled = match self.dry_run {
            true => Progress::Complete,
            // For half of the time, so that jobs are cleaned up even if very many have to be scheduled.
            false => self.schedule_expiries(halfway_to(until)).await?,
        };
        let shared_expiry = self.rules().storage_expiry.map(expiry::in_range);
        let mut after = Some(Cursor::default());
        while let Some(from) = after {
            let (jobs, next) = self.db().due_jobs(shared_expiry, self.dry_run, &from).await?;
            let due: Vec<(FinishedJob, Decision)> = jobs
                .into_iter()
                .map(|job| {
                    let decision = decide(&job, self.rules());
                    (job, decision)
                })
                .collect();
            for scope in due.iter().filter_map(|(_, decision)| decision.now) {
                self.report.found(scope.duty(), 1);
            }
            if self.availability.is_cluster_down() {
                return Ok(Progress::Partial);
            }
            let act = |(job, decision)| self.act_on_finished(job, decision);
            if self.for_each_concurrently(due, until, act).await == Progress::Partial {
                return Ok(Progress::Partial);
            }
            after = next;
        }
        Ok(scheduled)
    }

    async fn act_on_finished(&self, job: FinishedJob, Decision { now, next_in }: Decision) {
        match now {
            Some(scope @ Scope::EngineObjects) => {
                let action = self.clean_up(&job, next_in).boxed();
                self.apply(scope.duty(), &job.job_id, None, action).await;
            }
            Some(scope @ Scope::Everything) => {
                let action = self.expire(&job).boxed();
                self.apply(scope.duty(), &job.job_id, None, action).await;
            }
            None if self.dry_run => {}
            None => {
                let removal_waits = job.removed && next_in.is_some();
                if let Err(error) = self.db().schedule_next(&job.job_id, next_in, removal_waits).await {
                    self.report.problem(error.to_string());
                }
            }
        }
    }

    async fn clean_up(&self, job: &FinishedJob, next_in: Option<f64>) -> ActionResult {
        let applied = self.delete_engine_objects(&job.job_id, job.namespace.as_ref()).await?;
        self.db().record_cleanup(&job.job_id).await?;
        self.db().schedule_next(&job.job_id, next_in, false).await?;
        Ok(applied)
    }

    /// Deletes the objects that an engine created for a job. Succeeds if the job cannot have any.
    pub(super) async fn delete_engine_objects(&self, job_id: &JobId, row: Option<&Namespace>) -> ActionResult {
        let Some(namespace) = self.namespace_of(job_id, row) else { return Ok(Applied::Done(None)) };
        if self.availability.forbidden.contains(namespace) {
            return Err(ActionError::NamespaceForbidden);
        }
        let held = self.availability.observe(self.cluster().delete_engine_objects(job_id, namespace).await)?;
        Ok(Applied::Done(held_remark(&held)))
    }
}

impl Scope {
    fn duty(self) -> Duty {
        match self {
            Self::EngineObjects => Duty::Cleanups,
            Self::Everything => Duty::Expiries,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fixture::{document, rules};
    use super::*;
    use crate::domain::Status;

    #[test]
    fn settled_expired_and_removed_jobs() {
        let done = FinishedJob {
            job_id: JobId::stored("job"),
            namespace: None,
            status: Status::Completed,
            age: 100.0,
            removed: false,
            cleaned_up: false,
            outputs_deleted: false,
            expiry: Some(-1),
            workflow: None,
            outputs: None,
        };
        let job = |expiry| FinishedJob { expiry: Some(expiry), ..done.clone() };
        let cleaned_up = |expiry| FinishedJob { cleaned_up: true, ..job(expiry) };
        let (objects, everything) = (Some(Scope::EngineObjects), Some(Scope::Everything));
        for (job, shared, (now, next_in)) in [
            (job(-1), None, (objects, None)),
            (cleaned_up(-1), None, (None, None)),
            (job(-1), Some(100), (everything, None)),
            (job(-1), Some(101), (objects, None)),
            (job(0), Some(1), (objects, None)),
            (job(100), None, (everything, None)),
            (job(130), Some(1), (objects, Some(30.0))),
            (cleaned_up(130), Some(1), (None, Some(30.0))),
            (FinishedJob { age: -600.0, ..cleaned_up(5) }, None, (None, Some(605.0))),
            (FinishedJob { removed: true, ..cleaned_up(0) }, None, (everything, None)),
            (FinishedJob { outputs_deleted: true, removed: true, ..cleaned_up(1) }, Some(1), (None, None)),
            (FinishedJob { outputs_deleted: true, removed: true, ..job(1) }, Some(1), (objects, None)),
            // Its engine may still be publishing.
            (FinishedJob { status: Status::PublishingResults, removed: true, ..job(1) }, Some(1), (None, Some(3500.0))),
            (FinishedJob { status: Status::PublishingResults, age: -600.0, ..job(1) }, Some(1), (None, Some(4200.0))),
            (FinishedJob { status: Status::PublishingResults, age: 3600.0, ..job(1) }, None, (everything, None)),
            (FinishedJob { status: Status::AlgorithmFailed, age: 3600.0, ..job(0) }, None, (objects, None)),
        ] {
            let rules = ReaperRules { storage_expiry: shared, ..rules() };
            assert_eq!(decide(&job, &rules), Decision { now, next_in }, "{job:?} {shared:?}");
        }
        let unread = FinishedJob { expiry: None, workflow: document(json!({ "storageExpiry": 50 })), ..done };
        assert_eq!(decide(&unread, &rules()).now, everything);
    }
}
