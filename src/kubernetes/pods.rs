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
    /// It failed for an unknown reason.
    Failed,
    /// Its image cannot be pulled.
    ImagePull,
    /// The name of its image is invalid.
    InvalidImageName,
    /// Its container cannot be created.
    ContainerCreation,
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
}

/// The seconds since a time; 0 if it is in the future, `None` if there is none.
pub(super) fn age(time: Option<&Time>, now: Timestamp) -> Option<f64> {
    time.map(|time| now.duration_since(time.0).as_secs_f64().max(0.0))
}

/// The problem of a step's youngest pod, if it has one, how it may end without intervention, and for how many seconds
/// it has lasted.
pub(super) fn pod_problem(pod: &Pod, now: Timestamp) -> Option<(Problem, Recovery, f64)> {
    let status = pod.status.as_ref()?;
    let pod_age = || age(status.start_time.as_ref().or(pod.metadata.creation_timestamp.as_ref()), now).unwrap_or(0.0);
    let condition = |name: &str| {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|condition| condition.type_ == name && condition.status == "False")
    };
    let since = |condition: Option<&PodCondition>| {
        age(condition.and_then(|condition| condition.last_transition_time.as_ref()), now).unwrap_or_else(pod_age)
    };
    let ready = condition("ContainersReady").or_else(|| condition("Ready"));
    match status.phase.as_deref() {
        Some("Succeeded") => return None,
        Some("Failed") => {
            let ended = containers(pod).filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
            let not_ready = ready.and_then(|condition| condition.last_transition_time.as_ref());
            // Without a time of failure: the pod may have run for hours before it failed.
            let seconds = age(ended.max().or(not_ready), now).unwrap_or(0.0);
            return Some((failure(pod), Recovery::Retry, seconds));
        }
        _ => {}
    }
    if let Some(unscheduled) = condition("PodScheduled")
        && unscheduled.reason.as_deref() == Some("Unschedulable")
    {
        let lacks = unscheduled.message.as_deref().and_then(lacking);
        return Some((Problem::Unschedulable(lacks), Recovery::Capacity, since(Some(unscheduled))));
    }
    let not_ready = || since(ready);
    containers(pod).find_map(|container| {
        let reason = container.state.as_ref()?.waiting.as_ref()?.reason.as_deref()?;
        let (problem, recovery, seconds) = match reason {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "ImageInspectError" | "RegistryUnavailable" => {
                (Problem::ImagePull, Recovery::Retry, not_ready())
            }
            "InvalidImageName" => (Problem::InvalidImageName, Recovery::None, not_ready()),
            "CreateContainerConfigError" | "CreateContainerError" | "RunContainerError" => {
                (Problem::ContainerCreation, Recovery::Retry, not_ready())
            }
            "CrashLoopBackOff" => {
                let problem = container.last_state.as_ref().and_then(terminated).unwrap_or(Problem::Failed);
                (problem, Recovery::Restart, restarting_for(container.restart_count))
            }
            _ => return None,
        };
        let problem = match problem {
            Problem::OutOfMemory(_) => Problem::OutOfMemory(memory_limit(pod)),
            problem => problem,
        };
        Some((problem, recovery, seconds))
    })
}

/// The minimum number of seconds since a container first failed, by its restarts: its conditions change with each of
/// them, but the back-off is known: none, 10 seconds, and twice as long each time
/// (<https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy>).
fn restarting_for(restarts: i32) -> f64 {
    10.0 * (2_f64.powi(restarts.clamp(1, 6) - 1) - 1.0)
}

/// The reason for which a pod failed.
pub(super) fn failure(pod: &Pod) -> Problem {
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
