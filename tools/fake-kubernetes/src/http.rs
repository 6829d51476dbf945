//! Connections and requests: faults, authentication, routing to the verbs.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Query;
use axum::http::request::Parts;
use axum::http::{HeaderName, Method, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::status::ApiError;
use crate::{Server, discovery, resources, verbs};

/// The most bytes of a body, as of the real server's.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// A request as it was received, for tests to inspect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Request {
    /// The Kubernetes verb: get, list, watch, create, update, patch, delete, deletecollection; for paths that name no
    /// resource the method in lower case.
    pub verb: String,
    /// The API group; empty for the core group.
    pub group: String,
    /// The API version.
    pub version: String,
    /// The resource's plural; empty for paths that name none.
    pub resource: String,
    /// `status`, `log` or empty.
    pub subresource: String,
    /// The namespace; empty for all namespaces and for objects outside namespaces.
    pub namespace: String,
    /// The object's name; empty if the path names none.
    pub name: String,
    /// The label selector, as it was sent.
    pub label_selector: String,
    /// The path, without the query.
    pub path: String,
    /// The header `User-Agent`.
    pub user_agent: String,
    /// The user name that the authenticator returned; empty if there is none.
    pub user: String,
}

/// The form of the answer that the caller accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// Whole objects.
    Plain,
    /// `PartialObjectMetadata`.
    Metadata,
    /// `Table`.
    Table,
}

/// A request without its body.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) request: Request,
    pub(crate) shape: Shape,
    /// The media type of the body.
    pub(crate) content_type: String,
    token: Option<String>,
    query: HashMap<String, String>,
}

impl Call {
    fn new(parts: &Parts) -> Self {
        let text = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let query = Query::<HashMap<String, String>>::try_from_uri(&parts.uri).map(|query| query.0).unwrap_or_default();
        let mut request = resource_of(parts.uri.path());
        request.verb = verb(&parts.method, &request, query.contains_key("watch")).to_owned();
        request.path = parts.uri.path().to_owned();
        request.label_selector = query.get("labelSelector").cloned().unwrap_or_default();
        request.user_agent = text(header::USER_AGENT).to_owned();
        let accept = text(header::ACCEPT);
        Self {
            request,
            shape: match () {
                () if accept.contains("as=Table") => Shape::Table,
                () if accept.contains("as=PartialObjectMetadata") => Shape::Metadata,
                () => Shape::Plain,
            },
            content_type: text(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim().to_owned(),
            token: text(header::AUTHORIZATION).strip_prefix("Bearer ").map(str::to_owned),
            query,
        }
    }

    /// A parameter of the query, unless it is empty.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a parameter is true.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.query(name) == Some("true")
    }

    /// A parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<usize>, ApiError> {
        let number = self.query(name).map(str::parse).transpose();
        number.map_err(|_| ApiError::bad_request(format!("{name} is not a number")))
    }
}

/// The resource that a path names, as the real server reads it (`k8s.io/apiserver/pkg/endpoints/request.RequestInfo`).
fn resource_of(path: &str) -> Request {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Request::default(),
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && rest[0] != "status" => (*namespace, rest),
        _ => ("", rest),
    };
    let part = |index: usize| rest.get(index).copied().unwrap_or_default().to_owned();
    Request {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: namespace.to_owned(),
        resource: part(0),
        name: part(1),
        subresource: rest.get(2..).map(|rest| rest.join("/")).unwrap_or_default(),
        ..Request::default()
    }
}

fn verb(method: &Method, request: &Request, watch: bool) -> &'static str {
    let named = !request.name.is_empty();
    match *method {
        Method::GET if watch => "watch",
        Method::GET if named || request.resource.is_empty() => "get",
        Method::GET => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if named => "delete",
        Method::DELETE => "deletecollection",
        _ => "",
    }
}

