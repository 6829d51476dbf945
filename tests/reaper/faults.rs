//! Faults: a cluster or database that throttles, refuses or is not available, and jobs that always fail.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::Match;
use operator_service::config::{Config, DatabaseUse};
use operator_service::db::Database;
use operator_service::reaper::Reaper;
use operator_service::storage::Storage;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fixture::{Fixture, LIMIT, count, of_job};
use crate::jobs::{OUTPUTS, RULES, end_state, expired, finished, kept_for, now, one_of_each, unregistered};
use crate::support::{Proxy, Stored, TestDatabase, eventually};

// Throttling

#[tokio::test]
async fn no_request_is_sent_before_the_time_that_a_429_asks_for() {
    // Four requests concurrently, a quarter of a second apart.
    let fixture = Fixture::with_faults(&[("REAP_RATE", "4")]).await;
    for _ in 0..5 {
        unregistered(&fixture).await;
    }
    fixture.faults().throttle(Match::any().verb("create").times(1), Duration::from_secs(4));
    let creates = || fixture.requests().iter().filter(|it| it.verb == "create").count();
    let watching = async {
        let first = eventually("the first", LIMIT, async || (creates() == 1).then(Instant::now)).await;
        eventually("the next", LIMIT, async || (creates() > 1).then_some(first.elapsed())).await
    };
    let (report, pause) = tokio::join!(fixture.sweep(), watching);
    assert!(pause > Duration::from_secs(3), "{pause:?}");
    // The cluster was busy, not down.
    assert_eq!(count(&report, "registrations"), [5, 5, 0, 0], "{report:#}");
    assert_eq!(creates(), 6);
}

#[tokio::test]
async fn a_request_that_is_always_throttled_is_given_up_after_a_few_attempts() {
    let fixture = Fixture::with_faults(&RULES).await;
    let [busy, fine] = [expired(&fixture).await, expired(&fixture).await];
    let which = Match::any().verb("delete").resource("configmaps").name(&busy.job_id);
    fixture.faults().throttle(which, Duration::ZERO);
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &busy), [("expiries".to_owned(), "failed".to_owned())]);
    assert_eq!(of_job(&report, &fine), [("expiries".to_owned(), "done".to_owned())]);
    let asked = fixture.requests().into_iter().filter(|it| it.resource == "configmaps" && it.name == busy.job_id);
    assert_eq!(asked.count(), 4);
}

// Jobs that always fail

#[tokio::test]
async fn a_broken_job_stops_no_other_and_is_tried_again_with_growing_pauses() {
    let fixture = Fixture::with_faults(&RULES).await;
    let [broken, fine] = [fixture.running(4000).await, fixture.running(4000).await];
    let expired = expired(&fixture).await;
    let name = format!("{}-algorithm-job", broken.job_id);
    fixture.faults().answer(Match::any().verb("delete").resource("jobs").name(&name), 500);
    let failed = [("timeLimits".to_owned(), "failed".to_owned())];
    let mut pauses = Vec::new();
    for failures in 1..=4 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &broken), failed, "{report:#}");
        assert_eq!(fixture.row_of(&broken).await["reapfailures"], failures);
        // The Job may have been deleted.
        assert_eq!(fixture.status(&broken).await["stopreq"], 2);
        pauses.push(fixture.pause(&broken).await);
        assert_eq!(of_job(&fixture.sweep().await, &broken), [], "it is left alone");
        fixture.passed(&broken.job_id, "reapat", 4000).await;
    }
    for (pause, expected) in pauses.iter().zip([10.0, 20.0, 40.0, 80.0]) {
        assert!((expected - 9.0..=expected).contains(pause), "{pauses:?}");
    }
    assert_eq!(fixture.status(&fine).await["stopreq"], 2);
    assert_eq!(fixture.status(&expired).await["removed"], 1);
    fixture.faults().clear();
    assert_eq!(of_job(&fixture.sweep().await, &broken), [("timeLimits".to_owned(), "done".to_owned())]);
    let row = fixture.row_of(&broken).await;
    assert_eq!((&row["reapfailures"], &row["reapat"]), (&json!(0), &json!("-infinity")));
}

#[tokio::test]
async fn orphaned_objects_that_cannot_be_deleted_are_tried_again_with_growing_pauses() {
    let fixture = Fixture::with_faults(&[]).await;
    let job = finished(&fixture, 70, 1.0, Stored::finished()).await;
    fixture.sweep().await;
    fixture.app.cluster.engine_objects(&fixture.app.namespace, &job.job_id).await;
    fixture.faults().answer(Match::any().verb("delete").name(&format!("{}-publish-job", job.job_id)), 500);
    for failures in 1..=3 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &job), [("cleanups".to_owned(), "failed".to_owned())], "{report:#}");
        assert_eq!(fixture.row_of(&job).await["reapfailures"], failures);
        assert_eq!(of_job(&fixture.sweep().await, &job), [], "it is left alone");
        fixture.passed(&job.job_id, "reapat", 4000).await;
    }
    fixture.faults().clear();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&job).await, ["WorkFlow"]);
    assert_eq!(fixture.row_of(&job).await["reapfailures"], 0);
}

