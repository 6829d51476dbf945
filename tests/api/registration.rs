//! The registration of accepted jobs in the cluster, also while the cluster fails.

use std::time::{Duration, Instant};

use fake_kubernetes::Match;
use operator_service::domain::{JobId, Namespace};
use operator_service::kubernetes::WorkFlowSpec;
use serde_json::{Value, json};

use crate::given::started;
use crate::support::{App, Call, Cluster, Key, agreement_id, caller, owner, workflow};

#[tokio::test]
async fn the_object_has_the_completed_workflow_and_no_secret() {
    let app = App::start().await;
    let job = started(&app).await;
    let mut object = app.cluster.workflow(&app.namespace, &job.job_id).await.unwrap();
    let row = app.database.job(&job.job_id).await.unwrap();
    let document: Value = serde_json::from_str(row["workflow"].as_str().unwrap()).unwrap();
    assert_eq!(row["registered"], true);

    // The cluster's own.
    for name in ["creationTimestamp", "generation", "managedFields", "resourceVersion", "uid"] {
        object["metadata"].as_object_mut().unwrap().shift_remove(name);
    }
    let expected = json!({
        "apiVersion": "oceanprotocol.com/v1alpha",
        "kind": "WorkFlow",
        "metadata": { "name": job.job_id, "namespace": app.namespace, "labels": { "workflow": job.job_id, "app.kubernetes.io/managed-by": "operator-service" } },
        "spec": { "owner": job.owner, "agreementId": job.agreement_id, "metadata": document["spec"]["metadata"] }
    });
    assert_eq!(object, expected);
    let secret = document["metadata"]["secret"].as_str().unwrap();
    assert!(!object.to_string().contains(secret));
}

#[tokio::test]
async fn unknown_fields_of_the_workflow_are_kept_in_the_cluster() {
    let app = App::start().await;
    let key = Key::new();
    let mut workflow = workflow::sample();
    workflow["custom"] = json!({ "a": [1, "b", { "c": null }] });
    workflow["stages"][0]["more"] = json!([[1]]);
    workflow["stages"][0]["input"][0]["remote"] = json!({ "headers": [{ "x": "y" }] });
    workflow["stages"][0]["algorithm"]["envs"] = json!({ "A": "käse 😀" });
    workflow["stages"][0]["output"]["metadata"] = json!({ "deep": { "er": true } });
    let call = caller::provider(&key).start(&app.namespace, &agreement_id(), &owner(), workflow.clone());
    let job = app.send(call).await.ok()[0].clone();
    let object = app.cluster.workflow(&app.namespace, job["jobId"].as_str().unwrap()).await.unwrap();
    let metadata = &object["spec"]["metadata"];
    assert_eq!(metadata["custom"], workflow["custom"]);
    for field in ["/stages/0/more", "/stages/0/input/0/remote", "/stages/0/algorithm/envs", "/stages/0/output/metadata"]
    {
        assert_eq!(metadata.pointer(field), workflow.pointer(field), "{field}");
    }
}

#[tokio::test]
async fn brizos_jobs_are_registered_in_the_default_namespace() {
    let app = App::builder().unannounced().start().await;
    let call = caller::brizo(&Key::new()).start(&agreement_id(), &owner(), workflow::sample());
    let job = app.send(call).await.ok()[0].clone();
    assert!(app.cluster.workflow(&app.namespace, job["jobId"].as_str().unwrap()).await.is_some());
}

#[tokio::test]
async fn jobs_are_registered_in_the_environment_they_name() {
    let app = App::start().await;
    let elsewhere = app.cluster.another_namespace().await;
    app.database.announce(&elsewhere, "{}").await;
    let call = caller::provider(&Key::new()).start(&elsewhere, &agreement_id(), &owner(), workflow::sample());
    let job = app.send(call).await.ok()[0].clone();
    let job_id = job["jobId"].as_str().unwrap();
    assert!(app.cluster.workflow(&elsewhere, job_id).await.is_some());
    assert!(app.cluster.workflow(&app.namespace, job_id).await.is_none());
    assert_eq!(app.database.job(job_id).await.unwrap()["namespace"], elsewhere.as_str());
}

/// Starts a job while the cluster fails: it is accepted, and marked as not registered. Returns its id.
async fn accepted_but_not_registered(app: &App) -> String {
    let job = tokio::time::timeout(Duration::from_secs(60), started(app)).await.expect("the start is not answered");
    assert_eq!(job.status["status"], 1);
    let row = app.database.job(&job.job_id).await.unwrap();
    assert_eq!(row["registered"], false);
    let found = app.send(Call::get("compute").with("jobId", job.job_id.clone())).await.ok();
    assert_eq!(found, json!([job.status]));
    job.job_id
}

