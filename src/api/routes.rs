//! The routes of the service. The tests compare the routers, the OpenAPI document and the template with this table.

use serde::Serialize;

/// A route and the function that serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The binary, which is deployed as a function of its own.
    pub function: &'static str,
    /// The HTTP method, in upper case.
    pub method: &'static str,
    /// The path as axum writes it: `{*file}` stands for one or more segments.
    pub path: &'static str,
}

/// Every route.
pub const ROUTES: &[Route] = &[
    route("compute", "POST", "/api/v1/operator/compute"),
    route("compute", "GET", "/api/v1/operator/compute"),
    route("compute", "PUT", "/api/v1/operator/compute"),
    route("compute", "DELETE", "/api/v1/operator/compute"),
    route("compute", "GET", "/api/v1/operator/runningjobs"),
    route("results", "GET", "/api/v1/operator/getResult"),
    route("environments", "GET", "/api/v1/operator/environments"),
    route("admin", "POST", "/api/v1/operator/pgsqlinit"),
    route("admin", "GET", "/api/v1/operator/info"),
    route("admin", "GET", "/api/v1/operator/list"),
    route("admin", "GET", "/api/v1/operator/logs"),
    route("docs", "GET", "/"),
    route("docs", "GET", "/spec"),
    route("docs", "GET", "/api/v1/docs"),
    route("docs", "GET", "/api/v1/docs/{*file}"),
];

const fn route(function: &'static str, method: &'static str, path: &'static str) -> Route {
    Route { function, method, path }
}
