//! Repeated requests, and requests that share a nonce (docs/contract/http.md, "Signatures").

use std::time::Duration;

use crate::concurrency::all_at_once;
use crate::given::{Origin, now};
use crate::support::operation::{Caller, Kind, OPERATIONS, Operation};
use crate::support::{App, Call, Key, Stored, agreement_id, caller, eventually, nonce_ms, owner, workflow};

/// In seconds, how old a nonce may be for another request under it to pass.
const SHARED_FOR: f64 = 5.0;

#[tokio::test]
async fn a_repeated_write_is_answered_as_it_stands_and_changes_nothing() {
    let origin = Origin::start().await;
    let app = origin.allowed(App::builder()).start().await;
    let other = origin.allowed(app.another_process()).start().await;
    let key = Key::new();
    for which in OPERATIONS {
        let operation = Operation::prepare(which, &app.database, &app.namespace, &key, &origin.url, "repeated").await;
        let first = app.send(operation.request.clone()).await;
        operation.settles(&app.database, Some(&first), async |call| other.send(call).await).await;
        if let (Caller::Provider | Caller::OceanNode, Kind::Start) = which {
            // As it stands now.
            let job_id = first.ok()[0]["jobId"].as_str().unwrap().to_owned();
            let finish =
                "UPDATE jobs SET status = 70, statustext = 'Job finished', datefinished = now() WHERE workflowid = $1";
            sqlx::query(finish).bind(&job_id).execute(&app.database.pool).await.unwrap();
            let before = app.database.job(&job_id).await;
            assert_eq!(app.send(operation.request).await.ok()[0]["status"], 70);
            assert_eq!(app.database.job(&job_id).await, before);
        }
    }
}

#[tokio::test]
async fn a_repeated_stop_does_not_stop_jobs_that_were_started_since() {
    let app = App::start().await;
    let (key, owner) = (Key::new(), owner());
    let job = || Stored { owner: Some(owner.clone()), ..Stored::running() };
    job().insert(&app.database).await;
    let stop = caller::provider(&key).stop(&owner, None);
    app.send(stop.clone()).await.ok();
    let later = job().insert(&app.database).await;
    app.send(stop).await.ok();
    assert_eq!(app.database.job(&later.job_id).await.unwrap()["stopreq"], 0);
}

/// As Ocean Node sends them: its nonce is the clock in milliseconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_starts_within_one_millisecond_pass_and_nothing_else_later() {
    let app = App::start().await;
    let other = app.another_process().start().await;
    let key = Key::new();
    // Ahead, so that a busy machine has as much more time.
    let nonce = nonce_ms() + 15_000;
    let start = || {
        let node = caller::ocean_node(&key);
        node.start_at(&app.namespace, &agreement_id(), &owner(), workflow::of_ocean_node(), nonce)
    };
    let starts: Vec<Call> = (0..50).map(|_| start()).collect();
    let mut jobs = Vec::new();
    for answer in all_at_once(&[&app, &other], starts.clone()).await {
        jobs.push(answer.ok()[0]["jobId"].clone());
    }
    assert_eq!(app.database.count("jobs").await, 50);
    // The same requests, while another would still pass, get their own jobs.
    for (answer, job) in all_at_once(&[&app], starts.clone()).await.iter().zip(&jobs) {
        assert_eq!(answer.ok()[0]["jobId"], *job);
    }
    let limit = Duration::from_secs(60);
    eventually("the age of the nonce", limit, async || (now() > nonce as f64 / 1e3 + SHARED_FOR).then_some(())).await;
    for answer in all_at_once(&[&other], starts.iter().map(another_content).collect()).await {
        let (status, text) = answer.error();
        assert!(status == 400 && text.contains("nonce"), "{text}");
    }
    for (answer, job) in all_at_once(&[&other], starts).await.iter().zip(&jobs) {
        assert_eq!(answer.ok()[0]["jobId"], *job);
    }
    assert_eq!(app.database.count("jobs").await, 50);
}

/// Its signature covers the nonce alone.
fn another_content(start: &Call) -> Call {
    start.clone().with("agreementId", agreement_id())
}

#[tokio::test]
async fn five_results_under_one_nonce_pass_once_each() {
    let origin = Origin::start().await;
    let app = origin.allowed(App::builder()).start().await;
    let (key, owner, nonce) = (Key::new(), owner(), nonce_ms() + 60_000);
    let mut requests = Vec::new();
    for _ in 0..5 {
        let outputs = serde_json::json!([{ "filename": "out.txt", "url": format!("{}/out.txt", origin.url) }]);
        let job = Stored {
            owner: Some(owner.clone()),
            provider: Some(key.address.clone()),
            outputs: Some(outputs.to_string()),
            ..Stored::finished()
        };
        let job = job.insert(&app.database).await;
        requests.push(caller::ocean_node(&key).result_at(&owner, &job.job_id, 0, nonce));
    }
    for answer in all_at_once(&[&app], requests.clone()).await {
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for answer in all_at_once(&[&app], requests).await {
        let (status, text) = answer.error();
        assert!(status == 400 && text.contains("nonce"), "{text}");
    }
}
