//! Bearer tokens for an EKS cluster.

use std::task::{Context, Poll};

use axum::http::header::{AUTHORIZATION, HeaderValue};
use axum::http::{Request, Response, StatusCode};
use futures_util::future::BoxFuture;
use kube::client::Body;
use secrecy::ExposeSecret;
use tower::buffer::Buffer;
use tower::{BoxError, Layer, Service, ServiceExt};

use super::{QUEUE_LENGTH, clone_request};
use crate::aws::eks::{Token, TokenSource};

/// Adds a token to every request. If the cluster refuses it (401: nothing was done), sends the request once more with a
/// new token.
///
/// A layer of its own, because tower's filters and retry policies do not share which token an attempt was sent with,
/// and a token that another request has renewed already must not be renewed again.
#[derive(Clone)]
pub(in crate::kubernetes) struct EksAuthLayer(pub(in crate::kubernetes) TokenSource);

impl<S> Layer<S> for EksAuthLayer
where
    S: Service<Request<Body>, Error = BoxError> + Send + 'static,
    S::Future: Send,
{
    type Service = EksAuth<S::Future>;

    fn layer(&self, inner: S) -> Self::Service {
        EksAuth { tokens: self.0.clone(), inner: Buffer::new(inner, QUEUE_LENGTH) }
    }
}

/// See [`EksAuthLayer`].
pub(in crate::kubernetes) struct EksAuth<F> {
    tokens: TokenSource,
    inner: Buffer<Request<Body>, F>,
}

impl<F, B> Service<Request<Body>> for EksAuth<F>
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
        let (tokens, inner) = (self.tokens.clone(), self.inner.clone());
        Box::pin(async move {
            let copy = clone_request(&request);
            let token = tokens.token().await?;
            let response = inner.clone().oneshot(with_token(request, &token)?).await?;
            match copy {
                Some(copy) if response.status() == StatusCode::UNAUTHORIZED => {
                    tracing::info!("the cluster refused a token; trying once more with a new one");
                    let token = tokens.replace(&token).await?;
                    inner.oneshot(with_token(copy, &token)?).await
                }
                _ => Ok(response),
            }
        })
    }
}

fn with_token(mut request: Request<Body>, token: &Token) -> Result<Request<Body>, BoxError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.secret().expose_secret()))?;
    value.set_sensitive(true);
    request.headers_mut().insert(AUTHORIZATION, value);
    Ok(request)
}
