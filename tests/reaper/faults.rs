//! Bad days: sweeps at once, sweeps that are killed, no time, too much work, cluster or database gone, clocks that differ.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use fake_kubernetes::{Faults, Match, Request};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use operator_service::config::{Config, DatabaseUse};
use operator_service::db::Database;
use operator_service::domain::{JobId, Namespace};
use operator_service::kubernetes::Deletion;
use operator_service::reaper::Reaper;
use operator_service::storage::Storage;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::finished::{OUTPUTS, finished, kept_for, now};
use crate::fixture::{Fixture, count, of_job};
use crate::support::{Cluster, Proxy, Stored, TestDatabase, eventually};
use crate::unfinished::terminated;

const LIMIT: Duration = Duration::from_secs(30);

/// A fixture in whose cluster faults can be ordered.
async fn fixture(variables: &[(&str, &str)]) -> Fixture {
    let cluster = Cluster::embedded().await;
    let builder = variables.iter().fold(Fixture::builder(), |builder, (name, value)| builder.var(name, value));
    builder.app(|app| app.cluster(cluster)).start().await
}

fn faults(fixture: &Fixture) -> &Faults {
    fixture.app.cluster.stand_in().faults()
}

/// What the reaper has asked the cluster for.
fn requests(fixture: &Fixture) -> Vec<Request> {
    let requests = fixture.app.cluster.stand_in().requests();
    requests.into_iter().filter(|request| request.user_agent.starts_with("operator-service/")).collect()
}

/// The reaper has asked for that.
async fn asked(fixture: &Fixture, verb: &str, resource: &str) {
    eventually(&format!("{verb} {resource}"), LIMIT, async || {
        requests(fixture).iter().any(|it| it.verb == verb && it.resource == resource).then_some(())
    })
    .await;
}

async fn short_sweep(fixture: &Fixture, time: Duration) -> Value {
    serde_json::to_value(fixture.reaper.sweep(false, time).await.unwrap()).unwrap()
}

async fn execute(fixture: &Fixture, statement: &'static str, job: &Stored) {
    let done = sqlx::query(statement).bind(&job.job_id).execute(&fixture.app.database.pool).await.unwrap();
    assert_eq!(done.rows_affected(), 1, "{statement}");
}

/// The lease of a sweep that was killed runs out.
async fn lease_runs_out(fixture: &Fixture) {
    fixture.app.database.execute("UPDATE sweeps SET helduntil = clock_timestamp()").await;
}

/// How many seconds from now the reaper leaves a job alone.
async fn pause(fixture: &Fixture, job: &Stored) -> f64 {
    sqlx::query_scalar("SELECT extract(epoch FROM reapat - clock_timestamp())::float8 FROM jobs WHERE workflowid = $1")
        .bind(&job.job_id)
        .fetch_one(&fixture.app.database.pool)
        .await
        .unwrap()
}

/// A job that is not in the cluster yet.
async fn unregistered(fixture: &Fixture) -> Stored {
    let job = fixture.row(Stored::default()).await;
    execute(fixture, "UPDATE jobs SET registered = false WHERE workflowid = $1", &job).await;
    job
}

/// A running job of which nothing has been seen for longer than it takes to be taken for an orphan.
async fn orphan(fixture: &Fixture) -> Stored {
    let job = fixture.job(Stored::running()).await;
    let absent = "UPDATE jobs SET absentsince = clock_timestamp() - interval '61 s' WHERE workflowid = $1";
    execute(fixture, absent, &job).await;
    job
}

/// A finished job whose outputs have expired where STORAGE_EXPIRY is below 100.
async fn expired(fixture: &Fixture) -> Stored {
    let job = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    finished(fixture, 70, 100.0, job).await
}

/// A job whose algorithm ran out of memory.
async fn stuck(fixture: &Fixture) -> Stored {
    let job = fixture.job(Stored::running()).await;
    fixture.app.cluster.engine_job(&fixture.app.namespace, &job.job_id, "algorithm").await;
    let pod = fixture.pod(&job.job_id, "algorithm").await;
    fixture.pod_status(&pod, terminated("algorithm", "OOMKilled", 137, 100)).await;
    fixture.job_failed(&job.job_id, "algorithm").await;
    job
}

const RULES: [(&str, &str); 2] = [("ALGO_POD_TIMEOUT", "3600"), ("STORAGE_EXPIRY", "10")];

/// One job of each kind that there is something to do with.
async fn one_of_each(fixture: &Fixture) -> Vec<Stored> {
    vec![
        fixture.running(4000).await,
        stuck(fixture).await,
        expired(fixture).await,
        orphan(fixture).await,
        unregistered(fixture).await,
    ]
}

