//! What the doors share: how a group of routes is opened as a Lambda function, and all groups as one server.

mod streaming;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use futures_util::FutureExt;
use lambda_http::lambda_runtime::{self, Diagnostic};
use lambda_http::{LambdaEvent, RequestExt, service_fn};
use serde_json::Value;
use tower::ServiceExt;

use crate::api::admin::Admins;
use crate::api::{self, admin, compute, docs, environments, results, with_cors};
use crate::aws::Account;
use crate::config::{Config, DatabaseUse};
use crate::db::Database;
use crate::kubernetes::Cluster;
use crate::reaper::{Count, Reaper};
use crate::storage::Storage;
use crate::telemetry::{self, Format};

/// How long requests that are under way may take to end after a server was asked to.
const GRACE: Duration = Duration::from_secs(30);
/// How long a client may take to send a request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// How long before an invocation's end a sweep stops.
const SWEEP_MARGIN: Duration = Duration::from_secs(10);

/// Why a door does not open, or had to close.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What a function that is no HTTP function is invoked with, and the context, which knows the deadline.
pub type Event = LambdaEvent<Value>;

/// Runs a door to its end, and says on standard error why, if that is not a good one.
pub fn run(door: impl Future<Output = Result<(), BoxError>>) -> ExitCode {
    // Every TLS connection of the process, to whomever, is made by this one. Only a second call could fail.
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(BoxError::from).and_then(|runtime| runtime.block_on(door)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// An error together with what lies behind it, for whoever sits at the terminal or reads what a deployment says.
pub fn with_causes(error: impl Error) -> BoxError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        // Some errors repeat what lies behind them.
        if !text.ends_with(&why) {
            text.push_str(&format!(": {why}"));
        }
        cause = error.source();
    }
    text.into()
}

