//! Runs a router, or a handler of events, as a Lambda function.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::Request;
use axum::http::Uri;
use lambda_http::lambda_runtime::{self, Diagnostic};
use lambda_http::{LambdaEvent, RequestExt, service_fn};
use serde_json::Value;
use tower::ServiceExt;

use super::{BoxError, streaming, with_causes};
use crate::api;
use crate::config::{Config, DatabaseUse};
use crate::reaper::Reaper;
use crate::telemetry::{self, Format};

/// How long before the deadline of its invocation a sweep ends.
const SWEEP_MARGIN: Duration = Duration::from_secs(10);

/// The payload of an invocation, and its context, which has the deadline.
pub type Event = LambdaEvent<Value>;

/// Runs a router behind an API Gateway REST API.
pub async fn run_router(
    database_use: DatabaseUse,
    router: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<(), BoxError> {
    lambda_http::run(function(database_use, router)?).await
}

/// Runs a router as [`run_router`] does, and streams its responses. Separate, so that other binaries do not contain
/// what streaming needs.
pub async fn run_streaming(
    database_use: DatabaseUse,
    router: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<(), BoxError> {
    streaming::run(function(database_use, router)?).await
}

/// Runs a function that is not invoked over HTTP. `open` returns the handler of its events, which returns JSON. An
/// error fails the invocation, with its text as `errorMessage`.
pub async fn run_events<Handler>(
    database_use: DatabaseUse,
    open: impl FnOnce(Arc<Config>) -> Result<Handler, BoxError>,
) -> Result<(), BoxError>
where
    Handler: AsyncFn(Event) -> Result<Value, BoxError>,
{
    let handler = &open(configure(database_use)?)?;
    lambda_runtime::run(service_fn(async |event: Event| {
        let context = event.context.clone();
        // Boxed: the future's type exceeds the recursion limit.
        let result = telemetry::log_invocation(&context, Box::pin(handler(event))).await;
        result.map_err(|error| Diagnostic { error_type: "Failed".to_owned(), error_message: error.to_string() })
    }))
    .await
}

/// Runs the sweep that a schedule asks for, and ends it in time to return its report. With `{"dryRun": true}` as the
/// payload it changes nothing.
pub async fn sweep(reaper: &Reaper, event: Event) -> Result<Value, BoxError> {
    let remaining = event.context.deadline().duration_since(SystemTime::now()).unwrap_or_default();
    let dry_run = event.payload.get("dryRun").and_then(Value::as_bool).unwrap_or(false);
    let report = reaper.sweep(dry_run, remaining.saturating_sub(SWEEP_MARGIN)).await.map_err(with_causes)?;
    report.record_metrics();
    Ok(serde_json::to_value(report)?)
}

fn function(
    database_use: DatabaseUse,
    router: impl FnOnce(Arc<Config>) -> Result<Router, BoxError>,
) -> Result<Router, BoxError> {
    Ok(behind_gateway(router(configure(database_use)?)?))
}

/// The routes of a function, as the gateway's events name them.
pub fn behind_gateway(router: Router) -> Router {
    Router::new().fallback_service(api::finish([router]).map_request(without_stage))
}

fn configure(database_use: DatabaseUse) -> Result<Arc<Config>, BoxError> {
    let config = Config::from_env(database_use)?;
    telemetry::init(&config.log, Format::Json)?;
    Ok(Arc::new(config))
}

/// Sets the path to the event's own: `lambda_http` puts the stage in front of it, except where the path begins like the
/// stage's name.
fn without_stage(mut request: Request) -> Request {
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    if let Ok(uri) = format!("{}{query}", request.raw_http_path()).parse::<Uri>() {
        *request.uri_mut() = uri;
    }
    request
}