/// What book and cluster say of jobs, without what differs from one to the next.
async fn end_state(fixture: &Fixture, jobs: &[Stored]) -> Vec<Value> {
    let mut states = Vec::new();
    for job in jobs {
        let row = fixture.row_of(job).await;
        let columns = [
            "status",
            "statustext",
            "stopreq",
            "removed",
            "reason",
            "outputsurl",
            "closed",
            "registered",
            "mirrored",
            "tidied",
            "purged",
            "reapfailures",
        ];
        let columns: BTreeMap<_, _> = columns.iter().map(|name| (*name, row[*name].clone())).collect();
        let object = fixture.app.cluster.workflow(&fixture.app.namespace, &job.job_id).await;
        let said = object.map(|mut object| {
            object["status"].as_object_mut().map(|status| status.remove("dateFinished"));
            object["status"].take()
        });
        states.push(json!([columns, row["datefinished"].is_null(), fixture.objects(job).await, said]));
    }
    states
}

// The lock

#[tokio::test]
async fn of_two_sweeps_at_once_one_works_and_pins_no_session() {
    let fixture = fixture(&RULES).await;
    let job = fixture.running(4000).await;
    let other = fixture.another_reaper(&RULES).await;
    faults(&fixture).delay(Match::any().verb("list").resource("jobs").times(1), Duration::from_secs(3));
    let meanwhile = async {
        asked(&fixture, "list", "jobs").await;
        let skipped = other.sweep(false, LIMIT).await.unwrap();
        assert_eq!(skipped.skipped.as_deref(), Some("another sweep is under way"));
        assert!(!skipped.complete && skipped.kinds.is_empty() && skipped.jobs.is_empty(), "{skipped:?}");
        let statement = "SELECT (SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
                                 WHERE locktype = 'advisory' AND datname = current_database())
                              + (SELECT count(*) FROM pg_stat_activity
                                 WHERE datname = current_database() AND application_name = 'operator-service'
                                   AND xact_start IS NOT NULL)";
        let pinned: i64 = sqlx::query_scalar(statement).fetch_one(&fixture.app.database.pool).await.unwrap();
        assert_eq!(pinned, 0);
        assert_eq!(requests(&fixture).len(), 1, "the first is still at its first request");
    };
    let (report, ()) = tokio::join!(fixture.sweep(), meanwhile);
    assert_eq!(of_job(&report, &job), [("timeLimits".to_owned(), "done".to_owned())]);
    assert!(other.sweep(false, LIMIT).await.unwrap().skipped.is_none(), "the lease was given back");
}

#[tokio::test]
async fn the_lease_of_a_killed_sweep_blocks_only_until_it_runs_out() {
    let fixture = fixture(&RULES).await;
    let job = fixture.running(4000).await;
    faults(&fixture).delay(Match::any(), LIMIT);
    tokio::select! {
        report = fixture.try_sweep() => panic!("{report:?}"),
        () = asked(&fixture, "list", "jobs") => {}
    }
    faults(&fixture).clear();
    assert_eq!(fixture.try_sweep().await.unwrap()["skipped"], "another sweep is under way");
    assert_eq!(fixture.status(&job).await["stopreq"], 0);
    lease_runs_out(&fixture).await;
    assert_eq!(count(&fixture.sweep().await, "timeLimits"), [1, 1, 0, 0]);
}

#[tokio::test]
async fn a_sweep_whose_lease_another_took_stops() {
    let fixture = fixture(&RULES).await;
    let job = fixture.running(4000).await;
    // Longer than it takes to notice, in pieces that are answered.
    fixture.app.database.announce("aaa", "{}").await;
    faults(&fixture).delay(Match::any(), Duration::from_secs(4));
    let meanwhile = async {
        asked(&fixture, "list", "jobs").await;
        let taken = "UPDATE sweeps SET holder = 'another', helduntil = clock_timestamp() + interval '1 hour'";
        fixture.app.database.execute(taken).await;
    };
    let (report, ()) = tokio::join!(fixture.try_sweep(), meanwhile);
    let report = report.unwrap();
    assert_eq!(report["complete"], false);
    assert_eq!(report["problems"], json!(["another sweep has begun: the lease of this one expired"]));
    assert_eq!(fixture.status(&job).await["stopreq"], 0);
    let holder: String =
        sqlx::query_scalar("SELECT holder FROM sweeps").fetch_one(&fixture.app.database.pool).await.unwrap();
    assert_eq!(holder, "another", "it leaves what is not its own");
    faults(&fixture).clear();
}

// Killed

