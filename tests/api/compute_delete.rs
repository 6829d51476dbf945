//! DELETE OP/compute

use reqwest::Method;
use serde_json::json;

use crate::given::{now, started, status_of};
use crate::support::{App, Call, Cluster, Key, Stored, caller, owner};

const EVERYTHING: [&str; 7] = [
    "ConfigMap",
    "Job/algorithm-job",
    "Job/configure-job",
    "Job/publish-job",
    "PersistentVolumeClaim/adminlogs",
    "PersistentVolumeClaim/data",
    "WorkFlow",
];

#[tokio::test]
async fn missing_names_are_reported_in_the_order_of_the_contract() {
    let app = App::start().await;
    let key = Key::new();
    let whole = caller::provider(&key).delete(&owner(), None);
    let mut call = Call::new(Method::DELETE, "compute").with("something", "else");
    for name in ["owner", "providerSignature", "nonce"] {
        app.send(call.clone()).await.is_error(400, &format!(r#""{name}" is required in the call to DELETE:/compute"#));
        call = call.with(name, whole.parameter(name));
    }
    assert_eq!(app.send(call).await.ok(), json!([]));
}

#[tokio::test]
async fn delete_marks_jobs_as_removed_and_stops_unfinished_ones() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let owner = owner();
    let of = |job: Stored, created: f64| Stored {
        owner: Some(owner.clone()),
        provider: Some(key.address.clone()),
        created,
        ..job
    };
    let running = of(Stored::running(), 1_795_300_002.0).insert(&app.database).await;
    let finished = of(Stored::finished(), 1_795_300_001.0).insert(&app.database).await;
    let others = Stored { provider: Some(Key::new().address), ..of(Stored::finished(), 1_795_300_000.0) };
    let others = others.insert(&app.database).await;

    let answer = app.send(caller::provider(&key).delete(&owner, None)).await.ok();
    let mut expected = json!([status_of(&running), status_of(&finished), status_of(&others)]);
    expected[0]["stopreq"] = json!(1);
    expected[0]["removed"] = json!(1);
    expected[1]["removed"] = json!(1);
    assert_eq!(answer, expected);
    // A second deletion changes nothing.
    assert_eq!(app.send(caller::provider(&key).delete(&owner, None)).await.ok(), expected);
}

#[tokio::test]
async fn brizo_can_delete_jobs() {
    let key = Key::new();
    let app = App::builder().var("SIGNATURE_REQUIRED", "1").var("ALLOWED_PROVIDERS", key.allowed()).start().await;
    let job = Stored { provider: Some(key.address.clone()), ..Stored::finished() }.insert(&app.database).await;
    let call = caller::brizo(&key).delete(job.owner.as_ref().unwrap(), Some(&job.job_id), Some(&job.agreement_id));
    assert_eq!(app.send(call).await.ok()[0]["removed"], 1);
}

#[tokio::test]
async fn deleting_a_finished_job_does_not_change_its_end() {
    let app = App::start().await;
    let job = Stored { status: Some(31), status_text: Some("Data provisioning failed".into()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let mut before = app.database.job(&job.job_id).await.unwrap();
    app.send(caller::provider(&Key::new()).delete(job.owner.as_ref().unwrap(), None)).await.ok();
    before["removed"] = json!(1);
    assert_eq!(app.database.job(&job.job_id).await.unwrap(), before);
}

#[tokio::test]
async fn results_of_a_deleted_job_have_expired() {
    let app = App::start().await;
    let key = Key::new();
    let outputs = json!([{ "filename": "a", "filesize": 1, "type": "output", "url": "http://127.0.0.1:1/a" }]);
    let job = Stored { outputs: Some(outputs.to_string()), provider: Some(key.address.clone()), ..Stored::finished() };
    let job = job.insert(&app.database).await;
    let owner = job.owner.unwrap();
    app.send(caller::provider(&key).delete(&owner, Some(&job.job_id))).await.ok();
    app.send(caller::provider(&key).result(&owner, &job.job_id, 0))
        .await
        .is_error(404, &format!("Results of job {} have expired", job.job_id));
}

/// Starts a job, creates its engine's objects, changes its row and deletes it. Returns what is left in the cluster.
async fn left_after_delete(app: &App, status: i32, finished_ago: Option<f64>) -> Vec<String> {
    let job = started(app).await;
    app.cluster.engine_objects(&app.namespace, &job.job_id).await;
    assert_eq!(app.cluster.objects_of(&app.namespace, &job.job_id).await, EVERYTHING);
    // The first sets it to the time of the statement.
    for statement in [
        "UPDATE jobs SET status = $2, datefinished = to_timestamp($3) AT TIME ZONE 'UTC' WHERE workflowid = $1",
        "UPDATE jobs SET datefinished = to_timestamp($3) AT TIME ZONE 'UTC' WHERE workflowid = $1 AND status = $2",
    ] {
        sqlx::query(statement)
            .bind(&job.job_id)
            .bind(status)
            .bind(finished_ago.map(|ago| now() - ago))
            .execute(&app.database.pool)
            .await
            .unwrap();
    }
    let answer = app.send(caller::provider(&job.key).delete(&job.owner, Some(&job.job_id))).await.ok();
    assert_eq!(answer[0]["removed"], 1);
    assert_eq!(answer[0]["stopreq"], i64::from(finished_ago.is_none()));
    app.cluster.objects_of(&app.namespace, &job.job_id).await
}

#[tokio::test]
async fn objects_of_a_settled_job_are_deleted_at_once() {
    let app = App::start().await;
    for status in [31, 32, 70] {
        assert_eq!(left_after_delete(&app, status, Some(1.0)).await, [""; 0], "{status}");
    }
    // An hour after its end any other, too.
    for status in [20, 40, 50, 60] {
        assert_eq!(left_after_delete(&app, status, Some(3700.0)).await, [""; 0], "{status}");
    }
}

#[tokio::test]
async fn objects_of_a_finished_job_that_is_not_settled_are_kept() {
    let app = App::start().await;
    for status in [20, 40, 50, 60] {
        assert_eq!(left_after_delete(&app, status, Some(60.0)).await, EVERYTHING, "{status}");
    }
}

#[tokio::test]
async fn an_unfinished_job_is_stopped_and_its_other_objects_are_kept() {
    let app = App::start().await;
    let rest: Vec<&str> = EVERYTHING.into_iter().filter(|name| *name != "Job/algorithm-job").collect();
    for status in [20, 40, 70] {
        assert_eq!(left_after_delete(&app, status, None).await, rest, "{status}");
    }
}

#[tokio::test]
async fn objects_of_other_jobs_are_kept() {
    let app = App::start().await;
    let [first, second] = [started(&app).await, started(&app).await];
    for job in [&first, &second] {
        app.cluster.engine_objects(&app.namespace, &job.job_id).await;
    }
    app.database.execute("UPDATE jobs SET status = 70, datefinished = now() AT TIME ZONE 'UTC'").await;
    app.send(caller::provider(&first.key).delete(&first.owner, Some(&first.job_id))).await.ok();
    assert_eq!(app.cluster.objects_of(&app.namespace, &first.job_id).await, [""; 0]);
    assert_eq!(app.cluster.objects_of(&app.namespace, &second.job_id).await, EVERYTHING);
}

#[tokio::test]
async fn objects_that_are_already_gone_are_not_an_error() {
    let app = App::start().await;
    // Nothing in the cluster, and not even the namespace.
    for namespace in [app.namespace.clone(), "never-made".to_owned()] {
        let job = Stored { namespace: Some(namespace), ..Stored::finished() }.insert(&app.database).await;
        let answer = app.send(caller::provider(&Key::new()).delete(job.owner.as_ref().unwrap(), None)).await.ok();
        assert_eq!(answer[0]["removed"], 1);
    }
}

#[tokio::test]
async fn an_object_that_cannot_be_deleted_does_not_prevent_deleting_the_others() {
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    let faults = app.cluster.stand_in().faults();
    let refused = fake_kubernetes::Match::any().verb("delete").resource("persistentvolumeclaims");
    faults.answer(refused, 500);
    assert_eq!(
        left_after_delete(&app, 70, Some(1.0)).await,
        ["PersistentVolumeClaim/adminlogs", "PersistentVolumeClaim/data"]
    );
}

#[tokio::test]
async fn jobs_are_marked_while_the_cluster_is_down() {
    let app = App::builder().cluster(Cluster::embedded().await).start().await;
    app.cluster.stand_in().faults().refuse_connections();
    let job = Stored { namespace: Some(app.namespace.clone()), ..Stored::finished() }.insert(&app.database).await;
    let answer = app.send(caller::provider(&Key::new()).delete(job.owner.as_ref().unwrap(), None)).await.ok();
    assert_eq!(answer[0]["removed"], 1);
}

#[tokio::test]
async fn many_jobs_are_deleted_in_one_request() {
    let app = App::start().await;
    let owner = owner();
    for _ in 0..60 {
        let job = Stored { owner: Some(owner.clone()), namespace: Some(app.namespace.clone()), ..Stored::finished() };
        job.insert(&app.database).await;
    }
    let answer = app.send(caller::provider(&Key::new()).delete(&owner, None)).await.ok();
    assert_eq!(answer.as_array().unwrap().len(), 60);
    assert!(answer.as_array().unwrap().iter().all(|job| job["removed"] == 1));
}
