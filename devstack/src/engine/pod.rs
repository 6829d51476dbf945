//! The kubelet's part, and on a bare API server the controllers' part: a step's pod, its state, its log.

use std::{io::SeekFrom, path::Path, pin::pin};

use axum::http::Request;
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

/// How a pod's work ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// With exit code 0.
    Done,
    /// With another, or by a signal (128 and its number).
    Failed(i32),
    /// The Job went away under it.
    Gone,
}

/// The pod of a step.
pub(super) struct Pod<'a> {
    pub(super) chain: &'a Chain<'a>,
    pub(super) component: Component,
    pub(super) log: &'a Path,
}

impl Pod<'_> {
    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.chain.shared.client.clone(), &self.chain.shared.options.namespace)
    }

    fn pods(&self) -> Api<v1::Pod> {
        Api::namespaced(self.chain.shared.client.clone(), &self.chain.shared.options.namespace)
    }

    fn cluster(&self) -> Cluster {
        self.chain.shared.options.cluster
    }

    /// Does the work within the pod. Ends when the work has ended, or when the Job is about to go or gone:
    /// then the work is dropped, and with it its processes.
    pub(super) async fn play(self, work: impl Future<Output = Exit>) -> Exit {
        let Some(pod) = self.appear().await else {
            return self.gone().await;
        };
        let image_missing =
            self.component == Component::Algorithm
                && self.chain.workflow.image().is_ok_and(|image| {
                    image.split([':', '@']).next().is_some_and(|name| name.ends_with("does-not-exist"))
                });
        let started = now();
        if image_missing {
            let waiting = json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
            self.report(&pod, "Pending", &waiting, &started).await;
        } else {
            self.report(&pod, "Running", &json!({"running": {"startedAt": started}}), &started).await;
        }

        let mut work = pin!(work);
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sent = 0;
        let exit = loop {
            tokio::select! {
                exit = &mut work, if !image_missing => break exit,
                _ = tick.tick() => {
                    if self.is_going().await {
                        return self.gone().await;
                    }
                    self.send_log(&pod, &mut sent).await;
                }
            }
        };
        while self.send_log(&pod, &mut sent).await {}
        let code = match exit {
            Exit::Failed(code) => code,
            _ => 0,
        };
        let (phase, reason) = if code == 0 { ("Succeeded", "Completed") } else { ("Failed", "Error") };
        let terminated = json!({
            "exitCode": code, "reason": reason, "startedAt": started, "finishedAt": now(),
        });
        // With a container that fails again and again, the controller gives the Job up after six restarts. That is
        // brought forward here, and said before the pod's own end: a pod that fails is replaced.
        if code != 0 || self.cluster() != Cluster::Embedded {
            self.report_job(code == 0, &started).await;
        }
        self.report(&pod, phase, &json!({"terminated": terminated}), &started).await;
        exit
    }

    /// Waits for the Job's pod, or makes it where there is no controller that does. `None` if the Job goes before.
    async fn appear(&self) -> Option<v1::Pod> {
        let mut tick = tokio::time::interval(POLL / 10);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.cluster() {
                Cluster::Embedded => {
                    if let Some(pod) = self.find().await {
                        return Some(pod);
                    }
                }
                Cluster::Bare => match self.make().await {
                    Ok(pod) => return Some(pod),
                    Err(problem) => {
                        tracing::warn!(job = self.chain.id, problem, "could not make a pod");
                    }
                },
                // Nothing is to be scheduled there, so there is none.
                Cluster::Foreign => return Some(v1::Pod::default()),
            }
            if self.is_going().await {
                return None;
            }
        }
    }

    async fn find(&self) -> Option<v1::Pod> {
        let selector = ListParams::default().labels(&self.component.selector(self.chain.id));
        let pods = self.pods().list(&selector).await.ok()?;
        pods.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none())
    }

    async fn make(&self) -> Result<v1::Pod, String> {
        let name = self.component.job_name(self.chain.id);
        let job = self.jobs().get(&name).await.map_err(|error| error.to_string())?;
        let pod = objects::pod_of(&job).map_err(|error| error.to_string())?;
        self.pods().create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())
    }

    /// Whether the Job is gone, or on its way.
    async fn is_going(&self) -> bool {
        match self.jobs().get(&self.component.job_name(self.chain.id)).await {
            Ok(job) => job.metadata.deletion_timestamp.is_some(),
            Err(kube::Error::Api(status)) => status.is_not_found(),
            Err(_) => false,
        }
    }

    async fn gone(&self) -> Exit {
        collect(self.chain, self.component).await;
        Exit::Gone
    }

    /// Writes the pod's status, as a kubelet does.
    async fn report(&self, pod: &v1::Pod, phase: &str, state: &Value, started: &str) {
        if self.cluster() == Cluster::Foreign {
            return;
        }
        let running = phase == "Running";
        let image =
            pod.spec.as_ref().and_then(|spec| spec.containers.first()).and_then(|container| container.image.clone());
        let ready = if running { "True" } else { "False" };
        let condition = |kind: &str| json!({"type": kind, "status": ready, "lastTransitionTime": now()});
        let status = json!({"status": {
            "phase": phase,
            "startTime": started,
            "conditions": [condition("Ready"), condition("ContainersReady")],
            "containerStatuses": [{
                "name": "workflow-executor",
                "image": image.unwrap_or_default(),
                "imageID": "",
                "ready": running,
                "started": running,
                "restartCount": 0,
                "state": state,
            }],
        }});
        let patched = self.pods().patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await;
        if let Err(error) = patched {
            tracing::warn!(job = self.chain.id, phase, %error, "could not write the pod's status");
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

    /// Hands on what the log has gained; says whether there may be more. A real kubelet answers for logs itself; the embedded
    /// cluster has a door of its own for them.
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
        let path = format!(
            "/api/v1/namespaces/{}/pods/{}/log?append=true",
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
