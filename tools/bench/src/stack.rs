//! The processes of a run: a private PostgreSQL, the cluster, the service and the bare handlers.

mod tls;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use devstack::local;
use devstack::postgres::{self, Postgres};
use devstack::process::{self, Child, Program};
use devstack::wallet::Wallet;
use nix::sys::signal::Signal;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tokio::process::Command;

/// The environment of all jobs, and the namespace of their objects.
pub const NAMESPACE: &str = "ocean-compute";
/// Maximum time until a process answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// The number of accounts that sign.
const SIGNERS: usize = 16;

/// Variables of a process.
pub type Variables = Vec<(String, String)>;

/// What all figures share.
pub struct Stack {
    postgres: Postgres,
    /// Listens with TLS.
    cluster: Server,
    cluster_address: SocketAddr,
    /// Where data, logs and results of the run are.
    pub directory: PathBuf,
    /// The accounts whose signatures the service accepts.
    pub signers: Vec<Wallet>,
}

/// A process that listens.
pub struct Server {
    child: Child,
    /// Its address.
    pub address: SocketAddr,
}

impl Server {
    /// Starts a program that listens on the port of this address, and waits until it does.
    async fn start(mut program: Program, log: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        // Nothing is lost with it, and the next measurement should not wait for it.
        program.stop_signal = Signal::SIGKILL;
        let mut child = program.log(log)?.spawn()?;
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || begun.elapsed() > START_LIMIT {
                bail!("a process does not listen on {address} ({ended:?}): {}", process::tail(log));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { child, address })
    }

    /// A value in its /proc/PID/status, in bytes.
    pub fn memory(&self, field: &str) -> anyhow::Result<f64> {
        memory(self.child.id().cast_unsigned(), field)
    }
}

/// A value in /proc/PID/status, in bytes: VmRSS is the memory that a process uses now, VmHWM the most that it has used.
pub fn memory(process: u32, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    let value = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    Ok(1024.0 * value.with_context(|| format!("/proc/{process}/status has no {field}"))?)
}

/// A binary that is built beside this one.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    ensure!(path.is_file(), "there is no {}: run make bench", path.display());
    Ok(path)
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::from(([127, 0, 0, 1], local::free_port()?)))
}

