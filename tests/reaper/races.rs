//! Engines and administrators that change something during a sweep, and clocks that differ.

use std::time::Duration;

use fake_kubernetes::Match;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator_service::domain::{JobId, Namespace};
use operator_service::kubernetes::Deletion;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::fixture::{Fixture, LIMIT, count, of_job};
use crate::jobs::{OUTPUTS, RULES, absent, expired, finished, kept_for, now};
use crate::support::{Key, Stored, agreement_id, caller, eventually, owner, workflow};

// Concurrent changes

#[tokio::test]
async fn a_half_deleted_job_is_deleted_and_a_held_object_is_reported_once() {
    let fixture = Fixture::with_faults(&RULES).await;
    let [half, held] = [expired(&fixture).await, expired(&fixture).await];
    let (client, namespace) = (fixture.app.cluster.client.clone(), fixture.app.namespace.as_str());
    let jobs = Api::<Job>::namespaced(client.clone(), namespace);
    let claims = Api::<PersistentVolumeClaim>::namespaced(client, namespace);
    let background = DeleteParams::background();
    jobs.delete(&format!("{}-publish-job", half.job_id), &background).await.unwrap();
    claims.delete(&format!("{}-data", half.job_id), &background).await.unwrap();
    let name = format!("{}-publish-job", held.job_id);
    let hold = |finalizers: Value| Patch::Merge(json!({ "metadata": { "finalizers": finalizers } }));
    jobs.patch(&name, &PatchParams::default(), &hold(json!(["example.org/hold"]))).await.unwrap();
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups"), [2, 2, 0, 0], "{report:#}");
    let reason = report["jobs"].as_array().unwrap().iter().find(|it| it["job"] == held.job_id.as_str()).unwrap();
    assert_eq!(reason["reason"], format!("held by others' finalizers: Job {name} (example.org/hold)"));
    assert_eq!(fixture.objects(&half).await, Vec::<String>::new());
    assert_eq!(fixture.sweep().await["jobs"], json!([]), "the sweep does not wait for it");
    jobs.patch(&name, &PatchParams::default(), &hold(Value::Null)).await.unwrap();
}

#[tokio::test]
async fn a_kubernetes_job_that_replaced_the_listed_one_is_not_deleted() {
    let fixture = Fixture::with_faults(&RULES).await;
    let over = fixture.running(4000).await;
    let (client, namespace) = (fixture.app.cluster.client.clone(), fixture.app.namespace.as_str());
    let jobs = Api::<Job>::namespaced(client, namespace);
    let name = format!("{}-algorithm-job", over.job_id);
    let replace = async || {
        jobs.delete(&name, &DeleteParams::background()).await.unwrap();
        eventually("the end of the old one", LIMIT, async || {
            jobs.get_opt(&name).await.unwrap().is_none().then_some(())
        })
        .await;
        fixture.app.cluster.engine_job(namespace, &over.job_id, "algorithm").await;
        jobs.get(&name).await.unwrap().metadata.uid
    };
    let (service, place) = (fixture.app.cluster.service().await, Namespace::stored(namespace));
    let seen = service.list_steps(&place).await.unwrap()[&JobId::stored(&over.job_id)][0].clone();
    let uid = replace().await;
    assert_eq!(service.delete_step(&seen, &place).await.unwrap(), Deletion::Changed);
    assert_eq!(jobs.get(&name).await.unwrap().metadata.uid, uid);

    let job_id = over.job_id.as_str();
    fixture.job_status(job_id, "algorithm", json!({ "startTime": crate::fixture::ago(4000), "active": 1 })).await;
    fixture.faults().delay(Match::any().verb("delete").resource("jobs").name(&name).times(1), Duration::from_secs(2));
    let meanwhile = async {
        fixture.wait_for_request("delete", "jobs").await;
        replace().await
    };
    fixture.app.cluster.stand_in().clear_requests();
    let (report, uid) = tokio::join!(fixture.sweep(), meanwhile);
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "skipped".to_owned())], "{report:#}");
    assert_eq!(jobs.get(&name).await.unwrap().metadata.uid, uid);
    let status = fixture.status(&over).await;
    assert_eq!((&status["stopreq"], status.get("reason")), (&json!(0), None));
}

