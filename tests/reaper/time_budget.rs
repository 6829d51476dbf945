//! Sweeps with too little time or too much work.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::Match;
use serde_json::{Value, json};
use sqlx::Executor;

use crate::fixture::{Fixture, LIMIT, count};
use crate::jobs::{OUTPUTS, RULES, kept_for, now, one_of_each, unregistered};
use crate::support::{Stored, eventually};

// Time

#[tokio::test]
async fn without_time_nothing_is_done_and_short_sweeps_finish_the_work() {
    let fixture = Fixture::with_faults(&RULES).await;
    let jobs = one_of_each(&fixture).await;
    let report = fixture.short_sweep(Duration::ZERO).await;
    assert_eq!(report["complete"], false);
    assert_eq!(count(&report, "registrations"), [1, 0, 0, 1], "{report:#}");
    assert_eq!(fixture.requests().len(), 0);

    fixture.faults().delay(Match::any(), Duration::from_millis(20));
    let mut sweeps = 0;
    while fixture.short_sweep(Duration::from_millis(400)).await["complete"] == false {
        sweeps += 1;
        assert!(sweeps < 100);
    }
    fixture.faults().clear();
    // The object of the expired job goes with the next scan.
    fixture.app.database.execute("UPDATE sweptenvs SET scanned = '-infinity'").await;
    fixture.sweep().await;
    let report = fixture.sweep().await;
    assert_eq!(report["jobs"], json!([]), "{report:#}");
    assert_eq!(fixture.status(&jobs[0]).await["stopreq"], 2);
    assert_eq!(fixture.status(&jobs[2]).await["removed"], 1);
    assert_eq!(fixture.objects(&jobs[4]).await, ["WorkFlow"]);
}

