//! operator-service: takes compute jobs over HTTP, keeps the books in Postgres, sets them up in Kubernetes.
//!
//! docs/architecture.md says where things are and what may depend on what.

pub mod aws;
pub mod cluster;
pub mod config;
pub mod door;
pub mod error;
pub mod job;
pub mod origin;
pub mod reaper;
pub mod routes;
pub mod signature;
pub mod store;
mod streaming;
pub mod telemetry;
