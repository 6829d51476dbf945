//! The doors: the real binaries as processes, result origins that misbehave, the Lambda runtime API, a browser.
//!
//! - [`results`]: /getResult and where results lie
//! - [`memory`]: a result of 300 MB
//! - [`lambda`]: each Lambda binary behind a runtime API
//! - [`process`]: `operator-service` and its subcommands
//! - [`reaper`]: `operator-service reap`, and the reaper's Lambda function
//! - [`secrets`]: what must not be in a log
//! - [`browser`]: /api/v1/docs/ in Chromium
//!
//! What they share: [`child`] starts binaries, [`origin`] is where results lie, [`runtime_api`] plays AWS Lambda,
//! [`scene`] is what most tests start from.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod child;
mod origin;
mod runtime_api;
mod scene;

mod browser;
mod bump;
mod lambda;
mod memory;
mod process;
mod reaper;
mod results;
mod secrets;

/// As long may take whatever is bound to happen.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(30);
