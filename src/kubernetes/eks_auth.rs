//! Requests with a token that is made for them.

use axum::http::header::{AUTHORIZATION, HeaderValue};
use axum::http::{HeaderMap, Response, StatusCode};
use secrecy::ExposeSecret;
use tower::BoxError;

use super::repeatable::{Manner, Repeatable};
use crate::aws::eks::{Token, TokenSource};

/// Gives every request a token. If the cluster refuses it (401: nothing was done), the request is sent once more with
/// a new one.
#[derive(Clone)]
pub(super) struct EksAuth(pub(super) TokenSource);

impl Manner for EksAuth {
    async fn send<F, B>(self, request: Repeatable<F>) -> Result<Response<B>, BoxError>
    where
        F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
        B: Send + 'static,
    {
        let Self(tokens) = self;
        let token = tokens.token().await?;
        let response = request.send(with(&token)?).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        tracing::info!("the cluster refused a token; trying once more with a new one");
        request.send(with(&tokens.instead_of(&token).await?)?).await
    }
}

fn with(token: &Token) -> Result<impl FnOnce(&mut HeaderMap) + Send + use<>, BoxError> {
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.secret().expose_secret()))?;
    value.set_sensitive(true);
    Ok(move |headers: &mut HeaderMap| {
        headers.insert(AUTHORIZATION, value);
    })
}
