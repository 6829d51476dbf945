//! A service, its books, its cluster and a reaper for them; jobs in whatever state; time that has passed.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use operator_service::config::{Config, DatabaseUse};
use operator_service::db::DatabaseError;
use operator_service::reaper::Reaper;
use operator_service::storage::Storage;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::support::{App, AppBuilder, Call, Stored, eventually, unique};

/// Time enough for any sweep of a test.
const TIME: Duration = Duration::from_secs(60);

/// What a test of the reaper has before it.
pub struct Fixture {
    pub app: App,
    pub reaper: Reaper,
}

/// How a fixture is set.
#[derive(Default)]
pub struct FixtureBuilder {
    variables: BTreeMap<String, String>,
    app: AppBuilder,
}

impl FixtureBuilder {
    /// Sets an environment variable of service and reaper.
    #[must_use]
    pub fn var(mut self, name: &str, value: impl ToString) -> Self {
        self.variables.insert(name.to_owned(), value.to_string());
        self.app = self.app.var(name, value.to_string());
        self
    }

    /// Changes how the service is started.
    #[must_use]
    pub fn app(mut self, change: impl FnOnce(AppBuilder) -> AppBuilder) -> Self {
        self.app = change(self.app);
        self
    }

    pub async fn start(self) -> Fixture {
        let app = self.app.start().await;
        let reaper = reaper(&app, &self.variables).await;
        Fixture { app, reaper }
    }
}

async fn reaper(app: &App, variables: &BTreeMap<String, String>) -> Reaper {
    let mut variables = variables.clone();
    variables.extend(app.database.variables());
    variables.entry("REAP_RATE".to_owned()).or_insert("1000".to_owned());
    variables.entry("DEFAULT_NAMESPACE".to_owned()).or_insert(app.namespace.clone());
    let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
    let origins = Storage::new(&config.storage).unwrap();
    Reaper::new(app.database.service(), &app.cluster.service().await, origins, config.reaper)
}

