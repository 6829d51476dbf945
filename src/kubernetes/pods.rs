//! Why a step's pod does not run, derived from the pod. Pure.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// Why a step is stuck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// The kernel killed it because it used too much memory. The memory limit, if known.
    OutOfMemory(Option<String>),
    /// It ended with this exit code.
    ExitCode(i32),
    /// Its node evicted it because the node ran short of resources.
    Evicted,
    /// It exceeded the `activeDeadlineSeconds` of its own Job.
    DeadlineExceeded,
    /// It has run for longer than a step other than the algorithm may, which is this number of seconds.
    Endless(u64),
    /// It failed for an unknown reason.
    Failed,
    /// Its image cannot be pulled.
    ImagePull,
    /// The name of its image is invalid.
    InvalidImageName,
    /// Its container cannot be created.
    ContainerCreation,
    /// No container of its pod has started: a volume cannot be attached, or a claim or ConfigMap is missing.
    NotStarted,
    /// No node has capacity for it. The resource that nodes lack, such as `cpu`, if known.
    Unschedulable(Option<String>),
    /// The cluster creates no pod for it, for example because a quota is exhausted.
    NoPod,
}

/// How a problem may end without intervention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// It does not.
    None,
    /// The cluster tries again.
    Retry,
    /// The kubelet restarts the container, until the cluster gives up and deletes the pod: after six restarts, which
    /// take about five minutes.
    Restart,
    /// There may be capacity later.
    Capacity,
    /// What its pod needs may still become available: an image is being pulled, a volume is being attached.
    Start,
}

/// A problem of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Trouble {
    /// What it is.
    pub problem: Problem,
    /// How it may end without intervention.
    pub recovery: Recovery,
    /// For how many seconds it has lasted, by the cluster's clock; `None` where the cluster does not record since when.
    pub seconds: Option<f64>,
}

/// What is known of a step's pods.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// The youngest pod that has failed.
    failed: Option<PodState>,
    /// The youngest other one.
    other: Option<PodState>,
}

/// What the state of a step depends on.
#[derive(Debug)]
struct PodState {
    created: Option<Time>,
    deleting: bool,
    /// Why it failed; `Failed` if it did not.
    failure: Problem,
    trouble: Option<Trouble>,
}

impl Pods {
    /// Adds a pod of the step.
    pub(super) fn add(&mut self, pod: &Pod, now: Timestamp) {
        let has_failed = pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Failed"));
        let youngest = if has_failed { &mut self.failed } else { &mut self.other };
        let created = pod.metadata.creation_timestamp.clone();
        if youngest.as_ref().is_none_or(|known| known.created <= created) {
            let deleting = pod.metadata.deletion_timestamp.is_some();
            *youngest = Some(PodState { created, deleting, failure: failure(pod), trouble: trouble(pod, now) });
        }
    }

    /// Why the step failed, by its last pod that did.
    pub(super) fn failure(&self) -> Option<Problem> {
        self.failed.as_ref().or(self.other.as_ref()).map(|pod| pod.failure.clone())
    }

    /// The problem of the pod that counts: a failed pod and its replacement may have the same creation timestamp. `None`
    /// if there is no pod.
    pub(super) fn trouble(&self) -> Option<Option<Trouble>> {
        let pod = self.other.as_ref().or(self.failed.as_ref())?;
        Some(if pod.deleting { None } else { pod.trouble.clone() })
    }
}

/// The seconds since a time; 0 if it is in the future, `None` if there is none.
pub(super) fn age(time: Option<&Time>, now: Timestamp) -> Option<f64> {
    time.map(|time| now.duration_since(time.0).as_secs_f64().max(0.0))
}

