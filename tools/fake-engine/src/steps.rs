//! One job's steps from status 20 to 70 (docs/contract/engine.md, "Job states").

use std::path::Path;
use std::pin::pin;
use std::time::Instant;

use anyhow::{Context, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::chain::{Chain, Exit, POLL, Shared, Volume, every};
use crate::kubelet;
use crate::objects::{self, Step};
use crate::options::Cluster;
use crate::workflow::Workflow;

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

    /// One step: creates its Job, runs its container, and polls the Job until it has succeeded or is gone. Deletes it.
    async fn step(&self, step: Step, log: &Path) -> anyhow::Result<()> {
        let external = self.shared.options.cluster == Cluster::External;
        let name = step.job_name(self.id);
        self.create(&objects::job(self.id, step, &self.workflow, external)?).await;

        // Whether the container's own end counts: a suspended Job never succeeds.
        let mut container = pin!(async {
            if external {
                return kubelet::work(self, step, log).await == Exit::Done;
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