#[tokio::test]
async fn a_job_is_accepted_while_the_cluster_is_down() {
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    app.cluster.stand_in().faults().refuse_connections();
    let first = accepted_but_not_registered(&app).await;
    // Jobs that are started after the outage are registered at once.
    app.cluster.stand_in().faults().clear();
    let second = started(&app).await;
    assert_eq!(app.database.job(&second.job_id).await.unwrap()["registered"], true);
    assert_eq!(app.database.job(&first).await.unwrap()["registered"], false);
}

#[tokio::test]
async fn a_job_is_accepted_in_bounded_time_while_the_cluster_is_slow() {
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    const DELAY: Duration = Duration::from_secs(60);
    app.cluster.stand_in().faults().delay(Match::any(), DELAY);
    let begun = Instant::now();
    accepted_but_not_registered(&app).await;
    assert!(begun.elapsed() < DELAY / 2, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_job_is_accepted_while_the_cluster_refuses() {
    for status in [401, 403, 422, 429, 500, 503] {
        let app = App::builder().cluster(Cluster::embedded().await).start().await;
        app.cluster.stand_in().faults().answer(Match::any().resource("workflows").verb("create"), status);
        accepted_but_not_registered(&app).await;
    }
}

#[tokio::test]
async fn a_job_is_accepted_if_the_connection_to_the_cluster_breaks() {
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    app.cluster.stand_in().faults().drop_connection(Match::any());
    accepted_but_not_registered(&app).await;
}

#[tokio::test]
async fn a_job_is_accepted_if_its_namespace_is_missing() {
    let app = App::start().await;
    app.database.announce("never-made", "{}").await;
    let call = caller::provider(&Key::new()).start("never-made", &agreement_id(), &owner(), workflow::sample());
    let job = app.send(call).await.ok()[0].clone();
    assert_eq!(app.database.job(job["jobId"].as_str().unwrap()).await.unwrap()["registered"], false);
}

#[tokio::test]
async fn a_job_whose_object_exists_already_is_registered() {
    let cluster = Cluster::start().await;
    let (service, job_id) = (cluster.service().await, JobId::random());
    let namespace = Namespace::stored(&cluster.namespace);
    let spec = |owner: &str| WorkFlowSpec {
        owner: Some(owner.to_owned()),
        agreement_id: None,
        metadata: workflow::sample().as_object().unwrap().clone(),
    };
    service.create_workflow(&job_id, &namespace, spec("first")).await.unwrap();
    service.create_workflow(&job_id, &namespace, spec("second")).await.unwrap();
    let object = cluster.workflow(&cluster.namespace, job_id.as_str()).await.unwrap();
    assert_eq!(object["spec"]["owner"], "first");
}

#[tokio::test]
async fn a_job_is_accepted_in_bounded_time_if_the_cluster_does_not_answer() {
    // A listener that accepts connections and never answers.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let cluster = Cluster::embedded().await;
    let silent =
        cluster.kubeconfig().replace(&cluster.stand_in().url(), &format!("http://{}", listener.local_addr().unwrap()));
    let app = App::builder().cluster(cluster).kubeconfig(&silent).start().await;
    accepted_but_not_registered(&app).await;
    let down = silent.replace(&listener.local_addr().unwrap().port().to_string(), "1");
    let app = app.another_process().kubeconfig(&down).start().await;
    accepted_but_not_registered(&app).await;
}

#[tokio::test]
async fn a_job_is_accepted_if_its_environment_is_not_a_valid_namespace() {
    let app = App::start().await;
    for environment in
        [format!("nothing/../{}", app.namespace), "a b".to_owned(), "Upper".to_owned(), "a/b?c#d".to_owned()]
    {
        app.database.announce(&environment, "{}").await;
        let call = caller::provider(&Key::new()).start(&environment, &agreement_id(), &owner(), workflow::sample());
        let job = app.send(call).await.ok()[0].clone();
        let job_id = job["jobId"].as_str().unwrap();
        assert_eq!(app.database.job(job_id).await.unwrap()["registered"], false, "{environment}");
        assert!(app.cluster.workflow(&app.namespace, job_id).await.is_none(), "{environment}");
    }
}
