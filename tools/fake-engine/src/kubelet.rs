//! The kubelet's part of a step: its container's work and, for fake-kubernetes, the status and the log of its pods.

use std::fs;
use std::future;
use std::io::SeekFrom;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use axum::http::Request;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::chain::{Chain, Exit, POLL, every};
use crate::objects::{CONTAINER, Step, quantity};
use crate::{algorithm, configure, publish};

/// Bytes of a log that are copied at a time, and in all: kubelets keep 10 MiB.
const LOG_CHUNK: u64 = 256 * 1024;
const LOG_LIMIT: u64 = 10 * 1024 * 1024;
/// The longest pause between two restarts.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Does the work of a step within its Job's pod: again after a failure if failed containers are restarted, and in
/// another pod if this one is evicted or deleted. Returns when the work has ended or the Job is deleted.
pub(super) async fn run(chain: &Chain<'_>, step: Step, log: &Path) {
    let kubelet = Kubelet { chain, step, log };
    loop {
        match kubelet.appear().await {
            Ok(pod) => {
                if kubelet.live(&pod).await.is_some() {
                    return;
                }
                // An evicted one stays.
                if let Ok(Some(found)) = chain.api::<Pod>().get_opt(&pod.name_any()).await
                    && is_terminating(&found)
                {
                    kubelet.remove(&found).await;
                }
            }
            Err(JobState::Failed) => return,
            Err(_) => return kubelet.remove_all().await,
        }
    }
}

/// What the container of a step does. Dropping it kills its processes.
pub(super) async fn work(chain: &Chain<'_>, step: Step, log: &Path) -> Exit {
    match step {
        Step::Configure => configure::run(chain, log).await,
        Step::Algorithm => algorithm::run(chain, log).await,
        Step::Filter => algorithm::filter(chain, log).await,
        Step::Publish => publish::run(chain, log).await,
    }
}

/// What a step's Job wants.
#[derive(PartialEq, Eq)]
enum JobState {
    /// A pod that runs.
    Active,
    /// Nothing more: its condition Failed is true.
    Failed,
    /// Nothing more: it is deleted, or about to be.
    Deleted,
}

struct Kubelet<'a> {
    chain: &'a Chain<'a>,
    step: Step,
    log: &'a Path,
}

/// The parts of a container's status beside its state.
struct Container {
    started: String,
    restarts: u32,
    last: Value,
}

