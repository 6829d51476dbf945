//! Ranges of results: the origin decides what they are (docs/contract/http.md, "GET /getResult").

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::fixture::with_origin;
use crate::origin::Answer;
use crate::support::{self, client};

#[tokio::test]
async fn a_range_is_passed_on_and_returns_its_part() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file_with_ranges("0123456789"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    for (range, part, content_range) in
        [("bytes=2-4", "234", "bytes 2-4/10"), ("bytes=7-", "789", "bytes 7-9/10"), ("bytes=-1", "9", "bytes 9-9/10")]
    {
        let answer = fixture.send(&fixture.ask(&job).header("range", range)).await;
        assert_eq!((answer.status, answer.text()), (206, part));
        assert_eq!(answer.header("content-range"), content_range);
        assert_eq!(answer.header("content-length"), part.len().to_string());
        assert_eq!(answer.header("content-disposition"), "");
        assert_eq!(origin.requests().last().unwrap().header("range"), Some(range));
    }
}

#[tokio::test]
async fn an_origin_may_ignore_a_range() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file("0123456789"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let answer = fixture.send(&fixture.ask(&job).header("range", "bytes=2-4")).await;
    assert_eq!((answer.status, answer.text()), (200, "0123456789"));
    assert_eq!(answer.header("content-range"), "");
}

#[tokio::test]
async fn a_range_beyond_the_file_is_the_origins_416() {
    let (fixture, origin) = with_origin(&[]).await;
    origin.answer("/out.txt", Answer::file_with_ranges("0123456789"));
    let job = fixture.job(&origin.url("/out.txt")).await;
    let call = fixture.ask(&job).header("range", "bytes=10-");
    let answer = fixture.send(&call).await;
    assert_eq!(answer.status, 416);
    assert_eq!(answer.header("content-range"), "bytes */10");
    // The request was answered: the nonce is used.
    assert_eq!(fixture.send(&call).await.status, 400);
}

/// Any Range header reaches the origin as it was sent, and is answered as the origin answers it.
#[test]
fn any_range_is_answered_as_by_the_origin() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (fixture, origin) = runtime.block_on(with_origin(&[]));
    let url = origin.url("/out.txt");
    origin.answer("/out.txt", Answer::file_with_ranges("0123456789"));
    let job = runtime.block_on(fixture.job(&url));
    let bound = prop_oneof!["", "[0-9]{1,2}", "[0-9]{18,22}"];
    let range = prop_oneof![
        3 => (bound.clone(), bound).prop_map(|(first, last)| format!("bytes={first}-{last}")),
        1 => "bytes=[0-9,-]{0,12}",
        1 => "[!-~]([ -~]{0,30}[!-~])?",
    ];
    let config = Config { failure_persistence: None, ..Config::with_cases(128) };
    let result = TestRunner::new(config).run(&range, |range| {
        let (answer, direct) = runtime.block_on(async {
            let answer = fixture.send(&fixture.ask(&job).header("range", range.clone())).await;
            assert_eq!(origin.requests().last().unwrap().header("range"), Some(range.as_str()));
            let direct = client().get(&url).header("range", &range).send().await.unwrap();
            (answer, support::Answer::of(direct).await)
        });
        let parts = |answer: &support::Answer| {
            let headers = ["content-range", "content-length"].map(|name| answer.header(name).to_owned());
            (answer.status, headers, answer.body.clone())
        };
        prop_assert_eq!(parts(&answer), parts(&direct));
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}"));
}
