//! Stuck steps: a step whose problem has lasted for its grace is ended, and the engine continues with the next.

use futures_util::FutureExt;

use super::job::{CONTINUED, Seen, StepEnd, UnfinishedJob};
use super::report::Duty;
use super::sweep::{ActionError, ActionResult, Applied, Sweep, held_remark};
use crate::config::ReaperRules;
use crate::db::{Database, DatabaseError};
use crate::domain::{Component, JobId, Namespace, StopRequest};
use crate::kubernetes::{Deletion, LogPart, Problem, Recovery, Step, StepState};

/// Decides whether a step that has not ended is stuck for good.
pub(super) fn decide(job: &UnfinishedJob, step: &Step, rules: &ReaperRules) -> Option<StepEnd> {
    let problem = match &step.state {
        StepState::Stuck(trouble) => {
            let is_known = job.seen == Some(Seen::Trouble(step.uid.clone()));
            let seconds = trouble.seconds.unwrap_or(if is_known { job.seen_for } else { 0.0 });
            (seconds >= grace(trouble.recovery, rules)).then(|| trouble.problem.clone())
        }
        _ => None,
    };
    let longest = rules.long_grace();
    let is_endless = step.component != Component::Algorithm && step.running_for > longest;
    let problem = problem.or_else(|| is_endless.then_some(Problem::Endless(longest as u64)))?;
    Some(StepEnd { duty: Duty::StuckSteps, step: step.clone(), reason: Some(reason(step.component, &problem)) })
}

/// For how many seconds a problem may last before its step is ended.
fn grace(recovery: Recovery, rules: &ReaperRules) -> f64 {
    match recovery {
        Recovery::None => 0.0,
        Recovery::Retry => rules.retry_grace,
        // Short enough to read the reason from the pod: the cluster deletes it after about five minutes, when it gives
        // up.
        Recovery::Restart => rules.retry_grace / 5.0,
        Recovery::Capacity => rules.schedule_grace,
        Recovery::Start => rules.start_grace,
    }
}

/// Why a step was ended, for the job's owner.
fn reason(component: Component, problem: &Problem) -> String {
    let step = match component {
        Component::Configure => "Fetching the job's data",
        Component::Algorithm => "The algorithm",
        Component::Filter => "Filtering the results",
        Component::Publish => "Publishing the results",
    };
    match problem {
        Problem::OutOfMemory(Some(limit)) => format!("{step} ran out of memory: {limit} were allowed."),
        Problem::OutOfMemory(None) => format!("{step} ran out of memory."),
        Problem::ExitCode(code) => format!("{step} failed with exit code {code}."),
        Problem::Evicted => format!("{step} was evicted by a node that ran short of resources."),
        Problem::DeadlineExceeded => format!("{step} took longer than allowed."),
        Problem::Endless(seconds) => format!("{step} did not end within {seconds} seconds."),
        Problem::Failed => format!("{step} failed."),
        Problem::ImagePull => format!("{step} could not begin: its image cannot be pulled."),
        Problem::InvalidImageName => format!("{step} could not begin: its image has no valid name."),
        Problem::ContainerCreation => format!("{step} could not begin: its container cannot be created."),
        Problem::NotStarted => {
            format!(
                "{step} could not begin: its pod did not start, for example because a volume could not be attached."
            )
        }
        Problem::Unschedulable(Some(resource)) => {
            format!("{step} could not begin: no node has enough {resource} for it.")
        }
        Problem::Unschedulable(None) => format!("{step} could not begin: no node can run it."),
        Problem::NoPod => format!("{step} could not begin: the cluster created no pod for it."),
    }
}

impl Sweep<'_> {
    /// Ends a step. The reason is recorded afterwards: what has ended by itself gets none. A sweep that dies in between
    /// leaves the job without a reason.
    pub(super) async fn end_step(&self, end: StepEnd, namespace: &Namespace) -> ActionResult {
        let StepEnd { duty, step, reason } = &end;
        self.keep_log(step, namespace).await?;
        let held = match self.request(namespace, *duty, self.cluster.delete_step(step, namespace)).await? {
            Deletion::Changed | Deletion::NotFound => return Ok(CONTINUED),
            Deletion::Gone => None,
            Deletion::Held(held) => held_remark(&[held]),
        };
        if let Some(reason) = reason {
            self.db.record_step_end(&step.job_id, reason, *duty == Duty::TimeLimits).await?;
        }
        Ok(Applied::Done(held.or(end.reason)))
    }

    /// Keeps the end of the log of a step whose pod is about to be deleted. A node that does not return it delays
    /// nothing else, and does not count as an outage of the cluster.
    async fn keep_log(&self, step: &Step, namespace: &Namespace) -> Result<(), ActionError> {
        match self.cluster.read_log(&step.job_id, step.component, namespace, LogPart::End).boxed().await {
            Ok(None) => {}
            Ok(Some(log)) => self.db.keep_log(&step.job_id, step.component, log).await?,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(job = %step.job_id, error, "the log of a step could not be kept before the step is ended");
            }
        }
        Ok(())
    }
}

