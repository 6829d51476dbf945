//! PostgreSQL, which all rounds share, and the processes of a round with what stands between them and their surroundings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use devstack::postgres::{self, Postgres};
use nix::sys::signal::Signal;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::aws::Aws;
use crate::child::{Directory, Env, OPERATOR_SERVICE, Process, Service, run, stderr};
use crate::origin::{self, Origin};
use crate::plan::{ENDPOINTS, EndpointKind, Group};
use crate::runtime_api::{Event, Function, Outcome};
use crate::support::{Answer, Call, Cluster, Proxy, client, eventually, left_out, unique};
use crate::{LIMIT, callers};

/// In seconds. Far more than a round takes.
pub const STORAGE_EXPIRY: i64 = 100_000;
/// How long a caller waits for a response, until it repeats its request.
const ATTEMPT_LIMIT: Duration = Duration::from_secs(8);
/// The role that the service connects as.
const ROLE: &str = "service";
/// A clock for the database that can be set forward.
const CLOCK: &str = include_str!("../support/clock.sql");

/// What all rounds share.
pub struct World {
    directory: Directory,
    server: tokio::sync::Mutex<Option<Postgres>>,
    superuser: PgConnectOptions,
    port: u16,
    password: String,
    tally: Mutex<BTreeMap<String, u64>>,
}

impl World {
    /// Starts PostgreSQL. `None` if it cannot be started here: then the test is left out.
    pub async fn new() -> Option<Self> {
        if faketime().is_none() {
            left_out("of its faults, clocks of servers that are wrong need libfaketime");
        }
        let directory = Directory::new();
        // Its commits have to survive, so it cannot be the tests' own.
        let server = match Postgres::start(postgres::Options::durable(directory.file("postgres"))).await {
            Ok(server) => server,
            Err(error) => {
                left_out(&format!("it crashes a PostgreSQL of its own: {error:#}"));
                return None;
            }
        };
        let superuser = server.connect_options("postgres").application_name("test").disable_statement_logging();
        // Whoever holds a lock may be waiting for us.
        let superuser = superuser.options([("default_transaction_read_only", "off"), ("lock_timeout", "300ms")]);
        let (port, password) = (server.port, unique("password"));
        let world = Self {
            directory,
            server: tokio::sync::Mutex::new(Some(server)),
            superuser,
            port,
            password,
            tally: Mutex::default(),
        };
        let role = format!("CREATE ROLE {ROLE} LOGIN PASSWORD '{}'", world.password);
        world.sql(&role).await;
        world.sql(&format!("ALTER DATABASE postgres OWNER TO {ROLE}")).await;
        world.sql(CLOCK).await;
        world.sql(&format!("GRANT USAGE ON SCHEMA clock TO {ROLE}; GRANT SELECT ON clock.ahead TO {ROLE}")).await;
        let migrated = run(&["migrate"], &world.database(port).with("POSTGRES_PASSWORD", &*world.password)).await;
        assert!(migrated.status.success(), "{}", stderr(&migrated));
        world.sql(include_str!("history.sql")).await;
        Some(world)
    }

    /// The variables of a process that reaches the database at a port, without the password.
    fn database(&self, port: u16) -> Env {
        Env::of([
            ("POSTGRES_HOST", "127.0.0.1"),
            ("POSTGRES_PORT", &*port.to_string()),
            ("POSTGRES_DB", "postgres"),
            ("POSTGRES_USER", ROLE),
            ("POSTGRES_SSLMODE", "disable"),
        ])
    }

    /// Connects as the superuser, if the server can be reached.
    pub async fn connect(&self) -> sqlx::Result<PgConnection> {
        self.superuser.connect().await
    }

    /// Runs statements as the superuser. The server has to be up.
    pub async fn sql(&self, statements: &str) {
        let connection = eventually("PostgreSQL", LIMIT, async || self.connect().await.ok());
        let statements = AssertSqlSafe(statements.to_owned());
        connection.await.execute(sqlx::raw_sql(statements)).await.unwrap();
    }

    /// As [`Self::sql`], if the server can be reached.
    pub async fn try_sql(&self, statements: &str) {
        if let Ok(mut connection) = self.connect().await {
            connection.execute(sqlx::raw_sql(AssertSqlSafe(statements.to_owned()))).await.ok();
        }
    }

    /// Empties the database.
    pub async fn empty(&self) {
        self.sql(
            "TRUNCATE jobs, reaperjobs, envs, sweptenvs, keptlogs, usednonces, prunednonces, nonces, history.changes \
             RESTART IDENTITY;
             UPDATE sweeps SET holder = NULL, helduntil = '-infinity';
             UPDATE clock.ahead SET ahead = '0'",
        )
        .await;
    }

    /// Ends the server, as a crash does or in order.
    pub async fn down(&self, crash: bool) {
        if let Some(server) = self.server.lock().await.take() {
            if crash { server.crash().await.unwrap() } else { server.stop().await.unwrap() }
        }
    }