impl Stack {
    /// Starts PostgreSQL and the cluster.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = std::path::absolute("target/bench")?;
        fs::create_dir_all(directory.join("logs"))?;
        postgres::remove(&directory.join("postgres"))?;
        let server = Postgres::start(postgres::Options::throwaway(directory.join("postgres"))).await?;
        tls::certificate(&directory).await?;
        let mut connection = server.connect_options("postgres").connect().await?;
        // What runs beside a measurement is what was started for it.
        connection.execute("ALTER SYSTEM SET autovacuum = off").await?;
        // A connection keeps the plans that it made when the tables were nearly empty, and nothing analyzes them.
        connection.execute("ALTER SYSTEM SET enable_seqscan = off").await?;
        tls::enable(&server.data, &directory, &mut connection).await?;
        let (address, tls) = (free_address()?, free_address()?);
        let mut program = Program::new(std::env::current_exe()?);
        program.command.arg("cluster").env("LISTEN", address.to_string()).env("LISTEN_TLS", tls.to_string());
        program.command.env("CERTIFICATES", &directory).env("OPERATOR_SERVICE", binary("operator-service")?);
        let cluster = Server::start(program, &directory.join("logs/cluster.log"), tls).await?;
        let signers = (0..SIGNERS).map(|_| Wallet::random()).collect::<anyhow::Result<_>>()?;
        let stack = Self { postgres: server, cluster, cluster_address: address, directory, signers };
        fs::write(stack.directory.join("kubeconfig"), stack.kubeconfig(&stack.cluster_url(), None))?;
        let authority = fs::read(stack.directory.join("server.pem"))?;
        let tls = stack.kubeconfig(&format!("https://localhost:{}", stack.cluster.address.port()), Some(&authority));
        fs::write(stack.directory.join("kubeconfig-tls"), tls)?;
        Ok(stack)
    }

    fn kubeconfig(&self, url: &str, authority: Option<&[u8]>) -> String {
        use base64::Engine;
        let mut cluster = serde_json::json!({ "server": url });
        if let Some(authority) = authority {
            cluster["certificate-authority-data"] = base64::engine::general_purpose::STANDARD.encode(authority).into();
        }
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "bench", "cluster": cluster }],
            "users": [{ "name": "bench", "user": {} }],
            "contexts": [{ "name": "bench", "context": { "cluster": "bench", "user": "bench" } }],
            "current-context": "bench"
        })
        .to_string()
    }

    /// The cluster's URL, without TLS.
    pub fn cluster_url(&self) -> String {
        format!("http://{}", self.cluster_address)
    }

    /// The URL of a database, with its password.
    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// Opens a connection to a database.
    pub async fn connect(&self, database: &str) -> anyhow::Result<PgConnection> {
        Ok(self.postgres.connect_options(database).disable_statement_logging().connect().await?)
    }

    /// Creates a database with the service's schema and an announced environment.
    pub async fn create(&self, database: &'static str) -> anyhow::Result<PgConnection> {
        self.drop(database).await?;
        self.postgres.ensure_database(database).await?;
        let mut migrate = Command::new(binary("operator-service")?);
        migrate.arg("migrate").env_clear().envs(self.variables(database));
        let output = migrate.output().await?;
        ensure!(output.status.success(), "migrate: {}", String::from_utf8_lossy(&output.stderr));
        let mut connection = self.connect(database).await?;
        let announcement = r#"{"cpuNumber": "8", "ramGB": "32", "maxJobs": 100, "allowedChainId": ["1", "8996"]}"#;
        let announce = sqlx::query("SELECT announce($1, $2, 0)").bind(NAMESPACE).bind(announcement);
        announce.execute(&mut connection).await?;
        Ok(connection)
    }

    /// Drops a database.
    pub async fn drop(&self, database: &'static str) -> anyhow::Result<()> {
        let statement = format!("DROP DATABASE IF EXISTS {database} WITH (FORCE)");
        self.connect("postgres").await?.execute(AssertSqlSafe(statement)).await?;
        Ok(())
    }

    /// The service's variables, for a database.
    pub fn variables(&self, database: &str) -> Variables {
        let signers: Vec<_> = self.signers.iter().map(Wallet::address).collect();
        let url = url::Url::parse(&self.url(database));
        let (user, password) = url
            .map(|url| (url.username().to_owned(), url.password().unwrap_or_default().to_owned()))
            .unwrap_or_default();
        let variables = [
            ("PATH", std::env::var("PATH").unwrap_or_default()),
            ("POSTGRES_HOST", "127.0.0.1".to_owned()),
            ("POSTGRES_PORT", self.postgres.port.to_string()),
            ("POSTGRES_USER", user),
            ("POSTGRES_PASSWORD", password),
            ("POSTGRES_DB", database.to_owned()),
            ("POSTGRES_SSLMODE", "disable".to_owned()),
            ("KUBECONFIG", self.directory.join("kubeconfig").display().to_string()),
            ("DEFAULT_NAMESPACE", NAMESPACE.to_owned()),
            ("SIGNATURE_REQUIRED", "1".to_owned()),
            ("ALLOWED_PROVIDERS", serde_json::json!(signers).to_string()),
            ("ALLOWED_ADMINS", r#"["bench"]"#.to_owned()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value)).to_vec()
    }

    /// As `variables`, with verified TLS to PostgreSQL and the cluster.
    pub fn tls_variables(&self, database: &str) -> Variables {
        let mut variables = self.variables(database);
        let file = |name: &str| self.directory.join(name).display().to_string();
        for (name, value) in [
            ("POSTGRES_HOST", "localhost".to_owned()),
            ("POSTGRES_SSLMODE", "verify-full".to_owned()),
            ("POSTGRES_CA_FILE", file("server.pem")),
            ("KUBECONFIG", file("kubeconfig-tls")),
            // For the floor.
            ("CLUSTER_PORT", self.cluster.address.port().to_string()),
        ] {
            variables.retain(|(known, _)| known != name);
            variables.push((name.to_owned(), value));
        }
        variables
    }

    /// Starts `operator-service serve` on a database, with more variables.
    pub async fn serve(&self, database: &str, more: &[(&str, String)]) -> anyhow::Result<Server> {
        let address = free_address()?;
        let mut program = Program::new(binary("operator-service")?);
        program.command.arg("serve").env_clear().envs(self.variables(database));
        program.command.env("PORT", address.port().to_string()).envs(more.iter().map(|(name, value)| (name, value)));
        Server::start(program, &self.log(&format!("serve-{database}")), address).await
    }

    /// Starts a process of bare handlers on a database.
    pub async fn floor(&self, database: &str) -> anyhow::Result<Server> {
        let address = free_address()?;
        let mut program = Program::new(std::env::current_exe()?);
        program.command.arg("floor").env("LISTEN", address.to_string());
        // Without TLS, as the service.
        let url = format!("{}?sslmode=disable", self.url(database));
        program.command.env("DATABASE_URL", url).env("CLUSTER_URL", self.cluster_url());
        Server::start(program, &self.log("floor"), address).await
    }

    /// A log of the run.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("logs/{name}.log"))
    }

    /// What was measured, and on what: names and values.
    pub async fn versions(&self) -> anyhow::Result<Vec<(&'static str, String)>> {
        let mut connection = self.connect("postgres").await?;
        let postgres = sqlx::query_scalar("SHOW server_version").fetch_one(&mut connection).await?;
        let output = async |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().await.map(|output| output.stdout);
            String::from_utf8_lossy(&output.unwrap_or_default()).trim().to_owned()
        };
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name)).and_then(|line| line.split_once(':'));
            line.map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory = memory.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or_default();
        Ok(vec![
            ("CPU", field(&read("/proc/cpuinfo"), "model name")),
            ("cores", std::thread::available_parallelism()?.to_string()),
            ("memory", format!("{:.0} GB", memory * 1024.0 / 1e9)),
            ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
            ("load average at the end", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(", ")),
            ("rustc", output("rustc", &["--version"]).await.replace("rustc ", "")),
            ("PostgreSQL", postgres),
            ("operator-service", output("git", &["describe", "--always", "--dirty", "--exclude=*"]).await),
        ])
    }

    /// Stops everything and removes the data.
    pub async fn stop(self) -> anyhow::Result<()> {
        drop(self.cluster);
        self.postgres.stop().await?;
        Ok(postgres::remove(&self.directory.join("postgres"))?)
    }
}
