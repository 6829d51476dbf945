//! Runs the binary `operator-service`.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::Signal;

use crate::local;
use crate::process::{self, Child, Program};

/// Maximum time until the service answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// Maximum duration of a migration, and of a sweep.
const LIMIT: Duration = Duration::from_secs(120);
/// The variables that a service with a cleared environment inherits.
const INHERITED: [&str; 8] =
    ["PATH", "HOME", "USER", "LANG", "TMPDIR", "LOG_LEVEL", "POSTGRES_SSLMODE", "POSTGRES_CA_FILE"];

/// The binary with its environment.
pub(crate) struct Service {
    /// The binary.
    pub(crate) program: PathBuf,
    /// Whether it inherits nothing but INHERITED.
    pub(crate) clear: bool,
    /// Set for it.
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The directory of its logs, one file for each subcommand.
    pub(crate) logs: PathBuf,
}

/// The path of the binary: cargo puts it beside ours.
pub(crate) fn find() -> anyhow::Result<PathBuf> {
    let own = env::current_exe()?;
    let mut found = own.ancestors().skip(1).take(2).map(|directory| directory.join("operator-service"));
    let missing = || format!("there is no operator-service beside {}: run cargo build first", own.display());
    found.find(|path| path.is_file()).with_context(missing)
}

impl Service {
    pub(crate) fn log(&self, command: &str) -> PathBuf {
        self.logs.join(format!("{command}.log"))
    }

    fn set_up(&self, run: &mut Command, command: &str) {
        if self.clear {
            run.env_clear().envs(INHERITED.into_iter().filter_map(|name| Some((name, env::var_os(name)?))));
        }
        run.arg(command).envs(self.variables.iter().map(|(name, value)| (name, value)));
    }

    fn program(&self, command: &str) -> anyhow::Result<Program> {
        let mut program = Program::new(&self.program).log(&self.log(command))?;
        self.set_up(&mut program.command, command);
        Ok(program)
    }

    fn check(&self, command: &str, status: ExitStatus) -> anyhow::Result<()> {
        if !status.success() {
            let log = self.log(command);
            bail!("operator-service {command} failed ({status}); {}", end_of(&log));
        }
        Ok(())
    }

    async fn wait(&self, command: &str, mut child: Child) -> anyhow::Result<()> {
        let late = || format!("operator-service {command} is not done after {LIMIT:?}");
        self.check(command, tokio::time::timeout(LIMIT, child.wait()).await.with_context(late)??)
    }

    /// Runs `migrate` to its end.
    pub(crate) async fn migrate(&self) -> anyhow::Result<()> {
        self.wait("migrate", self.program("migrate")?.spawn()?).await
    }

    /// Runs one sweep of the reaper. Dropping it kills it, as it may be killed at any time.
    pub(crate) async fn sweep(&self) -> anyhow::Result<()> {
        let mut program = self.program("reap")?;
        program.stop_signal = Signal::SIGKILL;
        program.command.stdout(Stdio::null());
        self.wait("reap", program.spawn()?).await
    }

    /// The definition of the WorkFlow resource, as YAML.
    pub(crate) fn definition(&self) -> anyhow::Result<String> {
        let mut run = Command::new(&self.program);
        self.set_up(&mut run, "crd");
        let output = run.stdin(Stdio::null()).stderr(process::open_log(&self.log("crd"))?).output()?;
        self.check("crd", output.status)?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts `serve` and waits until it answers.
    pub(crate) async fn serve(&self, address: SocketAddr) -> anyhow::Result<Child> {
        let mut child = self.program("serve")?.spawn()?;
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let answer = client.get(format!("http://{}/", reachable(address))).send().await;
            if let Some(status) = child.try_wait()? {
                bail!("operator-service ended while it was starting ({status}); {}", end_of(&self.log("serve")));
            }
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(child);
            }
            if Instant::now() > deadline {
                bail!("operator-service does not answer after {START_LIMIT:?}; {}", end_of(&self.log("serve")));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

/// The address with the loopback address in place of "all addresses".
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

pub(crate) fn end_of(log: &Path) -> String {
    format!("the end of {}:{}", local::shown(log), process::tail(log))
}
