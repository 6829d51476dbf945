//! A private PostgreSQL from the server programs on the machine.
//!
//! It listens on 127.0.0.1 only, with a password of its own and no Unix socket (their paths may not exceed 107 bytes, a
//! checkout's may). Its data stays where it is between starts.
//!
//! PostgreSQL refuses to run as root. Then the server runs as `postgres` or `nobody`, and if that account cannot reach
//! the directory (a checkout below /root), its data is below /var/tmp.

use std::env;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};

use crate::local;
use crate::process::{self, Child, Program};

/// Maximum duration of a start. After a crash PostgreSQL replays its log first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Maximum duration of a fast shutdown.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// The superuser's name.
pub(crate) const USER: &str = "operator";

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    directory: PathBuf,
    durable: bool,
}

impl Options {
    /// A server that keeps its data in that directory, which is created if it is missing.
    pub fn durable(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), durable: true }
    }

    /// A faster server for tests: its commits do not reach the disk.
    pub fn throwaway(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), durable: false }
    }
}

/// A running server. Dropping it shuts it down.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    /// The port on 127.0.0.1 that it listens on.
    pub port: u16,
    /// The superuser's password.
    pub password: String,
    /// The directory of its data.
    pub data: PathBuf,
    /// The file it logs to.
    pub log: PathBuf,
}

impl Postgres {
    /// Starts the server, on the data of the last start if there is some, and waits until it accepts connections.
    ///
    /// # Errors
    /// If there are no server programs, they do not fit the data, or the server does not start.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        fs::create_dir_all(&options.directory).with_context(|| local::shown(&options.directory))?;
        let home = fs::canonicalize(&options.directory)?;
        let account = account()?;
        let place = data_place(&home, account.as_ref())?;
        let data = place.join("data");
        let programs = programs(&data)?;
        stop_orphan(&data)?;
        let password = local::secret(&home.join("password"))?;
        if !data.exists() {
            create_data(&programs, &place, account.as_ref(), &password)?;
        }
        let port = local::port(&home.join("port"))?;
        let log = home.join("server.log");

        let mut program = Program::new(programs.join("postgres")).log(&log)?;
        run_as(&mut program.command, account.as_ref()).arg("-D").arg(&data);
        let port_setting = format!("port={port}");
        let settings = [
            &port_setting,
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "timezone=UTC",
            "log_timezone=UTC",
            "logging_collector=off",
            "log_parameter_max_length_on_error=0",
            "max_connections=500",
        ];
        let fast = ["fsync=off", "synchronous_commit=off", "full_page_writes=off"];
        let fast = fast.into_iter().filter(|_| !options.durable);
        program.command.args(settings.into_iter().chain(fast).flat_map(|setting| ["-c", setting]));
        // SIGINT: fast shutdown.
        program.stop_signal = Signal::SIGINT;
        let child = program.spawn()?;
        let mut server = Self { child, port, password, data, log };
        server.wait_until_ready().await?;
        Ok(server)
    }

    async fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let problem = match PgConnection::connect_with(&self.connect_options("postgres")).await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) => error,
            };
            let end = || format!("the end of {}:{}", local::shown(&self.log), process::tail(&self.log));
            if let Some(status) = self.child.try_wait()? {
                bail!("PostgreSQL ended while it was starting ({status}); {}", end());
            }
            if Instant::now() > deadline {
                bail!("PostgreSQL accepts no connections after {START_LIMIT:?} ({problem}); {}", end());
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// A URL with the password in it: not for logs.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@127.0.0.1:{}/{database}", self.password, self.port)
    }

    /// How to connect to one of its databases as superuser.
    #[must_use]
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(USER)
            .password(&self.password)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Creates a database unless it exists.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn ensure_database(&self, name: &'static str) -> sqlx::Result<()> {
        let mut connection = PgConnection::connect_with(&self.connect_options("postgres")).await?;
        let exists: Option<i32> = sqlx::query_scalar("SELECT 1 FROM pg_database WHERE datname = $1")
            .bind(name)
            .fetch_optional(&mut connection)
            .await?;
        if exists.is_none() {
            let statement = sqlx::AssertSqlSafe(format!(r#"CREATE DATABASE "{name}""#));
            sqlx::raw_sql(statement).execute(&mut connection).await?;
        }
        connection.close().await
    }

    /// Shuts it down: open transactions are rolled back, the data is written out.
    ///
    /// # Errors
    /// If the operating system cannot tell whether it has ended.
    pub async fn stop(self) -> io::Result<()> {
        self.child.stop(STOP_LIMIT).await.map(drop)
    }

    /// Ends it as a crash does (`pg_ctl stop -m immediate`): the next start recovers what was committed.
    ///
    /// # Errors
    /// If the operating system cannot tell whether it has ended.
    pub async fn crash(mut self) -> io::Result<()> {
        self.child.signal(Signal::SIGQUIT);
        self.child.wait().await.map(drop)
    }
}

/// Removes a server's directory, and its data where that is elsewhere. No server may run on it.
///
/// # Errors
/// If something cannot be removed.
pub fn remove(directory: &Path) -> io::Result<()> {
    let Ok(home) = fs::canonicalize(directory) else {
        return Ok(());
    };
    match fs::remove_dir_all(elsewhere(&home)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => fs::remove_dir_all(home),
    }
}

/// The account that the server runs as, if not ours.
fn account() -> anyhow::Result<Option<User>> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
    Ok(Some(found.context("PostgreSQL refuses to run as root, and there is no account `postgres` or `nobody`")?))
}

