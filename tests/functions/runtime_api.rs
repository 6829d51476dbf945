//! The Lambda runtime API (2018-06-01) behind an API Gateway: sends a function the events of a REST API (payload format
//! 1.0), and receives its responses, buffered or streamed.
//!
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>,
//! <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-custom.html>,
//! <https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html>

use std::collections::HashMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::LIMIT;
use crate::child::{Env, Process};
use crate::support::{Answer, Call, client};

/// The default timeout of an invocation: the gateway's.
const TIMEOUT: Duration = Duration::from_secs(29);
/// The maximum length of a buffered response, in bytes.
pub const BUFFERED_LIMIT: usize = 6 * 1024 * 1024;

/// The X-Ray trace of every invocation.
pub const TRACE: &str = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700";

/// A Lambda binary and its runtime API.
pub struct Function {
    pub process: Process,
    events: mpsc::UnboundedSender<(String, Value)>,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

struct Shared {
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<(String, Value)>>,
    /// The receivers of responses that have not arrived yet, by request id.
    waiting: Mutex<HashMap<String, mpsc::UnboundedSender<Part>>>,
    timeout: Duration,
}

/// A part of what a function sends.
#[derive(Debug)]
pub enum Part {
    /// The beginning: `response` or `error`, and the request's headers.
    Head(&'static str, HeaderMap),
    Data(Bytes),
    Trailers(HeaderMap),
    /// The connection broke.
    Broken,
}

impl Function {
    pub async fn start(binary: &str, env: &Env) -> Self {
        Self::start_with(binary, &[], env, TIMEOUT).await
    }

    /// With arguments, which deployed functions do not have, and another timeout.
    pub async fn start_with(binary: impl AsRef<OsStr>, arguments: &[&str], env: &Env, timeout: Duration) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (events, receiver) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { events: tokio::sync::Mutex::new(receiver), waiting: Mutex::default(), timeout });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/response", post(response))
            .route("/2018-06-01/runtime/invocation/{id}/error", post(error))
            .with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move { axum::serve(listener, router.into_make_service()).await.unwrap() });
        let binary = as_deployed(binary.as_ref());
        Self { process: Process::start(binary, arguments, &lambda(env, address)), events, shared, server }
    }

    /// Invokes it. The reply gives what it sends part by part.
    pub fn invoke(&self, event: Value) -> Reply {
        let id = uuid::Uuid::new_v4().to_string();
        let (sender, parts) = mpsc::unbounded_channel();
        self.shared.waiting.lock().unwrap().insert(id.clone(), sender);
        self.events.send((id.clone(), event)).unwrap();
        Reply { id, parts }
    }

    /// Invokes it, and returns what a caller of the REST API receives.
    pub async fn send(&self, event: Event) -> Answer {
        match self.invoke(event.0).whole().await {
            Outcome::Answer(answer) => answer,
            other => panic!("{other:?}\n{}", self.process.output()),
        }
    }

    /// As `send`, for a request with the stage `Prod` before its path.
    pub async fn call(&self, call: &Call) -> Answer {
        self.send(Event::of(call)).await
    }
}

/// The binary of this name in the directory FUNCTIONS_DIR, if there is one: built with the profile that is deployed.
fn as_deployed(binary: &OsStr) -> PathBuf {
    let deployed = std::env::var_os("FUNCTIONS_DIR").map(PathBuf::from);
    let deployed = deployed.and_then(|directory| Some(directory.join(std::path::Path::new(binary).file_name()?)));
    deployed.filter(|binary| binary.exists()).unwrap_or_else(|| binary.into())
}

