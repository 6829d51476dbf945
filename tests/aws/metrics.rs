//! The log of a Lambda function: its real binary with a runtime API.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::IntoResponse;
use devstack::process::Program;
use serde_json::{Value, json};

use crate::LIMIT;
use crate::process::Directory;
use crate::support::eventually;

const REQUEST: &str = "8476a536-e9f4-11e8-9739-2dfe598c3fcd";
const TRACE: &str = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1";

#[derive(Clone, Default)]
struct Runtime {
    sent: Arc<Mutex<usize>>,
    answers: Arc<Mutex<HashMap<String, String>>>,
}

fn event() -> Value {
    json!({
        "resource": "/{proxy+}", "path": "/", "httpMethod": "GET",
        "headers": {}, "multiValueHeaders": {},
        "queryStringParameters": { "token": "not-for-the-log" },
        "multiValueQueryStringParameters": { "token": ["not-for-the-log"] },
        "requestContext": { "stage": "Prod", "requestId": "gateway", "path": "/Prod/", "httpMethod": "GET", "identity": {} },
        "body": null, "isBase64Encoded": false
    })
}

async fn next(State(runtime): State<Runtime>) -> impl IntoResponse {
    let number = {
        let mut sent = runtime.sent.lock().unwrap();
        *sent += 1;
        *sent
    };
    if number > 2 {
        std::future::pending::<()>().await;
    }
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("lambda-runtime-aws-request-id", format!("{REQUEST}-{number}")),
        ("lambda-runtime-deadline-ms", "4102444800000".to_owned()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-west-1:123456789012:function:docs".to_owned()),
        ("lambda-runtime-trace-id", TRACE.to_owned()),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    (headers, axum::Json(event()))
}

async fn answered(State(runtime): State<Runtime>, Path(id): Path<String>, body: String) {
    runtime.answers.lock().unwrap().insert(id, body);
}

#[tokio::test]
async fn a_function_logs_a_line_for_each_request_with_its_metrics() {
    let runtime = Runtime::default();
    let router = axum::Router::new()
        .route("/2018-06-01/runtime/invocation/next", axum::routing::get(next))
        .route("/2018-06-01/runtime/invocation/{id}/response", axum::routing::post(answered))
        .route("/2018-06-01/runtime/invocation/{id}/error", axum::routing::post(answered))
        .with_state(runtime.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let directory = Directory::new();
    let mut program = Program::new(env!("CARGO_BIN_EXE_docs")).log(&directory.file("output")).unwrap();
    program
        .command
        .env_clear()
        .env("AWS_LAMBDA_RUNTIME_API", api)
        .env("AWS_LAMBDA_FUNCTION_NAME", "docs")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_LAMBDA_LOG_STREAM_NAME", "stream")
        .env("AWS_LAMBDA_LOG_GROUP_NAME", "group")
        // The level does not apply to metrics.
        .env("LOG_LEVEL", "ERROR");
    let _function = program.spawn().unwrap();

    let output = || std::fs::read_to_string(directory.file("output")).unwrap();
    let lines = eventually("two lines", LIMIT, async || {
        let lines: Vec<Value> = output().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        (lines.len() == 2).then_some(lines)
    })
    .await;
    for (line, number) in lines.iter().zip(1..) {
        assert_eq!(line["request_id"], format!("{REQUEST}-{number}"));
        assert_eq!(line["xray"], TRACE);
        assert_eq!((line["FunctionName"].as_str(), line["route"].as_str()), (Some("docs"), Some("/")));
        assert_eq!(line["status"], 200);
        assert!(line["milliseconds"].is_u64() && line["job"].is_null());
        assert_eq!(line["ColdStarts"], if number == 1 { 1.0 } else { 0.0 });
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "OperatorService");
        assert_eq!(directive["Dimensions"], json!([["FunctionName"]]));
        let names: Vec<&str> =
            directive["Metrics"].as_array().unwrap().iter().map(|metric| metric["Name"].as_str().unwrap()).collect();
        assert_eq!(names, ["Requests", "Errors", "Starts", "Stops", "ColdStarts"]);
        assert_eq!((line["Requests"].as_f64(), line["Errors"].as_f64()), (Some(1.0), Some(0.0)));
    }
    assert!(!output().contains("not-for-the-log"));
}
