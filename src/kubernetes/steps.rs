//! The state of a job's steps, derived from their Kubernetes Jobs and pods. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::batch::v1::{Job as EngineJob, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::pods::{Pods, Problem, Recovery, Trouble, age};
use crate::domain::{Component, JobId};

/// The steps in a namespace, by job.
pub type Steps = BTreeMap<JobId, Vec<Step>>;

/// A step of a job as the cluster shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The job that the step belongs to.
    pub job_id: JobId,
    /// The step's kind.
    pub component: Component,
    /// The Kubernetes Job's uid.
    pub uid: String,
    /// The Kubernetes Job's version when it was read.
    pub resource_version: String,
    /// Seconds since the step started, by the cluster's clock; 0 if it has not started.
    pub running_for: f64,
    /// The step's state.
    pub state: StepState,
}

/// The state of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    /// It runs, is about to, or waits for what Kubernetes is about to provide.
    Running,
    /// It has succeeded.
    Done,
    /// Its Kubernetes Job is marked as deleted, and a finalizer still holds it.
    Terminating,
    /// It cannot continue as it is.
    Stuck(Trouble),
}

/// Derives the steps of a namespace from its Kubernetes Jobs, and then from their pods, of which it keeps what decides.
#[derive(Default)]
pub(super) struct StepsBuilder {
    steps: Steps,
    /// The Jobs whose state depends on their pods.
    open: Vec<EngineJob>,
    /// Their pods, by their uid.
    pods: HashMap<String, Pods>,
}

impl StepsBuilder {
    pub(super) fn add_job(&mut self, job: EngineJob, now: Timestamp) {
        let Some(step) = step(&job, &Pods::default(), now) else { return };
        if matches!(step.state, StepState::Done | StepState::Terminating) {
            self.steps.entry(step.job_id.clone()).or_default().push(step);
        } else {
            self.pods.insert(step.uid, Pods::default());
            self.open.push(job);
        }
    }

    pub(super) fn needs_pods(&self) -> bool {
        !self.open.is_empty()
    }

    /// Adds a pod. Those of other Jobs do not count.
    pub(super) fn add_pod(&mut self, pod: &Pod, now: Timestamp) {
        for owner in pod.owner_references() {
            if let Some(pods) = self.pods.get_mut(&owner.uid) {
                pods.add(pod, now);
            }
        }
    }

    pub(super) fn build(mut self, now: Timestamp) -> Steps {
        for job in self.open {
            let pods = job.uid().and_then(|uid| self.pods.remove(&uid)).unwrap_or_default();
            if let Some(step) = step(&job, &pods, now) {
                self.steps.entry(step.job_id.clone()).or_default().push(step);
            }
        }
        self.steps
    }
}

/// Derives a step from its Kubernetes Job and that Job's pods; `None` if the Job is not one of the engine's.
fn step(job: &EngineJob, pods: &Pods, now: Timestamp) -> Option<Step> {
    let job_id = JobId::of_object(job.labels().get("workflow")?)?;
    let component = Component::parse(job.labels().get("component")?)?;
    if job.name_any() != component.job_name(&job_id) {
        return None;
    }
    let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
    Some(Step {
        job_id,
        component,
        uid: job.uid()?,
        resource_version: job.resource_version()?,
        running_for: age(started, now).unwrap_or(0.0),
        state: state(job, pods, now),
    })
}

