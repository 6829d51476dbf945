//! Sweeps with too little time or too much work.

use std::collections::BTreeSet;
use std::time::Duration;

use fake_kubernetes::Match;
use serde_json::{Value, json};

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
    assert_eq!(fixture.row_of(&expired).await["purged"], true);
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
    let removals = fixture.requests().into_iter().filter(|it| it.verb == "delete" && it.resource == "configmaps");
    let removals: Vec<_> = removals.map(|it| it.name).collect();
    assert_eq!(removals.len(), removals.iter().collect::<BTreeSet<_>>().len(), "none is done twice");
    assert_eq!(removals.len() as i64, before.0);
}
