//! The reaper: sweeps over a real database and a cluster's API, checked by what callers see over HTTP.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../support/mod.rs"]
mod support;

mod fixture;
mod jobs;

mod dispatched;
mod engine;
mod faults;
mod finished;
mod interleavings;
mod lease;
mod races;
mod rights;
mod rules;
mod time_budget;
mod unfinished;
mod workflow_objects;
