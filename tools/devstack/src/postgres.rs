//! A private PostgreSQL from the server programs on the machine.
//!
//! It listens on 127.0.0.1 only, on a port that was free, with a password of its own and no Unix
//! socket (their paths may not exceed 107 bytes, a checkout's may). Its data stay where they are between starts.
//!
//! PostgreSQL refuses to run as root. Then the server runs as `postgres`, or `nobody`, and if that
//! account can't reach the directory (a checkout below /root), its data lie below /var/tmp.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use fake_engine::{
    local,
    process::{self, Account, Child, Program},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid, User},
};
use sqlx::{
    Connection, PgConnection,
    postgres::{PgConnectOptions, PgSslMode},
};

/// How long a start may take. After a crash PostgreSQL replays its log first.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take.
const STOP_LIMIT: Duration = Duration::from_secs(20);
/// How long setting up a new data directory may take.
const INITDB_LIMIT: Duration = Duration::from_secs(120);
/// The superuser's name.
const USER: &str = "operator";

/// Why there is no PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No server programs were found.
    #[error(
        "no PostgreSQL server programs (initdb, postgres) on this machine: run scripts/install-tools, or set \
         POSTGRES_HOST to use a server that you have"
    )]
    Missing,
    /// The data were made by another major version.
    #[error(
        "{data} was made by PostgreSQL {wanted}, and the server programs here are {found}: install PostgreSQL {wanted}, or \
         remove that directory and lose what is in it"
    )]
    Version {
        /// The data directory.
        data: String,
        /// The version that made it.
        wanted: String,
        /// The versions at hand.
        found: String,
    },
    /// Run as root, and there is nobody to run the server as.
    #[error("PostgreSQL refuses to run as root, and there is no account `postgres` or `nobody` to run it as")]
    NoAccount,
    /// The directory for the data can't be used.
    #[error("{path}: {problem}")]
    Directory {
        /// Which.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed: {0}")]
    Initdb(String),
    /// The server ended while it was starting.
    #[error("PostgreSQL ended while it was starting ({status}); the end of {log}:{tail}")]
    Ended {
        /// Its exit status.
        status: String,
        /// Its log.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// The server does not accept connections.
    #[error("PostgreSQL accepted no connection within {limit:?} ({problem}); the end of {log}:{tail}")]
    Silent {
        /// How long we waited.
        limit: Duration,
        /// The last attempt's error.
        problem: String,
        /// Its log.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// An orphan of an earlier run does not end.
    #[error("an earlier PostgreSQL (process {0}) still runs on the same data and does not end: end it, then try again")]
    Orphan(i32),
    /// A process could not be started or watched.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// A statement failed.
    #[error("PostgreSQL: {0}")]
    Sql(#[from] sqlx::Error),
}

/// What kind of server is wanted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory that is to be the server's home; made if it is missing.
    pub directory: PathBuf,
    /// Whether commits reach the disk. Tests don't need that, and are faster without.
    pub durable: bool,
    /// How many connections it takes.
    pub max_connections: u16,
}

impl Options {
    /// A server that keeps what it is given.
    pub fn durable(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), durable: true, max_connections: 100 }
    }

    /// A fast server for tests, whose data a power failure may damage.
    pub fn throwaway(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), durable: false, max_connections: 500 }
    }
}

/// A running server. Dropping it shuts it down.
#[derive(Debug)]
pub struct Postgres {
    child: Child,
    port: u16,
    password: String,
    data: PathBuf,
    log: PathBuf,
}

impl Postgres {
    /// Starts the server, on the data that are there or on new ones, and waits until it accepts connections.
    ///
    /// # Errors
    /// Each of [`Error`], with what to do about it.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let home = &options.directory;
        make_directory(home)?;
        let home = fs::canonicalize(home).map_err(file(home))?;
        let account = account()?;
        let place = data_place(&home, account.as_ref())?;
        let data = place.join("data");
        let programs = Programs::find(&data)?;
        let log = home.join("server.log");

        end_orphan(&data)?;
        let password = if data.exists() {
            let path = home.join("password");
            fs::read_to_string(&path).map_err(file(&path))?
        } else {
            make_data(&programs, &home, &place, account.as_ref(), options.durable).await?
        };