#[tokio::test]
async fn the_oldest_comes_first() {
    let fixture = Fixture::with_faults(&[("REAP_RATE", "10")]).await;
    let mut jobs = Vec::new();
    for age in [3, 1, 5, 0, 4, 2] {
        let job = fixture.row(Stored { created: 1_795_300_000.0 - f64::from(age), ..Stored::default() }).await;
        jobs.push((age, job.job_id));
    }
    fixture.app.database.execute("UPDATE jobs SET registered = false").await;
    let due = "UPDATE reaperjobs SET objectdue = datecreated AT TIME ZONE 'UTC' FROM jobs WHERE jobs.workflowid = reaperjobs.workflowid";
    fixture.app.database.execute(due).await;
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
async fn many_running_jobs_do_not_delay_finished_ones() {
    let fixture = Fixture::with_faults(&RULES).await;
    for _ in 0..40 {
        let job = fixture.job(Stored::running()).await;
        fixture.step(&job.job_id, "algorithm", 4000).await;
    }
    let elsewhere = fixture.app.cluster.another_namespace().await;
    let expired = Stored { workflow: kept_for(Value::Null), finished: Some(now() - 100.0), ..Stored::finished() };
    let expired = Stored { namespace: Some(elsewhere), ..expired }.insert(&fixture.app.database).await;
    fixture.faults().delay(Match::any(), Duration::from_millis(300));
    let report = fixture.short_sweep(Duration::from_secs(6)).await;
    assert_eq!(count(&report, "expiries"), [1, 1, 0, 0], "{report:#}");
    assert!(fixture.is_expired(&expired).await);
    let [found, done, _, left] = count(&report, "timeLimits");
    assert!(done > 0 && left > 0 && found == done + left && report["complete"] == false, "{report:#}");
    fixture.faults().clear();
    assert_eq!(count(&fixture.sweep().await, "timeLimits")[1], 40 - done);
}

#[tokio::test]
async fn a_slow_environment_does_not_delay_others() {
    let fixture = Fixture::with_faults(&RULES).await;
    let elsewhere = fixture.app.cluster.another_namespace().await;
    // It was swept before, and the slow one was not: the slow one is first.
    sqlx::query("INSERT INTO sweptenvs (namespace, swept) VALUES ($1, now())")
        .bind(&elsewhere)
        .execute(&fixture.app.database.pool)
        .await
        .unwrap();
    let stopped = Stored { namespace: Some(elsewhere.clone()), stopreq: Some(1), ..Stored::default() };
    let stopped = stopped.insert(&fixture.app.database).await;
    let waiting = Stored { namespace: Some(elsewhere), ..Stored::default() }.insert(&fixture.app.database).await;
    fixture.execute("UPDATE jobs SET registered = false WHERE workflowid = $1", &waiting).await;
    let slow = Match::any().verb("list").resource("jobs").namespace(&fixture.app.namespace);
    fixture.faults().delay(slow, Duration::from_secs(9));
    let report = fixture.short_sweep(Duration::from_secs(3)).await;
    assert_eq!(report["complete"], false);
    assert_eq!(count(&report, "registrations"), [1, 1, 0, 0], "{report:#}");
    let mut reports = Vec::new();
    while fixture.status(&stopped).await["status"] != 70 {
        assert!(reports.len() < 4, "{reports:#?}");
        reports.push(fixture.short_sweep(Duration::from_secs(3)).await);
    }
    fixture.faults().clear();
}

// Much work

#[tokio::test]
async fn fifty_thousand_expired_jobs_are_deleted_over_many_sweeps() {
    let fixture = Fixture::with_faults(&RULES).await;
    sqlx::query(
        "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datefinished, namespace, workflow,
                           outputsurl)
         SELECT 'agreement', md5(i::text), 'owner', 70, 'Job finished', now() - interval '1 day', $1, $2, $3
         FROM generate_series(1, 50000) AS i",
    )
    .bind(&fixture.app.namespace)
    .bind(kept_for(Value::Null))
    .bind(OUTPUTS)
    .execute(&fixture.app.database.pool)
    .await
    .unwrap();
    fixture.app.database.execute("UPDATE reaperjobs SET objectdue = 'infinity'").await;
    let over = fixture.running(4000).await;
    let waiting = unregistered(&fixture).await;
    let progress = async || -> (i64, i64) {
        let statement = "SELECT count(*) FILTER (WHERE removed = 1), count(*) FILTER (WHERE expirydue < 'infinity')
                         FROM jobs JOIN reaperjobs USING (workflowid)";
        sqlx::query_as(statement).fetch_one(&fixture.app.database.pool).await.unwrap()
    };
    let mut before = progress().await;
    let mut sweeps = 0;
    while before.0 == 0 || sweeps < 4 {
        // Enough for the urgent duties on a busy machine, and too short for the rest.
        let report = fixture.short_sweep(Duration::from_secs(if sweeps == 0 { 8 } else { 3 })).await;
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
    // Nothing was left of them in the cluster.
    assert!(fixture.requests().iter().all(|it| it.verb != "delete" || it.name.starts_with(&over.job_id)));
}

/// The number of rows that a sweep reads of `jobs` and `reaperjobs`, by index, and of its requests to the cluster.
async fn cost_of_a_sweep(fixture: &Fixture) -> (BTreeMap<String, i64>, usize) {
    let rows_read = async || -> BTreeMap<String, i64> {
        // A connection reports its counts at its end, at the latest.
        eventually("the end of all connections", LIMIT, async || {
            (fixture.app.database.terminate_connections().await == 0).then_some(())
        })
        .await;
        let statement = "SELECT relname::text, seq_tup_read FROM pg_stat_user_tables
                         WHERE relname IN ('jobs', 'reaperjobs')
                         UNION ALL SELECT indexrelname::text, idx_tup_read FROM pg_stat_user_indexes
                         WHERE relname IN ('jobs', 'reaperjobs')";
        let rows: Vec<(String, i64)> = sqlx::query_as(statement).fetch_all(&fixture.app.database.pool).await.unwrap();
        rows.into_iter().collect()
    };
    let before = rows_read().await;
    fixture.app.cluster.stand_in().clear_requests();
    fixture.sweep().await;
    let mut read = rows_read().await;
    read.iter_mut().for_each(|(index, rows)| *rows -= before[index]);
    (read, fixture.requests().len())
}

#[tokio::test]
async fn an_idle_sweep_costs_the_same_however_many_jobs_there_are() {
    let fixture = Fixture::with_faults(&[("STORAGE_EXPIRY", "999999999")]).await;
    for _ in 0..3 {
        fixture.running(10).await;
    }
    // The first sweep writes the status into the objects, and scans them.
    fixture.sweep().await;
    let few = cost_of_a_sweep(&fixture).await;
    // Waiting ones, of which each has an object, and finished ones, of which none is due.
    let mut filler = fixture.app.database.connect().await;
    for statement in [
        "SET session_replication_role = replica",
        "INSERT INTO jobs (agreementid, workflowid, owner, status, namespace, workflow, algodid, validuntil)
         SELECT 'waiting' || i, md5('w' || i), 'owner', 1, 'ocean-compute', '{}', 'raw', 4102444800
         FROM generate_series(1, 50000) AS i",
        "INSERT INTO jobs (agreementid, workflowid, owner, status, namespace, datefinished, workflow, algodid, registered)
         SELECT 'finished' || i, md5('f' || i), 'owner', 70, 'ocean-compute', now(), '{}', 'raw', i % 2 = 0
         FROM generate_series(1, 50000) AS i",
        "INSERT INTO reaperjobs (workflowid, expirydue, configuredexpiry)
         SELECT workflowid, 'infinity', CASE WHEN status = 70 THEN -1 END FROM jobs WHERE owner = 'owner'
         ON CONFLICT DO NOTHING",
        "SET session_replication_role = DEFAULT",
        "ANALYZE",
    ] {
        filler.execute(statement).await.unwrap();
    }
    // Schedules the expiry of the finished ones, and lists the new environment.
    fixture.sweep().await;
    fixture.app.database.execute("VACUUM ANALYZE").await;
    let many = cost_of_a_sweep(&fixture).await;
    println!("{few:?} {many:?}");
    // One more environment, which is read with two requests.
    assert_eq!(many.1, few.1 + 2);
    let total = |cost: &BTreeMap<String, i64>| cost.values().sum::<i64>();
    assert!(total(&many.0) < total(&few.0) + 100, "{few:?} {many:?}");
}
