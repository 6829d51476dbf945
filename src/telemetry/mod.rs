//! Logs. What is logged of a request is its method, route, status and duration: never its query, body or
//! headers, which hold signatures, data URLs and code.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::LogConfig;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people at a terminal.
    Text,
    /// For CloudWatch.
    Json,
}

/// Starts logging to standard error and, if LOG_CFG names one, to a file.
pub fn init(config: &LogConfig, format: Format) -> io::Result<()> {
    let file: Option<File> = match &config.file {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
            io::Error::new(error.kind(), format!("LOG_CFG names a file that cannot be written: {error}"))
        })?),
        None => None,
    };
    let writer = match file {
        Some(file) => BoxMakeWriter::new(io::stderr.and(Arc::new(file))),
        None => BoxMakeWriter::new(io::stderr),
    };
    let lines = match format {
        Format::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
        Format::Json => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
    };
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry().with(lines.with_filter(filter).with_filter(discreet())).init();
    Ok(())
}

/// Below INFO, libraries log what they send and receive, headers and URLs included. They don't here, whatever
/// LOG_LEVEL says.
fn discreet() -> FilterFn {
    FilterFn::new(|metadata| {
        *metadata.level() <= LevelFilter::INFO || metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    })
}

tokio::task_local! {
    /// What is told of the request that is being answered.
    static STORY: Arc<Story>;
}

/// What becomes known of a request while it is answered.
#[derive(Debug, Default)]
struct Story {
    job: Mutex<Option<String>>,
    starts: AtomicU64,
    stops: AtomicU64,
    cluster: Waited,
    database: Waited,
    others: Mutex<Vec<Metric>>,
    kinds: Mutex<Vec<(String, Vec<Metric>)>>,
}

/// How long was waited for somebody, and whether at all.
#[derive(Debug, Default)]
struct Waited {
    times: AtomicU64,
    microseconds: AtomicU64,
}

impl Waited {
    fn milliseconds(&self) -> Option<f64> {
        let waited = self.times.load(Ordering::Relaxed) > 0;
        waited.then(|| self.microseconds.load(Ordering::Relaxed) as f64 / 1000.0)
    }
}

fn tell(what: impl FnOnce(&Story)) {
    // Whoever is not answering a request has nobody to tell.
    STORY.try_with(|story| what(story)).ok();
}

/// Which job the request is about.
pub fn about_job(id: &str) {
    tell(|story| *story.job.lock().unwrap_or_else(PoisonError::into_inner) = Some(id.to_owned()));
}

/// A job was accepted.
pub fn started() {
    tell(|story| {
        story.starts.fetch_add(1, Ordering::Relaxed);
    });
}

/// Jobs were told to stop.
pub fn stopped(jobs: usize) {
    tell(|story| {
        story.stops.fetch_add(jobs as u64, Ordering::Relaxed);
    });
}

/// What else is to be counted of this invocation.
pub fn counted(metrics: impl IntoIterator<Item = Metric>) {
    tell(|story| story.others.lock().unwrap_or_else(PoisonError::into_inner).extend(metrics));
}

/// What is to be counted of this invocation by kind of work.
pub fn counted_of_kind(kind: &str, metrics: impl IntoIterator<Item = Metric>) {
    tell(|story| {
        let counted = (kind.to_owned(), metrics.into_iter().collect());
        story.kinds.lock().unwrap_or_else(PoisonError::into_inner).push(counted);
    });
}

/// Counts how long the cluster is waited for.
pub async fn waiting_for_cluster<T>(call: impl Future<Output = T>) -> T {
    waiting(|story| &story.cluster, call).await
}

/// Counts how long the database is waited for.
pub async fn waiting_for_database<T>(call: impl Future<Output = T>) -> T {
    waiting(|story| &story.database, call).await
}

async fn waiting<T>(whom: fn(&Story) -> &Waited, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = call.await;
    tell(|story| {
        let waited = whom(story);
        waited.times.fetch_add(1, Ordering::Relaxed);
        waited.microseconds.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    });
    result
}

/// Logs each request once it has been answered. In a Lambda function that line also holds CloudWatch's metrics, and
/// every line of the request says which it belongs to.
pub async fn log_requests(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.as_deref().unwrap_or("none");
    let Some(context) = request.extensions().get::<lambda_http::Context>().cloned() else {
        let response = next.run(request).await;
        tracing::info!(
            %method,
            route,
            status = response.status().as_u16(),
            milliseconds = begun.elapsed().as_millis() as u64,
            "answered"
        );
        return response;
    };

    let (request_id, function) = (&context.request_id, &context.env_config.function_name);
    let xray = context.xray_trace_id.as_deref();
    // Of the highest level, so that no filter but `off` takes it from the lines in it.
    let span = tracing::error_span!("request", request_id, function, route, xray);
    let story = Arc::new(Story::default());
    let response = STORY.scope(story.clone(), next.run(request)).instrument(span).await;
    let status = response.status().as_u16();
    print(
        metrics(function, &of_request(&story, status), SystemTime::now()),
        serde_json::json!({
            "level": "INFO",
            "message": "answered",
            "request_id": request_id,
            "xray": xray,
            "method": method.as_str(),
            "route": route,
            "job": *story.job.lock().unwrap_or_else(PoisonError::into_inner),
            "status": status,
            "milliseconds": begun.elapsed().as_millis() as u64,
        }),
    );
    response
}

