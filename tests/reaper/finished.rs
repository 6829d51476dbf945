//! Finished jobs, and where book and cluster meet: leftovers, expiry, registration, mirrors, strays, nonces.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use operator_service::kubernetes::WorkFlow;
use operator_service::reaper::Duty;
use serde_json::{Value, json};

use crate::fixture::{Fixture, count, of_job};
use crate::support::{App, Key, Stored, TestDatabase, agreement_id, caller, owner, workflow};

const EVERYTHING: [&str; 7] = [
    "ConfigMap",
    "Job/algorithm-job",
    "Job/configure-job",
    "Job/publish-job",
    "PersistentVolumeClaim/adminlogs",
    "PersistentVolumeClaim/data",
    "WorkFlow",
];

/// A job that finished so many seconds ago, with this status, and all that its engine made.
pub async fn finished(fixture: &Fixture, status: i32, seconds: f64, job: Stored) -> Stored {
    let job = Stored { status: Some(status), finished: Some(now() - seconds), ..job };
    let job = fixture.job(job).await;
    fixture.app.cluster.engine_objects(&fixture.app.namespace, &job.job_id).await;
    job
}

pub fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}

/// A stored workflow whose outputs are kept for so many seconds.
pub fn kept_for(expiry: Value) -> Option<String> {
    let mut document = workflow::document("0123", "ocean-compute");
    document["spec"]["metadata"]["stages"][0]["compute"]["storageExpiry"] = expiry;
    Some(document.to_string())
}

pub const OUTPUTS: &str =
    r#"[{"filename": "out.txt", "filesize": 5, "type": "output", "url": "https://example.org/out.txt"}]"#;

#[tokio::test]
async fn what_the_engine_should_have_removed_is_removed_once_it_is_done_with_it() {
    let fixture = Fixture::start().await;
    let done = finished(&fixture, 70, 1.0, Stored::finished()).await;
    let no_data = finished(&fixture, 31, 1.0, Stored::finished()).await;
    let publishing = finished(&fixture, 60, 3500.0, Stored::finished()).await;
    let crashed = finished(&fixture, 20, 3700.0, Stored::finished()).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups")[2..], [0, 0], "{report:#}");
    for job in [&done, &no_data, &crashed] {
        assert_eq!(fixture.objects(job).await, ["WorkFlow"]);
        assert_eq!(fixture.status(job).await["removed"], 0, "its results are still there");
    }
    assert_eq!(fixture.objects(&publishing).await, EVERYTHING);
    // When its hour is over.
    fixture.passed(&publishing.job_id, "datefinished", 101).await;
    fixture.passed(&publishing.job_id, "reapat", 101).await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&publishing).await, ["WorkFlow"]);
    let again = fixture.sweep().await;
    assert_eq!(count(&again, "cleanups"), [0; 4], "{again:#}");
}

#[tokio::test]
async fn an_engine_that_leaves_something_behind_later_is_cleaned_up_after_again() {
    let fixture = Fixture::start().await;
    let done = finished(&fixture, 70, 1.0, Stored::finished()).await;
    fixture.sweep().await;
    fixture.app.cluster.engine_job(&fixture.app.namespace, &done.job_id, "filter").await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&done).await, ["WorkFlow"]);
}

#[tokio::test]
async fn outputs_expire_by_their_own_time_or_the_common_one() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 1000).start().await;
    let job =
        |expiry: Value| Stored { workflow: kept_for(expiry), outputs: Some(OUTPUTS.to_owned()), ..Stored::finished() };
    let key = Key::new();
    let own = Stored { provider: Some(key.address.clone()), ..job(json!(500)) };
    let own = finished(&fixture, 70, 600.0, own).await;
    let own_not_yet = finished(&fixture, 70, 2000.0, job(json!(2600))).await;
    let never = finished(&fixture, 70, 9e8, job(json!(0))).await;
    let common = finished(&fixture, 70, 1100.0, job(Value::Null)).await;
    let common_not_yet = finished(&fixture, 70, 900.0, job(Value::Null)).await;
    let damaged = Stored { workflow: Some("{".into()), outputs: Some("{".into()), ..Stored::finished() };
    let damaged = finished(&fixture, 70, 1100.0, damaged).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [3, 3, 0, 0], "{report:#}");
    for expired in [&own, &common, &damaged] {
        assert_eq!(fixture.objects(expired).await, ["WorkFlow"]);
        assert_eq!(fixture.status(expired).await["removed"], 1);
        assert!(!fixture.row_of(expired).await.to_string().contains("https://example.org/out.txt"));
    }
    // What there was is still told, without where.
    let told = json!([{ "filename": "out.txt", "filesize": 5, "type": "output" }]);
    assert_eq!(fixture.status(&own).await["results"], told);
    let fetch = caller::provider(&key).result(own.owner.as_deref().unwrap(), &own.job_id, 0);
    let answer = fixture.app.send(fetch).await;
    answer.is_error(404, &format!("Results of job {} have expired", own.job_id));
    for kept in [&own_not_yet, &never, &common_not_yet] {
        assert_eq!(fixture.status(kept).await["removed"], 0);
        assert_eq!(fixture.row_of(kept).await["outputsurl"], OUTPUTS);
    }

    // Time passes: the one whose own time it is, and the one whose it is not.
    fixture.passed(&own_not_yet.job_id, "datefinished", 601).await;
    fixture.passed(&own_not_yet.job_id, "reapat", 601).await;
    fixture.passed(&common_not_yet.job_id, "datefinished", 101).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [2, 2, 0, 0], "{report:#}");
    // The common time may be set later.
    let sooner = fixture.another_reaper(&[("STORAGE_EXPIRY", "1")]).await;
    let unset = finished(&fixture, 70, 50.0, job(Value::Null)).await;
    sooner.sweep(false, Duration::from_secs(60)).await.unwrap();
    sooner.sweep(false, Duration::from_secs(60)).await.unwrap();
    assert_eq!(fixture.status(&unset).await["removed"], 1);
}

