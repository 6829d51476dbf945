//! What has become of the steps of a job, told from its Kubernetes Jobs and their pods. Pure.

use k8s_openapi::api::batch::v1::{Job as EngineJob, JobStatus};
use k8s_openapi::api::core::v1::{Container, ContainerState, ContainerStatus, Pod, PodCondition, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::Component;
use crate::domain::JobId;

/// One of the engine's Jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// Whose step it is.
    pub job_id: JobId,
    /// Which.
    pub component: Component,
    /// The Job's uid.
    pub uid: String,
    /// The Job's version, as it was looked at.
    pub resource_version: String,
    /// For how many seconds it has run, by the cluster's clock; 0 if it has not begun.
    pub running_for: f64,
    /// What has become of it.
    pub state: StepState,
}

/// What has become of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepState {
    /// It runs, or is about to, or waits for something that is bound to come.
    Running,
    /// It is done.
    Done,
    /// Somebody has deleted it, and something still holds it.
    Going,
    /// It will not be done as it is.
    Stuck {
        /// Why.
        trouble: Trouble,
        /// Whether that may pass.
        hope: Hope,
        /// For how many seconds it has been so, by the cluster's clock.
        seconds: f64,
    },
}

/// Why a step does not get on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// The kernel killed it; so much it was allowed, if that is known.
    OutOfMemory(Option<String>),
    /// It ended with this exit code.
    Exit(i32),
    /// Its node ran short of something and threw it out.
    Evicted,
    /// It took longer than its own Job allows.
    Deadline,
    /// It failed, nobody knows how.
    Failed,
    /// Its image cannot be pulled.
    Image,
    /// Its image's name is none.
    ImageName,
    /// Its container cannot be made.
    Container,
    /// No node has room for it; what they lack, such as `cpu`, if that is known.
    Node(Option<String>),
    /// The cluster lets no pod be made for it, for want of quota for example.
    NoPod,
}

/// Whether trouble may pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hope {
    /// It will not.
    None,
    /// The cluster tries again.
    Retry,
    /// It is started again and again, until the cluster gives it up, and its pod with it: after six times, which takes
    /// about five minutes.
    Restart,
    /// There may be room later.
    Room,
}

/// Reads one of the engine's Jobs; `None` if it is none of them. `pods` may hold those of others, too.
pub(super) fn step(job: &EngineJob, pods: &[Pod], now: Timestamp) -> Option<Step> {
    let job_id = JobId::of_object(job.labels().get("workflow")?)?;
    let component = Component::parse(job.labels().get("component")?)?;
    if job.name_any() != component.job_name(&job_id) {
        return None;
    }
    let uid = job.uid()?;
    let owned = |pod: &&Pod| pod.owner_references().iter().any(|owner| owner.uid == uid);
    let pods: Vec<&Pod> = pods.iter().filter(owned).collect();
    let started = job.status.as_ref().and_then(|status| status.start_time.as_ref());
    Some(Step {
        job_id,
        component,
        resource_version: job.resource_version()?,
        running_for: age(started, now).unwrap_or(0.0),
        state: state(job, &pods, now),
        uid,
    })
}

/// Objects without what nobody here asks for: there may be many, and their templates are large.
pub(super) trait Slim {
    fn slim(self) -> Self;
}

impl Slim for EngineJob {
    fn slim(mut self) -> Self {
        (self.metadata.managed_fields, self.metadata.annotations) = (None, None);
        if let Some(spec) = &mut self.spec {
            spec.template = Default::default();
        }
        self
    }
}

impl Slim for Pod {
    fn slim(mut self) -> Self {
        (self.metadata.managed_fields, self.metadata.annotations) = (None, None);
        if let Some(spec) = &mut self.spec {
            let slim = |container: Container| Container {
                name: container.name,
                resources: container.resources,
                ..Container::default()
            };
            let containers = std::mem::take(&mut spec.containers).into_iter().map(slim).collect();
            *spec = PodSpec { containers, ..PodSpec::default() };
        }
        self
    }
}

/// Whether it takes its pods to know what has become of a Job.
pub(super) fn is_open(job: &EngineJob) -> bool {
    !matches!(state(job, &[], Timestamp::MIN), StepState::Done | StepState::Going)
}

/// Seconds since then; what lies in the future is now.
fn age(time: Option<&Time>, now: Timestamp) -> Option<f64> {
    time.map(|time| now.duration_since(time.0).as_secs_f64().max(0.0))
}

