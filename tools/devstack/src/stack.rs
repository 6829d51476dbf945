//! Everything that `make run` and `make demo` need, started and stopped together.
//!
//! What the environment names is used: POSTGRES_HOST (with POSTGRES_PORT, POSTGRES_USER, POSTGRES_PASSWORD,
//! POSTGRES_DB) for the database, KUBECONFIG or KUBEBUILDER_ASSETS for the cluster. What it does not name is started
//! here.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use fake_engine::Engine;
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::local::{self, shown, variable};
use crate::postgres::{self, Postgres};
use crate::process::Child;
use crate::service::{self, Service};
use crate::wallet::Wallet;

/// Maximum time for the service to finish the requests in flight.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Minimum time that a job stays in each state, so that one who asks every 100 ms sees them all.
const PACE: Duration = Duration::from_millis(200);
/// Seconds between the sweeps of the reaper.
const SWEEPS: u64 = 5;
/// The reaper's graces in seconds, so short that people see what it does.
const GRACES: [(&str, &str); 4] = [
    ("REAP_RETRY_GRACE", "20"),
    ("REAP_SCHEDULE_GRACE", "20"),
    ("REAP_ABSENT_GRACE", "5"),
    ("REAP_DISPATCH_GRACE", "30"),
];
/// The pause before the second restart of a container that fails: a kubelet's.
const RESTART_PAUSE: Duration = Duration::from_secs(10);
const DATABASE: &str = "operator";

/// The kind of stack.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where state, keys and logs are.
    pub directory: PathBuf,
    /// Whether it is for one demo: a free port, a service without the environment's settings, nothing kept.
    pub demo: bool,
}

/// Receives the name of each part as it comes up, and a line about it.
pub type Progress<'a> = &'a (dyn Fn(&str, &str) + Sync);

/// A running stack. Dropping it ends its processes, [`Stack::stop`] does so gracefully.
pub struct Stack {
    sweeps: JoinSet<()>,
    service: Child,
    service_log: PathBuf,
    engine: Option<Engine>,
    cluster: Cluster,
    postgres: Option<Postgres>,
    _lock: File,
    /// The service's URL, without a slash at its end.
    pub url: String,
    /// A command line that opens the database.
    pub psql: String,
    /// The kubeconfig file.
    pub kubeconfig: String,
    /// The namespace, which is the environment.
    pub namespace: String,
    /// The `host:port` that our engine serves results from.
    pub results: Option<String>,
    /// Time between two sweeps of the reaper, if it runs.
    pub sweep_interval: Option<Duration>,
    /// The account whose signatures the service accepts.
    pub provider: Wallet,
    /// A client of the cluster.
    pub client: kube::Client,
}

fn parsed<T: FromStr>(name: &str, default: T, what: &str) -> anyhow::Result<T> {
    let Some(text) = variable(name) else { return Ok(default) };
    text.parse().ok().with_context(|| format!("{name}={text} is not {what}"))
}

/// Claims the directory for this process.
pub(crate) fn lock(directory: &Path) -> anyhow::Result<File> {
    local::lock(&directory.join("lock"))
}

