//! AWS: the real binaries with moto as AWS_ENDPOINT_URL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod cluster;
mod graph;
mod metrics;
mod moto;
mod postgres;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../functions/child.rs"]
mod process;
mod reaper;
mod results;
#[path = "../support/mod.rs"]
mod support;

/// How long a test waits for a condition.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
