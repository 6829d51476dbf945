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
            metric::REAPER_RUNS.counted(1),
            metric::OLDEST_UNREGISTERED.counted(self.oldest_unregistered),
            metric::OLDEST_WAITING.counted(self.oldest_waiting),
        ]);
        telemetry::record(self.total().measurements());
        for (kind, count) in self.kinds.iter().filter(|(_, count)| count.found > 0) {
            telemetry::record_of_kind(&format!("{kind:?}"), count.measurements());
        }
    }
}

impl Count {
    /// The metrics of a sweep, or of all sweeps.
    pub fn measurements(&self) -> [Measurement; 4] {
        [
            metric::REAPER_FOUND.counted(self.found),
            metric::REAPER_DONE.counted(self.done),
            metric::REAPER_FAILED.counted(self.failed),
            metric::REAPER_LEFT.counted(self.left),
        ]
    }
}