/// Accepts connections until the cluster stops, and then waits for the requests in progress.
pub(crate) async fn serve(server: Arc<Server>, listener: TcpListener, addr: SocketAddr) {
    let mut listener = Some(listener);
    let mut refusing = server.faults.refusing();
    let mut stop = server.stop.clone();
    let mut connections = JoinSet::new();
    while !*stop.borrow() {
        if *refusing.borrow_and_update() {
            listener = None;
            tokio::select! {
                _ = refusing.changed() => {}
                _ = stop.changed() => {}
            }
            continue;
        }
        let accepted = async {
            let listener = match &mut listener {
                Some(listener) => listener,
                closed => closed.insert(TcpListener::bind(addr).await?),
            };
            listener.accept().await
        };
        tokio::select! {
            accepted = accepted => match accepted {
                Ok((stream, _)) => drop(connections.spawn(connection(Arc::clone(&server), stream))),
                Err(error) => pause(&error).await,
            },
            _ = refusing.changed() => {}
            _ = stop.changed() => {}
            Some(_) = connections.join_next() => {}
        }
    }
    while connections.join_next().await.is_some() {}
}

/// Waits before the next attempt, for example for a free file descriptor.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "the embedded cluster can't accept a connection");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Serves one connection. A client that closes it, or a fault, is no error.
async fn connection(server: Arc<Server>, stream: TcpStream) {
    stream.set_nodelay(true).ok();
    let mut stop = server.stop.clone();
    let service = service_fn(|request| handle(&server, request));
    let mut connection = pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        _ = &mut connection => return,
        _ = stop.wait_for(|stop| *stop) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await.ok();
}

/// Makes hyper close the connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes the connection")]
struct Closed;

/// Answers one request.
async fn handle(server: &Server, request: axum::http::Request<Incoming>) -> Result<Response, Closed> {
    let (parts, body) = request.into_parts();
    let call = Call::new(&parts);
    let user = authenticate(server, &call).await;
    let name = user.as_ref().cloned().unwrap_or_default();
    server.record(Request { user: name, ..call.request.clone() });

    let plan = server.faults.plan(&call.request);
    if !plan.delay.is_zero() {
        let mut stop = server.stop.clone();
        tokio::time::timeout(plan.delay, stop.wait_for(|stop| *stop)).await.ok();
    }
    if plan.drop {
        return Err(Closed);
    }
    let answer = match (plan.answer, user) {
        (Some((status, retry_after)), _) => Err(ApiError::injected(status, retry_after)),
        (None, Err(error)) => Err(error),
        (None, Ok(_)) => match to_bytes(Body::new(body), BODY_LIMIT).await {
            Ok(body) => answer(server, &call, &body),
            Err(_) => Err(ApiError::too_large(BODY_LIMIT)),
        },
    };
    if plan.lose_answer { Err(Closed) } else { Ok(answer.into_response()) }
}

/// The name of the user, if there is an authenticator.
async fn authenticate(server: &Server, call: &Call) -> Result<String, ApiError> {
    let Some(authenticator) = &server.authenticator else {
        return Ok(String::new());
    };
    match authenticator.authenticate(call.token.as_deref()).await {
        Ok(user) => Ok(user.name),
        Err(reason) => {
            tracing::debug!(path = call.request.path, reason, "a caller was not authenticated");
            Err(ApiError::unauthorized())
        }
    }
}

fn answer(server: &Server, call: &Call, body: &Bytes) -> Result<Response, ApiError> {
    let Request { group, version, resource, .. } = &call.request;
    if resource.is_empty() {
        return server.store.read(|state| discovery::answer(state, call));
    }
    if let Some(parameter) = ["fieldSelector", "dryRun"].into_iter().find(|name| call.query(name).is_some()) {
        return Err(ApiError::not_implemented(parameter));
    }
    server.store.write(|state| {
        let resource = resources::find(state, group, version, resource).ok_or_else(ApiError::no_such_path)?;
        verbs::answer(state, call, &resource, body)
    })
}
