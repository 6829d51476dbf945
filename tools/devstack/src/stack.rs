//! Everything that `make run` and `make demo` need, up together and down together.
//!
//! What the environment names is used: POSTGRES_HOST (with POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD,
//! POSTGRES_DB) for the database, KUBECONFIG or KUBEBUILDER_ASSETS for the cluster. What it does not name is
//! started here.

use std::{
    env,
    ffi::OsString,
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use fake_engine::{
    Cluster, Engine, local,
    process::{self, Child, Program},
};
use fake_kubernetes::EmbeddedCluster;
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    jiff::Timestamp,
};
use kube::{
    Api,
    api::{Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;

use crate::{
    apiserver::{self, ApiServer},
    postgres::{self, Postgres},
    wallet::Wallet,
};

/// How long the service may take until it answers.
const SERVICE_LIMIT: Duration = Duration::from_secs(30);
/// How long migrating the schema may take.
const MIGRATE_LIMIT: Duration = Duration::from_secs(120);
/// How long the cluster may take to serve the new resource.
const DEFINITION_LIMIT: Duration = Duration::from_secs(30);
/// How long the service may take to finish the requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// How long a job rests in each state at least, so that one who asks every 100 ms sees them all.
const PACE: Duration = Duration::from_millis(200);
/// How old the definition of a resource has to be for kube-apiserver to take its objects at once. Its clock has no
/// fractions.
const SETTLE: Duration = Duration::from_secs(3);
/// Seconds between the sweeps of the reaper.
const SWEEPS: &str = "5";
/// What its sweeps write, but for their reports.
const SWEEP_LOG: &str = "reap.log";
/// How long a sweep may take.
const SWEEP_LIMIT: Duration = Duration::from_secs(120);
/// What the reaper waits for (seconds), so short that people see what it does.
const GRACES: [(&str, &str); 4] = [
    ("REAP_RETRY_GRACE", "20"),
    ("REAP_SCHEDULE_GRACE", "20"),
    ("REAP_ABSENT_GRACE", "5"),
    ("REAP_DISPATCH_GRACE", "30"),
];
/// The first pause before a container that fails is started again: a kubelet's.
const RESTART_PAUSE: Duration = Duration::from_secs(10);
const DATABASE: &str = "operator";

/// Why the stack is not up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another stack uses the directory.
    #[error("another devstack{} uses {directory}: stop it first", holder.map_or(String::new(), |id| format!(" (process {id})")))]
    Busy {
        /// The other's process id, if known.
        holder: Option<u32>,
        /// Which directory.
        directory: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A variable of the environment can't be used.
    #[error("{0}")]
    Environment(String),
    /// The private PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// etcd or kube-apiserver.
    #[error(transparent)]
    ApiServer(#[from] apiserver::Error),
    /// The embedded cluster.
    #[error("the embedded cluster could not start: {0}")]
    Embedded(io::Error),
    /// The cluster's API.
    #[error("the cluster ({what}): {source}")]
    Cluster {
        /// What was asked of it.
        what: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine stand-in.
    #[error(transparent)]
    Engine(#[from] fake_engine::Error),
    /// The service's binary is missing.
    #[error("there is no operator-service beside {0}: run cargo build first")]
    NoService(String),
    /// One of the service's commands failed.
    #[error("operator-service {command} {problem}; the end of {log}:{tail}")]
    Service {
        /// Which subcommand.
        command: &'static str,
        /// What happened.
        problem: String,
        /// Its log.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// The service's port is taken.
    #[error("port {port} is taken by {by}: stop that, or choose another with PORT={}", port.wrapping_add(1).max(1024))]
    Port {
        /// Which.
        port: u16,
        /// Who has it.
        by: String,
    },
    /// A process could not be started or watched.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// The HTTP client could not be made.
    #[error("no HTTP client: {0}")]
    Http(#[from] reqwest::Error),
}

/// What kind of stack is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where state, keys and logs are.
    pub directory: PathBuf,
    /// Whether it is for one demo: a free port, a service that knows nothing of the environment's settings, no state
    /// from before.
    pub demo: bool,
}

/// Told of each thing as it comes up: its name, and a line about it.
pub type Progress<'a> = &'a (dyn Fn(&str, &str) + Sync);

/// A running stack. Dropping it ends its processes, [`Stack::stop`] does so in good order.
pub struct Stack {
    /// The task that runs the reaper, if it runs.
    sweeps: JoinSet<()>,
    service: Child,
    engine: Option<Engine>,
    cluster: RunningCluster,
    postgres: Option<Postgres>,
    _lock: local::Lock,
    /// What is where.
    pub places: Places,
    /// The account whose signatures the service accepts.
    pub provider: Wallet,
    /// A client of the cluster.
    pub client: kube::Client,
}

/// What is where.
#[derive(Clone, Debug)]
pub struct Places {
    /// The service's address, without a slash at its end.
    pub service: String,
    /// A command line that opens the database.
    pub psql: String,
    /// What the cluster is.
    pub cluster: String,
    /// The kubeconfig file.
    pub kubeconfig: String,
    /// The namespace, which is the environment.
    pub namespace: String,
    /// Where the engine serves results, if it is ours.
    pub results: Option<String>,
    /// How often the reaper sweeps, if it does.
    pub sweeps: Option<Duration>,
    /// The keys' directory.
    pub keys: PathBuf,
    /// The logs' directory.
    pub logs: PathBuf,
}

#[derive(Debug)]
enum RunningCluster {
    Foreign,
    ApiServer(Box<ApiServer>),
    Embedded(EmbeddedCluster),
}

/// How to reach the database.
struct Database {
    host: String,
    port: u16,
    user: String,
    password: String,
    name: String,
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::File { path, source }
}

/// A path as a reader at the checkout's root would write it.
#[must_use]
pub fn shown(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

impl Stack {
    /// Brings everything up.
    ///
    /// # Errors
    /// Each of [`Error`]; what was started before is stopped.
    pub async fn start(options: Options, progress: Progress<'_>) -> Result<Self, Error> {
        fake_engine::install_tls();
        fs::create_dir_all(&options.directory).map_err(file(&options.directory))?;
        let directory = fs::canonicalize(&options.directory).map_err(file(&options.directory))?;
        let lock = take_lock(&directory)?;
        let service_program = service_program()?;
        let logs = directory.join("logs");
        let keys = directory.join("keys");
        for path in [&logs, &keys] {
            fs::create_dir_all(path).map_err(file(path))?;
        }
        // Before anything is started in vain.
        let listen = listen(options.demo).await?;
        let namespace = variable("DEFAULT_NAMESPACE").unwrap_or_else(|| "ocean-compute".to_owned());
        let wallet = |name: &str| {
            let path = keys.join(name);
            Wallet::load(&path).map_err(file(&path))
        };
        let (provider, account) = (wallet("provider")?, wallet("engine")?);

        let (postgres, database) = start_database(&directory, options.demo).await?;
        let psql = match &postgres {
            Some(server) => {
                let pass = directory.join("pgpass");
                let line = format!("*:*:*:{}:{}\n", database.user, database.password);
                local::write_private(&pass, line.as_bytes()).map_err(file(&pass))?;
                progress(
                    "Postgres",
                    &format!("private, 127.0.0.1:{}, data in {}", server.port(), shown(server.data())),
                );
                format!(
                    "PGPASSFILE={} psql -h 127.0.0.1 -p {} -U {} {}",
                    shown(&pass),
                    database.port,
                    database.user,
                    database.name
                )
            }
            None => {
                progress("Postgres", &format!("{}:{} (POSTGRES_HOST)", database.host, database.port));
                format!("psql -h {} -p {} -U {} {}", database.host, database.port, database.user, database.name)
            }
        };

        let (cluster, kind, kubeconfig) = start_cluster(&directory, &namespace, options.demo).await?;
        let cluster_line = match &cluster {
            RunningCluster::Foreign => "the one that KUBECONFIG names".to_owned(),
            RunningCluster::ApiServer(server) => {
                format!("etcd and kube-apiserver of KUBEBUILDER_ASSETS, {}", server.url())
            }
            RunningCluster::Embedded(server) => format!("embedded, {}", server.url()),
        };
        progress("cluster", &cluster_line);
        let client = connect(kind, &kubeconfig).await?;

        let own = |name: &str| if options.demo { None } else { variable(name) };
        let mut service = Service {
            program: service_program,
            clear: options.demo && kind != Cluster::Foreign,
            variables: vec![
                ("POSTGRES_HOST", database.host.clone()),
                ("POSTGRES_PORT", database.port.to_string()),
                ("POSTGRES_USER", database.user.clone()),
                ("POSTGRES_PASSWORD", database.password.clone()),
                ("POSTGRES_DB", database.name.clone()),
                ("KUBECONFIG", kubeconfig.clone()),
                ("DEFAULT_NAMESPACE", namespace.clone()),
                ("HOST", listen.ip().to_string()),
                ("PORT", listen.port().to_string()),
                ("SIGNATURE_REQUIRED", own("SIGNATURE_REQUIRED").unwrap_or_else(|| "1".to_owned())),
                (
                    "ALLOWED_PROVIDERS",
                    own("ALLOWED_PROVIDERS").unwrap_or_else(|| json!([provider.address()]).to_string()),
                ),
                ("OPERATOR_ADDRESS", own("OPERATOR_ADDRESS").unwrap_or_else(|| account.address().to_owned())),
            ],
        };
        service.run("migrate", &logs, MIGRATE_LIMIT).await?;
        progress("schema", "up to date");
        install_definition(&service, &client, kind, &logs).await?;
        ensure_namespace(&client, &namespace).await?;
        progress("WorkFlow", &format!("defined; namespace {namespace}"));

        let engine = if kind != Cluster::Foreign || variable("ENGINE").is_some_and(|value| value == "1") {
            let mut settings =
                fake_engine::Options::new(database.options(), &namespace, kind, directory.join("engine"));
            account.address().clone_into(&mut settings.consumer_address);
            settings.pace = PACE;
            // As with the real engine, an algorithm that fails leaves its log and ends.
            settings.ignore_exit_code = true;
            settings.restart_pause = Some(RESTART_PAUSE);
            let engine = Engine::start(settings, client.clone()).await?;
            let host = engine.file_host();
            let note = if kind == Cluster::Foreign { "; its Jobs are created suspended, and run here" } else { "" };
            progress("engine", &format!("stand-in, announces {namespace}, serves results on {host}{note}"));
            service.variables.push(("RESULT_HOSTS_ALLOWED", with_host(own("RESULT_HOSTS_ALLOWED"), &host)));
            Some(engine)
        } else {
            progress("engine", "none of ours: the cluster has its own (ENGINE=1 starts the stand-in)");
            None
        };

        let ours = postgres.is_some() && kind != Cluster::Foreign;
        let every = if options.demo { None } else { sweeps(ours)? };
        if every.is_some() && ours {
            let graces = GRACES.map(|(name, seconds)| (name, own(name).unwrap_or_else(|| seconds.to_owned())));
            service.variables.extend(graces);
        }

        let child = service.serve(listen, &logs).await?;
        let ip = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
        let address = format!("http://{}", SocketAddr::new(ip, listen.port()));
        progress("service", &address);
        let mut sweeping = JoinSet::new();
        if let Some(every) = every {
            progress(
                "reaper",
                &format!("sweeps every {every:?} (REAP_EVERY), logs to {}", shown(&logs.join(SWEEP_LOG))),
            );
            sweeping.spawn(sweep(service, logs.clone(), every));
        }
        Ok(Self {
            sweeps: sweeping,
            places: Places {
                service: address,
                psql,
                cluster: cluster_line,
                kubeconfig: shown(Path::new(&kubeconfig)),
                namespace,
                results: engine.as_ref().map(Engine::file_host),
                sweeps: every,
                keys,
                logs,
            },
            service: child,
            engine,
            cluster,
            postgres,
            _lock: lock,
            provider,
            client,
        })
    }

    /// Waits until the service ends, which it should not, and says how.
    pub async fn ended(&mut self) -> String {
        match self.service.wait().await {
            Ok(status) => format!(
                "operator-service ended ({status}); the end of {}:{}",
                shown(&self.places.logs.join("service.log")),
                process::tail(&self.places.logs.join("service.log"), 12)
            ),
            Err(error) => error.to_string(),
        }
    }

    /// Stops everything: what uses something else goes first.
    pub async fn stop(mut self) {
        self.sweeps.shutdown().await;
        if let Some(engine) = self.engine {
            engine.stop().await;
        }
        let note = |what: &str, problem: Option<String>| {
            if let Some(problem) = problem {
                tracing::warn!(what, problem, "did not stop in good order");
            }
        };
        let stopped = self.service.stop(STOP_LIMIT).await;
        note("service", stopped.err().map(|error| error.to_string()));
        match self.cluster {
            RunningCluster::Foreign => {}
            RunningCluster::ApiServer(server) => {
                note("apiserver", server.stop().await.err().map(|error| error.to_string()));
            }
            RunningCluster::Embedded(cluster) => cluster.shutdown().await,
        }
        if let Some(postgres) = self.postgres {
            note("postgres", postgres.stop().await.err().map(|error| error.to_string()));
        }
    }
}

impl Database {
    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.name)
    }
}

pub(crate) fn take_lock(directory: &Path) -> Result<local::Lock, Error> {
    let path = directory.join("lock");
    match local::Lock::take(&path) {
        Ok(Some(lock)) => Ok(lock),
        Ok(None) => Err(Error::Busy { holder: local::Lock::holder(&path), directory: shown(directory) }),
        Err(error) => Err(file(&path)(error)),
    }
}

/// The service's binary: cargo puts it beside ours.
fn service_program() -> Result<PathBuf, Error> {
    let own = env::current_exe().map_err(file(Path::new("the devstack's own binary")))?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("operator-service"))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::NoService(own.display().to_string()))
}

/// The address that the service is to listen on, if it is free.
async fn listen(demo: bool) -> Result<SocketAddr, Error> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if demo {
        let port = local::free_port().map_err(|error| Error::Environment(error.to_string()))?;
        return Ok(SocketAddr::new(loopback, port));
    }
    let host = match variable("HOST") {
        None => loopback,
        Some(text) => text.parse().map_err(|_| Error::Environment(format!("HOST={text} is no IP address")))?,
    };
    let port = match variable("PORT") {
        None => 8050,
        Some(text) => text.parse().map_err(|_| Error::Environment(format!("PORT={text} is no port")))?,
    };
    let address = SocketAddr::new(host, port);
    match TcpListener::bind(address) {
        Ok(_) => Ok(address),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            Err(Error::Port { port, by: occupant(address).await })
        }
        Err(error) => Err(Error::Environment(format!("can't listen on {address}: {error}"))),
    }
}

/// Who has a port, as far as can be found out: an operator-service says so itself.
async fn occupant(address: SocketAddr) -> String {
    let ask = async {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build().ok()?;
        let answer = client.get(format!("http://{address}/")).send().await.ok()?;
        let answer: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        Some(format!("{} {}", answer["software"].as_str()?, answer["version"].as_str()?))
    };
    let process = listener(address.port());
    match (ask.await, process) {
        (Some(software), Some(process)) => format!("{process}, which answers as \"{software}\""),
        (Some(software), None) => format!("another \"{software}\""),
        (None, Some(process)) => process,
        (None, None) => "another program".to_owned(),
    }
}

/// The process that listens on a port, where /proc tells.
fn listener(port: u16) -> Option<String> {
    let wanted = format!(":{port:04X}");
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| fs::read_to_string(path).unwrap_or_default());
    let socket = tables.iter().flat_map(|table| table.lines()).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // local address, state (0A is listening), inode
        (fields.get(1)?.ends_with(&wanted) && *fields.get(3)? == "0A").then(|| format!("socket:[{}]", fields[9]))
    })?;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let path = process.path();
        let holds = fs::read_dir(path.join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.as_os_str() == socket.as_str()));
        if holds {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            return Some(format!("process {} ({})", process.file_name().display(), name.trim()));
        }
    }
    None
}

