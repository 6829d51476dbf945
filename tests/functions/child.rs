//! The real binaries as child processes. They are killed at the end of the test, also if it fails.

use std::ffi::OsStr;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use devstack::process::{Child, Program};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::LIMIT;
use crate::support::Cluster;

/// The interval at which a log or a port is polled.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

pub const OPERATOR_SERVICE: &str = env!("CARGO_BIN_EXE_operator-service");

/// A directory for one test's files, deleted at its end unless the test fails.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("functions-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// Environment variables for a child process, which inherits only PATH.
#[derive(Debug, Clone, Default)]
pub struct Env(Vec<(String, String)>);

impl Env {
    pub fn of<K: Into<String>, V: Into<String>>(variables: impl IntoIterator<Item = (K, V)>) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }

    /// Sets a variable.
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self = self.without(name);
        self.0.push((name.to_owned(), value.into()));
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.0.retain(|(known, _)| known != name);
        self
    }

    /// Names a cluster, by a kubeconfig that it writes into the directory.
    pub fn with_cluster(self, cluster: &Cluster, directory: &Directory) -> Self {
        let kubeconfig = directory.file("kubeconfig");
        fs::write(&kubeconfig, cluster.kubeconfig()).unwrap();
        self.with("KUBECONFIG", kubeconfig.to_str().unwrap())
    }

    pub fn and(self, others: &[(&str, &str)]) -> Self {
        others.iter().fold(self, |env, (name, value)| env.with(name, *value))
    }
}

/// A program that runs until it is signalled.
pub struct Process {
    child: Child,
    directory: Directory,
}

impl Process {
    pub fn start(program: impl AsRef<OsStr>, arguments: &[&str], env: &Env) -> Self {
        let directory = Directory::new();
        // Through `env`: the shell with which `Program` starts programs drops names that are invalid there, such as
        // X-API-KEY.
        let mut started = Program::new("env").log(&directory.file("output")).unwrap();
        started.command.arg("-i").arg(format!("PATH={}", std::env::var("PATH").unwrap_or_default()));
        started.command.args(env.0.iter().map(|(name, value)| format!("{name}={value}")));
        started.command.arg(program).args(arguments);
        Self { child: started.spawn().unwrap(), directory }
    }

    /// Everything it has printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.file("output")).unwrap()).into_owned()
    }

    /// Waits for it to print a line that holds the text, and returns that line.
    pub async fn line(&mut self, text: &str) -> String {
        let started = tokio::time::Instant::now();
        loop {
            // Looked at before the output, so that what it printed at its end is seen.
            let ended = self.child.try_wait().unwrap();
            let output = self.output();
            // The last line may not be complete yet.
            let complete = output.rfind('\n').map_or("", |end| &output[..end]);
            if let Some(line) = complete.lines().find(|line| line.contains(text)) {
                return line.to_owned();
            }
            assert!(ended.is_none(), "ended with {ended:?} before it printed {text:?}:\n{output}");
            assert!(started.elapsed() < LIMIT, "has not printed {text:?} in {LIMIT:?}:\n{output}");
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    pub fn send(&self, signal: Signal) {
        nix::sys::signal::kill(Pid::from_raw(self.child.id()), signal).unwrap();
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub async fn ended(&mut self) -> ExitStatus {
        match tokio::time::timeout(LIMIT, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(_) => panic!("has not ended in {LIMIT:?}:\n{}", self.output()),
        }
    }

    /// A value in /proc/<pid>/status, in KiB: VmRSS is the memory it uses now, VmHWM the most it ever used.
    pub fn memory(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- output of the process that this test started:\n{}---", self.output());
        }
        // No test waits for requests in flight any more.
        self.child.signal(Signal::SIGKILL);
    }
}

/// `operator-service serve`, listening on a loopback port.
pub struct Service {
    pub process: Process,
    pub address: SocketAddr,
}

impl Service {
    pub async fn start(env: &Env) -> Self {
        let mut process = Process::start(OPERATOR_SERVICE, &["serve"], &env.clone().with("PORT", "0"));
        let line = process.line("listening").await;
        let address = line.split("address=").nth(1).unwrap_or_else(|| panic!("no address in {line:?}"));
        Self { process, address: address.trim().parse().unwrap() }
    }

    /// Starts it with a LOG_LEVEL at which it does not log its address.
    pub async fn start_quietly(env: &Env) -> Self {
        let port = devstack::local::free_port().unwrap();
        let mut process = Process::start(OPERATOR_SERVICE, &["serve"], &env.clone().with("PORT", port.to_string()));
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let started = tokio::time::Instant::now();
        while tokio::net::TcpStream::connect(address).await.is_err() {
            assert!(process.is_running(), "ended before it listened:\n{}", process.output());
            assert!(started.elapsed() < LIMIT, "does not listen:\n{}", process.output());
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Self { process, address }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

/// Runs `operator-service` to its end.
pub async fn run(arguments: &[&str], env: &Env) -> Output {
    run_program(OPERATOR_SERVICE, arguments, env).await
}

/// Runs a program to its end.
pub async fn run_program(program: impl AsRef<OsStr>, arguments: &[&str], env: &Env) -> Output {
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(env.0.iter().cloned()).stdin(std::process::Stdio::null()).kill_on_drop(true);
    tokio::time::timeout(LIMIT, command.output()).await.expect("does not end").unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
