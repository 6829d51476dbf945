//! Concurrent requests: the database decides, and none waits for a row that all of them need.

use std::collections::HashMap;

use serde_json::json;

use crate::given::start;
use crate::support::{Answer, App, Call, Key, agreement_id, caller, nonce, owner, workflow};

const MANY: usize = 200;
const SECOND: u64 = 1_000_000_000;
/// How often a request is sent that is answered with 503, as happens on a busy machine: it leaves nothing behind, and callers
/// repeat it.
const ATTEMPTS: usize = 20;

/// Sends all at once, round robin to the services; the answers in the order of the calls.
pub async fn all_at_once(apps: &[&App], calls: Vec<Call>) -> Vec<Answer> {
    let barrier = std::sync::Arc::new(tokio::sync::Barrier::new(calls.len()));
    let tasks: Vec<_> = calls
        .into_iter()
        .zip(apps.iter().cycle())
        .map(|(call, app)| {
            let request = call.request(&app.client, &app.url);
            let barrier = barrier.clone();
            tokio::spawn(async move {
                barrier.wait().await;
                for _ in 1..ATTEMPTS {
                    let answer = Answer::of(request.try_clone().unwrap().send().await.unwrap()).await;
                    if answer.status != 503 {
                        return answer;
                    }
                }
                Answer::of(request.send().await.unwrap()).await
            })
        })
        .collect();
    let mut answers = Vec::new();
    for task in tasks {
        answers.push(task.await.unwrap());
    }
    answers
}

/// The number of each kind of answer: status, and the text of errors.
fn tally(answers: &[Answer]) -> HashMap<(u16, String), usize> {
    let mut tally = HashMap::new();
    for answer in answers {
        let what = if answer.status == 200 { (200, String::new()) } else { answer.error() };
        *tally.entry(what).or_default() += 1;
    }
    tally
}

/// Starts of fresh owners, each with a nonce of its own.
fn starts(app: &App, key: &Key, agreement: impl Fn() -> String) -> Vec<Call> {
    let start = |_| caller::provider(key).start(&app.namespace, &agreement(), &owner(), workflow::sample());
    (0..MANY).map(start).collect()
}

