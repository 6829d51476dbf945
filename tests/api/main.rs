//! The HTTP API, as its callers see it: a file for each route, and for what goes through all of them.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod runningjobs;
