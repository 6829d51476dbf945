//! Logs. What is logged of a request is its method, route, status and duration: never its query, body or
//! headers, which hold signatures, data URLs and code.

use std::fs::{File, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request};
use axum::middleware::Next;
use axum::response::Response;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterFn};
use tracing_subscriber::fmt::writer::{BoxMakeWriter, MakeWriterExt};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::Log;

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people at a terminal.
    Text,
    /// For CloudWatch.
    Json,
}

/// Starts logging to standard error and, if LOG_CFG names one, to a file.
pub fn init(config: &Log, format: Format) -> io::Result<()> {
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
        Format::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
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

/// Logs each request once it has been answered.
pub async fn log_requests(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let response = next.run(request).await;
    tracing::info!(
        %method,
        route = route.as_deref().unwrap_or("none"),
        status = response.status().as_u16(),
        milliseconds = begun.elapsed().as_millis() as u64,
        "answered"
    );
    response
}
