//! /getResult (docs/contract/http.md, "GET /getResult").

use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::sync::Notify;

use crate::child::Service;
use crate::fixture::{Fixture, OWNER, finished, hosts, output, parts, with_origin};
use crate::origin::{Answer, Origin};
use crate::support::caller::{ocean_node, provider};
use crate::support::{Call, ClosedPort, Key, Stored, client, nonce};

// Files

#[tokio::test]
async fn a_file_has_its_name_and_type() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/a/out.txt", Answer::file("hello"));
    let answer = fixture.result_at(&origin.url("/a/out.txt?X-Amz-Signature=secret")).await;
    assert_eq!((answer.status, answer.text()), (200, "hello"));
    assert_eq!(answer.header("content-disposition"), "attachment;filename=out.txt");
    assert_eq!(answer.header("access-control-expose-headers").to_lowercase(), "content-disposition");
    assert_eq!(answer.header("content-type"), "text/plain");
    assert_eq!(answer.header("content-length"), "5");
    assert_eq!(answer.header("access-control-allow-origin"), "*");
    assert_eq!(origin.requests()[0].target, "/a/out.txt?X-Amz-Signature=secret");
}

/// The origin's headers, the path, and the Content-Disposition and Content-Type that follow from them.
#[tokio::test]
async fn names_and_types_follow_the_contract() {
    let (fixture, origin) = with_origin(&[]).await;
    let cases = [
        // The name is the origin's, else the URL's last segment.
        (Some("attachment; filename=data.csv"), None, "/1/x.txt", "attachment;filename=data.csv", "text/csv"),
        (Some("inline; filename=\"a b.json\""), None, "/2/x", "attachment;filename=\"a b.json\"", "application/json"),
        (None, None, "/3/deep/model.bin", "attachment;filename=model.bin", "application/octet-stream"),
        // The content type is the origin's, else guessed from the extension.
        (None, Some("image/png"), "/4/x.txt", "attachment;filename=x.txt", "image/png"),
        (None, None, "/5/x.html", "attachment;filename=x.html", "text/html"),
        // A name without an extension gets the one that its content type implies.
        (None, Some("application/json"), "/6/out", "attachment;filename=out.json", "application/json"),
        (None, Some("text/plain; charset=utf-8"), "/7/out", "attachment;filename=out.txt", "text/plain; charset=utf-8"),
        (Some("attachment; filename=out"), Some("text/csv"), "/8/y.txt", "attachment;filename=out.csv", "text/csv"),
        // No path that leaves the caller's directory, and no header as the origin sent it.
        (
            Some("attachment; filename=\"../../.bashrc.txt\""),
            None,
            "/9/x",
            "attachment;filename=.bashrc.txt",
            "text/plain",
        ),
    ];
    for (disposition, content_type, path, expected_disposition, expected_type) in cases {
        let mut file = Answer::file("x");
        if let Some(disposition) = disposition {
            file = file.header("content-disposition", disposition);
        }
        if let Some(content_type) = content_type {
            file = file.header("content-type", content_type);
        }
        origin.answer(path, file);
        let answer = fixture.result_at(&origin.url(path)).await;
        assert_eq!(answer.status, 200, "{path} {}", answer.text());
        assert_eq!(answer.header("content-disposition"), expected_disposition, "{path}");
        assert_eq!(answer.header("content-type"), expected_type, "{path}");
    }
}

#[tokio::test]
async fn an_index_counts_from_0_and_chooses_the_output() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/first", Answer::file("first")).answer("/second", Answer::file("second"));
    let outputs = json!([
        { "filename": "a", "filesize": 1, "type": "output", "url": origin.url("/first") },
        { "filename": "b", "filesize": 1, "type": "algorithmLog", "url": origin.url("/second") },
    ]);
    let job = finished(&fixture.provider, &outputs).insert(&fixture.database).await.job_id;
    for (index, content) in [("0", "first"), ("1", "second")] {
        let answer = fixture.send(&provider(&fixture.provider).result(OWNER, &job, index)).await;
        assert_eq!((answer.status, answer.text()), (200, content));
    }
}

#[tokio::test]
async fn an_empty_file_is_a_file() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/empty.txt", Answer::file(""));
    let answer = fixture.result_at(&origin.url("/empty.txt")).await;
    assert_eq!((answer.status, answer.text(), answer.header("content-length")), (200, "", "0"));
}