#[tokio::test]
async fn a_node_that_returns_no_log_delays_nothing_else() {
    let fixture = Fixture::with_faults(&RULES).await;
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(fixture.running(4000).await);
    }
    let (refused, broken) = jobs.split_at(2);
    for job in refused {
        let pod = fixture.pod(&job.job_id, "algorithm").await;
        fixture.faults().answer(Match::any().subresource("log").name(&pod), 500);
    }
    for job in broken {
        let pod = fixture.pod(&job.job_id, "algorithm").await;
        fixture.faults().drop_connection(Match::any().subresource("log").name(&pod));
    }
    let expired = expired(&fixture).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "timeLimits"), [8, 8, 0, 0], "{report:#}");
    assert_eq!(fixture.status(&expired).await["removed"], 1);
}

#[tokio::test]
async fn a_job_that_may_not_be_registered_stops_nothing_else() {
    let fixture = Fixture::with_faults(&RULES).await;
    let waiting = unregistered(&fixture).await;
    let [over, expired] = [fixture.running(4000).await, expired(&fixture).await];
    // For example because of a quota.
    fixture.faults().answer(Match::any().verb("create").resource("workflows"), 403);
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &waiting), [("registrations".to_owned(), "failed".to_owned())]);
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "done".to_owned())]);
    assert_eq!(of_job(&report, &expired), [("expiries".to_owned(), "done".to_owned())], "{report:#}");
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &over.job_id).await.unwrap();
    assert_eq!(object["status"]["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");

    // Nor the other duties of the same job.
    let begin = "UPDATE jobs SET status = 40, statustext = 'Running algorithm' WHERE workflowid = $1";
    fixture.execute(begin, &waiting).await;
    fixture.step(&waiting.job_id, "algorithm", 4000).await;
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &waiting), [("timeLimits".to_owned(), "done".to_owned())], "{report:#}");
}

// The cluster is down

#[tokio::test]
async fn nothing_is_lost_while_the_cluster_is_down() {
    let fixture = Fixture::with_faults(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    let lost = fixture.job(Stored::running()).await;
    let waiting = "SELECT to_jsonb(array_agg(to_jsonb(jobs) ORDER BY workflowid)) FROM jobs WHERE $1 = ''";
    let before = fixture.app.database.row(waiting, "").await;
    fixture.faults().refuse_connections();
    let report = fixture.try_sweep().await.unwrap();
    assert_eq!(report["complete"], false);
    assert_ne!(report["problems"], json!([]));
    assert_eq!(count(&report, "orphans"), [0; 4]);
    let mut after = fixture.app.database.row(waiting, "").await;
    // Its expiry was read.
    for row in after.as_mut().unwrap().as_array_mut().unwrap() {
        if row["workflowid"] == jobs[2].job_id.as_str() {
            row["expiry"] = Value::Null;
        }
    }
    assert_eq!(after, before);
    fixture.faults().clear();
    let report = fixture.sweep().await;
    for kind in ["timeLimits", "stuckSteps", "expiries", "orphans", "registrations"] {
        assert_eq!(count(&report, kind), [1, 1, 0, 0], "{kind} {report:#}");
    }
    assert_ne!(fixture.row_of(&lost).await["absentsince"], Value::Null);
}

#[tokio::test]
async fn a_cluster_that_recovers_during_a_sweep_is_used() {
    let fixture = Fixture::with_faults(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    fixture.faults().drop_connection(Match::any().times(1));
    let report = fixture.try_sweep().await.unwrap();
    assert_eq!(fixture.objects(&jobs[4]).await, ["WorkFlow"], "{report:#}");
    assert_eq!(fixture.status(&jobs[3]).await["dateFinished"], Value::Null, "its absence was not observed");
    fixture.faults().clear();
    fixture.passed(&jobs[2].job_id, "reapat", 60).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
    assert_eq!(fixture.status(&jobs[3]).await["status"], 41);
}

#[tokio::test]
async fn a_forbidden_or_invalid_namespace_is_reported_and_affects_no_other() {
    let fixture = Fixture::with_faults(&RULES).await;
    let forbidden = fixture.app.cluster.another_namespace().await;
    fixture.faults().answer(Match::any().namespace(&forbidden), 403);
    let over = fixture.running(4000).await;
    let mut there = Vec::new();
    for namespace in [forbidden.as_str(), "../No Name", ""] {
        let job = |job: Stored| Stored { namespace: Some(namespace.to_owned()), ..job }.insert(&fixture.app.database);
        let running = job(Stored::running()).await;
        let absent = "UPDATE jobs SET absentsince = clock_timestamp() - interval '1 day' WHERE workflowid = $1";
        fixture.execute(absent, &running).await;
        let long_past = job(Stored::running()).await;
        fixture.passed(&long_past.job_id, "statussince", 7300).await;
        let old = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
        let expired = job(Stored { finished: Some(now() - 100.0), ..old }).await;
        there.push((namespace, running, long_past, expired));
    }
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "done".to_owned())]);
    let problems = report["problems"].as_array().unwrap();
    for (namespace, running, long_past, expired) in &there {
        let reported = problems.iter().any(|problem| problem.as_str().unwrap().starts_with(&format!("{namespace}: ")));
        assert!(reported, "{namespace} {report:#}");
        assert_eq!(fixture.status(running).await["dateFinished"], Value::Null, "{namespace}");
        assert_eq!(fixture.status(long_past).await["status"], 41, "{namespace}");
        // A job whose namespace is no valid name never had objects.
        let gone = *namespace != forbidden;
        assert_eq!(fixture.row_of(expired).await["purged"], gone, "{namespace}");
    }
    // It is left alone for a while, then looked at again.
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    assert!(fixture.requests().iter().all(|it| it.namespace != forbidden));
    fixture.faults().clear();
    fixture.app.database.execute("UPDATE sweptenvs SET retryat = now()").await;
    let (_, running, _, expired) = &there[0];
    fixture.passed(&expired.job_id, "reapat", 4000).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(running).await["status"], 41);
    assert_eq!(fixture.status(expired).await["removed"], 1);
}

