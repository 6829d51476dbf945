//! Jobs in the states that tests need.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::fixture::{Fixture, ago, container};
use crate::support::{Stored, workflow};

pub const OUTPUTS: &str =
    r#"[{"filename": "out.txt", "filesize": 5, "type": "output", "url": "https://example.org/out.txt"}]"#;

pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A stored workflow with this `storageExpiry`, in seconds.
pub fn kept_for(expiry: Value) -> Option<String> {
    let mut document = workflow::document("0123", "ocean-compute");
    document["spec"]["metadata"]["stages"][0]["compute"]["storageExpiry"] = expiry;
    Some(document.to_string())
}

/// A job that finished `seconds` ago with this status, with all the objects of its engine.
pub async fn finished(fixture: &Fixture, status: i32, seconds: f64, job: Stored) -> Stored {
    let job = Stored { status: Some(status), finished: Some(now() - seconds), ..job };
    let job = fixture.job(job).await;
    fixture.app.cluster.engine_objects(&fixture.app.namespace, &job.job_id).await;
    job
}

pub fn terminated(component: &'static str, why: &str, code: i32, seconds: i64) -> Value {
    json!({
        "phase": "Failed", "startTime": ago(seconds + 10),
        "containerStatuses": [container(component, json!({ "terminated": {
            "reason": why, "exitCode": code, "startedAt": ago(seconds + 10), "finishedAt": ago(seconds)
        }}))]
    })
}

/// A job without a WorkFlow object.
pub async fn unregistered(fixture: &Fixture) -> Stored {
    let job = fixture.row(Stored::default()).await;
    fixture.execute("UPDATE jobs SET registered = false WHERE workflowid = $1", &job).await;
    job
}

/// Records that a sweep found no step of a job, `seconds` ago.
pub async fn absent(fixture: &Fixture, job: &Stored, seconds: i64) {
    fixture.execute("UPDATE reaperjobs SET seen = 'absent' WHERE workflowid = $1", job).await;
    fixture.passed(&job.job_id, "seensince", seconds).await;
}

/// A running job that has had no step for longer than REAP_ABSENT_GRACE.
pub async fn orphan(fixture: &Fixture) -> Stored {
    let job = fixture.job(Stored::running()).await;
    absent(fixture, &job, 301).await;
    job
}

/// A finished job whose outputs have expired if STORAGE_EXPIRY is below 100.
pub async fn expired(fixture: &Fixture) -> Stored {
    let job = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    finished(fixture, 70, 100.0, job).await
}

/// A job whose algorithm ran out of memory.
pub async fn stuck(fixture: &Fixture) -> Stored {
    let job = fixture.job(Stored::running()).await;
    fixture.app.cluster.engine_job(&fixture.app.namespace, &job.job_id, "algorithm").await;
    let pod = fixture.pod(&job.job_id, "algorithm").await;
    fixture.pod_status(&pod, terminated("algorithm", "OOMKilled", 137, 100)).await;
    fixture.job_failed(&job.job_id, "algorithm").await;
    job
}

pub const RULES: [(&str, &str); 2] = [("ALGO_POD_TIMEOUT", "3600"), ("STORAGE_EXPIRY", "10")];

/// One job for each of five duties.
pub async fn one_of_each(fixture: &Fixture) -> Vec<Stored> {
    vec![
        fixture.running(4000).await,
        stuck(fixture).await,
        expired(fixture).await,
        orphan(fixture).await,
        unregistered(fixture).await,
    ]
}

/// The state of jobs in the database and the cluster, without what differs from one job to the next.
pub async fn end_state(fixture: &Fixture, jobs: &[Stored]) -> Vec<Value> {
    let mut states = Vec::new();
    for job in jobs {
        let row = fixture.row_of(job).await;
        let columns = ["status", "statustext", "stopreq", "removed", "reason", "outputsurl", "registered", "algodid"];
        let mut columns: BTreeMap<_, _> = columns.iter().map(|name| (*name, row[*name].clone())).collect();
        let state = fixture.state_of(job).await;
        for name in ["requeues", "closed", "objectdue", "failures"] {
            columns.insert(name, state[name].clone());
        }
        columns.insert("expired", json!(fixture.is_expired(job).await));
        let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await;
        let said = object.map(|mut object| {
            object["status"].as_object_mut().map(|status| status.remove("dateFinished"));
            object["status"].take()
        });
        states.push(json!([columns, row["datefinished"].is_null(), fixture.objects(job).await, said]));
    }
    states
}
