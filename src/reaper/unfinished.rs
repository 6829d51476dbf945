//! Unfinished jobs: the decision on each (time limits, stuck steps, stops, requeues, orphans), and its action.
//!
//! Ages of rows are measured by the database's clock, ages of objects by the cluster's.

use futures_util::FutureExt;

use super::action::Action;
use super::report::Duty;
use super::sweep::{ActionError, ActionResult, Applied, Sweep, held_remark};
use super::time_limits::TimeLimit;
use super::{orphans, requeues, stuck_steps};
use crate::config::ReaperRules;
use crate::db::UnfinishedJob;
use crate::domain::{Component, Namespace, Status, StopRequest};
use crate::kubernetes::{ClusterError, Deletion, HeldObject, LogPart, Step, StepState};

/// The factor of the limit grace for a job of which a step other than the algorithm runs: fetching data and publishing
/// results have no limit of their own, and may take longer than the algorithm.
const RUNNING_STEP_FACTOR: f64 = 24.0;
/// Why an action was skipped: an engine continued the job.
const CONTINUED: Applied = Applied::Skipped("the job was continued meanwhile");

/// What the cluster holds of a job.
#[derive(Debug, Clone, Copy)]
pub(super) enum Observed<'a> {
    /// Its environment could not be read.
    Unknown,
    /// These steps.
    Steps(&'a [Step]),
}

/// Decides what is to be done with an unfinished job. `announced` is its environment's limit, in seconds.
pub(super) fn decide(
    job: &UnfinishedJob,
    observed: Observed<'_>,
    announced: Option<f64>,
    rules: &ReaperRules,
) -> Option<Action> {
    let has_steps = matches!(observed, Observed::Steps([_, ..]));
    match job.status {
        Status::WarmingUp => requeues::decide_waiting(job),
        status if status.is_dispatched() && !has_steps => requeues::decide_dispatched(job, rules),
        // A job with steps is begun, even if its status does not say so yet.
        status if status.is_dispatched() || status.is_begun() => {
            decide_begun(job, observed, TimeLimit::of(job, announced, rules), rules)
        }
        _ => None,
    }
}

fn decide_begun(job: &UnfinishedJob, observed: Observed<'_>, limit: TimeLimit, rules: &ReaperRules) -> Option<Action> {
    let action = match observed {
        Observed::Unknown => None,
        Observed::Steps([]) => match job.absent_for {
            None => Some(Action::RecordAbsence(true)),
            Some(seconds) => (seconds >= rules.absent_grace).then(|| orphans::lost(job)),
        },
        Observed::Steps(steps) => steps.iter().find_map(|step| decide_step(job, step, limit, rules)),
    };
    let is_running_other = |step: &Step| step.component != Component::Algorithm && step.state == StepState::Running;
    let limit_grace = match observed {
        Observed::Steps(steps) if steps.iter().any(is_running_other) => rules.limit_grace * RUNNING_STEP_FACTOR,
        _ => rules.limit_grace,
    };
    match (action, observed) {
        (Some(action), _) => Some(action),
        // No other action is possible, and the status has not changed for too long.
        (None, _) if limit.is_exceeded_for_long(job.status_age, limit_grace) => Some(orphans::not_continued(job)),
        (None, Observed::Steps([_, ..])) if job.absent_for.is_some() => Some(Action::RecordAbsence(false)),
        (None, _) => None,
    }
}

fn decide_step(job: &UnfinishedJob, step: &Step, limit: TimeLimit, rules: &ReaperRules) -> Option<Action> {
    let end = |duty, reason, timed_out| Some(Action::EndStep { duty, step: step.clone(), reason, timed_out });
    match &step.state {
        StepState::Done | StepState::Terminating => None,
        StepState::Stuck { problem, recovery, seconds } if *seconds >= stuck_steps::grace(*recovery, rules) => {
            end(Duty::StuckSteps, Some(stuck_steps::reason(step.component, problem)), false)
        }
        _ if step.component != Component::Algorithm => None,
        _ if job.stop_requested == StopRequest::BY_OWNER || job.removed => end(Duty::Stops, None, false),
        _ => match limit.exceeded_by(step.running_for) {
            Some(reason) => end(Duty::TimeLimits, Some(reason), true),
            None if job.stop_requested == StopRequest::TIME_LIMIT => end(Duty::TimeLimits, None, true),
            None => None,
        },
    }
}

