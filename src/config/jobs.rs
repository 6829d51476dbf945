//! What the service sets for every job: namespace, limits, volumes and resources.

use super::variables::{Reader, Section, Unset, Variable};
use crate::domain::Namespace;
use crate::domain::workflow::Completion;

const OPERATOR_ADDRESS: Variable<Unset> = Variable {
    name: "OPERATOR_ADDRESS",
    default: Unset("none"),
    description: "The Ethereum address of the compute environment, shown at `/`. Its private key belongs to the engine.",
};
const DEFAULT_NAMESPACE: Variable<&str> = Variable {
    name: "DEFAULT_NAMESPACE",
    default: "ocean-compute",
    description: "The namespace of jobs that name no environment.",
};
const ALGO_POD_TIMEOUT: Variable<u64> = Variable {
    name: "ALGO_POD_TIMEOUT",
    default: 0,
    description: "The maximum seconds that an algorithm may run, from the start of its Kubernetes Job. 0: no limit. The \
        least of it, the environment's `maxJobDuration` and the job's `validUntil` applies; the job's `maxtime` only if \
        there is none of them.",
};
const STORAGE_EXPIRY: Variable<u64> = Variable {
    name: "STORAGE_EXPIRY",
    default: 0,
    description: "Seconds that a job's outputs are kept after its end. 0: for ever. Stored in every job that is \
        started, as its `storageExpiry`; jobs that have one of their own keep it, and a change applies to those that have \
        none.",
};
const INPUT_VOLUME_SIZE: Variable<&str> = Variable {
    name: "inputVolumesize",
    default: "1Gi",
    description: "The size of a job's volume for inputs, a Kubernetes quantity.",
};
const OUTPUT_VOLUME_SIZE: Variable<&str> = Variable {
    name: "outputVolumesize",
    default: "1Gi",
    description: "The size of a job's volume for outputs, a Kubernetes quantity.",
};
const ADMINLOGS_VOLUME_SIZE: Variable<&str> = Variable {
    name: "adminlogsVolumesize",
    default: "1Gi",
    description: "The size of a job's volume for the administrators' logs, a Kubernetes quantity.",
};
const REQUESTS_CPU: Variable<&str> = Variable {
    name: "requests_cpu",
    default: "200m",
    description: "The CPU that an algorithm's pod requests, a Kubernetes quantity.",
};
const REQUESTS_MEMORY: Variable<&str> = Variable {
    name: "requests_memory",
    default: "100Mi",
    description: "The memory that an algorithm's pod requests, a Kubernetes quantity.",
};
const LIMITS_CPU: Variable<&str> = Variable {
    name: "limits_cpu",
    default: "1",
    description: "The CPU that an algorithm's pod may use, a Kubernetes quantity.",
};
const LIMITS_MEMORY: Variable<&str> = Variable {
    name: "limits_memory",
    default: "500Mi",
    description: "The memory that an algorithm's pod may use, a Kubernetes quantity.",
};

pub(super) const SECTION: Section = Section {
    title: "Jobs",
    variables: &[
        &OPERATOR_ADDRESS,
        &DEFAULT_NAMESPACE,
        &ALGO_POD_TIMEOUT,
        &STORAGE_EXPIRY,
        &INPUT_VOLUME_SIZE,
        &OUTPUT_VOLUME_SIZE,
        &ADMINLOGS_VOLUME_SIZE,
        &REQUESTS_CPU,
        &REQUESTS_MEMORY,
        &LIMITS_CPU,
        &LIMITS_MEMORY,
    ],
};

/// What the service sets for every job.
#[derive(Debug, Clone)]
pub struct JobsConfig {
    /// OPERATOR_ADDRESS
    pub operator_address: Option<String>,
    /// DEFAULT_NAMESPACE
    pub default_namespace: Namespace,
    /// The maximum duration of an algorithm (ALGO_POD_TIMEOUT).
    pub time_limit: OptionalSeconds,
    /// How long outputs are kept after a job's end (STORAGE_EXPIRY).
    pub storage_expiry: OptionalSeconds,
    /// What every workflow is completed with.
    pub completion: Completion,
}

/// A number of seconds that may be unset; 0 means no limit, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OptionalSeconds(Option<u64>);

impl OptionalSeconds {
    /// The seconds; `None` for no limit.
    pub fn seconds(self) -> Option<u64> {
        self.0.filter(|seconds| *seconds > 0)
    }

    /// The number of seconds that the variable holds, which may be 0; `None` if it is unset.
    pub fn configured(self) -> Option<u64> {
        self.0
    }
}

impl JobsConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let mut limit = |variable| OptionalSeconds(reader.optional(variable, "a whole number of seconds"));
        let (time_limit, storage_expiry) = (limit(&ALGO_POD_TIMEOUT), limit(&STORAGE_EXPIRY));
        Self {
            operator_address: reader.text(&OPERATOR_ADDRESS),
            default_namespace: Namespace::stored(reader.text_or_default(&DEFAULT_NAMESPACE)),
            time_limit,
            storage_expiry,
            completion: Completion {
                max_time: time_limit.seconds(),
                storage_expiry: storage_expiry.seconds(),
                input_volume_size: reader.quantity(&INPUT_VOLUME_SIZE),
                output_volume_size: reader.quantity(&OUTPUT_VOLUME_SIZE),
                adminlogs_volume_size: reader.quantity(&ADMINLOGS_VOLUME_SIZE),
                requests_cpu: reader.quantity(&REQUESTS_CPU),
                requests_memory: reader.quantity(&REQUESTS_MEMORY),
                limits_cpu: reader.quantity(&LIMITS_CPU),
                limits_memory: reader.quantity(&LIMITS_MEMORY),
            },
        }
    }
}
