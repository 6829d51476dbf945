//! Logs: one line per event on standard error, and one per request or invocation.

use std::fmt::Display;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;
use tracing::Instrument;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use super::cloudwatch;
use super::metrics::RequestMetrics;
use super::prometheus::Prometheus;
use crate::config::LogConfig;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people at a terminal.
    Text,
    /// For CloudWatch.
    Json,
}

/// Starts logging to standard error and, if LOG_CFG names one, to a file. Fails if that file cannot be written.
pub fn init(config: &LogConfig, format: Format) -> io::Result<()> {
    let file: Option<File> = match &config.file {
        Some(path) => Some(OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
            io::Error::new(error.kind(), format!("LOG_CFG names a file that cannot be written: {error}"))
        })?),
        None => None,
    };
    // Not by `io::stderr`, whose lock the threads would wait for: a line is one write.
    let stderr = Arc::new(File::from(io::stderr().as_fd().try_clone_to_owned()?));
    let writer = match file {
        Some(file) => BoxMakeWriter::new(stderr.and(Arc::new(file))),
        None => BoxMakeWriter::new(stderr),
    };
    let lines = match format {
        Format::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
        Format::Json => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(writer).boxed(),
    };
    let filter = EnvFilter::try_new(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::registry().with(lines.with_filter(filter).with_filter(without_library_details())).init();
    Ok(())
}

/// Drops what libraries log below INFO, whatever LOG_LEVEL is: it contains headers and URLs.
fn without_library_details() -> FilterFn {
    FilterFn::new(|metadata| {
        *metadata.level() <= LevelFilter::INFO || metadata.target().starts_with(env!("CARGO_CRATE_NAME"))
    })
}

/// Logs each request once it has been answered. In a Lambda function that line also holds CloudWatch's metrics, and
/// every line of the request has its id; a server's metrics are those of [`Prometheus`], if the request has that as an
/// extension.
pub async fn log_requests(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.as_deref().unwrap_or("none");
    let Some(context) = request.extensions().get::<lambda_http::Context>().cloned() else {
        let prometheus = request.extensions().get::<Prometheus>().cloned();
        let (response, metrics) = RequestMetrics::collect(next.run(request)).await;
        let (status, duration) = (response.status().as_u16(), begun.elapsed());
        if let Some(prometheus) = prometheus {
            prometheus.record_request(&method, route, status, duration, &metrics.of_request(status));
        }
        let milliseconds = duration.as_millis() as u64;
        tracing::info!(%method, route, status, milliseconds, "answered");
        return response;
    };

    let (request_id, function) = (&context.request_id, &context.env_config.function_name);
    let xray = context.xray_trace_id.as_deref();
    // At the highest level, so that only the filter `off` removes it from the lines within it.
    let span = tracing::error_span!("request", request_id, function, route, xray);
    let (response, metrics) = RequestMetrics::collect(next.run(request)).instrument(span).await;
    let status = response.status().as_u16();
    cloudwatch::print_request(
        &metrics,
        function,
        status,
        json!({
            "level": "INFO",
            "message": "answered",
            "request_id": request_id,
            "xray": xray,
            "method": method.as_str(),
            "route": route,
            "job": metrics.job(),
            "status": status,
            "milliseconds": begun.elapsed().as_millis() as u64,
        }),
    );
    response
}

/// Logs an invocation of a Lambda function that is not an HTTP request once it has ended, with its error and its
/// metrics.
pub async fn log_invocation<T, E: Display>(
    context: &lambda_http::Context,
    invocation: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let begun = Instant::now();
    let (request_id, function) = (&context.request_id, &context.env_config.function_name);
    let xray = context.xray_trace_id.as_deref();
    let span = tracing::error_span!("invocation", request_id, function, xray);
    let (result, metrics) = RequestMetrics::collect(invocation).instrument(span).await;
    cloudwatch::print_invocation(
        &metrics,
        function,
        request_id,
        json!({
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
