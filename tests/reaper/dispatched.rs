//! Jobs that wait, or were dispatched and not begun: requeues, unreadable workflows, jobs that may not start any more.

use serde_json::{Value, json};

use crate::fixture::{Fixture, count, of_job};
use crate::jobs::now;
use crate::support::{Stored, workflow};

#[tokio::test]
async fn a_job_that_was_dispatched_and_not_begun_is_requeued() {
    let fixture = Fixture::start().await;
    let namespace = fixture.app.namespace.clone();
    let job = fixture.job(Stored::default()).await;
    // An engine that has just started has no jobs.
    const IDLE: &str = r#"{"currentJobs": 0}"#;
    const BUSY: &str = r#"{"currentJobs": 1}"#;
    assert_eq!(fixture.app.database.engine(&namespace, IDLE, 5).await, [job.job_id.as_str()]);
    fixture.sweep().await;
    assert_eq!(fixture.status(&job).await["status"], 10, "the engine has time to begin it");
    for time in 1..=5 {
        fixture.app.database.engine(&namespace, BUSY, 0).await;
        fixture.passed(&job.job_id, "dispatchedat", 301).await;
        fixture.app.database.execute("UPDATE envs SET idleat = idleat - interval '301 s'").await;
        let report = fixture.sweep().await;
        assert_eq!(count(&report, "requeues"), [1, 0, 0, 1], "its thread may hang: {report:#}");
        assert_eq!(of_job(&report, &job), [("requeues".to_owned(), "left".to_owned())]);
        assert_eq!(fixture.status(&job).await["status"], 10);
        // The engine is started again.
        fixture.app.database.engine(&namespace, IDLE, 0).await;
        let report = fixture.sweep().await;
        assert_eq!(count(&report, "requeues"), [1, 1, 0, 0], "{report:#}");
        assert_eq!(fixture.status(&job).await["statusText"], "Warming up");
        assert_eq!(fixture.app.database.engine(&namespace, IDLE, 5).await, [job.job_id.as_str()], "{time}");
    }
    // It is not requeued for ever.
    fixture.passed(&job.job_id, "dispatchedat", 301).await;
    fixture.sweep().await;
    let status = fixture.status(&job).await;
    assert_eq!(status["status"], 41);
    assert_eq!(status["reason"], "The job could not be started: its environment did not begin it.");
    assert_ne!(status["dateFinished"], Value::Null);
}