#[tokio::test]
async fn a_file_without_a_length() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::chunked("0123456789"));
    let answer = fixture.result_at(&origin.url("/out.txt")).await;
    assert_eq!((answer.status, answer.text(), answer.header("content-length")), (200, "0123456789", ""));
}

#[tokio::test]
async fn content_is_sent_as_the_origin_stores_it() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer(
        "/out.txt.gz",
        Answer::file(b"\x1f\x8b not to be decompressed".as_slice()).header("content-encoding", "gzip"),
    );
    let answer = fixture.result_at(&origin.url("/out.txt.gz")).await;
    assert_eq!(&answer.body[..], b"\x1f\x8b not to be decompressed");
    assert_eq!(answer.header("content-encoding"), "gzip");
    assert_eq!(origin.requests()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn ocean_node_sends_a_json_body() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let answer = fixture.send(&ocean_node(&fixture.provider).result(OWNER, &job, 0)).await;
    assert_eq!((answer.status, answer.text()), (200, "hello"));
}

#[tokio::test]
async fn no_other_headers_of_the_origin_are_sent() {
    let (fixture, origin) = with_origin(&[]).await;
    let file = Answer::file("hello")
        .header("set-cookie", "session=secret")
        .header("x-amz-id-2", "secret")
        .header("server", "secret")
        .header("content-location", "http://secret/")
        .header("refresh", "0; url=http://secret/");
    origin.answer("/out.txt", file);
    let answer = fixture.result_at(&origin.url("/out.txt")).await;
    let headers = format!("{:?}", answer.headers);
    assert!(!headers.contains("secret") && !headers.contains(&origin.address.to_string()), "{headers}");
}

// Access

#[tokio::test]
async fn checks_are_in_the_contracts_order() {
    let (fixture, origin) = with_origin(&[]).await;
    let stranger = Key::new();
    let url = origin.url("/out.txt");
    let job = fixture.job(&url).await;
    let strangers = finished(&stranger, &output(&url)).insert(&fixture.database).await.job_id;
    let without = Stored { outputs: None, ..finished(&fixture.provider, &output(&url)) };
    let without = without.insert(&fixture.database).await.job_id;
    let empty = finished(&fixture.provider, &json!([])).insert(&fixture.database).await.job_id;
    let damaged = Stored { outputs: Some("[{".to_owned()), ..finished(&fixture.provider, &output(&url)) };
    let damaged = damaged.insert(&fixture.database).await.job_id;
    let expired = Stored { removed: Some(1), ..finished(&fixture.provider, &output(&url)) };
    let expired = expired.insert(&fixture.database).await.job_id;
    let strangers_expired = Stored { removed: Some(1), ..finished(&stranger, &output(&url)) };
    let strangers_expired = strangers_expired.insert(&fixture.database).await.job_id;

    let Key { address, .. } = &fixture.provider;
    let unknown = "00000000000000000000000000000000";
    let cases = [
        ("0xother", &*job, "0", format!("Owner 0xother mismatch for job {job}")),
        (OWNER, unknown, "0", format!("Owner {OWNER} mismatch for job {unknown}")),
        // The owner is checked before the provider, the provider before everything else.
        ("0xother", &strangers, "-1", format!("Owner 0xother mismatch for job {strangers}")),
        (OWNER, &strangers, "-1", format!("Provider {address} mismatch for job {strangers}")),
        (OWNER, &strangers_expired, "0", format!("Provider {address} mismatch for job {strangers_expired}")),
        (OWNER, &without, "-1", format!("No results for job {without}")),
        (OWNER, &empty, "0", format!("No results for job {empty}")),
        (OWNER, &damaged, "0", format!("No results for job {damaged}")),
        (OWNER, &job, "-1", "Negative index -1".to_owned()),
        (OWNER, &job, "1", "No such index 1 in this compute job".to_owned()),
        (OWNER, &job, "18446744073709551616", "No such index 18446744073709551616 in this compute job".to_owned()),
        (OWNER, &expired, "0", format!("Results of job {expired} have expired")),
    ];
    for (owner, job, index, text) in cases {
        let call = provider(&fixture.provider).result(owner, job, index);
        fixture.send(&call).await.is_error(404, &text);
        // The nonce is used.
        let (status, again) = fixture.send(&call).await.error();
        assert_eq!(status, 400);
        assert!(again.starts_with("Invalid signature expected nonce ("), "{again}");
    }
    assert!(origin.requests().is_empty());
}

