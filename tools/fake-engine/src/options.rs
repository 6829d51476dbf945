//! The settings of an engine.

use std::path::PathBuf;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

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
    /// Settings for a developer's machine.
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
