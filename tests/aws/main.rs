//! On AWS, as far as moto speaks for it: the real binary with AWS_ENDPOINT_URL.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod books;
mod cluster;
mod graph;
mod metrics;
mod moto;
#[allow(dead_code, reason = "each test binary uses its part")]
#[path = "../functions/child.rs"]
mod process;
mod reaper;
mod results;
#[path = "../support/mod.rs"]
mod support;

/// How long anything may take.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(60);
