//! What each test starts: a database of its own, a cluster and an engine.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use devstack::apiserver::ApiServer;
use devstack::postgres::{self, Postgres};
use fake_engine::{Cluster, Engine, Options};
use fake_kubernetes::EmbeddedCluster;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

const NAMESPACE: &str = "ocean-compute";

/// Repeats a look until it finds something.
pub async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A database, a cluster and an engine, which ends when it is dropped.
pub struct Bench {
    pub directory: PathBuf,
    pub database: PgPool,
    _embedded: Option<EmbeddedCluster>,
    _apiserver: Option<ApiServer>,
    pub client: kube::Client,
    pub settings: Options,
    pub engine: Engine,
    pub files: String,
}

impl Bench {
    pub async fn embedded(name: &str) -> Self {
        Self::start(name, |_| {}).await
    }

    pub async fn start(name: &str, adjust: impl FnOnce(&mut Options)) -> Self {
        Self::with(name, None, adjust).await
    }

    pub async fn with(name: &str, apiserver: Option<ApiServer>, adjust: impl FnOnce(&mut Options)) -> Self {
        fake_engine::install_tls();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("engine-{name}"));
        let _ = fs::remove_dir_all(&directory);
        let options = database().await;
        let database = PgPoolOptions::new().max_connections(3).connect_with(options.clone()).await.unwrap();
        let migrations = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations")).unwrap();
        let mut migrations: Vec<PathBuf> = migrations.map(|entry| entry.unwrap().path()).collect();
        migrations.sort();
        for migration in migrations {
            let statements = AssertSqlSafe(fs::read_to_string(migration).unwrap());
            sqlx::raw_sql(statements).execute(&database).await.unwrap();
        }

        let mut embedded = None;
        let kubeconfig = match &apiserver {
            Some(server) => server.kubeconfig.clone(),
            None => {
                let server = EmbeddedCluster::start(fake_kubernetes::Options::default()).await.unwrap();
                embedded.insert(server).kubeconfig()
            }
        };
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.proxy_url = None;
        let client = kube::Client::try_from(config).unwrap();
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(NAMESPACE.to_owned());
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();