    /// Starts the server, unless it runs.
    pub async fn up(&self) {
        let mut server = self.server.lock().await;
        if server.is_none() {
            let options = postgres::Options::durable(self.directory.file("postgres"));
            *server = Some(Postgres::start(options).await.unwrap());
        }
    }

    /// Counts what happens.
    pub fn count(&self, what: impl Into<String>) {
        *self.tally.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    /// How often each thing happened.
    pub fn tally(&self) -> String {
        self.tally.lock().unwrap().iter().map(|(what, times)| format!("{times:7} {what}\n")).collect()
    }

    /// Asserts that of this number of operations enough were starts that were accepted: otherwise nothing was tested.
    pub fn assert_not_idle(&self, operations: usize) {
        let accepted = self.tally.lock().unwrap().get("starts accepted").copied().unwrap_or_default();
        assert!(accepted as usize > operations / 20, "{accepted} starts were accepted of {operations} operations");
    }

    /// Stops the server and removes its data.
    pub async fn stop(&self) {
        self.down(false).await;
        postgres::remove(&self.directory.file("postgres")).unwrap();
    }
}

/// The processes of one round.
pub struct Processes {
    pub endpoints: Vec<Endpoint>,
    pub cluster: Cluster,
    pub aws: Aws,
    /// The URL of every output.
    pub output: String,
    pub keys: callers::Keys,
    /// The header of administrators.
    pub admin: String,
    /// What may not be in a log.
    pub secrets: Mutex<Vec<String>>,
    reaper: Env,
    _origin: Origin,
    _directory: Directory,
}

impl Processes {
    pub async fn start(world: &World) -> Self {
        let (directory, cluster, origin) = (Directory::new(), Cluster::embedded().await, Origin::start().await);
        let output = unique("output");
        origin.answer(&format!("/{output}"), origin::Answer::file("the result"));
        let aws = Aws::start(ROLE, &world.password).await;
        let (keys, admin, key) = (callers::Keys::new(), unique("administrator"), unique("origin-key"));
        let common = |proxy: &Proxy| {
            let env = world.database(proxy.port).with("POSTGRES_PASSWORD", &*world.password);
            env.with_cluster(&cluster, &directory).and(&[
                ("SIGNATURE_REQUIRED", "1"),
                ("ALLOWED_PROVIDERS", &keys.allowed()),
                ("ALLOWED_ADMINS", &json!([admin]).to_string()),
                ("DEFAULT_NAMESPACE", &cluster.namespace),
                ("STORAGE_EXPIRY", &STORAGE_EXPIRY.to_string()),
                ("WORKFLOW_TTL", "0"),
                ("REAP_RATE", "1000"),
                ("RESULT_HOSTS_ALLOWED", &json!([origin.address.to_string()]).to_string()),
                ("X-API-KEY", &key),
                ("LOG_LEVEL", "debug"),
            ])
        };
        let target = ([127, 0, 0, 1], world.port).into();
        let mut endpoints = Vec::new();
        let mut reaper = None;
        for kind in ENDPOINTS {
            let proxy = Proxy::to(target).await;
            let env = common(&proxy);
            let clock = directory.file(&unique("clock"));
            let env = match (kind, &reaper) {
                // The reaper shares the proxy and the clock of the first, and their faults.
                (EndpointKind::Server, None) => reaper.insert(with_clock(env, &clock)).clone(),
                (EndpointKind::Server, Some(_)) => with_clock(aws.env(env, &directory), &clock),
                _ => aws.env(env, &directory),
            };
            endpoints.push(Endpoint::start(kind, proxy, env, clock).await);
        }
        let secrets = vec![world.password.clone(), admin.clone(), key, output.clone()];
        Self {
            endpoints,
            cluster,
            aws,
            output: origin.url(&format!("/{output}")),
            keys,
            admin,
            secrets: Mutex::new(secrets),
            reaper: reaper.unwrap(),
            _origin: origin,
            _directory: directory,
        }
    }

    /// Starts a sweep.
    pub fn sweep(&self) -> Process {
        Process::start(OPERATOR_SERVICE, &["reap"], &self.reaper)
    }

    /// Asserts that no process has logged a secret.
    pub async fn check_logs(&self, sweeps: &[String]) {
        let mut logs = sweeps.to_vec();
        for endpoint in &self.endpoints {
            logs.extend(endpoint.logs().await);
        }
        assert!(logs.iter().any(|log| log.contains("answered")), "no request was logged");
        for secret in self.secrets.lock().unwrap().iter() {
            for line in logs.iter().flat_map(|log| log.lines()) {
                assert!(!line.contains(secret.trim_start_matches("0x")), "a secret was logged: {line}");
            }
        }
    }
}

/// Has a process read how wrong its clock is from a file, at each time that it looks at it.
fn with_clock(env: Env, file: &Path) -> Env {
    let Some(library) = faketime() else { return env };
    env.and(&[
        ("LD_PRELOAD", library.to_str().unwrap()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap()),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ])
}

/// The library of Debian's package `faketime`, if it is installed.
fn faketime() -> Option<PathBuf> {
    let directories = std::fs::read_dir("/usr/lib").ok()?.flatten();
    directories.map(|directory| directory.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists())
}

/// The function that has the routes of a group.
fn program(group: Group) -> &'static str {
    match group {
        Group::Compute => env!("CARGO_BIN_EXE_compute"),
        Group::Results => env!("CARGO_BIN_EXE_results"),
        Group::Environments => env!("CARGO_BIN_EXE_environments"),
        Group::Admin => env!("CARGO_BIN_EXE_admin"),
    }
}

