//! One job's way from 20 to 70: the chain of steps.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, Instant},
};

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, PersistentVolumeClaim},
};
use kube::{
    Api,
    api::{DeleteParams, PostParams},
};
use serde_json::Value;

use super::{
    Cluster, Shared, algorithm, filter,
    objects::{self, Component},
    pod::{self, Exit, Pod},
    provision, publish,
};

/// How often a Job is looked at. The real engine's interval is 5 s.
pub(super) const POLL: Duration = Duration::from_millis(300);

/// Why a job's thread died, which costs a slot for good.
#[derive(Debug)]
pub(super) struct Died(pub(super) String);

impl fmt::Display for Died {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The document of a job, read as trustingly as the real engine reads it.
pub(super) struct Workflow(Value);

impl Workflow {
    fn at<'a>(&self, from: &'a Value, path: &[&str]) -> Result<&'a Value, Died> {
        path.iter()
            .try_fold(from, |value, key| value.get(key))
            .ok_or_else(|| Died(format!("its workflow lacks {}", path.join("."))))
    }

    fn text(&self, from: &Value, path: &[&str]) -> Result<String, Died> {
        match self.at(from, path)? {
            Value::String(text) => Ok(text.clone()),
            _ => Err(Died(format!("{} of its workflow is no text", path.join(".")))),
        }
    }

    pub(super) fn label(&self) -> Result<String, Died> {
        self.text(&self.0, &["metadata", "labels", "workflow"])
    }

    /// The workflow itself, as it was submitted and completed.
    fn metadata(&self) -> Result<&Value, Died> {
        self.at(&self.0, &["spec", "metadata"])
    }

    pub(super) fn stage(&self) -> Result<&Value, Died> {
        self.at(self.metadata()?, &["stages"])?.get(0).ok_or_else(|| Died("its workflow has no stages".to_owned()))
    }

    fn container(&self) -> Result<&Value, Died> {
        self.at(self.stage()?, &["algorithm", "container"])
    }

    pub(super) fn entrypoint(&self) -> Result<String, Died> {
        self.text(self.container()?, &["entrypoint"])
    }

    pub(super) fn image(&self) -> Result<String, Died> {
        let container = self.container()?;
        let image = self.text(container, &["image"])?;
        match container.get("checksum").and_then(Value::as_str) {
            Some(checksum) if checksum.starts_with("sha256:") => Ok(format!("{image}@{checksum}")),
            _ => Ok(format!("{image}:{}", self.text(container, &["tag"])?)),
        }
    }

    /// The inputs with their DIDs, `did:op:` taken off.
    pub(super) fn inputs(&self) -> Result<Vec<(String, &Value)>, Died> {
        let inputs = self.at(self.stage()?, &["input"])?;
        inputs
            .as_array()
            .ok_or_else(|| Died("the input of its workflow is no list".to_owned()))?
            .iter()
            .map(|input| Ok((self.text(input, &["id"])?.replace("did:op:", ""), input)))
            .collect()
    }

    /// The environment that algorithms are promised, below that volume.
    pub(super) fn environment(&self, volume: &str) -> Result<Vec<(&'static str, String)>, Died> {
        let dids: Vec<String> = self.inputs()?.into_iter().map(|(did, _)| did).collect();
        let transformation = self.text(self.stage()?, &["algorithm", "id"])?;
        Ok(vec![
            ("DIDS", Value::from(dids).to_string()),
            ("TRANSFORMATION_DID", transformation.replace("did:op:", "")),
            ("VOLUME", volume.to_owned()),
            ("LOGS", format!("{volume}/logs")),
            ("INPUTS", format!("{volume}/inputs")),
            ("OUTPUTS", format!("{volume}/outputs")),
            ("secret", self.text(&self.0, &["metadata", "secret"])?),
        ])
    }
}

/// The directories of a job's two volumes. They go when the job's thread ends, however it ends.
pub(super) struct Volume {
    path: PathBuf,
}

impl Volume {
    fn make(work: &Path, id: &str) -> io::Result<Self> {
        let path = work.join(id);
        std::fs::create_dir_all(&path)?;
        for directory in ["data", "adminlogs"] {
            std::fs::create_dir_all(path.join(directory))?;
        }
        Ok(Self { path })
    }

