//! What engines have announced: /environments.

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::input::Params;
use crate::api::error::{ApiError, ErrorBody, Troubles};
use crate::db::Database;
use crate::domain::environment;

/// The group's routes.
pub fn router(db: Database) -> Router {
    Router::new().route("/api/v1/operator/environments", get(environments)).with_state(db)
}

/// An environment as its engine announced it, with its id and the time of the announcement.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Environment {
    /// Whatever the engine says of itself: `cpuNumber`, `ramGB`, `maxJobs`, `maxJobDuration`, `priceMin`,
    /// `allowedChainId` and so on.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    announcement: Map<String, Value>,
    /// The environment's namespace, which a start names as `environment`.
    #[schema(example = "ocean-compute")]
    id: String,
    /// When the engine last announced it: seconds since the epoch, as text.
    #[schema(example = "1795300414.039237")]
    last_seen: Option<String>,
}

/// Which environments.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what environments() takes")]
struct EnvironmentsParams {
    /// Those that take jobs of this chain; also spelled `chain_id`. All if absent.
    #[param(example = "1")]
    chain_id: Option<String>,
}

/// List the environments.
#[utoipa::path(
    get,
    path = "/api/v1/operator/environments",
    tag = "environments",
    params(EnvironmentsParams),
    responses(
        (status = 200, description = "The environments.", body = Vec<Environment>),
        (status = 400, description = "A parameter cannot be read.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn environments(
    State(db): State<Database>,
    params: Params,
) -> Result<Json<Vec<Environment>>, ApiError> {
    let chain_id = params.chain_id()?.map(|(text, _)| text);
    let announced = db.environments().await?.into_iter().filter_map(|row| {
        let mut announcement = row.status.as_deref().and_then(environment::parse).unwrap_or_default();
        if chain_id.is_some() && !environment::object_allows_chain(&announcement, chain_id.as_deref()) {
            return None;
        }
        // Ours count, whatever the engine says under these names.
        announcement.shift_remove("id");
        announcement.shift_remove("lastSeen");
        Some(Environment { announcement, id: row.namespace, last_seen: row.last_seen })
    });
    Ok(Json(announced.collect()))
}
