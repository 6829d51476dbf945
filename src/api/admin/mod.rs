//! The administrators' routes: /pgsqlinit, /info, /list, /logs.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use subtle::{Choice, ConstantTimeEq};
use utoipa::IntoParams;
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::input::{Params, required};
use crate::api::error::{ApiError, ErrorBody, Troubles};
use crate::config::Config;
use crate::db::Database;
use crate::domain::{JobId, Namespace};
use crate::kubernetes::{Cluster, Component, LogPart, WorkFlow};

/// Who is let in.
#[derive(Debug, Clone)]
pub enum Admins {
    /// Those whose `Admin` header is one of these, in lower case (ALLOWED_ADMINS). With none, nobody.
    Listed(Vec<String>),
    /// Everybody who reaches this machine's loopback address under a loopback name.
    AnyoneLocal,
}

impl Admins {
    /// For a Lambda function, or a server that others can reach.
    pub fn listed(config: &Config) -> Self {
        Self::Listed(config.access.allowed_admins.clone().unwrap_or_default())
    }

    /// For a server that listens on an address: if that is a loopback address and ALLOWED_ADMINS is not set,
    /// it is open.
    pub fn of_server(config: &Config, listens_on: IpAddr) -> Self {
        match config.access.allowed_admins {
            None if listens_on.is_loopback() => Self::AnyoneLocal,
            _ => Self::listed(config),
        }
    }

    /// What a request is refused with, if it is.
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        match self {
            Self::AnyoneLocal if is_local(headers) => None,
            Self::AnyoneLocal => {
                let message = "The administrators' routes are open to requests from this machine only: address them to \
                               localhost, or set ALLOWED_ADMINS";
                Some(ApiError::new(StatusCode::FORBIDDEN, message).into_response())
            }
            Self::Listed(admins) => {
                let given = headers.get("admin").map(|value| value.as_bytes().to_ascii_lowercase()).unwrap_or_default();
                if given.is_empty() {
                    return Some(text(StatusCode::BAD_REQUEST, "Admin header is empty.\nstatus code: 400"));
                }
                // Neither which one matches nor where a wrong one differs shows in the time this takes.
                let matching = |found: Choice, admin: &String| found | admin.as_bytes().ct_eq(&given);
                if bool::from(admins.iter().fold(Choice::from(0), matching)) {
                    return None;
                }
                let message = "Access admin route failed due to invalid admin address.\nstatus code: 401";
                Some(text(StatusCode::UNAUTHORIZED, message))
            }
        }
    }
}

/// Whether a request names this machine by a loopback name, and does not come from a page of another site: a page
/// in the user's browser can send requests to this machine, by a name of its own or without reading the answer.
fn is_local(headers: &HeaderMap) -> bool {
    let is_loopback = |authority: &str| {
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next(),
            None => authority.split(':').next(),
        };
        let host = host.unwrap_or_default();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    host.is_some_and(is_loopback)
        && origin.is_none_or(|origin| origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority)))
}

/// What the group needs.
#[derive(Clone)]
pub struct Admin {
    config: Arc<Config>,
    db: Database,
    cluster: Cluster,
}

/// The group's routes.
pub fn router(config: Arc<Config>, db: Database, cluster: Cluster, admins: Admins) -> Router {
    Router::new()
        .route("/api/v1/operator/pgsqlinit", post(pgsqlinit))
        .route("/api/v1/operator/info", get(info))
        .route("/api/v1/operator/list", get(list))
        .route("/api/v1/operator/logs", get(logs))
        .route_layer(middleware::from_fn(move |request: Request, next: Next| {
            let refusal = admins.refusal(request.headers());
            async move {
                match refusal {
                    Some(refusal) => refusal,
                    None => next.run(request).await,
                }
            }
        }))
        .with_state(Admin { config, db, cluster })
}

fn text(status: StatusCode, body: impl Into<String>) -> Response {
    let content_type = HeaderValue::from_static("text/plain; charset=utf-8");
    (status, [(CONTENT_TYPE, content_type)], body.into()).into_response()
}

/// Bring the database's schema up to date.
///
/// Idempotent; loses nothing, also on a database that the Python service made.
#[utoipa::path(
    post,
    path = "/api/v1/operator/pgsqlinit",
    tag = "admin",
    params(("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "Done; empty.", body = String, content_type = "text/plain"),
        (status = 400, description = "The header is missing.", body = String, content_type = "text/plain"),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "Open to this machine only.", body = ErrorBody),
        (status = 500, description = "An error that has been logged.", body = ErrorBody),
        (status = 503, description = "The database is not available, or in use; safe to try again.", body = ErrorBody),
    )
)]
pub(super) async fn pgsqlinit(State(admin): State<Admin>) -> Result<Response, ApiError> {
    admin.db.migrate().await?;
    Ok(text(StatusCode::OK, ""))
}

/// Which job.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what info() takes")]
struct InfoParams {
    /// The job.
    #[param(example = "9f9178dcffd34130a3158ce9ca3d15ff")]
    job_id: String,
}

