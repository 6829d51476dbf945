//! The service in one process, and the operator's tools.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use operator_service::config::{Books, Config};
use operator_service::door::{self, DoorError};
use operator_service::telemetry::{self, Format};
use operator_service::{cluster, routes};

/// Takes Ocean Protocol's compute jobs over HTTP, keeps the books in Postgres, sets them up in Kubernetes.
///
/// Configured by environment variables; README.md has the table.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve all routes on HOST and PORT (127.0.0.1:8050) until SIGTERM
    Serve,
    /// Bring the database's schema up to date
    Migrate,
    /// Print the definition of the WorkFlow resource, for kubectl apply
    Crd,
    /// Print the OpenAPI document
    Openapi,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    door::run(async move {
        match arguments.command {
            Command::Serve => door::serve().await,
            Command::Migrate => migrate().await,
            Command::Crd => print(serde_yaml_ng::to_string(&cluster::definition())?),
            Command::Openapi => print(routes::docs::openapi().to_pretty_json()? + "\n"),
        }
    })
}

async fn migrate() -> Result<(), DoorError> {
    let config = Config::from_env(Books::Needed)?;
    telemetry::init(&config.log, Format::Text)?;
    door::store(&config)?.migrate().await?;
    tracing::info!("the schema is up to date");
    Ok(())
}

fn print(text: String) -> Result<(), DoorError> {
    use std::io::Write;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