/// Where an endpoint is reached now.
#[derive(Clone)]
enum Address {
    Url(String),
    Function(Arc<Function>),
}

/// A server or a function, and its successors.
pub struct Endpoint {
    kind: EndpointKind,
    pub proxy: Proxy,
    env: Env,
    /// The file that says how wrong a server's clock is.
    clock: PathBuf,
    address: watch::Sender<Address>,
    client: reqwest::Client,
    /// The process that answers, and those that did before. Functions are in `address`.
    servers: tokio::sync::Mutex<Vec<Service>>,
    functions: Mutex<Vec<Arc<Function>>>,
}

impl Endpoint {
    async fn start(kind: EndpointKind, proxy: Proxy, env: Env, clock: PathBuf) -> Self {
        let (address, _) = watch::channel(Address::Url(String::new()));
        let endpoint = Self {
            kind,
            proxy,
            env,
            clock,
            address,
            client: client(),
            servers: tokio::sync::Mutex::default(),
            functions: Mutex::default(),
        };
        endpoint.set_clock(0);
        endpoint.start_next().await;
        endpoint
    }

    async fn start_next(&self) {
        let address = match self.kind {
            EndpointKind::Function(group) => {
                let function = Arc::new(Function::start(program(group), &self.env).await);
                self.functions.lock().unwrap().push(function.clone());
                Address::Function(function)
            }
            EndpointKind::Server => {
                let service = Service::start(&self.env).await;
                let url = service.url("");
                self.servers.lock().await.push(service);
                Address::Url(url)
            }
        };
        self.address.send_replace(address);
    }

    /// Whether it has the routes of a group: a function has those of its own only.
    pub fn serves(&self, group: Group) -> bool {
        [EndpointKind::Server, EndpointKind::Function(group)].contains(&self.kind)
    }

    /// Sets a server's clock wrong by this number of seconds.
    pub fn set_clock(&self, ahead: i64) {
        std::fs::write(&self.clock, format!("{ahead:+}")).unwrap();
    }

    /// Sends a signal to the process that answers now.
    pub async fn signal(&self, signal: Signal) {
        if let Some(service) = self.servers.lock().await.last() {
            service.process.send(signal);
        }
        if let Some(function) = self.functions.lock().unwrap().last() {
            function.process.send(signal);
        }
    }

    /// Ends the process, and starts the next one.
    pub async fn replace(&self, signal: Signal) {
        self.signal(signal).await;
        // A process that is stopped receives no other signal.
        self.signal(Signal::SIGCONT).await;
        self.start_next().await;
    }

    /// Sends a request once. `None` if there is no response, or not in time.
    pub async fn send(&self, call: &Call) -> Option<Answer> {
        let mut address = self.address.subscribe();
        let current = address.borrow_and_update().clone();
        match current {
            Address::Url(url) => {
                let exchange = async {
                    let response = call.request(&self.client, &url).send().await.ok()?;
                    let (status, headers) = (response.status().as_u16(), response.headers().clone());
                    Some(Answer { status, headers, body: response.bytes().await.ok()? })
                };
                timeout(ATTEMPT_LIMIT, exchange).await.ok()?
            }
            Address::Function(function) => tokio::select! {
                biased;
                _ = address.changed() => None,
                outcome = timeout(ATTEMPT_LIMIT, function.invoke(Event::of(call).0).whole()) => match outcome.ok()? {
                    Outcome::Answer(answer) => Some(answer),
                    Outcome::Incomplete(_) | Outcome::Failed(_) => None,
                },
            },
        }
    }

    /// Shuts it down. Asserts that no request is in flight for ever.
    pub async fn shut_down(&self) {
        self.signal(Signal::SIGTERM).await;
        for service in self.servers.lock().await.iter_mut() {
            let ended = timeout(LIMIT / 2, service.process.ended()).await;
            assert!(ended.is_ok(), "requests in flight do not end: {}", service.process.output());
        }
    }

    /// The errors that its processes have logged.
    pub async fn errors(&self) -> Vec<String> {
        let logs = self.logs().await;
        logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains("ERROR")).map(str::to_owned).collect()
    }

    async fn logs(&self) -> Vec<String> {
        let servers = self.servers.lock().await;
        let functions = self.functions.lock().unwrap();
        let functions = functions.iter().map(|function| function.process.output());
        servers.iter().map(|service| service.process.output()).chain(functions).collect()
    }
}
