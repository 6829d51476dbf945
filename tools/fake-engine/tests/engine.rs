//! The engine stand-in, from a row in the books to its end: on the embedded cluster, and where
//! KUBEBUILDER_ASSETS is set on a bare API server too.
//!
//! Each test has a database of its own, on the server of TEST_DATABASE_URL or on one that it starts.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    fs,
    io::Write,
    path::PathBuf,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use axum::{Router, http::StatusCode, routing::get};
use devstack::{
    apiserver::{self, ApiServer},
    postgres::{self, Postgres},
};
use fake_engine::{Cluster, Engine, Options};
use fake_kubernetes::EmbeddedCluster;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use sqlx::{
    Connection, PgConnection, PgPool, Row,
    postgres::{PgConnectOptions, PgPoolOptions},
};

const NAMESPACE: &str = "ocean-compute";
const LIMIT: Duration = Duration::from_secs(30);

enum Server {
    Embedded(EmbeddedCluster),
    Bare(Box<ApiServer>),
}

/// Books, a cluster and an engine.
struct Bench {
    directory: PathBuf,
    postgres: Option<Postgres>,
    books: PgPool,
    server: Server,
    client: kube::Client,
    settings: Options,
    engine: Option<Engine>,
    files: String,
}

impl Bench {
    async fn embedded(name: &str) -> Self {
        Self::start(name, false, |_| {}).await
    }

    async fn start(name: &str, bare: bool, adjust: impl FnOnce(&mut Options)) -> Self {
        fake_engine::install_tls();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("engine-{name}"));
        postgres::remove(&directory.join("postgres")).unwrap();
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();

