//! GET /environments: lists the environments that engines have announced.

use axum::extract::State;
use axum::http::header::CONTENT_DISPOSITION;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::error::{ApiError, CommonErrors, ErrorBody};
use super::input::{FromParams, Input, Params};
use super::with_cors;
use crate::db::Database;
use crate::domain::{ChainId, Namespace, environment};

/// The route of the function `environments`.
pub fn router(db: Database) -> Router {
    let router = Router::new().route("/api/v1/operator/environments", get(environments)).with_state(db);
    with_cors(router, CONTENT_DISPOSITION)
}

/// The parameters of GET /environments.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
pub(super) struct EnvironmentsRequest {
    /// Only environments that accept jobs of this chain; also spelled `chain_id`.
    chain_id: Option<ChainId>,
}

impl<S> FromParams<S> for EnvironmentsRequest {
    const CALL: &'static str = "GET:/environments";

    fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
        Ok(Self { chain_id: params.chain_id()? })
    }
}

/// An environment as its engine announced it, with its id and the time of the announcement.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Environment {
    /// What the engine announces: `cpuNumber`, `ramGB`, `maxJobs`, `maxJobDuration`, `priceMin`, `allowedChainId` and
    /// so on.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    announcement: Map<String, Value>,
    /// The environment's namespace, which a start names as `environment`.
    id: Namespace,
    /// When the engine last announced it: seconds since the epoch, as text.
    #[schema(example = "1795300414.039237")]
    last_seen: Option<String>,
}

/// List the environments.
///
/// The parameter may also be sent in a JSON body.
#[utoipa::path(
    get,
    path = "/api/v1/operator/environments",
    tag = "environments",
    params(EnvironmentsRequest),
    responses(
        (status = 200, description = "The environments.", body = Vec<Environment>),
        (status = 400, description = "A parameter cannot be read.", body = ErrorBody),
        CommonErrors,
    )
)]
pub(super) async fn environments(
    State(db): State<Database>,
    Input(request): Input<EnvironmentsRequest>,
) -> Result<Json<Vec<Environment>>, ApiError> {
    let announced = db.environments(request.chain_id).await?.into_iter().map(|row| {
        let mut announcement = row.status.as_deref().and_then(environment::parse).unwrap_or_default();
        // The service's values replace what the engine announces under these names.
        announcement.shift_remove("id");
        announcement.shift_remove("lastSeen");
        Environment { announcement, id: row.namespace, last_seen: row.last_seen }
    });
    Ok(Json(announced.collect()))
}
