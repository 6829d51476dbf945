//! What has become of the steps of a job, told from its Kubernetes Jobs and their pods. Pure.

use k8s_openapi::api::batch::v1::{Job as EngineJob, JobStatus};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use super::Component;
use crate::job::JobId;

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
    let job_id = JobId::parse(job.labels().get("workflow")?)?;
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
    match status.phase.as_deref() {
        Some("Succeeded") => return None,
        Some("Failed") => {
            let ended = containers(pod).filter_map(|it| it.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
            let seconds = age(ended.max(), now).unwrap_or_else(begun);
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
    let not_ready = || since(condition("ContainersReady").or_else(|| condition("Ready")));
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
