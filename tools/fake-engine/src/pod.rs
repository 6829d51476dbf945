//! The kubelet's part, and on a bare API server the controllers' part: a step's pod, its state, its log.

use std::{future, io::SeekFrom, path::Path, pin::pin, time::Duration};

use axum::http::Request;
use fake_kubernetes::quantity;
use k8s_openapi::api::{batch::v1::Job, core::v1};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use super::{
    Cluster,
    chain::{Chain, POLL},
    objects::{self, Component},
};

/// How much of a log is handed on at a time, and in all: kubelets keep 10 MiB.
const LOG_CHUNK: u64 = 256 * 1024;
const LOG_LIMIT: u64 = 10 * 1024 * 1024;

/// The only container of each pod.
pub(super) const CONTAINER: &str = "workflow-executor";
/// How many restarts a Job bears that does not say. The embedded cluster's Job controller knows this itself.
const BACKOFF_LIMIT: u32 = 6;
/// The longest pause between two restarts.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// How a pod's work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// With exit code 0.
    Done,
    /// With another, or by a signal (128 and its number).
    Failed(i32),
    /// It took more memory than it may.
    OutOfMemory,
    /// The Job went away under it.
    Gone,
}

/// What keeps a pod from going on.
#[derive(Debug, PartialEq, Eq)]
enum Disturbance {
    /// The Job is gone, or on its way.
    JobGoes,
    /// The Job has been given up: its pod is deleted, and there is no other.
    JobFailed,
    /// The pod is gone, or on its way.
    PodDeleted,
    /// Somebody has set its phase to one of the last.
    PodEnded,
}

/// What is told of a pod's container besides its state.
struct Container {
    /// Since when the pod is on its node.
    started: String,
    restarts: u32,
    /// How it ended the last time.
    last: Option<Value>,
}

/// The pod of a step.
pub(super) struct Pod<'a> {
    pub(super) chain: &'a Chain<'a>,
    pub(super) component: Component,
    pub(super) log: &'a Path,
}