        let mut attempts = 3;
        loop {
            let port = local::port(&home.join("port")).map_err(file(&home.join("port")))?;
            let child = spawn(&programs, &options, &data, &log, port, account.clone())?;
            let mut server = Self { child, port, password: password.clone(), data: data.clone(), log: log.clone() };
            match server.wait_until_ready().await {
                Ok(()) => return Ok(server),
                // Somebody took the port between our asking and the server's.
                Err(Error::Ended { tail, .. }) if attempts > 1 && tail.contains("could not bind") => {
                    attempts -= 1;
                    let _ = fs::remove_file(home.join("port"));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn wait_until_ready(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let problem = match tokio::time::timeout(
                Duration::from_secs(5),
                PgConnection::connect_with(&self.connect_options("postgres")),
            )
            .await
            {
                Ok(Ok(connection)) => {
                    let _ = connection.close().await;
                    return Ok(());
                }
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in 5 s".to_owned(),
            };
            if let Some(status) = self.child.try_wait()? {
                return Err(Error::Ended {
                    status: status.to_string(),
                    log: self.log.display().to_string(),
                    tail: process::tail(&self.log, 12),
                });
            }
            if Instant::now() > deadline {
                return Err(Error::Silent {
                    limit: START_LIMIT,
                    problem,
                    log: self.log.display().to_string(),
                    tail: process::tail(&self.log, 12),
                });
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }

    /// Where it listens: always the loopback address.
    #[must_use]
    pub fn host(&self) -> &'static str {
        "127.0.0.1"
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its superuser.
    #[must_use]
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.password
    }

    /// Where its data are; below /var/tmp if the server's account can't reach the directory it was given.
    #[must_use]
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// The file it logs to.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// A URL with the password in it: not for logs.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{}@{}:{}/{database}", self.password, self.host(), self.port)
    }

    /// How to connect to one of its databases as superuser.
    #[must_use]
    pub fn connect_options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(self.host())
            .port(self.port)
            .username(USER)
            .password(&self.password)
            .database(database)
            .ssl_mode(PgSslMode::Disable)
    }

    /// Makes a database unless it is there. The name is an identifier of ours, not a caller's text.
    ///
    /// # Errors
    /// [`Error::Sql`] if the server refuses.
    pub async fn ensure_database(&self, name: &'static str) -> Result<(), Error> {
        let mut connection = PgConnection::connect_with(&self.connect_options("postgres")).await?;
        let exists: bool = sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?;
        if !exists {
            let statement = format!(r#"CREATE DATABASE "{name}""#);
            sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    /// Shuts it down: open transactions are rolled back, the data are written out.
    ///
    /// # Errors
    /// [`Error::Process`] if the operating system can't tell whether it has ended.
    pub async fn stop(self) -> Result<(), Error> {
        self.child.stop(STOP_LIMIT).await?;
        Ok(())
    }
}

/// Removes a server's directory, and its data where they lie elsewhere. Nothing may run on them.
///
/// # Errors
/// [`Error::File`] if something can't be removed.
pub fn remove(directory: &Path) -> Result<(), Error> {
    let Ok(home) = fs::canonicalize(directory) else {
        return Ok(());
    };
    for path in [elsewhere(&home), home] {
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file(&path)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::File { path, source }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(file(path))
}

/// Who the server runs as, if not as us.
fn account() -> Result<Option<Account>, Error> {
    if !Uid::effective().is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .filter(|user| !user.uid.is_root())
        .map(|user| Some(Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }))
        .ok_or(Error::NoAccount)
}

/// The directory that holds the data directory: the server's home, or one below /var/tmp if the
/// server's account has no way into the home.
fn data_place(home: &Path, account: Option<&Account>) -> Result<PathBuf, Error> {
    let Some(account) = account else {
        return Ok(home.to_owned());
    };
    let mut reach = std::process::Command::new("/bin/sh");
    reach
        .args(["-c", r#"cd "$1""#, "sh"])
        .arg(home)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if with_account(&mut reach, Some(account)).status().map_err(file(home))?.success() {
        return Ok(home.to_owned());
    }

    let place = elsewhere(home);
    match fs::create_dir(&place) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(file(&place)(error));
        }
        _ => {}
    }
    // Anybody can make a directory there: only our own will do.
    let found = fs::symlink_metadata(&place).map_err(file(&place))?;
    if !found.is_dir() || found.uid() != Uid::effective().as_raw() {
        return Err(Error::Directory {
            path: place.display().to_string(),
            problem: "belongs to somebody else: remove it".to_owned(),
        });
    }
    fs::set_permissions(&place, fs::Permissions::from_mode(0o711)).map_err(file(&place))?;
    tracing::info!(data = %place.display(), account = account.name, "the server's account can't reach the checkout");
    Ok(place)
}

/// The name below /var/tmp is the home's path, hashed.
fn elsewhere(home: &Path) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let hash = crate::wallet::keccak256(home.as_os_str().as_bytes());
    PathBuf::from(format!("/var/tmp/operator-service-{}", hex::encode(&hash[..8])))
}

fn with_account<'a>(
    command: &'a mut std::process::Command,
    account: Option<&Account>,
) -> &'a mut std::process::Command {
    use std::os::unix::process::CommandExt;
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// The server programs of one version.
struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Those that fit the data, else the first on PATH, else the newest.
    fn find(data: &Path) -> Result<Self, Error> {
        let found = candidates();
        if found.is_empty() {
            return Err(Error::Missing);
        }
        let Ok(wanted) = fs::read_to_string(data.join("PG_VERSION")) else {
            let (_, directory) = found.into_iter().next().ok_or(Error::Missing)?;
            return Ok(Self { directory });
        };
        let wanted = wanted.trim();
        match found.iter().find(|(version, _)| version == wanted) {
            Some((_, directory)) => Ok(Self { directory: directory.clone() }),
            None => Err(Error::Version {
                data: data.display().to_string(),
                wanted: wanted.to_owned(),
                found: found.into_iter().map(|(version, _)| version).collect::<Vec<_>>().join(", "),
            }),
        }
    }
}

/// Each directory that has the server programs, with its major version: PATH first, then the newest.
fn candidates() -> Vec<(String, PathBuf)> {
    let on_path =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect::<Vec<_>>()).unwrap_or_default();
    // Where Debian, Red Hat, Homebrew and a build from source put them.
    let mut installed: Vec<PathBuf> = [
        ("/usr/lib/postgresql", "bin"),
        ("/usr", "bin"),
        ("/opt/homebrew/opt", "bin"),
        ("/usr/local/opt", "bin"),
        ("/usr/local", "bin"),
    ]
    .into_iter()
    .flat_map(|(parent, below)| {
        fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter(move |entry| {
                parent.ends_with("postgresql")
                    || entry.file_name().to_string_lossy().starts_with("postgresql")
                    || entry.file_name().to_string_lossy().starts_with("pgsql")
            })
            .map(move |entry| entry.path().join(below))
    })
    .collect();
    let version = |directory: &PathBuf| {
        let output = std::process::Command::new(directory.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .ok()?;
        // "postgres (PostgreSQL) 15.13 (Debian 15.13-0+deb12u1)"
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.split_whitespace().nth(2)?;
        Some(number.split(['.', 'b', 'r', 'd']).next()?.to_owned())
    };
    let with_version = |directories: Vec<PathBuf>| {
        directories
            .into_iter()
            .filter(|directory| ["initdb", "postgres"].iter().all(|program| directory.join(program).is_file()))
            .filter_map(|directory| Some((version(&directory)?, directory)))
            .collect::<Vec<_>>()
    };
    installed.dedup();
    let mut found = with_version(on_path);
    let mut rest = with_version(installed);
    rest.sort_by_key(|(version, _)| std::cmp::Reverse(version.parse::<u32>().unwrap_or(0)));
    found.extend(rest);
    found
}

/// Makes a new data directory: beside its final name first, so that an interrupted start leaves nothing half done.
async fn make_data(
    programs: &Programs,
    home: &Path,
    place: &Path,
    account: Option<&Account>,
    durable: bool,
) -> Result<String, Error> {
    let new = place.join("data.new");
    let password_file = place.join("password.new");
    if new.exists() {
        fs::remove_dir_all(&new).map_err(file(&new))?;
    }
    make_directory(&new)?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o700)).map_err(file(&new))?;

    let password = local::secret(&home.join("password")).map_err(file(&home.join("password")))?;
    // initdb reads it under the server's account.
    local::write_private(&password_file, password.as_bytes()).map_err(file(&password_file))?;
    if let Some(account) = account {
        for path in [&new, &password_file] {
            chown(path, Some(account.uid), Some(account.gid)).map_err(file(path))?;
        }
    }

    let mut command = std::process::Command::new(programs.directory.join("initdb"));
    command
        .arg("--pgdata")
        .arg(&new)
        .args(["--username", USER, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"])
        .arg("--pwfile")
        .arg(&password_file)
        .current_dir("/")
        .stdin(Stdio::null());
    if !durable {
        command.arg("--no-sync");
    }
    with_account(&mut command, account);
    let run = tokio::process::Command::from(command).kill_on_drop(true).output();
    let output = tokio::time::timeout(INITDB_LIMIT, run).await;
    let _ = fs::remove_file(&password_file);
    match output {
        Ok(Ok(Output { status, .. })) if status.success() => {}
        Ok(Ok(output)) => {
            let text = String::from_utf8_lossy(&output.stderr);
            return Err(Error::Initdb(text.trim().to_owned()));
        }
        Ok(Err(error)) => return Err(Error::Initdb(error.to_string())),
        Err(_) => return Err(Error::Initdb(format!("not done after {INITDB_LIMIT:?}"))),
    }
    let data = place.join("data");
    fs::rename(&new, &data).map_err(file(&data))?;
    Ok(password)
}

fn spawn(
    programs: &Programs,
    options: &Options,
    data: &Path,
    log: &Path,
    port: u16,
    account: Option<Account>,
) -> Result<Child, Error> {
    let mut settings = vec![
        format!("port={port}"),
        "listen_addresses=127.0.0.1".to_owned(),
        "unix_socket_directories=".to_owned(),
        "timezone=UTC".to_owned(),
        "log_timezone=UTC".to_owned(),
        "logging_collector=off".to_owned(),
        // A statement's text never holds values of ours, its parameters do.
        "log_parameter_max_length_on_error=0".to_owned(),
        format!("max_connections={}", options.max_connections),
    ];
    if !options.durable {
        settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"].map(str::to_owned));
    }
    let program = Program::new(programs.directory.join("postgres"))
        .arg("-D")
        .arg(data)
        .args(settings.iter().flat_map(|setting| ["-c", setting]))
        .directory("/")
        .account(account)
        .log(process::open_log(log).map_err(file(log))?)
        // "Fast shutdown"
        .stop_with(Signal::SIGINT);
    Ok(program.spawn()?)
}

/// Deals with what an earlier server left: a pid file whose process is gone, or has become another program, is removed
/// (PostgreSQL itself only looks whether any process has that id); one that still serves these data is shut down.
fn end_orphan(data: &Path) -> Result<(), Error> {
    let path = data.join("postmaster.pid");
    let Ok(text) = fs::read_to_string(&path) else {
        return Ok(());
    };
    let pid = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok());
    if let Some(id) = pid.filter(|id| *id > 1 && serves(*id, data)) {
        tracing::info!(process = id, "an earlier server still runs: shutting it down");
        let pid = Pid::from_raw(id);
        for (signal, limit) in [
            (Signal::SIGINT, STOP_LIMIT),
            // "Immediate shutdown": the data are recovered at the next start.
            (Signal::SIGQUIT, Duration::from_secs(5)),
        ] {
            let _ = kill(pid, signal);
            let deadline = Instant::now() + limit;
            while Instant::now() < deadline {
                if !serves(id, data) {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        return Err(Error::Orphan(id));
    }
    fs::remove_file(&path).map_err(file(&path))
}

/// Whether that process is a server on these data.
fn serves(id: i32, data: &Path) -> bool {
    let arguments = match fs::read(format!("/proc/{id}/cmdline")) {
        Ok(bytes) => bytes,
        Err(_) if Path::new("/proc/self/cmdline").exists() => return false,
        Err(_) => std::process::Command::new("ps")
            .args(["-o", "args=", "-p", &id.to_string()])
            .stdin(Stdio::null())
            .output()
            .map(|output| output.stdout)
            .unwrap_or_default(),
    };
    let arguments = String::from_utf8_lossy(&arguments).replace('\0', " ");
    arguments.contains("postgres") && arguments.contains(&*data.to_string_lossy())
}