impl Database {
    /// Records why a step of an unfinished job was ended, and with `timed_out`, that the job was over its time limit. A
    /// first reason stays, and so does a stop that its owner requested.
    async fn record_step_end(&self, job_id: &JobId, reason: &str, timed_out: bool) -> Result<(), DatabaseError> {
        self.execute(sqlx::query!(
            "UPDATE jobs
             SET reason = coalesce(reason, $2), stopreq = CASE WHEN $3 AND stopreq <> $4 THEN $5 ELSE stopreq END
             WHERE workflowid = $1 AND datefinished IS NULL",
            job_id.as_str(),
            reason,
            timed_out,
            StopRequest::BY_OWNER.code(),
            StopRequest::TIME_LIMIT.code()
        ))
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{environment, job, rules, step, steps, summary};
    use super::super::unfinished::decide;
    use super::*;
    use crate::kubernetes::Trouble;

    #[test]
    fn begun_jobs_with_steps() {
        use Component::{Algorithm, Configure, Publish};
        use StepState::{Done, Running, Terminating};
        let limited = ReaperRules { algorithm_limit: Some(100), ..rules() };
        let over = "end Algorithm TimeLimits The algorithm was stopped at its time limit of 100 seconds.";
        let stuck =
            |problem, recovery, seconds: f64| StepState::Stuck(Trouble { problem, recovery, seconds: Some(seconds) });
        let evicted = |recovery, seconds| stuck(Problem::Evicted, recovery, seconds);
        let eviction = "end Algorithm StuckSteps The algorithm was evicted by a node that ran short of resources.";
        let image =
            || StepState::Stuck(Trouble { problem: Problem::ImagePull, recovery: Recovery::Retry, seconds: None });
        let seen = |seen, seen_for| UnfinishedJob { seen: Some(seen), seen_for, ..job(40) };
        let trouble = |uid: &str| Seen::Trouble(uid.to_owned());
        let stop = |stop_requested, status| UnfinishedJob { stop_requested, ..job(status) };
        for (job, step, expected) in [
            (job(40), step(Algorithm, 100.0, Running), "nothing"),
            (job(40), step(Algorithm, 100.1, Running), over),
            (job(40), step(Algorithm, 1e9, Terminating), "saw idle"),
            (stop(StopRequest::BY_OWNER, 40), step(Algorithm, 1e9, Running), "end Algorithm Stops "),
            (UnfinishedJob { removed: true, ..job(40) }, step(Algorithm, 0.0, Running), "end Algorithm Stops "),
            (stop(StopRequest::TIME_LIMIT, 40), step(Algorithm, 0.0, Running), "end Algorithm TimeLimits "),
            (stop(StopRequest::BY_OWNER, 60), step(Publish, 0.0, Running), "nothing"),
            (
                UnfinishedJob { valid_for: Some(-1.0), ..job(40) },
                step(Algorithm, 0.0, Running),
                "end Algorithm TimeLimits The algorithm was stopped because the job's validUntil has passed.",
            ),
            // Another step has no limit but a day, however long its job has had its status.
            (UnfinishedJob { seen_for: 1e9, ..job(60) }, step(Publish, 86_400.0, Running), "nothing"),
            (
                job(60),
                step(Publish, 86_401.0, Running),
                "end Publish StuckSteps Publishing the results did not end within 86400 seconds.",
            ),
            // Each problem has its grace, by the cluster's clock if that records since when.
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Retry, 299.9)), "nothing"),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Retry, 300.0)), eviction),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Restart, 59.9)), "nothing"),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Restart, 60.0)), eviction),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Capacity, 899.0)), "nothing"),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::Capacity, 900.0)), eviction),
            (job(40), step(Algorithm, 0.0, evicted(Recovery::None, 0.0)), eviction),
            (job(20), step(Configure, 0.0, stuck(Problem::NotStarted, Recovery::Start, 3599.0)), "nothing"),
            (
                job(20),
                step(Configure, 0.0, stuck(Problem::NotStarted, Recovery::Start, 3600.0)),
                "end Configure StuckSteps Fetching the job's data could not begin: its pod did not start, for example \
                 because a volume could not be attached.",
            ),
            // Otherwise from the first sweep that saw it, of the same Kubernetes Job.
            (job(40), step(Algorithm, 0.0, image()), "saw uid"),
            (seen(trouble("uid"), 299.9), step(Algorithm, 0.0, image()), "nothing"),
            (
                seen(trouble("uid"), 300.0),
                step(Algorithm, 0.0, image()),
                "end Algorithm StuckSteps The algorithm could not begin: its image cannot be pulled.",
            ),
            (seen(trouble("another"), 1e9), step(Algorithm, 0.0, image()), "saw uid"),
            (seen(Seen::Absent, 1e9), step(Algorithm, 0.0, image()), "saw uid"),
            (seen(trouble("uid"), 1e9), step(Algorithm, 0.0, Running), "saw nothing"),
            // A problem that may end does not suspend the limit.
            (job(40), step(Algorithm, 101.0, evicted(Recovery::Capacity, 0.0)), over),
            // What is in progress is not absent.
            (seen(Seen::Absent, 1e9), step(Algorithm, 1.0, Running), "saw nothing"),
            // A step that has ended, and none follows.
            (job(40), step(Algorithm, 1e9, Done), "saw idle"),
            (seen(Seen::Idle, 3599.9), step(Algorithm, 1e9, Done), "nothing"),
            (
                seen(Seen::Idle, 3600.0),
                step(Algorithm, 1e9, Done),
                "41 Orphans The environment did not continue the job.",
            ),
        ] {
            let steps = steps([self::step(Configure, 9e9, Done), step]);
            let decided = decide(&job, Some(&steps), &environment(), &limited);
            assert_eq!(summary(decided), expected, "{job:?} {steps:?}");
        }
    }
}