#[tokio::test]
async fn an_index_has_to_be_a_whole_number() {
    let (fixture, origin) = with_origin(&[]).await;
    let job = fixture.job(&origin.url("/out.txt")).await;
    for index in ["x", "1.5", "1e0", "0x1", " 0", "+0", ""] {
        let (status, text) = fixture.send(&provider(&fixture.provider).result(OWNER, &job, index)).await.error();
        assert_eq!(status, 400, "{index:?} {text}");
        assert!(text.contains("index"), "{text}");
    }
}

#[tokio::test]
async fn parameters_are_required_in_the_contracts_order() {
    let (fixture, _origin) = with_origin(&[]).await;
    let whole = fixture.ask("9f9178dcffd34130a3158ce9ca3d15ff");
    let mut call = Call::get("getResult").with("unknown", "1");
    for name in ["owner", "providerSignature", "nonce", "index", "jobId"] {
        fixture.send(&call).await.is_error(400, &format!("\"{name}\" is required in the call to GET:/getResult"));
        call = call.with(name, whole.parameter(name));
    }
    fixture.send(&call).await.error();
}

#[tokio::test]
async fn other_signers_are_refused() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let stranger = Key::new();
    let job = finished(&stranger, &output(&origin.url("/out.txt"))).insert(&fixture.database).await.job_id;
    let call = provider(&stranger).result(OWNER, &job, 0);
    let text = format!(
        "Invalid signature {} of documentId {OWNER}{job}{},the signing ethereum account {} is not authorized to use this \
         service.",
        call.text("providerSignature"),
        call.text("nonce"),
        stranger.address
    );
    fixture.send(&call).await.is_error(401, &text);
    assert!(origin.requests().is_empty());
}

/// Rows of the Python service have an address that nobody owns (docs/contract/engine.md, "Rows of the Python service").
#[tokio::test]
async fn every_allowed_provider_may_fetch_results_of_the_python_service() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    for provider in [Some("0x000000000000000000000000000000000000dEaD".to_owned()), Some(String::new()), None] {
        let row = Stored {
            signer_verified: false,
            provider,
            ..finished(&fixture.provider, &output(&origin.url("/out.txt")))
        };
        let job = row.insert(&fixture.database).await.job_id;
        let answer = fixture.send(&fixture.ask(&job)).await;
        assert_eq!((answer.status, answer.text()), (200, "hello"));
        let text = format!("Owner 0xother mismatch for job {job}");
        fixture
            .send(&crate::support::caller::provider(&fixture.provider).result("0xother", &job, 0))
            .await
            .is_error(404, &text);
    }
}

// Nonces

#[tokio::test]
async fn a_success_uses_the_nonce() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let call = fixture.ask(&job);
    assert_eq!(fixture.send(&call).await.status, 200);
    fixture.send(&call).await.is_error(400, &used(&call));
    assert_eq!(origin.requests().len(), 1);
}

/// The signature of a failed request is valid for more than that request (docs/contract/callers.md, "Replay").
#[tokio::test]
async fn an_origins_failure_leaves_the_nonce_used() {
    let (fixture, origin) = with_origin(&[("RESULT_TIMEOUT", "1")]).await;
    let job = fixture.job(&origin.url("/out.txt")).await;
    for (failing, status) in [
        (Answer::status(500, "oops"), 502),
        (Answer::status(404, "gone"), 502),
        (Answer::silent(), 504),
        (Answer::gibberish(), 502),
        (Answer::redirect(302, "http://127.0.0.1:1/"), 502),
    ] {
        origin.answer("/out.txt", failing);
        let call = fixture.ask(&job);
        assert_eq!(fixture.send(&call).await.error().0, status);
        let asked = origin.requests().len();
        // The origin would answer now, and is not asked again.
        origin.answer("/out.txt", Answer::file("hello"));
        fixture.send(&call).await.is_error(400, &used(&call));
        assert_eq!(origin.requests().len(), asked);
    }
    assert_eq!(fixture.send(&fixture.ask(&job)).await.text(), "hello");
}

/// The text that refuses a request because of its nonce, if that is the signer's highest.
fn used(call: &Call) -> String {
    let nonce = call.text("nonce");
    format!("Invalid signature expected nonce ({nonce}) > current nonce ({nonce}). The signer has used it before.")
}