fn run_as<'a>(command: &'a mut Command, account: Option<&User>) -> &'a mut Command {
    if let Some(account) = account {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    command.current_dir("/")
}

/// The directory that holds the data directory: the server's home, or one below /var/tmp if the account has no access
/// to the home.
fn data_place(home: &Path, account: Option<&User>) -> anyhow::Result<PathBuf> {
    let mut reach = Command::new("/bin/sh");
    reach.args(["-c", r#"cd "$1""#, "sh"]).arg(home).stderr(Stdio::null());
    if account.is_none() || run_as(&mut reach, account).status()?.success() {
        return Ok(home.to_owned());
    }
    let place = elsewhere(home);
    fs::create_dir_all(&place).with_context(|| local::shown(&place))?;
    // Anybody can create a directory there.
    let found = fs::symlink_metadata(&place)?;
    let ours = found.is_dir() && found.uid() == Uid::effective().as_raw();
    ensure!(ours, "{} belongs to somebody else: remove it", place.display());
    fs::set_permissions(&place, fs::Permissions::from_mode(0o711))?;
    Ok(place)
}

/// The directory below /var/tmp, named after the home's path.
fn elsewhere(home: &Path) -> PathBuf {
    let hash = crate::wallet::keccak256(home.as_os_str().as_bytes());
    PathBuf::from(format!("/var/tmp/operator-service-{}", hex::encode(&hash[..8])))
}

/// The directory of the server programs: of the version that made the data, else those on PATH, else the newest.
fn programs(data: &Path) -> anyhow::Result<PathBuf> {
    // Where Debian and Red Hat put them.
    let mut installed: Vec<(u32, PathBuf)> = [("/usr/lib/postgresql", ""), ("/usr", "pgsql-")]
        .into_iter()
        .flat_map(|(parent, prefix)| {
            let entries = fs::read_dir(parent).into_iter().flatten().flatten();
            entries.filter_map(move |entry| {
                let version = entry.file_name().to_str()?.strip_prefix(prefix)?.parse().ok()?;
                Some((version, entry.path().join("bin")))
            })
        })
        .collect();
    installed.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    let made_by = fs::read_to_string(data.join("PG_VERSION")).ok().and_then(|text| text.trim().parse::<u32>().ok());
    let fitting = installed.iter().filter(|(version, _)| made_by == Some(*version)).map(|(_, path)| path.clone());
    let on_path = env::var_os("PATH").unwrap_or_default();
    let found = fitting.chain(env::split_paths(&on_path)).chain(installed.iter().map(|(_, path)| path.clone()));
    found.into_iter().find(|path| path.join("initdb").is_file() && path.join("postgres").is_file()).context(
        "no PostgreSQL server programs (initdb, postgres) on this machine: run scripts/install-tools, or set \
         POSTGRES_HOST to use a server that you have",
    )
}

/// Makes a new data directory, under another name until it is complete.
fn create_data(programs: &Path, place: &Path, account: Option<&User>, password: &str) -> anyhow::Result<()> {
    let (new, password_file) = (place.join("data.new"), place.join("password.new"));
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| local::shown(&new))?;
    }
    fs::create_dir(&new).with_context(|| local::shown(&new))?;
    local::write_private(&password_file, password)?;
    if let Some(account) = account {
        for path in [&new, &password_file] {
            chown(path, Some(account.uid.as_raw()), Some(account.gid.as_raw()))?;
        }
    }
    let mut initdb = Command::new(programs.join("initdb"));
    initdb.arg("--pgdata").arg(&new).arg("--pwfile").arg(&password_file).stdin(Stdio::null());
    initdb.args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync"]);
    let output = run_as(&mut initdb, account).output().context("initdb")?;
    fs::remove_file(&password_file)?;
    ensure!(output.status.success(), "initdb failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(fs::rename(&new, place.join("data"))?)
}

/// Deals with the pid file of an earlier server: one that still runs on this data is shut down, otherwise the file is
/// removed (PostgreSQL itself only looks whether any process has that id).
fn stop_orphan(data: &Path) -> anyhow::Result<()> {
    let path = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let id: i32 = text.lines().next().and_then(|line| line.trim().parse().ok()).unwrap_or(0);
    let serves = || {
        let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&arguments).into_owned();
        id > 1 && arguments.contains("postgres") && arguments.contains(&*data.to_string_lossy())
    };
    if !serves() {
        return fs::remove_file(&path).with_context(|| local::shown(&path));
    }
    tracing::info!(process = id, "an earlier server still runs: shutting it down");
    // Fast shutdown; then immediate shutdown, after which the next start recovers the data.
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        let _ = kill(Pid::from_raw(id), signal);
        let deadline = Instant::now() + STOP_LIMIT;
        while Instant::now() < deadline {
            if !serves() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    bail!("an earlier PostgreSQL (process {id}) still runs on the same data: end it, then try again")
}
