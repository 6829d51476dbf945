//! A stand-in for operator-engine: takes jobs from the database and runs each as a chain of Kubernetes Jobs whose
//! containers are processes of this machine (docs/contract/engine.md).
//!
//! It keeps the real engine's faults: a Job that fails is waited for without end, a workflow that it cannot read costs
//! a slot, and a job that it had when it was stopped is orphaned.

mod algorithm;
mod chain;
mod configure;
mod database;
mod fetch;
mod files;
mod kubelet;
mod objects;
mod options;
pub mod process;
mod publish;
mod steps;
mod workflow;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};

use crate::chain::{Shared, every};
use crate::database::Database;
use crate::fetch::Fetcher;
use crate::files::FileServer;
pub use crate::options::{Cluster, Options};

/// The number of jobs that an engine runs at a time.
const MAX_JOBS: usize = 10;

/// Makes ring the process's crypto provider, unless it has one. The HTTP clients here need that.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Maximum time until the environment is announced.
const ANNOUNCEMENT_LIMIT: Duration = Duration::from_secs(30);

/// A running engine. Dropping it kills the algorithms that it runs, and orphans its jobs.
///
/// The pods of an engine that was stopped stay as they last were: one that ran is Running for ever, like an algorithm
/// that hangs. An engine that is started later does not continue its jobs.
pub struct Engine {
    host: String,
    task: JoinHandle<()>,
    /// Its drop is what stops the task.
    stop: oneshot::Sender<()>,
}

impl Engine {
    /// Starts taking jobs, and returns once the environment is announced. The schema and the namespace must exist.
    ///
    /// # Errors
    /// If the directory cannot be used, nothing can listen on the loopback address, or the environment cannot be announced.
    pub async fn start(options: Options, client: kube::Client) -> anyhow::Result<Self> {
        install_tls();
        // An earlier engine's jobs: nobody continues them.
        let work = options.directory.join("work");
        if work.exists() {
            fs::remove_dir_all(&work).with_context(|| work.display().to_string())?;
        }
        fs::create_dir_all(&work).with_context(|| work.display().to_string())?;
        let files = FileServer::start(&options.directory).await.context("the engine's file server")?;
        let host = files.host();
        let shared = Arc::new(Shared {
            database: Database::new(options.database.clone()),
            client,
            http: Fetcher::new()?,
            files,
            current_jobs: AtomicUsize::new(0),
            options,
        });
        let (stop, stopped) = oneshot::channel();
        let (announced, announcement) = oneshot::channel();
        let task = tokio::spawn(run(shared, announced, stopped));
        let announcement = tokio::time::timeout(ANNOUNCEMENT_LIMIT, announcement).await;
        announcement.context("the engine could not announce its environment")??;
        Ok(Self { host, task, stop })
    }

    /// The `host:port` that results are served from.
    #[must_use]
    pub fn file_host(&self) -> &str {
        &self.host
    }

    /// Stops taking jobs and kills those that run: their rows stay as they are, as the real engine leaves them.
    pub async fn stop(self) {
        drop(self.stop);
        let _ = self.task.await;
    }
}

/// The engine's main loop. Reports its first announcement.
async fn run(shared: Arc<Shared>, announced: oneshot::Sender<()>, mut stopped: oneshot::Receiver<()>) {
    let mut announced = Some(announced);
    let options = &shared.options;
    let mut jobs = JoinSet::new();
    let mut tick = every(options.interval);
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            Some(_) = jobs.join_next() => continue,
            _ = tick.tick() => {}
        }
        let current = shared.current_jobs.load(Ordering::SeqCst);
        let announcement = json!({
            "id": options.namespace,
            "cpuNumber": "1",
            "cpuType": std::env::consts::ARCH,
            "gpuNumber": "0",
            "gpuType": "",
            "ramGB": "1",
            "diskGB": "1",
            "priceMin": "0",
            "desc": "devstack: algorithms run as processes of this machine",
            "currentJobs": current,
            "maxJobs": MAX_JOBS.to_string(),
            "consumerAddress": options.consumer_address,
            "storageExpiry": "0",
            "maxJobDuration": options.max_job_duration.as_secs().to_string(),
        });
        let free = MAX_JOBS.saturating_sub(current);
        let taken = match shared.database.announce(&options.namespace, &announcement, free).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "could not announce");
                continue;
            }
        };
        if let Some(announced) = announced.take() {
            announced.send(()).ok();
        }
        for id in taken {
            shared.current_jobs.fetch_add(1, Ordering::SeqCst);
            let shared = shared.clone();
            jobs.spawn(async move {
                tracing::info!(job = id, "taken");
                match steps::run(&shared, &id).await {
                    Ok(()) => {
                        shared.current_jobs.fetch_sub(1, Ordering::SeqCst);
                    }
                    Err(error) => tracing::error!(job = id, "failed, and its slot is lost: {error:#}"),
                }
            });
        }
    }
    jobs.shutdown().await;
}