impl Stack {
    /// Starts everything.
    ///
    /// # Errors
    /// With what to do about it; what was started before is stopped.
    pub async fn start(options: Options, progress: Progress<'_>) -> anyhow::Result<Self> {
        fake_engine::install_tls();
        let (logs, keys) = (options.directory.join("logs"), options.directory.join("keys"));
        for path in [&logs, &keys] {
            fs::create_dir_all(path).with_context(|| shown(path))?;
        }
        let directory = fs::canonicalize(&options.directory)?;
        let lock = lock(&directory)?;
        let program = service::find()?;
        // Checked before anything is started.
        let address = address(options.demo)?;
        let namespace = variable("DEFAULT_NAMESPACE").unwrap_or_else(|| "ocean-compute".to_owned());
        let (provider, account) = (Wallet::load(&keys.join("provider"))?, Wallet::load(&keys.join("engine"))?);

        let (postgres, database) = start_database(&directory, options.demo).await?;
        let (host, port, user) = (&database.host, database.port, &database.user);
        let mut psql = format!("psql -h {host} -p {port} -U {user} {}", database.name);
        match &postgres {
            Some(server) => {
                let pass = directory.join("pgpass");
                local::write_private(&pass, format!("*:*:*:{user}:{}\n", database.password))?;
                psql = format!("PGPASSFILE={} {psql}", shown(&pass));
                progress("Postgres", &format!("private, {host}:{port}, data in {}", shown(&server.data)));
            }
            None => progress("Postgres", &format!("{host}:{port} (POSTGRES_HOST)")),
        }
        let cluster = Cluster::start(&directory, !options.demo).await?;
        progress("cluster", &cluster.description);

        let own = |name: &str| if options.demo { None } else { variable(name) };
        let or = |name: &'static str, default: String| (name, own(name).unwrap_or(default));
        let mut service = Service {
            program,
            clear: options.demo && !cluster.is_foreign(),
            variables: vec![
                ("POSTGRES_HOST", host.clone()),
                ("POSTGRES_PORT", port.to_string()),
                ("POSTGRES_USER", user.clone()),
                ("POSTGRES_PASSWORD", database.password.clone()),
                ("POSTGRES_DB", database.name.clone()),
                ("KUBECONFIG", cluster.kubeconfig.clone()),
                ("DEFAULT_NAMESPACE", namespace.clone()),
                ("HOST", address.ip().to_string()),
                ("PORT", address.port().to_string()),
                // So that curl works as the README shows; the service refuses it on an address that others can reach.
                or("LOCAL_ADMIN", u8::from(address.ip().is_loopback()).to_string()),
                or("SIGNATURE_REQUIRED", "1".to_owned()),
                or("ALLOWED_PROVIDERS", provider.address().to_owned()),
                or("OPERATOR_ADDRESS", account.address().to_owned()),
            ],
            logs: logs.clone(),
        };
        if postgres.is_some() {
            service.variables.push(("POSTGRES_ROLE_LIMITS", "1".to_owned()));
        }
        service.migrate().await?;
        progress("schema", "up to date");
        cluster.prepare(&service.definition()?, &namespace).await.context("the cluster")?;
        progress("WorkFlow", &format!("defined; namespace {namespace}"));

        let mut engine = None;
        if !cluster.is_foreign() || variable("ENGINE").is_some_and(|value| value == "1") {
            let (options, home) = (database.options(), directory.join("engine"));
            let mut settings = fake_engine::Options::new(options, &namespace, cluster.kind(), home);
            account.address().clone_into(&mut settings.consumer_address);
            settings.pace = PACE;
            // As with the real engine, an algorithm that fails leaves its log and ends.
            settings.ignore_exit_code = true;
            settings.restart_pause = Some(RESTART_PAUSE);
            let started = Engine::start(settings, cluster.client.clone()).await?;
            let host = started.file_host();
            let note = if cluster.is_foreign() { "; its Jobs are created suspended, and run here" } else { "" };
            progress("engine", &format!("stand-in, announces {namespace}, serves results on {host}{note}"));
            service.variables.push(("RESULT_HOSTS_ALLOWED", with_host(own("RESULT_HOSTS_ALLOWED"), host)));
            engine = Some(started);
        } else {
            progress("engine", "none of ours: the cluster has its own (ENGINE=1 starts the stand-in)");
        }

        // By default only if both database and cluster are the devstack's: with only one of the two, a reaper would
        // take the jobs of another installation for orphans.
        let ours = postgres.is_some() && !cluster.is_foreign();
        let every =
            if options.demo { 0 } else { parsed("REAP_EVERY", if ours { SWEEPS } else { 0 }, "a number of seconds")? };
        let sweep_interval = (every > 0).then(|| Duration::from_secs(every));
        if ours {
            service.variables.extend(GRACES.map(|(name, seconds)| or(name, seconds.to_owned())));
        }
        let child = service.serve(address).await?;
        let url = format!("http://{}", service::reachable(address));
        progress("service", &url);
        let service_log = service.log("serve");
        let mut sweeps = JoinSet::new();
        if let Some(every) = sweep_interval {
            let log = shown(&service.log("reap"));
            progress("reaper", &format!("sweeps every {every:?} (REAP_EVERY), logs to {log}"));
            sweeps.spawn(sweep(service, every));
        }
        Ok(Self {
            sweeps,
            service: child,
            service_log,
            results: engine.as_ref().map(|engine| engine.file_host().to_owned()),
            engine,
            kubeconfig: shown(Path::new(&cluster.kubeconfig)),
            client: cluster.client.clone(),
            cluster,
            postgres,
            _lock: lock,
            url,
            psql,
            namespace,
            sweep_interval,
            provider,
        })
    }

