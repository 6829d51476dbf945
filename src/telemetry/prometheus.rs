//! Metrics for Prometheus, in the OpenMetrics text format
//! (<https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::Method;
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric as Registered, Registry};

use super::metric::{self, Kind, Metric, Unit};
use super::metrics::Measurement;

/// The content type of the text format.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The upper bounds of a histogram's buckets, in seconds.
const BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// The labels of a value, with their names.
pub type Labels = Vec<(&'static str, String)>;

/// What a server has measured since its start. Cheap to clone.
#[derive(Clone, Default)]
pub struct Prometheus(Arc<Mutex<Families>>);

impl Prometheus {
    /// Adds a request's measurements.
    pub(super) fn record_request(
        &self,
        method: &Method,
        route: &str,
        status: u16,
        duration: Duration,
        measurements: &[Measurement],
    ) {
        // A client may send any text as its method.
        let known = [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS];
        let method = if known.contains(method) { method.as_str() } else { "other" };
        let labels = vec![("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        let duration = metric::REQUEST_DURATION.measured(duration.as_secs_f64() * 1000.0);
        let mut families = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        families.add(&labels, measurements.iter().copied().chain([duration]));
    }

    /// Everything in the text format: what this server has measured, and what was read for this answer.
    ///
    /// # Errors
    /// Never: a string can always be written.
    pub fn text(&self, read: &Families) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode_registry(&mut text, &self.0.lock().unwrap_or_else(PoisonError::into_inner).registry)?;
        text::encode_registry(&mut text, &read.registry)?;
        text::encode_eof(&mut text)?;
        Ok(text)
    }
}

type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// Metrics with their values, by their labels.
#[derive(Default)]
pub struct Families {
    registry: Registry,
    counters: HashMap<&'static str, Family<Labels, Counter>>,
    gauges: HashMap<&'static str, Family<Labels, Gauge<f64, AtomicU64>>>,
    histograms: HashMap<&'static str, Histograms>,
}

impl Families {
    /// Adds each value to its counter or histogram, or sets its gauge to it.
    pub fn add(&mut self, labels: &Labels, measurements: impl IntoIterator<Item = Measurement>) {
        for Measurement { metric, value } in measurements {
            self.add_value(metric, labels, value);
        }
    }

    fn add_value(&mut self, metric: &'static Metric, labels: &Labels, value: f64) {
        let registry = &mut self.registry;
        match metric.kind {
            Kind::Counter => {
                let family =
                    self.counters.entry(metric.name).or_insert_with(|| register(registry, metric, Family::default()));
                family.get_or_create(labels).inc_by(value as u64);
            }
            Kind::Gauge => {
                let family =
                    self.gauges.entry(metric.name).or_insert_with(|| register(registry, metric, Family::default()));
                family.get_or_create(labels).set(value);
            }
            Kind::Histogram => {
                let new = || register(registry, metric, Family::new_with_constructor(histogram as fn() -> Histogram));
                let seconds = if metric.unit == Unit::Milliseconds { value / 1000.0 } else { value };
                self.histograms.entry(metric.name).or_insert_with(new).get_or_create(labels).observe(seconds);
            }
        }
    }
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

fn register<F: Registered + Clone>(registry: &mut Registry, metric: &Metric, family: F) -> F {
    registry.register(metric.registered_name(), metric.description, family.clone());
    family
}
