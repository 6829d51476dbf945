//! `devstack run`, `devstack demo`: the service with everything that it needs. `devstack with-postgres`: tests
//! with a database.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use devstack::apiserver::ApiServer;
use devstack::local::{self, shown};
use devstack::postgres::{self, Postgres};
use devstack::stack::{self, Stack};
use devstack::{demo, process, say};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::SignalKind;
use tokio::sync::mpsc::{self, Receiver};
use tracing_subscriber::EnvFilter;

/// operator-service with everything that it needs: a Kubernetes API, a private PostgreSQL, a stand-in for the engine.
#[derive(Parser)]
struct Arguments {
    /// Where state, keys and logs are kept.
    #[arg(long, default_value = ".local", value_name = "DIR")]
    directory: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the stack until Ctrl-C; its data is there again at the next start
    Run,
    /// Run one job in a stack of its own, and show it from the signed request to the result
    Demo,
    /// Run a command with TEST_DATABASE_URL naming a throw-away Postgres
    WithPostgres {
        /// Start the API server of KUBEBUILDER_ASSETS too, if that is set, and name it in TEST_KUBECONFIG
        #[arg(long)]
        apiserver: bool,
        /// The command
        #[arg(trailing_var_arg = true, required = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let directory = std::path::absolute(&arguments.directory).unwrap_or(arguments.directory);
    let done = async {
        start_logging(&directory.join("logs"))?;
        fake_engine::install_tls();
        let signals = listen()?;
        match arguments.command {
            Command::Run => run(directory, signals).await,
            Command::Demo => demonstrate(&directory.join("demo"), signals).await,
            Command::WithPostgres { apiserver, command } => {
                with_postgres(&directory, apiserver, command, signals).await
            }
        }
    };
    done.await.unwrap_or_else(|error| {
        eprintln!("devstack: {error:#}");
        ExitCode::FAILURE
    })
}

/// Starts the devstack's own log, which the engine and fake-kubernetes share.
fn start_logging(logs: &Path) -> anyhow::Result<()> {
    let log = logs.join("devstack.log");
    let open = || fs::create_dir_all(logs).and_then(|()| process::open_log(&log));
    let file = open().with_context(|| shown(&log))?;
    let filter = env::var("DEVSTACK_LOG");
    let filter = filter.as_deref().unwrap_or("devstack=info,fake_engine=info,fake_kubernetes=info,warn");
    let subscriber = tracing_subscriber::fmt().with_env_filter(EnvFilter::try_new(filter)?).with_ansi(false);
    subscriber.with_writer(Mutex::new(file)).init();
    Ok(())
}

/// Receives the signals that ask us to end, from now on: Ctrl-C, SIGTERM, a terminal that was closed.
fn listen() -> anyhow::Result<Receiver<Signal>> {
    let (send, signals) = mpsc::channel(8);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut stream = tokio::signal::unix::signal(SignalKind::from_raw(signal as i32))?;
        let send = send.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && send.send(signal).await.is_ok() {} });
    }
    Ok(signals)
}

async fn run(directory: PathBuf, mut signals: Receiver<Signal>) -> anyhow::Result<ExitCode> {
    let progress: stack::Progress<'_> = &|what, line| say!("  {what:<9} {line}");
    say!("Starting");
    let mut stack = tokio::select! {
        stack = Stack::start(stack::Options { directory: directory.clone(), demo: false }, progress) => stack?,
        Some(signal) = signals.recv() => bail!("ended by {signal} before all was up"),
    };
    print_banner(&stack, &directory);
    let done = tokio::select! {
        ended = stack.ended() => Err(ended),
        Some(_) = signals.recv() => Ok(ExitCode::SUCCESS),
    };
    say!("\nStopping");
    // A second signal ends everything at once.
    tokio::select! {
        stopped = stack.stop() => stopped?,
        Some(_) = signals.recv() => {}
    }
    done
}

