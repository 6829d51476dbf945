//! The schema's custom resource: what CloudFormation sends, through the function `migration` (infra/migration), to the real
//! `migrate` and a database, and what it receives.

use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{post, put};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::child::Env;
use crate::runtime_api::Function;
use crate::support::{ClosedPort, Proxy, TestDatabase};

const MIGRATE: &str = env!("CARGO_BIN_EXE_migrate");

/// What `migration` reaches: `migrate`, and CloudFormation's URL.
#[derive(Clone)]
struct Reached {
    migrate: Arc<Function>,
    invocations: Arc<Mutex<u32>>,
    responses: Arc<Mutex<Vec<Value>>>,
}

async fn invoke(State(reached): State<Reached>, event: Bytes) -> Response {
    *reached.invocations.lock().unwrap() += 1;
    let event = serde_json::from_slice(&event).unwrap();
    match reached.migrate.invoke(event).json().await {
        Ok(value) => value.to_string().into_response(),
        Err(error) => ([("x-amz-function-error", "Unhandled")], error.to_string()).into_response(),
    }
}

async fn respond(State(reached): State<Reached>, body: Bytes) {
    reached.responses.lock().unwrap().push(serde_json::from_slice(&body).unwrap());
}

/// Sends a request of CloudFormation, with a function `migrate` that has these variables. Returns status and reason of the
/// one response, and how often `migrate` was invoked.
async fn cloudformation(kind: &str, env: &Env) -> (String, String, u32) {
    let migrate = Arc::new(Function::start(MIGRATE, env).await);
    let reached = Reached { migrate, invocations: Arc::default(), responses: Arc::default() };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = axum::Router::new().route("/invoke", post(invoke)).route("/response", put(respond));
    let router = router.with_state(reached.clone());
    let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let event = json!({
        "RequestType": kind, "ResponseURL": format!("{url}/response"), "StackId": "stack", "RequestId": "request",
        "LogicalResourceId": "Schema", "PhysicalResourceId": "schema",
        "ResourceProperties": { "Migrate": "arn:aws:lambda:eu-central-1:123456789012:function:migrate" }
    });
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = tokio::process::Command::new(python);
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions/migration.py")).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let input = json!({ "event": event, "invoke": format!("{url}/invoke") }).to_string();
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    server.abort();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let responses = reached.responses.lock().unwrap().clone();
    let [response] = &responses[..] else { panic!("{responses:?}") };
    for (name, value) in [("StackId", "stack"), ("RequestId", "request"), ("LogicalResourceId", "Schema")] {
        assert_eq!(response[name], value);
    }
    // Another id would make CloudFormation delete the old resource.
    assert_eq!(response["PhysicalResourceId"], "schema");
    let text = |name: &str| response[name].as_str().unwrap().to_owned();
    let invocations = *reached.invocations.lock().unwrap();
    (text("Status"), text("Reason"), invocations)
}

#[track_caller]
fn succeeded((status, reason, invocations): (String, String, u32), expected: u32) {
    assert_eq!((status.as_str(), invocations), ("SUCCESS", expected), "{reason}");
}

#[track_caller]
fn failed((status, reason, invocations): (String, String, u32), why: &str) {
    assert_eq!((status.as_str(), invocations), ("FAILED", 1));
    assert!(reason.starts_with("The schema was not updated: ") && reason.contains(why), "{reason}");
}

#[tokio::test]
async fn a_stack_is_created_updated_rolled_back_and_deleted() {
    let (database, other) = (TestDatabase::empty().await, TestDatabase::empty().await);
    let env = Env::of(database.variables());
    // A creation that fails is followed by a deletion.
    let closed = ClosedPort::new();
    let unreachable = env.clone().with("POSTGRES_PORT", closed.to_string());
    failed(cloudformation("Create", &unreachable).await, "Connection refused");
    succeeded(cloudformation("Delete", &unreachable).await, 0);
    succeeded(cloudformation("Create", &env).await, 1);
    assert_eq!(database.count("jobs").await, 0);

    // A release without another migration; another host, port, database.
    succeeded(cloudformation("Update", &env).await, 1);
    let proxy = Proxy::to(database.address().await).await;
    let moved = env.clone().with("POSTGRES_HOST", "localhost").with("POSTGRES_PORT", proxy.port.to_string());
    succeeded(cloudformation("Update", &moved).await, 1);
    succeeded(cloudformation("Update", &Env::of(other.variables())).await, 1);
    assert_eq!(other.count("jobs").await, 0);

    // Updates that fail, each followed by the rollback to what was before.
    let unknown = env.clone().with("POSTGRES_DB", "no_such_database");
    for (wrong, why) in [(&unreachable, "Connection refused"), (&unknown, "no_such_database")] {
        failed(cloudformation("Update", wrong).await, why);
        succeeded(cloudformation("Update", &env).await, 1);
    }
    // The schema of the release that failed stays.
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (99990101000000, 'newer', true, '', 0)";
    database.execute(newer).await;
    succeeded(cloudformation("Update", &env).await, 1);

    succeeded(cloudformation("Delete", &env).await, 0);
    assert_eq!(database.count("jobs").await, 0, "the database stays");
}

#[tokio::test]
async fn a_login_that_does_not_own_the_tables_fails_the_update() {
    let database = TestDatabase::with_roles().await;
    let env = Env::of(database.variables());
    let login = database.login("reaper").into_iter().fold(env.clone(), |env, (name, value)| env.with(name, value));
    failed(cloudformation("Update", &login).await, "The database's user may not do this");
    let wrong = login.with("POSTGRES_PASSWORD", "another");
    failed(cloudformation("Update", &wrong).await, "password authentication failed");
    // The roles follow each deployment.
    database.execute("ALTER TABLE envs RENAME TO old_envs; CREATE TABLE envs (LIKE old_envs INCLUDING ALL)").await;
    let roles = env.with("POSTGRES_ROLES", database.role(""));
    succeeded(cloudformation("Update", &roles).await, 1);
    let granted = sqlx::query_scalar("SELECT has_column_privilege($1, 'envs', 'namespace', 'SELECT')");
    let granted: bool = granted.bind(database.role("environments")).fetch_one(&database.pool).await.unwrap();
    assert!(granted);
}
