//! The function `results` behind a runtime API.

use std::sync::Arc;

use reqwest::Method;
use tokio::sync::Notify;

use crate::fixture::{OWNER, finished, hosts, output, parts};
use crate::origin::{Answer as File, Origin, PatternCheck};
use crate::runtime_api::{Event, Function, Outcome, Part};
use crate::support::caller::{ocean_node, provider};
use crate::support::{Key, TestDatabase};

const RESULTS: &str = env!("CARGO_BIN_EXE_results");

async fn results(variables: &[(&str, &str)]) -> (TestDatabase, Key, Origin, Function) {
    let (database, key, env) = parts().await;
    let origin = Origin::start().await;
    let env = env.with("RESULT_HOSTS_ALLOWED", hosts(&[&origin.address.to_string()])).and(variables);
    let function = Function::start(RESULTS, &env).await;
    (database, key, origin, function)
}

#[tokio::test]
async fn results_are_streamed() {
    let (database, key, origin, function) = results(&[]).await;
    origin.answer("/out.txt", File::file("hello"));
    let job = finished(&key, &output(&origin.url("/out.txt"))).insert(&database).await.job_id;
    let mut reply = function.invoke(Event::of(&provider(&key).result(OWNER, &job, 0)).0);
    let Some(Part::Head("response", headers)) = reply.part().await else { panic!("no response") };
    assert_eq!(headers["lambda-runtime-function-response-mode"], "streaming");
    assert_eq!(headers["content-type"], "application/vnd.awslambda.http-integration-response");
    assert_eq!(headers["transfer-encoding"], "chunked");

    let answer = function.call(&provider(&key).result(OWNER, &job, 0)).await;
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    assert_eq!(answer.header("content-type"), "text/plain");
    assert_eq!(answer.header("content-disposition"), "attachment;filename=out.txt");
    assert_eq!(answer.header("content-length"), "5");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
}

/// What the origin has sent is passed on before the rest arrives.
#[tokio::test]
async fn results_do_not_wait_for_the_end_of_the_file() {
    let (database, key, origin, function) = results(&[]).await;
    let gate = Arc::new(Notify::new());
    origin.answer("/out.txt", File::gated("first ", &gate, "then"));
    let job = finished(&key, &output(&origin.url("/out.txt"))).insert(&database).await.job_id;
    let mut reply = function.invoke(Event::of(&provider(&key).result(OWNER, &job, 0)).0);
    let mut sent = Vec::new();
    while !sent.ends_with(b"first ") {
        match reply.part().await {
            Some(Part::Head(..)) => {}
            Some(Part::Data(data)) => sent.extend_from_slice(&data),
            other => panic!("{other:?}"),
        }
    }
    gate.notify_one();
    while let Some(part) = reply.part().await {
        let Part::Data(data) = part else { panic!("{part:?}") };
        sent.extend_from_slice(&data);
    }
    assert!(sent.ends_with(b"\0\0\0\0\0\0\0\0first then"));
}

#[tokio::test]
async fn results_larger_than_a_buffered_response() {
    let (database, key, origin, function) = results(&[]).await;
    origin.answer("/large.bin", File::pattern(50_000_000));
    let job = finished(&key, &output(&origin.url("/large.bin"))).insert(&database).await.job_id;
    let answer = function.call(&provider(&key).result(OWNER, &job, 0)).await;
    assert_eq!((answer.status, answer.header("content-length")), (200, "50000000"));
    let mut check = PatternCheck::default();
    check.take(&answer.body);
    assert_eq!(check.length(), 50_000_000);
}

#[tokio::test]
async fn results_pass_ranges_on_and_errors_are_json() {
    let (database, key, origin, mut function) = results(&[("RESULT_TIMEOUT", "1")]).await;
    origin.answer("/out.txt", File::file_with_ranges("0123456789")).answer("/slow", File::silent());
    let job = finished(&key, &output(&origin.url("/out.txt"))).insert(&database).await.job_id;
    let call = provider(&key).result(OWNER, &job, 0).header("Range", "bytes=2-4");
    let answer = function.call(&call).await;
    assert_eq!((answer.status, answer.text(), answer.header("content-range")), (206, "234", "bytes 2-4/10"));
    let answer = function.call(&provider(&key).result(OWNER, &job, 0).header("Range", "bytes=10-")).await;
    assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */10"));

    let call = provider(&key).result(OWNER, &job, 7);
    let missing = function.call(&call).await;
    missing.is_error(404, "No such index 7 in this compute job");
    assert_eq!(missing.header("content-disposition"), "attachment;filename=error.json");
    assert_eq!(function.call(&call).await.error().0, 400);
    let head = function.call(&provider(&key).result(OWNER, &job, 0).method(Method::HEAD)).await;
    assert_eq!((head.status, head.header("allow")), (405, "GET"));
    assert_eq!(function.call(&provider(&Key::new()).result(OWNER, &job, 0)).await.error().0, 401);
    let gone = finished(&key, &output(&origin.url("/gone"))).insert(&database).await.job_id;
    assert_eq!(function.call(&provider(&key).result(OWNER, &gone, 0)).await.error().0, 502);
    let slow = finished(&key, &output(&origin.url("/slow"))).insert(&database).await.job_id;
    assert_eq!(function.call(&provider(&key).result(OWNER, &slow, 0)).await.error().0, 504);
    // Ocean Node's body on a GET, if API Gateway passes it on.
    let call = ocean_node(&key).result(OWNER, &job, 0);
    assert_eq!(function.call(&call).await.text(), "0123456789");
    let call = ocean_node(&key).result(OWNER, &job, 0);
    assert_eq!(function.send(Event::of(&call).in_base64()).await.text(), "0123456789");
    assert!(function.process.is_running());
}

/// Callers must be able to tell an incomplete file from a whole one, and error texts from content.
#[tokio::test]
async fn incomplete_results_differ_from_whole_ones() {
    let (database, key, origin, mut function) = results(&[("RESULT_IDLE_TIMEOUT", "1")]).await;
    let content = vec![b'x'; 10_000];
    for (name, broken) in [
        // So few bytes are missing that an error's text in their place would reach the announced length.
        ("closes early", File::closes_early(content.clone(), 10_010)),
        ("closes early, in chunks", File::chunked_closes_early(content.clone())),
        ("falls silent", File::falls_silent(content.clone(), 10_010)),
    ] {
        origin.answer("/out.bin", broken);
        let job = finished(&key, &output(&origin.url("/out.bin"))).insert(&database).await.job_id;
        match function.invoke(Event::of(&provider(&key).result(OWNER, &job, 0)).0).whole().await {
            Outcome::Incomplete(answer) => {
                assert!(content.starts_with(&answer.body), "{name}: content that the origin did not send");
            }
            Outcome::Answer(answer) => {
                let end = answer.body.len().min(content.len());
                panic!(
                    "{name}: looks like a whole response of {} bytes, announced as {:?}, with {:?} after the content",
                    answer.body.len(),
                    answer.header("content-length"),
                    String::from_utf8_lossy(&answer.body[end..]),
                );
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    origin.answer("/out.bin", File::file("hello"));
    let job = finished(&key, &output(&origin.url("/out.bin"))).insert(&database).await.job_id;
    assert_eq!(function.call(&provider(&key).result(OWNER, &job, 0)).await.text(), "hello");
    assert!(function.process.is_running());
}
