//! A service with its database, its cluster and a reaper, and what tests do with them.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::{Faults, Request};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use operator_service::config::{Config, DatabaseUse};
use operator_service::db::{Database, DatabaseError};
use operator_service::reaper::Reaper;
use operator_service::storage::Storage;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::support::{App, AppBuilder, Call, Cluster, Stored, eventually, unique};

/// Time enough for any sweep of a test.
const TIME: Duration = Duration::from_secs(60);
/// How long a test waits for something to happen.
pub const LIMIT: Duration = Duration::from_secs(30);

/// A service with its database and its cluster, and a reaper for them.
pub struct Fixture {
    pub app: App,
    pub reaper: Reaper,
}

/// How a fixture is started.
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
    let given = variables.iter().map(|(name, value)| (name.clone(), value.clone()));
    let mut variables: BTreeMap<_, _> = app.database.variables().into_iter().chain(given).collect();
    variables.entry("REAP_RATE".to_owned()).or_insert("1000".to_owned());
    // On a busy machine, opening eight connections at once takes longer than an operation may.
    variables.entry("POSTGRES_POOL_SIZE".to_owned()).or_insert("3".to_owned());
    variables.entry("DEFAULT_NAMESPACE".to_owned()).or_insert(app.namespace.clone());
    let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
    let origins = Storage::new(&config.storage).unwrap();
    let database = Database::new(config.database.as_ref().unwrap());
    Reaper::new(database, &app.cluster.service().await, origins, config.reaper)
}

