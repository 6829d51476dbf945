//! /getResult: errors, and origins that fail (docs/contract/http.md, "GET /getResult").

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::child::Service;
use crate::fixture::{OWNER, parts, with_origin};
use crate::origin::Answer;
use crate::support::caller::provider;
use crate::support::{Call, ClosedPort, Key};

// Errors

/// The Content-Disposition of every error.
pub const NAMED: &str = "attachment;filename=error.json";

/// Provider names what it hands to its consumer after the request's URL, which holds a valid signature, if the response
/// has no name of its own.
#[tokio::test]
async fn every_error_has_a_file_name() {
    let variables = [("RESULT_TIMEOUT", "1"), ("RESULT_STREAM_LIMIT", "9")];
    let (fixture, origin) = with_origin(&variables).await;
    origin.answer("/large", Answer::file("0123456789"));
    origin.answer("/ranges", Answer::file_with_ranges("0123456789"));
    origin.answer("/silent", Answer::silent());
    // Of an origin that names it.
    origin.answer("/gone", Answer::status(404, "").header("content-disposition", "attachment;filename=secret"));
    let job = async |path: &str| fixture.job(&origin.url(path)).await;
    let (large, ranges, silent, gone) =
        (job("/large").await, job("/ranges").await, job("/silent").await, job("/gone").await);
    let used = fixture.ask(&gone);
    let stranger = Key::new();
    let huge = Call::get("getResult").in_body().with("owner", "x".repeat(400 * 1024));
    for (name, call, status) in [
        ("no parameters", Call::get("getResult"), 400),
        ("a body that is no JSON", Call::get("getResult").body("{"), 400),
        ("an unreadable signature", fixture.ask(&gone).with("providerSignature", "0x00"), 400),
        ("another signer", provider(&stranger).result(OWNER, &gone, 0), 401),
        ("no such index", provider(&fixture.provider).result(OWNER, &gone, 7), 404),
        ("an origin's error", used.clone(), 502),
        ("a used nonce", used, 400),
        // The server closes the connection, because it does not read the rest.
        ("a body that is too large", huge.header("connection", "close"), 413),
        ("a file that is too large", fixture.ask(&large), 413),
        ("no such range", fixture.ask(&ranges).header("range", "bytes=10-"), 416),
        ("no answer of the origin", fixture.ask(&silent), 504),
    ] {
        let answer = fixture.send(&call).await;
        assert_eq!((answer.status, answer.header("content-disposition")), (status, NAMED), "{name}");
        let exposed = answer.header("access-control-expose-headers").to_lowercase();
        assert_eq!(exposed, "content-disposition", "{name}");
    }

    let (_database, key, env) = parts().await;
    let closed = ClosedPort::new();
    let service = Service::start(&env.with("POSTGRES_PORT", closed.to_string())).await;
    let call = provider(&key).result(OWNER, &gone, 0);
    let answer = call.request(&fixture.client, &service.url("")).send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert_eq!(answer.headers()["content-disposition"], NAMED);
}

// Origins that fail

#[tokio::test]
async fn an_origins_error_is_a_502_with_job_index_and_status_but_without_the_url() {
    let (fixture, origin) = with_origin(&[]).await;
    for status in [301, 400, 401, 403, 404, 410, 500, 503] {
        let path = format!("/secret-place-{status}");
        origin.answer(&path, Answer::status(status, "the origin's message"));
        let job = fixture.job(&origin.url(&path)).await;
        let (found, text) = fixture.send(&fixture.ask(&job)).await.error();
        assert_eq!(found, 502, "{text}");
        for part in [job.as_str(), "0", &status.to_string()] {
            assert!(text.contains(part), "{part} is not in {text:?}");
        }
        for part in ["secret-place", "127.0.0.1", &origin.address.port().to_string(), "s message"] {
            assert!(!text.contains(part), "{part} is in {text:?}");
        }
    }
}

#[tokio::test]
async fn an_unreachable_origin_is_a_502() {
    let (fixture, origin) = with_origin(&[]).await;
    let url = origin.url("/out.txt");
    let job = fixture.job(&url).await;
    drop(origin);
    let (status, text) = fixture.send(&fixture.ask(&job)).await.error();
    assert_eq!(status, 502, "{text}");
    assert!(text.contains(&job) && !text.contains("127.0.0.1"), "{text}");
}

#[tokio::test]
async fn an_origin_that_does_not_begin_is_a_504() {
    let (fixture, origin) = with_origin(&[("RESULT_TIMEOUT", "1")]).await;
    origin.answer("/secret-place", Answer::silent());
    let job = fixture.job(&origin.url("/secret-place")).await;
    let (status, text) = fixture.send(&fixture.ask(&job)).await.error();
    assert_eq!(status, 504, "{text}");
    assert!(text.contains(&job) && text.contains('0') && !text.contains("secret-place"), "{text}");
}

/// The limit is for all redirects together.
#[tokio::test]
async fn an_origin_that_does_not_begin_after_a_redirect_is_a_504() {
    let (fixture, origin) = with_origin(&[("RESULT_TIMEOUT", "1")]).await;
    origin.answer("/here", Answer::redirect(302, "/there")).answer("/there", Answer::silent());
    assert_eq!(fixture.result_at(&origin.url("/here")).await.error().0, 504);
}

#[tokio::test]
async fn an_incomplete_file_never_looks_whole() {
    let (fixture, origin) = with_origin(&[("RESULT_IDLE_TIMEOUT", "1")]).await;
    let content = vec![b'x'; 100_000];
    for (name, broken) in [
        ("closes early", Answer::closes_early(content.clone(), 200_000)),
        ("closes early, in chunks", Answer::chunked_closes_early(content.clone())),
        ("falls silent", Answer::falls_silent(content.clone(), 200_000)),
    ] {
        origin.answer("/out.bin", broken);
        let job = fixture.job(&origin.url("/out.bin")).await;
        let whole = async {
            match fixture.begin(&fixture.ask(&job)).await {
                Ok(response) => response.bytes().await,
                Err(error) => Err(error),
            }
        };
        let whole = tokio::time::timeout(crate::LIMIT, whole).await.expect(name);
        assert!(whole.is_err(), "{name}: looked like the whole file");
    }
    // The service still answers.
    origin.answer("/out.bin", Answer::file("hello"));
    assert_eq!(fixture.result_at(&origin.url("/out.bin")).await.text(), "hello");
}

/// RESULT_IDLE_TIMEOUT limits pauses, RESULT_TIMEOUT the beginning; neither limits the whole response.
#[tokio::test]
async fn a_long_response_is_not_limited() {
    let (fixture, origin) = with_origin(&[("RESULT_TIMEOUT", "1"), ("RESULT_IDLE_TIMEOUT", "3")]).await;
    let gate = Arc::new(Notify::new());
    origin.answer("/out.txt", Answer::gated("first ", &gate, "then"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let mut response = fixture.begin(&fixture.ask(&job)).await.unwrap();
    assert_eq!(response.chunk().await.unwrap().unwrap(), "first ");
    // Longer than RESULT_TIMEOUT, shorter than RESULT_IDLE_TIMEOUT.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    gate.notify_one();
    assert_eq!(response.text().await.unwrap(), "then");
}
