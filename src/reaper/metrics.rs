//! The metrics of a sweep, made from its report.

use super::report::{Count, Report};
use crate::telemetry::{self, Measurement, metric};

impl Report {
    /// Records the metrics of the sweep. A dry run has none, nor a sweep that was skipped because another one runs.
    pub fn record_metrics(&self) {
        if self.dry_run || self.skipped.is_some() {
            return;
        }
        telemetry::record([
            metric::REAPER_RUNS.measured(1),
            metric::OLDEST_UNREGISTERED.measured(self.oldest_unregistered),
            metric::OLDEST_WAITING.measured(self.oldest_waiting),
        ]);
        telemetry::record(counts(self.total()));
        for (kind, count) in self.kinds.iter().filter(|(_, count)| count.found > 0) {
            telemetry::record_of_kind(&format!("{kind:?}"), counts(*count));
        }
    }
}

fn counts(count: Count) -> [Measurement; 4] {
    [
        metric::REAPER_FOUND.measured(count.found),
        metric::REAPER_DONE.measured(count.done),
        metric::REAPER_FAILED.measured(count.failed),
        metric::REAPER_LEFT.measured(count.left),
    ]
}
