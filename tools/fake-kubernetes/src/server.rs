//! From the socket to the verb and back.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    extract::{ConnectInfo, State, connect_info::Connected},
    http::Method,
    response::{IntoResponse, Response},
    serve::{IncomingStream, Listener},
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::watch::Receiver,
};

use super::{
    Api,
    call::{Call, Request},
    discovery, object,
    patch::Format,
    registry::Resource,
    status::ApiError,
    verbs::{create, delete, log, read, update, watch},
};

/// Larger bodies are refused, as by the real server.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Serves until the cluster stops and all answers under way are given.
pub(crate) async fn serve(api: Arc<Api>, listener: TcpListener, addr: SocketAddr) -> io::Result<()> {
    let mut stop = api.stop.clone();
    let gate = Gate { refusing: api.faults.refusing(), listener: Some(listener), addr };
    let app = Router::new().fallback(handle).with_state(api).into_make_service_with_connect_info::<Cut>();
    axum::serve(gate, app)
        .with_graceful_shutdown(async move {
            // An error means that the cluster was dropped.
            let _ = stop.wait_for(|stop| *stop).await;
        })
        .await
}

/// One request: faults first, then who it is, then what it wants.
async fn handle(
    State(api): State<Arc<Api>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: axum::extract::Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let call = Call::new(&parts);
    let number = api.requests().add(call.request.clone());
    let plan = api.faults.plan(&call.request);
    if !plan.delay.is_zero() {
        let mut stop = api.stop.clone();
        let _ = tokio::time::timeout(plan.delay, stop.wait_for(|stop| *stop)).await;
    }
    let answer = if plan.drop {
        cut.cut();
        ApiError::internal("dropped").into_response()
    } else if let Some((status, retry_after)) = plan.answer {
        ApiError::injected(status, retry_after).into_response()
    } else {
        match answer(&api, &call, number, body).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    };
    if plan.lose_answer {
        cut.cut();
    }
    answer
}

/// What the request is answered with, once it is known who sent it.
async fn answer(api: &Arc<Api>, call: &Call, number: usize, body: Body) -> Result<Response, ApiError> {
    if let Some(authenticator) = &api.authenticator {
        match authenticator.authenticate(call.token.as_deref()).await {
            Ok(user) => api.requests().set_user(number, &user.name),
            Err(reason) => {
                tracing::debug!(path = call.request.path, reason, "a caller was refused");
                return Err(ApiError::unauthorized());
            }
        }
    }
    let body = to_bytes(body, BODY_LIMIT).await.map_err(|_| ApiError::too_large(BODY_LIMIT))?;
    if call.request.resource.is_empty() {
        return discovery::answer(api, call);
    }
    let Request { group, version, resource, .. } = &call.request;
    let resource = api
        .store
        .read(|state| api.registry.find(state, group, version, resource))
        .ok_or_else(|| nothing_there(api.registry.has_built_in(group, version)))?;
    dispatch(api, call, resource, &body)
}

/// Hands the request to its verb.
fn dispatch(api: &Arc<Api>, call: &Call, resource: Arc<Resource>, body: &Bytes) -> Result<Response, ApiError> {
    let store = &api.store;
    let request = &call.request;
    let built_in = resource.built_in().is_some();
    match request.subresource.as_str() {
        "" => {}
        "status" if resource.status => {}
        "log" if discovery::has_log(&resource) => {
            return match call.method {
                Method::GET => log::read(api, call, &resource),
                Method::PUT => log::write(api, call, &resource, body),
                _ => Err(ApiError::method_not_allowed()),
            };
        }
        _ => return Err(nothing_there(built_in)),
    }
    // One object, or all of them in a namespace or everywhere.
    let status = request.subresource == "status";
    let everywhere = resource.namespaced && request.namespace.is_empty();
    if !resource.namespaced && !request.namespace.is_empty() {
        return Err(nothing_there(built_in));
    }
    let deletes_collections = resource.built_in().is_none_or(|built_in| built_in.deletes_collections);
    let answer = match request.verb.as_str() {
        _ if everywhere && !request.name.is_empty() => return Err(nothing_there(built_in)),
        "get" => read::get(store, call, &resource),
        "list" => read::list(store, call, &resource),
        "watch" => return watch::watch(api, call.clone(), resource),
        "create" if request.name.is_empty() && !everywhere => {
            create::create(store, call, &resource, object_body(call, &resource, body)?)
        }
        "update" if !request.name.is_empty() => {
            update::update(store, call, &resource, object_body(call, &resource, body)?)
        }
        "patch" if !request.name.is_empty() => {
            update::patch(store, call, &resource, &patch_body(call, &resource, body)?)
        }
        "delete" if !status => delete::delete(store, call, &resource, &options_body(body)?),
        "deletecollection" if !everywhere && deletes_collections => {
            delete::delete_collection(store, call, &resource, &options_body(body)?)
        }
        _ if everywhere && !built_in => Err(ApiError::no_such_path()),
        "update" => Err(ApiError::bad_request("name must be provided")),
        _ => Err(ApiError::method_not_allowed()),
    };
    answer?.render(call, &resource)
}

