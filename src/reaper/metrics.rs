//! The metrics of a sweep, made from its report.

use super::report::{Count, Report};
use crate::telemetry::{self, Metric};

impl Report {
    /// Records the metrics of the sweep. A dry run has none, nor a sweep that was skipped because another one runs.
    pub fn record_metrics(&self) {
        if self.dry_run || self.skipped.is_some() {
            return;
        }
        telemetry::record([
            Metric::count("ReaperRuns", 1),
            Metric::seconds("OldestUnregistered", self.oldest_unregistered),
        ]);
        telemetry::record(counts(self.total()));
        for (kind, count) in self.kinds.iter().filter(|(_, count)| count.found > 0) {
            telemetry::record_of_kind(&format!("{kind:?}"), counts(*count));
        }
    }
}

fn counts(count: Count) -> [Metric; 4] {
    [
        Metric::count("ReaperFound", count.found),
        Metric::count("ReaperDone", count.done),
        Metric::count("ReaperFailed", count.failed),
        Metric::count("ReaperLeft", count.left),
    ]
}
