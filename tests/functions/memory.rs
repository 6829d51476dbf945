//! The memory that a result needs does not grow with its length: a small and a large one are compared in one run.

use std::time::Duration;

use crate::fixture::{Fixture, hosts};
use crate::origin::{Answer, Origin, PatternCheck};

/// Lengths in bytes.
const SMALL: u64 = 30_000_000;
const LARGE: u64 = 300_000_000;

/// A service that has streamed the small result already.
struct LargeResult {
    fixture: Fixture,
    origin: Origin,
    /// The job with the large result.
    job: String,
    /// The memory before the small result, and the growth during it, in KiB.
    before: u64,
    small_growth: u64,
}

impl LargeResult {
    async fn start(variables: &[(&str, &str)]) -> Self {
        let origin = Origin::start().await;
        let allowed = hosts(&[&origin.address.to_string()]);
        let mut all = vec![("RESULT_HOSTS_ALLOWED", allowed.as_str())];
        all.extend(variables);
        let fixture = Fixture::with(&all).await;
        origin.answer("/first", Answer::file("hello"));
        origin.answer("/small.bin", Answer::pattern(SMALL)).answer("/large.bin", Answer::pattern(LARGE));
        // What the first request allocates is not for its content.
        assert_eq!(fixture.result_at(&origin.url("/first")).await.text(), "hello");
        let before = fixture.service.process.memory("VmRSS");
        let small = fixture.job(&origin.url("/small.bin")).await;
        read_whole(fixture.begin(&fixture.ask(&small)).await.unwrap(), SMALL).await;
        let small_growth = fixture.service.process.memory("VmHWM").saturating_sub(before);
        let job = fixture.job(&origin.url("/large.bin")).await;
        Self { fixture, origin, job, before, small_growth }
    }

    async fn begin(&self) -> reqwest::Response {
        self.fixture.begin(&self.fixture.ask(&self.job)).await.unwrap()
    }

    /// The large result may need twice as much as the small one, and an eighth of what it is longer.
    fn assert_growth_is_independent_of_length(&self) {
        let growth = self.fixture.service.process.memory("VmHWM").saturating_sub(self.before);
        let Self { before, small_growth, .. } = self;
        println!("{before} KiB, {small_growth} KiB more for {SMALL} bytes, {growth} KiB more for {LARGE} bytes");
        let limit = 2 * small_growth + (LARGE - SMALL) / 1024 / 8;
        assert!(growth < limit, "{small_growth} KiB for {SMALL} bytes, but {growth} KiB for {LARGE} bytes");
    }
}

/// Reads and compares the rest of a response.
async fn read_on(mut response: reqwest::Response, mut check: PatternCheck, length: u64) {
    while let Some(chunk) = response.chunk().await.unwrap() {
        check.take(&chunk);
    }
    assert_eq!(check.length(), length);
}

async fn read_whole(response: reqwest::Response, length: u64) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.content_length(), Some(length));
    read_on(response, PatternCheck::default(), length).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_of_300_mb_is_not_held_in_memory() {
    let large = LargeResult::start(&[]).await;
    read_whole(large.begin().await, LARGE).await;
    large.assert_growth_is_independent_of_length();
}

/// A slow reader makes the service read slowly, without buffering; that does not count as an idle origin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_down_the_origin() {
    let large = LargeResult::start(&[("RESULT_IDLE_TIMEOUT", "1")]).await;
    let mut response = large.begin().await;
    let mut check = PatternCheck::default();
    check.take(&response.chunk().await.unwrap().unwrap());
    large.origin.blocked().await;
    // What is in flight is in the sockets' buffers.
    let sent = large.origin.sent() - SMALL;
    assert!(sent < LARGE / 2, "{sent} bytes were taken while nobody read");
    large.assert_growth_is_independent_of_length();
    read_on(response, check, LARGE).await;
    large.assert_growth_is_independent_of_length();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_disconnects_ends_the_fetching() {
    let large = LargeResult::start(&[]).await;
    let mut response = large.begin().await;
    response.chunk().await.unwrap().unwrap();
    drop(response);
    // The origin either notices or has sent no more than what the sockets' buffers take.
    crate::support::eventually("the end of the fetching", crate::LIMIT, async || {
        let sent = large.origin.sent();
        tokio::time::sleep(Duration::from_millis(200)).await;
        (large.origin.sent() == sent).then_some(())
    })
    .await;
    let sent = large.origin.sent() - SMALL;
    assert!(sent < LARGE / 2, "{sent} bytes were fetched for nobody");
}