fn state(job: &EngineJob, pods: &[&Pod], now: Timestamp) -> StepState {
    let none = JobStatus::default();
    let status = job.status.as_ref().unwrap_or(&none);
    let condition = |name: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == name && condition.status == "True")
    };
    if job.metadata.deletion_timestamp.is_some() {
        return StepState::Going;
    }
    if status.succeeded.unwrap_or(0) > 0 || condition("Complete").is_some() {
        return StepState::Done;
    }
    let has_failed = |pod: &Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
    // Of a pod that failed and the one that took its place, the time stamps may be the same.
    let latest = |failed_first: bool| {
        pods.iter().max_by_key(|pod| (has_failed(pod) == failed_first, pod.metadata.creation_timestamp.clone()))
    };
    if let Some(failed) = condition("Failed") {
        let trouble = match (failed.reason.as_deref(), latest(true)) {
            (Some("DeadlineExceeded"), _) => Trouble::Deadline,
            (_, Some(pod)) => how_it_failed(pod),
            (_, None) => Trouble::Failed,
        };
        let seconds = age(failed.last_transition_time.as_ref(), now).unwrap_or(0.0);
        return StepState::Stuck { trouble, hope: Hope::None, seconds };
    }
    if job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)) {
        return StepState::Running;
    }
    let stuck = match latest(false) {
        Some(pod) if pod.metadata.deletion_timestamp.is_some() => None,
        Some(pod) => pod_trouble(pod, now),
        // It had one, and its next is about to be made: the cluster makes a pause before that.
        None if status.active.unwrap_or(0) > 0 || status.failed.unwrap_or(0) > 0 => None,
        None => {
            let since = status.start_time.as_ref().or(job.metadata.creation_timestamp.as_ref());
            Some((Trouble::NoPod, Hope::Room, age(since, now).unwrap_or(0.0)))
        }
    };
    match stuck {
        Some((trouble, hope, seconds)) => StepState::Stuck { trouble, hope, seconds },
        None => StepState::Running,
    }
}

/// What keeps the youngest pod of a step, if anything does, whether that may pass, and for how long it has been so.
fn pod_trouble(pod: &Pod, now: Timestamp) -> Option<(Trouble, Hope, f64)> {
    let status = pod.status.as_ref()?;
    let begun = || age(status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref()), now).unwrap_or(0.0);
    let condition = |name: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == name && condition.status == "False")
    };
    let since = |condition: Option<&PodCondition>| {
        age(condition.and_then(|condition| condition.last_transition_time.as_ref()), now).unwrap_or_else(begun)
    };
    let ready = condition("ContainersReady").or_else(|| condition("Ready"));
    match status.phase.as_deref() {
        Some("Succeeded") => return None,
        Some("Failed") => {
            let ended = containers(pod).filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
            let not_ready = ready.and_then(|condition| condition.last_transition_time.as_ref());
            // What ran for hours has not failed for as long.
            let seconds = age(ended.max().or(not_ready), now).unwrap_or(0.0);
            return Some((how_it_failed(pod), Hope::Retry, seconds));
        }
        _ => {}
    }
    if let Some(unscheduled) = condition("PodScheduled")
        && unscheduled.reason.as_deref() == Some("Unschedulable")
    {
        let lacks = unscheduled.message.as_deref().and_then(lacking);
        return Some((Trouble::Node(lacks), Hope::Room, since(Some(unscheduled))));
    }
    let not_ready = || since(ready);
    containers(pod).find_map(|container| {
        let reason = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
        let (trouble, hope, seconds) = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "ImageInspectError" | "RegistryUnavailable" => {
                (Trouble::Image, Hope::Retry, not_ready())
            }
            "InvalidImageName" => (Trouble::ImageName, Hope::None, not_ready()),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                (Trouble::Container, Hope::Retry, not_ready())
            }
            "CrashLoopBackOff" => {
                let trouble = container.last_state.as_ref().and_then(terminated).unwrap_or(Trouble::Failed);
                (trouble, Hope::Restart, restarting_for(container.restart_count))
            }
            _ => return None,
        };
        let trouble = match trouble {
            Trouble::OutOfMemory(_) => Trouble::OutOfMemory(memory_limit(pod)),
            trouble => trouble,
        };
        Some((trouble, hope, seconds))
    })
}

/// For how many seconds at least a container has been started again and again. Its conditions change each time, and what
/// it did before it first failed does not count; but the pauses are known: none, 10 seconds, and twice as long each time.
fn restarting_for(restarts: i32) -> f64 {
    10.0 * (2_f64.powi(restarts.clamp(1, 6) - 1) - 1.0)
}