fn state(job: &EngineJob, pods: &Pods, now: Timestamp) -> StepState {
    let none = JobStatus::default();
    let status = job.status.as_ref().unwrap_or(&none);
    let condition = |name: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == name && condition.status == "True")
    };
    let stuck = |problem, recovery, since| {
        StepState::Stuck(Trouble { problem, recovery, seconds: Some(age(since, now).unwrap_or(0.0)) })
    };
    if job.metadata.deletion_timestamp.is_some() {
        return StepState::Terminating;
    }
    if status.succeeded.unwrap_or(0) > 0 || condition("Complete").is_some() {
        return StepState::Done;
    }
    if let Some(failed) = condition("Failed") {
        let problem = match failed.reason.as_deref() {
            Some("DeadlineExceeded") => Problem::DeadlineExceeded,
            _ => pods.failure().unwrap_or(Problem::Failed),
        };
        return stuck(problem, Recovery::None, failed.last_transition_time.as_ref());
    }
    if job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)) {
        return StepState::Running;
    }
    match pods.trouble() {
        Some(trouble) => trouble.map_or(StepState::Running, StepState::Stuck),
        // It had a pod, and the next one is created after a back-off.
        None if status.active.unwrap_or(0) > 0 || status.failed.unwrap_or(0) > 0 => StepState::Running,
        None => {
            let since = status.start_time.as_ref().or(job.metadata.creation_timestamp.as_ref());
            stuck(Problem::NoPod, Recovery::Capacity, since)
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use k8s_openapi::jiff::SignedDuration;
    use serde_json::{Value, json};

    use super::*;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn ago(seconds: i64) -> String {
        now().saturating_sub(SignedDuration::from_secs(seconds)).unwrap().to_string()
    }

    fn merged(mut value: Value, with: Value) -> Value {
        for (key, with) in with.as_object().unwrap() {
            value[key] = if value[key].is_object() && with.is_object() {
                merged(value[key].clone(), with.clone())
            } else {
                with.clone()
            };
        }
        value
    }

    fn job(with: Value) -> EngineJob {
        let job = json!({
            "metadata": {
                "name": "job-algorithm-job", "uid": "u", "resourceVersion": "7", "creationTimestamp": ago(1000),
                "labels": { "app": "job", "workflow": "job", "component": "algorithm" }
            },
            "spec": { "template": { "spec": { "containers": [] } } },
            "status": { "startTime": ago(1000), "active": 1 }
        });
        serde_json::from_value(merged(job, with)).unwrap()
    }

    fn pod(status: Value) -> Pod {
        let limits = json!({ "limits": { "memory": "512Mi" } });
        serde_json::from_value(json!({
            "metadata": {
                "name": "pod", "creationTimestamp": ago(1000),
                "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "job-algorithm-job", "uid": "u" }]
            },
            "spec": { "containers": [{ "name": "algorithm", "resources": limits }] },
            "status": merged(json!({ "startTime": ago(1000) }), status)
        }))
        .unwrap()
    }

    fn container(state: Value, with: Value) -> Value {
        let status = json!({
            "name": "algorithm", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": state
        });
        merged(status, with)
    }

    fn waiting(reason: &str) -> Value {
        json!({ "waiting": { "reason": reason, "message": "…" } })
    }

    fn ended(reason: &str, code: i32) -> Value {
        json!({ "terminated": { "reason": reason, "exitCode": code, "finishedAt": ago(70) } })
    }

    /// A pod whose containers have not been ready for 100 seconds.
    fn pending(containers: Value) -> Pod {
        pod(json!({
            "phase": "Pending", "containerStatuses": [containers],
            "conditions": [{ "type": "ContainersReady", "status": "False", "lastTransitionTime": ago(100) }]
        }))
    }

    fn unscheduled(message: Value) -> Pod {
        pod(json!({ "phase": "Pending", "startTime": null, "conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": ago(50),
            "message": message
        }]}))
    }

    fn derived(job: &EngineJob, pods: &[Pod]) -> Option<Step> {
        let mut builder = StepsBuilder::default();
        builder.add_job(job.clone(), now());
        pods.iter().for_each(|pod| builder.add_pod(pod, now()));
        builder.build(now()).into_values().next().map(|mut steps| steps.remove(0))
    }

    fn state_of(job: &EngineJob, pods: &[Pod]) -> StepState {
        derived(job, pods).unwrap().state
    }

    fn stuck(problem: Problem, recovery: Recovery, seconds: impl Into<Option<f64>>) -> StepState {
        StepState::Stuck(Trouble { problem, recovery, seconds: seconds.into() })
    }

    #[test]
    fn only_unfinished_jobs_need_their_pods() {
        let mut builder = StepsBuilder::default();
        builder.add_job(job(json!({ "metadata": { "deletionTimestamp": ago(1) } })), now());
        assert!(!builder.needs_pods());
        builder.add_job(job(json!({})), now());
        assert!(builder.needs_pods());
    }

    #[test]
    fn the_youngest_pod_counts() {
        let aged = |seconds, pod: Pod| {
            let created = json!({ "metadata": { "creationTimestamp": ago(seconds) } });
            serde_json::from_value::<Pod>(merged(serde_json::to_value(pod).unwrap(), created)).unwrap()
        };
        let old = || aged(900, pending(container(waiting("ErrImagePull"), json!({}))));
        let young = || aged(10, pending(container(waiting("InvalidImageName"), json!({}))));
        let expected = stuck(Problem::InvalidImageName, Recovery::None, None);
        assert_eq!(state_of(&job(json!({})), &[old(), young()]), expected);
        assert_eq!(state_of(&job(json!({})), &[young(), old()]), expected);
    }

    #[test]
    fn a_failed_pod_says_why_and_since_when() {
        let failed = |reason: Value| {
            pod(json!({ "phase": "Failed", "reason": reason, "conditions": [
                { "type": "PodScheduled", "status": "True", "lastTransitionTime": ago(900) },
                { "type": "Initialized", "status": "False", "lastTransitionTime": ago(500) },
                { "type": "ContainersReady", "status": "False", "lastTransitionTime": ago(100) },
            ]}))
        };
        for (reason, problem) in [
            (json!("DeadlineExceeded"), Problem::DeadlineExceeded),
            (json!("Evicted"), Problem::Evicted),
            (Value::Null, Problem::Failed),
        ] {
            assert_eq!(state_of(&job(json!({})), &[failed(reason)]), stuck(problem, Recovery::Retry, 100.0));
        }
    }

    #[test]
    fn states_derived_from_pods() {
        let memory = || Problem::OutOfMemory(Some("512Mi".to_owned()));
        let node = |lacks: &str| Problem::Unschedulable(Some(lacks.to_owned()));
        for (pod, expected) in [
            (
                pod(
                    json!({ "phase": "Running", "containerStatuses": [container(json!({ "running": {} }), json!({}))] }),
                ),
                StepState::Running,
            ),
            (pod(json!({ "phase": "Pending" })), stuck(Problem::NotStarted, Recovery::Start, 1000.0)),
            (pod(json!({})), stuck(Problem::NotStarted, Recovery::Start, 1000.0)),
            (pod(json!({ "phase": "Succeeded" })), StepState::Running),
            (
                pending(container(waiting("ContainerCreating"), json!({}))),
                stuck(Problem::NotStarted, Recovery::Start, 1000.0),
            ),
            (
                pending(container(json!({ "waiting": {} }), json!({}))),
                stuck(Problem::NotStarted, Recovery::Start, 1000.0),
            ),
            // A container of it has started.
            (
                pending(container(waiting("ContainerCreating"), json!({ "lastState": ended("Error", 1) }))),
                StepState::Running,
            ),
            (
                pod(json!({
                    "phase": "Pending", "initContainerStatuses": [container(ended("Completed", 0), json!({}))],
                    "containerStatuses": [container(waiting("PodInitializing"), json!({}))]
                })),
                StepState::Running,
            ),
            // The cluster does not record since when.
            (pending(container(waiting("ErrImagePull"), json!({}))), stuck(Problem::ImagePull, Recovery::Retry, None)),
            (
                pending(container(waiting("ImagePullBackOff"), json!({}))),
                stuck(Problem::ImagePull, Recovery::Retry, None),
            ),
            (
                pending(container(waiting("InvalidImageName"), json!({}))),
                stuck(Problem::InvalidImageName, Recovery::None, None),
            ),
            (
                pending(container(waiting("CreateContainerConfigError"), json!({}))),
                stuck(Problem::ContainerCreation, Recovery::Retry, None),
            ),
            // Restarted in place: the reason for which it was last killed, and the sum of the back-offs.
            (
                pending(container(
                    waiting("CrashLoopBackOff"),
                    json!({ "restartCount": 4, "lastState": ended("OOMKilled", 137) }),
                )),
                stuck(memory(), Recovery::Restart, 70.0),
            ),
            (
                pending(container(
                    waiting("CrashLoopBackOff"),
                    json!({ "restartCount": 1, "lastState": ended("Error", 3) }),
                )),
                stuck(Problem::ExitCode(3), Recovery::Restart, 0.0),
            ),
            (
                pending(container(waiting("CrashLoopBackOff"), json!({ "restartCount": 99, "lastState": {} }))),
                stuck(Problem::Failed, Recovery::Restart, 310.0),
            ),
            (
                pod(json!({
                    "phase": "Pending", "initContainerStatuses": [container(waiting("ImagePullBackOff"), json!({}))],
                    "containerStatuses": [container(waiting("PodInitializing"), json!({}))]
                })),
                stuck(Problem::ImagePull, Recovery::Retry, None),
            ),
            (
                unscheduled(json!("0/3 nodes are available: 1 Too many pods, 2 Insufficient memory. preemption: …")),
                stuck(node("memory"), Recovery::Capacity, 50.0),
            ),
            (
                unscheduled(json!("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")),
                stuck(node("nvidia.com/gpu"), Recovery::Capacity, 50.0),
            ),
            (
                unscheduled(json!("0/1 nodes: Insufficient ")),
                stuck(Problem::Unschedulable(None), Recovery::Capacity, 50.0),
            ),
            (unscheduled(json!("no nodes available")), stuck(Problem::Unschedulable(None), Recovery::Capacity, 50.0)),
            (unscheduled(json!(null)), stuck(Problem::Unschedulable(None), Recovery::Capacity, 50.0)),
            // It may have run for a long time before.
            (pod(json!({ "phase": "Failed", "reason": "Evicted" })), stuck(Problem::Evicted, Recovery::Retry, 0.0)),
            (
                pod(json!({ "phase": "Failed", "containerStatuses": [container(ended("OOMKilled", 137), json!({}))] })),
                stuck(memory(), Recovery::Retry, 70.0),
            ),
            (
                pod(json!({ "phase": "Failed", "containerStatuses": [container(ended("Error", 1), json!({}))] })),
                stuck(Problem::ExitCode(1), Recovery::Retry, 70.0),
            ),
            (pod(json!({ "phase": "Failed" })), stuck(Problem::Failed, Recovery::Retry, 0.0)),
        ] {
            assert_eq!(state_of(&job(json!({})), std::slice::from_ref(&pod)), expected, "{pod:?}");
        }
    }

    #[test]
    fn states_derived_from_jobs() {
        let condition = |kind: &str, reason: &str| {
            let condition = json!({ "type": kind, "status": "True", "reason": reason, "lastTransitionTime": ago(9) });
            job(json!({ "status": { "conditions": [condition] } }))
        };
        let failed = || condition("Failed", "BackoffLimitExceeded");
        let evicted = [pod(json!({ "phase": "Failed", "reason": "Evicted" }))];
        let broken =
            [pod(json!({ "phase": "Pending", "containerStatuses": [container(waiting("ErrImagePull"), json!({}))] }))];
        for (job, pods, expected) in [
            (job(json!({ "status": { "succeeded": 1 } })), &broken[..], StepState::Done),
            (condition("Complete", ""), &[], StepState::Done),
            (job(json!({ "metadata": { "deletionTimestamp": ago(1) } })), &broken, StepState::Terminating),
            (failed(), &[], stuck(Problem::Failed, Recovery::None, 9.0)),
            (failed(), &evicted, stuck(Problem::Evicted, Recovery::None, 9.0)),
            (condition("Failed", "DeadlineExceeded"), &evicted, stuck(Problem::DeadlineExceeded, Recovery::None, 9.0)),
            (job(json!({ "spec": { "suspend": true } })), &[], StepState::Running),
            // Its pod does not exist any more, and the next is about to be created.
            (job(json!({ "status": { "active": 1 } })), &[], StepState::Running),
            (job(json!({ "status": { "active": 0, "failed": 1 } })), &[], StepState::Running),
            (job(json!({ "status": { "active": 0 } })), &[], stuck(Problem::NoPod, Recovery::Capacity, 1000.0)),
            (job(json!({ "status": null })), &[], stuck(Problem::NoPod, Recovery::Capacity, 1000.0)),
            (
                job(json!({ "status": { "active": 0, "startTime": ago(-600) } })),
                &[],
                stuck(Problem::NoPod, Recovery::Capacity, 0.0),
            ),
        ] {
            assert_eq!(state_of(&job, pods), expected, "{job:?}");
        }
        // The pod that replaced a failed one counts, and pods of other Jobs do not.
        let running = pod(json!({ "phase": "Running" }));
        assert_eq!(state_of(&job(json!({})), &[running.clone(), evicted[0].clone()]), StepState::Running);
        let mut foreign = evicted[0].clone();
        foreign.metadata.owner_references = None;
        assert_eq!(state_of(&job(json!({})), &[running, foreign]), StepState::Running);
        let mut terminating = broken[0].clone();
        terminating.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(state_of(&job(json!({})), &[terminating]), StepState::Running);
    }

    #[test]
    fn jobs_that_are_not_steps() {
        let found = derived(&job(json!({})), &[]).unwrap();
        assert_eq!((found.job_id.as_str(), found.component, found.running_for), ("job", Component::Algorithm, 1000.0));
        assert_eq!((found.uid.as_str(), found.resource_version.as_str()), ("u", "7"));
        let ahead = job(json!({ "status": { "startTime": ago(-600) } }));
        assert_eq!(derived(&ahead, &[]).unwrap().running_for, 0.0);
        let unstarted = job(json!({ "status": null }));
        assert_eq!(derived(&unstarted, &[]).unwrap().running_for, 0.0);
        for other in [
            json!({ "name": "job-publish-job" }),
            json!({ "name": "another" }),
            json!({ "name": null }),
            json!({ "labels": null }),
            json!({ "labels": { "workflow": "../job" } }),
            json!({ "labels": { "workflow": "" } }),
            json!({ "labels": { "component": "cleanup" } }),
            json!({ "uid": null }),
        ] {
            assert_eq!(derived(&job(json!({ "metadata": other })), &[]), None, "{other}");
        }
    }
}