#[tokio::test]
async fn a_deleted_job_goes_with_its_object_when_it_is_finished() {
    let fixture = Fixture::builder().app(|app| app.var("SIGNATURE_REQUIRED", "0")).start().await;
    let running = fixture.running(10).await;
    let settled = finished(&fixture, 70, 1.0, Stored { outputs: Some(OUTPUTS.into()), ..Stored::finished() }).await;
    fixture.sweep().await;
    let key = Key::new();
    for job in [&running, &settled] {
        let call = caller::provider(&key).delete(job.owner.as_deref().unwrap(), Some(&job.job_id));
        assert_eq!(fixture.app.send(call).await.ok()[0]["removed"], 1);
    }
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &settled), [("expiries".to_owned(), "done".to_owned())], "{report:#}");
    assert!(!fixture.row_of(&settled).await.to_string().contains("example.org/out.txt"));
    assert!(fixture.objects(&running).await.contains(&"WorkFlow".to_owned()), "its engine is not done");
    // Its engine publishes what there is, and finishes it.
    let finish = "UPDATE jobs SET status = 70, dateFinished = NOW(), outputsurl = $2 WHERE workflowId = $1";
    sqlx::query(finish).bind(&running.job_id).bind(OUTPUTS).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&running).await, Vec::<String>::new());
    let row = fixture.row_of(&running).await;
    assert_eq!((&row["removed"], &row["purged"]), (&json!(1), &json!(true)));
    assert!(!row.to_string().contains("example.org/out.txt"));
    // And if somebody publishes once more, that goes, too.
    let publish = "UPDATE jobs SET outputsurl = $2 WHERE workflowId = $1";
    sqlx::query(publish).bind(&running.job_id).bind(OUTPUTS).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    assert!(!fixture.row_of(&running).await.to_string().contains("example.org/out.txt"));
}

#[tokio::test]
async fn a_crash_in_the_middle_of_a_removal_leaves_it_due() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    if !fixture.app.cluster.is_embedded() {
        return crate::support::left_out("faults are for the embedded cluster");
    }
    let job = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let job = finished(&fixture, 70, 100.0, job).await;
    let faults = fixture.app.cluster.stand_in().faults();
    faults.answer(fake_kubernetes::Match::any().verb("delete").resource("configmaps"), 500);
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [1, 0, 1, 0], "{report:#}");
    assert_eq!(fixture.objects(&job).await, ["ConfigMap", "WorkFlow"]);
    let row = fixture.row_of(&job).await;
    assert_eq!((&row["removed"], &row["outputsurl"]), (&json!(0), &json!(OUTPUTS)), "nothing is forgotten");
    faults.clear();
    // It is left alone for a while, longer each time.
    assert_eq!(count(&fixture.sweep().await, "expiries"), [0; 4]);
    fixture.passed(&job.job_id, "reapat", 11).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [1, 1, 0, 0], "{report:#}");
    assert_eq!(fixture.status(&job).await["removed"], 1);
}

