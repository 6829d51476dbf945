//! GET /: shows version and settings.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::Config;

/// This installation.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct About {
    /// Always `Operator service`.
    #[schema(example = "Operator service")]
    software: &'static str,
    /// The version.
    #[schema(example = "1.0.0")]
    version: &'static str,
    /// The Ethereum address of the compute environment (OPERATOR_ADDRESS).
    address: Option<String>,
    /// ALGO_POD_TIMEOUT in seconds, as text.
    #[schema(example = "3600")]
    algo_time_limit: Option<String>,
    /// STORAGE_EXPIRY in seconds, as text.
    #[schema(example = "604800")]
    storage_expiry: Option<String>,
}

/// Show version and settings of this installation.
#[utoipa::path(get, path = "/", tag = "docs", responses((status = 200, description = "The installation.", body = About)))]
pub(in crate::api) async fn about(State(config): State<Arc<Config>>) -> Json<About> {
    Json(About {
        software: "Operator service",
        version: env!("CARGO_PKG_VERSION"),
        address: config.jobs.operator_address.clone(),
        algo_time_limit: config.jobs.time_limit.configured().map(|seconds| seconds.to_string()),
        storage_expiry: config.jobs.storage_expiry.configured().map(|seconds| seconds.to_string()),
    })
}