#[tokio::test]
async fn the_end_that_an_engine_writes_during_a_sweep_stays() {
    let fixture = Fixture::with_faults(&RULES).await;
    let over = fixture.running(4000).await;
    fixture.faults().delay(Match::any().verb("delete").resource("jobs").times(1), Duration::from_secs(1));
    let meanwhile = async {
        fixture.wait_for_request("delete", "jobs").await;
        let finish = "UPDATE jobs SET status = 70, statusText = 'Job finished', dateFinished = NOW() \
                      WHERE workflowId = $1";
        fixture.execute(finish, &over).await;
        fixture.row_of(&over).await
    };
    let (_, finished) = tokio::join!(fixture.sweep(), meanwhile);
    fixture.sweep().await;
    let row = fixture.row_of(&over).await;
    for column in ["status", "statustext", "datefinished"] {
        assert_eq!(row[column], finished[column]);
    }
    assert_eq!(fixture.objects(&over).await, ["WorkFlow"]);
}

#[tokio::test]
async fn a_status_that_an_engine_is_about_to_commit_is_written_by_the_next_sweep() {
    let fixture = Fixture::with_faults(&RULES).await;
    let job = fixture.job(Stored::default()).await;
    fixture.sweep().await;
    fixture.execute("UPDATE jobs SET status = 10, statusText = 'Job started' WHERE workflowId = $1", &job).await;
    fixture.faults().delay(Match::any().verb("patch").subresource("status").times(1), Duration::from_secs(1));
    fixture.app.cluster.stand_in().clear_requests();
    let engine = async {
        fixture.wait_for_request("patch", "workflows").await;
        let mut transaction = fixture.app.database.pool.begin().await.unwrap();
        let begin = "UPDATE jobs SET status = 20, statusText = 'Configuring volumes' WHERE workflowId = $1";
        sqlx::query(begin).bind(&job.job_id).execute(&mut *transaction).await.unwrap();
        let process: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *transaction).await.unwrap();
        let waits = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE $1 = ANY (pg_blocking_pids(pid)))";
        eventually("a sweep that waits for the engine", LIMIT, async || {
            let waits = sqlx::query_scalar::<_, bool>(waits).bind(process).fetch_one(&fixture.app.database.pool);
            waits.await.unwrap().then_some(())
        })
        .await;
        transaction.commit().await.unwrap();
    };
    tokio::join!(fixture.sweep(), engine);
    fixture.sweep().await;
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap();
    assert_eq!(object["status"], json!({ "status": 20, "statusText": "Configuring volumes" }));
}

#[tokio::test]
async fn an_object_that_is_created_after_its_job_has_finished_gets_its_status() {
    let fixture = Fixture::with_faults(&RULES).await;
    let (key, agreement) = (Key::new(), agreement_id());
    let start = caller::provider(&key).start(&fixture.app.namespace, &agreement, &owner(), workflow::sample());
    fixture.faults().delay(Match::any().verb("create").resource("workflows").times(1), Duration::from_secs(1));
    let engine = async {
        fixture.wait_for_request("create", "workflows").await;
        let finish = "UPDATE jobs SET status = 70, statusText = 'Job finished', dateFinished = NOW() \
                      WHERE agreementId = $1";
        sqlx::query(finish).bind(&agreement).execute(&fixture.app.database.pool).await.unwrap();
        fixture.sweep().await;
    };
    let (started, ()) = tokio::join!(fixture.app.send(start), engine);
    let job_id = started.ok()[0]["jobId"].as_str().unwrap().to_owned();
    fixture.sweep().await;
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job_id).await.unwrap();
    assert_eq!(object["status"]["status"], 70, "{object:#}");
}