/// Lets go of a future that has been polled so often; `None` if it has not come to its end.
async fn killed_after<T>(polls: usize, future: impl Future<Output = T>) -> Option<T> {
    let mut future = Box::pin(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_sweep_may_be_killed_at_any_line() {
    let fixture = fixture(&RULES).await;
    let undisturbed = one_of_each(&fixture).await;
    fixture.sweep().await;
    let expected = end_state(&fixture, &undisturbed).await;
    assert_eq!(expected[0][0]["stopreq"], 2, "{expected:#?}");
    assert_eq!(expected[2][0]["purged"], true, "{expected:#?}");
    assert_eq!(expected[3][0]["status"], 41, "{expected:#?}");
    assert_eq!(expected[4][2], json!(["WorkFlow"]), "{expected:#?}");
    let (mut polls, mut rounds) = (1, 0);
    loop {
        let jobs = one_of_each(&fixture).await;
        let ended = killed_after(polls, fixture.reaper.sweep(false, LIMIT)).await;
        // What the killed one asked for last may still happen, be it of books or cluster: then there is another.
        loop {
            lease_runs_out(&fixture).await;
            let report = fixture.try_sweep().await.unwrap();
            let left = report["jobs"].as_array().unwrap().iter().any(|it| it["outcome"] == "skipped");
            if report["skipped"].is_null() && !left {
                assert_eq!(report["complete"], true, "{report:#}");
                break;
            }
        }
        // It may even have come in the middle of that.
        lease_runs_out(&fixture).await;
        fixture.sweep().await;
        assert_eq!(end_state(&fixture, &jobs).await, expected, "killed after {polls}");
        rounds += 1;
        if ended.is_some() {
            break;
        }
        polls += 1 + polls / 6;
    }
    assert!(rounds > 5, "it had come to its end after {polls}");
}

// Time

#[tokio::test]
async fn without_time_nothing_is_done_and_short_sweeps_come_to_the_end() {
    let fixture = fixture(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    let report = short_sweep(&fixture, Duration::ZERO).await;
    assert_eq!(report["complete"], false);
    assert_eq!(count(&report, "registrations"), [1, 0, 0, 1], "{report:#}");
    assert_eq!(requests(&fixture).len(), 0);

    faults(&fixture).delay(Match::any(), Duration::from_millis(20));
    let mut sweeps = 0;
    while short_sweep(&fixture, Duration::from_millis(400)).await["complete"] == false {
        sweeps += 1;
        assert!(sweeps < 100);
    }
    faults(&fixture).clear();
    let report = fixture.sweep().await;
    assert_eq!(report["jobs"], json!([]), "{report:#}");
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
    assert_eq!(fixture.objects(&jobs[4]).await, ["WorkFlow"]);
}

#[tokio::test]
async fn the_oldest_comes_first() {
    let fixture = fixture(&[("REAP_RATE", "10")]).await;
    let mut jobs = Vec::new();
    for age in [3, 1, 5, 0, 4, 2] {
        let job = fixture.row(Stored { created: 1_795_300_000.0 - f64::from(age), ..Stored::default() }).await;
        jobs.push((age, job.job_id));
    }
    fixture.app.database.execute("UPDATE jobs SET registered = false").await;
    let mut watch = Vec::new();
    let report = tokio::join!(
        fixture.sweep(),
        eventually("all", LIMIT, async || {
            for object in fixture.app.cluster.stand_in().objects("workflows.oceanprotocol.com") {
                let name = object["metadata"]["name"].as_str().unwrap().to_owned();
                if !watch.contains(&name) {
                    watch.push(name);
                }
            }
            (watch.len() == jobs.len()).then_some(())
        })
    )
    .0;
    assert_eq!(count(&report, "registrations"), [6, 6, 0, 0]);
    jobs.sort();
    let oldest_first: Vec<_> = jobs.into_iter().rev().map(|(_, job)| job).collect();
    assert_eq!(watch, oldest_first);
}

#[tokio::test]
async fn many_running_jobs_do_not_keep_finished_ones_from_their_turn() {
    let fixture = fixture(&RULES).await;
    for _ in 0..40 {
        let job = fixture.job(Stored::running()).await;
        fixture.step(&job.job_id, "algorithm", 4000).await;
    }
    let elsewhere = fixture.app.cluster.another_namespace().await;
    let expired = Stored { workflow: kept_for(Value::Null), finished: Some(now() - 100.0), ..Stored::finished() };
    let expired = Stored { namespace: Some(elsewhere), ..expired }.insert(&fixture.app.database).await;
    faults(&fixture).delay(Match::any(), Duration::from_millis(200));
    let report = short_sweep(&fixture, Duration::from_secs(3)).await;
    assert_eq!(count(&report, "expiries"), [1, 1, 0, 0], "{report:#}");
    assert_eq!(fixture.row_of(&expired).await["purged"], true);
    let [found, done, _, left] = count(&report, "timeLimits");
    assert!(done > 0 && left > 0 && found == done + left && report["complete"] == false, "{report:#}");
    faults(&fixture).clear();
    assert_eq!(count(&fixture.sweep().await, "timeLimits")[1], 40 - done);
}

#[tokio::test]
async fn an_environment_that_is_slow_keeps_no_other_from_its_turn() {
    let fixture = fixture(&RULES).await;
    let elsewhere = fixture.app.cluster.another_namespace().await;
    // It was looked at, and the slow one was not: that one is first.
    sqlx::query("INSERT INTO sweptenvs (namespace, swept) VALUES ($1, now())")
        .bind(&elsewhere)
        .execute(&fixture.app.database.pool)
        .await
        .unwrap();
    let stopped = Stored { namespace: Some(elsewhere.clone()), stopreq: Some(1), ..Stored::default() };
    let stopped = stopped.insert(&fixture.app.database).await;
    let waiting = Stored { namespace: Some(elsewhere), ..Stored::default() }.insert(&fixture.app.database).await;
    execute(&fixture, "UPDATE jobs SET registered = false WHERE workflowid = $1", &waiting).await;
    let slow = Match::any().verb("list").resource("jobs").namespace(&fixture.app.namespace);
    faults(&fixture).delay(slow, Duration::from_secs(9));
    let report = short_sweep(&fixture, Duration::from_secs(3)).await;
    assert_eq!(report["complete"], false);
    assert_eq!(count(&report, "registrations"), [1, 1, 0, 0], "{report:#}");
    let mut reports = Vec::new();
    while fixture.status(&stopped).await["status"] != 70 {
        assert!(reports.len() < 4, "{reports:#?}");
        reports.push(short_sweep(&fixture, Duration::from_secs(3)).await);
    }
    faults(&fixture).clear();
}

// Very much

#[tokio::test]
async fn fifty_thousand_expired_jobs_are_removed_bit_by_bit() {
    let fixture = fixture(&RULES).await;
    sqlx::query(
        "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datefinished, namespace, workflow,
                           outputsurl, mirrored)
         SELECT 'agreement', md5(i::text), 'owner', 70, 'Job finished', now() - interval '1 day', $1, $2, $3, true
         FROM generate_series(1, 50000) AS i",
    )
    .bind(&fixture.app.namespace)
    .bind(kept_for(Value::Null))
    .bind(OUTPUTS)
    .execute(&fixture.app.database.pool)
    .await
    .unwrap();
    let over = fixture.running(4000).await;
    let waiting = unregistered(&fixture).await;
    let progress = async || -> (i64, i64) {
        let statement = "SELECT count(*) FILTER (WHERE purged), count(expiry) FROM jobs";
        sqlx::query_as(statement).fetch_one(&fixture.app.database.pool).await.unwrap()
    };
    let mut before = progress().await;
    let mut sweeps = 0;
    while before.0 == 0 || sweeps < 4 {
        let report = short_sweep(&fixture, Duration::from_millis(1500)).await;
        assert_eq!(report["complete"], false);
        if sweeps == 0 {
            assert_eq!(count(&report, "timeLimits"), [1, 1, 0, 0], "{report:#}");
            assert_eq!(count(&report, "registrations"), [1, 1, 0, 0], "{report:#}");
        }
        assert!(count(&report, "expiries")[0] < 50_000, "they are read in pages");
        let after = progress().await;
        assert!(after.0 > before.0 || after.1 > before.1, "{before:?} {after:?} {report:#}");
        before = after;
        sweeps += 1;
    }
    assert_eq!(fixture.status(&over).await["stopreq"], 2);
    assert_eq!(fixture.objects(&waiting).await, ["WorkFlow"]);
    let removals = requests(&fixture).into_iter().filter(|it| it.verb == "delete" && it.resource == "configmaps");
    let removals: Vec<_> = removals.map(|it| it.name).collect();
    assert_eq!(removals.len(), removals.iter().collect::<BTreeSet<_>>().len(), "none is done twice");
    assert_eq!(removals.len() as i64, before.0);
}

// Too many requests

#[tokio::test]
async fn for_as_long_as_the_cluster_says_nothing_is_asked() {
    // Four at once, a quarter of a second apart.
    let fixture = fixture(&[("REAP_RATE", "4")]).await;
    for _ in 0..5 {
        unregistered(&fixture).await;
    }
    faults(&fixture).throttle(Match::any().verb("create").times(1), Duration::from_secs(4));
    let creates = || requests(&fixture).iter().filter(|it| it.verb == "create").count();
    let watching = async {
        let first = eventually("the first", LIMIT, async || (creates() == 1).then(Instant::now)).await;
        eventually("the next", LIMIT, async || (creates() > 1).then_some(first.elapsed())).await
    };
    let (report, pause) = tokio::join!(fixture.sweep(), watching);
    assert!(pause > Duration::from_secs(3), "{pause:?}");
    // The cluster was busy, not gone.
    assert_eq!(count(&report, "registrations"), [5, 5, 0, 0], "{report:#}");
    assert_eq!(creates(), 6);
}

#[tokio::test]
async fn what_is_always_one_too_many_is_asked_for_a_few_times_only() {
    let fixture = fixture(&RULES).await;
    let [busy, fine] = [expired(&fixture).await, expired(&fixture).await];
    let which = Match::any().verb("delete").resource("configmaps").name(&busy.job_id);
    faults(&fixture).throttle(which, Duration::ZERO);
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &busy), [("expiries".to_owned(), "failed".to_owned())]);
    assert_eq!(of_job(&report, &fine), [("expiries".to_owned(), "done".to_owned())]);
    let asked = requests(&fixture).into_iter().filter(|it| it.resource == "configmaps" && it.name == busy.job_id);
    assert_eq!(asked.count(), 4);
}

