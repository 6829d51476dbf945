//! What the jobs of an engine share, and the steps of a job.

use std::fmt::Debug;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use kube::Resource;
use kube::api::{Api, DeleteParams, PostParams};
use tokio::time::{Interval, MissedTickBehavior};

use crate::database::Database;
use crate::fetch::Fetcher;
use crate::files::FileServer;
use crate::options::{Cluster, Options};
use crate::workflow::Workflow;

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
    pub(super) fn create(path: PathBuf) -> io::Result<Self> {
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

/// What all jobs of one engine share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) database: Database,
    pub(super) client: kube::Client,
    pub(super) http: Fetcher,
    pub(super) files: FileServer,
    /// The number of slots in use, those that were lost included.
    pub(super) current_jobs: AtomicUsize,
}

/// A job that runs.
pub(super) struct Chain<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: &'a str,
    pub(super) workflow: Workflow,
    pub(super) volume: Volume,
}

impl Chain<'_> {
    pub(super) fn api<K: Object>(&self) -> Api<K> {
        Api::namespaced(self.shared.client.clone(), &self.shared.options.namespace)
    }

    pub(super) async fn rest(&self) {
        tokio::time::sleep(self.shared.options.pace).await;
    }

    pub(super) async fn set_status(&self, status: i32) {
        tracing::info!(job = self.id, status);
        self.shared.database.set_status(self.id, status).await;
        self.rest().await;
    }

    pub(super) async fn create(&self, object: &impl Object) {
        self.note(self.api().create(&PostParams::default(), object).await.err());
    }

    pub(super) async fn delete<K: Object>(&self, name: &str) {
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
}

/// Ticks at that interval; a tick that is missed is not made up for.
pub(super) fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