#[tokio::test]
async fn the_nonce_is_used_before_the_origin_has_answered() {
    let (fixture, origin) = with_origin(&[]).await;
    let gate = Arc::new(Notify::new());
    origin.answer("/out.txt", Answer::late(&gate, "late"));
    let call = fixture.ask(&fixture.job(&origin.url("/out.txt")).await);
    let first = tokio::spawn(call.request(&fixture.client, &fixture.service.url("")).send());
    origin.asked().await;
    fixture.send(&call).await.is_error(400, &used(&call));
    gate.notify_one();
    assert_eq!(first.await.unwrap().unwrap().text().await.unwrap(), "late");
    assert_eq!(origin.requests().len(), 1);
}

/// A HEAD that used a nonce would not be what its senders expect.
#[tokio::test]
async fn head_is_not_offered_and_uses_no_nonce() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let call = fixture.ask(&fixture.job(&origin.url("/out.txt")).await);
    for method in [Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let answer = fixture.send(&call.clone().method(method.clone())).await;
        assert_eq!((answer.status, answer.header("allow")), (405, "GET"), "{method}");
        assert_eq!(answer.header("content-disposition"), NAMED, "{method}");
    }
    assert!(fixture.database.used_nonces(&fixture.provider.address).await.is_empty());
    assert!(origin.requests().is_empty());
    assert_eq!(fixture.send(&call).await.text(), "hello");
}

#[tokio::test]
async fn of_many_concurrent_requests_with_one_nonce_one_succeeds() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let call = fixture.ask(&job);
    // On a busy machine some wait too long for a connection: a 503, after which the same request may be sent again.
    let send = async || {
        loop {
            let answer = fixture.send(&call).await;
            if answer.status != 503 {
                return answer;
            }
        }
    };
    let answers = futures_util::future::join_all((0..50).map(|_| send())).await;
    let of = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((of(200), of(400)), (1, 49));
}

// Errors

/// The Content-Disposition of every error.
const NAMED: &str = "attachment;filename=error.json";

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

// Redirects

#[tokio::test]
async fn redirects_are_followed_to_hosts_that_are_allowed() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let allowed = hosts(&[&first.address.to_string(), &second.address.to_string()]);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", &allowed)]).await;
    for status in [301, 302, 303, 307, 308] {
        first.answer("/out", Answer::redirect(status, second.url("/elsewhere/out.csv")));
        second.answer("/elsewhere/out.csv", Answer::file("hello"));
        let answer = fixture.result_at(&first.url("/out")).await;
        assert_eq!((answer.status, answer.text()), (200, "hello"), "{status}");
    }
    // On the same host, relative to the first path.
    first.answer("/a/b", Answer::redirect(302, "../c?x=1")).answer("/c", Answer::file("here"));
    assert_eq!(fixture.result_at(&first.url("/a/b")).await.text(), "here");
    assert_eq!(first.requests().last().unwrap().target, "/c?x=1");
}

#[tokio::test]
async fn a_redirect_keeps_the_range() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/here", Answer::redirect(307, "/there")).answer("/there", Answer::file_with_ranges("0123456789"));
    let job = fixture.job(&origin.url("/here")).await;
    let answer = fixture.send(&fixture.ask(&job).header("range", "bytes=0-1")).await;
    assert_eq!((answer.status, answer.text()), (206, "01"));
}

#[tokio::test]
async fn redirects_are_not_followed_to_anything_else() {
    let (fixture, origin) = with_origin(&[]).await;
    let inner = Origin::start().await;
    inner.answer("/inner", Answer::file("internal"));
    let port = inner.address.port();
    for location in [
        format!("http://127.0.0.1:{port}/inner"),
        format!("http://localhost:{port}/inner"),
        format!("//127.0.0.1:{port}/inner"),
        format!("http://2130706433:{port}/inner"),
        format!("http://[::ffff:127.0.0.1]:{port}/inner"),
        format!("http://user@127.0.0.1:{port}/inner"),
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/".to_owned(),
        "http://[fd00:ec2::254]/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "http://192.168.0.1/".to_owned(),
        "http://172.16.0.1/".to_owned(),
        "file:///etc/passwd".to_owned(),
        "ftp://127.0.0.1/inner".to_owned(),
        "data:text/plain,internal".to_owned(),
        "http://".to_owned(),
    ] {
        origin.answer("/here", Answer::redirect(302, location.clone()));
        let (status, text) = fixture.result_at(&origin.url("/here")).await.error();
        assert_eq!(status, 502, "{location}: {text}");
        // Refused without a connection.
        let refused = ["RESULT_HOSTS_ALLOWED", "is not an http or https URL"];
        assert!(refused.iter().any(|reason| text.contains(reason)), "{location}: {text}");
        assert!(!text.contains("://") && !text.contains("127.0.0.1") && !text.contains("169.254"), "{text}");
    }
    assert!(inner.requests().is_empty(), "{:?}", inner.requests());
}

