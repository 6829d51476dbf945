//! Any request, as the event that API Gateway sends to a function (REST API, payload format 1.0), is answered as the same
//! request to the server is, in a response that Lambda accepts.

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::header::HOST;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use lambda_http::IntoResponse;
use lambda_http::request::LambdaRequest;
use operator_service::runtime::lambda;
use serde_json::{Map, Value, json};
use tower::ServiceExt;
use url::form_urlencoded;

use crate::service::{self, Answer, RUNTIME, Sent};

static FUNCTION: LazyLock<Router> =
    LazyLock::new(|| lambda::behind_gateway(service::groups().into_iter().fold(Router::new(), Router::merge)));

pub fn check(data: &[u8]) {
    let Some(sent) = Sent::parse(data).filter(|sent| !sent.needs_cluster()) else { return };
    let Some(event) = event(&sent) else { return };
    let event: LambdaRequest = serde_json::from_value(event).unwrap();
    // As lambda_http runs a router, but without a context: that would make a metric of each request.
    let (request, function) = (lambda_http::Request::from(event).map(Body::new), FUNCTION.clone());
    let response = RUNTIME.block_on(async {
        let Ok(response) = function.oneshot(request).await;
        response.into_response().await
    });
    let (head, body) = response.into_parts();
    let answer = Answer { status: head.status, headers: head.headers, body: body.to_vec().into() };
    answer.check(&sent);
    assert_eq!(answer, service::send(&sent), "{sent:?}");
}

/// The event that API Gateway makes of a request
/// (<https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html>). `None` for what it
/// refuses or changes: headers that are not ASCII, a query string without a parameter. Nor for a header that is sent twice, of
/// which lambda_http keeps the last.
fn event(sent: &Sent) -> Option<Value> {
    let (mut first, mut all) = (Map::new(), Map::new());
    let query = sent.uri.query().unwrap_or_default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        first.insert(name.to_string(), json!(value));
        all.entry(name).or_insert_with(|| json!([])).as_array_mut()?.push(json!(value));
    }
    if first.is_empty() && !query.is_empty() {
        return None;
    }
    let gateway = "abcdef1234.execute-api.eu-central-1.amazonaws.com";
    let mut headers = json!({ "Host": gateway, "X-Forwarded-Proto": "https" });
    let mut all_headers = json!({ "Host": [gateway], "X-Forwarded-Proto": ["https"] });
    if sent.headers.len() > sent.headers.keys().count() {
        return None;
    }
    for (name, value) in sent.headers.iter().filter(|(name, _)| **name != HOST && *name != "x-forwarded-proto") {
        let value = value.to_str().ok()?;
        headers[name.as_str()] = json!(value);
        all_headers[name.as_str()] = json!([value]);
    }
    let (body, is_base64) = match std::str::from_utf8(&sent.body) {
        Ok("") => (None, false),
        Ok(text) => (Some(text.to_owned()), false),
        Err(_) => (Some(STANDARD.encode(&sent.body)), true),
    };
    let path = sent.uri.path();
    Some(json!({
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": sent.method.as_str(),
        "headers": headers,
        "multiValueHeaders": all_headers,
        "queryStringParameters": first,
        "multiValueQueryStringParameters": all,
        "pathParameters": { "proxy": path.trim_start_matches('/') },
        "stageVariables": null,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": sent.method.as_str(),
            "path": format!("/Prod{path}"),
            "protocol": "HTTP/1.1",
            "stage": "Prod",
            "requestTimeEpoch": 1_773_123_024_000_u64,
            "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
            "identity": { "sourceIp": "192.0.2.1" },
            "domainName": gateway,
            "apiId": "abcdef1234",
        },
        "body": body,
        "isBase64Encoded": is_base64,
    }))
}
