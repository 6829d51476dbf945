//! Requests that may be sent more than once.

use std::task::{Context, Poll};

use axum::http::request::Parts;
use axum::http::{HeaderMap, Request, Response};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use kube::client::Body;
use tower::buffer::Buffer;
use tower::{BoxError, Layer, Service, ServiceExt};

/// As many requests may wait for their turn; the service behind it is always ready.
const WAITING: usize = 64;

/// Decides how, when and how often a request is sent.
pub(super) trait Manner: Clone + Send + 'static {
    fn send<F, B>(self, request: Repeatable<F>) -> impl Future<Output = Result<Response<B>, BoxError>> + Send + 'static
    where
        F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
        B: Send + 'static;
}

/// A request, held whole: what is sent to the cluster is never a stream.
pub(super) struct Repeatable<F> {
    parts: Parts,
    body: Bytes,
    inner: Buffer<Request<Body>, F>,
}

impl<F, B> Repeatable<F>
where
    F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
{
    /// Sends it, with headers changed.
    pub(super) async fn send(&self, change: impl FnOnce(&mut HeaderMap)) -> Result<Response<B>, BoxError> {
        let mut request = Request::from_parts(self.parts.clone(), Body::from(self.body.clone()));
        change(request.headers_mut());
        self.inner.clone().oneshot(request).await
    }
}

/// Sends every request in this manner.
pub(super) struct InManner<M>(pub(super) M);

impl<S, M: Manner> Layer<S> for InManner<M>
where
    S: Service<Request<Body>, Error = BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    type Service = Repeating<S::Future, M>;

    fn layer(&self, inner: S) -> Self::Service {
        Repeating { inner: Buffer::new(inner, WAITING), manner: self.0.clone() }
    }
}

/// See [`InManner`].
pub(super) struct Repeating<F, M> {
    inner: Buffer<Request<Body>, F>,
    manner: M,
}

impl<F, B, M> Service<Request<Body>> for Repeating<F, M>
where
    F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
    B: Send + 'static,
    M: Manner,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, manner) = (self.inner.clone(), self.manner.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            manner.send(Repeatable { parts, body, inner }).await
        })
    }
}
