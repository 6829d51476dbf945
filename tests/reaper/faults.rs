//! Faults: a cluster or database that throttles, refuses or is not available, and jobs that always fail.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::{Faults, Match};
use operator_service::config::{Config, DatabaseUse};
use operator_service::db::Database;
use operator_service::reaper::Reaper;
use operator_service::storage::Storage;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::fixture::{Fixture, LIMIT, ago, count, of_job};
use crate::jobs::{OUTPUTS, RULES, absent, end_state, expired, finished, kept_for, now, one_of_each, unregistered};
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
    assert_eq!(of_job(&report, &busy)[0], ("cleanups".to_owned(), "failed".to_owned()));
    assert_eq!(of_job(&report, &fine)[0], ("cleanups".to_owned(), "done".to_owned()));
    let asked = fixture.requests().into_iter().filter(|it| it.resource == "configmaps" && it.name == busy.job_id);
    assert_eq!(asked.count(), 4);
}

// Jobs that always fail

#[tokio::test]
async fn a_broken_job_stops_no_other_and_is_tried_again() {
    let fixture = Fixture::with_faults(&RULES).await;
    let [broken, fine] = [fixture.running(4000).await, fixture.running(4000).await];
    let expired = expired(&fixture).await;
    let name = format!("{}-algorithm-job", broken.job_id);
    fixture.faults().answer(Match::any().verb("delete").resource("jobs").name(&name), 500);
    for _ in 0..3 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &broken), [("timeLimits".to_owned(), "failed".to_owned())], "{report:#}");
        let status = fixture.status(&broken).await;
        assert_eq!((&status["stopreq"], status.get("reason")), (&json!(0), None), "it has not been stopped");
    }
    assert_eq!(fixture.status(&fine).await["stopreq"], 2);
    assert_eq!(fixture.status(&expired).await["removed"], 1);
    fixture.faults().clear();
    assert_eq!(of_job(&fixture.sweep().await, &broken), [("timeLimits".to_owned(), "done".to_owned())]);
    assert_eq!(fixture.status(&broken).await["stopreq"], 2);
}

#[tokio::test]
async fn objects_that_cannot_be_deleted_are_tried_again() {
    let fixture = Fixture::with_faults(&[]).await;
    let job = finished(&fixture, 70, 1.0, Stored::finished()).await;
    fixture.faults().answer(Match::any().verb("delete").name(&format!("{}-publish-job", job.job_id)), 500);
    for _ in 0..3 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &job), [("cleanups".to_owned(), "failed".to_owned())], "{report:#}");
        assert_eq!(fixture.objects(&job).await, ["Job/publish-job", "WorkFlow"]);
    }
    fixture.faults().clear();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&job).await, ["WorkFlow"]);
}

#[tokio::test]
async fn a_registration_that_fails_is_tried_again_with_growing_pauses() {
    let fixture = Fixture::with_faults(&[]).await;
    let job = unregistered(&fixture).await;
    fixture.faults().answer(Match::any().verb("create").resource("workflows"), 500);
    for (failures, pause) in [(1, 10.0), (2, 20.0), (3, 40.0), (4, 80.0)] {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &job), [("registrations".to_owned(), "failed".to_owned())], "{report:#}");
        assert_eq!(fixture.state_of(&job).await["failures"], failures);
        let left: f64 = sqlx::query_scalar(
            "SELECT extract(epoch FROM objectdue - clock_timestamp())::float8 FROM reaperjobs WHERE workflowid = $1",
        )
        .bind(&job.job_id)
        .fetch_one(&fixture.app.database.pool)
        .await
        .unwrap();
        assert!((pause - 9.0..=pause).contains(&left), "{left}");
        assert_eq!(of_job(&fixture.sweep().await, &job), [], "it is left alone");
        fixture.passed(&job.job_id, "objectdue", 4000).await;
    }
    fixture.faults().clear();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&job).await, ["WorkFlow"]);
    assert_eq!(fixture.state_of(&job).await["failures"], 0);
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
    assert!(fixture.is_expired(&expired).await, "{report:#}");
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &over.job_id).await.unwrap();
    assert_eq!(object["status"]["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");

    // Nor the other duties of the same job.
    let begin = "UPDATE jobs SET status = 40, statustext = 'Running algorithm' WHERE workflowid = $1";
    fixture.execute(begin, &waiting).await;
    fixture.step(&waiting.job_id, "algorithm", 4000).await;
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &waiting)[0], ("timeLimits".to_owned(), "done".to_owned()), "{report:#}");
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
    let after = fixture.app.database.row(waiting, "").await.unwrap();
    for (before, after) in before.unwrap().as_array().unwrap().iter().zip(after.as_array().unwrap()) {
        // What does not depend on the cluster is done.
        if before["workflowid"] == jobs[2].job_id.as_str() {
            assert_eq!(after["removed"], 1);
        } else {
            assert_eq!(after, before);
        }
    }
    fixture.faults().clear();
    let report = fixture.sweep().await;
    for kind in ["timeLimits", "stuckSteps", "cleanups", "orphans", "registrations"] {
        assert_eq!(count(&report, kind), [1, 1, 0, 0], "{kind} {report:#}");
    }
    assert_eq!(fixture.state_of(&lost).await["seen"], "absent");
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
    fixture.sweep().await;
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
    assert_eq!(fixture.status(&jobs[3]).await["status"], 41);
}