impl Sweep<'_> {
    /// Performs an action on an unfinished job.
    pub(super) async fn act(&self, job: UnfinishedJob, action: Action) {
        let perform = self.perform(&job, &action).boxed();
        match action.duty() {
            Some(duty) => self.apply(duty, &job.job_id, action.reason(), perform).await,
            None if self.dry_run => {}
            None => {
                if let Err(error) = perform.await {
                    self.report.problem(error.to_string());
                }
            }
        }
    }

    async fn perform(&self, job: &UnfinishedJob, action: &Action) -> ActionResult {
        match action {
            Action::RecordAbsence(absent) => {
                self.db().record_absence(&job.job_id, *absent).await?;
                Ok(Applied::Done(None))
            }
            Action::Requeue => {
                let requeued = self.db().requeue(job, self.rules().dispatch_grace).await?;
                Ok(if requeued { Applied::Done(None) } else { CONTINUED })
            }
            Action::Finish { status, reason, absent, .. } => {
                // A slow engine may have created a step since all were listed.
                if *absent
                    && let Some(namespace) = self.namespace_of(&job.job_id, job.namespace.as_ref())
                    && self.availability.observe(self.cluster().has_steps(&job.job_id, namespace).await)?
                {
                    return Ok(CONTINUED);
                }
                let finished = self.db().finish(job, *status, reason, *absent).await?;
                Ok(if finished { Applied::Done(Some(reason.clone())) } else { CONTINUED })
            }
            Action::EndStep { step, reason, timed_out, .. } => {
                let Some(namespace) = self.namespace_of(&job.job_id, job.namespace.as_ref()) else {
                    return Ok(CONTINUED);
                };
                self.end_step(step, namespace, reason.as_deref(), *timed_out).await
            }
        }
    }

    async fn end_step(
        &self,
        step: &Step,
        namespace: &Namespace,
        reason: Option<&str>,
        timed_out: bool,
    ) -> ActionResult {
        let job_id = &step.job_id;
        self.keep_log(step, namespace).await?;
        // Before the step ends: after that the engine may finish the job at any moment.
        let mut recorded = None;
        if let Some(reason) = reason {
            let Some(newly) = self.db().record_reason(job_id, reason, timed_out).await? else { return Ok(CONTINUED) };
            recorded = Some((reason, newly));
        }
        let ended = self.availability.observe(self.cluster().delete_step(step, namespace).await);
        // After any other error, the Job may have been deleted.
        let not_ended = matches!(ended, Ok(Deletion::Changed) | Err(ClusterError::Refused { code: 400..500, .. }));
        if let (true, Some((reason, newly))) = (not_ended, recorded) {
            self.db().withdraw_reason(job_id, reason, newly, &self.holder).await?;
        }
        let ended = ended?;
        self.db().record_job_recovery(job_id).await?;
        Ok(match ended {
            Deletion::Gone => Applied::Done(reason.map(str::to_owned)),
            Deletion::Held(finalizers) => {
                let held = HeldObject { kind: "Job", name: step.component.job_name(job_id), finalizers };
                Applied::Done(held_remark(&[held]))
            }
            Deletion::Changed => CONTINUED,
        })
    }

    /// Keeps the end of the log of a step whose pod is about to be deleted. A node that does not return it delays
    /// nothing else, and does not count as an outage of the cluster.
    async fn keep_log(&self, step: &Step, namespace: &Namespace) -> Result<(), ActionError> {
        match self.cluster().read_log(&step.job_id, step.component, namespace, LogPart::End).boxed().await {
            Ok(None) => {}
            Ok(Some(log)) => self.db().keep_log(&step.job_id, step.component, log).await?,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(job = %step.job_id, error, "the log of a step could not be kept before the step is ended");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{job, rules, step, summary};
    use super::*;
    use crate::kubernetes::{Problem, Recovery};

    #[test]
    fn begun_jobs_with_steps() {
        use Component::{Algorithm, Publish};
        use StepState::{Done, Running, Terminating};
        let limited = ReaperRules { algorithm_limit: Some(100), ..rules() };
        let over = "end Algorithm TimeLimits true The algorithm was stopped at its time limit of 100 seconds.";
        let stuck = |recovery, seconds| StepState::Stuck { problem: Problem::ImagePull, recovery, seconds };
        let image = "The algorithm could not begin: its image cannot be pulled.";
        for (job, step, expected) in [
            (job(40), step(Algorithm, 100.0, Running), "nothing".to_owned()),
            (job(40), step(Algorithm, 100.1, Running), over.to_owned()),
            (job(40), step(Algorithm, 1e9, Done), "nothing".to_owned()),
            (job(40), step(Algorithm, 1e9, Terminating), "nothing".to_owned()),
            (job(60), step(Publish, 1e9, Running), "nothing".to_owned()),
            (
                UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(40) },
                step(Algorithm, 1e9, Running),
                "end Algorithm Stops false ".to_owned(),
            ),
            (
                UnfinishedJob { removed: true, ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm Stops false ".to_owned(),
            ),
            (
                UnfinishedJob { stop_requested: StopRequest::TIME_LIMIT, ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm TimeLimits true ".to_owned(),
            ),
            (
                UnfinishedJob { stop_requested: StopRequest::BY_OWNER, ..job(60) },
                step(Publish, 0.0, Running),
                "nothing".to_owned(),
            ),
            (
                UnfinishedJob { valid_for: Some(-1.0), ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm TimeLimits true The algorithm was stopped because the job's validUntil has passed."
                    .to_owned(),
            ),
            (job(40), step(Algorithm, 0.0, stuck(Recovery::Retry, 299.9)), "nothing".to_owned()),
            (
                job(40),
                step(Algorithm, 0.0, stuck(Recovery::Retry, 300.0)),
                format!("end Algorithm StuckSteps false {image}"),
            ),
            (
                job(40),
                step(Algorithm, 0.0, stuck(Recovery::Restart, 60.0)),
                format!("end Algorithm StuckSteps false {image}"),
            ),
            (job(40), step(Algorithm, 0.0, stuck(Recovery::Capacity, 899.0)), "nothing".to_owned()),
            (
                job(40),
                step(Algorithm, 0.0, stuck(Recovery::None, 0.0)),
                format!("end Algorithm StuckSteps false {image}"),
            ),
            // A problem that may end does not suspend the limit.
            (job(40), step(Algorithm, 101.0, stuck(Recovery::Capacity, 0.0)), over.to_owned()),
            (
                UnfinishedJob { absent_for: Some(99.0), ..job(40) },
                step(Algorithm, 1.0, Running),
                "absent false".to_owned(),
            ),
        ] {
            let steps = [self::step(Component::Configure, 9e9, Done), step];
            assert_eq!(summary(decide(&job, Observed::Steps(&steps), None, &limited)), expected, "{job:?} {steps:?}");
        }
    }
}