async fn start_database(directory: &Path, demo: bool) -> Result<(Option<Postgres>, Database), Error> {
    if let Some(host) = variable("POSTGRES_HOST") {
        let port = match variable("POSTGRES_PORT") {
            None => 5432,
            Some(text) => text.parse().map_err(|_| Error::Environment(format!("POSTGRES_PORT={text} is no port")))?,
        };
        let needed = |name: &str| {
            variable(name)
                .ok_or_else(|| Error::Environment(format!("POSTGRES_HOST is set, so {name} has to be set too")))
        };
        let database = Database {
            host,
            port,
            user: needed("POSTGRES_USER")?,
            password: variable("POSTGRES_PASSWORD").unwrap_or_default(),
            name: needed("POSTGRES_DB")?,
        };
        return Ok((None, database));
    }
    let home = directory.join("postgres");
    let server =
        Postgres::start(if demo { postgres::Options::throwaway(home) } else { postgres::Options::durable(home) })
            .await?;
    server.ensure_database(DATABASE).await?;
    let database = Database {
        host: server.host().to_owned(),
        port: server.port(),
        user: server.user().to_owned(),
        password: server.password().to_owned(),
        name: DATABASE.to_owned(),
    };
    Ok((Some(server), database))
}

async fn start_cluster(
    directory: &Path,
    namespace: &str,
    demo: bool,
) -> Result<(RunningCluster, Cluster, String), Error> {
    if let Some(kubeconfig) = variable("KUBECONFIG") {
        return Ok((RunningCluster::Foreign, Cluster::Foreign, kubeconfig));
    }
    let path = directory.join("kubeconfig");
    let (cluster, kind, kubeconfig) = if let Some(assets) = variable("KUBEBUILDER_ASSETS") {
        let server = ApiServer::start(apiserver::Options {
            assets: assets.into(),
            directory: directory.join("apiserver"),
            durable: !demo,
        })
        .await?;
        let kubeconfig = server.kubeconfig().to_owned();
        (RunningCluster::ApiServer(Box::new(server)), Cluster::Bare, kubeconfig)
    } else {
        let home = directory.join("cluster");
        fs::create_dir_all(&home).map_err(file(&home))?;
        let port = local::port(&home.join("port")).map_err(file(&home.join("port")))?;
        let cluster = EmbeddedCluster::start(fake_kubernetes::Options {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            state: Some(home.join("objects")),
            namespaces: vec![namespace.to_owned()],
            ..Default::default()
        })
        .await
        .map_err(Error::Embedded)?;
        let kubeconfig = cluster.kubeconfig();
        (RunningCluster::Embedded(cluster), Cluster::Embedded, kubeconfig)
    };
    local::write_private(&path, kubeconfig.as_bytes()).map_err(file(&path))?;
    let path = path.display().to_string();
    Ok((cluster, kind, path))
}

