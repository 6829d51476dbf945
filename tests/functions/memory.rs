//! Results of 300 MB with less than 32 MB of growth.

use std::time::Duration;

use crate::origin::{Answer, Origin, PatternCheck};
use crate::scene::{Scene, hosts};

const LENGTH: u64 = 300_000_000;
/// In KiB.
const GROWTH: u64 = 32_000_000 / 1024;

/// A service that has handed out a result already: what it then needs more is for the next one's content.
async fn warm(variables: &[(&str, &str)]) -> (Scene, Origin, String, u64) {
    let origin = Origin::start().await;
    let allowed = hosts(&[&origin.address.to_string()]);
    let mut all = vec![("RESULT_HOSTS_ALLOWED", allowed.as_str())];
    all.extend(variables);
    let scene = Scene::with(&all).await;
    origin.answer("/small", Answer::file("hello")).answer("/large.bin", Answer::pattern(LENGTH));
    assert_eq!(scene.result_at(&origin.url("/small")).await.text(), "hello");
    let job = scene.job(&origin.url("/large.bin")).await;
    let before = scene.service.process.memory("VmRSS");
    (scene, origin, job, before)
}

fn assert_grew_little(scene: &Scene, before: u64) {
    let most = scene.service.process.memory("VmHWM");
    println!("from {before} KiB to {most} KiB");
    assert!(most.saturating_sub(before) < GROWTH, "from {before} KiB to {most} KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_300_mb_is_not_held_in_memory() {
    let (scene, _origin, job, before) = warm(&[]).await;
    let mut response = scene.begin(&scene.ask(&job)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.content_length(), Some(LENGTH));
    let mut check = PatternCheck::default();
    while let Some(chunk) = response.chunk().await.unwrap() {
        check.take(&chunk);
    }
    assert_eq!(check.length(), LENGTH);
    assert_grew_little(&scene, before);
}

/// Whoever reads slowly holds up the origin, not the service's memory; and that is no silence of the origin's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_up_the_origin() {
    let (scene, origin, job, before) = warm(&[("RESULT_IDLE_TIMEOUT", "1")]).await;
    let mut response = scene.begin(&scene.ask(&job)).await.unwrap();
    let mut check = PatternCheck::default();
    check.take(&response.chunk().await.unwrap().unwrap());
    origin.held_up().await;
    // What is under way lies in the sockets' buffers.
    assert!(origin.sent() < LENGTH / 2, "{} bytes were taken while nobody read", origin.sent());
    assert_grew_little(&scene, before);
    while let Some(chunk) = response.chunk().await.unwrap() {
        check.take(&chunk);
    }
    assert_eq!(check.length(), LENGTH);
    assert_grew_little(&scene, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_hangs_up_ends_the_fetching() {
    let (scene, origin, job, _) = warm(&[]).await;
    let mut response = scene.begin(&scene.ask(&job)).await.unwrap();
    response.chunk().await.unwrap().unwrap();
    drop(response);
    // The origin either notices or is left with what the sockets took.
    crate::support::eventually("the end of the fetching", crate::LIMIT, async || {
        let sent = origin.sent();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (origin.sent() == sent).then_some(())
    })
    .await;
    assert!(origin.sent() < LENGTH / 2, "{} bytes were fetched for nobody", origin.sent());
}