// Broken jobs

#[tokio::test]
async fn a_broken_job_stops_no_other_and_is_tried_again_with_growing_pauses() {
    let fixture = fixture(&RULES).await;
    let [broken, fine] = [fixture.running(4000).await, fixture.running(4000).await];
    let expired = expired(&fixture).await;
    let name = format!("{}-algorithm-job", broken.job_id);
    faults(&fixture).answer(Match::any().verb("delete").resource("jobs").name(&name), 500);
    let failed = [("timeLimits".to_owned(), "failed".to_owned())];
    let mut pauses = Vec::new();
    for failures in 1..=4 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &broken), failed, "{report:#}");
        assert_eq!(fixture.row_of(&broken).await["reapfailures"], failures);
        // For all that is known it has been done.
        assert_eq!(fixture.status(&broken).await["stopreq"], 2);
        pauses.push(pause(&fixture, &broken).await);
        assert_eq!(of_job(&fixture.sweep().await, &broken), [], "it is left alone");
        fixture.passed(&broken.job_id, "reapat", 4000).await;
    }
    for (pause, expected) in pauses.iter().zip([10.0, 20.0, 40.0, 80.0]) {
        assert!((expected - 9.0..=expected).contains(pause), "{pauses:?}");
    }
    assert_eq!(fixture.status(&fine).await["stopreq"], 2);
    assert_eq!(fixture.status(&expired).await["removed"], 1);
    faults(&fixture).clear();
    assert_eq!(of_job(&fixture.sweep().await, &broken), [("timeLimits".to_owned(), "done".to_owned())]);
    let row = fixture.row_of(&broken).await;
    assert_eq!((&row["reapfailures"], &row["reapat"]), (&json!(0), &json!("-infinity")));
}

