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
    discovery,
    registry::Resource,
    status::ApiError,
    verbs::{create, delete, log, read, update, watch},
};

/// Larger bodies are refused, as by the real server.
const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// Serves until the cluster stops and all answers under way are given.
pub(crate) async fn serve(api: Arc<Api>, listener: TcpListener, addr: SocketAddr) -> io::Result<()> {
    let mut stop = api.stop.clone();
    let gate = Gate {
        refusing: api.faults.refusing(),
        listener: Some(listener),
        addr,
    };
    let app = Router::new()
        .fallback(handle)
        .with_state(api)
        .into_make_service_with_connect_info::<Cut>();
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
    let mut call = Call::new(&parts);
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
        match authenticated(&api, &mut call, body).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        }
    };
    if plan.lose_answer {
        cut.cut();
    }
    api.record(call.request);
    answer
}

async fn authenticated(api: &Arc<Api>, call: &mut Call, body: Body) -> Result<Response, ApiError> {
    if let Some(authenticator) = &api.authenticator {
        match authenticator.authenticate(call.token.as_deref()).await {
            Ok(user) => call.request.user = user.name,
            Err(reason) => {
                tracing::debug!(path = call.request.path, reason, "a caller was refused");
                return Err(ApiError::unauthorized());
            }
        }
    }
    let body = to_bytes(body, BODY_LIMIT)
        .await
        .map_err(|_| ApiError::too_large(BODY_LIMIT))?;
    if call.request.resource.is_empty() {
        return discovery::answer(api, call);
    }
    let Request {
        group,
        version,
        resource,
        ..
    } = &call.request;
    let resource = api
        .store
        .read(|state| api.registry.find(state, group, version, resource))
        .ok_or_else(ApiError::no_such_path)?;
    dispatch(api, call, resource, &body)
}

/// Hands the request to its verb.
fn dispatch(
    api: &Arc<Api>,
    call: &Call,
    resource: Arc<Resource>,
    body: &Bytes,
) -> Result<Response, ApiError> {
    let store = &api.store;
    let request = &call.request;
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
        _ => return Err(ApiError::no_such_path()),
    }
    // One object, or all of them in a namespace or everywhere.
    let status = request.subresource == "status";
    let everywhere = resource.namespaced && request.namespace.is_empty();
    if !resource.namespaced && !request.namespace.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let answer = match request.verb.as_str() {
        _ if everywhere && !request.name.is_empty() => return Err(ApiError::no_such_path()),
        "get" => read::get(store, call, &resource),
        "list" => read::list(store, call, &resource),
        "watch" => return watch::watch(api, call.clone(), resource),
        "create" if request.name.is_empty() && !everywhere => {
            create::create(store, call, &resource, json_body(call, body)?)
        }
        "update" if !request.name.is_empty() => {
            update::update(store, call, &resource, json_body(call, body)?)
        }
        "patch" if !request.name.is_empty() => {
            update::patch(store, call, &resource, &patch_body(call, &resource, body)?)
        }
        "delete" if !status => delete::delete(store, call, &resource, &options_body(body)?),
        "deletecollection" if !everywhere => {
            delete::delete_collection(store, call, &resource, &options_body(body)?)
        }
        _ => Err(ApiError::method_not_allowed()),
    };
    answer?.render(call, &resource)
}

fn parse(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| {
        ApiError::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
    })
}

/// An object; JSON is the only format that is read here.
fn json_body(call: &Call, body: &[u8]) -> Result<Value, ApiError> {
    match call.content_type.as_str() {
        "" | "application/json" => parse(body),
        _ => Err(ApiError::unsupported_media_type(&["application/json"])),
    }
}

/// A patch. The format is checked before it is read.
fn patch_body(call: &Call, resource: &Resource, body: &[u8]) -> Result<Value, ApiError> {
    super::patch::Format::of(&call.content_type, resource)?;
    serde_json::from_slice(body)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))
}

/// The options of a deletion, which need not be there.
fn options_body(body: &[u8]) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    parse(body)
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
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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