fn how_it_failed(pod: &Pod) -> Trouble {
    let status = pod.status.as_ref();
    match status.and_then(|status| status.reason.as_deref()) {
        Some("Evicted") => return Trouble::Evicted,
        Some("DeadlineExceeded") => return Trouble::Deadline,
        _ => {}
    }
    let troubles = containers(pod).filter_map(|container| {
        let last = container.last_state.as_ref().and_then(terminated);
        container.state.as_ref().and_then(terminated).or(last)
    });
    match troubles.max_by_key(|trouble| matches!(trouble, Trouble::OutOfMemory(_))) {
        Some(Trouble::OutOfMemory(_)) => Trouble::OutOfMemory(memory_limit(pod)),
        Some(trouble) => trouble,
        None => Trouble::Failed,
    }
}

fn terminated(state: &ContainerState) -> Option<Trouble> {
    let end = state.terminated.as_ref()?;
    match (end.reason.as_deref(), end.exit_code) {
        (Some("OOMKilled"), _) => Some(Trouble::OutOfMemory(None)),
        (_, 0) => None,
        (_, code) => Some(Trouble::Exit(code)),
    }
}

fn memory_limit(pod: &Pod) -> Option<String> {
    let limits = pod.spec.as_ref()?.containers.first()?.resources.as_ref()?.limits.as_ref()?;
    limits.get("memory").map(|quantity| quantity.0.clone())
}

fn containers(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    pod.status.iter().flat_map(|status| {
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
    })
}

/// What the scheduler says that nodes lack: "0/3 nodes are available: 3 Insufficient cpu. …"
fn lacking(message: &str) -> Option<String> {
    let rest = message.split("Insufficient ").nth(1)?;
    let resource = rest.split(|c: char| !(c.is_ascii_alphanumeric() || "./-".contains(c))).next()?;
    Some(resource.trim_end_matches(['.', ',']).to_owned()).filter(|resource| !resource.is_empty())
}

#[cfg(test)]
mod tests {
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

    /// A pod whose containers are not ready for 100 seconds.
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

    fn seen(job: &EngineJob, pods: &[Pod]) -> StepState {
        step(job, pods, now()).unwrap().state
    }

    fn stuck(trouble: Trouble, hope: Hope, seconds: f64) -> StepState {
        StepState::Stuck { trouble, hope, seconds }
    }

    #[test]
    fn what_kubelets_say_of_pods() {
        let memory = || Trouble::OutOfMemory(Some("512Mi".to_owned()));
        let node = |lacks: &str| Trouble::Node(Some(lacks.to_owned()));
        for (pod, expected) in [
            (
                pod(
                    json!({ "phase": "Running", "containerStatuses": [container(json!({ "running": {} }), json!({}))] }),
                ),
                StepState::Running,
            ),
            (pod(json!({ "phase": "Pending" })), StepState::Running),
            (pod(json!({})), StepState::Running),
            (pod(json!({ "phase": "Succeeded" })), StepState::Running),
            (pending(container(waiting("ContainerCreating"), json!({}))), StepState::Running),
            (pending(container(waiting("PodInitializing"), json!({}))), StepState::Running),
            (pending(container(json!({ "waiting": {} }), json!({}))), StepState::Running),
            (pending(container(waiting("ErrImagePull"), json!({}))), stuck(Trouble::Image, Hope::Retry, 100.0)),
            (pending(container(waiting("ImagePullBackOff"), json!({}))), stuck(Trouble::Image, Hope::Retry, 100.0)),
            (pending(container(waiting("InvalidImageName"), json!({}))), stuck(Trouble::ImageName, Hope::None, 100.0)),
            (
                pending(container(waiting("CreateContainerConfigError"), json!({}))),
                stuck(Trouble::Container, Hope::Retry, 100.0),
            ),
            // Restarted in place: what it was killed for last time, and how long the pauses have been.
            (
                pending(container(
                    waiting("CrashLoopBackOff"),
                    json!({ "restartCount": 4, "lastState": ended("OOMKilled", 137) }),
                )),
                stuck(memory(), Hope::Restart, 70.0),
            ),
            (
                pending(container(
                    waiting("CrashLoopBackOff"),
                    json!({ "restartCount": 1, "lastState": ended("Error", 3) }),
                )),
                stuck(Trouble::Exit(3), Hope::Restart, 0.0),
            ),
            (
                pending(container(waiting("CrashLoopBackOff"), json!({ "restartCount": 99, "lastState": {} }))),
                stuck(Trouble::Failed, Hope::Restart, 310.0),
            ),
            (
                pod(json!({
                    "phase": "Pending", "initContainerStatuses": [container(waiting("ImagePullBackOff"), json!({}))],
                    "containerStatuses": [container(waiting("PodInitializing"), json!({}))]
                })),
                stuck(Trouble::Image, Hope::Retry, 1000.0),
            ),
            (
                unscheduled(json!("0/3 nodes are available: 1 Too many pods, 2 Insufficient memory. preemption: …")),
                stuck(node("memory"), Hope::Room, 50.0),
            ),
            (
                unscheduled(json!("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")),
                stuck(node("nvidia.com/gpu"), Hope::Room, 50.0),
            ),
            (unscheduled(json!("0/1 nodes: Insufficient ")), stuck(Trouble::Node(None), Hope::Room, 50.0)),
            (unscheduled(json!("no nodes available")), stuck(Trouble::Node(None), Hope::Room, 50.0)),
            (unscheduled(json!(null)), stuck(Trouble::Node(None), Hope::Room, 50.0)),
            // It may have run for long before.
            (pod(json!({ "phase": "Failed", "reason": "Evicted" })), stuck(Trouble::Evicted, Hope::Retry, 0.0)),
            (
                pod(json!({ "phase": "Failed", "containerStatuses": [container(ended("OOMKilled", 137), json!({}))] })),
                stuck(memory(), Hope::Retry, 70.0),
            ),
            (
                pod(json!({ "phase": "Failed", "containerStatuses": [container(ended("Error", 1), json!({}))] })),
                stuck(Trouble::Exit(1), Hope::Retry, 70.0),
            ),
            (pod(json!({ "phase": "Failed" })), stuck(Trouble::Failed, Hope::Retry, 0.0)),
        ] {
            assert_eq!(seen(&job(json!({})), std::slice::from_ref(&pod)), expected, "{pod:?}");
        }
    }