impl Pod<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.chain.shared.client.clone(), &self.chain.shared.options.namespace)
    }

    fn jobs(&self) -> Api<Job> {
        self.api()
    }

    fn pods(&self) -> Api<v1::Pod> {
        self.api()
    }

    fn cluster(&self) -> Cluster {
        self.chain.shared.options.cluster
    }

    /// Does the work within the Job's pod, again after a failure if failed containers are restarted, and in another pod
    /// if this one is evicted or deleted. Ends when the work has ended, or when the Job is about to go or gone: then
    /// the work is dropped, and with it its processes.
    pub(super) async fn play(self) -> Exit {
        loop {
            let pod = match self.appear().await {
                Ok(pod) => pod,
                Err(Disturbance::JobFailed) => return Exit::Failed(1),
                Err(_) => return self.gone().await,
            };
            match self.live(&pod).await {
                Ok(exit) => return exit,
                Err(Disturbance::PodDeleted) => self.remove(&pod).await,
                Err(Disturbance::PodEnded) => {}
                Err(Disturbance::JobGoes | Disturbance::JobFailed) => return self.gone().await,
            }
        }
    }

    /// One pod's life.
    async fn live(&self, pod: &v1::Pod) -> Result<Exit, Disturbance> {
        if let Some(message) = self.unschedulable(pod).await {
            let condition = json!({
                "type": "PodScheduled", "status": "False", "lastTransitionTime": now(),
                "reason": "Unschedulable", "message": message,
            });
            self.patch(pod, json!({"phase": "Pending", "conditions": [condition]})).await;
            return self.undisturbed(pod, &mut 0, future::pending()).await;
        }
        let mut container = Container { started: now(), restarts: 0, last: None };
        if let Some(waiting) = self.not_ready(pod).await {
            let waiting = json!({"waiting": waiting});
            self.report(pod, "Pending", &waiting, &container).await;
            return self.undisturbed(pod, &mut 0, future::pending()).await;
        }
        loop {
            // Each run has a log of its own.
            let _ = tokio::fs::remove_file(self.log).await;
            if container.restarts > 0 {
                self.write_log(pod, Vec::new(), false).await;
            }
            let mut sent = 0;
            let started = now();
            self.report(pod, "Running", &json!({"running": {"startedAt": started}}), &container).await;
            let exit = self.undisturbed(pod, &mut sent, self.chain.work(self.component, self.log)).await?;
            while self.send_log(pod, &mut sent).await {}
            let (code, reason) = match exit {
                Exit::Failed(code) => (code, "Error"),
                Exit::OutOfMemory => (137, "OOMKilled"),
                Exit::Done | Exit::Gone => (0, "Completed"),
            };
            let terminated = json!({"terminated": {
                "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now(),
            }});
            let pause = self.chain.shared.options.restart_pause.filter(|_| self.cluster() != Cluster::Foreign);
            let Some(pause) = pause.filter(|_| code != 0) else {
                // Said before the pod's own end: a pod that fails is replaced.
                if code != 0 || self.cluster() != Cluster::Embedded {
                    self.report_job(code == 0, &container.started).await;
                }
                let phase = if code == 0 { "Succeeded" } else { "Failed" };
                self.report(pod, phase, &terminated, &container).await;
                return Ok(exit);
            };

            // Until it is started again it is only its container that has ended: the pod goes on.
            self.report(pod, "Running", &terminated, &container).await;
            container.last = Some(terminated);
            if container.restarts > 0 {
                let pause = (pause * 2_u32.pow(container.restarts - 1)).min(LONGEST_PAUSE);
                let message =
                    format!("back-off {pause:?} restarting failed container={CONTAINER} pod={}", pod.name_any());
                let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": message}});
                self.report(pod, "Running", &waiting, &container).await;
                self.undisturbed(pod, &mut sent, tokio::time::sleep(pause)).await?;
            }
            container.restarts += 1;
            if self.cluster() == Cluster::Bare && container.restarts >= BACKOFF_LIMIT {
                self.report_job(false, &container.started).await;
                self.remove(pod).await;
                return Ok(exit);
            }
        }
    }

    /// Goes on with something for as long as Job and pod let it, and hands on the log meanwhile.
    async fn undisturbed<T>(
        &self,
        pod: &v1::Pod,
        sent: &mut u64,
        something: impl Future<Output = T>,
    ) -> Result<T, Disturbance> {
        let mut something = pin!(something);
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                done = &mut something => return Ok(done),
                _ = tick.tick() => {
                    self.pod_goes_on(pod).await?;
                    // A Job that fails has its pod deleted, if it has one.
                    match self.job_goes_on().await {
                        Ok(()) | Err(Disturbance::JobFailed) => {}
                        Err(disturbance) => return Err(disturbance),
                    }
                    self.send_log(pod, sent).await;
                }
            }
        }
    }

    /// Why no node can take the pod, in the scheduler's words.
    async fn unschedulable(&self, pod: &v1::Pod) -> Option<String> {
        let claims: Api<v1::PersistentVolumeClaim> = self.api();
        for volume in volumes(pod) {
            let Some(name) = volume.persistent_volume_claim.as_ref().map(|source| &source.claim_name) else {
                continue;
            };
            let problem = match claims.get_metadata_opt(name).await {
                Ok(None) => "not found",
                Ok(Some(claim)) if claim.metadata.deletion_timestamp.is_some() => "is being deleted",
                _ => continue,
            };
            return Some(format!("0/1 nodes are available: persistentvolumeclaim \"{name}\" {problem}."));
        }
        let cores = std::thread::available_parallelism().ok()?.get();
        let memory = std::fs::read_to_string("/proc/meminfo").ok()?;
        let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"))?.trim();
        let memory = quantity::parse(&memory.replace(" kB", "Ki"))?;
        objects::insufficient(pod, f64::from(u32::try_from(cores).ok()?), memory)
    }

    /// What the container waits for on its node: a volume that can't be mounted, or an image that is one of those that
    /// are never found.
    async fn not_ready(&self, pod: &v1::Pod) -> Option<Value> {
        let maps: Api<v1::ConfigMap> = self.api();
        for map in volumes(pod).filter_map(|volume| volume.config_map.as_ref()) {
            if let Ok(None) = maps.get_metadata_opt(&map.name).await {
                return Some(json!({"reason": "ContainerCreating"}));
            }
        }
        let image = self.chain.workflow.image().ok().filter(|_| self.component == Component::Algorithm)?;
        let missing = image.split([':', '@']).next().is_some_and(|name| name.ends_with("does-not-exist"));
        let message = format!("Back-off pulling image \"{image}\"");
        missing.then(|| json!({"reason": "ImagePullBackOff", "message": message}))
    }

    /// Waits for the Job's pod, or makes it where there is no controller that does.
    async fn appear(&self) -> Result<v1::Pod, Disturbance> {
        let mut tick = tokio::time::interval(POLL / 10);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.cluster() {
                Cluster::Embedded => {
                    if let Some(pod) = self.find().await {
                        return Ok(pod);
                    }
                }
                Cluster::Bare => match self.make().await {
                    Ok(pod) => return Ok(pod),
                    Err(problem) => {
                        tracing::warn!(job = self.chain.id, problem, "could not make a pod");
                    }
                },
                // Nothing is to be scheduled there, so there is none.
                Cluster::Foreign => return Ok(v1::Pod::default()),
            }
            self.job_goes_on().await?;
        }
    }

    async fn find(&self) -> Option<v1::Pod> {
        let selector = ListParams::default().labels(&self.component.selector(self.chain.id));
        let pods = self.pods().list(&selector).await.ok()?;
        pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none() && !has_ended(pod))
    }

    async fn make(&self) -> Result<v1::Pod, String> {
        let name = self.component.job_name(self.chain.id);
        let job = self.jobs().get(&name).await.map_err(|error| error.to_string())?;
        let pod = objects::pod_of(&job).map_err(|error| error.to_string())?;
        self.pods().create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())
    }

    /// Whether the Job is there and wants its pod.
    async fn job_goes_on(&self) -> Result<(), Disturbance> {
        match self.jobs().get(&self.component.job_name(self.chain.id)).await {
            Ok(job) if job.metadata.deletion_timestamp.is_some() => Err(Disturbance::JobGoes),
            Ok(job) if has_failed(&job) => Err(Disturbance::JobFailed),
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Disturbance::JobGoes),
            _ => Ok(()),
        }
    }

    /// Whether nobody has deleted the pod or, as an eviction does, declared it ended.
    async fn pod_goes_on(&self, pod: &v1::Pod) -> Result<(), Disturbance> {
        if self.cluster() == Cluster::Foreign {
            return Ok(());
        }
        match self.pods().get(&pod.name_any()).await {
            Ok(found) if found.metadata.deletion_timestamp.is_some() => Err(Disturbance::PodDeleted),
            Ok(found) if has_ended(&found) => Err(Disturbance::PodEnded),
            Err(kube::Error::Api(status)) if status.is_not_found() => Err(Disturbance::PodDeleted),
            _ => Ok(()),
        }
    }

    async fn gone(&self) -> Exit {
        collect(self.chain, self.component).await;
        Exit::Gone
    }

    /// Lets a pod go whose processes have ended.
    async fn remove(&self, pod: &v1::Pod) {
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        let _ = self.pods().delete(&pod.name_any(), &now).await;
    }

    /// Writes the status of a pod that has a node, as a kubelet does.
    async fn report(&self, pod: &v1::Pod, phase: &str, state: &Value, container: &Container) {
        let running = state.get("running").is_some();
        let readiness = match phase {
            _ if running => json!({"status": "True"}),
            "Succeeded" => json!({"status": "False", "reason": "PodCompleted"}),
            "Failed" => json!({"status": "False", "reason": "PodFailed"}),
            _ => json!({
                "status": "False",
                "reason": "ContainersNotReady",
                "message": format!("containers with unready status: [{CONTAINER}]"),
            }),
        };
        let ready = |kind: &str| {
            let mut condition = readiness.clone();
            condition["type"] = kind.into();
            condition["lastTransitionTime"] = now().into();
            condition
        };
        // These hold from the start.
        let holds = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": container.started});
        let status = json!({
            "phase": phase,
            "startTime": container.started,
            "conditions": [
                holds("Initialized"),
                ready("Ready"),
                ready("ContainersReady"),
                holds("PodScheduled"),
            ],
            "containerStatuses": [{
                "name": CONTAINER,
                "image": image(pod),
                "imageID": "",
                "ready": running,
                "started": running,
                "restartCount": container.restarts,
                "state": state,
                "lastState": container.last.clone().unwrap_or_else(|| json!({})),
            }],
        });
        self.patch(pod, status).await;
    }

    async fn patch(&self, pod: &v1::Pod, status: Value) {
        if self.cluster() == Cluster::Foreign {
            return;
        }
        let patch = Patch::Merge(json!({"status": status}));
        match self.pods().patch_status(&pod.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => {}
            // It was deleted a moment ago.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => tracing::warn!(job = self.chain.id, %error, "could not write the pod's status"),
        }
    }

    /// Writes the Job's status, as the Job controller does. Servers since 1.31 check that its parts fit together.
    async fn report_job(&self, succeeded: bool, started: &str) {
        let now = now();
        let condition = |kind: &str, reason: &str, message: &str| {
            json!({
                "type": kind, "status": "True", "reason": reason, "message": message,
                "lastProbeTime": now, "lastTransitionTime": now,
            })
        };
        let status = if succeeded {
            let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
            json!({
                "startTime": started, "completionTime": now, "active": 0, "ready": 0, "succeeded": 1,
                "uncountedTerminatedPods": {},
                "conditions": [
                    condition("SuccessCriteriaMet", reason, message),
                    condition("Complete", reason, message),
                ],
            })
        } else {
            let (reason, message) = ("BackoffLimitExceeded", "Job has reached the specified backoff limit");
            json!({
                "startTime": started, "active": 0, "ready": 0, "failed": 1,
                "uncountedTerminatedPods": {},
                "conditions": [
                    condition("FailureTarget", reason, message),
                    condition("Failed", reason, message),
                ],
            })
        };
        let name = self.component.job_name(self.chain.id);
        let patch = json!({"status": status});
        let patched = self.jobs().patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        if let Err(error) = patched {
            tracing::warn!(job = self.chain.id, %error, "could not write the Job's status");
        }
    }

    /// Hands on what the log has gained; says whether there may be more. A real kubelet answers for logs itself; the
    /// embedded cluster has a door of its own for them.
    async fn send_log(&self, pod: &v1::Pod, sent: &mut u64) -> bool {
        if self.cluster() != Cluster::Embedded || *sent >= LOG_LIMIT {
            return false;
        }
        let Ok(bytes) = read_from(self.log, *sent).await else {
            return false;
        };
        if bytes.is_empty() {
            return false;
        }
        *sent += bytes.len() as u64;
        self.write_log(pod, bytes, true).await
    }

    async fn write_log(&self, pod: &v1::Pod, bytes: Vec<u8>, append: bool) -> bool {
        if self.cluster() != Cluster::Embedded {
            return false;
        }
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?append={append}",
            self.chain.shared.options.namespace,
            pod.name_any()
        );
        let request = Request::put(path).header("content-type", "text/plain").body(bytes);
        let sent = match request {
            Ok(request) => self.chain.shared.client.request_text(request).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::warn!(job = self.chain.id, error, "could not hand on the log");
            return false;
        }
        true
    }
}