#[tokio::test]
async fn a_host_is_allowed_by_name_and_port() {
    let (origin, inner) = (Origin::start().await, Origin::start().await);
    inner.answer("/inner", Answer::file("internal"));
    origin.answer("/here", Answer::redirect(302, inner.url("/inner")));
    // By name without a port: any port.
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", "127.0.0.1")]).await;
    assert_eq!(fixture.result_at(&origin.url("/here")).await.text(), "internal");
    // The pattern is compared with the name, not with the address that it resolves to.
    let port = origin.address.port();
    let by_name = format!("http://localhost:{port}/here");
    assert_eq!(fixture.result_at(&by_name).await.error().0, 502);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", &hosts(&[&format!("localhost:{port}")]))]).await;
    origin.answer("/here", Answer::file("by name"));
    assert_eq!(fixture.result_at(&by_name).await.text(), "by name");
    assert_eq!(fixture.result_at(&by_name.to_uppercase().replace("HERE", "here")).await.text(), "by name");
    assert_eq!(fixture.result_at(&origin.url("/here")).await.error().0, 502);
    let another = format!("http://localhost:{}/inner", inner.address.port());
    assert_eq!(fixture.result_at(&another).await.error().0, 502);
    assert_eq!(inner.requests().len(), 1);
}

#[tokio::test]
async fn endless_redirects_are_a_502() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/round", Answer::redirect(302, "/round"));
    let (status, text) = fixture.result_at(&origin.url("/round")).await.error();
    assert_eq!(status, 502, "{text}");
    assert!(origin.requests().len() <= 21, "{}", origin.requests().len());
    // A redirect without a location is an error of the origin.
    origin.answer("/nowhere", Answer::status(302, ""));
    assert_eq!(fixture.result_at(&origin.url("/nowhere")).await.error().0, 502);
}

// Addresses that are refused

#[tokio::test]
async fn addresses_that_are_not_public_are_refused_however_they_are_written() {
    let fixture = Fixture::with(&[("RESULT_TIMEOUT", "20")]).await;
    let inner = Origin::start().await;
    inner.answer("/inner", Answer::file("internal"));
    let port = inner.address.port();
    // The same port on the IPv6 loopback address, if there is one.
    let inner_v6 = Origin::listen(&format!("[::1]:{port}")).await.ok();
    let hosts = [
        "127.0.0.1",
        "127.0.0.2",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "017700000001",
        "127.0.0.1.",
        "1２7.0.0.1",
        "127。0。0。1",
        "%31%32%37.0.0.1",
        "0.0.0.0",
        "0",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::127.0.0.1]",
        "[64:ff9b::127.0.0.1]",
        "[2002:7f00:1::]",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "user:password@127.0.0.1",
        "example.org@127.0.0.1",
        "10.0.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "100.64.0.1",
        "169.254.169.254",
        "169.254.170.2",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fc00::1]",
        "224.0.0.1",
        "255.255.255.255",
    ];
    for host in hosts {
        let url = format!("http://{host}:{port}/inner");
        let (status, text) = fixture.result_at(&url).await.error();
        assert_eq!(status, 502, "{url}: {text}");
        // Refused without a connection, and the message says what to change. (Not every resolver knows `localhost.`.)
        assert!(host == "localhost." || text.contains("RESULT_HOSTS_ALLOWED"), "{url}: {text}");
        assert!(!text.contains(&port.to_string()) && !text.contains("inner"), "{text}");
    }
    assert!(inner.requests().is_empty(), "{:?}", inner.requests());
    assert!(inner_v6.is_none_or(|inner| inner.requests().is_empty()));
}

