//! Finished jobs: cleanup, expiry, deletion; used nonces; dry runs.

use std::time::Duration;

use fake_kubernetes::{Faults, Match};
use futures_util::{StreamExt, stream};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use operator_service::reaper::Duty;
use serde_json::{Value, json};

use crate::fixture::{Fixture, count, of_job};
use crate::jobs::{OUTPUTS, finished, kept_for, now};
use crate::support::{App, Key, Stored, TestDatabase, agreement_id, caller, nonce, owner, workflow};

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
async fn what_an_engine_left_is_deleted_once_the_job_is_settled() {
    let fixture = Fixture::start().await;
    let done = finished(&fixture, 70, 1.0, Stored::finished()).await;
    let no_data = finished(&fixture, 31, 1.0, Stored::finished()).await;
    let publishing = finished(&fixture, 60, 3500.0, Stored::finished()).await;
    let crashed = finished(&fixture, 20, 3700.0, Stored::finished()).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups"), [3, 3, 0, 0], "{report:#}");
    for job in [&done, &no_data, &crashed] {
        assert_eq!(fixture.objects(job).await, ["WorkFlow"]);
        assert_eq!(fixture.status(job).await["removed"], 0, "its results are still there");
    }
    assert_eq!(fixture.objects(&publishing).await, EVERYTHING);
    // After an hour.
    fixture.passed(&publishing.job_id, "datefinished", 101).await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&publishing).await, ["WorkFlow"]);
    let again = fixture.sweep().await;
    assert_eq!(count(&again, "cleanups"), [0; 4], "{again:#}");
}

#[tokio::test]
async fn objects_that_an_engine_creates_after_the_cleanup_are_deleted_too() {
    let fixture = Fixture::start().await;
    let done = finished(&fixture, 70, 1.0, Stored::finished()).await;
    fixture.sweep().await;
    fixture.app.cluster.engine_job(&fixture.app.namespace, &done.job_id, "filter").await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&done).await, ["WorkFlow"]);
    // Also if there is no Kubernetes Job.
    fixture.volumes(&done.job_id).await;
    fixture.sweep().await;
    assert_eq!(fixture.objects(&done).await, ["WorkFlow"]);
}

#[tokio::test]
async fn outputs_expire_as_their_workflow_says_or_as_configured() {
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
        assert_eq!(fixture.objects(expired).await, Vec::<String>::new());
        assert_eq!(fixture.status(expired).await["removed"], 1);
        assert!(!fixture.row_of(expired).await.to_string().contains("https://example.org/out.txt"));
    }
    // The outputs are still listed, without URLs.
    let expected = json!([{ "filename": "out.txt", "filesize": 5, "type": "output" }]);
    assert_eq!(fixture.status(&own).await["results"], expected);
    let fetch = caller::provider(&key).result(own.owner.as_deref().unwrap(), &own.job_id, 0);
    let answer = fixture.app.send(fetch).await;
    answer.is_error(404, &format!("Results of job {} have expired", own.job_id));
    for kept in [&own_not_yet, &never, &common_not_yet] {
        assert_eq!(fixture.status(kept).await["removed"], 0);
        assert_eq!(fixture.row_of(kept).await["outputsurl"], OUTPUTS);
    }

    // Later, both are due: the one by its own expiry, the other as configured.
    fixture.passed(&own_not_yet.job_id, "datefinished", 601).await;
    fixture.passed(&own_not_yet.job_id, "expirydue", 601).await;
    fixture.passed(&common_not_yet.job_id, "datefinished", 101).await;
    fixture.passed(&common_not_yet.job_id, "expirydue", 101).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [2, 2, 0, 0], "{report:#}");
    // STORAGE_EXPIRY may be changed later.
    let unset = finished(&fixture, 70, 50.0, job(Value::Null)).await;
    for (expiry, removed) in [("0", 0), ("600", 0), ("5000", 0), ("1", 1)] {
        let reaper = fixture.another_reaper(&[("STORAGE_EXPIRY", expiry)]).await;
        reaper.sweep(false, Duration::from_secs(60)).await.unwrap();
        assert_eq!(fixture.status(&unset).await["removed"], removed, "{expiry}");
        assert_eq!(
            fixture.state_of(&unset).await["expirydue"] == "infinity",
            expiry == "0" || removed == 1,
            "{expiry}"
        );
    }
}

#[tokio::test]
async fn a_deleted_job_loses_its_outputs_and_its_object_when_it_is_settled() {
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
    // Its engine publishes outputs, and finishes it.
    let finish = "UPDATE jobs SET status = 70, dateFinished = NOW(), outputsurl = $2 WHERE workflowId = $1";
    sqlx::query(finish).bind(&running.job_id).bind(OUTPUTS).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&running).await, Vec::<String>::new());
    let row = fixture.row_of(&running).await;
    assert!(fixture.is_expired(&running).await);
    assert!(!row.to_string().contains("example.org/out.txt"));
    // Outputs that are published once more are deleted as well.
    let publish = "UPDATE jobs SET outputsurl = $2 WHERE workflowId = $1";
    sqlx::query(publish).bind(&running.job_id).bind(OUTPUTS).execute(&fixture.app.database.pool).await.unwrap();
    fixture.sweep().await;
    assert!(!fixture.row_of(&running).await.to_string().contains("example.org/out.txt"));
}

