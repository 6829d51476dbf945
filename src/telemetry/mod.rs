//! Logs and metrics. What is logged of a request is its method, route, status and duration: never its query, body or
//! headers, which hold signatures, data URLs and code.

mod cloudwatch;
mod logs;
pub mod metric;
mod metrics;
pub mod prometheus;

pub use logs::{Format, init, log_invocation, log_requests};
pub use metrics::{
    Measurement, count_start, count_stops, record, record_of_kind, set_job, waiting_for_cluster, waiting_for_database,
};
