//! Requests in moderation, for whoever makes many.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::header::{DATE, RETRY_AFTER};
use axum::http::{HeaderMap, Response, StatusCode};
use k8s_openapi::jiff::Timestamp;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use tokio::time::Instant;
use tower::BoxError;

use super::repeatable::{Manner, Repeatable};

/// How long the cluster may take to begin its answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// A request that is refused as one too many is made at most so often.
const ATTEMPTS: u32 = 4;
/// The pause after a 429 that names none, and the longest that is waited for.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// When requests may be made.
#[derive(Debug)]
struct Turns {
    interval: Duration,
    next: Instant,
    /// Nobody has a turn before, whatever was said.
    paused_until: Instant,
}

impl Turns {
    fn of(requests_per_second: NonZeroU32, now: Instant) -> Self {
        Self { interval: Duration::from_secs(1) / requests_per_second.get(), next: now, paused_until: now }
    }

    /// The turn of one more request.
    fn take(&mut self, now: Instant) -> Instant {
        let at = self.next.max(now);
        self.next = at + self.interval;
        at
    }

    fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(until);
        self.next = self.next.max(until);
    }

    /// Whether a turn that has come still is one.
    fn may(&self, now: Instant) -> bool {
        now >= self.paused_until
    }
}

/// When the next request may be made, and what the cluster's clock says.
#[derive(Clone)]
pub(super) struct RateLimit {
    turns: Arc<Mutex<Turns>>,
    /// How far the cluster's clock is ahead of ours, in milliseconds.
    ahead: Arc<AtomicI64>,
}

impl RateLimit {
    pub(super) fn of(requests_per_second: NonZeroU32) -> Self {
        Self { turns: Arc::new(Mutex::new(Turns::of(requests_per_second, Instant::now()))), ahead: Arc::default() }
    }

    fn turns(&self) -> MutexGuard<'_, Turns> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the turn of one more request.
    async fn turn(&self) {
        loop {
            let at = self.turns().take(Instant::now());
            tokio::time::sleep_until(at).await;
            if self.turns().may(Instant::now()) {
                return;
            }
        }
    }

    /// Nobody has a turn for a while, those neither that wait for one.
    fn pause(&self, pause: Duration) {
        self.turns().pause(Instant::now() + pause);
    }

    /// The time by the cluster's clock, to the second; by our own until it has answered.
    pub(super) fn now(&self) -> Timestamp {
        let ahead = k8s_openapi::jiff::SignedDuration::from_millis(self.ahead.load(Ordering::Relaxed));
        Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    fn hear(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        if let Some(theirs) = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok()) {
            let ahead = theirs.as_millisecond() - Timestamp::now().as_millisecond();
            // Their clock is told in whole seconds.
            let ahead = if ahead.abs() < 2000 { 0 } else { ahead };
            self.ahead.store(ahead, Ordering::Relaxed);
        }
    }
}