#[tokio::test]
async fn a_removal_takes_at_most_twelve_requests_each_for_one_object() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    if !fixture.app.cluster.is_embedded() {
        return crate::support::left_out("requests are counted by the embedded cluster");
    }
    let job = Stored { removed: Some(1), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let job = fixture.job(Stored { finished: Some(now() - 100.0), ..job }).await;
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    let requests = fixture.app.cluster.stand_in().requests();
    let removals = requests.iter().filter(|request| request.name.starts_with(&job.job_id) && request.verb == "delete");
    assert_eq!(removals.count(), 10);
    // No list of a whole namespace.
    for list in requests.iter().filter(|request| request.verb == "list") {
        assert!(list.label_selector.contains("workflow"), "{list:?}");
    }
    // With nothing due, three requests look at an environment, whatever has finished there.
    for _ in 0..30 {
        fixture.row(Stored { finished: Some(now() - 100.0), workflow: kept_for(json!(0)), ..Stored::finished() }).await;
    }
    fixture.sweep().await;
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    let verbs: Vec<_> = fixture.app.cluster.stand_in().requests().iter().map(|it| it.resource.clone()).collect();
    assert_eq!(verbs, ["jobs"]);
}

#[tokio::test]
async fn a_job_that_could_not_be_registered_is() {
    let fixture = Fixture::start().await;
    let down = App::builder()
        .database(fixture.app.database.clone())
        .cluster(fixture.app.cluster.clone())
        .kubeconfig(&fixture.app.cluster.kubeconfig().replace("server: http", "server: http://127.0.0.1:9/#"))
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
async fn each_object_says_what_the_book_says() {
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
                  dateFinished = '2026-11-22T00:00:00.5' WHERE workflowId = $1";
    sqlx::query(update).bind(&job.job_id).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    let expected = json!({
        "status": 70, "statusText": "Job finished", "reason": "why", "dateFinished": "1795305600.500000"
    });
    assert_eq!(status().await, expected);
    assert_eq!(count(&fixture.sweep().await, "statusSync"), [0; 4]);
    // Without an object there is nothing to say.
    let none = fixture.row(Stored::default()).await;
    assert_eq!(count(&fixture.sweep().await, "statusSync"), [1, 1, 0, 0]);
    assert_eq!(fixture.objects(&none).await, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_says_so_too_if_the_job_was_finished_before_it_counted_as_registered() {
    let fixture = Fixture::start().await;
    // Whoever registered it died before it could say so.
    let job = fixture.job(Stored { stopreq: Some(1), ..Stored::default() }).await;
    fixture.app.database.execute("UPDATE jobs SET registered = false").await;
    fixture.sweep().await;
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap();
    assert_eq!(object["status"]["status"], 70);
    assert_eq!(object["status"]["reason"], "The job was stopped before it was started.");
}

#[tokio::test]
async fn objects_in_no_book_and_those_of_old_jobs_go() {
    let fixture = Fixture::builder().var("REAP_UNKNOWN_GRACE", 0).var("WORKFLOW_TTL", 1000).start().await;
    let (namespace, cluster) = (fixture.app.namespace.as_str(), &fixture.app.cluster);
    let waiting = fixture.job(Stored::default()).await;
    let fresh = fixture.job(Stored { finished: Some(now() - 900.0), ..Stored::finished() }).await;
    let old = fixture.job(Stored { finished: Some(now() - 1100.0), ..Stored::finished() }).await;
    let others = "00000000000000000000000000000001";
    cluster.make_workflow(namespace, others).await;
    let stray = "00000000000000000000000000000002";
    let held = "00000000000000000000000000000003";
    for (name, finalizers) in [(stray, json!([])), (held, json!(["example.org/hold"]))] {
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

    // The cluster tells its time in whole seconds.
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
    assert!(!exists(stray).await && !exists(&old.job_id).await);
    assert!(exists(others).await && exists(&fresh.job_id).await && exists(&waiting.job_id).await);
    let patch = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    let api: Api<WorkFlow> = Api::namespaced(cluster.client.clone(), namespace);
    api.patch(held, &PatchParams::default(), &patch).await.unwrap();
    assert!(!exists(held).await);
}

#[tokio::test]
async fn what_others_hold_is_told_of_and_not_waited_for() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    let job = finished(&fixture, 70, 100.0, Stored { workflow: kept_for(Value::Null), ..Stored::finished() }).await;
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> =
        Api::namespaced(fixture.app.cluster.client.clone(), &fixture.app.namespace);
    let hold = |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    maps.patch(&job.job_id, &PatchParams::default(), &hold(json!(["example.org/hold"]))).await.unwrap();
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [1, 1, 0, 0], "{report:#}");
    let entry = report["jobs"].as_array().unwrap().iter().find(|entry| entry["kind"] == "expiries").unwrap();
    let told = format!("held by others' finalizers: ConfigMap {} (example.org/hold)", job.job_id);
    assert_eq!(entry["reason"], told);
    assert_eq!(fixture.status(&job).await["removed"], 1);
    maps.patch(&job.job_id, &PatchParams::default(), &hold(Value::Null)).await.unwrap();
}

#[tokio::test]
async fn nonces_that_cannot_pass_again_are_forgotten() {
    let fixture = Fixture::builder().var("NONCE_WINDOW", 300).start().await;
    let day = 86_400.0;
    let highest = now();
    let file = async |signer: &str, seconds: f64| {
        let nonce = format!("{seconds:.3}");
        sqlx::query("INSERT INTO usednonces (signer, ns, nonce) VALUES ($1, nonce_ns($2), $2)")
            .bind(signer)
            .bind(&nonce)
            .execute(&fixture.app.database.pool)
            .await
            .unwrap();
    };
    for signer in ["0xa", "0xb"] {
        for age in [0.0, 1.0, 1000.0, day - 100.0, day + 100.0, 9.0 * day] {
            file(signer, highest - age).await;
        }
    }
    file("0xc", highest - 900.0 * day).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "nonces"), [4, 4, 0, 0], "{report:#}");
    assert_eq!(fixture.app.database.used_nonces("0xa").await.len(), 4);
    assert_eq!(fixture.app.database.used_nonces("0xc").await.len(), 1, "a signer's highest stays");
    // Not again within the hour.
    file("0xa", highest - 2.0 * day).await;
    assert_eq!(count(&fixture.sweep().await, "nonces"), [0; 4]);
}

