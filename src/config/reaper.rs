//! The reaper's rules: how long a problem may last before the reaper acts.

use std::num::NonZeroU32;
use std::time::Duration;

use super::access::AccessConfig;
use super::jobs::JobsConfig;
use super::variables::{Reader, Section, Variable};
use crate::domain::Namespace;

const REAP_DISPATCH_GRACE: Variable<u64> = Variable {
    name: "REAP_DISPATCH_GRACE",
    default: 300,
    description: "Seconds after which a job that was dispatched to an engine and has not begun is requeued.",
};
const REAP_RETRY_GRACE: Variable<u64> = Variable {
    name: "REAP_RETRY_GRACE",
    default: 300,
    description: "Seconds that a step may fail for a reason that may pass (its image cannot be pulled, its \
        container cannot be created, its failed pod is not replaced) before it is ended. A step that restarts again and \
        again has a fifth of that.",
};
const REAP_SCHEDULE_GRACE: Variable<u64> = Variable {
    name: "REAP_SCHEDULE_GRACE",
    default: 900,
    description: "Seconds that a step's pod may wait for a node with room for it, or the step for a pod.",
};
const REAP_START_GRACE: Variable<u64> = Variable {
    name: "REAP_START_GRACE",
    default: 3600,
    description: "Seconds that a step's pod may take until a container of it starts: an image is pulled, a volume is \
        attached.",
};
const REAP_ABSENT_GRACE: Variable<u64> = Variable {
    name: "REAP_ABSENT_GRACE",
    default: 300,
    description: "Seconds for which the cluster has to hold no Kubernetes Job of a running job, as seen by at least two \
        sweeps, before the job is finished.",
};
const REAP_LIMIT_GRACE: Variable<u64> = Variable {
    name: "REAP_LIMIT_GRACE",
    default: 3600,
    description: "Seconds for which no step of a running job is in progress, and its status does not change, before the \
        job is finished. Its engine has to be silent for as long if its namespace cannot be read, or if it may still begin \
        the job. A step other than the algorithm is ended after 24 times as long.",
};
const REAP_UNKNOWN_GRACE: Variable<u64> = Variable {
    name: "REAP_UNKNOWN_GRACE",
    default: 3600,
    description: "Seconds that a WorkFlow object of this service may exist without a row in the database.",
};
const REAP_RATE: Variable<NonZeroU32> = Variable {
    name: "REAP_RATE",
    default: NonZeroU32::new(20).unwrap(),
    description: "The maximum requests per second that a sweep sends to the cluster. A 429 is obeyed, for up to a minute.",
};
const WORKFLOW_TTL: Variable<u64> = Variable {
    name: "WORKFLOW_TTL",
    default: 7 * 24 * 3600,
    description: "Seconds that a WorkFlow object stays after its job's end. 0: for ever.",
};

pub(super) const SECTION: Section = Section {
    title: "Reaper",
    variables: &[
        &REAP_DISPATCH_GRACE,
        &REAP_RETRY_GRACE,
        &REAP_SCHEDULE_GRACE,
        &REAP_START_GRACE,
        &REAP_ABSENT_GRACE,
        &REAP_LIMIT_GRACE,
        &REAP_UNKNOWN_GRACE,
        &REAP_RATE,
        &WORKFLOW_TTL,
    ],
};

/// The minimum time for which a used nonce is kept.
const MIN_NONCE_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The reaper's rules. All times are in seconds.
#[derive(Debug, Clone)]
pub struct ReaperRules {
    /// The maximum duration of every algorithm; `None` for no limit (ALGO_POD_TIMEOUT).
    pub algorithm_limit: Option<u64>,
    /// How long outputs are kept of jobs without an expiry of their own; `None` for ever (STORAGE_EXPIRY).
    pub storage_expiry: Option<u64>,
    /// The namespace of jobs whose row has none (DEFAULT_NAMESPACE).
    pub default_namespace: Namespace,
    /// How long a dispatched job may take to begin before it is requeued (REAP_DISPATCH_GRACE).
    pub dispatch_grace: f64,
    /// How long a problem may last after which the cluster tries again (REAP_RETRY_GRACE).
    pub retry_grace: f64,
    /// How long a step may wait for a node with room for it (REAP_SCHEDULE_GRACE).
    pub schedule_grace: f64,
    /// How long a pod may take until a container of it starts (REAP_START_GRACE).
    pub start_grace: f64,
    /// How long the cluster has to hold no step of a begun job before the job is finished (REAP_ABSENT_GRACE).
    pub absent_grace: f64,
    /// How long no step of a begun job may be in progress before the job is finished (REAP_LIMIT_GRACE).
    pub limit_grace: f64,
    /// How long a WorkFlow object may exist without a row (REAP_UNKNOWN_GRACE).
    pub unknown_grace: f64,
    /// How long a WorkFlow object stays after its job's end; `None` for ever (WORKFLOW_TTL).
    pub workflow_ttl: Option<f64>,
    /// How far below its signer's highest a used nonce is kept, so that it is not accepted again.
    pub nonce_retention: f64,
    /// The maximum requests per second to the cluster (REAP_RATE).
    pub requests_per_second: NonZeroU32,
}

impl ReaperRules {
    /// How long a step other than the algorithm may take, and a job keep its status whose engine announces nothing and
    /// cannot be seen: 24 times the grace of others. Fetching data and publishing results have no limit of their own, and
    /// may take longer than the algorithm.
    pub fn long_grace(&self) -> f64 {
        24.0 * self.limit_grace
    }

    pub(super) fn read(reader: &mut Reader<'_>, access: &AccessConfig, jobs: &JobsConfig) -> Self {
        let mut seconds = |variable| reader.seconds(variable) as f64;
        Self {
            algorithm_limit: jobs.time_limit.seconds(),
            storage_expiry: jobs.storage_expiry.seconds(),
            default_namespace: jobs.default_namespace.clone(),
            dispatch_grace: seconds(&REAP_DISPATCH_GRACE),
            retry_grace: seconds(&REAP_RETRY_GRACE),
            schedule_grace: seconds(&REAP_SCHEDULE_GRACE),
            start_grace: seconds(&REAP_START_GRACE),
            absent_grace: seconds(&REAP_ABSENT_GRACE),
            limit_grace: seconds(&REAP_LIMIT_GRACE),
            unknown_grace: seconds(&REAP_UNKNOWN_GRACE),
            workflow_ttl: Some(seconds(&WORKFLOW_TTL)).filter(|seconds| *seconds > 0.0),
            nonce_retention: (2.0 * access.policy.nonce_window.as_secs_f64()).max(MIN_NONCE_RETENTION.as_secs_f64()),
            requests_per_second: reader.value(&REAP_RATE, "a number above 0"),
        }
    }
}
