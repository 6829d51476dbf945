//! Child processes that end with us, however we end.
//!
//! A process that is killed with `SIGKILL` can't tidy up after itself, so one small shell process, the
//! watchdog, holds the other end of a pipe of ours: it is told of each child, and when the pipe closes
//! it ends those that are left. A child waits for a word from us before it turns into the program that it is meant
//! to be, so that there is no moment at which it runs and the watchdog does not know it.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// What went wrong with a child process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started.
    #[error("{program} could not be started: {source}")]
    Start {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused a call about a running child.
    #[error("{program} could not be watched: {source}")]
    Watch {
        /// Which program.
        program: String,
        /// Why.
        source: io::Error,
    },
}

/// The account a child runs under, where that is not ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name, for messages.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// A program about to be started, in a process group of its own, with nothing on its standard input.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    env_clear: bool,
    directory: Option<PathBuf>,
    account: Option<Account>,
    log: Option<File>,
    log_output: bool,
    stop_signal: Signal,
}

impl Program {
    /// The program at `path`, or of that name on PATH.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            args: Vec::new(),
            env: Vec::new(),
            env_clear: false,
            directory: None,
            account: None,
            log: None,
            log_output: true,
            stop_signal: Signal::SIGTERM,
        }
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// One more environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Starts with an empty environment except for what [`Program::env`] sets.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self
    }

    /// The directory it starts in.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Runs it under another account (only root can).
    #[must_use]
    pub fn account(mut self, account: Option<Account>) -> Self {
        self.account = account;
        self
    }

    /// The file that takes its standard output and standard error; without one they are thrown away.
    #[must_use]
    pub fn log(mut self, log: File) -> Self {
        self.log = Some(log);
        self
    }

    /// The file that takes its standard error; its standard output is thrown away.
    #[must_use]
    pub fn log_errors(self, log: File) -> Self {
        Self { log_output: false, ..self.log(log) }
    }

    /// The signal that asks it to end; `SIGTERM` unless said otherwise.
    #[must_use]
    pub fn stop_with(mut self, signal: Signal) -> Self {
        self.stop_signal = signal;
        self
    }

    fn name(&self) -> String {
        self.path
            .file_name()
            .map_or_else(|| self.path.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Starts it. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`Error::Start`] if there is no such program, or the operating system refuses.
    pub fn spawn(self) -> Result<Child, Error> {
        let name = self.name();
        let failed = |source| Error::Start { program: name.clone(), source };
        if self.path.components().count() > 1 && !self.path.is_file() {
            return Err(failed(io::ErrorKind::NotFound.into()));
        }

        // The shell waits for our word, then becomes the program.
        let mut command = std::process::Command::new("/bin/sh");
        command
            .args(["-c", r#"read -r word && [ "$word" = go ] || exit 125; exec "$@" </dev/null"#, "sh"])
            .arg(&self.path)
            .args(&self.args)
            .process_group(0);
        if self.env_clear {
            command.env_clear();
        }
        command.envs(self.env);
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some(account) = &self.account {
            command.uid(account.uid).gid(account.gid);
        }
        let (stdout, stderr) = match self.log {
            Some(log) if self.log_output => (Stdio::from(log.try_clone().map_err(failed)?), Stdio::from(log)),
            Some(log) => (Stdio::null(), Stdio::from(log)),
            None => (Stdio::null(), Stdio::null()),
        };
        command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr);

        let mut gate = None;
        let inner = std_spawn(command, &mut gate).map_err(failed)?;
        let id = inner.id().unwrap_or_default();
        let mut child = Child {
            name: name.clone(),
            group: Pid::from_raw(id.cast_signed()),
            stop_signal: self.stop_signal,
            inner,
            watched: false,
        };
        watchdog(&format!("watch {} {id}", self.stop_signal.as_str().trim_start_matches("SIG"))).map_err(failed)?;
        child.watched = true;
        let mut gate = gate.ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        gate.write_all(b"go\n").map_err(failed)?;
        Ok(child)
    }
}

/// Spawns through Tokio and keeps the blocking end of the child's standard input.
fn std_spawn(command: std::process::Command, gate: &mut Option<File>) -> io::Result<tokio::process::Child> {
    let mut child = tokio::process::Command::from(command).kill_on_drop(false).spawn()?;
    if let Some(stdin) = child.stdin.take() {
        *gate = Some(File::from(stdin.into_owned_fd()?));
    }
    Ok(child)
}

/// A running child, the leader of its own process group. Dropping it ends the whole group.
#[derive(Debug)]
pub struct Child {
    name: String,
    group: Pid,
    stop_signal: Signal,
    inner: tokio::process::Child,
    watched: bool,
}

impl Child {
    /// Its process id, which is its group's id too.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.group.as_raw()
    }

    /// Waits until it ends. May be called again, and dropped before it is done.
    ///
    /// # Errors
    /// [`Error::Watch`] if the operating system can't tell.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        self.inner.wait().await.map_err(|source| Error::Watch { program: self.name.clone(), source })
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// [`Error::Watch`] if the operating system can't tell.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        self.inner.try_wait().map_err(|source| Error::Watch { program: self.name.clone(), source })
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        // ESRCH: nobody is left in it, which is as good.
        if let Err(error) = killpg(self.group, signal)
            && error != Errno::ESRCH
        {
            tracing::warn!(program = self.name, %error, "could not send {signal}");
        }
    }

    /// Bytes of memory that the processes of its group hold at the moment; what several of them share counts once for
    /// each. 0 where /proc does not tell.
    #[must_use]
    pub fn resident_memory(&self) -> u64 {
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.map(|entry| resident_memory(&entry.path(), self.group).unwrap_or_default()).sum()
    }

    /// Asks it to end, waits for up to `limit`, then kills what is left of its group.
    ///
    /// # Errors
    /// [`Error::Watch`] if the operating system can't tell.
    pub async fn stop(mut self, limit: Duration) -> Result<ExitStatus, Error> {
        if self.try_wait()?.is_none() {
            self.signal(self.stop_signal);
        }
        let status = match tokio::time::timeout(limit, self.wait()).await {
            Ok(status) => status,
            Err(_) => {
                tracing::warn!(program = self.name, "did not end in {limit:?}: killed");
                self.signal(Signal::SIGKILL);
                self.wait().await
            }
        };
        self.finish();
        status
    }

    /// Kills the whole group at once and waits for its leader.
    ///
    /// # Errors
    /// [`Error::Watch`] if the operating system can't tell.
    pub async fn kill(mut self) -> Result<ExitStatus, Error> {
        self.finish();
        self.wait().await
    }

    /// Kills what is left of the group and takes it off the watchdog's list.
    fn finish(&mut self) {
        if self.watched {
            self.watched = false;
            self.signal(Signal::SIGKILL);
            if let Err(error) = watchdog(&format!("forget {}", self.group)) {
                tracing::warn!(%error, "the watchdog of child processes is gone");
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.watched && matches!(self.inner.try_wait(), Ok(None)) {
            self.signal(self.stop_signal);
            let limit = Instant::now() + Duration::from_secs(5);
            while matches!(self.inner.try_wait(), Ok(None)) && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        self.finish();
    }
}

/// Tells the watchdog, which is started with the first message.
fn watchdog(message: &str) -> io::Result<()> {
    static WATCHDOG: OnceLock<Mutex<Option<std::process::Child>>> = OnceLock::new();
    let mut watchdog: MutexGuard<'_, _> =
        WATCHDOG.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let child = match &mut *watchdog {
        Some(child) => child,
        none => none.insert(
            std::process::Command::new("/bin/sh")
                .args(["-c", include_str!("watchdog.sh"), "devstack-watchdog"])
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .process_group(0)
                .spawn()?,
        ),
    };
    let stdin = child.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
    stdin.write_all(format!("{message}\n").as_bytes())
}

/// What the process of a directory below /proc holds, if it is of that group.
fn resident_memory(process: &Path, group: Pid) -> Option<u64> {
    if !process.file_name()?.to_str()?.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    // proc_pid_stat(5): after the name in brackets come state, parent and group.
    let stat = std::fs::read_to_string(process.join("stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    if fields.split_whitespace().nth(2)?.parse() != Ok(group.as_raw()) {
        return None;
    }
    let status = std::fs::read_to_string(process.join("status")).ok()?;
    let kibibytes = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(kibibytes.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024)
}

/// Opens a log file for appending, readable by its owner only.
///
/// # Errors
/// As the operating system says.
pub fn open_log(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// The last lines of a log, for an error's text; empty if it can't be read.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(16 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].iter().map(|line| format!("\n    {line}")).collect()
}
