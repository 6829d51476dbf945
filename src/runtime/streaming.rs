//! Runs a Lambda function that streams its responses.
//!
//! `lambda_http` can do that too, but if a response is interrupted, it ends the stream normally, with the text of an
//! error trailer after the content (`lambda_runtime`, `requests.rs`): callers would read that as the file's last bytes.
//! This module closes the connection, as a server does, and Lambda then closes the caller's.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Response;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use lambda_http::request::LambdaRequest;
use lambda_http::{Context, RequestExt, lambda_runtime};
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::BoxError;

/// Handles invocations from the runtime API, one at a time, until the process ends
/// (<https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>).
pub(super) async fn run(router: Router) -> Result<(), BoxError> {
    let api = std::env::var("AWS_LAMBDA_RUNTIME_API")
        .map_err(|_| "AWS_LAMBDA_RUNTIME_API must be set: this program runs as a Lambda function")?;
    let invocations = format!("http://{api}/2018-06-01/runtime/invocation");
    // For plain HTTP to the runtime API only: no root certificates, and no timeout.
    let tls = rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty());
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls.with_no_client_auth()).no_proxy().build()?;
    let config = Arc::new(lambda_runtime::Config::from_env());
    loop {
        let next = client.get(format!("{invocations}/next")).send().await?.error_for_status()?;
        let context = context(next.headers(), config.clone())?;
        let invocation = format!("{invocations}/{}", context.request_id);
        let report = match serde_json::from_slice::<LambdaRequest>(&next.bytes().await?) {
            Ok(event) => {
                // The context is what metrics and log lines are made of (`telemetry::log_requests`).
                let request = lambda_http::Request::from(event).with_lambda_context(context);
                let Ok(response) = router.clone().oneshot(request.map(Body::new)).await;
                client
                    .post(format!("{invocation}/response"))
                    .header("lambda-runtime-function-response-mode", "streaming")
                    .header(CONTENT_TYPE, "application/vnd.awslambda.http-integration-response")
                    .body(stream_of(response)?)
            }
            Err(_) => client
                .post(format!("{invocation}/error"))
                .header("lambda-runtime-function-error-type", "Runtime.UnknownEvent")
                .body(r#"{"errorType": "Runtime.UnknownEvent", "errorMessage": "not an event of a REST API"}"#),
        };
        if let Err(error) = report.send().await.and_then(reqwest::Response::error_for_status) {
            let error = error.without_url();
            tracing::warn!(error = &error as &dyn std::error::Error, "the runtime API did not accept a whole response");
        }
    }
}

/// The context of an invocation, made as `lambda_http` makes it, from the headers of the runtime API.
fn context(headers: &HeaderMap, config: Arc<lambda_runtime::Config>) -> Result<Context, BoxError> {
    let missing = |name: &str| format!("the runtime API sent no {name}");
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).ok_or_else(|| missing(name));
    // `Context::new` panics without it.
    header("lambda-runtime-deadline-ms")?;
    Context::new(header("lambda-runtime-aws-request-id")?, config, headers)
}

/// The form that Lambda streams: status and headers in JSON, eight zero bytes, the content.
fn stream_of(response: Response<Body>) -> Result<reqwest::Body, BoxError> {
    let (head, content) = response.into_parts();
    let mut headers = Map::new();
    for (name, value) in &head.headers {
        headers.insert(name.to_string(), Value::from(String::from_utf8_lossy(value.as_bytes())));
    }
    let mut prelude = serde_json::to_vec(&json!({ "statusCode": head.status.as_u16(), "headers": headers }))?;
    prelude.extend([0; 8]);
    let prelude = stream::once(future::ready(Ok(Bytes::from(prelude))));
    Ok(reqwest::Body::wrap_stream(prelude.chain(content.into_data_stream())))
}
