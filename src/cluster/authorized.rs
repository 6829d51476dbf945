//! Requests with a token that is made for them.

use std::task::{Context, Poll};

use axum::http::header::{AUTHORIZATION, HeaderValue};
use axum::http::{Request, Response, StatusCode};
use futures_util::future::BoxFuture;
use kube::client::Body;
use secrecy::ExposeSecret;
use tower::buffer::Buffer;
use tower::{BoxError, Layer, Service, ServiceExt};

use crate::aws::eks::{Token, TokenSource};

/// As many requests may wait for their turn; the service behind it is always ready.
const WAITING: usize = 64;

/// Gives every request a token. If the cluster refuses it (401: nothing was done), the request is sent once more with
/// a new one.
pub(super) struct AuthorizedLayer(pub(super) TokenSource);

impl<S> Layer<S> for AuthorizedLayer
where
    S: Service<Request<Body>, Error = BoxError> + Send + 'static,
    S::Future: Send + 'static,
{
    type Service = Authorized<S::Future>;

    fn layer(&self, inner: S) -> Self::Service {
        Authorized { inner: Buffer::new(inner, WAITING), tokens: self.0.clone() }
    }
}

/// See [`AuthorizedLayer`].
pub(super) struct Authorized<F> {
    inner: Buffer<Request<Body>, F>,
    tokens: TokenSource,
}

impl<F, B> Service<Request<Body>> for Authorized<F>
where
    F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<B>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, tokens) = (self.inner.clone(), self.tokens.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // Held whole, to be sent again. What is sent to the cluster is never a stream.
            let body = body.collect_bytes().await?;
            let send = async |token: &Token| {
                let mut request = Request::from_parts(parts.clone(), Body::from(body.clone()));
                let mut value = HeaderValue::try_from(format!("Bearer {}", token.secret().expose_secret()))?;
                value.set_sensitive(true);
                request.headers_mut().insert(AUTHORIZATION, value);
                inner.clone().oneshot(request).await
            };
            let token = tokens.token().await?;
            let response = send(&token).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(response);
            }
            tracing::info!("the cluster refused a token; trying once more with a new one");
            send(&tokens.instead_of(&token).await?).await
        })
    }
}
