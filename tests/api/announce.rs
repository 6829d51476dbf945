//! announce(): the engine's call (docs/contract/engine.md, "announce()").

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use crate::given::{now, start, started};
use crate::support::{App, Call, Key, Stored, TestDatabase, caller};

#[tokio::test]
async fn the_call_records_the_announcement() {
    let database = TestDatabase::migrated().await;
    assert_eq!(database.engine("here", r#"{"cpuNumber": 1}"#, 5).await, [""; 0]);
    database.execute("UPDATE envs SET lastping = now() - interval '1 hour'").await;
    assert_eq!(database.engine("here", r#"{"cpuNumber": 2}"#, 5).await, [""; 0]);
    let fresh = database.count("envs WHERE status = '{\"cpuNumber\": 2}' AND lastping > now() - interval '1 minute'");
    assert_eq!((fresh.await, database.count("envs").await), (1, 1));
}

#[tokio::test]
async fn a_started_job_is_dispatched_once() {
    let app = App::start().await;
    let job = started(&app).await;
    assert_eq!(app.database.engine("elsewhere", "{}", 5).await, [""; 0]);
    assert_eq!(app.database.engine(&app.namespace, "{}", 0).await, [""; 0]);
    assert_eq!(app.database.engine(&app.namespace, "{}", 5).await, [&*job.job_id]);
    let status = app.send(Call::get("compute").with("jobId", job.job_id.clone())).await.ok();
    let mut expected = json!([job.status]);
    expected[0]["status"] = json!(10);
    expected[0]["statusText"] = json!("Job started");
    assert_eq!(status, expected);
    for _ in 0..3 {
        assert_eq!(app.database.engine(&app.namespace, "{}", 5).await, [""; 0]);
    }
}

#[tokio::test]
async fn jobs_are_dispatched_oldest_first_up_to_the_limit() {
    let database = TestDatabase::migrated().await;
    let mut jobs = Vec::new();
    // Written in another order than they were created in.
    for created in [5.0, 2.0, 4.0, 1.0, 3.0] {
        let namespace = Some("here".to_owned());
        jobs.push(Stored { namespace, created, ..Stored::default() }.insert(&database).await);
    }
    jobs.sort_by(|a, b| a.created.total_cmp(&b.created));
    let ids: Vec<&str> = jobs.iter().map(|job| &*job.job_id).collect();
    assert_eq!(database.engine("here", "{}", 2).await, ids[..2]);
    assert_eq!(database.engine("here", "{}", 1).await, ids[2..3]);
    assert_eq!(database.engine("here", "{}", -1).await, [""; 0]);
    assert_eq!(database.engine("here", "{}", 100).await, ids[3..]);
}

#[tokio::test]
async fn jobs_that_may_not_be_dispatched_are_skipped() {
    let database = TestDatabase::migrated().await;
    let here = || Stored { namespace: Some("here".to_owned()), ..Stored::default() };
    let now = now();
    for job in [
        Stored { stopreq: Some(1), ..here() },
        Stored { stopreq: Some(2), ..here() },
        Stored { removed: Some(1), ..here() },
        Stored { valid_until: Some(now as i64 - 1), ..here() },
        Stored { status: Some(10), ..here() },
        Stored { status: Some(20), ..here() },
        Stored { status: Some(70), ..here() },
        Stored { status: None, ..here() },
        Stored { finished: Some(now), ..here() },
        Stored { namespace: Some("elsewhere".to_owned()), ..here() },
        Stored { namespace: None, ..here() },
    ] {
        job.insert(&database).await;
    }
    assert_eq!(database.engine("here", "{}", 100).await, [""; 0]);
    let good = [
        Stored { created: 1.0, valid_until: Some(now as i64 + 600), ..here() },
        Stored { created: 2.0, stopreq: None, removed: None, ..here() },
        Stored { created: 3.0, signer_verified: false, ..here() },
    ];
    let mut ids = Vec::new();
    for job in good {
        ids.push(job.insert(&database).await.job_id);
    }
    assert_eq!(database.engine("here", "{}", 100).await, ids);
}

#[tokio::test]
async fn a_job_that_is_stopped_deleted_or_no_longer_valid_is_not_dispatched() {
    let app = App::start().await;
    let stopped = started(&app).await;
    app.send(caller::provider(&stopped.key).stop(&stopped.owner, Some(&stopped.job_id))).await.ok();
    let deleted = started(&app).await;
    app.send(caller::provider(&deleted.key).delete(&deleted.owner, Some(&deleted.job_id))).await.ok();
    let key = Key::new();
    let soon = now() as i64 + 2;
    let expiring = start(&app, &key).with("validUntil", soon);
    app.send(expiring).await.ok();
    crate::support::eventually("the end of its validity", Duration::from_secs(10), async || {
        (now() > soon as f64 + 0.5).then_some(())
    })
    .await;
    assert_eq!(app.database.engine(&app.namespace, "{}", 100).await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_engines_never_get_the_same_job() {
    let database = std::sync::Arc::new(TestDatabase::migrated().await);
    for _ in 0..200 {
        Stored { namespace: Some("here".to_owned()), ..Stored::default() }.insert(&database).await;
    }
    let engine = |_| {
        let database = database.clone();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            // A call returns no job only if every pending job is taken or locked: then the engine stops calling.
            loop {
                let jobs = database.engine("here", "{}", 7).await;
                if jobs.is_empty() {
                    return taken;
                }
                taken.extend(jobs);
            }
        })
    };
    let engines: Vec<_> = (0..4).map(engine).collect();
    let mut all = Vec::new();
    for engine in engines {
        all.extend(engine.await.unwrap());
    }
    // Jobs that were skipped because another call had locked them are still pending.
    all.extend(database.engine("here", "{}", 200).await);
    assert_eq!(all.len(), 200);
    assert_eq!(all.iter().collect::<HashSet<_>>().len(), 200);
}

#[tokio::test]
async fn an_engine_does_not_wait_for_a_job_that_another_is_taking() {
    let database = TestDatabase::migrated().await;
    let mut ids = Vec::new();
    for created in [1.0, 2.0] {
        let namespace = Some("here".to_owned());
        ids.push(Stored { namespace, created, ..Stored::default() }.insert(&database).await.job_id);
    }
    let mut other = database.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM jobs WHERE workflowid = $1 FOR UPDATE").bind(&ids[0]).execute(&mut *other).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(10), database.engine("here", "{}", 1)).await.unwrap();
    assert_eq!(second, ids[1..]);
    other.rollback().await.unwrap();
    assert_eq!(database.engine("here", "{}", 1).await, ids[..1]);
}

#[tokio::test]
async fn the_engines_statements_work_on_the_schema() {
    let app = App::start().await;
    let job = started(&app).await;
    app.database.engine(&app.namespace, "{}", 1).await;
    for statement in [
        "UPDATE jobs SET status=40, statusText='Running algorithm' WHERE workflowId=$1",
        "UPDATE jobs SET stopreq=2 WHERE workflowId=$1",
        "UPDATE jobs SET outputsURL='[{\"filename\": \"a\", \"filesize\": 1, \"type\": \"output\", \"url\": \"x\"}]', \
         configlogURL='', publishlogURL='', algologURL='' WHERE workflowId=$1",
        "UPDATE jobs SET status=70, statusText='Job finished' WHERE workflowId=$1",
        "UPDATE jobs SET dateFinished=NOW() WHERE workflowId=$1",
    ] {
        let done = sqlx::query(statement).bind(&job.job_id).execute(&app.database.pool).await.unwrap();
        assert_eq!(done.rows_affected(), 1);
    }
    let (status, stopreq): (i32, i16) = sqlx::query_as("SELECT status, stopreq FROM jobs WHERE workflowId=$1 LIMIT 1")
        .bind(&job.job_id)
        .fetch_one(&app.database.pool)
        .await
        .unwrap();
    assert_eq!((status, stopreq), (70, 2));
    let shown = app.send(Call::get("compute").with("jobId", job.job_id)).await.ok();
    assert_eq!(shown[0]["results"], json!([{ "filename": "a", "filesize": 1, "type": "output" }]));
    assert!(shown[0]["dateFinished"].is_string());
}
