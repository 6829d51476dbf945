//! WorkFlow objects: registration, status sync, unknown and old objects.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use operator_service::kubernetes::WorkFlow;
use serde_json::{Value, json};

use crate::fixture::{Fixture, NOBODY, count, of_job};
use crate::jobs::now;
use crate::support::{App, Key, Stored, agreement_id, caller, owner, workflow};

#[tokio::test]
async fn a_job_that_could_not_be_registered_is_registered_later() {
    let fixture = Fixture::start().await;
    let down = App::builder()
        .database(fixture.app.database.clone())
        .cluster(fixture.app.cluster.clone())
        .kubeconfig(NOBODY)
        .start()
        .await;
    let (owner, agreement) = (owner(), agreement_id());
    let key = Key::new();
    let start = caller::provider(&key).start(&fixture.app.namespace, &agreement, &owner, workflow::sample());
    let job_id = down.send(start).await.ok()[0]["jobId"].as_str().unwrap().to_owned();
    assert!(fixture.app.cluster.workflow(&fixture.app.namespace, &job_id).await.is_none());

    let damaged = fixture.row(Stored { workflow: Some("[]".into()), ..Stored::default() }).await;
    fixture.app.database.execute("UPDATE jobs SET registered = false").await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "registrations"), [2, 1, 1, 0], "{report:#}");
    assert_eq!(of_job(&report, &damaged), [("registrations".to_owned(), "failed".to_owned())]);
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job_id).await.unwrap();
    assert_eq!((&object["spec"]["owner"], &object["spec"]["agreementId"]), (&json!(owner), &json!(agreement)));
    let document = fixture.app.database.job(&job_id).await.unwrap()["workflow"].as_str().unwrap().to_owned();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!(object["spec"]["metadata"], document["spec"]["metadata"]);
    assert_eq!(object["status"]["statusText"], "Warming up");
    let again = fixture.sweep().await;
    assert_eq!(count(&again, "registrations"), [0; 4], "the damaged one is left alone for a while: {again:#}");
}

#[tokio::test]
async fn the_status_of_each_object_follows_the_database() {
    let fixture = Fixture::start().await;
    let job = fixture.job(Stored::default()).await;
    let status =
        async || fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap()["status"].take();
    fixture.sweep().await;
    assert_eq!(status().await, json!({ "status": 1, "statusText": "Warming up" }));
    fixture.step(&job.job_id, "algorithm", 1).await;
    let update = "UPDATE jobs SET status = 40, statusText = 'Running algorithm' WHERE workflowId = $1";
    sqlx::query(update).bind(&job.job_id).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    assert_eq!(status().await, json!({ "status": 40, "statusText": "Running algorithm" }));
    let update = "UPDATE jobs SET status = 70, statusText = 'Job finished', reason = 'why', \
                  dateFinished = NOW() WHERE workflowId = $1";
    sqlx::query(update).bind(&job.job_id).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    let expected = json!({
        "status": 70, "statusText": "Job finished", "reason": "why",
        "dateFinished": fixture.status(&job).await["dateFinished"]
    });
    assert_eq!(status().await, expected);
    assert_eq!(count(&fixture.sweep().await, "statusSync"), [0; 4]);
    // Without an object, nothing is left to sync.
    let none = fixture.row(Stored::default()).await;
    assert_eq!(count(&fixture.sweep().await, "statusSync"), [1, 1, 0, 0]);
    assert_eq!(fixture.objects(&none).await, Vec::<String>::new());
}

#[tokio::test]
async fn the_status_is_synced_for_a_job_that_was_finished_before_its_registration_was_recorded() {
    let fixture = Fixture::start().await;
    // The process that registered it died before it recorded that.
    let job = fixture.job(Stored { stopreq: Some(1), ..Stored::default() }).await;
    fixture.app.database.execute("UPDATE jobs SET registered = false").await;
    fixture.sweep().await;
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap();
    assert_eq!(object["status"]["status"], 70);
    assert_eq!(object["status"]["reason"], "The job was stopped before it was started.");
}

