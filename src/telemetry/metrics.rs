//! Metrics: collected while a request or an invocation is handled, and printed for CloudWatch in one line
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use serde_json::{Value, json};

tokio::task_local! {
    /// The metrics of the request that this task handles.
    static CURRENT: Arc<RequestMetrics>;
}

/// A number that is recorded in CloudWatch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    name: &'static str,
    unit: &'static str,
    value: f64,
}

impl Metric {
    /// A number of occurrences.
    pub fn count(name: &'static str, value: u64) -> Self {
        Self { name, unit: "Count", value: value as f64 }
    }

    /// A duration in seconds.
    pub fn seconds(name: &'static str, value: u64) -> Self {
        Self { name, unit: "Seconds", value: value as f64 }
    }

    fn milliseconds(name: &'static str, value: f64) -> Self {
        Self { name, unit: "Milliseconds", value }
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

/// Adds metrics to the current invocation's.
pub fn record(metrics: impl IntoIterator<Item = Metric>) {
    update(|current| lock(&current.others).extend(metrics));
}

/// Adds metrics with the dimension `Kind` to the current invocation's.
pub fn record_of_kind(kind: &str, metrics: impl IntoIterator<Item = Metric>) {
    update(|current| lock(&current.kinds).push((kind.to_owned(), metrics.into_iter().collect())));
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
    others: Mutex<Vec<Metric>>,
    kinds: Mutex<Vec<(String, Vec<Metric>)>>,
}

/// The sum of the times that calls took.
#[derive(Debug, Default)]
struct Latency {
    calls: AtomicU64,
    microseconds: AtomicU64,
}

impl Latency {
    /// `None` if there was no call.
    fn metric(&self, name: &'static str) -> Option<Metric> {
        let called = self.calls.load(Ordering::Relaxed) > 0;
        called.then(|| Metric::milliseconds(name, self.microseconds.load(Ordering::Relaxed) as f64 / 1000.0))
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

    /// Prints an HTTP request's metrics together with `fields`.
    pub(super) fn print_request(&self, function: &str, status: u16, fields: Value) {
        print(line(&[("FunctionName", function)], &self.of_request(status), SystemTime::now()), fields);
    }

    /// Prints the metrics of an invocation that is not an HTTP request, together with `fields`.
    pub(super) fn print_invocation(&self, function: &str, fields: Value) {
        print(line(&[("FunctionName", function)], &self.of_invocation(), SystemTime::now()), fields);
    }

    /// Prints the metrics of each kind, in a line of its own with `fields`.
    pub(super) fn print_kinds(&self, function: &str, fields: Value) {
        for (kind, metrics) in lock(&self.kinds).iter() {
            let dimensions = [("FunctionName", function), ("Kind", kind)];
            print(line(&dimensions, metrics, SystemTime::now()), fields.clone());
        }
    }

    fn of_request(&self, status: u16) -> Vec<Metric> {
        let mut metrics = vec![
            Metric::count("Requests", 1),
            Metric::count("Errors", (status >= 500).into()),
            Metric::count("Starts", self.starts.load(Ordering::Relaxed)),
            Metric::count("Stops", self.stops.load(Ordering::Relaxed)),
        ];
        metrics.extend(self.of_invocation());
        metrics
    }

    fn of_invocation(&self) -> Vec<Metric> {
        static WARM: AtomicBool = AtomicBool::new(false);
        let cold = !WARM.swap(true, Ordering::Relaxed);
        let latencies = [self.cluster.metric("ClusterLatency"), self.database.metric("DatabaseLatency")];
        let mut metrics: Vec<_> = latencies.into_iter().flatten().collect();
        metrics.push(Metric::count("ColdStarts", cold.into()));
        metrics.extend(lock(&self.others).iter());
        metrics
    }
}

/// Metrics in CloudWatch's embedded metric format.
fn line(dimensions: &[(&str, &str)], metrics: &[Metric], at: SystemTime) -> Value {
    let names: Vec<_> = dimensions.iter().map(|(name, _)| *name).collect();
    let definitions: Vec<_> =
        metrics.iter().map(|metric| json!({ "Name": metric.name, "Unit": metric.unit })).collect();
    let milliseconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
    let mut line = json!({
        "_aws": {
            "Timestamp": milliseconds,
            "CloudWatchMetrics": [
                { "Namespace": "OperatorService", "Dimensions": [names], "Metrics": definitions }
            ]
        },
    });
    for (name, value) in dimensions {
        line[*name] = (*value).into();
    }
    for metric in metrics {
        line[metric.name] = metric.value.into();
    }
    line
}

/// Prints metrics and what they belong to in one line, on standard output: LOG_LEVEL does not apply to metrics.
fn print(mut line: Value, fields: Value) {
    if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
        line.extend(fields);
    }
    // In one write, because other tasks print too. A failure cannot be reported anywhere.
    io::stdout().write_all(format!("{line}\n").as_bytes()).ok();
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
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(7);
        let line = line(&[("FunctionName", "compute")], &metrics.of_request(503), at);
        assert_eq!(line["_aws"]["Timestamp"], 7);
        assert_eq!(metrics.job().as_deref(), Some("abc"));
        let found = |name: &str| line[name].as_f64();
        assert_eq!((found("Requests"), found("Errors")), (Some(1.0), Some(1.0)));
        assert_eq!((found("Starts"), found("Stops")), (Some(1.0), Some(2.0)));
        assert!(found("ClusterLatency").unwrap() >= 3.0);
        assert_eq!(found("DatabaseLatency"), None);
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(directive["Namespace"], "OperatorService");
        for metric in directive["Metrics"].as_array().unwrap() {
            assert!(line[metric["Name"].as_str().unwrap()].is_number(), "{metric}");
        }
        assert_eq!(directive["Metrics"].as_array().unwrap().len(), 6);
        // Outside of a request nothing is counted.
        count_start();
    }
}