impl Drop for Function {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// The environment of a Lambda function.
pub fn lambda(env: &Env, runtime_api: SocketAddr) -> Env {
    env.clone()
        .with("AWS_LAMBDA_RUNTIME_API", runtime_api.to_string())
        .with("AWS_LAMBDA_FUNCTION_NAME", "function")
        .with("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .with("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .with("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/function")
        .with("AWS_LAMBDA_LOG_STREAM_NAME", "stream")
        .with("AWS_REGION", "eu-central-1")
        // The tests' server does not support TLS, which functions require by default.
        .with("POSTGRES_SSLMODE", "prefer")
}

async fn next(State(shared): State<Arc<Shared>>) -> Response {
    let Some((id, event)) = shared.events.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap() + shared.timeout;
    let headers = [
        ("lambda-runtime-aws-request-id", id),
        ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:f".to_owned()),
        ("lambda-runtime-trace-id", TRACE.to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    (headers, event.to_string()).into_response()
}

async fn response(state: State<Arc<Shared>>, id: Path<String>, request: Request) -> StatusCode {
    take("response", state, id, request).await
}

async fn error(state: State<Arc<Shared>>, id: Path<String>, request: Request) -> StatusCode {
    take("error", state, id, request).await
}

async fn take(
    endpoint: &'static str,
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
    request: Request,
) -> StatusCode {
    let Some(caller) = shared.waiting.lock().unwrap().remove(&id) else {
        return StatusCode::BAD_REQUEST;
    };
    // Read to its end even if the caller is gone.
    let (head, mut body): (_, Body) = request.into_parts();
    caller.send(Part::Head(endpoint, head.headers)).ok();
    while let Some(frame) = body.frame().await {
        let part = match frame.map(|frame| frame.into_data().map_err(|frame| frame.into_trailers())) {
            Ok(Ok(data)) => Part::Data(data),
            Ok(Err(Ok(trailers))) => Part::Trailers(trailers),
            Ok(Err(Err(_))) => continue,
            Err(_) => Part::Broken,
        };
        caller.send(part).ok();
    }
    StatusCode::ACCEPTED
}

/// A function's reply to an invocation.
pub struct Reply {
    /// The id of the invocation.
    pub id: String,
    parts: mpsc::UnboundedReceiver<Part>,
}

/// How an invocation ended.
#[derive(Debug)]
pub enum Outcome {
    /// A caller of the REST API receives this.
    Answer(Answer),
    /// A caller's connection breaks after this.
    Incomplete(Answer),
    /// The function failed with this error: API Gateway answers its caller with a 502.
    Failed(Value),
}

impl Reply {
    /// The next part; `None` at the end.
    pub async fn part(&mut self) -> Option<Part> {
        tokio::time::timeout(LIMIT, self.parts.recv()).await.expect("the function does not answer")
    }

    /// Receives all parts. Returns the endpoint, the headers, the content, and whether the connection broke.
    async fn parts(mut self) -> (&'static str, HeaderMap, Vec<u8>, bool) {
        let Some(Part::Head(endpoint, headers)) = self.part().await else { panic!("no answer") };
        let (mut body, mut broken) = (Vec::new(), false);
        while let Some(part) = self.part().await {
            match part {
                Part::Data(data) => body.extend_from_slice(&data),
                Part::Trailers(trailers) => broken |= trailers.contains_key("lambda-runtime-function-error-type"),
                Part::Broken => broken = true,
                Part::Head(..) => unreachable!(),
            }
        }
        (endpoint, headers, body, broken)
    }

    /// Returns the JSON that the invoker receives, or the function's error.
    pub async fn json(self) -> Result<Value, Value> {
        let (endpoint, _, body, broken) = self.parts().await;
        assert!(!broken, "the connection broke");
        let body = serde_json::from_slice(&body).unwrap();
        if endpoint == "error" { Err(body) } else { Ok(body) }
    }

    /// Receives all parts, and reads them as API Gateway does.
    pub async fn whole(self) -> Outcome {
        let (endpoint, headers, body, broken) = self.parts().await;
        if endpoint == "error" {
            return Outcome::Failed(serde_json::from_slice(&body).unwrap());
        }
        let mode = headers.get("lambda-runtime-function-response-mode");
        if mode.is_some_and(|mode| mode == "streaming") {
            assert_eq!(headers["content-type"], "application/vnd.awslambda.http-integration-response");
            let answer = streamed(&body);
            return if broken { Outcome::Incomplete(answer) } else { Outcome::Answer(answer) };
        }
        assert!(!broken, "the connection broke during a buffered response");
        assert!(body.len() <= BUFFERED_LIMIT, "{} bytes are more than a buffered answer may have", body.len());
        Outcome::Answer(buffered(&serde_json::from_slice(&body).unwrap()))
    }
}

/// A JSON prelude, eight zero bytes, and the body.
fn streamed(sent: &[u8]) -> Answer {
    let end = sent.windows(8).position(|window| window == [0; 8]).expect("no end of the prelude");
    let prelude: Value = serde_json::from_slice(&sent[..end]).expect("the prelude is not JSON");
    let headers = header_map(prelude.get("headers"));
    Answer { status: status(&prelude), headers, body: Bytes::copy_from_slice(&sent[end + 8..]) }
}

fn buffered(answer: &Value) -> Answer {
    let mut headers = header_map(answer.get("headers"));
    headers.extend(header_map(answer.get("multiValueHeaders")));
    let body = answer["body"].as_str().unwrap_or_default();
    let encoded = answer["isBase64Encoded"].as_bool().unwrap_or_default();
    let body = if encoded { STANDARD.decode(body).unwrap() } else { body.as_bytes().to_vec() };
    Answer { status: status(answer), headers, body: body.into() }
}

fn status(answer: &Value) -> u16 {
    answer["statusCode"].as_u64().unwrap().try_into().unwrap()
}

fn header_map(headers: Option<&Value>) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in headers.and_then(Value::as_object).into_iter().flatten() {
        let name: HeaderName = name.parse().unwrap();
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for value in values {
            map.append(&name, HeaderValue::from_str(value.as_str().unwrap()).unwrap());
        }
    }
    map
}

/// An event of a REST API. Its path does not have the stage.
#[derive(Debug, Clone)]
pub struct Event(pub Value);

impl Event {
    /// What API Gateway sends for a request to its own host, stage `Prod`.
    pub fn of(call: &Call) -> Self {
        let request = call.request(&client(), "http://gateway").build().unwrap();
        let url = request.url();
        // Query values arrive percent-decoded once.
        let (mut single, mut multi) = (Map::new(), Map::new());
        for (name, value) in url.query_pairs() {
            single.insert(name.to_string(), json!(value));
            let values = multi.entry(name).or_insert_with(|| json!([])).as_array_mut().unwrap();
            values.push(json!(value));
        }
        let (mut headers, mut multi_headers) = (Map::new(), Map::new());
        let host = "abcdef1234.execute-api.eu-central-1.amazonaws.com";
        headers.insert("Host".to_owned(), json!(host));
        headers.insert("X-Forwarded-Proto".to_owned(), json!("https"));
        headers.insert("X-Forwarded-Port".to_owned(), json!("443"));
        headers.insert("X-Forwarded-For".to_owned(), json!("192.0.2.1"));
        for (name, value) in request.headers() {
            headers.insert(name.to_string(), json!(value.to_str().unwrap()));
        }
        for (name, value) in &headers {
            multi_headers.insert(name.clone(), json!([value]));
        }
        let body = request.body().and_then(|body| body.as_bytes());
        let path = url.path();
        let or_null = |map: Map<String, Value>| if map.is_empty() { Value::Null } else { Value::Object(map) };
        Self(json!({
            "resource": "/{proxy+}",
            "path": path,
            "httpMethod": request.method().as_str(),
            "headers": headers,
            "multiValueHeaders": multi_headers,
            "queryStringParameters": or_null(single),
            "multiValueQueryStringParameters": or_null(multi),
            "pathParameters": { "proxy": path.trim_start_matches('/') },
            "stageVariables": null,
            "requestContext": {
                "resourceId": "xyz123",
                "resourcePath": "/{proxy+}",
                "httpMethod": request.method().as_str(),
                "extendedRequestId": "JKJaXmPLvHcESHA=",
                "requestTime": "10/Mar/2026:06:10:24 +0000",
                "path": format!("/Prod{path}"),
                "accountId": "123456789012",
                "protocol": "HTTP/1.1",
                "stage": "Prod",
                "domainPrefix": "abcdef1234",
                "requestTimeEpoch": 1_773_123_024_000_u64,
                "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
                "identity": { "sourceIp": "192.0.2.1", "userAgent": "python-requests/2.32.3" },
                "domainName": host,
                "apiId": "abcdef1234"
            },
            "body": body.map(|body| String::from_utf8_lossy(body).into_owned()),
            "isBase64Encoded": false
        }))
    }

    /// With its body in base64.
    pub fn in_base64(mut self) -> Self {
        let body = self.0["body"].as_str().unwrap_or_default();
        self.0["body"] = json!(STANDARD.encode(body));
        self.0["isBase64Encoded"] = json!(true);
        self
    }

    /// Through a custom domain name: the URL has no stage, the context has.
    pub fn through_custom_domain(mut self) -> Self {
        self.0["requestContext"]["path"] = self.0["path"].clone();
        self.0["requestContext"]["domainName"] = json!("compute.example.org");
        self.0["headers"]["Host"] = json!("compute.example.org");
        self.0["multiValueHeaders"]["Host"] = json!(["compute.example.org"]);
        self
    }

    /// With another path.
    pub fn path(mut self, path: &str) -> Self {
        self.0["path"] = json!(path);
        self
    }

    pub fn stage(mut self, stage: Option<&str>) -> Self {
        self.0["requestContext"]["stage"] = json!(stage);
        self
    }

    /// Without the maps that hold all values of each name.
    pub fn with_single_values_only(mut self) -> Self {
        self.0["multiValueHeaders"] = Value::Null;
        self.0["multiValueQueryStringParameters"] = Value::Null;
        self
    }

    /// Without the maps that hold one value of each name.
    pub fn with_multiple_values_only(mut self) -> Self {
        self.0["headers"] = Value::Null;
        self.0["queryStringParameters"] = Value::Null;
        self
    }
}
