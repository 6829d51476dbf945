//! The table of all routes.

use serde::Serialize;

/// One route, and the Lambda function that handles it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Route {
    /// The binary that handles it as a Lambda function.
    pub function: &'static str,
    /// Its HTTP method.
    pub method: &'static str,
    /// Its path, as axum writes it.
    pub path: &'static str,
}

/// All routes.
pub const ROUTES: &[Route] = &[
    Route { function: "compute", method: "POST", path: "/api/v1/operator/compute" },
    Route { function: "compute", method: "GET", path: "/api/v1/operator/compute" },
    Route { function: "compute", method: "PUT", path: "/api/v1/operator/compute" },
    Route { function: "compute", method: "DELETE", path: "/api/v1/operator/compute" },
    Route { function: "compute", method: "GET", path: "/api/v1/operator/runningjobs" },
    Route { function: "results", method: "GET", path: "/api/v1/operator/getResult" },
    Route { function: "environments", method: "GET", path: "/api/v1/operator/environments" },
    Route { function: "admin", method: "POST", path: "/api/v1/operator/pgsqlinit" },
    Route { function: "admin", method: "GET", path: "/api/v1/operator/info" },
    Route { function: "admin", method: "GET", path: "/api/v1/operator/list" },
    Route { function: "admin", method: "GET", path: "/api/v1/operator/logs" },
    Route { function: "docs", method: "GET", path: "/" },
    Route { function: "docs", method: "GET", path: "/spec" },
    Route { function: "docs", method: "GET", path: "/api/v1/docs" },
    Route { function: "docs", method: "GET", path: "/api/v1/docs/" },
    Route { function: "docs", method: "GET", path: "/api/v1/docs/{*file}" },
];