        let (postgres, options) = database(&directory).await;
        let books = PgPoolOptions::new().max_connections(3).connect_with(options.clone()).await.unwrap();
        let mut migrations: Vec<PathBuf> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../migrations"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        migrations.sort();
        for migration in migrations {
            let statements = fs::read_to_string(migration).unwrap();
            sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&books).await.unwrap();
        }

        let (server, kubeconfig) = if bare {
            let server = ApiServer::start(apiserver::Options {
                assets: std::env::var_os("KUBEBUILDER_ASSETS").unwrap().into(),
                directory: directory.join("apiserver"),
                durable: false,
            });
            let server = server.await.unwrap();
            let kubeconfig = server.kubeconfig().to_owned();
            (Server::Bare(Box::new(server)), kubeconfig)
        } else {
            let cluster = EmbeddedCluster::start(fake_kubernetes::Options::default()).await.unwrap();
            let kubeconfig = cluster.kubeconfig();
            (Server::Embedded(cluster), kubeconfig)
        };
        let kubeconfig = Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.proxy_url = None;
        let client = kube::Client::try_from(config).unwrap();
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(NAMESPACE.to_owned());
        Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();

        let kind = if bare { Cluster::Bare } else { Cluster::Embedded };
        let mut settings = Options::new(options, NAMESPACE, kind, directory.join("engine"));
        settings.interval = Duration::from_millis(100);
        adjust(&mut settings);
        let engine = Some(Engine::start(settings.clone(), client.clone()).await.unwrap());
        Self { directory, postgres, books, server, client, settings, engine, files: files().await }
    }

    /// Ends the engine in the middle of what it does, and starts another.
    async fn replace_engine(&mut self) {
        self.engine.take().unwrap().stop().await;
        self.engine = Some(Engine::start(self.settings.clone(), self.client.clone()).await.unwrap());
    }

    async fn stop(self) {
        if let Some(engine) = self.engine {
            engine.stop().await;
        }
        self.books.close().await;
        match self.server {
            Server::Embedded(cluster) => cluster.shutdown().await,
            Server::Bare(server) => server.stop().await.unwrap(),
        }
        if let Some(postgres) = self.postgres {
            postgres.stop().await.unwrap();
        }
        postgres::remove(&self.directory.join("postgres")).unwrap();
        fs::remove_dir_all(&self.directory).unwrap();
    }

    /// A stage whose algorithm is that shell script.
    fn stage(&self, code: &str) -> Value {
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

    /// Writes a job to the books; says its id.
    async fn submit(&self, stage: &Value) -> String {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let workflow = json!({
            "apiVersion": "v0.0.1",
            "kind": "WorkFlow",
            "metadata": {
                "name": id, "namespace": NAMESPACE, "labels": {"workflow": id}, "secret": "0123456789abcdef0123456789abcdef",
            },
            "spec": {"metadata": {"stages": [stage], "chainId": 1}},
        });
        sqlx::query(
            "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, namespace, workflow)
             VALUES ($1, $1, 'somebody', 1, 'Warming up', $2, $3)",
        )
        .bind(&id)
        .bind(NAMESPACE)
        .bind(workflow.to_string())
        .execute(&self.books)
        .await
        .unwrap();
        id
    }

    async fn status(&self, id: &str) -> i32 {
        sqlx::query_scalar("SELECT status FROM jobs WHERE workflowid = $1")
            .bind(id)
            .fetch_one(&self.books)
            .await
            .unwrap()
    }

    /// Waits for its end; says the status, and the list of its outputs.
    async fn finished(&self, id: &str) -> (i32, Vec<Value>) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let row =
                sqlx::query("SELECT status, outputsurl, datefinished IS NOT NULL FROM jobs WHERE workflowid = $1")
                    .bind(id)
                    .fetch_one(&self.books)
                    .await
                    .unwrap();
            let status: i32 = row.get(0);
            if row.get(2) {
                let outputs: Option<String> = row.get(1);
                let outputs = serde_json::from_str(&outputs.unwrap_or_else(|| "[]".to_owned())).unwrap();
                return (status, outputs);
            }
            assert!(Instant::now() < deadline, "stands at {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How many slots the engine says are taken.
    async fn current_jobs(&self) -> u64 {
        let text: Option<String> = sqlx::query_scalar("SELECT status FROM envs WHERE namespace = $1")
            .bind(NAMESPACE)
            .fetch_optional(&self.books)
            .await
            .unwrap();
        text.map_or(0, |text| serde_json::from_str::<Value>(&text).unwrap()["currentJobs"].as_u64().unwrap())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn names<K>(&self) -> Vec<String>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
        K::DynamicType: Default,
    {
        let found = self.api::<K>().list(&ListParams::default()).await.unwrap();
        found.items.iter().map(ResourceExt::name_any).filter(|name| name != "kube-root-ca.crt").collect()
    }

    async fn pod(&self, id: &str, component: &str) -> Option<Pod> {
        let selector = ListParams::default().labels(&format!("workflow={id},component={component}"));
        self.api::<Pod>().list(&selector).await.unwrap().items.into_iter().next()
    }

    /// Waits until `sign`, a file that the algorithm makes, is there; says what it holds.
    async fn sign(&self, id: &str, sign: &str) -> String {
        let path = self.directory.join("engine/work").join(id).join("data").join(sign);
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Ok(text) = fs::read_to_string(&path)
                && text.ends_with('\n')
            {
                return text.trim().to_owned();
            }
            assert!(Instant::now() < deadline, "no {sign}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits for a pod of that step that `look` finds something in.
    async fn pod_with<T>(&self, id: &str, component: &str, look: impl Fn(&Value) -> Option<T>) -> T {
        let selector = ListParams::default().labels(&format!("workflow={id},component={component}"));
        let deadline = Instant::now() + LIMIT;
        loop {
            let pods = self.api::<Pod>().list(&selector).await.unwrap().items;
            let pods: Vec<Value> = pods.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect();
            if let Some(found) = pods.iter().find_map(&look) {
                return found;
            }
            assert!(Instant::now() < deadline, "no such pod: {}", json!(pods));
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a step's Job has failed; says its status.
    async fn failed_job(&self, id: &str, component: &str) -> Value {
        let deadline = Instant::now() + LIMIT;
        loop {
            let job = self.api::<Job>().get_opt(&format!("{id}-{component}-job")).await.unwrap();
            let status = serde_json::to_value(job.and_then(|job| job.status)).unwrap();
            let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
            if conditions.iter().any(|condition| condition["type"] == "Failed" && condition["status"] == "True") {
                return status;
            }
            assert!(Instant::now() < deadline, "the Job does not fail: {status}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes a step's Job as somebody does who wants its pods gone first.
    async fn delete_in_foreground(&self, id: &str, component: &str) {
        self.api::<Job>().delete(&format!("{id}-{component}-job"), &DeleteParams::foreground()).await.unwrap();
    }

    async fn delete_algorithm_job(&self, id: &str) {
        self.api::<Job>().delete(&format!("{id}-algorithm-job"), &DeleteParams::background()).await.unwrap();
    }
}

/// Says that a test was left out, and why; also to the file that LEFT_OUT_REPORT names.
fn left_out(line: &str) {
    println!("left out: {line}");
    if let Some(report) = std::env::var_os("LEFT_OUT_REPORT") {
        let mut report = fs::File::options().append(true).create(true).open(report).unwrap();
        writeln!(report, "{line}").unwrap();
    }
}

/// A database of the test's own.
async fn database(directory: &std::path::Path) -> (Option<Postgres>, PgConnectOptions) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let Some(url) = std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty()) else {
        let server = Postgres::start(postgres::Options::throwaway(directory.join("postgres"))).await.unwrap();
        let options = server.connect_options("postgres");
        return (Some(server), options);
    };
    let options = PgConnectOptions::from_str(&url).unwrap();
    let name = format!("engine_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    for statement in [format!("DROP DATABASE IF EXISTS {name}"), format!("CREATE DATABASE {name}")] {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    (None, options.database(&name))
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

async fn fetch(url: &str, range: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::builder().no_proxy().build().unwrap().get(url);
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), String::from_utf8(answer.bytes().await.unwrap().to_vec()).unwrap())
}

/// Whether a process still runs: neither gone nor a zombie.
fn runs(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

async fn ends(id: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while runs(id) {
        assert!(Instant::now() < deadline, "process {id} goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for ever, with a child of its own, and says so in a file.
const ENDLESS: &str =
    "echo begun; echo part > $OUTPUTS/part.txt; sleep 300 & echo $! > $VOLUME/child; wait; echo never\n";

/// Says that it ends never, and comes to hold far more memory than 64 MiB, in a process that it starts.
const HUNGRY: &str = "echo hungry; echo part > $OUTPUTS/part.txt; sleep 300 & echo $! > $VOLUME/child
    (head -c 200000000 /dev/zero; sleep 300) | tail -c 190000000 > /dev/null\n";

async fn runs_to_the_end(bench: Bench) {
    let mut stage = bench.stage(
        "echo progress
         env | sort | cut -d= -f1 | tr '\\n' ' ' > $OUTPUTS/names
         cat $INPUTS/feed/0 $INPUTS/feed/1 $INPUTS/seed/0 > $OUTPUTS/all.csv
         echo \"$DIDS $TRANSFORMATION_DID $secret\" > $OUTPUTS/env.txt
         mkdir -p $OUTPUTS/sub; echo deep > \"$OUTPUTS/sub/a b.txt\"
         ln -s /etc/passwd $OUTPUTS/link
         echo said >&2
         echo ready > $VOLUME/ready; while [ ! -e $VOLUME/go ]; do sleep 0.05; done\n",
    );
    stage["input"] = json!([
        {"index": 0, "id": "did:op:feed", "url": [format!("{}/one", bench.files), format!("{}/two", bench.files)]},
        {"index": 1, "id": "did:op:seed", "remote": {"type": "url", "url": format!("{}/one", bench.files), "method": "GET"}},
    ]);
    let id = bench.submit(&stage).await;
    bench.sign(&id, "ready").await;

    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<ConfigMap>().await, [id.as_str()]);
    let claims = bench.names::<PersistentVolumeClaim>().await;
    assert_eq!(claims, [format!("{id}-adminlogs"), format!("{id}-data")]);
    let job = bench.api::<Job>().get(&format!("{id}-algorithm-job")).await.unwrap();
    let labels = job.labels();
    assert_eq!((labels["app"].as_str(), labels["workflow"].as_str()), (id.as_str(), id.as_str()));
    assert_eq!(labels["component"], "algorithm");
    let pod = bench.pod(&id, "algorithm").await.unwrap();
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Running"));
    if let Server::Embedded(_) = bench.server {
        let deadline = Instant::now() + LIMIT;
        while bench.api::<Pod>().logs(&pod.name_any(), &LogParams::default()).await.unwrap() != "progress\nsaid\n" {
            assert!(Instant::now() < deadline, "the log does not arrive");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    fs::write(bench.directory.join("engine/work").join(&id).join("data/go"), "").unwrap();

    let (status, outputs) = bench.finished(&id).await;
    assert_eq!(status, 70);
    let kinds: Vec<(&str, &str)> =
        outputs.iter().map(|file| (file["filename"].as_str().unwrap(), file["type"].as_str().unwrap())).collect();
    assert_eq!(
        kinds,
        [
            ("all.csv", "output"),
            ("env.txt", "output"),
            ("names", "output"),
            ("sub/a b.txt", "output"),
            ("algorithm.log", "algorithmLog"),
            ("configure.log", "configrationLog"),
            ("publish.log", "publishLog"),
        ]
    );
    let url = |index: usize| outputs[index]["url"].as_str().unwrap();
    assert_eq!(fetch(url(0), None).await, (200, "first\nsecond\nfirst\n".to_owned()));
    assert_eq!(outputs[0]["filesize"], 19);
    assert_eq!(fetch(url(0), Some("bytes=6-11")).await, (206, "second".to_owned()));
    assert_eq!(fetch(url(0), Some("bytes=19-")).await.0, 416);
    let expected = "[\"feed\",\"seed\"] beef 0123456789abcdef0123456789abcdef\n";
    assert_eq!(fetch(url(1), None).await.1, expected);
    // PWD, OLDPWD, SHLVL and _ are the shell's own.
    let names = fetch(url(2), None).await.1;
    let given: Vec<&str> =
        names.split_whitespace().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name)).collect();
    assert_eq!(given, ["DIDS", "INPUTS", "LOGS", "OUTPUTS", "PATH", "TRANSFORMATION_DID", "VOLUME", "secret"]);
    assert_eq!(fetch(url(3), None).await.1, "deep\n");
    assert_eq!(fetch(url(4), None).await.1, "progress\nsaid\n");
    let traversal = url(0).replace("/0/all.csv", "/..%2f..%2fport");
    assert_eq!(fetch(&traversal, None).await.0, 404);

    let deadline = Instant::now() + LIMIT;
    loop {
        let left = (bench.names::<ConfigMap>().await, bench.names::<PersistentVolumeClaim>().await);
        let jobs = (bench.names::<Job>().await, bench.names::<Pod>().await);
        if [&left.0, &left.1, &jobs.0, &jobs.1].iter().all(|names| names.is_empty()) {
            break;
        }
        assert!(Instant::now() < deadline, "left in the cluster: {left:?} {jobs:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let deadline = Instant::now() + LIMIT;
    while bench.current_jobs().await > 0 || bench.directory.join("engine/work").join(&id).exists() {
        assert!(Instant::now() < deadline, "the slot or the directory stays taken");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bench.stop().await;
}

async fn ends_when_its_job_is_deleted(bench: Bench) {
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let child = bench.sign(&id, "child").await;
    bench.delete_algorithm_job(&id).await;
    ends(&child).await;
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!(status, 70);
    assert_eq!(outputs[0]["filename"], "part.txt");
    assert_eq!(fetch(outputs[1]["url"].as_str().unwrap(), None).await.1, "begun\n");
    bench.stop().await;
}

async fn waits_for_ever_when_the_algorithm_fails(bench: Bench) {
    let id = bench.submit(&bench.stage("echo no; exit 3\n")).await;
    let jobs = bench.api::<Job>();
    let deadline = Instant::now() + LIMIT;
    loop {
        let job = jobs.get_opt(&format!("{id}-algorithm-job")).await.unwrap();
        let conditions = job.and_then(|job| job.status).and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|condition| condition.type_ == "Failed" && condition.status == "True") {
            break;
        }
        assert!(Instant::now() < deadline, "the Job does not fail");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = bench.pod(&id, "algorithm").await.unwrap().status.unwrap();
        if status.phase.as_deref() == Some("Failed") {
            let state = status.container_statuses.unwrap().remove(0).state.unwrap();
            assert_eq!(state.terminated.unwrap().exit_code, 3);
            break;
        }
        assert!(Instant::now() < deadline, "the pod does not fail");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Longer than the engine looks at it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.current_jobs().await, 1);
    bench.delete_algorithm_job(&id).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_job_runs_to_the_end() {
    runs_to_the_end(Bench::embedded("whole").await).await;
}

#[tokio::test]
async fn a_job_ends_when_its_algorithm_job_is_deleted() {
    ends_when_its_job_is_deleted(Bench::embedded("deleted").await).await;
}

#[tokio::test]
async fn a_job_that_fails_is_waited_for_until_somebody_deletes_it() {
    waits_for_ever_when_the_algorithm_fails(Bench::embedded("fails").await).await;
}

#[tokio::test]
async fn the_same_on_a_bare_api_server() {
    if std::env::var_os("KUBEBUILDER_ASSETS").is_none() {
        left_out("the engine on a bare API server: KUBEBUILDER_ASSETS is not set");
        return;
    }
    runs_to_the_end(Bench::start("bare-whole", true, |_| {}).await).await;
    ends_when_its_job_is_deleted(Bench::start("bare-deleted", true, |_| {}).await).await;
    waits_for_ever_when_the_algorithm_fails(Bench::start("bare-fails", true, |_| {}).await).await;
}

#[tokio::test]
async fn the_exit_code_can_be_hidden_as_tee_hides_it() {
    let bench = Bench::start("exit-code", false, |options| options.ignore_exit_code = true).await;
    let id = bench.submit(&bench.stage("exit 3\n")).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_stop_request_ends_the_algorithm_and_publishes_what_there_is() {
    let bench = Bench::embedded("stop").await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let child = bench.sign(&id, "child").await;
    sqlx::query("UPDATE jobs SET stopreq = 1 WHERE workflowid = $1").bind(&id).execute(&bench.books).await.unwrap();
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!((status, outputs[0]["filename"].as_str()), (70, Some("part.txt")));
    ends(&child).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_filter_comes_between_algorithm_and_publishing() {
    let command = "echo filtering; rm $OUTPUTS/secret.txt; echo $$ > $VOLUME/filter; [ -e $VOLUME/quick ] || sleep 300";
    let bench = Bench::start("filter", false, |options| options.filter = Some(command.to_owned())).await;
    let code = "echo a > $OUTPUTS/secret.txt; echo b > $OUTPUTS/open.txt\n";
    let quick = bench.submit(&bench.stage(&format!("{code} touch $VOLUME/quick\n"))).await;
    let slow = bench.submit(&bench.stage(code)).await;
    let mut stage = bench.stage(code);
    stage["input"][0]["url"] = json!([format!("{}/broken", bench.files)]);
    let broken = bench.submit(&stage).await;

    let (status, outputs) = bench.finished(&quick).await;
    let names: Vec<&str> = outputs.iter().map(|file| file["filename"].as_str().unwrap()).collect();
    assert_eq!((status, names), (70, vec!["open.txt", "algorithm.log", "configure.log", "filter.log", "publish.log"]));
    assert_eq!(outputs[3]["type"], "filteringLog");

    // A filter that hangs goes on when its Job is deleted, and where the configuring step failed the status stays at 50.
    for (id, end) in [(&slow, 70), (&broken, 50)] {
        let process = bench.sign(id, "filter").await;
        assert_eq!(bench.status(id).await, 50);
        bench.delete_in_foreground(id, "filter").await;
        ends(&process).await;
        assert_eq!(bench.finished(id).await.0, end);
    }
    bench.stop().await;
}

#[tokio::test]
async fn the_announced_limit_ends_the_algorithm() {
    let bench = Bench::start("limit", false, |options| options.max_job_duration = Duration::from_secs(1)).await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    let stopreq: i16 = sqlx::query_scalar("SELECT stopreq FROM jobs WHERE workflowid = $1")
        .bind(&id)
        .fetch_one(&bench.books)
        .await
        .unwrap();
    assert_eq!(stopreq, 2);
    bench.stop().await;
}

#[tokio::test]
async fn what_cannot_be_provisioned_skips_the_algorithm() {
    let bench = Bench::embedded("provision").await;
    let mut stage = bench.stage("true\n");
    stage["input"][0]["url"] = json!([format!("{}/broken?secret=1", bench.files)]);
    let data = bench.submit(&stage).await;
    let mut stage = bench.stage("");
    stage["algorithm"]["url"] = json!(format!("{}/broken", bench.files));
    let algorithm = bench.submit(&stage).await;

    let (status, outputs) = bench.finished(&data).await;
    assert_eq!(status, 31);
    assert_eq!(outputs[0]["type"], "configrationLog");
    let log = fetch(outputs[0]["url"].as_str().unwrap(), None).await.1;
    assert!(log.contains("500") && !log.contains("secret"), "{log}");
    assert_eq!(bench.finished(&algorithm).await.0, 32);
    bench.stop().await;
}

#[tokio::test]
async fn an_algorithm_may_come_from_a_url() {
    let bench = Bench::embedded("url").await;
    let mut stage = bench.stage("");
    stage["algorithm"]["remote"] = json!({"type": "url", "url": format!("{}/code", bench.files)});
    let id = bench.submit(&stage).await;
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!(status, 70);
    assert_eq!(fetch(outputs[0]["url"].as_str().unwrap(), None).await.1, "from afar\n");
    bench.stop().await;
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_waited_for() {
    let bench = Bench::embedded("image").await;
    let mut stage = bench.stage("echo never > $OUTPUTS/out.txt\n");
    stage["algorithm"]["container"]["image"] = json!("example/does-not-exist");
    let id = bench.submit(&stage).await;
    let deadline = Instant::now() + LIMIT;
    loop {
        let waiting = bench.pod(&id, "algorithm").await.and_then(|pod| {
            let status = pod.status?;
            let state = status.container_statuses?.into_iter().next()?.state?;
            Some((status.phase?, state.waiting?.reason?))
        });
        if waiting == Some(("Pending".to_owned(), "ImagePullBackOff".to_owned())) {
            break;
        }
        assert!(Instant::now() < deadline, "{waiting:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pod = serde_json::to_value(bench.pod(&id, "algorithm").await.unwrap()).unwrap();
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting["message"], "Back-off pulling image \"example/does-not-exist:3\"");
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let conditions: Vec<_> =
        conditions.iter().map(|condition| json!([condition["type"], condition["status"]])).collect();
    let expected =
        [["Initialized", "True"], ["Ready", "False"], ["ContainersReady", "False"], ["PodScheduled", "True"]];
    assert_eq!(json!(conditions), json!(expected));
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_algorithm_job(&id).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn an_algorithm_that_takes_too_much_memory_is_killed() {
    // Killed as a whole: tee has no exit code to hide it with.
    let bench = Bench::start("memory", false, |options| options.ignore_exit_code = true).await;
    let mut stage = bench.stage(HUNGRY);
    stage["compute"]["resources"] = json!({"requests_memory": "16Mi", "limits_memory": "64Mi"});
    let id = bench.submit(&stage).await;
    let child = bench.sign(&id, "child").await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    let pod = bench.pod_with(&id, "algorithm", |pod| (pod["status"]["phase"] == "Failed").then(|| pod.clone())).await;
    let resources = &pod["spec"]["containers"][0]["resources"];
    assert_eq!(resources["limits"], json!({"cpu": "1", "memory": "64Mi"}));
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["reason"], &terminated["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    ends(&child).await;
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_in_foreground(&id, "algorithm").await;
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!((status, outputs[0]["filename"].as_str()), (70, Some("part.txt")));
    bench.stop().await;
}

#[tokio::test]
async fn a_container_that_fails_is_started_again_in_its_pod() {
    let bench = Bench::start("restarts", false, |options| options.restart_pause = Some(LIMIT * 100)).await;
    let id = bench.submit(&bench.stage("echo run >> $VOLUME/runs; echo only once; exit 3\n")).await;
    let pod = bench
        .pod_with(&id, "algorithm", |pod| {
            let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            (waiting == "CrashLoopBackOff").then(|| pod.clone())
        })
        .await;
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!((&pod["status"]["phase"], &container["restartCount"]), (&json!("Running"), &json!(1)));
    let last = &container["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("Error"), &json!(3)));
    let work = bench.directory.join("engine/work").join(&id).join("data");
    assert_eq!(fs::read_to_string(work.join("runs")).unwrap(), "run\nrun\n");
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert_eq!(bench.api::<Pod>().logs(name, &LogParams::default()).await.unwrap(), "only once\n");
    let job = bench.api::<Job>().get(&format!("{id}-algorithm-job")).await.unwrap().status.unwrap();
    assert_eq!((job.active, job.failed, job.conditions), (Some(1), None, None));
    bench.delete_in_foreground(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_job_that_has_had_its_restarts_takes_its_pod_along() {
    let bench =
        Bench::start("restarted", false, |options| options.restart_pause = Some(Duration::from_millis(1))).await;
    let id = bench.submit(&bench.stage("exit 3\n")).await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    assert_eq!((&status["failed"], &status["active"]), (&json!(1), &Value::Null));
    let deadline = Instant::now() + LIMIT;
    while bench.pod(&id, "algorithm").await.is_some() {
        assert!(Instant::now() < deadline, "the pod stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_in_foreground(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_pod_that_asks_for_more_than_there_is_stays_pending() {
    let bench = Bench::embedded("pending").await;
    let mut stage = bench.stage("echo never > $OUTPUTS/out.txt\n");
    stage["compute"]["resources"] =
        json!({"requests_cpu": "1000", "limits_cpu": 1000, "requests_memory": "1Pi", "limits_memory": "1Pi"});
    let id = bench.submit(&stage).await;
    let status = bench
        .pod_with(&id, "algorithm", |pod| pod["status"]["conditions"].is_array().then(|| pod["status"].clone()))
        .await;
    assert_eq!(status["phase"], "Pending");
    assert!(status["containerStatuses"].is_null() && status["startTime"].is_null(), "{status}");
    let mut condition = status["conditions"][0].clone();
    condition.as_object_mut().unwrap().remove("lastTransitionTime");
    let message = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.";
    let expected = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    assert_eq!(condition, expected);
    let job = bench.api::<Job>().get(&format!("{id}-algorithm-job")).await.unwrap().status.unwrap();
    assert!(job.start_time.is_some() && job.active == Some(1), "{job:?}");
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_in_foreground(&id, "algorithm").await;
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!((status, outputs[0]["type"].as_str()), (70, Some("configrationLog")));
    bench.stop().await;
}

#[tokio::test]
async fn a_step_whose_volumes_were_taken_away_waits_for_them() {
    let bench = Bench::embedded("volumes").await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let other = bench.submit(&bench.stage(ENDLESS)).await;
    for id in [&id, &other] {
        bench.sign(id, "child").await;
    }
    let claims = bench.api::<PersistentVolumeClaim>();
    let data = claims.get(&format!("{id}-data")).await.unwrap();
    assert_eq!(data.status.unwrap().phase.as_deref(), Some("Bound"));
    // The algorithm does not use this one, the next step does.
    claims.delete(&format!("{id}-adminlogs"), &DeleteParams::foreground()).await.unwrap();
    bench.api::<ConfigMap>().delete(&other, &DeleteParams::foreground()).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while claims.get_opt(&format!("{id}-adminlogs")).await.unwrap().is_some() {
        assert!(Instant::now() < deadline, "the claim stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for id in [&id, &other] {
        bench.delete_in_foreground(id, "algorithm").await;
    }
    let message = bench
        .pod_with(&id, "publish", |pod| {
            let condition = &pod["status"]["conditions"][0];
            (condition["reason"] == "Unschedulable").then(|| condition["message"].as_str().unwrap().to_owned())
        })
        .await;
    assert_eq!(message, format!("0/1 nodes are available: persistentvolumeclaim \"{id}-adminlogs\" not found."));
    let waits =
        |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ContainerCreating";
    bench.pod_with(&other, "publish", |pod| waits(pod).then_some(())).await;
    for id in [&id, &other] {
        assert_eq!(bench.status(id).await, 60);
        bench.delete_in_foreground(id, "publish").await;
        assert_eq!(bench.finished(id).await, (70, vec![]));
    }
    bench.stop().await;
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_until_there_were_too_many() {
    let bench = Bench::embedded("evicted").await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let evicted =
        json!({"status": {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}});
    for number in 0..7 {
        let name = bench
            .pod_with(&id, "algorithm", |pod| {
                (pod["status"]["phase"] == "Running").then(|| pod["metadata"]["name"].as_str().unwrap().to_owned())
            })
            .await;
        let job = bench.api::<Job>().get(&format!("{id}-algorithm-job")).await.unwrap().status.unwrap();
        assert_eq!((job.failed.unwrap_or_default(), job.active), (number, Some(1)));
        let child = bench.sign(&id, "child").await;
        fs::remove_file(bench.directory.join("engine/work").join(&id).join("data/child")).unwrap();
        let patch = Patch::Merge(&evicted);
        bench.api::<Pod>().patch_status(&name, &PatchParams::default(), &patch).await.unwrap();
        ends(&child).await;
        let found = bench.api::<Pod>().get(&name).await.unwrap().status.unwrap();
        assert_eq!((found.phase.as_deref(), found.reason.as_deref()), (Some("Failed"), Some("Evicted")));
    }
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!((&status["failed"], &status["conditions"][1]["reason"]), (&json!(7), &json!("BackoffLimitExceeded")));
    assert_eq!((bench.status(&id).await, bench.names::<Pod>().await.len()), (40, 7));
    bench.delete_in_foreground(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn every_step_ends_when_its_job_is_deleted_in_the_foreground() {
    let bench = Bench::embedded("foreground").await;
    // The configuring step waits for an input.
    let mut stage = bench.stage("true\n");
    stage["input"][0]["url"] = json!([format!("{}/endless", bench.files)]);
    let configure = bench.submit(&stage).await;
    let algorithm = bench.submit(&bench.stage(ENDLESS)).await;
    // The publishing step stumbles over outputs that are no directory.
    let publish = bench.submit(&bench.stage("rm -r $OUTPUTS; echo part > $OUTPUTS\n")).await;

    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
    bench.pod_with(&configure, "configure", running).await;
    let child = bench.sign(&algorithm, "child").await;
    bench.failed_job(&publish, "publish").await;
    assert_eq!((bench.status(&configure).await, bench.status(&publish).await), (20, 60));
    for (id, step) in [(&configure, "configure"), (&algorithm, "algorithm"), (&publish, "publish")] {
        bench.delete_in_foreground(id, step).await;
    }
    ends(&child).await;
    // A configuring step that did not say how it went is a failed one.
    let (status, outputs) = bench.finished(&configure).await;
    assert_eq!((status, outputs[0]["type"].as_str()), (20, Some("configrationLog")));
    let (status, outputs) = bench.finished(&algorithm).await;
    assert_eq!((status, outputs[0]["filename"].as_str()), (70, Some("part.txt")));
    let (status, outputs) = bench.finished(&publish).await;
    assert_eq!((status, outputs), (70, vec![]));
    bench.stop().await;
}

#[tokio::test]
async fn what_the_real_engine_stumbles_over_costs_a_slot() {
    let bench = Bench::embedded("slot").await;
    let mut stage = bench.stage("true\n");
    stage["algorithm"]["container"].as_object_mut().unwrap().remove("image");
    let lacking = bench.submit(&stage).await;
    let mut stage = bench.stage("true\n");
    stage["comment"] = json!("beyond LATIN9: \u{4e2d}");
    let odd = bench.submit(&stage).await;
    let deadline = Instant::now() + LIMIT;
    while bench.current_jobs().await < 2 || bench.status(&lacking).await < 40 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let good = bench.submit(&bench.stage("true\n")).await;
    assert_eq!(bench.finished(&good).await.0, 70);
    assert_eq!(bench.status(&lacking).await, 40);
    assert_eq!(bench.status(&odd).await, 10);
    let deadline = Instant::now() + LIMIT;
    while bench.current_jobs().await != 2 {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bench.stop().await;
}

#[tokio::test]
async fn what_an_engine_had_when_it_was_killed_is_orphaned() {
    let mut bench = Bench::embedded("orphan").await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let child = bench.sign(&id, "child").await;
    bench.replace_engine().await;
    ends(&child).await;

    // The new engine runs what it is given, and nothing else.
    let other = bench.submit(&bench.stage("true\n")).await;
    assert_eq!(bench.finished(&other).await.0, 70);
    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<Job>().await, [format!("{id}-algorithm-job")]);
    assert!(bench.names::<ConfigMap>().await.contains(&id));
    let phase = bench.pod(&id, "algorithm").await.unwrap().status.unwrap().phase;
    assert_eq!(phase.as_deref(), Some("Running"));

    // Somebody who tidies up after it: a claim outlives the pod that uses it.
    let claims = bench.api::<PersistentVolumeClaim>();
    claims.delete(&format!("{id}-data"), &DeleteParams::foreground()).await.unwrap();
    assert!(claims.get(&format!("{id}-data")).await.unwrap().metadata.deletion_timestamp.is_some());
    bench.delete_in_foreground(&id, "algorithm").await;
    let deadline = Instant::now() + LIMIT;
    while bench.pod(&id, "algorithm").await.is_some() || !bench.names::<Job>().await.is_empty() {
        assert!(Instant::now() < deadline, "Job or pod stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let deadline = Instant::now() + LIMIT;
    while bench.names::<PersistentVolumeClaim>().await.contains(&format!("{id}-data")) {
        assert!(Instant::now() < deadline, "the claim stays");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(bench.status(&id).await, 40);
    bench.stop().await;
}