#[tokio::test]
async fn a_dry_run_says_what_a_run_would_do_and_changes_nothing() {
    let fixture = Fixture::builder().var("ALGO_POD_TIMEOUT", 60).var("STORAGE_EXPIRY", 10).start().await;
    let over = fixture.running(100).await;
    let expired = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let expired = finished(&fixture, 70, 100.0, expired).await;
    let called_off = fixture.job(Stored { stopreq: Some(1), ..Stored::default() }).await;
    let rows = async || {
        let mut rows = Vec::new();
        for job in [&over, &expired, &called_off] {
            rows.push((fixture.row_of(job).await, fixture.objects(job).await));
        }
        rows
    };
    let before = rows().await;
    let report = fixture.dry_run().await;
    assert_eq!(report["dryRun"], true);
    for kind in ["timeLimits", "expiries", "neverStarted"] {
        assert_eq!(count(&report, kind), [1, 0, 0, 1], "{kind} {report:#}");
    }
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "planned".to_owned())]);
    assert_eq!(rows().await, before);
    let report = fixture.sweep().await;
    for kind in ["timeLimits", "expiries", "neverStarted"] {
        assert_eq!(count(&report, kind), [1, 1, 0, 0], "{kind} {report:#}");
    }
}

#[tokio::test]
async fn a_book_of_the_old_service_loses_nothing_that_has_not_expired() {
    let database = TestDatabase::of_the_old_service(10).await;
    database.service().migrate().await.unwrap();
    let unfinished = async |database: &TestDatabase| database.count("jobs WHERE datefinished IS NULL").await;
    let finished = async |app: &App| {
        let rows = "SELECT coalesce(jsonb_agg(to_jsonb(jobs) - '{reapat,expiry}'::text[] ORDER BY agreementid, workflowid), \
                    '[]') FROM jobs WHERE datefinished IS NOT NULL AND workflowid <> $1";
        app.database.row(rows, "").await.unwrap()
    };
    let fixture = Fixture::builder().app(|app| app.database(database).unannounced()).start().await;
    let before = (unfinished(&fixture.app.database).await, finished(&fixture.app).await);
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [0; 4], "{report:#}");
    assert_eq!((unfinished(&fixture.app.database).await, finished(&fixture.app).await), before);
    // Those that ran when the old engine died are given up.
    let update = "UPDATE jobs SET absentsince = absentsince - interval '61 s' WHERE absentsince IS NOT NULL";
    fixture.app.database.execute(update).await;
    fixture.sweep().await;
    let begun = fixture.app.database.count("jobs WHERE datefinished IS NULL AND status >= 20").await;
    assert_eq!(begun, 0);
    // If everything is to expire, as much of it does as there is time for.
    let all = fixture.another_reaper(&[("STORAGE_EXPIRY", "1")]).await;
    let report = all.sweep(false, Duration::from_secs(5)).await.unwrap();
    let expired = fixture.app.database.count("jobs WHERE purged AND removed = 1").await;
    assert!(expired > 0);
    assert_eq!(report.kinds[&Duty::Expiries].done, expired as u64);
}

#[tokio::test]
async fn kubectl_shows_the_state_and_the_reason() {
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
