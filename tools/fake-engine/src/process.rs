//! Child processes in a process group of their own, of which nothing outlives this process, however it ends.
//!
//! A process that is killed with `SIGKILL` cannot clean up. So each child has a small shell beside it, in its group,
//! that reads from a pipe which only this process holds open: when the pipe closes, the shell ends the group.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Starts the shell that watches the pipe on standard input, then becomes the program. The double fork keeps the
/// watcher from being a child that the program would wait for.
const START: &str = r#"
exec 3<&0
( (
    trap '' HUP INT QUIT TERM
    read -r _ <&3
    kill -s INT -- -$$
    kill -s TERM -- -$$
    tries=100
    while kill -s 0 $$ && [ $tries -gt 0 ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
    kill -s KILL -- -$$
) >/dev/null 2>&1 & )
exec "$@" </dev/null 3<&-
"#;

/// A program about to be started, with nothing on its standard input and, unless changed, its output discarded.
#[derive(Debug)]
pub struct Program {
    /// Its arguments, environment, directory, account and output.
    pub command: Command,
    /// The signal that asks it to end: `SIGTERM` unless changed.
    pub stop_signal: Signal,
}

impl Program {
    /// The program at that path, or of that name on PATH.
    pub fn new(path: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", START, "sh"]).arg(path).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { command, stop_signal: Signal::SIGTERM }
    }

    /// Appends its output to a log file.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub fn log(mut self, path: &Path) -> io::Result<Self> {
        let log = open_log(path)?;
        self.command.stdout(log.try_clone()?).stderr(log);
        Ok(self)
    }

    /// Starts it. Needs a Tokio runtime. A program that does not exist ends with exit code 127.
    ///
    /// # Errors
    /// If the operating system refuses.
    pub fn spawn(self) -> io::Result<Child> {
        let mut inner = tokio::process::Command::from(self.command).spawn()?;
        let pipe = inner.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?.into_owned_fd()?;
        let group = Pid::from_raw(inner.id().unwrap_or_default().cast_signed());
        Ok(Child { inner, group, stop_signal: self.stop_signal, _pipe: pipe })
    }
}

/// A running child, the leader of its process group. Dropping it ends the whole group.
#[derive(Debug)]
pub struct Child {
    inner: tokio::process::Child,
    group: Pid,
    stop_signal: Signal,
    _pipe: OwnedFd,
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
    /// If the operating system cannot tell.
    pub async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.inner.wait().await
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// If the operating system cannot tell.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.inner.try_wait()
    }

    /// Sends a signal to the whole group.
    pub fn signal(&self, signal: Signal) {
        if let Err(error) = killpg(self.group, signal)
            && error != Errno::ESRCH
        {
            tracing::warn!(group = %self.group, %error, "could not send {signal}");
        }
    }

    /// Asks it to end, waits for up to `limit`, then kills what is left of its group.
    ///
    /// # Errors
    /// If the operating system cannot tell whether it has ended.
    pub async fn stop(mut self, limit: Duration) -> io::Result<ExitStatus> {
        if self.try_wait()?.is_none() {
            self.signal(self.stop_signal);
        }
        if let Ok(status) = tokio::time::timeout(limit, self.wait()).await {
            return status;
        }
        tracing::warn!(group = %self.group, "did not end within {limit:?}: killed");
        self.signal(Signal::SIGKILL);
        self.wait().await
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.stop_signal != Signal::SIGKILL && matches!(self.try_wait(), Ok(None)) {
            self.signal(self.stop_signal);
            let limit = Instant::now() + Duration::from_secs(5);
            while matches!(self.try_wait(), Ok(None)) && Instant::now() < limit {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // The watcher is still in the group, so the group's id cannot be another's.
        self.signal(Signal::SIGKILL);
    }
}

/// Opens a log file for appending, readable by its owner only.
///
/// # Errors
/// As the operating system reports.
pub fn open_log(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

/// The last lines of a log, for an error's text; empty if it cannot be read.
#[must_use]
pub fn tail(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].iter().map(|line| format!("\n    {line}")).collect()
}
