//! Collects metrics while a request or an invocation is handled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::metric::{self, Metric};

tokio::task_local! {
    /// The metrics of the request that this task handles.
    static CURRENT: Arc<RequestMetrics>;
}

/// A value of a metric, in its unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measurement {
    pub(super) metric: &'static Metric,
    pub(super) value: f64,
}

impl Metric {
    /// A value of this metric, in its unit.
    pub fn measured(&'static self, value: f64) -> Measurement {
        Measurement { metric: self, value }
    }

    /// A whole number of what this metric counts.
    pub fn counted(&'static self, number: u64) -> Measurement {
        self.measured(number as f64)
    }
}

/// Sets the job that the current request is about.
pub fn set_job(id: &str) {
    update(|metrics| *lock(&metrics.job) = Some(id.to_owned()));
}

/// Counts a job that was accepted.
pub fn count_start() {
    update(|metrics| {
        metrics.starts.fetch_add(1, Ordering::Relaxed);
    });
}

/// Counts jobs for which a stop was recorded.
pub fn count_stops(jobs: usize) {
    update(|metrics| {
        metrics.stops.fetch_add(jobs as u64, Ordering::Relaxed);
    });
}

/// Adds measurements to the current invocation's.
pub fn record(measurements: impl IntoIterator<Item = Measurement>) {
    update(|current| lock(&current.others).extend(measurements));
}

/// Adds measurements with the dimension `Kind` to the current invocation's.
pub fn record_of_kind(kind: &str, measurements: impl IntoIterator<Item = Measurement>) {
    update(|current| lock(&current.kinds).push((kind.to_owned(), measurements.into_iter().collect())));
}

/// Measures how long the call waits for the cluster.
pub async fn waiting_for_cluster<T>(call: impl Future<Output = T>) -> T {
    waiting(|metrics| &metrics.cluster, call).await
}

/// Measures how long the call waits for the database.
pub async fn waiting_for_database<T>(call: impl Future<Output = T>) -> T {
    waiting(|metrics| &metrics.database, call).await
}

async fn waiting<T>(latency: fn(&RequestMetrics) -> &Latency, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = call.await;
    update(|metrics| {
        let latency = latency(metrics);
        latency.calls.fetch_add(1, Ordering::Relaxed);
        latency.microseconds.fetch_add(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
    });
    result
}

/// Changes the current request's metrics. Does nothing outside of a request.
fn update(change: impl FnOnce(&RequestMetrics)) {
    CURRENT.try_with(|metrics| change(metrics)).ok();
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is collected while a request or an invocation is handled.
#[derive(Debug, Default)]
pub(super) struct RequestMetrics {
    job: Mutex<Option<String>>,
    starts: AtomicU64,
    stops: AtomicU64,
    cluster: Latency,
    database: Latency,
    others: Mutex<Vec<Measurement>>,
    kinds: Mutex<Vec<(String, Vec<Measurement>)>>,
}

/// The sum of the times that calls took.
#[derive(Debug, Default)]
struct Latency {
    calls: AtomicU64,
    microseconds: AtomicU64,
}

impl Latency {
    /// `None` if there was no call.
    fn measured(&self, metric: &'static Metric) -> Option<Measurement> {
        let called = self.calls.load(Ordering::Relaxed) > 0;
        let value = self.microseconds.load(Ordering::Relaxed) as f64 / 1000.0;
        called.then(|| metric.measured(value))
    }
}

impl RequestMetrics {
    /// Handles a request and collects its metrics.
    pub(super) async fn collect<T>(handling: impl Future<Output = T>) -> (T, Arc<Self>) {
        let metrics = Arc::new(Self::default());
        let result = CURRENT.scope(metrics.clone(), handling).await;
        (result, metrics)
    }

    /// The job that the request is about.
    pub(super) fn job(&self) -> Option<String> {
        lock(&self.job).clone()
    }

    /// An HTTP request's measurements.
    pub(super) fn of_request(&self, status: u16) -> Vec<Measurement> {
        let mut measurements = vec![
            metric::REQUESTS.counted(1),
            metric::ERRORS.counted((status >= 500).into()),
            metric::STARTS.counted(self.starts.load(Ordering::Relaxed)),
            metric::STOPS.counted(self.stops.load(Ordering::Relaxed)),
        ];
        measurements.extend(self.of_invocation());
        measurements
    }

    /// The measurements of a request or another invocation.
    pub(super) fn of_invocation(&self) -> Vec<Measurement> {
        let latencies =
            [self.cluster.measured(&metric::CLUSTER_LATENCY), self.database.measured(&metric::DATABASE_LATENCY)];
        latencies.into_iter().flatten().chain(lock(&self.others).iter().copied()).collect()
    }

    /// The measurements of each kind.
    pub(super) fn of_kinds(&self) -> Vec<(String, Vec<Measurement>)> {
        lock(&self.kinds).clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn metrics_count_what_happened() {
        let (_, metrics) = RequestMetrics::collect(async {
            count_start();
            count_stops(2);
            set_job("abc");
            waiting_for_cluster(tokio::time::sleep(Duration::from_millis(3))).await;
        })
        .await;
        assert_eq!(metrics.job().as_deref(), Some("abc"));
        let measurements = metrics.of_request(503);
        let found = |metric: &Metric| measurements.iter().find(|one| one.metric == metric).map(|one| one.value);
        assert_eq!((found(&metric::REQUESTS), found(&metric::ERRORS)), (Some(1.0), Some(1.0)));
        assert_eq!((found(&metric::STARTS), found(&metric::STOPS)), (Some(1.0), Some(2.0)));
        assert!(found(&metric::CLUSTER_LATENCY).unwrap() >= 3.0);
        assert_eq!(found(&metric::DATABASE_LATENCY), None);
        // Outside of a request nothing is counted.
        count_start();
    }
}
