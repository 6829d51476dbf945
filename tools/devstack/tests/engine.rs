//! The engine stand-in, from a row in the database to the job's end.

#![allow(clippy::unwrap_used, reason = "a test may")]

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
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod};
use k8s_openapi::serde::de::DeserializeOwned;
use kube::api::{DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::sync::OnceCell;

const NAMESPACE: &str = "ocean-compute";

/// Repeats a look until it finds something.
async fn until<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A database, a cluster and an engine.
struct Bench {
    directory: PathBuf,
    database: PgPool,
    embedded: Option<EmbeddedCluster>,
    apiserver: Option<ApiServer>,
    client: kube::Client,
    settings: Options,
    engine: Engine,
    files: String,
}

impl Bench {
    async fn embedded(name: &str) -> Self {
        Self::start(name, |_| {}).await
    }

    async fn start(name: &str, adjust: impl FnOnce(&mut Options)) -> Self {
        Self::with(name, None, adjust).await
    }

    async fn with(name: &str, apiserver: Option<ApiServer>, adjust: impl FnOnce(&mut Options)) -> Self {
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
            Some(server) => server.kubeconfig().to_owned(),
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
        Self { directory, database, embedded, apiserver, client, settings, engine, files: files().await }
    }

    async fn stop(self) {
        self.engine.stop().await;
        self.database.close().await;
        if let Some(cluster) = self.embedded {
            cluster.shutdown().await;
        }
        if let Some(server) = self.apiserver {
            server.stop().await.unwrap();
        }
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

    /// Writes a job to the database; returns its id.
    async fn submit(&self, stage: &Value) -> String {
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

    async fn run(&self, code: &str) -> String {
        self.submit(&self.stage(code)).await
    }

    async fn status(&self, id: &str) -> i32 {
        let statement = sqlx::query_scalar("SELECT status FROM jobs WHERE workflowid = $1");
        statement.bind(id).fetch_one(&self.database).await.unwrap()
    }

    /// Waits for a job's end; returns its status and the list of its outputs.
    async fn finished(&self, id: &str) -> (i32, Vec<Value>) {
        let statement = "SELECT status, coalesce(outputsurl, '[]') FROM jobs
            WHERE workflowid = $1 AND datefinished IS NOT NULL";
        let look = async || sqlx::query_as(statement).bind(id).fetch_optional(&self.database).await.unwrap();
        let (status, outputs): (i32, String) = until("the end of a job", look).await;
        (status, serde_json::from_str(&outputs).unwrap())
    }

    /// The number of slots that the engine announces as taken.
    async fn current_jobs(&self) -> u64 {
        let statement = sqlx::query_scalar("SELECT status::jsonb ->> 'currentJobs' FROM envs WHERE namespace = $1");
        let found: Option<String> = statement.bind(NAMESPACE).fetch_optional(&self.database).await.unwrap();
        found.unwrap_or_default().parse().unwrap_or(0)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn names<K>(&self) -> Vec<String>
    where
        K: kube::Resource<Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
        K::DynamicType: Default,
    {
        let found = self.api::<K>().list(&ListParams::default()).await.unwrap();
        found.items.iter().map(ResourceExt::name_any).filter(|name| name != "kube-root-ca.crt").collect()
    }

    async fn pods(&self, id: &str, component: &str) -> Vec<Value> {
        let selector = ListParams::default().labels(&format!("workflow={id},component={component}"));
        let pods = self.api::<Pod>().list(&selector).await.unwrap();
        pods.items.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect()
    }

    /// Waits for a pod of that step that is as wanted.
    async fn pod(&self, id: &str, component: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        until(what, async || self.pods(id, component).await.into_iter().find(&wanted)).await
    }

    async fn job(&self, id: &str, component: &str) -> Value {
        serde_json::to_value(self.api::<Job>().get_opt(&format!("{id}-{component}-job")).await.unwrap()).unwrap()
    }

    /// Waits until a step's Job has failed; returns its status.
    async fn failed_job(&self, id: &str, component: &str) -> Value {
        until("a Job's failure", async || {
            let status = self.job(id, component).await["status"].take();
            let failed = |condition: &Value| condition["type"] == "Failed" && condition["status"] == "True";
            status["conditions"].as_array()?.iter().any(failed).then_some(status)
        })
        .await
    }

    /// Deletes a step's Job as somebody does who wants its pods gone first.
    async fn delete_job(&self, id: &str, component: &str) {
        self.api::<Job>().delete(&format!("{id}-{component}-job"), &DeleteParams::foreground()).await.unwrap();
    }

    fn volume(&self, id: &str) -> PathBuf {
        self.directory.join("engine/work").join(id).join("data")
    }

    /// Waits until a file that the algorithm writes a line to is there; returns the line.
    async fn file(&self, id: &str, name: &str) -> String {
        let path = self.volume(id).join(name);
        let look = async || fs::read_to_string(&path).ok().filter(|text| text.ends_with('\n'));
        until(name, look).await.trim().to_owned()
    }
}

/// The name of a job's first output, with the job's status.
fn first(finished: &(i32, Vec<Value>)) -> (i32, &str) {
    (finished.0, finished.1[0]["filename"].as_str().unwrap())
}

/// A database of the test's own, on the server of TEST_DATABASE_URL, or on one that ends with this process.
async fn database() -> PgConnectOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    static SERVER: OnceCell<Postgres> = OnceCell::const_new();
    let options = match std::env::var("TEST_DATABASE_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) => PgConnectOptions::from_str(&url).unwrap(),
        None => {
            let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("engine-postgres");
            let start = async || Postgres::start(postgres::Options::throwaway(directory)).await.unwrap();
            SERVER.get_or_init(start).await.connect_options("postgres")
        }
    };
    let name = format!("engine_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::SeqCst));
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

async fn fetch(output: &Value, range: Option<&str>) -> (u16, String) {
    let mut request = reqwest::Client::builder().no_proxy().build().unwrap().get(output["url"].as_str().unwrap());
    if let Some(range) = range {
        request = request.header("range", range);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// Waits until a process is gone or a zombie.
async fn ends(id: &str) {
    until("the end of a process", async || {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let runs = stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']));
        (!runs).then_some(())
    })
    .await;
}

/// Never ends, with a child of its own, whose id is in a file.
const ENDLESS: &str =
    "echo begun; echo part > $OUTPUTS/part.txt; sleep 300 & echo $! > $VOLUME/child; wait; echo never\n";

/// Never ends, and holds far more memory than 64 MiB in a process that it starts.
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
    let (one, two) = (format!("{}/one", bench.files), format!("{}/two", bench.files));
    stage["input"] = json!([
        {"index": 0, "id": "did:op:feed", "url": [one, two]},
        {"index": 1, "id": "did:op:seed", "remote": {"type": "url", "url": one, "method": "GET"}},
    ]);
    let id = bench.submit(&stage).await;
    bench.file(&id, "ready").await;

    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<ConfigMap>().await, [id.as_str()]);
    let claims = bench.names::<PersistentVolumeClaim>().await;
    assert_eq!(claims, [format!("{id}-adminlogs"), format!("{id}-data")]);
    let job = bench.job(&id, "algorithm").await;
    assert_eq!(job["metadata"]["labels"], json!({"app": id, "workflow": id, "component": "algorithm"}));
    if bench.settings.cluster == Cluster::Embedded {
        let pod = bench.pod(&id, "algorithm", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
        let name = pod["metadata"]["name"].as_str().unwrap();
        let log = async || bench.api::<Pod>().logs(name, &LogParams::default()).await.unwrap();
        until("the log", async || (log().await == "progress\nsaid\n").then_some(())).await;
    }
    fs::write(bench.volume(&id).join("go"), "").unwrap();

    let (status, outputs) = bench.finished(&id).await;
    assert_eq!(status, 70);
    let kinds: Vec<_> = outputs.iter().map(|file| json!([file["filename"], file["type"]])).collect();
    let expected = [
        ["all.csv", "output"],
        ["env.txt", "output"],
        ["names", "output"],
        ["sub/a b.txt", "output"],
        ["algorithm.log", "algorithmLog"],
        ["configure.log", "configrationLog"],
        ["publish.log", "publishLog"],
    ];
    assert_eq!(json!(kinds), json!(expected));
    assert_eq!(fetch(&outputs[0], None).await, (200, "first\nsecond\nfirst\n".to_owned()));
    assert_eq!(outputs[0]["filesize"], 19);
    assert_eq!(fetch(&outputs[0], Some("bytes=6-11")).await, (206, "second".to_owned()));
    assert_eq!(fetch(&outputs[0], Some("bytes=19-")).await.0, 416);
    let expected = "[\"feed\",\"seed\"] beef 0123456789abcdef0123456789abcdef\n";
    assert_eq!(fetch(&outputs[1], None).await.1, expected);
    // PWD, OLDPWD, SHLVL and _ are the shell's own.
    let names = fetch(&outputs[2], None).await.1;
    let given = names.split_whitespace().filter(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    let expected = ["DIDS", "INPUTS", "LOGS", "OUTPUTS", "PATH", "TRANSFORMATION_DID", "VOLUME", "secret"];
    assert_eq!(given.collect::<Vec<_>>(), expected);
    assert_eq!(fetch(&outputs[3], None).await.1, "deep\n");
    assert_eq!(fetch(&outputs[4], None).await.1, "progress\nsaid\n");
    let outside = outputs[0]["url"].as_str().unwrap().replace("/0/all.csv", "/..%2f..%2fport");
    assert_eq!(fetch(&json!({ "url": outside }), None).await.0, 404);

    until("the end of all objects", async || {
        let left = [
            bench.names::<ConfigMap>().await,
            bench.names::<PersistentVolumeClaim>().await,
            bench.names::<Job>().await,
            bench.names::<Pod>().await,
        ];
        left.iter().all(Vec::is_empty).then_some(())
    })
    .await;
    let free = async || bench.current_jobs().await == 0 && !bench.volume(&id).exists();
    until("a free slot and an empty directory", async || free().await.then_some(())).await;
    bench.stop().await;
}

async fn ends_when_its_job_is_deleted(bench: Bench) {
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    bench.api::<Job>().delete(&format!("{id}-algorithm-job"), &DeleteParams::background()).await.unwrap();
    ends(&child).await;
    let finished = bench.finished(&id).await;
    assert_eq!(first(&finished), (70, "part.txt"));
    assert_eq!(fetch(&finished.1[1], None).await.1, "begun\n");
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
async fn the_same_without_controllers() {
    let external = |options: &mut Options| options.cluster = Cluster::External;
    let Some(assets) = std::env::var_os("KUBEBUILDER_ASSETS") else {
        runs_to_the_end(Bench::start("external-whole", external).await).await;
        return ends_when_its_job_is_deleted(Bench::start("external-deleted", external).await).await;
    };
    let start = async |name: &str| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("apiserver-{name}"));
        let server = ApiServer::start(assets.as_ref(), &directory, false).await.unwrap();
        Bench::with(name, Some(server), external).await
    };
    runs_to_the_end(start("bare-whole").await).await;
    ends_when_its_job_is_deleted(start("bare-deleted").await).await;
}

#[tokio::test]
async fn a_job_that_fails_is_waited_for_until_somebody_deletes_it() {
    let bench = Bench::embedded("fails").await;
    let id = bench.run("echo no; exit 3\n").await;
    bench.failed_job(&id, "algorithm").await;
    let pod = bench.pod(&id, "algorithm", "a failed pod", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 3);
    // A second job runs to its end meanwhile.
    let other = bench.run("true\n").await;
    assert_eq!(bench.finished(&other).await.0, 70);
    assert_eq!(bench.status(&id).await, 40);
    until("the other slot", async || (bench.current_jobs().await == 1).then_some(())).await;
    bench.delete_job(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn the_exit_code_can_be_hidden_as_tee_hides_it() {
    let bench = Bench::start("exit-code", |options| options.ignore_exit_code = true).await;
    let id = bench.run("exit 3\n").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_stop_request_ends_the_algorithm_and_publishes_what_there_is() {
    let bench = Bench::embedded("stop").await;
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    sqlx::query("UPDATE jobs SET stopreq = 1 WHERE workflowid = $1").bind(&id).execute(&bench.database).await.unwrap();
    assert_eq!(first(&bench.finished(&id).await), (70, "part.txt"));
    ends(&child).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_filter_comes_between_algorithm_and_publishing() {
    let command = "echo filtering; rm $OUTPUTS/secret.txt; echo $$ > $VOLUME/filter; [ -e $VOLUME/quick ] || sleep 300";
    let bench = Bench::start("filter", |options| options.filter = Some(command.to_owned())).await;
    let code = "echo a > $OUTPUTS/secret.txt; echo b > $OUTPUTS/open.txt\n";
    let quick = bench.run(&format!("{code} touch $VOLUME/quick\n")).await;
    let slow = bench.run(code).await;
    let mut stage = bench.stage(code);
    stage["input"][0]["url"] = json!([format!("{}/broken", bench.files)]);
    let broken = bench.submit(&stage).await;

    let (status, outputs) = bench.finished(&quick).await;
    let names: Vec<&str> = outputs.iter().map(|file| file["filename"].as_str().unwrap()).collect();
    assert_eq!((status, names), (70, vec!["open.txt", "algorithm.log", "configure.log", "filter.log", "publish.log"]));
    assert_eq!(outputs[3]["type"], "filteringLog");

    // A filter that hangs ends when its Job is deleted, and where the configure step failed the status stays at 50.
    for (id, end) in [(&slow, 70), (&broken, 50)] {
        let process = bench.file(id, "filter").await;
        assert_eq!(bench.status(id).await, 50);
        bench.delete_job(id, "filter").await;
        ends(&process).await;
        assert_eq!(bench.finished(id).await.0, end);
    }
    bench.stop().await;
}

#[tokio::test]
async fn the_announced_limit_ends_the_algorithm() {
    let bench = Bench::start("limit", |options| options.max_job_duration = Duration::from_secs(1)).await;
    let id = bench.run(ENDLESS).await;
    assert_eq!(bench.finished(&id).await.0, 70);
    let statement = sqlx::query_scalar("SELECT stopreq FROM jobs WHERE workflowid = $1");
    let stopreq: i16 = statement.bind(&id).fetch_one(&bench.database).await.unwrap();
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
    assert_eq!((status, &outputs[0]["type"]), (31, &json!("configrationLog")));
    let log = fetch(&outputs[0], None).await.1;
    assert!(log.contains("500") && !log.contains("secret"), "{log}");
    assert_eq!(bench.finished(&algorithm).await.0, 32);
    bench.stop().await;
}

#[tokio::test]
async fn an_algorithm_may_come_from_a_url() {
    let bench = Bench::embedded("url").await;
    let mut stage = bench.stage("");
    stage["algorithm"]["remote"] = json!({"type": "url", "url": format!("{}/code", bench.files)});
    let (status, outputs) = bench.finished(&bench.submit(&stage).await).await;
    assert_eq!((status, fetch(&outputs[0], None).await.1.as_str()), (70, "from afar\n"));
    bench.stop().await;
}

#[tokio::test]
async fn an_image_that_does_not_exist_is_waited_for() {
    let bench = Bench::embedded("image").await;
    let mut stage = bench.stage("echo never > $OUTPUTS/out.txt\n");
    stage["algorithm"]["container"]["image"] = json!("example/does-not-exist");
    let id = bench.submit(&stage).await;
    let waits = |pod: &Value| !pod["status"]["containerStatuses"][0]["state"]["waiting"].is_null();
    let pod = bench.pod(&id, "algorithm", "a pod that waits", waits).await;
    assert_eq!(pod["status"]["phase"], "Pending");
    let message = "Back-off pulling image \"example/does-not-exist:3\"";
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    assert_eq!(waiting, &json!({"reason": "ImagePullBackOff", "message": message}));
    let conditions = pod["status"]["conditions"].as_array().unwrap().iter();
    let conditions: Vec<_> = conditions.map(|met| json!([met["type"], met["status"]])).collect();
    let expected =
        [["Initialized", "True"], ["Ready", "False"], ["ContainersReady", "False"], ["PodScheduled", "True"]];
    assert_eq!(json!(conditions), json!(expected));
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_job(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn an_algorithm_that_takes_too_much_memory_is_killed() {
    // Killed as a whole: tee has no exit code to hide it with.
    let bench = Bench::start("memory", |options| options.ignore_exit_code = true).await;
    let mut stage = bench.stage(HUNGRY);
    stage["compute"]["resources"] = json!({"requests_memory": "16Mi", "limits_memory": "64Mi"});
    let id = bench.submit(&stage).await;
    let child = bench.file(&id, "child").await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    let pod = bench.pod(&id, "algorithm", "a failed pod", |pod| pod["status"]["phase"] == "Failed").await;
    let limits = &pod["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(limits, &json!({"cpu": "1", "memory": "64Mi"}));
    let terminated = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&terminated["reason"], &terminated["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    ends(&child).await;
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_job(&id, "algorithm").await;
    assert_eq!(first(&bench.finished(&id).await), (70, "part.txt"));
    bench.stop().await;
}

#[tokio::test]
async fn a_container_that_fails_is_started_again_in_its_pod() {
    let bench = Bench::start("restarts", |options| options.restart_pause = Some(Duration::from_secs(3000))).await;
    let id = bench.run("echo run >> $VOLUME/runs; echo only once; exit 3\n").await;
    let waits = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = bench.pod(&id, "algorithm", "a pod that waits", waits).await;
    let container = &pod["status"]["containerStatuses"][0];
    assert_eq!((&pod["status"]["phase"], &container["restartCount"]), (&json!("Running"), &json!(1)));
    let last = &container["lastState"]["terminated"];
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("Error"), &json!(3)));
    assert_eq!(fs::read_to_string(bench.volume(&id).join("runs")).unwrap(), "run\nrun\n");
    let name = pod["metadata"]["name"].as_str().unwrap();
    assert_eq!(bench.api::<Pod>().logs(name, &LogParams::default()).await.unwrap(), "only once\n");
    let status = &bench.job(&id, "algorithm").await["status"];
    assert_eq!(status["active"], 1);
    assert!(status["failed"].is_null() && status["conditions"].is_null(), "{status}");
    bench.delete_job(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn a_job_that_has_had_its_restarts_takes_its_pod_along() {
    let bench = Bench::start("restarted", |options| options.restart_pause = Some(Duration::from_millis(1))).await;
    let id = bench.run("exit 3\n").await;
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!(status["conditions"][1]["reason"], "BackoffLimitExceeded");
    assert_eq!((&status["failed"], &status["active"]), (&json!(1), &Value::Null));
    until("the pod's end", async || bench.pods(&id, "algorithm").await.is_empty().then_some(())).await;
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_job(&id, "algorithm").await;
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
    let judged = |pod: &Value| pod["status"]["conditions"].is_array();
    let mut status = bench.pod(&id, "algorithm", "conditions", judged).await["status"].take();
    assert_eq!(status["phase"], "Pending");
    assert!(status["containerStatuses"].is_null() && status["startTime"].is_null(), "{status}");
    let condition = status["conditions"][0].as_object_mut().unwrap();
    condition.remove("lastTransitionTime");
    let message = "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.";
    let expected = json!({"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message});
    assert_eq!(status["conditions"][0], expected);
    assert_eq!(bench.job(&id, "algorithm").await["status"]["active"], 1);
    assert_eq!(bench.status(&id).await, 40);
    bench.delete_job(&id, "algorithm").await;
    let (status, outputs) = bench.finished(&id).await;
    assert_eq!((status, &outputs[0]["type"]), (70, &json!("configrationLog")));
    bench.stop().await;
}

#[tokio::test]
async fn an_evicted_pod_is_replaced_until_there_were_too_many() {
    let bench = Bench::embedded("evicted").await;
    let id = bench.run(ENDLESS).await;
    let message = "The node was low on resource: memory.";
    let evicted = Patch::Merge(json!({"status": {"phase": "Failed", "reason": "Evicted", "message": message}}));
    for number in 0..7 {
        let pod = bench.pod(&id, "algorithm", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
        let status = &bench.job(&id, "algorithm").await["status"];
        assert_eq!((status["failed"].as_i64().unwrap_or_default(), &status["active"]), (number, &json!(1)));
        let child = bench.file(&id, "child").await;
        fs::remove_file(bench.volume(&id).join("child")).unwrap();
        let name = pod["metadata"]["name"].as_str().unwrap();
        let patched = bench.api::<Pod>().patch_status(name, &PatchParams::default(), &evicted).await;
        patched.unwrap();
        ends(&child).await;
        let found = serde_json::to_value(bench.api::<Pod>().get(name).await.unwrap()).unwrap();
        assert_eq!((&found["status"]["phase"], &found["status"]["reason"]), (&json!("Failed"), &json!("Evicted")));
    }
    let status = bench.failed_job(&id, "algorithm").await;
    assert_eq!((&status["failed"], &status["conditions"][1]["reason"]), (&json!(7), &json!("BackoffLimitExceeded")));
    assert_eq!((bench.status(&id).await, bench.names::<Pod>().await.len()), (40, 7));
    bench.delete_job(&id, "algorithm").await;
    assert_eq!(bench.finished(&id).await.0, 70);
    bench.stop().await;
}

#[tokio::test]
async fn every_step_ends_when_its_job_is_deleted_in_the_foreground() {
    let bench = Bench::embedded("foreground").await;
    // The configure step waits for an input.
    let mut stage = bench.stage("true\n");
    stage["input"][0]["url"] = json!([format!("{}/endless", bench.files)]);
    let configure = bench.submit(&stage).await;
    let algorithm = bench.run(ENDLESS).await;
    // The publish step fails: the outputs are not a directory.
    let publish = bench.run("rm -r $OUTPUTS; echo part > $OUTPUTS\n").await;

    bench.pod(&configure, "configure", "a running pod", |pod| pod["status"]["phase"] == "Running").await;
    let child = bench.file(&algorithm, "child").await;
    bench.failed_job(&publish, "publish").await;
    assert_eq!((bench.status(&configure).await, bench.status(&publish).await), (20, 60));
    for (id, step) in [(&configure, "configure"), (&algorithm, "algorithm"), (&publish, "publish")] {
        bench.delete_job(id, step).await;
    }
    ends(&child).await;
    // A configure step that did not report how it ended has failed.
    let (status, outputs) = bench.finished(&configure).await;
    assert_eq!((status, &outputs[0]["type"]), (20, &json!("configrationLog")));
    assert_eq!(first(&bench.finished(&algorithm).await), (70, "part.txt"));
    assert_eq!(bench.finished(&publish).await, (70, vec![]));
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
    let lost = async || bench.current_jobs().await == 2 && bench.status(&lacking).await == 40;
    until("two lost slots", async || lost().await.then_some(())).await;
    let good = bench.run("true\n").await;
    assert_eq!(bench.finished(&good).await.0, 70);
    assert_eq!((bench.status(&lacking).await, bench.status(&odd).await), (40, 10));
    until("two lost slots again", async || lost().await.then_some(())).await;
    bench.stop().await;
}

#[tokio::test]
async fn what_an_engine_had_when_it_was_killed_is_orphaned() {
    let mut bench = Bench::embedded("orphan").await;
    let id = bench.run(ENDLESS).await;
    let child = bench.file(&id, "child").await;
    bench.engine.stop().await;
    bench.engine = Engine::start(bench.settings.clone(), bench.client.clone()).await.unwrap();
    ends(&child).await;

    // The new engine runs what it is given, and nothing else.
    let other = bench.run("true\n").await;
    assert_eq!(bench.finished(&other).await.0, 70);
    assert_eq!(bench.status(&id).await, 40);
    assert_eq!(bench.names::<Job>().await, [format!("{id}-algorithm-job")]);
    assert!(bench.names::<ConfigMap>().await.contains(&id));
    assert_eq!(bench.pods(&id, "algorithm").await[0]["status"]["phase"], "Running");

    // Somebody who cleans up after it: a claim outlives the pod that uses it.
    let (claims, data) = (bench.api::<PersistentVolumeClaim>(), format!("{id}-data"));
    claims.delete(&data, &DeleteParams::foreground()).await.unwrap();
    assert!(claims.get(&data).await.unwrap().metadata.deletion_timestamp.is_some());
    bench.delete_job(&id, "algorithm").await;
    until("the end of the objects", async || {
        let left = !bench.pods(&id, "algorithm").await.is_empty() || !bench.names::<Job>().await.is_empty();
        (!left && claims.get_opt(&data).await.unwrap().is_none()).then_some(())
    })
    .await;
    assert_eq!(bench.status(&id).await, 40);
    bench.stop().await;
}
