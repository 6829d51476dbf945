//! The Lambda runtime API for one function at a time (<https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>).

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use axum::Router;
use axum::extract::{Path as Segment, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::stack::Variables;

/// Maximum duration of an invocation, as long as Lambda allows.
const LIMIT: Duration = Duration::from_secs(900);
/// The part of a response that is kept.
const KEPT: usize = 2_000;

/// A running function with its runtime API.
pub struct Function {
    child: Child,
    events: mpsc::UnboundedSender<Value>,
    replies: mpsc::UnboundedReceiver<Reply>,
    server: JoinHandle<()>,
}

/// What a function returned.
#[derive(Debug)]
pub struct Reply {
    /// Whether it is a response, not an error.
    pub is_response: bool,
    /// Its length in bytes.
    pub length: usize,
    /// Its beginning.
    pub begin: String,
}

struct Shared {
    events: Mutex<mpsc::UnboundedReceiver<Value>>,
    replies: mpsc::UnboundedSender<Reply>,
}

impl Function {
    /// Starts a function with an event that waits for it. Returns the time of the start.
    pub async fn start(binary: &Path, variables: &Variables, first: Value) -> anyhow::Result<(Self, Instant)> {
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        let address = listener.local_addr()?;
        let (events, receiver) = mpsc::unbounded_channel();
        let (sender, replies) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared { events: Mutex::new(receiver), replies: sender });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{outcome}", post(reply))
            .with_state(shared);
        let server = tokio::spawn(async move { drop(axum::serve(listener, router).await) });
        events.send(first)?;
        let mut command = Command::new(binary);
        command.env_clear().envs(variables.iter().map(|(name, value)| (name, value)));
        for (name, value) in [
            ("AWS_LAMBDA_RUNTIME_API", address.to_string().as_str()),
            ("AWS_LAMBDA_FUNCTION_NAME", "function"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "group"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "stream"),
            ("AWS_REGION", "eu-central-1"),
        ] {
            command.env(name, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let begun = Instant::now();
        let child = command.spawn().with_context(|| binary.display().to_string())?;
        Ok((Self { child, events, replies, server }, begun))
    }

    /// Waits for the next reply, which has to be a response.
    pub async fn reply(&mut self) -> anyhow::Result<Reply> {
        tokio::select! {
            reply = self.replies.recv() => match reply {
                Some(reply) if reply.is_response => Ok(reply),
                reply => bail!("the function returned {reply:?}"),
            },
            status = self.child.wait() => bail!("the function ended before it replied: {status:?}"),
        }
    }

    /// Sends an event and waits for the response to it.
    pub async fn invoke(&mut self, event: Value) -> anyhow::Result<Reply> {
        self.events.send(event)?;
        self.reply().await
    }

    /// A value in its /proc/PID/status, in bytes.
    pub fn memory(&self, field: &str) -> anyhow::Result<f64> {
        crate::stack::memory(self.child.id().context("the function has ended")?, field)
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn next(State(shared): State<Arc<Shared>>) -> Response {
    let Some(event) = shared.events.lock().await.recv().await else { return StatusCode::GONE.into_response() };
    let deadline = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + LIMIT;
    let headers = [
        ("lambda-runtime-aws-request-id", uuid::Uuid::new_v4().to_string()),
        ("lambda-runtime-deadline-ms", deadline.as_millis().to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:eu-central-1:123456789012:function:f".to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    (headers, event.to_string()).into_response()
}

async fn reply(
    State(shared): State<Arc<Shared>>,
    Segment((_, outcome)): Segment<(String, String)>,
    request: Request,
) -> StatusCode {
    let mut body = request.into_body().into_data_stream();
    let (mut length, mut begin) = (0, Vec::new());
    while let Some(Ok(chunk)) = body.next().await {
        length += chunk.len();
        begin.extend_from_slice(&chunk[..chunk.len().min(KEPT.saturating_sub(begin.len()))]);
    }
    let begin = String::from_utf8_lossy(&begin).into_owned();
    shared.replies.send(Reply { is_response: outcome == "response", length, begin }).ok();
    StatusCode::ACCEPTED
}

/// The event of a REST API for a request.
pub fn event(method: &str, path: &str, query: &str, body: Option<Value>) -> Value {
    let parameters: serde_json::Map<_, _> =
        url::form_urlencoded::parse(query.as_bytes()).map(|(name, value)| (name.into(), json!(value))).collect();
    let several: serde_json::Map<_, _> =
        parameters.iter().map(|(name, value)| (name.clone(), json!([value]))).collect();
    json!({
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": { "Host": "localhost", "Content-Type": "application/json", "Admin": "bench" },
        "multiValueHeaders": { "Host": ["localhost"], "Content-Type": ["application/json"], "Admin": ["bench"] },
        "queryStringParameters": parameters,
        "multiValueQueryStringParameters": several,
        "pathParameters": { "proxy": path.trim_start_matches('/') },
        "stageVariables": null,
        "requestContext": {
            "resourceId": "xyz123", "resourcePath": "/{proxy+}", "httpMethod": method, "path": format!("/Prod{path}"),
            "accountId": "123456789012", "protocol": "HTTP/1.1", "stage": "Prod", "requestId": "bench", "apiId": "bench",
            "requestTimeEpoch": 1_773_123_024_000_u64, "identity": { "sourceIp": "192.0.2.1", "userAgent": "bench" }
        },
        "body": body.map(|body| body.to_string()),
        "isBase64Encoded": false
    })
}
