//! One job's steps from status 20 to 70 (docs/contract/engine.md, "Job states").

use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Resource;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::objects::{self, Step};
use crate::workflow::Workflow;
use crate::{Cluster, Shared, algorithm, configure, every, kubelet, publish};

/// Time between two looks at a Job. The real engine's is 5 s.
pub(super) const POLL: Duration = Duration::from_millis(300);

/// A kind of object that the engine creates.
pub(super) trait Object:
    Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize
{
}

impl<K> Object for K where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned + Serialize
{
}

/// How a container ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// With exit code 0.
    Done,
    /// With another, or by a signal (128 and its number).
    Failed(i32),
    /// It was killed for the memory that it used.
    OutOfMemory,
}

/// The directory of a job's volumes, removed when the job's task ends.
pub(super) struct Volume(PathBuf);

impl Volume {
    fn create(path: PathBuf) -> io::Result<Self> {
        for directory in ["data/inputs", "data/logs", "data/outputs", "adminlogs"] {
            fs::create_dir_all(path.join(directory))?;
        }
        Ok(Self(path))
    }

    /// What the algorithm knows as VOLUME.
    pub(super) fn data(&self, path: &str) -> PathBuf {
        self.0.join("data").join(path)
    }

    /// The log of a step that the algorithm must not see.
    pub(super) fn adminlog(&self, name: &str) -> PathBuf {
        self.0.join("adminlogs").join(name)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(%error, "could not remove a job's working directory");
        }
    }
}

/// A job that runs.
pub(super) struct Chain<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: &'a str,
    pub(super) workflow: Workflow,
    pub(super) volume: Volume,
}

/// Runs the job of that id to its end, or for as long as one of its Jobs has neither succeeded nor been deleted.
pub(super) async fn run(shared: &Shared, id: &str) -> anyhow::Result<()> {
    let database = &shared.database;
    let text = database.workflow(id).await?;
    let Some(workflow) = text.map(|text| Workflow::parse(&text)).transpose()?.flatten() else {
        tracing::error!(job = id, "its workflow is empty or not an object");
        return Ok(());
    };
    // It becomes part of file names here.
    ensure!(!id.is_empty() && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'), "its id is no name");
    if database.status(id).await? > 10 {
        tracing::error!(job = id, "it runs already");
        return Ok(());
    }
    let volume = Volume::create(shared.options.directory.join("work").join(id)).context("its working directory")?;
    let chain = Chain { shared, id, workflow, volume };
    chain.rest().await;
    chain.set_status(20).await;
    chain.create_volumes().await?;

    chain.step(Step::Configure, &chain.volume.adminlog("configure.log")).await?;
    let provisioned = database.status(id).await? == 30;
    if provisioned {
        chain.set_status(40).await;
        chain.step(Step::Algorithm, &chain.volume.data("logs/algorithm.log")).await?;
    }
    // As in the real engine, also where nothing was provisioned: such a job ends with 50.
    if shared.options.filter.is_some() {
        chain.set_status(50).await;
        chain.step(Step::Filter, &chain.volume.data("logs/filter.log")).await?;
    }
    if provisioned {
        chain.set_status(60).await;
    }
    chain.step(Step::Publish, &chain.volume.adminlog("publish.log")).await?;
    if provisioned {
        chain.set_status(70).await;
    }
    database.set_finished(id).await;
    chain.delete_volumes().await;
    Ok(())
}

impl Chain<'_> {
    pub(super) fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.shared.client.clone(), &self.shared.options.namespace)
    }

    async fn rest(&self) {
        tokio::time::sleep(self.shared.options.pace).await;
    }

    pub(super) async fn set_status(&self, status: i32) {
        tracing::info!(job = self.id, status);
        self.shared.database.set_status(self.id, status).await;
        self.rest().await;
    }

    /// Creates ConfigMap and claims. Like the real engine, it goes on if the cluster refuses them.
    async fn create_volumes(&self) -> anyhow::Result<()> {
        self.create(&objects::config_map(self.id, &self.workflow)?).await;
        for name in ["data", "adminlogs"] {
            self.create(&objects::claim(&format!("{}-{name}", self.id))?).await;
        }
        Ok(())
    }

    async fn delete_volumes(&self) {
        for name in ["adminlogs", "data"] {
            self.delete::<PersistentVolumeClaim>(&format!("{}-{name}", self.id)).await;
        }
        self.delete::<ConfigMap>(self.id).await;
    }

    async fn create(&self, object: &impl Object) {
        self.note(self.api().create(&PostParams::default(), object).await.err());
    }

    async fn delete<K: Object>(&self, name: &str) {
        let how = match self.shared.options.cluster {
            Cluster::Embedded => DeleteParams::foreground().grace_period(0),
            // Nothing depends on what is there, and an API server alone would never finish a foreground deletion.
            Cluster::External => DeleteParams::background(),
        };
        self.note(self.api::<K>().delete(name, &how).await.err());
    }

    /// Logs an error, unless the object was created or deleted a moment ago.
    pub(super) fn note(&self, error: Option<kube::Error>) {
        match error {
            Some(kube::Error::Api(status)) if status.is_not_found() || status.is_already_exists() => {}
            Some(error) => tracing::warn!(job = self.id, %error, "the cluster refused"),
            None => {}
        }
    }

    /// One step: creates its Job, runs its container, and polls the Job until it has succeeded or is gone. Deletes it.
    async fn step(&self, step: Step, log: &Path) -> anyhow::Result<()> {
        let external = self.shared.options.cluster == Cluster::External;
        let name = step.job_name(self.id);
        self.create(&objects::job(self.id, step, &self.workflow, external)?).await;

        // Whether the container's own end counts: a suspended Job never succeeds.
        let mut container = pin!(async {
            if external {
                return self.work(step, log).await == Exit::Done;
            }
            kubelet::run(self, step, log).await;
            false
        });
        let mut ended = false;
        let mut tick = every(POLL);
        let started = Instant::now();
        loop {
            tokio::select! {
                done = &mut container, if !ended => {
                    ended = true;
                    if done {
                        break;
                    }
                }
                _ = tick.tick() => {
                    match self.api::<Job>().get(&name).await {
                        Ok(job) if job.status.as_ref().is_some_and(|status| status.succeeded > Some(0)) => break,
                        Ok(job) if external && job.metadata.deletion_timestamp.is_some() => {
                            // An API server alone has no controller that would do this.
                            let finalizers = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                            self.note(self.api::<Job>().patch(&name, &PatchParams::default(), &finalizers).await.err());
                            break;
                        }
                        Err(kube::Error::Api(status)) if status.is_not_found() => break,
                        _ => {}
                    }
                    if step == Step::Algorithm && self.should_stop(started).await {
                        break;
                    }
                }
            }
        }
        self.delete::<Job>(&name).await;
        Ok(())
    }

    /// What the container of a step does. Dropping it kills its processes.
    pub(super) async fn work(&self, step: Step, log: &Path) -> Exit {
        match step {
            Step::Configure => configure::run(self, log).await,
            Step::Algorithm => algorithm::run(self, log).await,
            Step::Filter => algorithm::filter(self, log).await,
            Step::Publish => publish::run(self, log).await,
        }
    }

    /// Whether the algorithm has reached its time limit, or a stop is requested.
    async fn should_stop(&self, started: Instant) -> bool {
        if started.elapsed().as_secs() > self.shared.options.max_job_duration.as_secs() {
            tracing::info!(job = self.id, "the algorithm has reached its time limit");
            self.shared.database.set_timed_out(self.id).await;
            return true;
        }
        self.shared.database.stop_requested(self.id).await
    }
}