#[tokio::test]
async fn only_http_and_https_are_fetched() {
    let (fixture, origin) = with_origin(&[]).await;
    let address = origin.address.to_string();
    for url in [
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "/etc/passwd",
        "ftp://{address}/out.txt",
        "gopher://{address}/out.txt",
        "ws://{address}/out.txt",
        "unix:///var/run/docker.sock",
        "data:text/plain,hello",
        "javascript:alert(1)",
        "s3://bucket/key",
        "//{address}/out.txt",
        "http://",
        "http:///",
        "http://{address}:99999/",
        "not a URL",
    ] {
        let url = url.replace("{address}", &address);
        let (status, text) = fixture.result_at(&url).await.error();
        assert_eq!(status, 502, "{url}: {text}");
    }
    assert!(origin.requests().is_empty(), "{:?}", origin.requests());
}

/// An output without a URL, or with one that is not a string, is ignored.
#[tokio::test]
async fn an_output_without_a_url_is_no_such_index() {
    let (fixture, _origin) = with_origin(&[]).await;
    let outputs = json!([{ "filename": "a" }, { "filename": "b", "url": 7 }, null, "http://127.0.0.1/"]);
    let job = finished(&fixture.provider, &outputs).insert(&fixture.database).await.job_id;
    for index in 0..4 {
        let text = format!("No such index {index} in this compute job");
        fixture.send(&provider(&fixture.provider).result(OWNER, &job, index)).await.is_error(404, &text);
    }
}

// Secrets that are sent to origins

#[tokio::test]
async fn credentials_in_a_url_are_used_and_never_shown() {
    let (fixture, origin) = with_origin(&[]).await;
    let url = format!("http://user:pass%20word@{}/out.txt", origin.address);
    origin.answer("/out.txt", Answer::file("hello"));
    let answer = fixture.result_at(&url).await;
    assert_eq!(answer.text(), "hello");
    // Of "user:pass word"
    assert_eq!(origin.requests()[0].header("authorization"), Some("Basic dXNlcjpwYXNzIHdvcmQ="));
    assert!(!format!("{:?}", answer.headers).contains("pass"));

    origin.answer("/out.txt", Answer::status(403, ""));
    let (_, text) = fixture.result_at(&url).await.error();
    assert!(!text.contains("user") && !text.contains("pass"), "{text}");

    let job = fixture.job(&url).await;
    let status = fixture.send(&provider(&fixture.provider).call(Method::GET, OWNER, Some(&job), nonce())).await.ok();
    assert_eq!(status[0]["results"], json!([{ "filename": "out.txt", "filesize": 5, "type": "output" }]));
}

#[tokio::test]
async fn credentials_in_a_url_are_sent_to_its_host_only() {
    let (first, second) = (Origin::start().await, Origin::start().await);
    let fixture = Fixture::with(&[("RESULT_HOSTS_ALLOWED", "127.0.0.1")]).await;
    first.answer("/out.txt", Answer::redirect(302, second.url("/out.txt")));
    second.answer("/out.txt", Answer::file("hello"));
    assert_eq!(fixture.result_at(&format!("http://user:password@{}/out.txt", first.address)).await.text(), "hello");
    let request = &second.requests()[0];
    for header in ["authorization", "referer", "cookie"] {
        assert_eq!(request.header(header), None);
    }
}

#[tokio::test]
async fn api_keys_are_sent_to_their_hosts_only() {
    let (keyed, other) = (Origin::start().await, Origin::start().await);
    keyed.answer("/out.txt", Answer::file("hello"));
    other.answer("/out.txt", Answer::file("hello"));
    other.answer("/to-keyed", Answer::redirect(302, keyed.url("/out.txt")));
    keyed.answer("/to-other", Answer::redirect(302, other.url("/out.txt")));
    let both = hosts(&[&keyed.address.to_string(), &other.address.to_string()]);
    let only = hosts(&[&keyed.address.to_string()]);
    let fixture = Fixture::with(&[
        ("RESULT_HOSTS_ALLOWED", &both),
        ("RESULT_API_KEY_HOSTS", &only),
        ("X-API-KEY", "the-key"),
        ("CLIENT-ID", "the-client"),
    ])
    .await;
    let last = |origin: &Origin| {
        let request = origin.requests().last().unwrap().clone();
        (request.header("x-api-key").map(str::to_owned), request.header("client-id").map(str::to_owned))
    };
    let sent = (Some("the-key".to_owned()), Some("the-client".to_owned()));

    assert_eq!(fixture.result_at(&keyed.url("/out.txt")).await.text(), "hello");
    assert_eq!(last(&keyed), sent);
    assert_eq!(fixture.result_at(&other.url("/out.txt")).await.text(), "hello");
    assert_eq!(last(&other), (None, None));
    // Redirects do not pass them on, and do not obtain them for another host.
    assert_eq!(fixture.result_at(&keyed.url("/to-other")).await.text(), "hello");
    assert_eq!(last(&keyed), sent);
    assert_eq!(last(&other), (None, None));
    assert_eq!(fixture.result_at(&other.url("/to-keyed")).await.text(), "hello");
    assert_eq!(last(&other), (None, None));
}