/// The problem of a pod, if it has one.
fn trouble(pod: &Pod, now: Timestamp) -> Option<Trouble> {
    let known = |problem, recovery, seconds| Some(Trouble { problem, recovery, seconds: Some(seconds) });
    let status = pod.status.as_ref()?;
    let condition = |name: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == name && condition.status == "False")
    };
    let started = status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref());
    match status.phase.as_deref() {
        Some("Succeeded") => return None,
        Some("Failed") => {
            let ended = containers(pod).filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
            let not_ready = since(condition("ContainersReady").or_else(|| condition("Ready")));
            // Without a time of failure: the pod may have run for hours before it failed.
            return known(failure(pod), Recovery::Retry, age(ended.max().or(not_ready), now).unwrap_or(0.0));
        }
        _ => {}
    }
    if let Some(unscheduled) = condition("PodScheduled")
        && unscheduled.reason.as_deref() == Some("Unschedulable")
    {
        let lacks = unscheduled.message.as_deref().and_then(lacking);
        let seconds = age(since(Some(unscheduled)).or(started), now).unwrap_or(0.0);
        return known(Problem::Unschedulable(lacks), Recovery::Capacity, seconds);
    }
    // The conditions of a pod that waits date from its first moments on the node, not from its first problem.
    let retried = |problem, recovery| Some(Trouble { problem, recovery, seconds: None });
    let waiting =
        containers(pod).find_map(|container| match container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()? {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "ImageInspectError" | "RegistryUnavailable" => {
                retried(Problem::ImagePull, Recovery::Retry)
            }
            "InvalidImageName" => retried(Problem::InvalidImageName, Recovery::None),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                retried(Problem::ContainerCreation, Recovery::Retry)
            }
            "CrashLoopBackOff" => {
                let problem = match container.last_state.as_ref().and_then(terminated) {
                    Some(Problem::OutOfMemory(_)) => Problem::OutOfMemory(memory_limit(pod)),
                    Some(problem) => problem,
                    None => Problem::Failed,
                };
                known(problem, Recovery::Restart, restarting_for(container.restart_count))
            }
            _ => None,
        });
    let has_started = |container: &ContainerStatus| {
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        states.into_iter().flatten().any(|state| state.running.is_some() || state.terminated.is_some())
    };
    waiting.or_else(|| {
        let not_started = status.phase.as_deref() != Some("Running") && !containers(pod).any(has_started);
        not_started.then(|| known(Problem::NotStarted, Recovery::Start, age(started, now).unwrap_or(0.0)))?
    })
}

fn since(condition: Option<&PodCondition>) -> Option<&Time> {
    condition.and_then(|condition| condition.last_transition_time.as_ref())
}

/// The minimum number of seconds since a container first failed, by its restarts: its conditions change with each of
/// them, but the back-off is known: none, 10 seconds, and twice as long each time
/// (<https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>).
fn restarting_for(restarts: i32) -> f64 {
    10.0 * (2_f64.powi(restarts.clamp(1, 6) - 1) - 1.0)
}

/// The reason for which a pod failed.
fn failure(pod: &Pod) -> Problem {
    let status = pod.status.as_ref();
    match status.and_then(|status| status.reason.as_deref()) {
        Some("Evicted") => return Problem::Evicted,
        Some("DeadlineExceeded") => return Problem::DeadlineExceeded,
        _ => {}
    }
    let problems = containers(pod).filter_map(|container| {
        let last = container.last_state.as_ref().and_then(terminated);
        container.state.as_ref().and_then(terminated).or(last)
    });
    match problems.max_by_key(|problem| matches!(problem, Problem::OutOfMemory(_))) {
        Some(Problem::OutOfMemory(_)) => Problem::OutOfMemory(memory_limit(pod)),
        Some(problem) => problem,
        None => Problem::Failed,
    }
}

fn terminated(state: &ContainerState) -> Option<Problem> {
    let end = state.terminated.as_ref()?;
    match (end.reason.as_deref(), end.exit_code) {
        (Some("OOMKilled"), _) => Some(Problem::OutOfMemory(None)),
        (_, 0) => None,
        (_, code) => Some(Problem::ExitCode(code)),
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

/// The resource that nodes lack, by the scheduler's message: "0/3 nodes are available: 3 Insufficient cpu. …"
fn lacking(message: &str) -> Option<String> {
    let rest = message.split("Insufficient ").nth(1)?;
    let resource = rest.split(|c: char| !(c.is_ascii_alphanumeric() || "./-".contains(c))).next()?;
    Some(resource.trim_end_matches(['.', ',']).to_owned()).filter(|resource| !resource.is_empty())
}
