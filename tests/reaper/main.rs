//! The reaper: sweeps over real books and a cluster's API, told apart from what callers see over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod fixture;

mod engine;
mod faults;
mod finished;
mod interleavings;
mod unfinished;