#[tokio::test]
async fn leftovers_that_cannot_be_removed_are_tried_again_with_growing_pauses() {
    let fixture = fixture(&[]).await;
    let job = finished(&fixture, 70, 1.0, Stored::finished()).await;
    fixture.sweep().await;
    fixture.app.cluster.engine_objects(&fixture.app.namespace, &job.job_id).await;
    faults(&fixture).answer(Match::any().verb("delete").name(&format!("{}-publish-job", job.job_id)), 500);
    for failures in 1..=3 {
        let report = fixture.sweep().await;
        assert_eq!(of_job(&report, &job), [("cleanups".to_owned(), "failed".to_owned())], "{report:#}");
        assert_eq!(fixture.row_of(&job).await["reapfailures"], failures);
        assert_eq!(of_job(&fixture.sweep().await, &job), [], "it is left alone");
        fixture.passed(&job.job_id, "reapat", 4000).await;
    }
    faults(&fixture).clear();
    fixture.sweep().await;
    assert_eq!(fixture.objects(&job).await, ["WorkFlow"]);
    assert_eq!(fixture.row_of(&job).await["reapfailures"], 0);
}

#[tokio::test]
async fn a_node_that_hands_out_no_log_keeps_nobody_waiting() {
    let fixture = fixture(&RULES).await;
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(fixture.running(4000).await);
    }
    let (refused, broken) = jobs.split_at(2);
    for job in refused {
        let pod = fixture.pod(&job.job_id, "algorithm").await;
        faults(&fixture).answer(Match::any().subresource("log").name(&pod), 500);
    }
    for job in broken {
        let pod = fixture.pod(&job.job_id, "algorithm").await;
        faults(&fixture).drop_connection(Match::any().subresource("log").name(&pod));
    }
    let expired = expired(&fixture).await;
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "timeLimits"), [8, 8, 0, 0], "{report:#}");
    assert_eq!(fixture.status(&expired).await["removed"], 1);
}