    /// What the algorithm knows as VOLUME.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// What the other steps log, out of the algorithm's sight.
    pub(super) fn adminlogs(&self) -> PathBuf {
        self.path.join("adminlogs")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, "could not remove a job's working directory");
        }
    }
}

/// One job on its way.
pub(super) struct Chain<'a> {
    pub(super) shared: &'a Shared,
    pub(super) id: &'a str,
    pub(super) workflow: Workflow,
    pub(super) volume: Volume,
}

/// Runs the job of that id to its end, or for as long as one of its Jobs is neither done nor gone.
pub(super) async fn run(shared: &Shared, id: &str) -> Result<(), Died> {
    let books = &shared.books;
    let died = |error: &dyn fmt::Display| Died(error.to_string());
    let Some(text) = books.workflow(id).await.map_err(|error| died(&error))? else {
        tracing::error!(job = id, "its workflow is empty");
        return Ok(());
    };
    if let Some(odd) = text.chars().find(|c| !in_latin9(*c)) {
        // The server can't convert it for a client of that encoding.
        return Err(Died(format!("its workflow holds {odd:?}, which LATIN9 lacks")));
    }
    let document: Value = serde_json::from_str(&text).map_err(|error| died(&error))?;
    if !document.is_object() {
        tracing::error!(job = id, "its workflow is no object");
        return Ok(());
    }
    // It becomes part of file names here.
    if id.is_empty() || !id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
        return Err(Died("its id makes no name".to_owned()));
    }
    if books.status(id).await.map_err(|error| died(&error))? > 10 {
        tracing::error!(job = id, "somebody runs it already");
        return Ok(());
    }
    let chain = Chain {
        shared,
        id,
        workflow: Workflow(document),
        volume: Volume::make(&shared.options.directory.join("work"), id).map_err(|error| died(&error))?,
    };
    chain.rest().await;
    books.set_status(id, 20).await;
    chain.create_volumes().await?;
    chain.rest().await;

    let log = chain.volume.adminlogs().join("configure.log");
    chain.step(Component::Configure, &log).await?;
    chain.delete_job(Component::Configure).await;

    let provisioned = books.status(id).await.map_err(|error| died(&error))? == 30;
    if provisioned {
        books.set_status(id, 40).await;
        let log = chain.volume.data().join("logs/algorithm.log");
        chain.step(Component::Algorithm, &log).await?;
    }
    chain.delete_job(Component::Algorithm).await;

    // As in the real engine, also where nothing was provisioned, which then only shows in that it ends with 50.
    if shared.options.filter.is_some() {
        books.set_status(id, 50).await;
        let log = chain.volume.data().join("logs/filter.log");
        chain.step(Component::Filter, &log).await?;
        chain.delete_job(Component::Filter).await;
    }
    if provisioned {
        books.set_status(id, 60).await;
        chain.rest().await;
    }

    let log = chain.volume.adminlogs().join("publish.log");
    chain.step(Component::Publish, &log).await?;
    chain.delete_job(Component::Publish).await;

    if provisioned {
        books.set_status(id, 70).await;
    }
    books.set_finished(id).await;
    chain.delete_volumes().await;
    tracing::info!(job = id, "finished");
    Ok(())
}