fn print_banner(stack: &Stack, directory: &Path) {
    let (service, logs) = (&stack.url, directory.join("logs"));
    say!("\noperator-service is up.\n");
    say!("  service     {service}");
    say!("  docs        {service}/api/v1/docs/");
    say!("  Postgres    {}", stack.psql);
    say!("  cluster     KUBECONFIG={} kubectl -n {} get wf", stack.kubeconfig, stack.namespace);
    if let Some(results) = &stack.results {
        say!("  results     http://{results}/ (the engine stand-in's, below paths that can't be guessed)");
    }
    if let Some(every) = stack.sweep_interval {
        let log = shown(&logs.join("reap.log"));
        say!(
            "  reaper      cleans up dead jobs every {every:?}, after short graces (REAP_EVERY=0: never); log in {log}"
        );
    }
    let (address, key) = (stack.provider.address(), shown(&directory.join("keys/provider")));
    say!("  provider    {address} (its signatures are accepted; the key is in {key})");
    say!("  logs        {}", shown(&logs));
    say!("\nTry\n");
    for route in ["environments", "runningjobs", "list"] {
        say!("  curl {service}/api/v1/operator/{route}");
    }
    say!("\nCtrl-C stops it all; the next start finds its data again.");
}

async fn demonstrate(directory: &Path, mut signals: Receiver<Signal>) -> anyhow::Result<ExitCode> {
    tokio::select! {
        shown = demo::run(directory) => shown.context("the demo failed")?,
        Some(signal) = signals.recv() => bail!("ended by {signal}"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn with_postgres(
    directory: &Path,
    apiserver: bool,
    command: Vec<OsString>,
    mut signals: Receiver<Signal>,
) -> anyhow::Result<ExitCode> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    let (place, _lock) = throwaway(directory)?;
    let start = async {
        let server = match set("TEST_DATABASE_URL") {
            Some(_) => None,
            None => Some(Postgres::start(postgres::Options::throwaway(place.join("postgres"))).await?),
        };
        let cluster = match (set("KUBECONFIG"), set("KUBEBUILDER_ASSETS")) {
            (None, Some(assets)) if apiserver => {
                Some(ApiServer::start(Path::new(&assets), &place.join("apiserver"), false).await?)
            }
            _ => None,
        };
        anyhow::Ok((server, cluster))
    };
    let (server, cluster) = tokio::select! {
        started = start => started?,
        Some(signal) = signals.recv() => bail!("ended by {signal}"),
    };
    let mut environment: Vec<(&str, OsString)> = Vec::new();
    if let Some(server) = &server {
        environment.push(("TEST_DATABASE_URL", server.url("postgres").into()));
    }
    if let Some(cluster) = &cluster {
        let path = place.join("kubeconfig");
        local::write_private(&path, &cluster.kubeconfig)?;
        environment.push(("TEST_KUBECONFIG", path.into()));
    } else if let Some(kubeconfig) = set("KUBECONFIG") {
        environment.push(("TEST_KUBECONFIG", kubeconfig));
    }
    let code = run_command(&command, environment, &mut signals).await;
    if let Some(cluster) = cluster {
        cluster.stop().await?;
    }
    if let Some(server) = server {
        server.stop().await?;
    }
    postgres::remove(&place.join("postgres"))?;
    fs::remove_dir_all(&place)?;
    code
}

/// Runs the command in the foreground, passes signals on to it, and returns its exit code.
async fn run_command(
    command: &[OsString],
    environment: Vec<(&str, OsString)>,
    signals: &mut Receiver<Signal>,
) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("there is no command to run")?;
    let mut child = tokio::process::Command::new(program);
    child.args(arguments).envs(environment).kill_on_drop(true);
    let mut child = child.spawn().with_context(|| program.display().to_string())?;
    let id = child.id().map(|id| Pid::from_raw(id.cast_signed()));
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            Some(signal) = signals.recv() => {
                // Ctrl-C in a terminal has reached it already: it is in the same group.
                if signal != Signal::SIGINT && let Some(id) = id {
                    let _ = kill(id, signal);
                }
            }
        }
    }
}

/// Claims a directory for one run of tests. Several runs at once get a directory each.
fn throwaway(directory: &Path) -> anyhow::Result<(PathBuf, File)> {
    for number in 1..100 {
        let path = directory.join(format!("test-{number}"));
        fs::create_dir_all(&path)?;
        if let Ok(lock) = local::lock(&path.join("lock")) {
            // What a run that was killed left.
            postgres::remove(&path.join("postgres"))?;
            return Ok((path, lock));
        }
    }
    bail!("{} is full of test runs that have not ended", directory.display())
}
