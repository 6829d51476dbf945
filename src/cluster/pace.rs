//! Requests in moderation, for whoever makes many.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

/// When the next request may be made, and what the cluster's clock says.
#[derive(Clone)]
pub(super) struct Pace {
    interval: Duration,
    next: Arc<Mutex<Instant>>,
    /// How far the cluster's clock is ahead of ours, in milliseconds.
    ahead: Arc<AtomicI64>,
}

impl Pace {
    pub(super) fn of(requests_per_second: NonZeroU32) -> Self {
        Self {
            interval: Duration::from_secs(1) / requests_per_second.get(),
            next: Arc::new(Mutex::new(Instant::now())),
            ahead: Arc::default(),
        }
    }

    /// Waits for the turn of one more request.
    async fn turn(&self) {
        let at = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let at = (*next).max(Instant::now());
            *next = at + self.interval;
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// Nobody has a turn for a while.
    fn pause(&self, pause: Duration) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = (*next).max(Instant::now() + pause);
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
impl Manner for Pace {
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
