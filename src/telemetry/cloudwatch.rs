//! Prints metrics for CloudWatch, each request's in one line
//! (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::metric;
use super::metrics::{Measurement, RequestMetrics};

/// Prints an HTTP request's metrics together with `fields`.
pub(super) fn print_request(metrics: &RequestMetrics, function: &str, status: u16, fields: Value) {
    print(&[("FunctionName", function)], &with_cold_start(metrics.of_request(status)), fields);
}

/// Prints the metrics of an invocation that is not an HTTP request together with `fields`, and those of each kind in a
/// line of its own with the request's id.
pub(super) fn print_invocation(metrics: &RequestMetrics, function: &str, request_id: &str, fields: Value) {
    for (kind, measurements) in metrics.of_kinds() {
        print(&[("FunctionName", function), ("Kind", &kind)], &measurements, json!({ "request_id": request_id }));
    }
    print(&[("FunctionName", function)], &with_cold_start(metrics.of_invocation()), fields);
}

/// Adds whether this is the first invocation of the execution environment.
fn with_cold_start(mut measurements: Vec<Measurement>) -> Vec<Measurement> {
    static WARM: AtomicBool = AtomicBool::new(false);
    let cold = !WARM.swap(true, Ordering::Relaxed);
    measurements.push(metric::COLD_STARTS.counted(cold.into()));
    measurements
}

/// Prints measurements and what they belong to in one line, on standard output: LOG_LEVEL does not apply to metrics.
fn print(dimensions: &[(&str, &str)], measurements: &[Measurement], fields: Value) {
    let mut line = line(dimensions, measurements, SystemTime::now());
    if let (Some(line), Value::Object(fields)) = (line.as_object_mut(), fields) {
        line.extend(fields);
    }
    // In one write, because other tasks print too. A failure cannot be reported anywhere.
    io::stdout().write_all(format!("{line}\n").as_bytes()).ok();
}

/// Measurements in CloudWatch's embedded metric format.
fn line(dimensions: &[(&str, &str)], measurements: &[Measurement], at: SystemTime) -> Value {
    let names: Vec<_> = dimensions.iter().map(|(name, _)| *name).collect();
    let definition = |one: &Measurement| json!({ "Name": one.metric.name, "Unit": one.metric.unit.name() });
    let definitions: Vec<_> = measurements.iter().map(definition).collect();
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
    for Measurement { metric, value } in measurements {
        line[metric.name] = (*value).into();
    }
    line
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_line_defines_the_metrics_whose_values_it_has() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(7);
        let line = line(
            &[("FunctionName", "reaper")],
            &[metric::REAPER_RUNS.counted(1), metric::OLDEST_WAITING.measured(3.0)],
            at,
        );
        assert_eq!(
            line,
            json!({
                "_aws": {
                    "Timestamp": 7,
                    "CloudWatchMetrics": [{
                        "Namespace": "OperatorService",
                        "Dimensions": [["FunctionName"]],
                        "Metrics": [
                            { "Name": "ReaperRuns", "Unit": "Count" },
                            { "Name": "OldestWaiting", "Unit": "Seconds" },
                        ],
                    }],
                },
                "FunctionName": "reaper",
                "ReaperRuns": 1.0,
                "OldestWaiting": 3.0,
            })
        );
    }
}