#[tokio::test]
async fn a_job_whose_engine_is_gone_is_requeued() {
    let fixture = Fixture::start().await;
    let job = fixture.job(Stored::default()).await;
    assert_eq!(fixture.app.database.engine(&fixture.app.namespace, r#"{"currentJobs": 3}"#, 1).await.len(), 1);
    fixture.passed(&job.job_id, "dispatchedat", 4000).await;
    assert_eq!(count(&fixture.sweep().await, "requeues"), [1, 0, 0, 1]);
    // Unlike an update, this does not count as an announcement.
    let silent =
        "ALTER TABLE envs DISABLE TRIGGER envs_announced; UPDATE envs SET announcedat = now() - interval '3601 s'";
    fixture.app.database.execute(silent).await;
    assert_eq!(count(&fixture.sweep().await, "requeues"), [1, 1, 0, 0]);
}

#[tokio::test]
async fn a_workflow_that_the_engine_cannot_read_ends_before_it_costs_a_thread() {
    let fixture = Fixture::start().await;
    let document = |change: &dyn Fn(&mut Value)| {
        let mut document = workflow::document("0123", "ocean-compute");
        change(&mut document);
        Stored { workflow: Some(document.to_string()), ..Stored::default() }
    };
    let stage = |document: &mut Value, path: &str, value: Value| {
        *document["spec"]["metadata"]["stages"][0].pointer_mut(path).unwrap() = value;
    };
    let remove = |document: &mut Value, path: &str, key: &str| {
        document.pointer_mut(path).unwrap().as_object_mut().unwrap().remove(key).unwrap();
    };
    const STAGE: &str = "/spec/metadata/stages/0";
    let unreadable = [
        Stored { workflow: Some("{".to_owned()), ..Stored::default() },
        Stored { workflow: None, ..Stored::default() },
        document(&|document| remove(document, "/metadata", "name")),
        document(&|document| remove(document, "/metadata", "labels")),
        document(&|document| remove(document, "/metadata", "secret")),
        document(&|document| document["spec"]["metadata"]["stages"] = json!([])),
        document(&|document| remove(document, STAGE, "compute")),
        document(&|document| remove(document, STAGE, "input")),
        document(&|document| stage(document, "/input", json!([{ "url": "https://example.org" }]))),
        document(&|document| remove(document, &format!("{STAGE}/algorithm"), "id")),
        document(&|document| remove(document, &format!("{STAGE}/algorithm"), "container")),
        document(&|document| remove(document, &format!("{STAGE}/algorithm/container"), "entrypoint")),
        document(&|document| remove(document, &format!("{STAGE}/algorithm/container"), "image")),
        document(&|document| {
            stage(document, "/algorithm/container", json!({ "image": "a", "entrypoint": "b", "checksum": "md5:0" }));
        }),
    ];
    let readable = [
        document(&|_| {}),
        document(&|document| stage(document, "/input", json!([]))),
        document(&|document| stage(document, "/algorithm/id", json!(""))),
        document(&|document| {
            stage(document, "/algorithm/container", json!({ "image": "a", "entrypoint": "b", "checksum": "sha256:0" }));
        }),
        document(&|document| stage(document, "/algorithm/container/image", json!("with \u{0} and \\u0000"))),
    ];
    let (mut ended, mut dispatched) = (Vec::new(), Vec::new());
    for job in unreadable {
        ended.push(fixture.row(job).await);
    }
    for job in readable {
        dispatched.push(fixture.row(job).await.job_id);
    }
    let mut given = fixture.app.database.engine(&fixture.app.namespace, r#"{"currentJobs": 0}"#, 100).await;
    given.sort();
    dispatched.sort();
    assert_eq!(given, dispatched);
    for job in &ended {
        let status = fixture.status(job).await;
        assert_eq!(
            status["reason"], "The job could not be started: its workflow cannot be read.",
            "{:?}",
            job.workflow
        );
        assert_eq!((&status["status"], status["dateFinished"].is_null()), (&json!(41), false));
    }
}

#[tokio::test]
async fn a_waiting_job_is_left_alone_unless_it_may_not_be_dispatched_any_more() {
    let fixture = Fixture::start().await;
    let waits = fixture.job(Stored::default()).await;
    let stopped = fixture.job(Stored { stopreq: Some(1), ..Stored::default() }).await;
    let deleted = fixture.job(Stored { stopreq: Some(1), removed: Some(1), ..Stored::default() }).await;
    let late = fixture.job(Stored { valid_until: Some(now() as i64 - 1), ..Stored::default() }).await;
    let in_time = fixture.job(Stored { valid_until: Some(now() as i64 + 1000), ..Stored::default() }).await;
    for job in [&waits, &in_time] {
        fixture.passed(&job.job_id, "seensince", 9_999_999).await;
    }
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "neverStarted"), [3, 3, 0, 0], "{report:#}");
    for (job, status, reason) in [
        (&stopped, 70, "The job was stopped before it was started."),
        (&deleted, 70, "The job was stopped before it was started."),
        (&late, 41, "No environment had room for the job before its validUntil."),
    ] {
        let found = fixture.status(job).await;
        assert_eq!((&found["status"], &found["reason"]), (&json!(status), &json!(reason)));
        assert_ne!(found["dateFinished"], Value::Null);
    }
    assert_eq!(fixture.objects(&deleted).await, Vec::<String>::new());
    for job in [&waits, &in_time] {
        assert_eq!(fixture.status(job).await["status"], 1);
    }
    let mut dispatched = fixture.app.database.engine(&fixture.app.namespace, "{}", 9).await;
    dispatched.sort();
    let mut expected = [waits.job_id.clone(), in_time.job_id.clone()];
    expected.sort();
    assert_eq!(dispatched, expected);
}