/// The refusal of a path below a resource, or beside it. Groups of custom resources say it in plain text.
fn nothing_there(built_in: bool) -> ApiError {
    if built_in { ApiError::no_such_resource() } else { ApiError::no_such_path() }
}

fn parse(body: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(body).map_err(|error| format!("couldn't get version/kind; json parse error: {error}"))
}

/// An object.
fn object_body(call: &Call, resource: &Resource, body: &[u8]) -> Result<Value, ApiError> {
    let parsed = match call.content_type.as_str() {
        "" | "application/json" => parse(body),
        "application/yaml" => serde_yaml_ng::from_slice(body).map_err(|error| error.to_string()),
        _ => {
            let accepted = ["application/json", "application/yaml"];
            return Err(ApiError::unsupported_media_type(&accepted));
        }
    };
    parsed.map_err(|why| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {why} ({})",
            resource.kind,
            object::summary(body)
        ))
    })
}

/// A patch. The format is checked before it is read.
fn patch_body(call: &Call, resource: &Resource, body: &[u8]) -> Result<Value, ApiError> {
    let parsed = match Format::of(&call.content_type, resource)? {
        Format::Apply => serde_yaml_ng::from_slice(body).map_err(|error| error.to_string()),
        _ => serde_json::from_slice(body).map_err(|error| error.to_string()),
    };
    parsed.map_err(|why| ApiError::bad_request(format!("error decoding patch: {why}")))
}

/// The options of a deletion, which need not be there.
fn options_body(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    parse(body).map_err(ApiError::bad_request)
}

/// The switch that closes one connection without another byte.
#[derive(Clone, Debug, Default)]
struct Cut(Arc<AtomicBool>);

impl Cut {
    fn cut(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn check(&self) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        Ok(())
    }
}

impl Connected<IncomingStream<'_, Gate>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Gate>) -> Self {
        stream.io().cut.clone()
    }
}

/// A connection that can be cut.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    cut: Cut,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cut.check()?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// The listener, which is closed while connections are to be refused.
struct Gate {
    refusing: Receiver<bool>,
    listener: Option<TcpListener>,
    addr: SocketAddr,
}

impl Gate {
    /// A connection; none if something changed meanwhile or went wrong.
    async fn try_accept(&mut self) -> Option<(TcpStream, SocketAddr)> {
        if *self.refusing.borrow_and_update() {
            self.listener = None;
            // An error means that the cluster was dropped; then nobody asks again.
            let _ = self.refusing.wait_for(|refusing| !refusing).await;
            return None;
        }
        let Some(listener) = &self.listener else {
            match TcpListener::bind(self.addr).await {
                Ok(listener) => self.listener = Some(listener),
                Err(error) => self.pause(&error).await,
            }
            return None;
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = self.refusing.changed() => return None,
        };
        match accepted {
            Ok(accepted) => Some(accepted),
            Err(error) => {
                self.pause(&error).await;
                None
            }
        }
    }

    /// Out of file descriptors, say: there will be some again.
    async fn pause(&self, error: &io::Error) {
        tracing::warn!(%error, "the embedded cluster can't accept connections");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

impl Listener for Gate {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            if let Some((stream, addr)) = self.try_accept().await {
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY can't be set");
                }
                let cut = Cut::default();
                return (Connection { stream, cut }, addr);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}