impl Kubelet<'_> {
    async fn job_state(&self) -> JobState {
        match self.chain.api::<Job>().get_opt(&self.step.job_name(self.chain.id)).await {
            Ok(None) => JobState::Deleted,
            Ok(Some(job)) if job.metadata.deletion_timestamp.is_some() => JobState::Deleted,
            Ok(Some(job)) if has_failed(&job) => JobState::Failed,
            _ => JobState::Active,
        }
    }

    async fn pods(&self) -> Vec<Pod> {
        let selector = ListParams::default().labels(&self.step.selector(self.chain.id));
        self.chain.api().list(&selector).await.map(|pods| pods.items).unwrap_or_default()
    }

    /// Removes a pod at once, as a kubelet does when its processes have ended.
    async fn remove(&self, pod: &Pod) {
        let _ = self.chain.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
    }

    async fn remove_all(&self) {
        for pod in self.pods().await {
            self.remove(&pod).await;
        }
    }

    /// Waits for the pod that the Job controller creates.
    async fn appear(&self) -> Result<Pod, JobState> {
        let mut tick = every(POLL / 10);
        loop {
            tick.tick().await;
            if let Some(pod) = self.pods().await.into_iter().find(|pod| !is_terminating(pod) && !has_ended(pod)) {
                return Ok(pod);
            }
            match self.job_state().await {
                JobState::Active => {}
                state => return Err(state),
            }
        }
    }

    /// One pod's life; `None` if the pod or its Job was deleted, or the pod was evicted.
    async fn live(&self, pod: &Pod) -> Option<()> {
        if let Some(message) = unschedulable(pod) {
            let condition = json!({
                "type": "PodScheduled", "status": "False", "lastTransitionTime": now(),
                "reason": "Unschedulable", "message": message,
            });
            self.patch(pod, json!({"phase": "Pending", "conditions": [condition]})).await;
            return self.undisturbed(pod, &mut 0, future::pending()).await;
        }
        let mut container = Container { started: now(), restarts: 0, last: json!({}) };
        let image = image(pod);
        if image.split([':', '@']).next().is_some_and(|name| name.ends_with("does-not-exist")) {
            let message = format!("Back-off pulling image \"{image}\"");
            let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": message}});
            self.report(pod, "Pending", &waiting, &container).await;
            return self.undisturbed(pod, &mut 0, future::pending()).await;
        }
        loop {
            // Each run has a log of its own.
            let _ = fs::remove_file(self.log);
            self.put_log(pod, Vec::new(), false).await;
            let mut copied = 0;
            let started = now();
            self.report(pod, "Running", &json!({"running": {"startedAt": started}}), &container).await;
            let exit = self.undisturbed(pod, &mut copied, work(self.chain, self.step, self.log)).await?;
            while self.copy_log(pod, &mut copied).await {}
            let (code, reason) = match exit {
                Exit::Done => (0, "Completed"),
                Exit::Failed(code) => (code, "Error"),
                Exit::OutOfMemory => (137, "OOMKilled"),
            };
            let terminated = json!({"terminated": {
                "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now(),
            }});
            if code == 0 {
                self.report(pod, "Succeeded", &terminated, &container).await;
                return Some(());
            }
            let Some(pause) = self.chain.shared.options.restart_pause else {
                // Before the pod's own end: the Job controller would replace the pod.
                self.fail_job(&container.started).await;
                self.report(pod, "Failed", &terminated, &container).await;
                return Some(());
            };

            // Only the container has ended; the pod goes on.
            self.report(pod, "Running", &terminated, &container).await;
            container.last = terminated;
            if container.restarts > 0 {
                let pause = (pause * 2_u32.pow(container.restarts - 1)).min(LONGEST_PAUSE);
                let message =
                    format!("back-off {pause:?} restarting failed container={CONTAINER} pod={}", pod.name_any());
                let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}});
                self.report(pod, "Running", &waiting, &container).await;
                self.undisturbed(pod, &mut copied, tokio::time::sleep(pause)).await?;
            }
            container.restarts += 1;
        }
    }

    /// Continues with the work while Job and pod exist, and copies the log meanwhile.
    async fn undisturbed<T>(&self, pod: &Pod, copied: &mut u64, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        let mut tick = every(POLL);
        loop {
            tokio::select! {
                done = &mut work => return Some(done),
                _ = tick.tick() => {}
            }
            match self.chain.api::<Pod>().get_opt(&pod.name_any()).await {
                Ok(None) => return None,
                Ok(Some(found)) if is_terminating(&found) || has_ended(&found) => return None,
                _ => {}
            }
            // The pod of a Job that fails is deleted by the Job controller.
            if self.job_state().await == JobState::Deleted {
                return None;
            }
            self.copy_log(pod, copied).await;
        }
    }

    /// Writes the status of a pod that has a node.
    async fn report(&self, pod: &Pod, phase: &str, state: &Value, container: &Container) {
        let running = state.get("running").is_some();
        let condition = |kind: &str, met: bool, since: &str| {
            let status = if met { "True" } else { "False" };
            json!({"type": kind, "status": status, "lastTransitionTime": since})
        };
        let now = now();
        let status = json!({
            "phase": phase,
            "startTime": container.started,
            "conditions": [
                condition("Initialized", true, &container.started),
                condition("Ready", running, &now),
                condition("ContainersReady", running, &now),
                condition("PodScheduled", true, &container.started),
            ],
            "containerStatuses": [{
                "name": CONTAINER,
                "image": image(pod),
                "imageID": "",
                "ready": running,
                "started": running,
                "restartCount": container.restarts,
                "state": state,
                "lastState": container.last,
            }],
        });
        self.patch(pod, status).await;
    }

    async fn patch(&self, pod: &Pod, status: Value) {
        let patch = Patch::Merge(json!({"status": status}));
        let patched = self.chain.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
        self.chain.note(patched.err());
    }

    /// Ends the Job, as the Job controller does after too many failures.
    async fn fail_job(&self, started: &str) {
        let now = now();
        let condition = |kind: &str| {
            json!({
                "type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now,
                "reason": "BackoffLimitExceeded", "message": "Job has reached the specified backoff limit",
            })
        };
        let patch = Patch::Merge(json!({"status": {
            "startTime": started, "active": 0, "ready": 0, "failed": 1, "uncountedTerminatedPods": {},
            "conditions": [condition("FailureTarget"), condition("Failed")],
        }}));
        let name = self.step.job_name(self.chain.id);
        self.chain.note(self.chain.api::<Job>().patch_status(&name, &PatchParams::default(), &patch).await.err());
    }

    /// Copies what the log has gained to the cluster; returns whether there may be more.
    async fn copy_log(&self, pod: &Pod, copied: &mut u64) -> bool {
        match read_from(self.log, *copied).await {
            Ok(bytes) if !bytes.is_empty() && *copied < LOG_LIMIT => {
                *copied += bytes.len() as u64;
                self.put_log(pod, bytes, true).await;
                true
            }
            _ => false,
        }
    }

    /// Writes a log to fake-kubernetes, which has a route of its own for it.
    async fn put_log(&self, pod: &Pod, bytes: Vec<u8>, append: bool) {
        let (namespace, name) = (&self.chain.shared.options.namespace, pod.name_any());
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/log?append={append}");
        if let Ok(request) = Request::put(path).header("content-type", "text/plain").body(bytes)
            && let Err(error) = self.chain.shared.client.request_text(request).await
        {
            tracing::warn!(job = self.chain.id, %error, "could not copy the log");
        }
    }
}

async fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut bytes = Vec::new();
    file.take(LOG_CHUNK).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn has_ended(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn has_failed(job: &Job) -> bool {
    let mut conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.any(|condition| condition.type_ == "Failed" && condition.status == "True")
}

fn image(pod: &Pod) -> String {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    container.and_then(|container| container.image.clone()).unwrap_or_default()
}

/// Why this machine cannot take the pod, in the scheduler's words; `None` if it can.
fn unschedulable(pod: &Pod) -> Option<String> {
    let cores = f64::from(u32::try_from(std::thread::available_parallelism().ok()?.get()).ok()?);
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim().replace(" kB", "Ki");
    let requests = pod.spec.as_ref()?.containers.first()?.resources.as_ref()?.requests.as_ref()?;
    let short = |name: &str, available: f64| {
        (quantity(&requests.get(name)?.0)? > available).then(|| format!("1 Insufficient {name}"))
    };
    let reasons: Vec<String> =
        [short("cpu", cores), short("memory", quantity(&memory)?)].into_iter().flatten().collect();
    (!reasons.is_empty()).then(|| format!("0/1 nodes are available: {}.", reasons.join(", ")))
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