/// Logs an invocation that is no request once it has come to its end, and its error.
pub async fn log_invocation<T, E: Display>(
    context: &lambda_http::Context,
    invocation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begun = Instant::now();
    let (request_id, function) = (&context.request_id, &context.env_config.function_name);
    let xray = context.xray_trace_id.as_deref();
    let span = tracing::error_span!("invocation", request_id, function, xray);
    let story = Arc::new(Story::default());
    let result = STORY.scope(story.clone(), invocation).instrument(span).await;
    for (kind, counted) in story.kinds.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        print(
            metrics_of_kind(function, kind, counted, SystemTime::now()),
            serde_json::json!({ "request_id": request_id }),
        );
    }
    print(
        metrics(function, &of_any(&story), SystemTime::now()),
        serde_json::json!({
            "level": if result.is_ok() { "INFO" } else { "ERROR" },
            "message": if result.is_ok() { "done" } else { "failed" },
            "error": result.as_ref().err().map(E::to_string),
            "request_id": request_id,
            "xray": xray,
            "milliseconds": begun.elapsed().as_millis() as u64,
        }),
    );
    result
}

/// A metric's name, its unit and its value.
pub type Metric = (&'static str, &'static str, f64);

/// What is counted of every invocation. Latencies are there only if somebody was waited for.
fn of_any(story: &Story) -> Vec<Metric> {
    static WARM: AtomicBool = AtomicBool::new(false);
    let cold = !WARM.swap(true, Ordering::Relaxed);
    let latencies = [("ClusterLatency", &story.cluster), ("DatabaseLatency", &story.database)];
    let latencies =
        latencies.into_iter().filter_map(|(name, waited)| Some((name, "Milliseconds", waited.milliseconds()?)));
    let others = story.others.lock().unwrap_or_else(PoisonError::into_inner).clone();
    latencies.chain([("ColdStarts", "Count", f64::from(u8::from(cold)))]).chain(others).collect()
}

/// What is counted of a request.
fn of_request(story: &Story, status: u16) -> Vec<Metric> {
    let count = |number: &AtomicU64| number.load(Ordering::Relaxed) as f64;
    let mut metrics = vec![
        ("Requests", "Count", 1.0),
        ("Errors", "Count", f64::from(u8::from(status >= 500))),
        ("Starts", "Count", count(&story.starts)),
        ("Stops", "Count", count(&story.stops)),
    ];
    metrics.extend(of_any(story));
    metrics
}

/// What CloudWatch reads as metrics
/// (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).
fn metrics(function: &str, metrics: &[Metric], at: SystemTime) -> serde_json::Value {
    dimensioned(&[("FunctionName", function)], metrics, at)
}

fn metrics_of_kind(function: &str, kind: &str, metrics: &[Metric], at: SystemTime) -> serde_json::Value {
    dimensioned(&[("FunctionName", function), ("Kind", kind)], metrics, at)
}

fn dimensioned(dimensions: &[(&str, &str)], metrics: &[Metric], at: SystemTime) -> serde_json::Value {
    let names: Vec<_> = dimensions.iter().map(|(name, _)| *name).collect();
    let definitions: Vec<_> =
        metrics.iter().map(|(name, unit, _)| serde_json::json!({ "Name": name, "Unit": unit })).collect();
    let milliseconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut line = serde_json::json!({
        "_aws": {
            "Timestamp": milliseconds,
            "CloudWatchMetrics": [
                { "Namespace": "OperatorService", "Dimensions": [names], "Metrics": definitions }
            ]
        },
    });
    for (name, value) in dimensions {
        line[*name] = (*value).into();
    }
    for (name, _, value) in metrics {
        line[*name] = (*value).into();
    }
    line
}

/// Prints metrics in one line with what they are about. They are metrics whatever LOG_LEVEL says, so they go past the log's
/// filter.
fn print(mut line: serde_json::Value, about: serde_json::Value) {
    use std::io::Write;
    if let (Some(line), serde_json::Value::Object(about)) = (line.as_object_mut(), about) {
        line.extend(about);
    }
    // In one write, since others write too. Nobody can be told that it failed.
    io::stdout().write_all(format!("{line}\n").as_bytes()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn metrics_count_what_happened() {
        let story = Arc::new(Story::default());
        STORY
            .scope(story.clone(), async {
                started();
                stopped(2);
                about_job("abc");
                waiting_for_cluster(tokio::time::sleep(std::time::Duration::from_millis(3))).await;
            })
            .await;
        let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(7);
        let line = metrics("compute", &of_request(&story, 503), at);
        assert_eq!(line["_aws"]["Timestamp"], 7);
        let found = |name: &str| line[name].as_f64();
        assert_eq!((found("Requests"), found("Errors")), (Some(1.0), Some(1.0)));
        assert_eq!((found("Starts"), found("Stops")), (Some(1.0), Some(2.0)));
        assert!(found("ClusterLatency").unwrap() >= 3.0);
        assert_eq!(found("DatabaseLatency"), None);
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "OperatorService");
        for metric in directive["Metrics"].as_array().unwrap() {
            assert!(line[metric["Name"].as_str().unwrap()].is_number(), "{metric}");
        }
        assert_eq!(directive["Metrics"].as_array().unwrap().len(), 6);
        // Nobody is told outside of a request.
        started();
    }
}
