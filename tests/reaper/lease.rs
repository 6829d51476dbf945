//! One sweep at a time: the lease, and sweeps that are killed.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use fake_kubernetes::Match;
use serde_json::json;

use crate::fixture::{Fixture, LIMIT, count, of_job};
use crate::jobs::{RULES, end_state, one_of_each};

// The lease

#[tokio::test]
async fn of_two_concurrent_sweeps_one_works_and_pins_no_session() {
    let fixture = Fixture::with_faults(&RULES).await;
    let job = fixture.running(4000).await;
    let other = fixture.another_reaper(&RULES).await;
    fixture.faults().delay(Match::any().verb("list").resource("jobs").times(1), Duration::from_secs(3));
    let meanwhile = async {
        fixture.wait_for_request("list", "jobs").await;
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
        assert_eq!(fixture.requests().len(), 1, "the first is still at its first request");
    };
    let (report, ()) = tokio::join!(fixture.sweep(), meanwhile);
    assert_eq!(of_job(&report, &job), [("timeLimits".to_owned(), "done".to_owned())]);
    assert!(other.sweep(false, LIMIT).await.unwrap().skipped.is_none(), "the lease was given back");
}

#[tokio::test]
async fn the_lease_of_a_killed_sweep_blocks_others_until_it_expires() {
    let fixture = Fixture::with_faults(&RULES).await;
    let job = fixture.running(4000).await;
    fixture.faults().delay(Match::any(), LIMIT);
    tokio::select! {
        report = fixture.try_sweep() => panic!("{report:?}"),
        () = fixture.wait_for_request("list", "jobs") => {}
    }
    fixture.faults().clear();
    assert_eq!(fixture.try_sweep().await.unwrap()["skipped"], "another sweep is under way");
    assert_eq!(fixture.status(&job).await["stopreq"], 0);
    fixture.expire_lease().await;
    assert_eq!(count(&fixture.sweep().await, "timeLimits"), [1, 1, 0, 0]);
}

#[tokio::test]
async fn a_sweep_that_has_lost_its_lease_stops() {
    let fixture = Fixture::with_faults(&RULES).await;
    let job = fixture.running(4000).await;
    // Longer than a renewal interval, in requests that are answered.
    fixture.app.database.announce("aaa", "{}").await;
    fixture.faults().delay(Match::any(), Duration::from_secs(4));
    let meanwhile = async {
        fixture.wait_for_request("list", "jobs").await;
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
    fixture.faults().clear();
}

// Killed sweeps

/// Drops a future after it was polled `polls` times. Returns `None` if it was not complete.
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
async fn a_sweep_may_be_killed_at_any_point() {
    let fixture = Fixture::with_faults(&RULES).await;
    // As rows from before the migration, whose workflows are to be summarized.
    let make_old = "UPDATE jobs SET algodid = NULL";
    let undisturbed = one_of_each(&fixture).await;
    fixture.app.database.execute(make_old).await;
    fixture.sweep().await;
    let expected = end_state(&fixture, &undisturbed).await;
    assert_eq!(expected[0][0]["stopreq"], 2, "{expected:#?}");
    assert_eq!((&expected[2][0]["expired"], &expected[2][2]), (&json!(true), &json!([])), "{expected:#?}");
    assert_eq!(expected[3][0]["status"], 41, "{expected:#?}");
    assert_eq!(expected[4][2], json!(["WorkFlow"]), "{expected:#?}");
    let (mut polls, mut rounds) = (1, 0);
    loop {
        let jobs = one_of_each(&fixture).await;
        fixture.app.database.execute(make_old).await;
        fixture.app.database.execute("UPDATE sweptenvs SET scanned = '-infinity'").await;
        let ended = killed_after(polls, fixture.reaper.sweep(false, LIMIT)).await;
        // The last statement or request of the killed one may still take effect: then another sweep is needed.
        for attempt in 0.. {
            fixture.expire_lease().await;
            let report = match fixture.try_sweep().await {
                Ok(report) => report,
                // On a busy machine the database may not answer in time: the next sweep does.
                Err(error) => {
                    assert!(error.is_temporary() && attempt < 20, "{error}");
                    continue;
                }
            };
            let left = report["jobs"].as_array().unwrap().iter().any(|it| it["outcome"] == "skipped");
            if report["skipped"].is_null() && !left {
                assert_eq!(report["complete"], true, "{report:#}");
                break;
            }
        }
        // It may even have taken effect during that sweep.
        fixture.expire_lease().await;
        fixture.sweep().await;
        let mut states = end_state(&fixture, &jobs).await;
        for (state, expected) in states.iter_mut().zip(&expected) {
            // The reason is written after the step was ended: a sweep that is killed in between leaves none.
            if state[0]["reason"].is_null() {
                state[0]["reason"] = expected[0]["reason"].clone();
                state[0]["stopreq"] = expected[0]["stopreq"].clone();
                state[3] = expected[3].clone();
            }
        }
        assert_eq!(states, expected, "killed after {polls}");
        rounds += 1;
        if ended.is_some() {
            break;
        }
        polls += 1 + polls / 6;
    }
    assert!(rounds > 5, "it had come to its end after {polls}");
}