/// Lets every request wait for its turn, and makes it again after the pause that a 429 asks for.
impl Manner for RateLimit {
    async fn send<F, B>(self, request: Repeatable<F>) -> Result<Response<B>, BoxError>
    where
        F: Future<Output = Result<Response<B>, BoxError>> + Send + 'static,
        B: Send + 'static,
    {
        let mut attempt = 1;
        loop {
            self.turn().await;
            let response = tokio::time::timeout(ANSWER_LIMIT, request.send(|_| ())).await??;
            self.hear(response.headers());
            if response.status() != StatusCode::TOO_MANY_REQUESTS || attempt == ATTEMPTS {
                return Ok(response);
            }
            let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
            self.pause(seconds.map_or(PAUSES[0], Duration::from_secs).min(PAUSES[1]));
            attempt += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use kube::client::Body;
    use tower::{Layer, ServiceExt};

    use super::super::repeatable::InManner;
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(requests: u32) -> NonZeroU32 {
        NonZeroU32::new(requests).unwrap()
    }

    #[test]
    fn turns_come_at_the_rate_and_are_not_saved_up() {
        let now = Instant::now();
        let mut turns = Turns::of(rate(4), now);
        for turn in 0..4 {
            assert_eq!(turns.take(now), now + SECOND / 4 * turn);
        }
        let later = now + 10 * SECOND;
        assert_eq!([turns.take(later), turns.take(later)], [later, later + SECOND / 4]);
    }

    #[test]
    fn a_pause_counts_for_those_that_have_their_turn_too() {
        let now = Instant::now();
        let mut turns = Turns::of(rate(4), now);
        let taken = [turns.take(now), turns.take(now)];
        turns.pause(now + 5 * SECOND);
        assert!(taken.iter().all(|at| !turns.may(*at)));
        // A shorter one takes nothing back.
        turns.pause(now + SECOND);
        assert_eq!(turns.take(now), now + 5 * SECOND);
        assert!(turns.may(now + 5 * SECOND));
    }

    fn date(seconds: i64) -> HeaderMap {
        let then = Timestamp::now().saturating_add(k8s_openapi::jiff::SignedDuration::from_secs(seconds)).unwrap();
        let date = then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        HeaderMap::from_iter([(DATE, date.parse().unwrap())])
    }

    fn ahead(pace: &RateLimit) -> f64 {
        Timestamp::now().duration_until(pace.now()).as_secs_f64()
    }

    #[test]
    fn time_is_told_by_the_clusters_clock() {
        let pace = RateLimit::of(rate(1));
        assert!(ahead(&pace).abs() < 1.0, "its own until the cluster has answered");
        for minutes in [7, -7, 60 * 24 * 365] {
            pace.hear(&date(60 * minutes));
            assert!((ahead(&pace) - 60.0 * minutes as f64).abs() <= 2.0, "{minutes} {}", ahead(&pace));
            for nothing in ["", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"] {
                pace.hear(&HeaderMap::from_iter([(DATE, nothing.parse().unwrap())]));
            }
            pace.hear(&HeaderMap::new());
            assert!((ahead(&pace) - 60.0 * minutes as f64).abs() <= 2.0, "{minutes} stays");
        }
        pace.hear(&date(0));
        assert!(ahead(&pace).abs() < 1.0);
    }

    /// A cluster that refuses so many requests as one too many.
    async fn busy(times: usize, retry_after: Option<&'static str>) -> (StatusCode, usize, Duration) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&asked);
        let cluster = tower::service_fn(move |request: Request<Body>| {
            let shared = Arc::clone(&shared);
            async move {
                let body = request.into_body().collect_bytes().await?;
                let mut asked = shared.lock().unwrap();
                asked.push((Instant::now(), body));
                let mut response = Response::new(());
                if asked.len() <= times {
                    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                    if let Some(retry_after) = retry_after {
                        response.headers_mut().insert(RETRY_AFTER, retry_after.parse().unwrap());
                    }
                }
                Ok::<_, BoxError>(response)
            }
        });
        let paced = InManner(RateLimit::of(rate(1000))).layer(cluster);
        let response = paced.oneshot(Request::new(Body::from(b"what was asked".to_vec()))).await.unwrap();
        let asked = asked.lock().unwrap();
        assert!(asked.iter().all(|(_, body)| body.as_ref() == b"what was asked"));
        let pauses = asked.windows(2).map(|two| two[1].0 - two[0].0);
        (response.status(), asked.len(), pauses.min().unwrap_or_default())
    }

    #[tokio::test]
    async fn what_was_one_too_many_is_asked_again_after_the_pause() {
        assert_eq!(busy(0, None).await.1, 1);
        for retry_after in [Some("1"), None, Some("Wed, 21 Oct 2026 07:28:00 GMT")] {
            let (status, times, pause) = busy(1, retry_after).await;
            assert_eq!((status, times), (StatusCode::OK, 2));
            assert!(pause >= SECOND, "{pause:?}");
        }
        let (status, times, _) = busy(99, Some("0")).await;
        assert_eq!((status, times), (StatusCode::TOO_MANY_REQUESTS, ATTEMPTS as usize));
    }
}