async fn connect(kind: Cluster, kubeconfig: &str) -> Result<kube::Client, Error> {
    let wrong = |source: Box<dyn std::error::Error + Send + Sync>| Error::Cluster { what: "its kubeconfig", source };
    let options = KubeConfigOptions::default();
    let config = if kind == Cluster::Foreign {
        // KUBECONFIG may name several files.
        kube::Config::from_kubeconfig(&options).await
    } else {
        let kubeconfig = Kubeconfig::read_from(kubeconfig).map_err(|error| wrong(error.into()))?;
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await
    };
    let mut config = config.map_err(|error| wrong(error.into()))?;
    if kind != Cluster::Foreign {
        // What listens on the loopback address is not reached through the machine's proxy.
        config.proxy_url = None;
    }
    config.connect_timeout = Some(Duration::from_secs(5));
    config.read_timeout = Some(Duration::from_secs(15));
    kube::Client::try_from(config).map_err(|error| wrong(error.into()))
}

/// Defines the WorkFlow resource as the service prints it, and waits until it is served.
async fn install_definition(service: &Service, client: &kube::Client, kind: Cluster, logs: &Path) -> Result<(), Error> {
    let failed =
        |source: Box<dyn std::error::Error + Send + Sync>| Error::Cluster { what: "defining WorkFlow", source };
    let yaml = service.print("crd", logs).await?;
    let definition: Value = serde_yaml_ng::from_str(&yaml).map_err(|error| failed(error.into()))?;
    let name = definition["metadata"]["name"].as_str().unwrap_or_default();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    definitions
        .patch(name, &PatchParams::apply("devstack").force(), &Patch::Apply(&definition))
        .await
        .map_err(|error| failed(error.into()))?;
    let deadline = Instant::now() + DEFINITION_LIMIT;
    loop {
        let found = definitions.get(name).await.map_err(|error| failed(error.into()))?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        let established =
            conditions.iter().find(|condition| condition.type_ == "Established" && condition.status == "True");
        if let Some(established) = established {
            let since = established.last_transition_time.as_ref().map(|time| time.0);
            let age =
                since.map_or(SETTLE, |since| Timestamp::now().duration_since(since).try_into().unwrap_or_default());
            // kube-apiserver lets the first objects of a new resource wait for two seconds: rather now than in
            // somebody's first request.
            if kind != Cluster::Embedded && age < SETTLE {
                tokio::time::sleep(SETTLE - age).await;
            }
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(failed(format!("not established after {DEFINITION_LIMIT:?}").into()));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Time between two sweeps, if there are to be any: unasked only where database and cluster are ours. In somebody
/// else's, a reaper that sees one of the two only would take what runs there for dead.
fn sweeps(ours: bool) -> Result<Option<Duration>, Error> {
    let Some(text) = variable("REAP_EVERY").or_else(|| ours.then(|| SWEEPS.to_owned())) else {
        return Ok(None);
    };
    let seconds = text.parse().map_err(|_| Error::Environment(format!("REAP_EVERY={text} is no number of seconds")))?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}

/// Runs the reaper, one sweep after the other. A sweep that fails does no harm, and is told once until one succeeds
/// again.
async fn sweep(service: Service, logs: PathBuf, every: Duration) {
    let mut failing = false;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let swept = service.sweep(&logs).await;
        if let Err(error) = &swept
            && !failing
        {
            tracing::warn!(%error, "the reaper's sweep failed");
        }
        failing = swept.is_err();
    }
}

async fn ensure_namespace(client: &kube::Client, name: &str) -> Result<(), Error> {
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some(name.to_owned());
    match Api::all(client.clone()).create(&PostParams::default(), &namespace).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(Error::Cluster { what: "making the namespace", source: error.into() }),
    }
}

/// The list of hosts with one more, whichever way it was written.
fn with_host(list: Option<String>, host: &str) -> String {
    let list = list.unwrap_or_default();
    let mut hosts: Vec<String> = serde_json::from_str(&list).unwrap_or_else(|_| {
        list.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
    });
    hosts.push(host.to_owned());
    json!(hosts).to_string()
}

/// How the service's binary is run.
struct Service {
    program: PathBuf,
    clear: bool,
    variables: Vec<(&'static str, String)>,
}

impl Service {
    /// What a service with a cleared environment is left with, besides the variables given here.
    const KEPT: [&str; 8] =
        ["PATH", "HOME", "USER", "LANG", "TMPDIR", "LOG_LEVEL", "POSTGRES_SSLMODE", "POSTGRES_CA_FILE"];

    fn environment(&self) -> Vec<(&'static str, OsString)> {
        let kept = Self::KEPT.into_iter().filter(|_| self.clear);
        let kept = kept.filter_map(|name| Some((name, env::var_os(name)?)));
        kept.chain(self.variables.iter().map(|(name, value)| (*name, value.into()))).collect()
    }

    fn program(&self, command: &'static str) -> Program {
        let mut program = Program::new(&self.program).arg(command);
        if self.clear {
            program = program.env_clear();
        }
        for (name, value) in self.environment() {
            program = program.env(name, value);
        }
        program
    }

    fn command(&self, command: &'static str, log: &Path) -> Result<Program, Error> {
        Ok(self.program(command).log(process::open_log(log).map_err(file(log))?))
    }

    fn failed(command: &'static str, problem: String, log: &Path) -> Error {
        Error::Service { command, problem, log: shown(log), tail: process::tail(log, 12) }
    }

    /// Runs a command to its end.
    async fn run(&self, command: &'static str, logs: &Path, limit: Duration) -> Result<(), Error> {
        let log = logs.join(format!("{command}.log"));
        let mut child = self.command(command, &log)?.spawn()?;
        match tokio::time::timeout(limit, child.wait()).await {
            Ok(status) => {
                let status = status?;
                if status.success() { Ok(()) } else { Err(Self::failed(command, format!("failed ({status})"), &log)) }
            }
            Err(_) => Err(Self::failed(command, format!("is not done after {limit:?}"), &log)),
        }
    }

    /// One sweep of the reaper. Dropping it kills it, as it may be killed at any time.
    async fn sweep(&self, logs: &Path) -> Result<(), Error> {
        let log = logs.join(SWEEP_LOG);
        let errors = process::open_log(&log).map_err(file(&log))?;
        let mut child = self.program("reap").log_errors(errors).stop_with(Signal::SIGKILL).spawn()?;
        match tokio::time::timeout(SWEEP_LIMIT, child.wait()).await {
            Ok(status) => {
                let status = status?;
                if status.success() { Ok(()) } else { Err(Self::failed("reap", format!("failed ({status})"), &log)) }
            }
            Err(_) => Err(Self::failed("reap", format!("is not done after {SWEEP_LIMIT:?}"), &log)),
        }
    }

    /// What a command prints.
    async fn print(&self, command: &'static str, logs: &Path) -> Result<String, Error> {
        let log = logs.join(format!("{command}.log"));
        let mut run = tokio::process::Command::new(&self.program);
        if self.clear {
            run.env_clear();
        }
        run.arg(command)
            .envs(self.environment())
            .stdin(Stdio::null())
            .stderr(process::open_log(&log).map_err(file(&log))?)
            .kill_on_drop(true);
        let limit = Duration::from_secs(30);
        match tokio::time::timeout(limit, run.output()).await {
            Ok(Ok(output)) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            Ok(Ok(output)) => Err(Self::failed(command, format!("failed ({})", output.status), &log)),
            Ok(Err(error)) => Err(file(&self.program)(error)),
            Err(_) => Err(Self::failed(command, format!("is not done after {limit:?}"), &log)),
        }
    }

    /// Starts the service and waits until it answers.
    async fn serve(&self, listen: SocketAddr, logs: &Path) -> Result<Child, Error> {
        let log = logs.join("service.log");
        let mut child = self.command("serve", &log)?.spawn()?;
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let host = if listen.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { listen.ip() };
        let url = format!("http://{}/", SocketAddr::new(host, listen.port()));
        let deadline = Instant::now() + SERVICE_LIMIT;
        loop {
            if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success())
                && child.try_wait()?.is_none()
            {
                return Ok(child);
            }
            if let Some(status) = child.try_wait()? {
                return Err(Self::failed("serve", format!("ended while it was starting ({status})"), &log));
            }
            if Instant::now() > deadline {
                return Err(Self::failed("serve", format!("does not answer after {SERVICE_LIMIT:?}"), &log));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}