#[tokio::test]
async fn a_lost_job_is_finished_only_if_the_cluster_confirms_that_it_is_lost() {
    let fixture = Fixture::with_faults(&RULES).await;
    for _ in 0..20 {
        let job = fixture.job(Stored::running()).await;
        fixture.app.cluster.engine_job(&fixture.app.namespace, &job.job_id, "algorithm").await;
        fixture.job_failed(&job.job_id, "algorithm").await;
    }
    // The last one.
    let lost = fixture.job(Stored { job_id: "f".repeat(32), ..Stored::running() }).await;
    absent(&fixture, &lost, 301).await;
    // The cluster goes down after the environment was read.
    fixture.faults().drop_connection(Match::any().verb("delete"));
    let report = fixture.try_sweep().await.unwrap();
    assert!(count(&report, "stuckSteps")[2] >= 5, "{report:#}");
    assert_eq!(count(&report, "orphans"), [1, 0, 0, 1], "{report:#}");
    assert_eq!(fixture.status(&lost).await["dateFinished"], Value::Null);
    fixture.faults().clear();
    fixture.sweep().await;
    assert_eq!(fixture.status(&lost).await["status"], 41);
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
        absent(&fixture, &running, 24 * 3600).await;
        let old = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
        let expired = job(Stored { finished: Some(now() - 100.0), ..old }).await;
        there.push((namespace, running, expired));
    }
    let announce = async |namespace: &str| fixture.app.database.announce(namespace, r#"{"currentJobs": 1}"#).await;
    for (namespace, ..) in &there {
        announce(namespace).await;
    }
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "done".to_owned())]);
    let problems = report["problems"].as_array().unwrap();
    for (namespace, running, expired) in &there {
        let reported = problems.iter().any(|problem| problem.as_str().unwrap().starts_with(&format!("{namespace}: ")));
        assert!(reported, "{namespace} {report:#}");
        assert_eq!(fixture.status(running).await["dateFinished"], Value::Null, "its engine lives: {namespace}");
        assert!(fixture.is_expired(expired).await, "{namespace}");
    }
    // It is read again by each sweep, with one request.
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    assert_eq!(fixture.requests().iter().filter(|it| it.namespace == forbidden).count(), 1);
    // An engine that is silent for an hour is gone.
    let silent =
        "ALTER TABLE envs DISABLE TRIGGER envs_announced; UPDATE envs SET announcedat = now() - interval '3601 s'";
    fixture.app.database.execute(silent).await;
    fixture.sweep().await;
    for (namespace, running, _) in &there {
        assert_eq!(fixture.status(running).await["status"], 41, "{namespace}");
    }
}

#[tokio::test]
async fn a_job_whose_engine_lives_is_not_finished_by_a_sweep_that_cannot_see_it() {
    let fixture = Fixture::with_faults(&RULES).await;
    let namespace = fixture.app.namespace.clone();
    // Its results have been published for longer than the algorithm may run.
    let publishing = fixture.job(Stored { status: Some(60), ..Stored::running() }).await;
    fixture.step(&publishing.job_id, "publish", 9000).await;
    fixture.passed(&publishing.job_id, "seensince", 9000).await;
    fixture.app.database.announce(&namespace, r#"{"currentJobs": 1}"#).await;
    type Break = fn(&Faults);
    let breaks: [Break; 4] = [
        |faults| faults.answer(Match::any().verb("list"), 403),
        |faults| faults.answer(Match::any().verb("list").resource("pods"), 500),
        |faults| faults.drop_connection(Match::any().verb("list").resource("jobs")),
        Faults::refuse_connections,
    ];
    for cannot_be_seen in breaks {
        cannot_be_seen(fixture.faults());
        fixture.try_sweep().await.unwrap();
        fixture.faults().clear();
        assert_eq!(fixture.status(&publishing).await["dateFinished"], Value::Null);
    }
    // Nor while its pod is being replaced, or its step has just ended.
    let pod = fixture.pod(&publishing.job_id, "publish").await;
    fixture.pod_status(&pod, json!({ "phase": "Failed", "reason": "Evicted" })).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&publishing).await["dateFinished"], Value::Null);
    let ended = json!({ "startTime": ago(9000), "active": 0, "ready": 0, "succeeded": 1 });
    fixture.job_status(&publishing.job_id, "publish", ended).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&publishing).await["dateFinished"], Value::Null);
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
        assert_eq!((&states[2][0]["expired"], &states[2][2]), (&json!(true), &json!([])), "{resource}");
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
    let reaper = Reaper::new(empty.service(), &fixture.app.cluster.service().await, origins, config.reaper);
    for dry_run in [false, true] {
        let error = reaper.sweep(dry_run, LIMIT).await.unwrap_err().to_string();
        assert!(error.contains("operator-service migrate"), "{error}");
    }
}