    #[test]
    fn what_is_said_of_jobs() {
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
            (job(json!({ "metadata": { "deletionTimestamp": ago(1) } })), &broken, StepState::Going),
            (failed(), &[], stuck(Trouble::Failed, Hope::None, 9.0)),
            (failed(), &evicted, stuck(Trouble::Evicted, Hope::None, 9.0)),
            (condition("Failed", "DeadlineExceeded"), &evicted, stuck(Trouble::Deadline, Hope::None, 9.0)),
            (job(json!({ "spec": { "suspend": true } })), &[], StepState::Running),
            // Its pod is gone, and the next is about to be made.
            (job(json!({ "status": { "active": 1 } })), &[], StepState::Running),
            (job(json!({ "status": { "active": 0, "failed": 1 } })), &[], StepState::Running),
            (job(json!({ "status": { "active": 0 } })), &[], stuck(Trouble::NoPod, Hope::Room, 1000.0)),
            (job(json!({ "status": null })), &[], stuck(Trouble::NoPod, Hope::Room, 1000.0)),
            (
                job(json!({ "status": { "active": 0, "startTime": ago(-600) } })),
                &[],
                stuck(Trouble::NoPod, Hope::Room, 0.0),
            ),
        ] {
            assert_eq!(seen(&job, pods), expected, "{job:?}");
        }
        // The pod that took the place of one that failed counts, and others' pods do not.
        let running = pod(json!({ "phase": "Running" }));
        assert_eq!(seen(&job(json!({})), &[running.clone(), evicted[0].clone()]), StepState::Running);
        let mut foreign = evicted[0].clone();
        foreign.metadata.owner_references = None;
        assert_eq!(seen(&job(json!({})), &[running, foreign]), StepState::Running);
        let mut going = broken[0].clone();
        going.metadata.deletion_timestamp = Some(Time(now()));
        assert_eq!(seen(&job(json!({})), &[going]), StepState::Running);
    }

    #[test]
    fn what_is_no_step_of_a_job() {
        let found = step(&job(json!({})), &[], now()).unwrap();
        assert_eq!((found.job_id.as_str(), found.component, found.running_for), ("job", Component::Algorithm, 1000.0));
        assert_eq!((found.uid.as_str(), found.resource_version.as_str()), ("u", "7"));
        let ahead = job(json!({ "status": { "startTime": ago(-600) } }));
        assert_eq!(step(&ahead, &[], now()).unwrap().running_for, 0.0);
        let unstarted = job(json!({ "status": null }));
        assert_eq!(step(&unstarted, &[], now()).unwrap().running_for, 0.0);
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
            assert_eq!(step(&job(json!({ "metadata": other })), &[], now()), None, "{other}");
        }
    }
}
