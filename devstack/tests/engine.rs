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
    cluster::{self, EmbeddedCluster},
    engine::{Cluster, Engine, Options},
    postgres::{self, Postgres},
};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, LogParams, PostParams},
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
    engine: Engine,
    files: String,
}

impl Bench {
    async fn embedded(name: &str) -> Self {
        Self::start(name, false, |_| {}).await
    }

    async fn start(name: &str, bare: bool, adjust: impl FnOnce(&mut Options)) -> Self {
        devstack::install_tls();
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("engine-{name}"));
        postgres::remove(&directory.join("postgres")).unwrap();
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();

        let (postgres, options) = database(&directory).await;
        let books = PgPoolOptions::new().max_connections(3).connect_with(options.clone()).await.unwrap();
        let mut migrations: Vec<PathBuf> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations"))
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
            let cluster = EmbeddedCluster::start(cluster::Options::default()).await.unwrap();
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
        let engine = Engine::start(settings, client.clone()).await.unwrap();
        Self { directory, postgres, books, server, client, engine, files: files().await }
    }

    async fn stop(self) {
        self.engine.stop().await;
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
        .route("/broken", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }));
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
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_algorithm_job(&id).await;
    assert_eq!(bench.finished(&id).await.0, 70);
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
async fn stopping_the_engine_kills_what_it_runs_and_leaves_the_row_as_it_is() {
    let bench = Bench::embedded("orphan").await;
    let id = bench.submit(&bench.stage(ENDLESS)).await;
    let child = bench.sign(&id, "child").await;
    let Bench { directory, postgres, books, server, engine, .. } = bench;
    engine.stop().await;
    ends(&child).await;
    let status: i32 =
        sqlx::query_scalar("SELECT status FROM jobs WHERE workflowid = $1").bind(&id).fetch_one(&books).await.unwrap();
    assert_eq!(status, 40);
    books.close().await;
    if let Server::Embedded(cluster) = server {
        cluster.shutdown().await;
    }
    if let Some(postgres) = postgres {
        postgres.stop().await.unwrap();
    }
    postgres::remove(&directory.join("postgres")).unwrap();
    fs::remove_dir_all(&directory).unwrap();
}
