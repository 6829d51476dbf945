//! What the service measures: the one table of metrics that CloudWatch, Prometheus and docs/metrics.md are written from.

use Kind::{Counter, Gauge, Histogram};
use Systems::{Both, CloudWatch, Prometheus};
use Unit::{Count, Milliseconds, Seconds};

/// A metric.
#[derive(Debug, PartialEq)]
pub struct Metric {
    /// Its name in CloudWatch; that in Prometheus is made from it ([`Self::prometheus_name`]).
    pub name: &'static str,
    pub(super) kind: Kind,
    pub(super) unit: Unit,
    systems: Systems,
    /// What it counts or measures, for docs/metrics.md and as Prometheus's help.
    pub(super) description: &'static str,
}

/// How the values of a metric belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Values are added.
    Counter,
    /// The last value holds.
    Gauge,
    /// The distribution of the values matters.
    Histogram,
}

/// The unit of a metric's values in CloudWatch. Prometheus's durations are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    Milliseconds,
    Seconds,
}

/// Where a metric is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Systems {
    CloudWatch,
    Prometheus,
    Both,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Count => "Count",
            Self::Milliseconds => "Milliseconds",
            Self::Seconds => "Seconds",
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident, $unit:ident, $systems:ident: $description:literal;)*) => {
        $(
            #[doc = $description]
            pub static $constant: Metric = Metric {
                name: $name, kind: $kind, unit: $unit, systems: $systems, description: $description,
            };
        )*
        /// Every metric.
        pub static METRICS: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    REQUESTS = "Requests", Counter, Count, Both: "Requests answered";
    ERRORS = "Errors", Counter, Count, Both: "Responses of 500 and above";
    REQUEST_DURATION = "RequestDuration", Histogram, Milliseconds, Prometheus:
        "Time from a request's headers to its response's";
    STARTS = "Starts", Counter, Count, Both: "Jobs started";
    STOPS = "Stops", Counter, Count, Both: "Jobs asked to stop";
    CLUSTER_LATENCY = "ClusterLatency", Histogram, Milliseconds, Both:
        "Total time that a request or an invocation waited for the cluster";
    DATABASE_LATENCY = "DatabaseLatency", Histogram, Milliseconds, Both:
        "Total time that a request or an invocation waited for the database";
    COLD_STARTS = "ColdStarts", Counter, Count, CloudWatch: "1 for the first invocation of an execution environment";
    DATABASE_CONNECTIONS = "DatabaseConnections", Gauge, Count, Prometheus: "Connections in this process's pool";
    DATABASE_CONNECTIONS_IDLE = "DatabaseConnectionsIdle", Gauge, Count, Prometheus: "Those of them that are not in use";
    DATABASE_WAITING = "DatabaseWaiting", Gauge, Count, Prometheus: "Requests that wait for a connection";
    DATABASE_UP = "DatabaseUp", Gauge, Count, Prometheus:
        "1 if the database could be read for this scrape; otherwise 0, and the metrics below are missing";
    OLDEST_UNREGISTERED = "OldestUnregistered", Gauge, Seconds, Both:
        "How long the oldest job without a WorkFlow object has waited for it; 0 if there is none";
    OLDEST_WAITING = "OldestWaiting", Gauge, Seconds, Both:
        "How long the oldest job that no engine has taken has waited for one; 0 if there is none";
    ENVIRONMENT_SILENCE = "EnvironmentSilence", Gauge, Seconds, Prometheus:
        "Time since the last announcement of the environment `namespace`";
    REAPER_RUNS = "ReaperRuns", Counter, Count, Both: "Sweeps that ended by themselves, with work left or without";
    REAPER_SILENCE = "ReaperSilence", Gauge, Seconds, Prometheus: "Time since the last of them";
    REAPER_FOUND = "ReaperFound", Counter, Count, Both: "Actions that sweeps found due, as far as they looked";
    REAPER_DONE = "ReaperDone", Counter, Count, Both: "Actions that sweeps did";
    REAPER_FAILED = "ReaperFailed", Counter, Count, Both: "Actions that failed, and are tried again later";
    REAPER_LEFT = "ReaperLeft", Gauge, Count, Both: "Actions that the last sweep left for the next";
}

impl Metric {
    /// The name in Prometheus: `operator_service_`, the words of the name in lower case, and as the suffix the unit
    /// (`seconds`) or, of a counter, `total`.
    pub fn prometheus_name(&self) -> String {
        let suffix = if self.kind == Counter { "_total" } else { "" };
        self.registered_name() + suffix
    }

    /// The name under which a metric is registered: a counter's `_total` is added by the registry.
    pub(super) fn registered_name(&self) -> String {
        let mut name = String::from("operator_service");
        for character in self.name.chars() {
            if character.is_ascii_uppercase() {
                name.push('_');
            }
            name.push(character.to_ascii_lowercase());
        }
        if self.unit != Count {
            name.push_str("_seconds");
        }
        name
    }

    /// Whether it is recorded in CloudWatch.
    pub fn is_in_cloudwatch(&self) -> bool {
        self.systems != Prometheus
    }

    /// Whether it is recorded in Prometheus.
    pub fn is_in_prometheus(&self) -> bool {
        self.systems != CloudWatch
    }
}

/// The table of docs/metrics.md.
pub fn markdown() -> String {
    let mut table = String::from("| CloudWatch | unit | Prometheus | what it is |\n| --- | --- | --- | --- |\n");
    for metric in METRICS {
        let (mut cloudwatch, mut unit, mut prometheus) = (String::new(), "", String::new());
        if metric.is_in_cloudwatch() {
            (cloudwatch, unit) = (format!("`{}`", metric.name), metric.unit.name());
        }
        if metric.is_in_prometheus() {
            prometheus = format!("`{}`", metric.prometheus_name());
        }
        table += &format!("| {cloudwatch} | {unit} | {prometheus} | {} |\n", metric.description);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_names_have_their_unit() {
        assert_eq!(REQUESTS.prometheus_name(), "operator_service_requests_total");
        assert_eq!(CLUSTER_LATENCY.prometheus_name(), "operator_service_cluster_latency_seconds");
        assert_eq!(OLDEST_WAITING.prometheus_name(), "operator_service_oldest_waiting_seconds");
        assert_eq!(REAPER_LEFT.prometheus_name(), "operator_service_reaper_left");
    }
}