// The database is down

/// A reaper that reaches the database through a proxy.
async fn reaper_through(fixture: &Fixture, proxy: &Proxy) -> Reaper {
    let mut variables: BTreeMap<String, String> = fixture.app.database.variables().into_iter().collect();
    variables.extend(RULES.map(|(name, value)| (name.to_owned(), value.to_owned())));
    variables.insert("POSTGRES_HOST".to_owned(), "127.0.0.1".to_owned());
    variables.insert("POSTGRES_PORT".to_owned(), proxy.port.to_string());
    variables.insert("REAP_RATE".to_owned(), "1000".to_owned());
    let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
    let origins = Storage::new(&config.storage).unwrap();
    let database = Database::new(config.database.as_ref().unwrap());
    Reaper::new(database, &fixture.app.cluster.service().await, origins, config.reaper)
}

#[tokio::test]
async fn nothing_is_lost_when_the_database_fails_during_a_sweep() {
    for resource in ["jobs", "pods", "configmaps"] {
        let fixture = Fixture::with_faults(&RULES).await;
        let jobs = one_of_each(&fixture).await;
        let proxy = Proxy::to(fixture.app.database.address().await).await;
        let reaper = reaper_through(&fixture, &proxy).await;
        let verb = if resource == "configmaps" { "delete" } else { "list" };
        fixture.faults().delay(Match::any().verb(verb).resource(resource).times(1), Duration::from_secs(1));
        let meanwhile = async {
            fixture.wait_for_request(verb, resource).await;
            proxy.cut();
        };
        let (ended, ()) = tokio::join!(reaper.sweep(false, LIMIT), meanwhile);
        assert!(ended.as_ref().map_or(true, |report| !report.complete || report.total().failed > 0), "{ended:?}");
        proxy.open();
        fixture.expire_lease().await;
        assert!(reaper.sweep(false, LIMIT).await.unwrap().complete, "{resource}");
        let states = end_state(&fixture, &jobs).await;
        assert_eq!(states[0][0]["stopreq"], 2, "{resource} {states:#?}");
        assert_eq!(states[1][0]["reason"], "The algorithm ran out of memory.");
        assert_eq!((&states[2][0]["purged"], &states[2][2]), (&json!(true), &json!(["WorkFlow"])), "{resource}");
        assert_eq!(states[3][0]["status"], 41, "{resource}");
        assert_eq!(states[4][2], json!(["WorkFlow"]), "{resource}");
    }
}

#[tokio::test]
async fn a_database_that_restarts_during_a_sweep_is_used_again() {
    let fixture = Fixture::with_faults(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    fixture.faults().delay(Match::any().verb("list").resource("jobs").times(1), Duration::from_secs(1));
    let meanwhile = async {
        fixture.wait_for_request("list", "jobs").await;
        assert!(fixture.app.database.terminate_connections().await > 0);
    };
    let (_, ()) = tokio::join!(fixture.try_sweep(), meanwhile);
    fixture.expire_lease().await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
}

#[tokio::test]
async fn without_the_schema_a_sweep_says_what_to_do() {
    let fixture = Fixture::with_faults(&[]).await;
    let empty = TestDatabase::empty().await;
    let variables: BTreeMap<String, String> = empty.variables().into_iter().collect();
    let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
    let origins = Storage::new(&config.storage).unwrap();
    let reaper = Reaper::new(empty.store(), &fixture.app.cluster.service().await, origins, config.reaper);
    for dry_run in [false, true] {
        let error = reaper.sweep(dry_run, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("operator-service migrate"), "{error}");
    }
}