    /// Waits until the service ends, which it should not, and returns how it ended.
    pub async fn ended(&mut self) -> anyhow::Error {
        match self.service.wait().await {
            Ok(status) => anyhow::anyhow!("operator-service ended ({status}); {}", service::end_of(&self.service_log)),
            Err(error) => error.into(),
        }
    }

    /// Stops everything: what uses something else goes first.
    ///
    /// # Errors
    /// If a part cannot be stopped; the others are stopped nevertheless.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        self.sweeps.shutdown().await;
        if let Some(engine) = self.engine {
            engine.stop().await;
        }
        self.service.stop(STOP_LIMIT).await?;
        self.cluster.stop().await?;
        if let Some(postgres) = self.postgres {
            postgres.stop().await?;
        }
        Ok(())
    }
}

/// Runs the reaper, one sweep after the other. One that fails does no harm, and is logged once until one succeeds
/// again.
async fn sweep(service: Service, every: Duration) {
    let mut failing = false;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let swept = service.sweep().await;
        if let Err(error) = &swept
            && !failing
        {
            tracing::warn!("the reaper's sweep failed: {error:#}");
        }
        failing = swept.is_err();
    }
}

/// The address that the service is to listen on.
fn address(demo: bool) -> anyhow::Result<SocketAddr> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    if demo {
        return Ok(SocketAddr::new(loopback, local::free_port()?));
    }
    let port = parsed("PORT", 8050, "a port")?;
    let address = SocketAddr::new(parsed("HOST", loopback, "an IP address")?, port);
    if let Err(error) = TcpListener::bind(address) {
        let other = port.wrapping_add(1).max(1024);
        bail!("cannot listen on {address} ({error}): stop what does, or choose another port with PORT={other}");
    }
    Ok(address)
}

/// How to reach the database.
struct Database {
    host: String,
    port: u16,
    user: String,
    password: String,
    name: String,
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

async fn start_database(directory: &Path, demo: bool) -> anyhow::Result<(Option<Postgres>, Database)> {
    if let Some(host) = variable("POSTGRES_HOST") {
        let needed =
            |name| variable(name).with_context(|| format!("POSTGRES_HOST is set, so {name} has to be set too"));
        let database = Database {
            host,
            port: parsed("POSTGRES_PORT", 5432, "a port")?,
            user: needed("POSTGRES_USER")?,
            password: variable("POSTGRES_PASSWORD").unwrap_or_default(),
            name: needed("POSTGRES_DB")?,
        };
        return Ok((None, database));
    }
    let home = directory.join("postgres");
    let options = if demo { postgres::Options::throwaway(home) } else { postgres::Options::durable(home) };
    let server = Postgres::start(options).await?;
    server.ensure_database(DATABASE).await?;
    let database = Database {
        host: "127.0.0.1".to_owned(),
        port: server.port,
        user: postgres::USER.to_owned(),
        password: server.password.clone(),
        name: DATABASE.to_owned(),
    };
    Ok((Some(server), database))
}

/// The list of hosts, in either notation, with one more.
fn with_host(list: Option<String>, host: &str) -> String {
    let list = list.unwrap_or_default();
    let mut hosts: Vec<String> = serde_json::from_str(&list).unwrap_or_else(|_| {
        list.split(',').map(|host| host.trim().to_owned()).filter(|host| !host.is_empty()).collect()
    });
    hosts.push(host.to_owned());
    json!(hosts).to_string()
}