/// Opens a group as a Lambda function behind an API Gateway REST API.
pub async fn lambda(
    books: DatabaseUse,
    group: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<(), BoxError> {
    lambda_http::run(function(books, group)?).await
}

/// As [`lambda`], with answers that are streamed. A function of its own, so that the others don't hold what it takes.
pub async fn lambda_streaming(
    books: DatabaseUse,
    group: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<(), BoxError> {
    streaming::run(function(books, group)?).await
}

fn function(
    books: DatabaseUse,
    group: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<Router, BoxError> {
    let config = Arc::new(Config::from_env(books)?);
    telemetry::init(&config.log, Format::Json)?;
    Ok(Router::new().fallback_service(api::finish([group(config)?]).map_request(without_stage)))
}

/// Opens a Lambda function that no caller reaches by HTTP. `open` makes what answers an event, in JSON. An error fails the
/// invocation, with its text as `errorMessage`.
pub async fn on_events<Answering>(
    books: DatabaseUse,
    open: impl FnOnce(Arc<Config>) -> Result<Answering, BoxError>,
) -> Result<(), BoxError>
where
    Answering: AsyncFn(Event) -> Result<Value, BoxError>,
{
    let config = Arc::new(Config::from_env(books)?);
    telemetry::init(&config.log, Format::Json)?;
    let answering = &open(config)?;
    lambda_runtime::run(service_fn(async |event: Event| {
        let context = event.context.clone();
        // On the heap, or the compiler loses count of what is nested here.
        let answered = telemetry::log_invocation(&context, Box::pin(answering(event))).await;
        answered.map_err(|error| Diagnostic { error_type: "Failed".to_owned(), error_message: error.to_string() })
    }))
    .await
}

/// The path as the event has it: `lambda_http` puts the stage in front, and sometimes does not, where the path
/// begins as the stage is called.
fn without_stage(mut request: Request) -> Request {
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(uri) = format!("{}{query}", request.raw_http_path()).parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}

/// The books that the configuration names.
pub fn db(config: &Config) -> Result<Database, BoxError> {
    config.database.as_ref().map(Database::new).ok_or_else(|| "POSTGRES_HOST must be set".into())
}

/// The cluster that the configuration names. Nobody is called yet.
pub fn cluster(config: &Config) -> Cluster {
    Cluster::configured(config, Account::of_process())
}

/// Where results come from.
pub fn storage(config: &Config) -> Result<Storage, BoxError> {
    let results = &config.storage;
    if (results.api_key.is_some() || results.client_id.is_some()) && results.api_key_hosts.is_empty() {
        tracing::warn!("X-API-KEY and CLIENT-ID go to no host: set RESULT_API_KEY_HOSTS to those that are to get them");
    }
    Ok(Storage::new(results)?)
}

/// What cleans up, with the books and the cluster that the configuration names.
pub fn reaper(config: &Config) -> Result<Reaper, BoxError> {
    Ok(Reaper::new(db(config)?, &cluster(config), storage(config)?, config.reaper.clone()))
}

/// A sweep that a schedule asked for; with `{"dryRun": true}` in the event it changes nothing. Ends in time to tell how
/// far it came.
pub async fn sweep(reaper: &Reaper, event: Event) -> Result<Value, BoxError> {
    let left = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    let dry_run = event.payload.get("dryRun").and_then(Value::as_bool).unwrap_or(false);
    // On the heap, or the compiler loses count of what is nested here.
    let report = reaper.sweep(dry_run, left.saturating_sub(SWEEP_MARGIN)).boxed().await.map_err(with_causes)?;
    if !dry_run && report.skipped.is_none() {
        let counted = |count: Count| {
            [
                ("ReaperFound", "Count", count.found as f64),
                ("ReaperDone", "Count", count.done as f64),
                ("ReaperFailed", "Count", count.failed as f64),
                ("ReaperLeft", "Count", count.left as f64),
            ]
        };
        telemetry::counted([
            ("ReaperRuns", "Count", 1.0),
            ("OldestUnregistered", "Seconds", report.oldest_unregistered as f64),
        ]);
        telemetry::counted(counted(report.total()));
        for (kind, count) in report.kinds.iter().filter(|(_, count)| count.found > 0) {
            telemetry::counted_of_kind(&format!("{kind:?}"), counted(*count));
        }
    }
    Ok(serde_json::to_value(report)?)
}

/// All groups in one process, as one router.
pub fn all_groups(config: Arc<Config>, db: Database, cluster: Cluster, admins: Admins) -> Result<Router, BoxError> {
    let storage = storage(&config)?;
    Ok(api::finish([
        with_cors(compute::router(config.clone(), db.clone(), cluster.clone())),
        with_cors(results::router(config.clone(), db.clone(), storage)),
        with_cors(environments::router(db.clone())),
        with_cors(docs::router(config.clone())),
        admin::router(config, db, cluster, admins),
    ]))
}

/// Serves all groups until SIGTERM or SIGINT, and then until the requests that are under way have ended.
pub async fn serve() -> Result<(), BoxError> {
    let (config, listen) = Config::of_server()?;
    let config = Arc::new(config);
    telemetry::init(&config.log, Format::Text)?;
    let admins = Admins::of_server(&config, listen.host);
    match &admins {
        Admins::AnyoneLocal => tracing::warn!(
            "ALLOWED_ADMINS is not set: the administrators' routes are open to everybody on this machine"
        ),
        Admins::Listed(admins) if admins.is_empty() => {
            tracing::warn!("ALLOWED_ADMINS is not set: the administrators' routes refuse everybody")
        }
        Admins::Listed(_) => {}
    }
    let router = all_groups(config.clone(), db(&config)?, cluster(&config), admins)?;

    let address = listen.address();
    let listener = std::net::TcpListener::bind(address)
        .map_err(|error| format!("cannot listen on {address} (HOST and PORT say where): {error}"))?;
    listener.set_nonblocking(true)?;
    tracing::info!(address = %listener.local_addr()?, "listening");

    let handle = axum_server::Handle::new();
    let mut server = axum_server::from_tcp(listener)?.handle(handle.clone());
    server.http_builder().http1().timer(hyper_util::rt::TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let serving = server.serve(router.into_make_service());
    tokio::spawn(async move {
        asked_to_stop().await;
        tracing::info!("ending after the requests under way");
        handle.graceful_shutdown(Some(GRACE));
    });
    Ok(serving.await?)
}

async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = wait(SignalKind::terminate()) => {}
        _ = wait(SignalKind::interrupt()) => {}
    }
}