#[tokio::test]
async fn outputs_published_while_a_job_expires_are_deleted_too() {
    let fixture = Fixture::with_faults(&[]).await;
    let job = Stored { workflow: kept_for(json!(50)), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let job = finished(&fixture, 70, 100.0, job).await;
    fixture.faults().delay(Match::any().verb("delete").resource("configmaps").times(1), Duration::from_secs(1));
    let meanwhile = async {
        fixture.wait_for_request("delete", "configmaps").await;
        let publish =
            r#"UPDATE jobs SET outputsurl = '[{"url": "https://example.org/late.txt"}]' WHERE workflowId = $1"#;
        fixture.execute(publish, &job).await;
    };
    tokio::join!(fixture.sweep(), meanwhile);
    fixture.sweep().await;
    let row = fixture.row_of(&job).await;
    assert!(fixture.is_expired(&job).await, "{row:#}");
    assert!(!row.to_string().contains("example.org/late.txt"), "{row:#}");
}

/// A sweep writes the status of a running job while these statements change it, `$1`. Returns the job.
async fn changed_while_its_status_is_written(fixture: &Fixture, statements: &[&'static str]) -> Stored {
    let job = fixture.running(10).await;
    fixture.faults().delay(Match::any().verb("patch").times(1), Duration::from_secs(1));
    let meanwhile = async {
        fixture.wait_for_request("patch", "workflows").await;
        for statement in statements {
            fixture.execute(statement, &job).await;
        }
    };
    tokio::join!(fixture.sweep(), meanwhile);
    job
}

/// The text of the status that a job's object shows.
async fn status_text(fixture: &Fixture, job: &Stored) -> Value {
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await.unwrap();
    object["status"]["statusText"].clone()
}

#[tokio::test]
async fn a_status_that_changes_while_it_is_written_is_written_again() {
    let fixture = Fixture::with_faults(&[]).await;
    let another_text = "UPDATE jobs SET statusText = 'Another text' WHERE workflowId = $1";
    let job = changed_while_its_status_is_written(&fixture, &[another_text]).await;
    assert_eq!(status_text(&fixture, &job).await, "Running algorithm");
    fixture.sweep().await;
    assert_eq!(status_text(&fixture, &job).await, "Another text");
}

/// A sweep may be suspended for longer than its lease, and write then what it read before.
#[tokio::test]
async fn a_status_that_replaces_a_later_one_is_written_again() {
    let fixture = Fixture::with_faults(&[]).await;
    let another_text = "UPDATE jobs SET statusText = 'Another text' WHERE workflowId = $1";
    // As if another sweep had written that.
    let written = "UPDATE reaperjobs SET objectdue = 'infinity' WHERE workflowId = $1";
    let job = changed_while_its_status_is_written(&fixture, &[another_text, written]).await;
    assert_eq!(status_text(&fixture, &job).await, "Running algorithm");
    fixture.sweep().await;
    assert_eq!(status_text(&fixture, &job).await, "Another text");
}

// Clocks and extreme numbers

#[tokio::test]
async fn clocks_that_differ_end_nothing_early() {
    let fixture = Fixture::with_faults(&RULES).await;
    let ahead = async |job: &Stored, column: &str| fixture.passed(&job.job_id, column, -600).await;
    let job = Stored { workflow: kept_for(json!(5)), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let finished_later = finished(&fixture, 70, -600.0, job).await;
    let publishing = finished(&fixture, 60, -600.0, Stored::finished()).await;
    // The clock of its node is ahead.
    let running = fixture.running(-600).await;
    ahead(&running, "seensince").await;
    let lost = fixture.job(Stored::running()).await;
    absent(&fixture, &lost, -600).await;
    let dispatched = fixture.job(Stored::default()).await;
    fixture.app.database.engine(&fixture.app.namespace, "{}", 9).await;
    ahead(&dispatched, "dispatchedat").await;
    let waiting = fixture.row(Stored { created: now() + 600.0, ..Stored::default() }).await;
    fixture.execute("UPDATE jobs SET registered = false WHERE workflowid = $1", &waiting).await;
    let report = fixture.sweep().await;
    assert_eq!(report["oldestUnregistered"], 0);
    assert_eq!(report["problems"], json!([]));
    assert_eq!(fixture.status(&finished_later).await["removed"], 0);
    assert!(fixture.objects(&publishing).await.contains(&"ConfigMap".to_owned()));
    assert!(fixture.objects(&running).await.contains(&"Job/algorithm-job".to_owned()));
    assert_eq!(fixture.status(&lost).await["dateFinished"], Value::Null);
    assert_eq!(fixture.status(&dispatched).await["status"], 10);
    assert_eq!(fixture.objects(&waiting).await, ["WorkFlow"]);
    // Later, each is due.
    fixture.passed(&finished_later.job_id, "datefinished", 700).await;
    fixture.passed(&finished_later.job_id, "expirydue", 700).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&finished_later).await["removed"], 1);
}

#[tokio::test]
async fn ages_do_not_depend_on_the_time_zone_of_the_server() {
    for zone in ["America/New_York", "Asia/Kolkata"] {
        let fixture = Fixture::with_faults(&[("STORAGE_EXPIRY", "3600")]).await;
        // The engine's session has the time zone of the server.
        let mut engine = fixture.app.database.connect().await;
        engine.execute(sqlx::AssertSqlSafe(format!("SET timezone = '{zone}'"))).await.unwrap();
        let job = Stored {
            status: Some(60),
            workflow: kept_for(Value::Null),
            outputs: Some(OUTPUTS.into()),
            ..Stored::running()
        };
        let job = fixture.job(job).await;
        fixture.app.cluster.engine_volumes(&fixture.app.namespace, &job.job_id).await;
        for statement in [
            "SELECT * FROM announce('elsewhere', '{\"currentJobs\": 0}', 1) AS given (workflow) WHERE workflow = $1",
            "UPDATE jobs SET dateFinished=NOW() WHERE workflowId=$1",
        ] {
            sqlx::query(statement).bind(&job.job_id).execute(&mut engine).await.unwrap();
        }
        let finished: f64 = fixture.status(&job).await["dateFinished"].as_str().unwrap().parse().unwrap();
        assert!((now() - finished).abs() < 60.0, "{zone}");
        // In a session of any time zone, and with a row of any: nothing is due before its time.
        fixture.sweep().await;
        assert!(fixture.objects(&job).await.contains(&"ConfigMap".to_owned()), "it is not settled: {zone}");
        assert_eq!(fixture.status(&job).await["removed"], 0, "{zone}");
        for column in ["datefinished", "expirydue"] {
            fixture.passed(&job.job_id, column, 3700).await;
        }
        fixture.sweep().await;
        assert_eq!(fixture.status(&job).await["removed"], 1, "{zone}");
        assert!(!fixture.objects(&job).await.contains(&"ConfigMap".to_owned()), "{zone}");
        // Jobs that are dispatched in that session are as old as they are.
        let waiting = fixture.job(Stored::default()).await;
        let announce = "SELECT * FROM announce($1, '{\"currentJobs\": 0}', 9)";
        sqlx::query(announce).bind(&fixture.app.namespace).execute(&mut engine).await.unwrap();
        fixture.sweep().await;
        assert_eq!(fixture.status(&waiting).await["status"], 10, "{zone}");
        fixture.passed(&waiting.job_id, "dispatchedat", 301).await;
        sqlx::query(announce).bind("elsewhere").execute(&mut engine).await.unwrap();
        let idle = "SELECT * FROM announce($1, '{\"currentJobs\": 0}', 0)";
        sqlx::query(idle).bind(&fixture.app.namespace).execute(&mut engine).await.unwrap();
        fixture.sweep().await;
        assert_eq!(fixture.status(&waiting).await["status"], 1, "{zone}");
    }
}

#[tokio::test]
async fn an_expiry_beyond_every_date_means_for_ever() {
    let fixture = Fixture::with_faults(&[("STORAGE_EXPIRY", "999999999999999999")]).await;
    let mut jobs = Vec::new();
    for expiry in [json!(1e300), json!("1e300"), json!(1e12), json!(u64::MAX), Value::Null] {
        jobs.push(finished(&fixture, 70, 100.0, Stored { workflow: kept_for(expiry), ..Stored::finished() }).await);
    }
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups"), [5, 5, 0, 0], "{report:#}");
    assert_eq!(fixture.sweep().await["jobs"], json!([]), "once is enough");
    for job in &jobs {
        assert_eq!(fixture.objects(job).await, ["WorkFlow"]);
        assert_eq!(fixture.status(job).await["removed"], 0);
    }
}
