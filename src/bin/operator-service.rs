//! The service in one process, and the operator's commands.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use operator_service::aws::{Account, eks};
use operator_service::config::{self, Config, DatabaseUse};
use operator_service::db::Migrated;
use operator_service::runtime::{self, BoxError};
use operator_service::telemetry::{self, Format};
use operator_service::{api, kubernetes};
use serde::Serialize;

/// Takes Ocean Protocol's compute jobs over HTTP, keeps their records in PostgreSQL, registers them in Kubernetes.
///
/// Configured by environment variables; `operator-service variables` lists them.
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
    /// Run one sweep of the reaper, and print its report as JSON
    Reap {
        /// Only report what would be done, and change nothing
        #[arg(long)]
        dry_run: bool,
        /// Stop after this many seconds, and report what is left
        #[arg(long, default_value_t = 240, value_name = "SECONDS")]
        limit: u64,
    },
    /// Print the definition of the WorkFlow resource, for kubectl apply
    Crd,
    /// Print the OpenAPI document
    Openapi,
    /// Print all environment variables, with defaults and descriptions
    Variables {
        /// The format: the tables of docs/configuration.md, or a JSON list
        #[arg(long, value_enum, default_value_t = VariablesFormat::Markdown)]
        format: VariablesFormat,
    },
    /// Print the table of all metrics, for docs/metrics.md
    Metrics,
    /// Print all routes as a JSON list, each with the Lambda function that handles it
    Routes,
    /// Print a token for an EKS cluster, as `aws eks get-token` does, for the exec section of a kubeconfig
    EksToken {
        /// The cluster's name
        #[arg(long)]
        cluster_name: String,
        /// The region of the STS endpoint that the token is for; otherwise the environment's
        #[arg(long)]
        region: Option<String>,
        /// The role that has access to the cluster, if it is not the caller's own
        #[arg(long)]
        role_arn: Option<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum VariablesFormat {
    Markdown,
    Json,
}

/// How long a migration may take: a year, that is as long as it takes.
const MIGRATION_LIMIT: Duration = Duration::from_secs(365 * 24 * 3600);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    runtime::run(async move {
        match arguments.command {
            Command::Serve => runtime::server::serve().await,
            Command::Migrate => migrate().await,
            Command::Reap { dry_run, limit } => reap(dry_run, limit).await,
            Command::Crd => print(serde_saphyr::to_string(&kubernetes::definition())?),
            Command::Openapi => print(api::openapi::openapi().to_pretty_json()? + "\n"),
            Command::Variables { format: VariablesFormat::Markdown } => print(config::markdown()),
            Command::Variables { format: VariablesFormat::Json } => print_json(&config::table()),
            Command::Metrics => print(telemetry::metric::markdown()),
            Command::Routes => print_json(&api::routes::ROUTES),
            Command::EksToken { cluster_name, region, role_arn } => {
                eks_token(&cluster_name, region.as_deref(), role_arn.as_deref()).await
            }
        }
    })
}

async fn migrate() -> Result<(), BoxError> {
    let config = Config::from_env(DatabaseUse::Required)?;
    telemetry::init(&config.log, Format::Text)?;
    let migration = runtime::db(&config)?.migrate_to_the_end(MIGRATION_LIMIT, &config.roles()).await;
    let Migrated { summarized_jobs, complete } = migration.map_err(runtime::with_causes)?;
    tracing::info!(summarized_jobs, complete, "the schema is up to date");
    Ok(())
}

async fn reap(dry_run: bool, limit: u64) -> Result<(), BoxError> {
    let config = Config::from_env(DatabaseUse::Required)?;
    telemetry::init(&config.log, Format::Text)?;
    let report =
        runtime::reaper(&config)?.sweep(dry_run, Duration::from_secs(limit)).await.map_err(runtime::with_causes)?;
    print_json(&report)
}

async fn eks_token(cluster: &str, region: Option<&str>, role_arn: Option<&str>) -> Result<(), BoxError> {
    let account = match region {
        Some(region) => Account::of_process_in(region),
        None => Account::of_process(),
    };
    let exec_info = std::env::var("KUBERNETES_EXEC_INFO").ok();
    let credential = eks::exec_credential(&account, cluster, role_arn, exec_info.as_deref());
    let credential = credential.await.map_err(runtime::with_causes)?;
    print_json(&credential)
}

fn print_json(value: &impl Serialize) -> Result<(), BoxError> {
    print(serde_json::to_string_pretty(value)? + "\n")
}

fn print(text: String) -> Result<(), BoxError> {
    use std::io::Write;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}