/// A Lambda function's variables cannot hold a dash.
#[tokio::test]
async fn api_keys_are_sent_to_the_hosts_allowed_if_they_have_none_of_their_own() {
    let origin = Origin::start().await;
    origin.answer("/out.txt", Answer::file("hello"));
    let allowed = hosts(&[&origin.address.to_string()]);
    let variables = [("RESULT_HOSTS_ALLOWED", &*allowed), ("X_API_KEY", "the-key"), ("CLIENT_ID", "the-client")];
    let fixture = Fixture::with(&variables).await;
    assert_eq!(fixture.result_at(&origin.url("/out.txt")).await.text(), "hello");
    let request = &origin.requests()[0];
    assert_eq!(request.header("x-api-key"), Some("the-key"));
    assert_eq!(request.header("client-id"), Some("the-client"));
    assert!(!fixture.service.process.output().contains("are sent to no host"));
}

#[tokio::test]
async fn api_keys_that_are_sent_to_no_host_are_logged_at_start() {
    let fixture = Fixture::with(&[("X-API-KEY", "the-key")]).await;
    let output = fixture.service.process.output();
    let line = output.lines().find(|line| line.contains("RESULT_API_KEY_HOSTS")).unwrap_or_else(|| panic!("{output}"));
    assert!(line.contains("WARN") && !line.contains("the-key"), "{line}");
}

/// Credentials of a caller are not for origins.
#[tokio::test]
async fn the_callers_headers_are_not_passed_on() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("hello"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let call =
        fixture.ask(&job).header("cookie", "a=b").header("authorization", "Bearer x").header("x-api-key", "mine");
    assert_eq!(fixture.send(&call).await.text(), "hello");
    for header in ["cookie", "authorization", "x-api-key", "x-forwarded-for"] {
        assert_eq!(origin.requests()[0].header(header), None);
    }
}

/// A proxy would resolve names itself, without the checks on addresses.
#[tokio::test]
async fn proxies_of_the_environment_are_not_used() {
    let (origin, proxy) = (Origin::start().await, Origin::start().await);
    origin.answer("/out.txt", Answer::file("hello"));
    let (proxy_url, allowed) = (proxy.url(""), hosts(&[&origin.address.to_string()]));
    let fixture = Fixture::with(&[
        ("RESULT_HOSTS_ALLOWED", &allowed),
        ("http_proxy", &proxy_url),
        ("HTTP_PROXY", &proxy_url),
        ("all_proxy", &proxy_url),
    ])
    .await;
    assert_eq!(fixture.result_at(&origin.url("/out.txt")).await.text(), "hello");
    assert!(proxy.requests().is_empty());
}

/// Without SIGNATURE_REQUIRED every signer is accepted, but it still has to be the job's provider.
#[tokio::test]
async fn the_provider_is_checked_even_if_signatures_are_not_required() {
    let (database, key, env) = parts().await;
    let origin = Origin::start().await;
    origin.answer("/out.txt", Answer::file("hello"));
    let env = env.with("SIGNATURE_REQUIRED", "0").with("RESULT_HOSTS_ALLOWED", hosts(&["127.0.0.1"]));
    let fixture = Fixture { service: Service::start(&env).await, provider: key, database, client: client() };
    let job = fixture.job(&origin.url("/out.txt")).await;
    assert_eq!(fixture.send(&fixture.ask(&job)).await.text(), "hello");
    let stranger = Key::new();
    let text = format!("Provider {} mismatch for job {job}", stranger.address);
    fixture.send(&provider(&stranger).result(OWNER, &job, 0)).await.is_error(404, &text);
}
