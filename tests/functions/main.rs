//! The real binaries as processes, with result origins that fail, the Lambda runtime API, and a browser.
//!
//! - [`results`]: /getResult; [`result_errors`]: origins that fail; [`result_origins`]: which ones are asked
//! - [`ranges`]: parts of results
//! - [`memory`]: the memory that a large result needs
//! - [`lambda`], [`lambda_results`], [`lambda_migrate`]: each Lambda binary behind a runtime API
//! - [`deployment`]: the schema's custom resource, as CloudFormation calls it
//! - [`metrics`]: the line with the metrics of each Lambda binary
//! - [`probes`]: /healthz, /readyz, and a rolling update
//! - [`prometheus`]: /metrics, dashboards and alerts
//! - [`process`]: `operator-service` and its subcommands
//! - [`reaper`]: `operator-service reap`, and the reaper's Lambda function
//! - [`kills`]: `operator-service serve` killed at every step of every operation
//! - [`schemathesis`]: the service against its OpenAPI document
//! - [`secrets`]: what logs must not contain
//! - [`bump`]: `make bump`
//! - [`browser`]: /api/v1/docs/ in Chromium
//!
//! What they share: [`child`] starts binaries, [`origin`] serves results, [`runtime_api`] stands in for AWS Lambda,
//! [`fixture`] is what most tests start with.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod child;
mod fixture;
mod origin;
mod runtime_api;

mod browser;
mod bump;
mod deployment;
mod kills;
mod lambda;
mod lambda_migrate;
mod lambda_results;
mod logs;
mod memory;
mod metrics;
mod probes;
mod process;
mod prometheus;
mod ranges;
mod reaper;
mod result_errors;
mod result_origins;
mod results;
mod schemathesis;
mod secrets;

/// How long a test waits for what has to happen before it fails.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
