//! Setup that many tests share.

use serde_json::{Value, json};

use crate::support::operation::RESULT;
use crate::support::{App, AppBuilder, Call, Key, Stored, agreement_id, caller, owner, workflow};

/// A start by Provider, of a fresh agreement and owner.
pub fn start(app: &App, key: &Key) -> Call {
    start_with(app, key, |_| {})
}

/// A start with a workflow that differs from the sample.
pub fn start_with(app: &App, key: &Key, change: impl FnOnce(&mut Value)) -> Call {
    let mut workflow = workflow::sample();
    change(&mut workflow);
    caller::provider(key).start(&app.namespace, &agreement_id(), &owner(), workflow)
}

/// A job that Provider has started.
pub struct Started {
    pub key: Key,
    pub owner: String,
    pub agreement_id: String,
    pub job_id: String,
    /// The status object that the start was answered with.
    pub status: Value,
}

/// Starts a job as Provider.
pub async fn started(app: &App) -> Started {
    started_by(app, Key::new()).await
}

/// Starts a job as Provider, with a certain key.
pub async fn started_by(app: &App, key: Key) -> Started {
    let call = start(app, &key);
    let (owner, agreement_id) = (call.text("owner"), call.text("agreementId"));
    let status = app.send(call).await.ok()[0].clone();
    let job_id = status["jobId"].as_str().unwrap().to_owned();
    Started { key, owner, agreement_id, job_id, status }
}

/// The status object of a row that holds the sample workflow.
pub fn status_of(stored: &Stored) -> Value {
    json!({
        "agreementId": stored.agreement_id,
        "jobId": stored.job_id,
        "owner": stored.owner,
        "status": stored.status,
        "statusText": stored.status_text,
        "dateCreated": format!("{:.6}", stored.created),
        "dateFinished": stored.finished.map(|finished| format!("{finished:.6}")),
        "results": "",
        "stopreq": stored.stopreq,
        "removed": stored.removed,
        "algoDID": "did:op:5a1f",
        "inputDID": ["did:op:87bd"]
    })
}

/// The clock, in seconds since the epoch.
pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// The ids of the jobs in an answer, in its order.
pub fn job_ids(answer: &Value) -> Vec<&str> {
    answer.as_array().unwrap().iter().map(|job| job["jobId"].as_str().unwrap()).collect()
}

/// Serves a file at every path, until the test's end.
pub struct Origin {
    /// Where, without a slash at the end.
    pub url: String,
}

impl Origin {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().fallback(async || RESULT);
        tokio::spawn(async move { axum::serve(listener, router.into_make_service()).await.unwrap() });
        Self { url }
    }

    /// Lets the service fetch results from here.
    pub fn allowed(&self, app: AppBuilder) -> AppBuilder {
        app.var("RESULT_HOSTS_ALLOWED", json!([self.url.trim_start_matches("http://")]).to_string())
    }
}