#[tokio::test]
async fn unknown_objects_and_those_of_old_jobs_are_deleted() {
    let fixture = Fixture::builder().var("REAP_UNKNOWN_GRACE", 0).var("WORKFLOW_TTL", 1000).start().await;
    let (namespace, cluster) = (fixture.app.namespace.as_str(), &fixture.app.cluster);
    let waiting = fixture.job(Stored::default()).await;
    let fresh = fixture.job(Stored { finished: Some(now() - 900.0), ..Stored::finished() }).await;
    let old = fixture.job(Stored { finished: Some(now() - 1100.0), ..Stored::finished() }).await;
    let others = "00000000000000000000000000000001";
    cluster.make_workflow(namespace, others).await;
    let unknown = "00000000000000000000000000000002";
    let held = "00000000000000000000000000000003";
    for (name, finalizers) in [(unknown, json!([])), (held, json!(["example.org/hold"]))] {
        let object: WorkFlow = serde_json::from_value(json!({
            "apiVersion": "oceanprotocol.com/v1alpha", "kind": "WorkFlow",
            "metadata": { "name": name, "finalizers": finalizers, "labels": BTreeMap::from([
                ("workflow", name), ("app.kubernetes.io/managed-by", "operator-service")
            ]) },
            "spec": { "metadata": { "stages": [] } }
        }))
        .unwrap();
        Api::namespaced(cluster.client.clone(), namespace).create(&PostParams::default(), &object).await.unwrap();
    }
    let later = fixture.another_reaper(&[]).await;
    let report = later.sweep(false, Duration::from_secs(60)).await.unwrap();
    assert_eq!(serde_json::to_value(&report).unwrap()["kinds"]["unknownObjects"], Value::Null, "each has its grace");

    // The cluster's timestamps are whole seconds.
    let made = tokio::time::Instant::now();
    let report = crate::support::eventually("unknownObjects", Duration::from_secs(10), async || {
        let report = fixture.sweep().await;
        (count(&report, "unknownObjects")[0] > 0).then_some(report)
    })
    .await;
    assert!(made.elapsed() < Duration::from_secs(10));
    assert_eq!(count(&report, "unknownObjects"), [2, 2, 0, 0], "{report:#}");
    let entries = report["jobs"].as_array().unwrap();
    let of_held = entries.iter().find(|entry| entry["job"] == held).unwrap();
    assert_eq!(of_held["reason"], format!("held by others' finalizers: WorkFlow {held} (example.org/hold)"));
    let exists = async |name: &str| cluster.workflow(namespace, name).await.is_some();
    assert!(!exists(unknown).await && !exists(&old.job_id).await);
    assert!(exists(others).await && exists(&fresh.job_id).await && exists(&waiting.job_id).await);
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let api: Api<WorkFlow> = Api::namespaced(cluster.client.clone(), namespace);
    api.patch(held, &PatchParams::default(), &patch).await.unwrap();
    assert!(!exists(held).await);
}

#[tokio::test]
async fn kubectl_shows_the_status_and_the_reason() {
    let fixture = Fixture::start().await;
    let job = fixture.job(Stored { reason: Some("It ran out of memory.".into()), ..Stored::running() }).await;
    fixture.step(&job.job_id, "publish", 1).await;
    fixture.sweep().await;
    if !fixture.app.cluster.is_embedded() {
        return crate::support::left_out("the table is asked for at the embedded cluster's own address");
    }
    let url = format!(
        "{}/apis/oceanprotocol.com/v1alpha/namespaces/{}/workflows",
        fixture.app.cluster.stand_in().url(),
        fixture.app.namespace
    );
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let answer = fixture.app.client.get(url).header("accept", accept).send().await.unwrap();
    let table: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    let names: Vec<_> = table["columnDefinitions"].as_array().unwrap().iter().map(|it| it["name"].clone()).collect();
    assert_eq!(names, ["Name", "Status", "Reason", "Owner", "Agreement", "Age"]);
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!(job.job_id), json!("Running algorithm"), json!("It ran out of memory.")]);
}