async fn one_agreement(app: &App, apps: &[&App]) {
    let key = Key::new();
    let agreement = agreement_id();
    let answers = all_at_once(apps, starts(app, &key, || agreement.clone())).await;
    let expected = HashMap::from([
        ((200, String::new()), 1),
        ((400, "`agreementId` already in use for other job.".to_owned()), MANY - 1),
    ]);
    assert_eq!(tally(&answers), expected);
    assert_eq!(app.database.count("jobs").await, 1);
    // The nonces of the refused starts are taken.
    assert_eq!(app.database.used_nonces(&key.address).await.len(), MANY);
    let won = answers.iter().find(|answer| answer.status == 200).unwrap().ok();
    let found = app.send(Call::get("compute").with("agreementId", agreement)).await.ok();
    assert_eq!(found, won);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_starts_of_an_agreement_passes() {
    // With a pool of 10, the default.
    let app = App::start().await;
    one_agreement(&app, &[&app]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_starts_of_an_agreement_in_two_processes_passes() {
    let app = App::builder().var("POSTGRES_POOL_SIZE", "25").start().await;
    let other = app.another_process().var("POSTGRES_POOL_SIZE", "3").start().await;
    one_agreement(&app, &[&app, &other]).await;
}

async fn one_nonce(app: &App, apps: &[&App]) {
    let key = Key::new();
    let nonce = nonce();
    let start =
        |_| caller::provider(&key).start_at(&app.namespace, &agreement_id(), &owner(), workflow::sample(), nonce);
    let answers = all_at_once(apps, (0..MANY).map(start).collect()).await;
    let refused =
        format!("Invalid signature expected nonce ({nonce}) > current nonce ({nonce}). The signer has used it before.");
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), 1), ((400, refused), MANY - 1)]));
    assert_eq!(app.database.count("jobs").await, 1);
    assert_eq!(app.database.used_nonces(&key.address).await, [nonce.to_string()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_requests_with_one_nonce_passes() {
    let app = App::start().await;
    one_nonce(&app, &[&app]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_requests_with_one_nonce_in_two_processes_passes() {
    let app = App::builder().var("POSTGRES_POOL_SIZE", "25").start().await;
    let other = app.another_process().start().await;
    one_nonce(&app, &[&app, &other]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_stops_with_one_nonce_passes() {
    let app = App::start().await;
    let (key, owner, nonce) = (Key::new(), owner(), nonce());
    let stop = caller::provider(&key).call(reqwest::Method::PUT, &owner, None, nonce);
    let calls = (0..MANY).map(|i| stop.clone().with("documentId", i.to_string())).collect();
    let answers = all_at_once(&[&app], calls).await;
    let refused =
        format!("Invalid signature expected nonce ({nonce}) > current nonce ({nonce}). The signer has used it before.");
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), 1), ((400, refused), MANY - 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_200_concurrent_requests_that_are_the_same_one_is_done_and_all_are_answered() {
    let app = App::start().await;
    let key = Key::new();
    let start = start(&app, &key);
    let answers = all_at_once(&[&app], vec![start; MANY]).await;
    let jobs: std::collections::HashSet<_> = answers.iter().map(|answer| answer.ok()[0]["jobId"].to_string()).collect();
    assert_eq!((jobs.len(), app.database.count("jobs").await), (1, 1));
    let stop = caller::provider(&key).stop(&owner(), None);
    let answers = all_at_once(&[&app], vec![stop; MANY]).await;
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), MANY)]));
    assert_eq!(app.database.used_nonces(&key.address).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_of_200_concurrent_get_results_with_one_nonce_passes() {
    let app = App::start().await;
    let (key, owner, nonce) = (Key::new(), owner(), nonce());
    let call = caller::provider(&key).result_at(&owner, "0123456789abcdef0123456789abcdef", 0, nonce);
    let answers = all_at_once(&[&app], vec![call; MANY]).await;
    let refused =
        format!("Invalid signature expected nonce ({nonce}) > current nonce ({nonce}). The signer has used it before.");
    let looked_at = format!("Owner {owner} mismatch for job 0123456789abcdef0123456789abcdef");
    assert_eq!(tally(&answers), HashMap::from([((404, looked_at), 1), ((400, refused), MANY - 1)]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_of_200_concurrent_requests_of_one_signer_pass_in_any_order() {
    let app = App::start().await;
    let key = Key::new();
    // All over the window, in steps of about a second, in no order: 83 and 200 have no common divisor.
    let newest = nonce();
    let start = |i: usize| {
        let nonce = newest - (i * 83 % MANY) as u64 * (SECOND + 7);
        caller::provider(&key).start_at(&app.namespace, &agreement_id(), &owner(), workflow::sample(), nonce)
    };
    let answers = all_at_once(&[&app], (0..MANY).map(start).collect()).await;
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), MANY)]));
    assert_eq!(app.database.used_nonces(&key.address).await.len(), MANY);
    assert_eq!(app.database.count("jobs").await, MANY as i64);
    assert_eq!(app.send(Call::get("runningjobs")).await.ok().as_array().unwrap().len(), MANY);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn requests_of_one_signer_do_not_wait_for_each_other() {
    let app = App::start().await;
    let key = Key::new();
    let nonces: Vec<u64> = (0..3).map(|_| nonce()).collect();
    // A request that has taken its nonce and does not end.
    let mut held = app.database.pool.begin().await.unwrap();
    sqlx::query("INSERT INTO usednonces (signer, ns, nonce) VALUES (lower($1), $2::text::numeric, $2)")
        .bind(&key.address)
        .bind(nonces[1].to_string())
        .execute(&mut *held)
        .await
        .unwrap();
    for nonce in [nonces[2], nonces[0]] {
        let call =
            caller::provider(&key).start_at(&app.namespace, &agreement_id(), &owner(), workflow::sample(), nonce);
        app.send(call).await.ok();
    }
    // If it is rolled back, its nonce is free.
    held.rollback().await.unwrap();
    let call =
        caller::provider(&key).start_at(&app.namespace, &agreement_id(), &owner(), workflow::sample(), nonces[1]);
    app.send(call).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_starts_stops_and_deletes_of_one_owner_all_work() {
    let app = App::start().await;
    let (key, owner) = (Key::new(), owner());
    let mut calls = Vec::new();
    for i in 0..90 {
        calls.push(match i % 3 {
            0 => caller::provider(&key).start(&app.namespace, &agreement_id(), &owner, workflow::sample()),
            1 => caller::provider(&key).stop(&owner, None),
            _ => caller::provider(&key).delete(&owner, None),
        });
    }
    let answers = all_at_once(&[&app], calls).await;
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), 90)]));
    let all = app.send(caller::provider(&key).delete(&owner, None)).await.ok();
    assert_eq!(all.as_array().unwrap().len(), 30);
    assert!(all.as_array().unwrap().iter().all(|job| (&job["stopreq"], &job["removed"]) == (&json!(1), &json!(1))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn status_requests_are_answered_during_many_starts() {
    let app = App::start().await;
    let key = Key::new();
    let mut calls = starts(&app, &key, agreement_id);
    calls.truncate(50);
    calls.extend((0..50).map(|_| Call::get("compute").with("owner", owner())));
    calls.extend((0..50).map(|_| Call::get("environments")));
    let answers = all_at_once(&[&app], calls).await;
    assert_eq!(tally(&answers), HashMap::from([((200, String::new()), 150)]));
}
