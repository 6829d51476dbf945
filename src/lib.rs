//! operator-service: takes compute jobs over HTTP, keeps their records in PostgreSQL, registers them in Kubernetes.
//!
//! docs/architecture.md says where things are and what may depend on what.

// The types of futures nest deeper than the default, 128: a handler's contains those of its calls.
#![recursion_limit = "256"]

pub mod api;
pub mod auth;
pub mod aws;
mod cache;
pub mod config;
pub mod db;
pub mod domain;
pub mod kubernetes;
pub mod reaper;
pub mod runtime;
pub mod storage;
pub mod telemetry;
