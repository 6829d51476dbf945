//! A stand-in for operator-engine: takes jobs from the database and runs each as a chain of Kubernetes Jobs whose
//! containers are processes of this machine (docs/contract/engine.md).
//!
//! It keeps the real engine's faults: a Job that fails is waited for without end, a workflow that it cannot read costs
//! a slot, and a job that it had when it was stopped is orphaned.

mod algorithm;
mod chain;
mod configure;
mod database;
mod files;
mod kubelet;
mod objects;
pub mod process;
mod publish;
mod steps;
mod workflow;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Interval, MissedTickBehavior};

use crate::database::Database;
use crate::files::FileServer;

/// The number of jobs that an engine runs at a time.
const MAX_JOBS: usize = 10;

/// Makes ring the process's crypto provider, unless it has one. The HTTP clients here need that.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The kind of cluster that the engine works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// fake-kubernetes, which has controllers. The engine plays the kubelet for its own pods.
    Embedded,
    /// Any other API server. The engine's Jobs are created suspended, so that nothing is scheduled there, and run here
    /// all the same; there are no pods and no logs.
    External,
}

/// The settings of an engine.
#[derive(Clone, Debug)]
pub struct Options {
    /// The service's database.
    pub database: PgConnectOptions,
    /// Time between announcements. The real engine's is 5 s.
    pub interval: Duration,
    /// The environment that it announces, which is the namespace that it works in.
    pub namespace: String,
    /// Minimum time that a job stays in each state, so that people can watch.
    pub pace: Duration,
    /// The kind of cluster that the client talks to.
    pub cluster: Cluster,
    /// Directory for the working directories of running jobs and the published files of finished ones.
    pub directory: PathBuf,
    /// Announced; the time limit of an algorithm in whole seconds, whatever the job's own `maxtime`.
    pub max_job_duration: Duration,
    /// Announced: the account that consumers order from.
    pub consumer_address: String,
    /// Whether an algorithm that exits with a code other than 0 succeeds. (The real engine pipes it into `tee`, whose
    /// exit code is the one that the cluster sees.)
    pub ignore_exit_code: bool,
    /// Pause before the second restart of a failed container, doubled before each further one (a kubelet's is 10 s);
    /// the first restart is immediate, and instead of the sixth the Job fails and its pod is deleted. `None`: the Job
    /// fails with its first pod, which stays.
    pub restart_pause: Option<Duration>,
    /// Command line of a filtering step, which may change the outputs before they are published. It starts in the job's
    /// volume with the algorithm's environment. `None`: no such step.
    pub filter: Option<String>,
}

impl Options {
    /// Settings that suit a laptop.
    pub fn new(database: PgConnectOptions, namespace: &str, cluster: Cluster, directory: impl Into<PathBuf>) -> Self {
        Self {
            database,
            interval: Duration::from_millis(500),
            pace: Duration::ZERO,
            namespace: namespace.to_owned(),
            cluster,
            directory: directory.into(),
            max_job_duration: Duration::from_secs(3600),
            consumer_address: "0x0000000000000000000000000000000000000000".to_owned(),
            ignore_exit_code: false,
            restart_pause: None,
            filter: None,
        }
    }
}

/// What all jobs of one engine share.
struct Shared {
    options: Options,
    database: Database,
    client: kube::Client,
    http: configure::Fetcher,
    files: FileServer,
    /// The number of slots in use, those that were lost included.
    current_jobs: AtomicUsize,
}

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
    /// Starts announcing and taking jobs. The schema and the namespace must exist.
    ///
    /// # Errors
    /// If the directory cannot be used, or nothing can listen on the loopback address.
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
            http: configure::Fetcher::new()?,
            files,
            current_jobs: AtomicUsize::new(0),
            options,
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(run(shared, stopped));
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

/// The engine's main loop.
async fn run(shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
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

/// Ticks at that interval; a tick that is missed is not made up for.
fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