impl Fixture {
    /// With everything as it is by default, but in a hurry: no request to the cluster waits for its turn.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> FixtureBuilder {
        FixtureBuilder::default()
    }

    /// Another reaper of the same book and cluster that goes by other rules.
    pub async fn another_reaper(&self, variables: &[(&str, &str)]) -> Reaper {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        reaper(&self.app, &variables).await
    }

    /// A sweep, as the JSON that it reports.
    pub async fn sweep(&self) -> Value {
        let report = self.try_sweep().await.unwrap();
        assert_eq!(report["complete"], true, "{report:#}");
        report
    }

    /// A sweep that may not come to its end.
    pub async fn try_sweep(&self) -> Result<Value, DatabaseError> {
        Ok(serde_json::to_value(self.reaper.sweep(false, TIME).await?).unwrap())
    }

    /// What a sweep would do.
    pub async fn dry_run(&self) -> Value {
        serde_json::to_value(self.reaper.sweep(true, TIME).await.unwrap()).unwrap()
    }

    /// Puts a job into the books and its WorkFlow object into the cluster.
    pub async fn job(&self, job: Stored) -> Stored {
        let job = self.row(job).await;
        self.app.cluster.make_workflow(&self.app.namespace, &job.job_id).await;
        job
    }

    /// Puts a job into the books.
    pub async fn row(&self, job: Stored) -> Stored {
        let document = job.workflow.as_ref().map(|text| text.replace("ocean-compute", &self.app.namespace));
        Stored { namespace: Some(self.app.namespace.clone()), workflow: document, ..job }
            .insert(&self.app.database)
            .await
    }

    /// A job as the engine has it when its algorithm runs: row, objects, and a pod that began so many seconds ago.
    pub async fn running(&self, seconds: i64) -> Stored {
        let job = self.job(Stored::running()).await;
        self.volumes(&job.job_id).await;
        self.step(&job.job_id, "algorithm", seconds).await;
        job
    }

    /// ConfigMap and claims of a job.
    pub async fn volumes(&self, job_id: &str) {
        self.app.cluster.engine_volumes(&self.app.namespace, job_id).await;
    }

    /// A step that began so many seconds ago, with a pod that runs.
    pub async fn step(&self, job_id: &str, component: &str, seconds: i64) {
        let (cluster, namespace) = (&self.app.cluster, self.app.namespace.as_str());
        cluster.engine_job(namespace, job_id, component).await;
        let pod = self.pod(job_id, component).await;
        self.job_status(job_id, component, json!({ "startTime": ago(seconds), "active": 1 })).await;
        let running = json!({ "phase": "Running", "startTime": ago(seconds), "containerStatuses": [container(
            component, json!({ "running": { "startedAt": ago(seconds) } })
        )] });
        self.pod_status(&pod, running).await;
    }

    /// The name of a step's pod. Where no controller makes it, the test does.
    pub async fn pod(&self, job_id: &str, component: &str) -> String {
        let (cluster, namespace) = (&self.app.cluster, self.app.namespace.as_str());
        if !cluster.has_controllers().await {
            let job = Api::<Job>::namespaced(cluster.client.clone(), namespace);
            let job = job.get(&format!("{job_id}-{component}-job")).await.unwrap();
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {
                    "name": unique("pod"),
                    "labels": { "workflow": job_id, "component": component },
                    "ownerReferences": [{
                        "apiVersion": "batch/v1", "kind": "Job", "name": job.metadata.name, "uid": job.metadata.uid
                    }]
                },
                "spec": job.spec.unwrap().template.spec
            }))
            .unwrap();
            let pods = Api::<Pod>::namespaced(cluster.client.clone(), namespace);
            return pods.create(&PostParams::default(), &pod).await.unwrap().metadata.name.unwrap();
        }
        let pod = eventually("the step's pod", Duration::from_secs(10), async || {
            cluster.pods_of(namespace, job_id, component).await.pop()
        });
        pod.await.metadata.name.unwrap()
    }

    /// Says what a pod is like, as its kubelet does.
    pub async fn pod_status(&self, pod: &str, status: Value) {
        let pods = Api::<Pod>::namespaced(self.app.cluster.client.clone(), &self.app.namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Says what a step's Job is like, as its controller does.
    pub async fn job_status(&self, job_id: &str, component: &str, status: Value) {
        let jobs = Api::<Job>::namespaced(self.app.cluster.client.clone(), &self.app.namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        jobs.patch_status(&format!("{job_id}-{component}-job"), &PatchParams::default(), &patch).await.unwrap();
    }

    /// A step's Job has failed for good.
    pub async fn job_failed(&self, job_id: &str, component: &str) {
        let condition = |kind: &str| {
            json!({
                "type": kind, "status": "True", "reason": "BackoffLimitExceeded", "lastTransitionTime": ago(0),
                "lastProbeTime": ago(0), "message": "Job has reached the specified backoff limit"
            })
        };
        let conditions = [condition("FailureTarget"), condition("Failed")];
        let status = json!({ "startTime": ago(5), "conditions": conditions, "failed": 1, "active": 0 });
        self.job_status(job_id, component, status).await;
    }

    /// So many seconds pass for a time stamp of a job's row.
    pub async fn passed(&self, job_id: &str, column: &str, seconds: i64) {
        let statement =
            format!("UPDATE jobs SET {column} = {column} - make_interval(secs => $2) WHERE workflowid = $1");
        let done = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job_id).bind(seconds as f64);
        let mut transaction = self.app.database.pool.begin().await.unwrap();
        // What guards the row is not asked.
        transaction.execute("SET LOCAL session_replication_role = replica").await.unwrap();
        assert_eq!(done.execute(&mut *transaction).await.unwrap().rows_affected(), 1, "{column}");
        transaction.commit().await.unwrap();
    }

    /// The columns of a job's row.
    pub async fn row_of(&self, job: &Stored) -> Value {
        self.app.database.job(&job.job_id).await.unwrap()
    }

    /// What callers see of a job.
    pub async fn status(&self, job: &Stored) -> Value {
        self.app.send(Call::get("compute").with("jobId", job.job_id.as_str())).await.ok()[0].clone()
    }

    /// What the cluster holds of a job (see `Cluster::objects_of`).
    pub async fn objects(&self, job: &Stored) -> Vec<String> {
        self.app.cluster.objects_of(&self.app.namespace, &job.job_id).await
    }

    /// A log as an administrator sees it.
    pub async fn log(&self, job: &Stored, component: &str) -> (u16, String) {
        let call = Call::get("logs").with("jobId", job.job_id.as_str()).with("component", component);
        let answer = self.app.send(call).await;
        (answer.status, answer.text().to_owned())
    }
}

/// So many seconds ago, as Kubernetes writes it.
pub fn ago(seconds: i64) -> String {
    let then = Timestamp::now().saturating_sub(SignedDuration::from_secs(seconds)).unwrap();
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// What a pod says of its container.
pub fn container(name: &str, state: Value) -> Value {
    json!({
        "name": name, "image": "localhost/nothing", "imageID": "", "ready": false, "restartCount": 0, "state": state
    })
}

/// How much of a kind a report tells of: found, done, failed, left.
pub fn count(report: &Value, kind: &str) -> [u64; 4] {
    let count = &report["kinds"][kind];
    ["found", "done", "failed", "left"].map(|name| count[name].as_u64().unwrap_or(0))
}

/// What a report says of a job: kinds and outcomes, and the last reason.
pub fn of_job(report: &Value, job: &Stored) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = report["jobs"].as_array().unwrap().iter().filter(|entry| entry["job"] == job.job_id.as_str());
    entries.map(|entry| (text(&entry["kind"]), text(&entry["outcome"]))).collect()
}
