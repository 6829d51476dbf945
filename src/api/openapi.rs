//! The OpenAPI document, and GET /spec, which shows it.

use axum::Json;
use utoipa::OpenApi;

use super::results::get_result::Index;
use super::schemas::JobCount;
use super::{about, admin, compute, environments, results};
use crate::auth::{Nonce, ProviderSignature};
use crate::domain::{AgreementId, ChainId, Component, JobId, Namespace, Owner, ProviderAddress};

/// Made from the types that the handlers read and write. The URL of the server is relative to that of the document, so
/// that it is right behind a stage prefix too.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "operator-service",
        description = "Ocean Protocol Compute-to-Data: start, follow, stop and delete compute jobs, and fetch their \
            results.\n\nParameters are read from the query string if it is not empty, otherwise from a JSON object in the \
            body, whatever the method.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "./", description = "This installation")),
    paths(
        about::about,
        spec,
        compute::start::start,
        compute::status::status,
        compute::stop::stop,
        compute::delete::delete,
        compute::running_jobs::running_jobs,
        results::get_result::get_result,
        environments::environments,
        admin::migrate::migrate,
        admin::info::info,
        admin::list::list,
        admin::logs::logs,
    ),
    // utoipa collects the schemas of bodies, but not those of parameters.
    components(schemas(
        AgreementId,
        ChainId,
        Component,
        Index,
        JobCount,
        JobId,
        Namespace,
        Nonce,
        Owner,
        ProviderAddress,
        ProviderSignature,
    )),
    tags(
        (name = "compute", description = "Jobs"),
        (name = "results", description = "What jobs have published"),
        (name = "environments", description = "Where jobs can run"),
        (name = "admin", description = "For administrators"),
        (name = "docs", description = "About this service"),
    )
)]
struct Document;

/// The OpenAPI document (3.1).
pub fn openapi() -> utoipa::openapi::OpenApi {
    Document::openapi()
}

/// Show this document.
#[utoipa::path(get, path = "/spec", tag = "docs", responses((status = 200, description = "The OpenAPI document.", body = Object)))]
pub(super) async fn spec() -> Json<utoipa::openapi::OpenApi> {
    Json(openapi())
}
