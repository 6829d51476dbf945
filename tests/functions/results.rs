//! /getResult (docs/contract/http.md, "GET /getResult").

use std::sync::Arc;

use reqwest::Method;
use serde_json::json;
use tokio::sync::Notify;

use crate::child::Service;
use crate::fixture::{Fixture, OWNER, finished, hosts, output, parts, with_origin};
use crate::origin::{Answer, Origin};
use crate::result_errors::NAMED;
use crate::support::caller::{ocean_node, provider};
use crate::support::{Call, Key, Stored, client};

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
