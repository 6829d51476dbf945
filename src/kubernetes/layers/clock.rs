//! The cluster's clock, by the `Date` of its responses.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use axum::http::HeaderMap;
use axum::http::header::DATE;
use k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

/// A smaller difference between the clocks is ignored: `Date` has whole seconds only.
const RESOLUTION_MILLISECONDS: i64 = 2000;

/// The cluster's clock. Cheap to clone; all clones show the same time.
#[derive(Debug, Clone, Default)]
pub(in crate::kubernetes) struct ClusterClock {
    /// How far the cluster's clock is ahead of this machine's.
    ahead_milliseconds: Arc<AtomicI64>,
}

impl ClusterClock {
    /// The time by the cluster's clock, to the second; by this machine's until the cluster has answered.
    pub(in crate::kubernetes) fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.ahead_milliseconds.load(Ordering::Relaxed));
        Timestamp::now().saturating_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// Sets the clock by a response's headers.
    pub(in crate::kubernetes) fn observe(&self, headers: &HeaderMap) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        if let Some(theirs) = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok()) {
            let ahead = theirs.as_millisecond() - Timestamp::now().as_millisecond();
            let ahead = if ahead.abs() < RESOLUTION_MILLISECONDS { 0 } else { ahead };
            self.ahead_milliseconds.store(ahead, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(seconds: i64) -> HeaderMap {
        let then = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds)).unwrap();
        let date = then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        HeaderMap::from_iter([(DATE, date.parse().unwrap())])
    }

    fn ahead(clock: &ClusterClock) -> f64 {
        Timestamp::now().duration_until(clock.now()).as_secs_f64()
    }

    #[test]
    fn the_clock_follows_the_date_of_responses() {
        let clock = ClusterClock::default();
        assert!(ahead(&clock).abs() < 1.0, "this machine's until the cluster has answered");
        for minutes in [7, -7, 60 * 24 * 365] {
            clock.observe(&date(60 * minutes));
            assert!((ahead(&clock) - 60.0 * minutes as f64).abs() <= 2.0, "{minutes} {}", ahead(&clock));
            for nothing in ["", "yesterday", "Mon, 99 Foo 2026 00:00:00 GMT"] {
                clock.observe(&HeaderMap::from_iter([(DATE, nothing.parse().unwrap())]));
            }
            clock.observe(&HeaderMap::new());
            assert!((ahead(&clock) - 60.0 * minutes as f64).abs() <= 2.0, "{minutes} stays");
        }
        clock.observe(&date(0));
        assert!(ahead(&clock).abs() < 1.0);
    }
}