#[tokio::test]
async fn outputs_expire_although_their_namespace_is_gone() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    if !fixture.app.cluster.is_embedded() {
        return crate::support::left_out("faults are for the embedded cluster");
    }
    let job = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let expired = finished(&fixture, 70, 100.0, job).await;
    let deleted = Stored { removed: Some(1), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let deleted = finished(&fixture, 70, 100.0, deleted).await;
    let faults = fixture.app.cluster.stand_in().faults();
    for break_cluster in [|faults: &Faults| faults.answer(Match::any(), 403), Faults::refuse_connections] {
        break_cluster(faults);
        let report = fixture.try_sweep().await.unwrap();
        faults.clear();
        for job in [&expired, &deleted] {
            assert!(fixture.is_expired(job).await, "{report:#}");
            assert!(!fixture.row_of(job).await.to_string().contains("example.org/out.txt"));
        }
        let again = "UPDATE jobs SET removed = 0, outputsurl = '[{\"url\": \"https://example.org/out.txt\"}]'; \
                     UPDATE jobs SET removed = 1";
        fixture.app.database.execute(again).await;
    }
}

#[tokio::test]
async fn a_sweep_sends_no_request_for_what_is_not_there() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    if !fixture.app.cluster.is_embedded() {
        return crate::support::left_out("requests are counted by the embedded cluster");
    }
    let requests = async || {
        fixture.app.cluster.stand_in().clear_requests();
        fixture.sweep().await;
        let requests = fixture.app.cluster.stand_in().requests();
        requests.into_iter().map(|it| (it.verb, it.resource)).collect::<Vec<_>>()
    };
    let verb = |verb: &str, resource: &str| (verb.to_owned(), resource.to_owned());
    fixture.sweep().await;
    // Of a job that was cleaned up by its engine, and has expired: none.
    let removed = Stored { removed: Some(1), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let expired = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    for job in [removed, expired] {
        fixture.row(Stored { finished: Some(now() - 100.0), ..job }).await;
    }
    fixture.app.database.execute("UPDATE reaperjobs SET objectdue = 'infinity'").await;
    let idle = [verb("list", "jobs"), verb("list", "persistentvolumeclaims")];
    assert_eq!(requests().await, idle);
    assert_eq!(fixture.app.database.count("jobs WHERE removed = 1").await, 2);
    // Nor with many finished jobs.
    for _ in 0..30 {
        fixture.row(Stored { finished: Some(now() - 5.0), ..Stored::finished() }).await;
    }
    fixture.app.database.execute("UPDATE reaperjobs SET objectdue = 'infinity'").await;
    assert_eq!(requests().await, idle);
    // What an engine left: one for each object, and one for the ConfigMap.
    let left = fixture.row(Stored { finished: Some(now() - 5.0), ..Stored::finished() }).await;
    fixture.app.database.execute("UPDATE reaperjobs SET objectdue = 'infinity'").await;
    fixture.volumes(&left.job_id).await;
    let deletions = ["configmaps", "persistentvolumeclaims", "persistentvolumeclaims"].map(|it| verb("delete", it));
    assert_eq!(requests().await, [&idle[..], &deletions].concat());
}

#[tokio::test]
async fn objects_held_by_finalizers_are_reported_and_not_waited_for() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    let job = finished(&fixture, 70, 100.0, Stored { workflow: kept_for(Value::Null), ..Stored::finished() }).await;
    let maps: Api<k8s_openapi::api::core::v1::ConfigMap> =
        Api::namespaced(fixture.app.cluster.client.clone(), &fixture.app.namespace);
    let hold = |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    maps.patch(&job.job_id, &PatchParams::default(), &hold(json!(["example.org/hold"]))).await.unwrap();
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups"), [1, 1, 0, 0], "{report:#}");
    let entry = report["jobs"].as_array().unwrap().iter().find(|entry| entry["kind"] == "cleanups").unwrap();
    let expected = format!("held by others' finalizers: ConfigMap {} (example.org/hold)", job.job_id);
    assert_eq!(entry["reason"], expected);
    assert_eq!(fixture.status(&job).await["removed"], 1);
    maps.patch(&job.job_id, &PatchParams::default(), &hold(Value::Null)).await.unwrap();
}

#[tokio::test]
async fn nonces_that_cannot_pass_again_are_deleted() {
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
    // Pruned once an hour.
    file("0xa", highest - 2.0 * day).await;
    assert_eq!(count(&fixture.sweep().await, "nonces"), [0; 4]);
}