#[tokio::test]
async fn a_job_that_may_not_be_registered_stops_nothing_else() {
    let fixture = fixture(&RULES).await;
    let waiting = unregistered(&fixture).await;
    let [over, expired] = [fixture.running(4000).await, expired(&fixture).await];
    // A quota, say.
    faults(&fixture).answer(Match::any().verb("create").resource("workflows"), 403);
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &waiting), [("registrations".to_owned(), "failed".to_owned())]);
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "done".to_owned())]);
    assert_eq!(of_job(&report, &expired), [("expiries".to_owned(), "done".to_owned())], "{report:#}");
    let object = fixture.app.cluster.workflow(&fixture.app.namespace, &over.job_id).await.unwrap();
    assert_eq!(object["status"]["reason"], "The algorithm was stopped at its time limit of 3600 seconds.");

    // Nor what else there is to do with the same job.
    let begin = "UPDATE jobs SET status = 40, statustext = 'Running algorithm' WHERE workflowid = $1";
    execute(&fixture, begin, &waiting).await;
    fixture.step(&waiting.job_id, "algorithm", 4000).await;
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &waiting), [("timeLimits".to_owned(), "done".to_owned())], "{report:#}");
}

// The cluster is gone

#[tokio::test]
async fn a_cluster_that_is_gone_loses_nothing() {
    let fixture = fixture(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    let lost = fixture.job(Stored::running()).await;
    let waiting = "SELECT to_jsonb(array_agg(to_jsonb(jobs) ORDER BY workflowid)) FROM jobs WHERE $1 = ''";
    let before = fixture.app.database.row(waiting, "").await;
    faults(&fixture).refuse_connections();
    let report = fixture.try_sweep().await.unwrap();
    assert_eq!(report["complete"], false);
    assert_ne!(report["problems"], json!([]));
    assert_eq!(count(&report, "orphans"), [0; 4]);
    let mut after = fixture.app.database.row(waiting, "").await;
    // That it expires was found out.
    for row in after.as_mut().unwrap().as_array_mut().unwrap() {
        if row["workflowid"] == jobs[2].job_id.as_str() {
            row["expiry"] = Value::Null;
        }
    }
    assert_eq!(after, before);
    faults(&fixture).clear();
    let report = fixture.sweep().await;
    for kind in ["timeLimits", "stuckSteps", "expiries", "orphans", "registrations"] {
        assert_eq!(count(&report, kind), [1, 1, 0, 0], "{kind} {report:#}");
    }
    assert_ne!(fixture.row_of(&lost).await["absentsince"], Value::Null);
}

#[tokio::test]
async fn a_cluster_that_comes_back_in_the_middle_is_used() {
    let fixture = fixture(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    faults(&fixture).drop_connection(Match::any().times(1));
    let report = fixture.try_sweep().await.unwrap();
    assert_eq!(fixture.objects(&jobs[4]).await, ["WorkFlow"], "{report:#}");
    assert_eq!(fixture.status(&jobs[3]).await["dateFinished"], Value::Null, "nobody has seen that it is lost");
    faults(&fixture).clear();
    fixture.passed(&jobs[2].job_id, "reapat", 60).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
    assert_eq!(fixture.status(&jobs[3]).await["status"], 41);
}

#[tokio::test]
async fn a_namespace_that_is_forbidden_or_none_is_told_of_and_harms_no_other() {
    let fixture = fixture(&RULES).await;
    let forbidden = fixture.app.cluster.another_namespace().await;
    faults(&fixture).answer(Match::any().namespace(&forbidden), 403);
    let over = fixture.running(4000).await;
    let mut there = Vec::new();
    for namespace in [forbidden.as_str(), "../No Name", ""] {
        let job = |job: Stored| Stored { namespace: Some(namespace.to_owned()), ..job }.insert(&fixture.app.database);
        let running = job(Stored::running()).await;
        let absent = "UPDATE jobs SET absentsince = clock_timestamp() - interval '1 day' WHERE workflowid = $1";
        execute(&fixture, absent, &running).await;
        let long_past = job(Stored::running()).await;
        fixture.passed(&long_past.job_id, "statussince", 7300).await;
        let old = Stored { workflow: kept_for(Value::Null), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
        let expired = job(Stored { finished: Some(now() - 100.0), ..old }).await;
        there.push((namespace, running, long_past, expired));
    }
    let report = fixture.sweep().await;
    assert_eq!(of_job(&report, &over), [("timeLimits".to_owned(), "done".to_owned())]);
    let troubles = report["problems"].as_array().unwrap();
    for (namespace, running, long_past, expired) in &there {
        let told = troubles.iter().any(|trouble| trouble.as_str().unwrap().starts_with(&format!("{namespace}: ")));
        assert!(told, "{namespace} {report:#}");
        assert_eq!(fixture.status(running).await["dateFinished"], Value::Null, "{namespace}");
        assert_eq!(fixture.status(long_past).await["status"], 41, "{namespace}");
        // What can name no namespace never had objects.
        let gone = *namespace != forbidden;
        assert_eq!(fixture.row_of(expired).await["purged"], gone, "{namespace}");
    }
    // It is left alone for a while, then looked at again.
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    assert!(requests(&fixture).iter().all(|it| it.namespace != forbidden));
    faults(&fixture).clear();
    fixture.app.database.execute("UPDATE sweptenvs SET retryat = now()").await;
    let (_, running, _, expired) = &there[0];
    fixture.passed(&expired.job_id, "reapat", 4000).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(running).await["status"], 41);
    assert_eq!(fixture.status(expired).await["removed"], 1);
}

// The database is gone

/// A reaper that reaches the books by another way.
async fn reaper_through(fixture: &Fixture, proxy: &Proxy) -> Reaper {
    let mut variables: BTreeMap<String, String> = fixture.app.database.variables().into_iter().collect();
    variables.extend(RULES.map(|(name, value)| (name.to_owned(), value.to_owned())));
    variables.insert("POSTGRES_HOST".to_owned(), "127.0.0.1".to_owned());
    variables.insert("POSTGRES_PORT".to_owned(), proxy.port.to_string());
    variables.insert("REAP_RATE".to_owned(), "1000".to_owned());
    let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
    let origins = Storage::new(&config.storage).unwrap();
    let store = Database::new(config.database.as_ref().unwrap());
    Reaper::new(store, &fixture.app.cluster.service().await, origins, config.reaper)
}

#[tokio::test]
async fn books_that_are_gone_in_the_middle_lose_nothing() {
    for resource in ["jobs", "pods", "configmaps"] {
        let fixture = fixture(&RULES).await;
        let jobs = one_of_each(&fixture).await;
        let proxy = Proxy::to(fixture.app.database.address().await).await;
        let reaper = reaper_through(&fixture, &proxy).await;
        let verb = if resource == "configmaps" { "delete" } else { "list" };
        faults(&fixture).delay(Match::any().verb(verb).resource(resource).times(1), Duration::from_secs(1));
        let meanwhile = async {
            asked(&fixture, verb, resource).await;
            proxy.cut();
        };
        let (ended, ()) = tokio::join!(reaper.sweep(false, LIMIT), meanwhile);
        assert!(ended.as_ref().map_or(true, |report| !report.complete || report.total().failed > 0), "{ended:?}");
        proxy.open();
        lease_runs_out(&fixture).await;
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
async fn books_that_restart_in_the_middle_are_used_again() {
    let fixture = fixture(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    faults(&fixture).delay(Match::any().verb("list").resource("jobs").times(1), Duration::from_secs(1));
    let meanwhile = async {
        asked(&fixture, "list", "jobs").await;
        assert!(fixture.app.database.terminate_connections().await > 0);
    };
    let (_, ()) = tokio::join!(fixture.try_sweep(), meanwhile);
    lease_runs_out(&fixture).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
}

#[tokio::test]
async fn before_the_schema_is_there_a_sweep_says_what_to_do() {
    let fixture = fixture(&[]).await;
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

// Others are at work, too

#[tokio::test]
async fn what_is_half_gone_goes_whole_and_what_is_held_is_told_of_once() {
    let fixture = fixture(&RULES).await;
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
    jobs.delete(&name, &background).await.unwrap();
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "expiries"), [2, 2, 0, 0], "{report:#}");
    let reason = report["jobs"].as_array().unwrap().iter().find(|it| it["job"] == held.job_id.as_str()).unwrap();
    assert_eq!(reason["reason"], format!("held by others' finalizers: Job {name} (example.org/hold)"));
    assert_eq!(fixture.objects(&half).await, ["WorkFlow"]);
    assert_eq!(fixture.sweep().await["jobs"], json!([]), "nobody waits for it");
    jobs.patch(&name, &PatchParams::default(), &hold(Value::Null)).await.unwrap();
}

#[tokio::test]
async fn a_job_that_took_the_place_of_another_stays() {
    let fixture = fixture(&RULES).await;
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
    faults(&fixture).delay(Match::any().verb("delete").resource("jobs").name(&name).times(1), Duration::from_secs(2));
    let meanwhile = async {
        asked(&fixture, "delete", "jobs").await;
        let noted = fixture.status(&over).await;
        assert_eq!((&noted["stopreq"], noted["reason"].is_string()), (&json!(2), true));
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
async fn an_engine_that_finishes_a_job_while_it_is_reaped_has_the_last_word() {
    let fixture = fixture(&RULES).await;
    let over = fixture.running(4000).await;
    faults(&fixture).delay(Match::any().verb("delete").resource("jobs").times(1), Duration::from_secs(1));
    let meanwhile = async {
        asked(&fixture, "delete", "jobs").await;
        let finish = "UPDATE jobs SET status = 70, statusText = 'Job finished', dateFinished = NOW() \
                      WHERE workflowId = $1";
        execute(&fixture, finish, &over).await;
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
async fn what_is_published_while_a_job_expires_goes_too() {
    let fixture = fixture(&[]).await;
    let job = Stored { workflow: kept_for(json!(50)), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let job = finished(&fixture, 70, 100.0, job).await;
    faults(&fixture).delay(Match::any().verb("delete").resource("configmaps").times(1), Duration::from_secs(1));
    let meanwhile = async {
        asked(&fixture, "delete", "configmaps").await;
        let publish =
            r#"UPDATE jobs SET outputsurl = '[{"url": "https://example.org/late.txt"}]' WHERE workflowId = $1"#;
        execute(&fixture, publish, &job).await;
    };
    tokio::join!(fixture.sweep(), meanwhile);
    fixture.sweep().await;
    let row = fixture.row_of(&job).await;
    assert_eq!((&row["removed"], &row["purged"]), (&json!(1), &json!(true)), "{row:#}");
    assert!(!row.to_string().contains("example.org/late.txt"), "{row:#}");
}

// Clocks and numbers

#[tokio::test]
async fn clocks_that_differ_end_nothing_early() {
    let fixture = fixture(&RULES).await;
    let ahead = async |job: &Stored, column: &str| fixture.passed(&job.job_id, column, -600).await;
    let job = Stored { workflow: kept_for(json!(5)), outputs: Some(OUTPUTS.into()), ..Stored::finished() };
    let finished_later = finished(&fixture, 70, -600.0, job).await;
    let publishing = finished(&fixture, 60, -600.0, Stored::finished()).await;
    // Its node's clock is ahead.
    let running = fixture.running(-600).await;
    ahead(&running, "statussince").await;
    let lost = fixture.job(Stored::running()).await;
    execute(&fixture, "UPDATE jobs SET absentsince = clock_timestamp() WHERE workflowid = $1", &lost).await;
    ahead(&lost, "absentsince").await;
    let handed_out = fixture.job(Stored::default()).await;
    fixture.app.database.engine(&fixture.app.namespace, "{}", 9).await;
    ahead(&handed_out, "handedout").await;
    let waiting = fixture.row(Stored { created: now() + 600.0, ..Stored::default() }).await;
    execute(&fixture, "UPDATE jobs SET registered = false WHERE workflowid = $1", &waiting).await;
    let report = fixture.sweep().await;
    assert_eq!(report["oldestUnregistered"], 0);
    assert_eq!(report["problems"], json!([]));
    assert_eq!(fixture.status(&finished_later).await["removed"], 0);
    assert!(fixture.objects(&publishing).await.contains(&"ConfigMap".to_owned()));
    assert!(fixture.objects(&running).await.contains(&"Job/algorithm-job".to_owned()));
    assert_eq!(fixture.status(&lost).await["dateFinished"], Value::Null);
    assert_eq!(fixture.status(&handed_out).await["status"], 10);
    assert_eq!(fixture.objects(&waiting).await, ["WorkFlow"]);
    // Each in its time.
    fixture.passed(&finished_later.job_id, "datefinished", 700).await;
    fixture.passed(&finished_later.job_id, "reapat", 700).await;
    fixture.sweep().await;
    assert_eq!(fixture.status(&finished_later).await["removed"], 1);
}

#[tokio::test]
async fn numbers_beyond_all_times_are_for_ever() {
    let fixture = fixture(&[("STORAGE_EXPIRY", "999999999999999999")]).await;
    let mut jobs = Vec::new();
    for expiry in [json!(1e300), json!("1e300"), json!(1e12), json!(u64::MAX), Value::Null] {
        jobs.push(finished(&fixture, 70, 100.0, Stored { workflow: kept_for(expiry), ..Stored::finished() }).await);
    }
    let report = fixture.sweep().await;
    assert_eq!(count(&report, "cleanups")[1..], [5, 0, 0], "{report:#}");
    assert_eq!(fixture.sweep().await["jobs"], json!([]), "once is enough");
    for job in &jobs {
        assert_eq!(fixture.objects(job).await, ["WorkFlow"]);
        assert_eq!(fixture.status(job).await["removed"], 0);
    }
}
