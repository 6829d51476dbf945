//! The function `migrate` behind a runtime API.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Executor;

use crate::child::Env;
use crate::runtime_api::Function;
use crate::support::{ClosedPort, Proxy, TestDatabase};

const MIGRATE: &str = env!("CARGO_BIN_EXE_migrate");

/// The event of a deployment.
fn deployment() -> Value {
    json!({ "source": "operator-service.deployment" })
}

/// What it returns.
fn up_to_date(summarized: u64) -> Value {
    json!({ "schema": "up to date", "oldJobs": { "summarizedJobs": summarized, "complete": true } })
}

#[tokio::test]
async fn migrate_brings_the_schema_up_to_date_and_is_idempotent() {
    let database = TestDatabase::empty().await;
    let function = Function::start(MIGRATE, &Env::of(database.variables())).await;
    for event in [deployment(), deployment(), json!({})] {
        assert_eq!(function.invoke(event).json().await, Ok(up_to_date(0)));
        assert_eq!(database.count("jobs").await, 0);
    }
    let output = function.process.output();
    let lines: Vec<Value> = output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let done: Vec<&Value> = lines.iter().filter(|line| line["message"] == "done").collect();
    assert_eq!(done.iter().map(|line| &line["ColdStarts"]).collect::<Vec<_>>(), [1.0, 0.0, 0.0], "{output}");
    assert!(done.iter().all(|line| line["request_id"].is_string() && line["FunctionName"] == "function"), "{output}");
}

#[tokio::test]
async fn migrate_reports_how_far_it_came_and_goes_on_the_next_time() {
    let database = TestDatabase::of_the_python_service(10).await;
    let mut other = database.connect().await;
    other.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM jobs").await.unwrap();
    let env = Env::of(database.variables());
    let function = Function::start_with(MIGRATE, &[], &env, Duration::from_secs(12)).await;
    let failed = function.invoke(deployment()).json().await.unwrap_err();
    let message = failed["errorMessage"].as_str().unwrap();
    assert!(message.contains("(building index 1 of ") && message.contains("deploy again"), "{message}");
    other.execute("COMMIT").await.unwrap();
    let function = Function::start(MIGRATE, &env).await;
    assert_eq!(function.invoke(deployment()).json().await, Ok(up_to_date(5009)));
}

#[tokio::test]
async fn migrate_reports_why_a_deployment_fails() {
    let database = TestDatabase::empty().await;
    let closed = ClosedPort::new();
    let unreachable = Env::of(database.variables())
        .with("POSTGRES_PORT", closed.to_string())
        .with("POSTGRES_PASSWORD", "the-password");
    let refused =
        Env::of(database.variables()).with("POSTGRES_USER", "nobody").with("POSTGRES_PASSWORD", "the-password");
    // There is no time for a second attempt.
    for (env, why) in [(unreachable, "Connection refused"), (refused, "\"nobody\"")] {
        let mut function = Function::start(MIGRATE, &env).await;
        for _ in 0..2 {
            let failed = function.invoke(deployment()).json().await.unwrap_err();
            let message = failed["errorMessage"].as_str().unwrap();
            assert!(message.starts_with("The database is not available") && message.contains(why), "{message}");
            assert_eq!(message.matches(why).count(), 1, "{message}");
            assert!(failed["errorType"].is_string(), "{failed}");
        }
        assert!(function.process.is_running());
        let output = function.process.output();
        assert!(output.contains(r#""message":"failed""#) && !output.contains("the-password"), "{output}");
    }
}

/// Resources that the same deployment has just created may not be reachable at once.
#[tokio::test]
async fn migrate_retries_until_the_database_is_reachable() {
    let database = TestDatabase::empty().await;
    let proxy = Proxy::to(database.address().await).await;
    proxy.cut();
    let env =
        Env::of(database.variables()).with("POSTGRES_HOST", "127.0.0.1").with("POSTGRES_PORT", proxy.port.to_string());
    let mut function = Function::start_with(MIGRATE, &[], &env, Duration::from_secs(300)).await;
    let reply = function.invoke(deployment());
    function.process.line("is retried").await;
    proxy.open();
    assert_eq!(reply.json().await, Ok(up_to_date(0)));
}
