//! A stand-in for operator-engine: takes jobs from the books and runs each for real, as a chain of
//! Kubernetes Jobs, knowing nothing but the database and the cluster's API (contract: `engine.md`).
//!
//! It does what the real one does, the unpleasant parts included: a Job that fails is waited for without end, a
//! document that it can't make sense of costs it a slot, and a job that it had when it was stopped is orphaned.

mod algorithm;
mod books;
mod chain;
mod files;
mod filter;
pub mod local;
mod objects;
mod pod;
pub mod process;
mod provision;
mod publish;

use std::{
    collections::BTreeSet,
    fmt, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tokio::task::{JoinHandle, JoinSet};

use self::{books::Books, files::FileServer};

/// Makes ring the process's crypto provider, unless it has one. The HTTP clients here need that.
pub fn install_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Which cluster the engine works with, and what that cluster leaves for it to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// The embedded one: it has controllers. The engine plays the kubelet for its own pods.
    Embedded,
    /// An API server alone. The engine plays controllers and kubelet for its own objects; there are no logs.
    Bare,
    /// Somebody's whole cluster. The engine's Jobs are created suspended, so that nothing is scheduled
    /// there, and run here all the same.
    Foreign,
}

/// What an engine is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// The books.
    pub database: PgConnectOptions,
    /// Time between announcements. The real engine's is 5 s.
    pub interval: Duration,
    /// The environment it announces, which is the namespace it works in.
    pub namespace: String,
    /// How long it rests in each state at least, so that people can watch. A real cluster has no need of that.
    pub pace: Duration,
    /// Which kind of cluster the client talks to.
    pub cluster: Cluster,
    /// Where it keeps the working directories of running jobs, and the published files of finished ones.
    pub directory: PathBuf,
    /// How many jobs it runs at a time.
    pub max_jobs: usize,
    /// After how long it ends an algorithm, whatever the job's own `maxtime`. Whole seconds.
    pub max_job_duration: Duration,
    /// Announced; in seconds, 0 for never.
    pub storage_expiry: u64,
    /// Announced: the account that consumers order from.
    pub consumer_address: String,
    /// Whether an algorithm that exits with a code other than 0 counts as done. (The real engine pipes it into `tee`,
    /// whose exit code is the one that the cluster sees.)
    pub ignore_exit_code: bool,
    /// How long a container that has failed for the second time waits until it is started again. The first restart is
    /// at once, each further pause is twice the one before, for five minutes at most, and with the sixth restart the
    /// Job fails and takes its pod along. A kubelet's is 10 s. Without one all this is brought forward: with the first
    /// failure the Job has failed, and its pod stays, as Failed.
    pub restart_pause: Option<Duration>,
    /// What a filtering step does with the outputs before they are published: a command line for the shell, which starts
    /// in the job's volume with the algorithm's environment. Without one there is no such step.
    pub filter: Option<String>,
}

impl Options {
    /// An engine for that environment with the settings that suit a laptop.
    pub fn new(database: PgConnectOptions, namespace: &str, cluster: Cluster, directory: impl Into<PathBuf>) -> Self {
        Self {
            database,
            interval: Duration::from_millis(500),
            pace: Duration::ZERO,
            namespace: namespace.to_owned(),
            cluster,
            directory: directory.into(),
            max_jobs: 10,
            max_job_duration: Duration::from_secs(3600),
            storage_expiry: 0,
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
    books: Books,
    client: kube::Client,
    http: provision::Fetcher,
    files: FileServer,
    /// How many slots are taken, those that were lost included.
    current_jobs: AtomicUsize,
}

/// A running engine. Dropping it kills the algorithms that it runs, and orphans its jobs.
///
/// As it plays the kubelet too, the pods of an engine that was stopped or dropped stay as they last were: one that ran
/// is Running for ever, like an algorithm that hangs. (In a real cluster it would go on without the engine, and
/// end.) An engine that is started after it does not take up what it had.
pub struct Engine {
    shared: Arc<Shared>,
    task: Option<JoinHandle<()>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// Why an engine can't start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory can't be used.
    #[error("the engine's directory {path}: {source}")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Its file server can't listen.
    #[error("the engine's file server: {0}")]
    Listen(io::Error),
    /// Its HTTP client can't be made.
    #[error("the engine's HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

impl Engine {
    /// Starts announcing and taking jobs. The schema and the namespace have to be there.
    ///
    /// # Errors
    /// If the directory can't be used, or nothing can listen on the loopback address.
    pub async fn start(options: Options, client: kube::Client) -> Result<Self, Error> {
        install_tls();
        let directory = |path: &std::path::Path| {
            let path = path.display().to_string();
            move |source| Error::Directory { path, source }
        };
        // What an engine that was killed left of its jobs: it will never go on with them.
        let work = options.directory.join("work");
        match std::fs::remove_dir_all(&work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(directory(&work)(error)),
            _ => {}
        }
        std::fs::create_dir_all(&work).map_err(directory(&work))?;
        let files = FileServer::start(&options.directory).await.map_err(Error::Listen)?;

        let shared = Arc::new(Shared {
            books: Books::new(options.database.clone()),
            client,
            http: provision::Fetcher::new()?,
            files,
            current_jobs: AtomicUsize::new(0),
            options,
        });
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let task = tokio::spawn(announce(shared.clone(), stopped));
        Ok(Self { shared, task: Some(task), stop })
    }

    /// The `host:port` that results are served from.
    #[must_use]
    pub fn file_host(&self) -> String {
        self.shared.files.host()
    }

    /// Stops taking jobs and kills those that run: their rows stay as they are, as the real engine leaves them.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
        self.shared.books.close().await;
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// The engine's main loop.
async fn announce(shared: Arc<Shared>, mut stopped: tokio::sync::watch::Receiver<bool>) {
    let options = &shared.options;
    if let Some((before, now)) = shared.files.moved() {
        let moved = shared.books.move_results(&options.namespace, &before, &now).await;
        tracing::info!(before, now, ?moved, "the file server has another address than before");
    }
    // An abort of this task drops the set, and with it every job.
    let mut jobs = JoinSet::new();
    let mut running: BTreeSet<String> = BTreeSet::new();
    let mut tick = tokio::time::interval(options.interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = stopped.changed() => break,
            Some(ended) = jobs.join_next(), if !jobs.is_empty() => {
                if let Ok(id) = ended {
                    running.remove(&id);
                }
                continue;
            }
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
            "maxJobs": options.max_jobs.to_string(),
            "consumerAddress": options.consumer_address,
            "storageExpiry": options.storage_expiry.to_string(),
            "maxJobDuration": options.max_job_duration.as_secs().to_string(),
        });
        let free = options.max_jobs.saturating_sub(current);
        let taken = match shared.books.announce(&options.namespace, &announcement, free).await {
            Ok(taken) => taken,
            Err(error) => {
                tracing::warn!(%error, "could not announce");
                continue;
            }
        };
        for id in taken {
            // The old announce() returns a job until its thread has set 20. Two runs of one job in one
            // working directory would help nobody.
            if !running.insert(id.clone()) {
                continue;
            }
            shared.current_jobs.fetch_add(1, Ordering::SeqCst);
            let shared = shared.clone();
            jobs.spawn(async move {
                tracing::info!(job = id, "taken");
                match chain::run(&shared, &id).await {
                    Ok(()) => {
                        shared.current_jobs.fetch_sub(1, Ordering::SeqCst);
                    }
                    Err(error) => {
                        tracing::error!(job = id, %error, "its thread died: as in the real engine, its slot is lost");
                    }
                }
                id
            });
        }
    }
    jobs.shutdown().await;
}