fn has_ended(pod: &v1::Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn has_failed(job: &Job) -> bool {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Failed" && condition.status == "True")
}

fn volumes(pod: &v1::Pod) -> impl Iterator<Item = &v1::Volume> {
    pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten())
}

fn image(pod: &v1::Pod) -> String {
    let container = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    container.and_then(|container| container.image.clone()).unwrap_or_default()
}

async fn read_from(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut bytes = Vec::new();
    file.take(LOG_CHUNK).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// What the garbage collector does once a Job is deleted, and the kubelet with pods that are to go.
pub(super) async fn collect(chain: &Chain<'_>, component: Component) {
    let options = &chain.shared.options;
    if options.cluster == Cluster::Foreign {
        return;
    }
    let pods: Api<v1::Pod> = Api::namespaced(chain.shared.client.clone(), &options.namespace);
    let selector = ListParams::default().labels(&component.selector(chain.id));
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    for pod in pods.list(&selector).await.into_iter().flatten() {
        let _ = pods.delete(&pod.name_any(), &now).await;
    }
    if options.cluster == Cluster::Bare {
        let jobs: Api<Job> = Api::namespaced(chain.shared.client.clone(), &options.namespace);
        drop_finalizers(&jobs, &component.job_name(chain.id)).await;
    }
}

/// Lets an object go that waits for controllers which a bare API server lacks.
pub(super) async fn drop_finalizers<K>(api: &Api<K>, name: &str)
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource,
{
    let Ok(object) = api.get_metadata(name).await else {
        return;
    };
    if object.metadata.deletion_timestamp.is_some() {
        let none = json!({"metadata": {"finalizers": null}});
        let _ = api.patch_metadata(name, &PatchParams::default(), &Patch::Merge(&none)).await;
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
