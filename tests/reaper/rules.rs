//! Rules that have one home in Rust and are applied in SQL as well: which jobs may be dispatched, which are settled,
//! and in which namespace a job runs.

use std::collections::BTreeSet;

use operator_service::db::Cursor;
use operator_service::domain::{JobId, Namespace, Status, StopRequest, may_be_dispatched, settles_in};
use serde_json::{Value, json};

use crate::fixture::{Fixture, count, of_job};
use crate::jobs::{OUTPUTS, kept_for, now};
use crate::support::{Stored, TestDatabase};

const NAMESPACE: &str = "environment";

#[tokio::test]
async fn a_waiting_job_is_registered_if_it_may_be_dispatched_and_else_finished() {
    let database = TestDatabase::migrated().await;
    let (mut dispatchable, mut others) = (BTreeSet::new(), BTreeSet::new());
    for stopreq in [None, Some(0), Some(1), Some(2)] {
        for removed in [None, Some(0), Some(1)] {
            for valid_for in [None, Some(-600), Some(600)] {
                let valid_until = valid_for.map(|seconds| now() as i64 + seconds);
                let namespace = Some(NAMESPACE.to_owned());
                let job = Stored { namespace, stopreq, removed, valid_until, ..Stored::default() };
                let job = job.insert(&database).await;
                let stop = StopRequest::from_code(stopreq.unwrap_or(0));
                let (removed, valid_for) = (removed == Some(1), valid_for.map(|seconds| seconds as f64));
                match may_be_dispatched(Status::WarmingUp, stop, removed, valid_for) {
                    true => dispatchable.insert(job.job_id),
                    false => others.insert(job.job_id),
                };
            }
        }
    }
    database.execute("UPDATE jobs SET registered = false").await;
    let store = database.service();
    let (unregistered, _) = store.unregistered_jobs(&Cursor::default()).await.unwrap();
    let unregistered: BTreeSet<_> = unregistered.into_iter().map(|job| job.job_id.to_string()).collect();
    assert_eq!(unregistered, dispatchable);
    let namespace = Namespace::stored(NAMESPACE);
    let (unfinished, _) = store.unfinished_jobs(&namespace, false, true, &Cursor::default()).await.unwrap();
    let unfinished: BTreeSet<_> = unfinished.into_iter().map(|job| job.job_id.to_string()).collect();
    assert_eq!(unfinished, others);
    let dispatched: BTreeSet<_> = database.engine(NAMESPACE, "{}", 1000).await.into_iter().collect();
    assert_eq!(dispatched, dispatchable);
}

#[tokio::test]
async fn settled_means_the_same_in_rust_and_sql() {
    let database = TestDatabase::migrated().await;
    let mut expected = BTreeSet::new();
    let mut names = Vec::new();
    for status in [0, 1, 10, 20, 30, 31, 32, 40, 41, 50, 60, 70, 99] {
        for age in [None, Some(-600.0), Some(0.0), Some(3500.0), Some(3700.0)] {
            let finished = age.map(|age| now() - age);
            let job = Stored { status: Some(status), finished, ..Stored::default() }.insert(&database).await;
            names.push(JobId::stored(&job.job_id));
            if age.is_some_and(|age| settles_in(Status::from_code(status), age) <= 0.0) {
                expected.insert(job.job_id);
            }
        }
    }
    let known = database.service().known_jobs(&names).await.unwrap();
    assert_eq!(known.len(), names.len());
    let settled: BTreeSet<_> = known.into_iter().filter(|job| job.settled).map(|job| job.job_id.to_string()).collect();
    assert_eq!(settled, expected);
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
    for (job, kind) in [(&over_limit, "timeLimits"), (&waiting, "registrations"), (&expired, "expiries")] {
        assert_eq!(of_job(&report, job), [(kind.to_owned(), "done".to_owned())], "{report:#}");
    }
    assert_eq!(report["problems"], json!([]));
    assert_eq!(fixture.status(&over_limit).await["stopreq"], 2);
    let object = fixture.app.cluster.workflow(&namespace, &over_limit.job_id).await.unwrap();
    assert_eq!(object["status"]["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");
    assert_eq!(fixture.status(&under_limit).await["stopreq"], 0);
    assert_eq!(fixture.objects(&waiting).await, ["WorkFlow"]);
    assert_eq!(fixture.objects(&expired).await, Vec::<String>::new());

    fixture.passed(&lost.job_id, "absentsince", 61).await;
    assert_eq!(count(&fixture.sweep().await, "orphans"), [1, 1, 0, 0]);
    assert_eq!(fixture.status(&lost).await["reason"], "The environment lost the job while it ran.");
}

#[tokio::test]
async fn the_default_environment_is_swept_if_only_jobs_without_a_namespace_run_there() {
    let fixture = Fixture::builder().app(|app| app.unannounced()).start().await;
    let job = Stored { namespace: None, ..Stored::running() }.insert(&fixture.app.database).await;
    fixture.sweep().await;
    assert_ne!(fixture.row_of(&job).await["absentsince"], Value::Null);
}
