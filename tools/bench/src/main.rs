//! `make bench`: measures operator-service against floors that run beside it. README.md says how, docs/performance.md what
//! came of it.
//!
//! - [`figures`]: what is measured; [`load`]: the load generator; [`requests`]: what it sends; [`report`]: the table
//! - [`stack`]: the processes; [`database`]: their jobs; [`cluster`]: the process of the Kubernetes API; [`floor`]: the
//!   process of the bare handlers; [`runtime_api`]: what surrounds a function
//! - `bin/empty.rs`, `bin/connecting.rs`: the floors of the functions

mod cluster;
mod database;
mod figures;
mod floor;
mod load;
mod report;
mod requests;
mod runtime_api;
mod stack;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

/// What the environment asks for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How often each figure and its floor are measured (ROUNDS).
    pub rounds: usize,
    /// How long each is measured in a round (SECONDS).
    pub time: Duration,
    /// The jobs of the large database (JOBS).
    pub jobs: usize,
    /// The name of the only figure to run (ONLY).
    pub only: Option<String>,
}

impl Settings {
    fn from_env() -> anyhow::Result<Self> {
        Ok(Self {
            rounds: variable("ROUNDS")?.unwrap_or(5),
            time: Duration::from_secs_f64(variable("SECONDS")?.unwrap_or(3.0)),
            jobs: variable("JOBS")?.unwrap_or(1_000_000),
            only: variable("ONLY")?,
        })
    }

    /// The command that this run was started with.
    pub fn command(&self) -> String {
        let Self { rounds, time, jobs, only } = self;
        let only = only.as_ref().map(|name| format!(" ONLY={name}")).unwrap_or_default();
        format!("make bench ROUNDS={rounds} SECONDS={} JOBS={jobs}{only}", time.as_secs_f64())
    }
}

fn variable<T: FromStr>(name: &str) -> anyhow::Result<Option<T>> {
    let Some(text) = std::env::var(name).ok().filter(|text| !text.is_empty()) else { return Ok(None) };
    text.parse().ok().map(Some).with_context(|| format!("{name}={text} cannot be read"))
}

#[tokio::main]
async fn main() -> ExitCode {
    // For all TLS connections of the process. Only a second call could fail.
    rustls::crypto::ring::default_provider().install_default().ok();
    let done = match std::env::args().nth(1).as_deref() {
        None => measure().await,
        Some("cluster") => cluster::serve().await,
        Some("floor") => floor::serve().await,
        Some(other) => Err(anyhow::anyhow!("there is no subcommand {other}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure() -> anyhow::Result<()> {
    let settings = Settings::from_env()?;
    let stack = stack::Stack::start().await?;
    let (rows, measured) = figures::run(&settings, &stack).await;
    let versions = stack.versions().await;
    stack.stop().await?;
    if !rows.is_empty() {
        report::write(&settings, &versions?, &rows)?;
    }
    measured
}
