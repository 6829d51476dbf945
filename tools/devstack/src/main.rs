//! `devstack run`, `devstack demo`: the service with everything that a laptop lacks. `devstack with-postgres`: tests
//! with a database.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use clap::{Parser, Subcommand};
use devstack::{
    apiserver::{self, ApiServer},
    demo,
    postgres::{self, Postgres},
    say,
    stack::{self, Stack},
};
use fake_engine::{local, process};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::signal::{
    self,
    unix::{SignalKind, signal},
};
use tracing_subscriber::EnvFilter;

/// operator-service with what a laptop lacks: a Kubernetes API, a private Postgres, a stand-in for the engine.
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
    /// Run the stack until Ctrl-C; what it is given is there again at the next start
    Run,
    /// Show one job's way through a stack of its own, from the signed request to the result
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

/// Any error whose text says what to do about it.
type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let directory = std::path::absolute(&arguments.directory).unwrap_or(arguments.directory);
    let log = directory.join("logs/devstack.log");
    let done = prepare(&log).and_then(|()| {
        fake_engine::install_tls();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(async {
            let signals = Signals::listen()?;
            match arguments.command {
                Command::Run => run(directory.clone(), signals).await,
                Command::Demo => demonstrate(directory.join("demo"), signals).await,
                Command::WithPostgres { apiserver, command } => {
                    with_postgres(&directory, apiserver, command, signals).await
                }
            }
        })
    });
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("devstack: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The devstack's own log, the engine's part included.
fn prepare(log: &Path) -> Result<(), Failure> {
    if let Some(parent) = log.parent() {
        std::fs::create_dir_all(parent).map_err(|error| format!("{}: {error}", parent.display()))?;
    }
    let file = process::open_log(log).map_err(|error| format!("{}: {error}", log.display()))?;
    let filter = std::env::var("DEVSTACK_LOG")
        .unwrap_or_else(|_| "devstack=info,fake_engine=info,fake_kubernetes=info,warn".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(false)
        .with_writer(Mutex::new(file))
        .init();
    Ok(())
}

/// The signals that ask us to end: Ctrl-C, SIGTERM, a terminal that was closed. Listened to from the start, so that
/// none is lost between two waits.
struct Signals {
    interrupt: signal::unix::Signal,
    terminate: signal::unix::Signal,
    hang_up: signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        }
    }
}

async fn run(directory: PathBuf, mut signals: Signals) -> Result<ExitCode, Failure> {
    let progress: stack::Progress = &|what, line| say!("  {what:<9} {line}");
    say!("Starting");
    let options = stack::Options { directory, demo: false };
    let mut stack = tokio::select! {
        stack = Stack::start(options, progress) => stack?,
        signal = signals.next() => return Err(format!("ended by {signal} before all was up").into()),
    };
    banner(&stack);
    let done = tokio::select! {
        ended = stack.ended() => Err(ended.into()),
        _ = signals.next() => Ok(ExitCode::SUCCESS),
    };
    say!("\nStopping");
    // A second signal means now: what is left is dropped, and so ends at once.
    tokio::select! {
        () = stack.stop() => {}
        _ = signals.next() => {}
    }
    done
}

fn banner(stack: &Stack) {
    let places = &stack.places;
    let service = &places.service;
    say!(
        "
operator-service is up.

  service     {service}
  docs        {service}/api/v1/docs/
  Postgres    {}
  cluster     KUBECONFIG={} kubectl -n {} get wf",
        places.psql,
        places.kubeconfig,
        places.namespace
    );
    if let Some(results) = &places.results {
        say!("  results     http://{results}/ (the engine stand-in's, below paths that can't be guessed)");
    }
    if let Some(every) = places.sweeps {
        let log = stack::shown(&places.logs.join("reap.log"));
        say!(
            "  reaper      cleans up dead jobs every {every:?}, after short graces (REAP_EVERY=0: never); log in {log}"
        );
    }
    say!(
        "  provider    {} (its signatures are accepted; the key is in {})
  logs        {}

Try

  curl {service}/api/v1/operator/environments
  curl {service}/api/v1/operator/runningjobs
  curl {service}/api/v1/operator/list

Ctrl-C stops it all; the next start finds its data again.",
        stack.provider.address(),
        stack::shown(&places.keys.join("provider")),
        stack::shown(&places.logs),
    );
}

