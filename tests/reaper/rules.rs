//! Rules that several statements apply: which jobs may be dispatched, which are settled, in which namespace a job runs, and
//! when outputs expire.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::fixture::{Fixture, count, of_job};
use crate::jobs::{OUTPUTS, kept_for, now};
use crate::support::Stored;

#[tokio::test]
async fn a_waiting_job_is_dispatched_if_it_may_be_and_else_finished() {
    let fixture = Fixture::start().await;
    let (mut dispatchable, mut others) = (BTreeSet::new(), BTreeSet::new());
    for stopreq in [None, Some(0), Some(1), Some(2)] {
        for removed in [None, Some(0), Some(1)] {
            for valid_for in [None, Some(-600), Some(600)] {
                let valid_until = valid_for.map(|seconds| now() as i64 + seconds);
                let job = fixture.row(Stored { stopreq, removed, valid_until, ..Stored::default() }).await;
                match stopreq.unwrap_or(0) == 0 && removed != Some(1) && valid_for != Some(-600) {
                    true => dispatchable.insert(job.job_id),
                    false => others.insert(job.job_id),
                };
            }
        }
    }
    let ids = async |statement: &'static str| -> BTreeSet<String> {
        sqlx::query_scalar(statement).fetch_all(&fixture.app.database.pool).await.unwrap().into_iter().collect()
    };
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "neverStarted"), [others.len() as u64, others.len() as u64, 0, 0], "{report:#}");
    assert_eq!(ids("SELECT workflowid FROM jobs WHERE datefinished IS NOT NULL").await, others);
    let dispatched = fixture.app.database.engine(&fixture.app.namespace, "{}", 1000).await;
    assert_eq!(dispatched.into_iter().collect::<BTreeSet<_>>(), dispatchable);
}

#[tokio::test]
async fn settled_means_the_same_for_objects_and_outputs() {
    let fixture = Fixture::start().await;
    let (mut settled, mut jobs) = (BTreeSet::new(), Vec::new());
    for status in [0, 1, 10, 20, 30, 31, 32, 40, 41, 50, 60, 70, 99] {
        for age in [-600.0, 0.0, 3500.0, 3700.0] {
            let finished = Some(now() - age);
            let job = Stored { status: Some(status), finished, removed: Some(1), ..Stored::finished() };
            let job = fixture.row(job).await;
            fixture.app.cluster.engine_volumes(&fixture.app.namespace, &job.job_id).await;
            if [31, 32, 70].contains(&status) || age >= 3600.0 {
                settled.insert(job.job_id.clone());
            }
            jobs.push(job);
        }
    }
    let report = fixture.sweep().await;
    let number = settled.len() as u64;
    for kind in ["cleanups", "expiries"] {
        assert_eq!(count(&report, kind), [number, number, 0, 0], "{report:#}");
    }
    for job in jobs {
        let is_settled = settled.contains(&job.job_id);
        assert_eq!((fixture.objects(&job).await.is_empty(), fixture.is_expired(&job).await), (is_settled, is_settled));
    }
}

#[tokio::test]
async fn the_expiry_of_a_workflow_is_read_from_whatever_is_stored() {
    let fixture = Fixture::start().await;
    let read = async |workflow: &str| -> Option<i64> {
        let statement = sqlx::query_scalar("SELECT workflow_expiry($1)").bind(workflow);
        statement.fetch_one(&fixture.app.database.pool).await.unwrap()
    };
    let longest = 1000 * 365 * 24 * 3600;
    for (expiry, expected) in [
        (json!(0), Some(0)),
        (json!(500), Some(500)),
        (json!("500"), Some(500)),
        (json!(" 500 "), Some(500)),
        (json!(0.9), Some(0)),
        (json!(-5), Some(0)),
        (json!("-1e300"), Some(0)),
        (json!(1e300), Some(longest)),
        (json!("1e300"), Some(longest)),
        (json!("NaN"), None),
        (json!("inf"), None),
        (json!("-infinity"), None),
        (json!("never"), None),
        (json!(true), None),
        (json!([1]), None),
        (json!(null), None),
    ] {
        assert_eq!(read(&kept_for(expiry.clone()).unwrap()).await, expected, "{expiry}");
    }
    let with_nul = kept_for(json!(7)).unwrap().replacen('{', r#"{"a\\u0000": "\u0000", "#, 1);
    assert_eq!(read(&with_nul).await, Some(7));
    let deep = format!(r#"{{"spec": {}1{}}}"#, "[".repeat(200_000), "]".repeat(200_000));
    for damaged in ["", "null", "{", "[[[[", deep.as_str(), r#"{"spec": {"metadata": {"stages": []}}}"#] {
        assert_eq!(read(damaged).await, None);
    }
}

#[tokio::test]
async fn a_job_without_a_namespace_runs_in_the_default_one() {
    let fixture = Fixture::builder().var("STORAGE_EXPIRY", 10).start().await;
    let namespace = fixture.app.namespace.clone();
    fixture.app.database.announce(&namespace, r#"{"maxJobDuration": 3600}"#).await;
    let stored = async |job: Stored| Stored { namespace: None, ..job }.insert(&fixture.app.database).await;

    let over_limit = stored(Stored::running()).await;
    fixture.app.cluster.make_workflow(&namespace, &over_limit.job_id).await;
    fixture.step(&over_limit.job_id, "algorithm", 3700).await;
    let under_limit = stored(Stored::running()).await;
    fixture.step(&under_limit.job_id, "algorithm", 3500).await;
    let waiting = stored(Stored::default()).await;
    let lost = stored(Stored::running()).await;
    let expired = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let expired = stored(Stored { finished: Some(now() - 100.0), ..expired }).await;
    fixture.app.cluster.engine_objects(&namespace, &expired.job_id).await;
    let update = "UPDATE jobs SET registered = false WHERE workflowid = $1";
    sqlx::query(update).bind(&waiting.job_id).execute(&fixture.app.database.pool).await.unwrap();

    let report = fixture.sweep().await;
    for (job, kinds) in
        [(&over_limit, &["timeLimits"][..]), (&waiting, &["registrations"]), (&expired, &["cleanups", "expiries"])]
    {
        let expected: Vec<_> = kinds.iter().map(|kind| ((*kind).to_owned(), "done".to_owned())).collect();
        assert_eq!(of_job(&report, job), expected, "{report:#}");
    }
    assert_eq!(report["problems"], json!([]));
    assert_eq!(fixture.status(&over_limit).await["stopreq"], 2);
    let object = fixture.app.cluster.workflow(&namespace, &over_limit.job_id).await.unwrap();
    assert_eq!(object["status"]["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");
    assert_eq!(fixture.status(&under_limit).await["stopreq"], 0);
    assert_eq!(fixture.objects(&waiting).await, ["WorkFlow"]);
    assert_eq!(fixture.objects(&expired).await, Vec::<String>::new());

    fixture.passed(&lost.job_id, "seensince", 301).await;
    assert_eq!(count(&fixture.sweep().await, "orphans"), [1, 1, 0, 0]);
    assert_eq!(fixture.status(&lost).await["reason"], "The environment lost the job while it ran.");
}

#[tokio::test]
async fn the_default_environment_is_swept_if_only_jobs_without_a_namespace_run_there() {
    let fixture = Fixture::builder().app(|app| app.unannounced()).start().await;
    let job = Stored { namespace: None, ..Stored::running() }.insert(&fixture.app.database).await;
    fixture.sweep().await;
    assert_eq!(fixture.state_of(&job).await["seen"], "absent");
}
