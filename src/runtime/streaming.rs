//! A Lambda function that streams its answers.
//!
//! `lambda_http` has one too, but where an answer breaks off it ends the stream as if nothing had happened, with the
//! text of what should have been trailers after the content (`lambda_runtime`, `requests.rs`): callers would take it
//! for the file's last bytes. This one breaks the connection, as a server does, and Lambda the caller's.

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use axum::http::header::CONTENT_TYPE;
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use lambda_http::request::LambdaRequest;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use crate::runtime::BoxError;

/// Takes invocations from the runtime API, one after the other, for ever
/// (<https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>).
pub async fn run(router: Router) -> Result<(), BoxError> {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API")
        .map_err(|_| "AWS_LAMBDA_RUNTIME_API must be set: this program runs as a Lambda function")?;
    let invocations = format!("http://{api}/2018-06-01/runtime/invocation");
    // Speaks to nobody but the runtime API, in plain HTTP: no root certificates, and no limit to waiting.
    let tls = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls.with_no_client_auth()).no_proxy().build()?;
    loop {
        let next = client.get(format!("{invocations}/next")).send().await?.error_for_status()?;
        let id = next.headers().get("lambda-runtime-aws-request-id").and_then(|id| id.to_str().ok());
        let invocation = format!("{invocations}/{}", id.ok_or("the runtime API names no request")?);
        let sent = match serde_json::from_slice::<LambdaRequest>(&next.bytes().await?) {
            Ok(event) => {
                let request: lambda_http::Request = event.into();
                let Ok(answer) = router.clone().oneshot(request.map(Body::new)).await;
                client
                    .post(format!("{invocation}/response"))
                    .header("lambda-runtime-function-response-mode", "streaming")
                    .header(CONTENT_TYPE, "application/vnd.awslambda.http-integration-response")
                    .body(streamed(answer)?)
            }
            Err(_) => client
                .post(format!("{invocation}/error"))
                .header("lambda-runtime-function-error-type", "Runtime.UnknownEvent")
                .body(r#"{"errorType": "Runtime.UnknownEvent", "errorMessage": "no event of a REST API"}"#),
        };
        if let Err(error) = sent.send().await.and_then(reqwest::Response::error_for_status) {
            let error = error.without_url();
            tracing::warn!(error = &error as &dyn std::error::Error, "an answer broke off, or was not taken");
        }
    }
}

/// A prelude in JSON, eight zero bytes, the content.
fn streamed(answer: Response<Body>) -> Result<reqwest::Body, BoxError> {
    let (head, content) = answer.into_parts();
    let mut headers = Map::new();
    for (name, value) in &head.headers {
        headers.insert(name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes())));
    }
    let mut begin = serde_json::to_vec(&json!({ "statusCode": head.status.as_u16(), "headers": headers }))?;
    begin.extend([0; 8]);
    let begin = stream::once(future::ready(Ok(Bytes::from(begin))));
    Ok(reqwest::Body::wrap_stream(begin.chain(content.into_data_stream())))
}