impl Fixture {
    /// With the defaults, but without a rate limit on requests to the cluster.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    pub fn builder() -> FixtureBuilder {
        FixtureBuilder::default()
    }

    /// With a cluster that can be made to fail.
    pub async fn with_faults(variables: &[(&str, &str)]) -> Self {
        let cluster = Cluster::embedded().await;
        let builder = variables.iter().fold(Self::builder(), |builder, (name, value)| builder.var(name, value));
        builder.app(|app| app.cluster(cluster)).start().await
    }

    /// The faults of its cluster.
    pub fn faults(&self) -> &Faults {
        self.app.cluster.stand_in().faults()
    }

    /// The requests that the service and the reaper have sent to the cluster.
    pub fn requests(&self) -> Vec<Request> {
        let requests = self.app.cluster.stand_in().requests();
        requests.into_iter().filter(|request| request.user_agent.starts_with("operator-service/")).collect()
    }

    /// Waits until such a request was sent.
    pub async fn wait_for_request(&self, verb: &str, resource: &str) {
        eventually(&format!("{verb} {resource}"), LIMIT, async || {
            self.requests().iter().any(|it| it.verb == verb && it.resource == resource).then_some(())
        })
        .await;
    }

    /// Runs a statement that changes one job.
    pub async fn execute(&self, statement: &'static str, job: &Stored) {
        let done = sqlx::query(statement).bind(&job.job_id).execute(&self.app.database.pool).await.unwrap();
        assert_eq!(done.rows_affected(), 1, "{statement}");
    }

    /// Lets the lease of a sweep that was killed expire.
    pub async fn expire_lease(&self) {
        self.app.database.execute("UPDATE sweeps SET helduntil = clock_timestamp()").await;
    }

    /// Another reaper of the same database and cluster, with other rules.
    pub async fn another_reaper(&self, variables: &[(&str, &str)]) -> Reaper {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        reaper(&self.app, &variables).await
    }

    /// Sweeps to the end. Returns the report as JSON.
    pub async fn sweep(&self) -> Value {
        let report = self.try_sweep().await.unwrap();
        assert_eq!(report["complete"], true, "{report:#}");
        report
    }

    /// Sweeps, possibly not to the end.
    pub async fn try_sweep(&self) -> Result<Value, DatabaseError> {
        Ok(serde_json::to_value(self.reaper.sweep(false, TIME).await?).unwrap())
    }

    /// Sweeps with a time limit.
    pub async fn short_sweep(&self, time: Duration) -> Value {
        serde_json::to_value(self.reaper.sweep(false, time).await.unwrap()).unwrap()
    }

    /// Reports what a sweep would do.
    pub async fn dry_run(&self) -> Value {
        serde_json::to_value(self.reaper.sweep(true, TIME).await.unwrap()).unwrap()
    }

    /// Inserts a job, and creates its WorkFlow object.
    pub async fn job(&self, job: Stored) -> Stored {
        let job = self.row(job).await;
        self.app.cluster.make_workflow(&self.app.namespace, &job.job_id).await;
        job
    }

    /// Inserts a job.
    pub async fn row(&self, job: Stored) -> Stored {
        let document = job.workflow.as_ref().map(|text| text.replace("ocean-compute", &self.app.namespace));
        Stored { namespace: Some(self.app.namespace.clone()), workflow: document, ..job }
            .insert(&self.app.database)
            .await
    }

    /// A job whose algorithm has run for `seconds`: its row, its objects, and a pod.
    pub async fn running(&self, seconds: i64) -> Stored {
        let job = self.job(Stored::running()).await;
        self.volumes(&job.job_id).await;
        self.step(&job.job_id, "algorithm", seconds).await;
        job
    }

    /// Creates the ConfigMap and the claims of a job.
    pub async fn volumes(&self, job_id: &str) {
        self.app.cluster.engine_volumes(&self.app.namespace, job_id).await;
    }

    /// Creates a step that has run for `seconds`, with its pod.
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

    /// The name of a step's pod. Where no controller creates it, the test does.
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

    /// Writes a pod's status, as its kubelet does.
    pub async fn pod_status(&self, pod: &str, status: Value) {
        let pods = Api::<Pod>::namespaced(self.app.cluster.client.clone(), &self.app.namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        pods.patch_status(pod, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Writes the status of a step's Job, as its controller does.
    pub async fn job_status(&self, job_id: &str, component: &str, status: Value) {
        let jobs = Api::<Job>::namespaced(self.app.cluster.client.clone(), &self.app.namespace);
        let patch = Patch::Merge(json!({ "status": status }));
        jobs.patch_status(&format!("{job_id}-{component}-job"), &PatchParams::default(), &patch).await.unwrap();
    }

    /// Makes a step's Job fail.
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

    /// Lets `seconds` pass for a timestamp of a job's row, or of what the reaper recorded of it.
    pub async fn passed(&self, job_id: &str, column: &str, seconds: i64) {
        let table = if ["seensince", "objectdue", "expirydue"].contains(&column) { "reaperjobs" } else { "jobs" };
        let statement =
            format!("UPDATE {table} SET {column} = {column} - make_interval(secs => $2) WHERE workflowid = $1");
        let done = sqlx::query(sqlx::AssertSqlSafe(statement)).bind(job_id).bind(seconds as f64);
        let mut transaction = self.app.database.pool.begin().await.unwrap();
        // Without the trigger.
        transaction.execute("SET LOCAL session_replication_role = replica").await.unwrap();
        assert_eq!(done.execute(&mut *transaction).await.unwrap().rows_affected(), 1, "{column}");
        transaction.commit().await.unwrap();
    }

    /// The columns of a job's row.
    pub async fn row_of(&self, job: &Stored) -> Value {
        self.app.database.job(&job.job_id).await.unwrap()
    }

    /// What the reaper has recorded of a job.
    pub async fn state_of(&self, job: &Stored) -> Value {
        let statement = "SELECT to_jsonb(reaperjobs) FROM reaperjobs WHERE workflowid = $1";
        self.app.database.row(statement, &job.job_id).await.unwrap()
    }

    /// Whether a job's outputs are deleted.
    pub async fn is_expired(&self, job: &Stored) -> bool {
        self.row_of(job).await["removed"] == 1 && self.state_of(job).await["expirydue"] == "infinity"
    }

    /// A job's status object, as callers see it.
    pub async fn status(&self, job: &Stored) -> Value {
        self.app.send(Call::get("compute").with("jobId", job.job_id.as_str())).await.ok()[0].clone()
    }

    /// The objects of a job (see `Cluster::objects_of`).
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

/// The time `seconds` ago, as Kubernetes writes it.
pub fn ago(seconds: i64) -> String {
    let then = Timestamp::now().saturating_sub(SignedDuration::from_secs(seconds)).unwrap();
    then.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The status of a pod's container.
pub fn container(name: &str, state: Value) -> Value {
    json!({
        "name": name, "image": "localhost/nothing", "imageID": "", "ready": false, "restartCount": 0, "state": state
    })
}

/// The counts of a kind of work in a report: found, done, failed, left.
pub fn count(report: &Value, kind: &str) -> [u64; 4] {
    let count = &report["kinds"][kind];
    ["found", "done", "failed", "left"].map(|name| count[name].as_u64().unwrap_or(0))
}

/// The entries of a report about a job: kinds and outcomes.
pub fn of_job(report: &Value, job: &Stored) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let entries = report["jobs"].as_array().unwrap().iter().filter(|entry| entry["job"] == job.job_id.as_str());
    entries.map(|entry| (text(&entry["kind"]), text(&entry["outcome"]))).collect()
}

/// A kubeconfig of a cluster where nothing listens.
pub const NOBODY: &str = r#"
apiVersion: v1
kind: Config
clusters: [{name: nobody, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: nobody, user: {}}]
contexts: [{name: nobody, context: {cluster: nobody, user: nobody}}]
current-context: nobody
"#;
