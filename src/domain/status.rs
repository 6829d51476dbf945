//! The states of a job.

use serde::{Serialize, Serializer};

/// The state of a job (docs/contract/http.md, "Status object"). The engine writes the code and its text; this service
/// writes [`Status::WarmingUp`] at the start, and the state that the reaper ends a job with.
///
/// A job is *finished* when its row has a `dateFinished`, whatever its status: 70 is just the usual last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// 1: accepted, waiting for an engine.
    WarmingUp,
    /// 10: dispatched to an engine, which has not begun it.
    Dispatched,
    /// 20: the engine makes volumes and fetches inputs.
    ConfiguringVolumes,
    /// 30: inputs and algorithm are there.
    Provisioned,
    /// 31: the inputs could not be fetched.
    DataProvisioningFailed,
    /// 32: the algorithm could not be fetched.
    AlgorithmProvisioningFailed,
    /// 40: the algorithm runs.
    RunningAlgorithm,
    /// 41: the algorithm failed.
    AlgorithmFailed,
    /// 50: the outputs are filtered.
    FilteringResults,
    /// 60: the outputs are published.
    PublishingResults,
    /// 70: done.
    Completed,
    /// A code that the contract does not name. Rows may hold any; 0 where a row has none.
    Other(i32),
}

impl Status {
    /// The state with this code.
    pub fn from_code(code: i32) -> Self {
        match code {
            1 => Self::WarmingUp,
            10 => Self::Dispatched,
            20 => Self::ConfiguringVolumes,
            30 => Self::Provisioned,
            31 => Self::DataProvisioningFailed,
            32 => Self::AlgorithmProvisioningFailed,
            40 => Self::RunningAlgorithm,
            41 => Self::AlgorithmFailed,
            50 => Self::FilteringResults,
            60 => Self::PublishingResults,
            70 => Self::Completed,
            code => Self::Other(code),
        }
    }

    /// The code, as rows and responses hold it.
    pub fn code(self) -> i32 {
        match self {
            Self::WarmingUp => 1,
            Self::Dispatched => 10,
            Self::ConfiguringVolumes => 20,
            Self::Provisioned => 30,
            Self::DataProvisioningFailed => 31,
            Self::AlgorithmProvisioningFailed => 32,
            Self::RunningAlgorithm => 40,
            Self::AlgorithmFailed => 41,
            Self::FilteringResults => 50,
            Self::PublishingResults => 60,
            Self::Completed => 70,
            Self::Other(code) => code,
        }
    }

    /// The text that the contract has for the code; empty for a code that it does not name.
    pub fn text(self) -> &'static str {
        match self {
            Self::WarmingUp => "Warming up",
            Self::Dispatched => "Job started",
            Self::ConfiguringVolumes => "Configuring volumes",
            Self::Provisioned => "Provisioning success",
            Self::DataProvisioningFailed => "Data provisioning failed",
            Self::AlgorithmProvisioningFailed => "Algorithm provisioning failed",
            Self::RunningAlgorithm => "Running algorithm",
            Self::AlgorithmFailed => "Algorithm failed",
            Self::FilteringResults => "Filtering results",
            Self::PublishingResults => "Publishing results",
            Self::Completed => "Job finished",
            Self::Other(_) => "",
        }
    }

    /// Returns whether an engine was given the job and has not begun it.
    pub fn is_dispatched(self) -> bool {
        (Self::Dispatched.code()..Self::ConfiguringVolumes.code()).contains(&self.code())
    }
}

impl Serialize for Status {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(self.code())
    }
}

/// A request to stop a job (`jobs.stopreq`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct StopRequest(i16);

impl StopRequest {
    /// 0: there is none.
    pub const NONE: Self = Self(0);
    /// 1: by its owner.
    pub const BY_OWNER: Self = Self(1);
    /// 2: because it is over its time limit.
    pub const TIME_LIMIT: Self = Self(2);

    /// The request with this code.
    pub fn from_code(code: i16) -> Self {
        Self(code)
    }

    /// The code, as rows and responses hold it.
    pub fn code(self) -> i16 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_states_match() {
        for code in -1..100 {
            assert_eq!(Status::from_code(code).code(), code);
        }
    }

    #[test]
    fn texts_of_states() {
        let texts = [
            (1, "Warming up"),
            (10, "Job started"),
            (20, "Configuring volumes"),
            (30, "Provisioning success"),
            (31, "Data provisioning failed"),
            (32, "Algorithm provisioning failed"),
            (40, "Running algorithm"),
            (41, "Algorithm failed"),
            (50, "Filtering results"),
            (60, "Publishing results"),
            (70, "Job finished"),
            (0, ""),
        ];
        for (code, text) in texts {
            assert_eq!(Status::from_code(code).text(), text);
        }
        for code in [0, 1, 2, 7] {
            assert_eq!(StopRequest::from_code(code).code(), code);
        }
    }

    #[test]
    fn dispatched_jobs() {
        for (code, expected) in [(0, false), (1, false), (9, false), (10, true), (19, true), (20, false)] {
            assert_eq!(Status::from_code(code).is_dispatched(), expected, "{code}");
        }
    }
}