        let kind = if embedded.is_some() { Cluster::Embedded } else { Cluster::External };
        let mut settings = Options::new(options, NAMESPACE, kind, directory.join("engine"));
        settings.interval = Duration::from_millis(100);
        adjust(&mut settings);
        let engine = Engine::start(settings.clone(), client.clone()).await.unwrap();
        Self {
            directory,
            database,
            _embedded: embedded,
            _apiserver: apiserver,
            client,
            settings,
            engine,
            files: files().await,
        }
    }

    /// A stage whose algorithm is that shell script.
    pub fn stage(&self, code: &str) -> Value {
        json!({
            "index": 0,
            "input": [{"index": 0, "id": "did:op:feed", "url": [format!("{}/one", self.files)]}],
            "compute": {"Instances": 1, "maxtime": 3600, "resources": {}, "storageExpiry": 0},
            "algorithm": {
                "id": "did:op:beef",
                "rawcode": code,
                "container": {"image": "alpine", "tag": "3", "entrypoint": "sh $ALGO"},
            },
            "output": {},
        })
    }

    /// Writes a job to the database; returns its id.
    pub async fn submit(&self, stage: &Value) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let secret = "0123456789abcdef0123456789abcdef";
        let workflow = json!({
            "apiVersion": "v0.0.1",
            "kind": "WorkFlow",
            "metadata": {"name": id, "namespace": NAMESPACE, "labels": {"workflow": id}, "secret": secret},
            "spec": {"metadata": {"stages": [stage], "chainId": 1}},
        });
        sqlx::query(
            "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, namespace, workflow)
             VALUES ($1, $1, 'somebody', 1, 'Warming up', $2, $3)",
        )
        .bind(&id)
        .bind(NAMESPACE)
        .bind(workflow.to_string())
        .execute(&self.database)
        .await
        .unwrap();
        id
    }

    pub async fn run(&self, code: &str) -> String {
        self.submit(&self.stage(code)).await
    }

    pub async fn status(&self, id: &str) -> i32 {
        let statement = sqlx::query_scalar("SELECT status FROM jobs WHERE workflowid = $1");
        statement.bind(id).fetch_one(&self.database).await.unwrap()
    }

    /// Waits for a job's end; returns its status and the list of its outputs.
    pub async fn finished(&self, id: &str) -> (i32, Vec<Value>) {
        let statement = "SELECT status, coalesce(outputsurl, '[]') FROM jobs
            WHERE workflowid = $1 AND datefinished IS NOT NULL";
        let look = async || sqlx::query_as(statement).bind(id).fetch_optional(&self.database).await.unwrap();
        let (status, outputs): (i32, String) = until("the end of a job", look).await;
        (status, serde_json::from_str(&outputs).unwrap())
    }

    /// The number of slots that the engine announces as taken.
    pub async fn current_jobs(&self) -> u64 {
        let statement = sqlx::query_scalar("SELECT status::jsonb ->> 'currentJobs' FROM envs WHERE namespace = $1");
        let found: Option<String> = statement.bind(NAMESPACE).fetch_optional(&self.database).await.unwrap();
        found.unwrap_or_default().parse().unwrap_or(0)
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    pub async fn names<K>(&self) -> Vec<String>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let found = self.api::<K>().list(&ListParams::default()).await.unwrap();
        found.items.iter().map(ResourceExt::name_any).filter(|name| name != "kube-root-ca.crt").collect()
    }

    pub async fn pods(&self, id: &str, component: &str) -> Vec<Value> {
        let selector = ListParams::default().labels(&format!("workflow={id},component={component}"));
        let pods = self.api::<Pod>().list(&selector).await.unwrap();
        pods.items.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect()
    }

    /// Waits for a pod of that step that is as wanted.
    pub async fn pod(&self, id: &str, component: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, async || self.pods(id, component).await.into_iter().find(&wanted)).await
    }

    pub async fn job(&self, id: &str, component: &str) -> Value {
        serde_json::to_value(self.api::<Job>().get_opt(&format!("{id}-{component}-job")).await.unwrap()).unwrap()
    }

    /// Waits until a step's Job has failed; returns its status.
    pub async fn failed_job(&self, id: &str, component: &str) -> Value {
        until("a Job's failure", async || {
            let status = self.job(id, component).await["status"].take();
            let failed = |condition: &Value| condition["type"] == "Failed" && condition["status"] == "True";
            status["conditions"].as_array()?.iter().any(failed).then_some(status)
        })
        .await
    }

    /// Deletes a step's Job as somebody does who wants its pods gone first.
    pub async fn delete_job(&self, id: &str, component: &str) {
        self.api::<Job>().delete(&format!("{id}-{component}-job"), &DeleteParams::foreground()).await.unwrap();
    }

    /// Checks that the engine still waits for the algorithm's Job, and goes on to the end once that is deleted; returns
    /// the list of outputs.
    pub async fn waits_until_deleted(&self, id: &str) -> Vec<Value> {
        assert_eq!(self.status(id).await, 40);
        self.delete_job(id, "algorithm").await;
        let (status, outputs) = self.finished(id).await;
        assert_eq!(status, 70);
        outputs
    }

    pub fn volume(&self, id: &str) -> PathBuf {
        self.directory.join("engine/work").join(id).join("data")
    }

    /// Waits until a file that the algorithm writes a line to is there; returns the line.
    pub async fn file(&self, id: &str, name: &str) -> String {
        let path = self.volume(id).join(name);
        let look = async || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'));
        until(name, look).await.trim().to_owned()
    }
}

/// The name of a job's first output, with the job's status.
pub fn first(finished: &(i32, Vec<Value>)) -> (i32, &str) {
    (finished.0, finished.1[0]["filename"].as_str().unwrap())
}

/// A database of the test's own, on the server of TEST_DATABASE_URL, or on one that ends with this process.
async fn database() -> PgConnectOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    let (options, run) = match std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) => (PgConnectOptions::from_str(&url).unwrap(), std::process::id()),
        None => {
            let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("engine-postgres");
            let start = async || Postgres::start(postgres::Options::throwaway(directory)).await.unwrap();
            (SERVER.get_or_init(start).await.connect_options("postgres"), 0)
        }
    };
    let name = format!("engine_{run}_{}", NUMBER.fetch_add(1, Ordering::SeqCst));
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    for statement in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    options.database(&name)
}

/// Something to fetch inputs and algorithms from.
async fn files() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new()
        .route("/one", get(|| async { "first\n" }))
        .route("/two", get(|| async { "second\n" }))
        .route("/code", get(|| async { "echo from afar > $OUTPUTS/out.txt\n" }))
        .route("/broken", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/endless", get(std::future::pending::<&'static str>));
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

pub async fn fetch(output: &Value, range: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::builder().no_proxy().build().unwrap().get(output["url"].as_str().unwrap());
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Waits until a process is gone or a zombie.
pub async fn ends(id: &str) {
    until("the end of a process", async || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let runs = stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']));
        (!runs).then_some(())
    })
    .await;
}

/// Never ends, with a child of its own, whose id is in a file.
pub const ENDLESS: &str =
    "echo begun; echo part > $OUTPUTS/part.txt; sleep 300 & echo $! > $VOLUME/child; wait; echo never\n";