#[tokio::test]
async fn a_nonce_that_was_deleted_stays_used_when_the_window_grows() {
    const SECOND: u64 = 1_000_000_000;
    let day = 86_400 * SECOND;
    let fixture = Fixture::builder().var("NONCE_WINDOW", 10 * 86_400).start().await;
    let (app, key) = (&fixture.app, Key::new());
    let start = async |nonce: u64| {
        let workflow = workflow::sample();
        app.send(caller::provider(&key).start_at(&app.namespace, &agreement_id(), &owner(), workflow, nonce))
            .await
            .status
    };
    let highest = nonce();
    for used in [highest - 5 * day, highest - 2 * day, highest] {
        assert_eq!(start(used).await, 200);
    }
    // As if the window had been small for a while.
    let report =
        fixture.another_reaper(&[("NONCE_WINDOW", "300")]).await.sweep(false, Duration::from_secs(60)).await.unwrap();
    assert_eq!(report.kinds[&Duty::Nonces].done, 2);
    assert_eq!(app.database.used_nonces(&key.address).await, [highest.to_string()]);
    for refused in [highest - 5 * day, highest - 2 * day, highest - 2 * day - 1] {
        assert_eq!(start(refused).await, 400);
    }
    assert_eq!(start(highest - day).await, 200);
}

#[tokio::test]
async fn old_jobs_are_summarized() {
    let fixture = Fixture::start().await;
    let job = fixture.running(1).await;
    let forget = "UPDATE jobs SET algodid = NULL, inputdids = NULL";
    fixture.app.database.execute(forget).await;
    assert_eq!(count(&fixture.dry_run().await, "summaries"), [0; 4]);
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "summaries"), [1, 1, 0, 0], "{report:#}");
    let row = fixture.row_of(&job).await;
    assert_eq!((&row["algodid"], &row["inputdids"]), (&json!("did:op:5a1f"), &json!(r#"["did:op:87bd"]"#)));
    assert_eq!(count(&fixture.sweep().await, "summaries"), [0; 4]);
}

#[tokio::test]
async fn a_dry_run_reports_what_is_planned_and_changes_nothing() {
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
async fn a_database_of_the_python_service_loses_nothing_that_has_not_expired() {
    let database = TestDatabase::of_the_python_service(10).await;
    database.service().migrate().await.unwrap();
    let unfinished = async |database: &TestDatabase| database.count("jobs WHERE datefinished IS NULL").await;
    let finished = async |app: &App| {
        let rows = "SELECT coalesce(jsonb_agg(to_jsonb(jobs) - '{algodid,inputdids}'::text[] ORDER BY agreementid, workflowid), \
                    '[]') FROM jobs WHERE datefinished IS NOT NULL AND workflowid <> $1";
        app.database.row(rows, "").await.unwrap()
    };
    let fixture = Fixture::builder().app(|app| app.database(database).unannounced()).start().await;
    let before = (unfinished(&fixture.app.database).await, finished(&fixture.app).await);
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [0; 4], "{report:#}");
    assert_eq!((unfinished(&fixture.app.database).await, finished(&fixture.app).await), before);
    // Jobs that ran when the old engine died are finished.
    let update = "UPDATE reaperjobs SET seensince = seensince - interval '301 s' WHERE seen = 'absent'";
    fixture.app.database.execute(update).await;
    fixture.sweep().await;
    let begun = fixture.app.database.count("jobs WHERE datefinished IS NULL AND status >= 20").await;
    assert_eq!(begun, 0);
    // If everything expires, as much is deleted as there is time for.
    let all = fixture.another_reaper(&[("STORAGE_EXPIRY", "1")]).await;
    let report = all.sweep(false, Duration::from_secs(5)).await.unwrap();
    let expired = fixture.app.database.count("jobs WHERE removed = 1").await;
    assert!(expired > 0);
    assert_eq!(report.kinds[&Duty::Expiries].done, expired as u64);
}

#[tokio::test]
async fn what_is_left_of_more_jobs_than_a_page_of_a_list_has_is_deleted() {
    let fixture = Fixture::builder().var("REAP_RATE", 10_000).start().await;
    let namespace = &fixture.app.namespace;
    let jobs = stream::iter(0..130).map(async |_| {
        let job = Stored { finished: Some(now() - 100.0), ..Stored::finished() };
        let job = fixture.job(job).await;
        fixture.app.cluster.engine_volumes(namespace, &job.job_id).await;
    });
    jobs.buffer_unordered(8).collect::<()>().await;
    let claims = Api::<PersistentVolumeClaim>::namespaced(fixture.app.cluster.client.clone(), namespace);
    assert_eq!(claims.list(&ListParams::default()).await.unwrap().items.len(), 260);
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups"), [130, 130, 0, 0], "{report:#}");
    assert_eq!(claims.list(&ListParams::default()).await.unwrap().items.len(), 0);
}