async fn demonstrate(directory: PathBuf, mut signals: Signals) -> Result<ExitCode, Failure> {
    let logs = stack::shown(&directory.join("logs"));
    tokio::select! {
        told = demo::run(&directory) => match told {
            Ok(()) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(format!("the demo failed: {error}\n(logs: {logs})").into()),
        },
        signal = signals.next() => Err(format!("ended by {signal}").into()),
    }
}

async fn with_postgres(
    directory: &Path,
    apiserver: bool,
    command: Vec<OsString>,
    mut signals: Signals,
) -> Result<ExitCode, Failure> {
    let mut environment: Vec<(&str, OsString)> = Vec::new();
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let place = Throwaway::take(directory)?;
    let bring_up = async {
        let server = match set("TEST_DATABASE_URL") {
            Some(_) => None,
            None => Some(Postgres::start(postgres::Options::throwaway(place.path.join("postgres"))).await?),
        };
        let cluster = match (set("KUBECONFIG"), set("KUBEBUILDER_ASSETS")) {
            (None, Some(assets)) if apiserver => {
                let directory = place.path.join("apiserver");
                Some(ApiServer::start(apiserver::Options { assets: assets.into(), directory, durable: false }).await?)
            }
            _ => None,
        };
        Ok::<_, Failure>((server, cluster))
    };
    let (server, cluster) = tokio::select! {
        up = bring_up => up?,
        signal = signals.next() => return Err(format!("ended by {signal}").into()),
    };
    if let Some(server) = &server {
        environment.push(("TEST_DATABASE_URL", server.url("postgres").into()));
    }
    if let Some(cluster) = &cluster {
        let path = place.path.join("kubeconfig");
        local::write_private(&path, cluster.kubeconfig().as_bytes())?;
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
    place.remove()?;
    code
}

/// Runs the command in the foreground, hands signals on to it, and takes its exit code.
async fn run_command(
    command: &[OsString],
    environment: Vec<(&str, OsString)>,
    signals: &mut Signals,
) -> Result<ExitCode, Failure> {
    use std::os::unix::process::ExitStatusExt;
    let (program, arguments) = command.split_first().ok_or("there is no command to run")?;
    let mut child = tokio::process::Command::new(program)
        .args(arguments)
        .envs(environment)
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let id = child.id().map(|id| Pid::from_raw(id.cast_signed()));
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status?;
                let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
                return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
            }
            signal = signals.next() => {
                // Ctrl-C in a terminal has reached it already: it is in the same group.
                if signal != Signal::SIGINT && let Some(id) = id {
                    let _ = kill(id, signal);
                }
            }
        }
    }
}

/// A directory for one run of tests. Several runs at once get a directory each.
struct Throwaway {
    path: PathBuf,
    _lock: local::Lock,
}

impl Throwaway {
    fn take(directory: &Path) -> Result<Self, Failure> {
        for number in 1..100 {
            let path = directory.join(format!("test-{number}"));
            std::fs::create_dir_all(&path)?;
            if let Some(lock) = local::Lock::take(&path.join("lock"))? {
                // What a run that was killed left.
                postgres::remove(&path.join("postgres"))?;
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(format!("{} is full of tests that are under way", directory.display()).into())
    }

    fn remove(self) -> Result<(), Failure> {
        postgres::remove(&self.path.join("postgres"))?;
        Ok(std::fs::remove_dir_all(&self.path)?)
    }
}