impl Chain<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.shared.client.clone(), &self.shared.options.namespace)
    }

    pub(super) async fn rest(&self) {
        tokio::time::sleep(self.shared.options.pace).await;
    }

    /// ConfigMap and claims. Like the real engine, it goes on if the cluster refuses them.
    async fn create_volumes(&self) -> Result<(), Died> {
        let map = objects::config_map(self.id, self.workflow.metadata()?)?;
        let created = self.api::<ConfigMap>().create(&PostParams::default(), &map).await;
        self.note("ConfigMap", created.err());
        self.workflow.at(self.workflow.stage()?, &["compute"])?;
        for name in ["data", "adminlogs"] {
            let claim = objects::claim(&format!("{}-{name}", self.id), "1Gi")?;
            let created = self.api::<PersistentVolumeClaim>().create(&PostParams::default(), &claim).await;
            self.note("PersistentVolumeClaim", created.err());
        }
        Ok(())
    }

    async fn delete_volumes(&self) {
        let claims = self.api::<PersistentVolumeClaim>();
        for name in ["adminlogs", "data"] {
            let name = format!("{}-{name}", self.id);
            self.note("PersistentVolumeClaim", claims.delete(&name, &foreground()).await.err());
            if self.shared.options.cluster == Cluster::Bare {
                pod::drop_finalizers(&claims, &name).await;
            }
        }
        let maps = self.api::<ConfigMap>();
        self.note("ConfigMap", maps.delete(self.id, &foreground()).await.err());
        if self.shared.options.cluster == Cluster::Bare {
            pod::drop_finalizers(&maps, self.id).await;
        }
    }

    async fn delete_job(&self, component: Component) {
        let jobs = self.api::<Job>();
        let name = component.job_name(self.id);
        self.note("Job", jobs.delete(&name, &foreground()).await.err());
        if self.shared.options.cluster == Cluster::Bare {
            pod::collect(self, component).await;
        }
    }

    fn note(&self, kind: &str, error: Option<kube::Error>) {
        match error {
            None => {}
            Some(kube::Error::Api(status)) if status.is_not_found() || status.is_already_exists() => {}
            Some(error) => tracing::warn!(job = self.id, kind, %error, "the cluster refused"),
        }
    }

    /// One step: makes its Job, lets its pod do the work, and looks at the Job until it is done or gone.
    async fn step(&self, component: Component, log: &Path) -> Result<(), Died> {
        let options = &self.shared.options;
        let suspended = options.cluster == Cluster::Foreign;
        let job = objects::job(self.id, component, &self.workflow, suspended)?;
        let jobs = self.api::<Job>();
        let created = jobs.create(&PostParams::default(), &job).await;
        self.note("Job", created.err());

        let pod = Pod { chain: self, component, log };
        let mut pod = pin!(pod.play());
        let mut exit = None;
        let mut tick = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let started = Instant::now();
        loop {
            tokio::select! {
                done = &mut pod, if exit.is_none() => {
                    exit = Some(done);
                    // A suspended Job never becomes done by itself: here the work's own word counts.
                    if suspended && matches!(exit, Some(Exit::Done)) {
                        return Ok(());
                    }
                }
                _ = tick.tick() => {
                    match jobs.get(&component.job_name(self.id)).await {
                        Ok(job) if job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0) > 0 => return Ok(()),
                        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
                        _ => {}
                    }
                    if component == Component::Algorithm && self.should_stop(started).await {
                        self.delete_job(component).await;
                        return Ok(());
                    }
                }
            }
        }
    }

    /// What the container of a step does. Dropping it ends its processes.
    pub(super) async fn work(&self, component: Component, log: &Path) -> Exit {
        match component {
            Component::Configure => provision::run(self, log).await,
            Component::Algorithm => algorithm::run(self, log).await,
            Component::Filter => filter::run(self, log).await,
            Component::Publish => publish::run(self, log).await,
        }
    }

    /// Whether the algorithm has had its time, or a stop was asked for.
    async fn should_stop(&self, started: Instant) -> bool {
        let options = &self.shared.options;
        if started.elapsed().as_secs() > options.max_job_duration.as_secs() {
            tracing::info!(job = self.id, "the algorithm takes too long");
            self.shared.books.set_timed_out(self.id).await;
            return true;
        }
        if self.shared.books.stop_requested(self.id).await {
            tracing::info!(job = self.id, "a stop was asked for");
            return true;
        }
        false
    }
}

fn foreground() -> DeleteParams {
    DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::foreground() }
}

/// Whether ISO 8859-15 has the character: Latin-1 with eight places changed.
fn in_latin9(c: char) -> bool {
    match c {
        '¤' | '¦' | '¨' | '´' | '¸' | '¼' | '½' | '¾' => false,
        'Š' | 'š' | 'Ž' | 'ž' | 'Œ' | 'œ' | 'Ÿ' | '€' => true,
        c => u32::from(c) < 256,
    }
}