impl Admin {
    /// Where the book says the job is, else the default.
    async fn namespace(&self, job_id: &JobId) -> Result<Namespace, ApiError> {
        let namespace = self.db.namespace(job_id.as_str()).await?;
        Ok(Namespace::stored(namespace.unwrap_or_else(|| self.config.jobs.default_namespace.to_string())))
    }
}

/// Show a job's WorkFlow object.
#[utoipa::path(
    get,
    path = "/api/v1/operator/info",
    tag = "admin",
    params(InfoParams, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The object, as the cluster has it.", body = Object),
        (status = 400, description = "There is no such object, a parameter is missing, or the header is.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "Open to this machine only.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn info(State(admin): State<Admin>, params: Params) -> Result<Response, ApiError> {
    let asked = params.text("jobId")?.ok_or_else(|| required("jobId", "GET:/info"))?;
    let found: Option<WorkFlow> = match JobId::of_object(asked) {
        Some(job_id) => {
            let namespace = admin.namespace(&job_id).await?;
            admin.cluster.get_workflow(&job_id, &namespace).await?
        }
        None => None,
    };
    Ok(match found {
        Some(workflow) => Json(workflow).into_response(),
        None => text(StatusCode::BAD_REQUEST, format!("The jobId {asked} is not registered in your namespace.")),
    })
}

/// Where to look.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "describes what list() takes")]
struct ListParams {
    /// This environment only; if absent, DEFAULT_NAMESPACE and every announced environment.
    #[param(example = "ocean-compute")]
    environment: Option<String>,
}

/// List the names of the WorkFlow objects.
#[utoipa::path(
    get,
    path = "/api/v1/operator/list",
    tag = "admin",
    params(ListParams, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The names.", body = Vec<String>,
            example = json!(["9f9178dcffd34130a3158ce9ca3d15ff"])),
        (status = 400, description = "A parameter cannot be read, or the header is missing.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "Open to this machine only.", body = ErrorBody),
        Troubles,
    )
)]
pub(super) async fn list(State(admin): State<Admin>, params: Params) -> Result<Json<Vec<String>>, ApiError> {
    let namespaces = match params.name("environment")? {
        Some(environment) => BTreeSet::from([Namespace::stored(environment)]),
        None => {
            let announced = admin.db.environments().await?.into_iter().map(|row| row.namespace);
            announced.chain([admin.config.jobs.default_namespace.to_string()]).map(Namespace::stored).collect()
        }
    };
    Ok(Json(admin.cluster.workflow_names(namespaces).await?))
}

/// Which pod.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query, rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what logs() takes")]
struct LogsParams {
    /// The job.
    #[param(example = "9f9178dcffd34130a3158ce9ca3d15ff")]
    job_id: String,
    /// The step of the job.
    #[param(schema_with = component_schema)]
    component: Component,
}

fn component_schema() -> impl Into<utoipa::openapi::RefOr<utoipa::openapi::Schema>> {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(Component::ALL.map(Component::as_str)))
}

/// Show the log of a job's step.
///
/// At most the first 5 MiB of it.
#[utoipa::path(
    get,
    path = "/api/v1/operator/logs",
    tag = "admin",
    params(LogsParams, ("Admin" = Option<String>, Header, description = "One of ALLOWED_ADMINS.")),
    responses(
        (status = 200, description = "The log.", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 400, description = "A parameter is missing or wrong, or the header is missing.",
            content((String = "text/plain"), (ErrorBody = "application/json"))),
        (status = 401, description = "The header is wrong.", body = String, content_type = "text/plain"),
        (status = 403, description = "Open to this machine only.", body = ErrorBody),
        (status = 404, description = "There is no such pod.", body = String, content_type = "text/plain"),
        Troubles,
    )
)]
pub(super) async fn logs(State(admin): State<Admin>, params: Params) -> Result<Response, ApiError> {
    const CALL: &str = "GET:/logs";
    let asked = params.text("jobId")?.ok_or_else(|| required("jobId", CALL))?;
    let component = params.text("component")?.ok_or_else(|| required("component", CALL))?;
    let component = Component::parse(component).ok_or_else(|| {
        ApiError::bad_request("\"component\" must be one of configure, algorithm, filter and publish")
    })?;
    let log = match JobId::of_object(asked) {
        Some(job_id) => {
            let namespace = admin.namespace(&job_id).await?;
            match admin.cluster.read_log(&job_id, component, &namespace, LogPart::Start).await? {
                // The reaper keeps the end of a log whose pod it has to delete.
                None => admin.db.kept_log(&job_id, component.as_str()).await?,
                log => log,
            }
        }
        None => None,
    };
    Ok(match log {
        Some(log) => text(StatusCode::OK, String::from_utf8_lossy(&log)),
        None => {
            let message = format!("Pod with workflow={asked} and component={} not found", component.as_str());
            text(StatusCode::NOT_FOUND, message)
        }
    })
}
