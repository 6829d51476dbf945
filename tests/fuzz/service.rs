//! The service without a database and a cluster, and requests to it as text.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};
use operator_service::api::admin::Admins;
use operator_service::api::{self, admin, compute, docs, environments, results};
use operator_service::config::{Config, DatabaseUse};
use operator_service::runtime;
use serde_json::Value;
use tower::ServiceExt;

use crate::closed_port::ClosedPort;

pub static RUNTIME: LazyLock<tokio::runtime::Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap());

pub static CONFIG: LazyLock<Arc<Config>> = LazyLock::new(|| {
    rustls::crypto::ring::default_provider().install_default().ok();
    // Kept, so that nobody else listens there.
    let port = Box::leak(Box::new(RUNTIME.block_on(async { ClosedPort::new() })));
    let variables = |name: &str| match name {
        "POSTGRES_HOST" => Some("127.0.0.1".to_owned()),
        "POSTGRES_PORT" => Some(port.to_string()),
        "POSTGRES_DB" | "POSTGRES_USER" | "POSTGRES_PASSWORD" => Some("nobody".to_owned()),
        "ALLOWED_ADMINS" => Some(r#"["0xad"]"#.to_owned()),
        "ALGO_POD_TIMEOUT" => Some("3600".to_owned()),
        _ => None,
    };
    Arc::new(Config::read(&variables, DatabaseUse::Required).unwrap())
});

/// The groups of routes, each of which is a function or a part of the server.
pub fn groups() -> [Router; 5] {
    let config = CONFIG.clone();
    let admins = Admins::configured(&config.access);
    let (db, storage) = (runtime::db(&config).unwrap(), runtime::storage(&config).unwrap());
    let cluster = runtime::cluster(&config);
    [
        compute::router(config.clone(), db.clone(), cluster.clone()),
        results::router(config.clone(), db.clone(), storage),
        environments::router(db.clone()),
        docs::router(config.clone()),
        admin::router(config, db, cluster, admins),
    ]
}

/// The server.
static SERVER: LazyLock<Router> = LazyLock::new(|| api::finish(groups()));

/// Sends a request to the server.
pub fn send(request: &Sent) -> Answer {
    let server = SERVER.clone();
    RUNTIME.block_on(async {
        let Ok(response) = server.oneshot(request.request()).await;
        Answer::of(response).await
    })
}

/// A request, written as in HTTP/1.1, with line feeds and without a version.
#[derive(Debug, Clone)]
pub struct Sent {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Sent {
    /// `None` for what an HTTP server refuses itself.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, body) = match text.windows(2).position(|pair| pair == b"\n\n") {
            Some(at) => (&text[..at], &text[at + 2..]),
            None => (text, &[][..]),
        };
        let mut lines = head.split(|byte| *byte == b'\n');
        let line = lines.next()?;
        let space = line.iter().position(|byte| *byte == b' ')?;
        let method = Method::from_bytes(&line[..space]).ok()?;
        let uri = Uri::try_from(&line[space + 1..]).ok()?;
        // A server in front of which there is no proxy is sent paths only.
        if !uri.to_string().starts_with('/') {
            return None;
        }
        let mut headers = HeaderMap::new();
        for line in lines {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            headers.append(name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?);
        }
        Some(Self { method, uri, headers, body: body.to_vec() })
    }

    /// Returns whether the cluster would be asked first, which is tried again for seconds.
    pub fn needs_cluster(&self) -> bool {
        self.uri.path().ends_with("/list")
    }

    pub fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// A response, whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Self {
        let (head, body) = response.into_parts();
        Self { status: head.status, headers: head.headers, body: to_bytes(body, usize::MAX).await.unwrap() }
    }

    /// Checks what holds of every response of the service.
    pub fn check(&self, request: &Sent) {
        let Self { status, body, .. } = self;
        // What was read and is right is asked of the database, and there is none.
        let no_database = *status == StatusCode::SERVICE_UNAVAILABLE
            && body.starts_with(br#"{"error":"The database is not available, please try again"#);
        assert!(status.as_u16() < 500 || no_database, "{request:?} {self:?}");
        if self.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "application/json") && !body.is_empty() {
            let json: Value = serde_json::from_slice(body).unwrap();
            if !status.is_success() {
                let error = json["error"].as_str().unwrap();
                assert!(!error.is_empty() && json.as_object().unwrap().len() == 1, "{request:?} {self:?}");
            }
        }
    }
}
