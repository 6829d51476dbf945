//! Connections: faults, authentication, routing to the verbs.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes, to_bytes};
use axum::http::header::CONTENT_LENGTH;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::call::{Call, Request};
use crate::server::Server;
use crate::status::ApiError;
use crate::{discovery, resources, verbs};

/// The most bytes of a body, as of the real server's.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

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
    if plan.lose_answer {
        return Err(Closed);
    }
    let answer = answer.into_response();
    Ok(if plan.truncate_answer { truncated(answer).await } else { answer })
}

/// An answer of which the second half is missing.
async fn truncated(answer: Response) -> Response {
    let (mut head, body) = answer.into_parts();
    let mut body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    head.headers.insert(CONTENT_LENGTH, body.len().into());
    body.truncate(body.len() / 2);
    let parts = [Ok(body), Err(Closed)];
    Response::from_parts(head, Body::from_stream(stream::iter(parts)))
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
