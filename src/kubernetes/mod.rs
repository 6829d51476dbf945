//! Kubernetes: the WorkFlow objects of jobs, what the engine creates for a job, pods and their logs.
//!
//! Writes are idempotent and name their objects after the job: creating what exists and deleting what does not exist
//! succeed.

mod client;
mod engine_objects;
mod layers;
mod logs;
mod pods;
mod steps;
mod workflow;
mod workflows;

use std::error::Error;
use std::io;

use crate::aws::AwsError;

pub use client::Cluster;
pub use engine_objects::{EngineObject, HeldObject, ObjectKind};
pub use logs::LogPart;
pub use pods::{Problem, Recovery, Trouble};
pub use steps::{Step, StepState, Steps};
pub use workflow::{WorkFlow, WorkFlowSpec, WorkFlowStatus, definition};
pub use workflows::{ListPage, WorkflowListing};

/// Why a call to the cluster failed.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No kubeconfig and no pod environment locates the cluster, or what they contain is invalid.
    #[error("The cluster is not configured: set EKS_CLUSTER_NAME or KUBECONFIG, or run inside the cluster")]
    Configuration(#[source] Box<dyn Error + Send + Sync>),
    /// The API server answered with an error. Its message is left out: it may repeat the request, including data URLs
    /// and code.
    #[error("The cluster refused a request ({code} {reason}), please try again")]
    Refused {
        /// The HTTP status.
        code: u16,
        /// Kubernetes' one-word reason.
        reason: String,
    },
    /// The cluster could not be reached, or its response is not an API server's.
    #[error("The cluster is not available, please try again")]
    Unavailable(#[source] Box<kube::Error>),
    /// The API server's certificate is not trusted.
    #[error(
        "The cluster's certificate was refused: its name or its authority is not the one that EKS_CLUSTER_CA or the \
         kubeconfig gives"
    )]
    Untrusted(#[source] Box<kube::Error>),
    /// AWS did not return the cluster's endpoint or a token for it.
    #[error("The cluster cannot be reached, please try again: {0}")]
    Aws(#[from] AwsError),
    /// No namespace can have this name (RFC 1123).
    #[error("The job's environment is not a valid namespace name")]
    InvalidNamespace,
    /// No object in the cluster can be named after this job (RFC 1123).
    #[error("The job's id is not a valid name of objects in the cluster")]
    InvalidName,
    /// The cluster did not answer within the call's time limit.
    #[error("The cluster did not answer in time, please try again")]
    TimedOut,
}

impl From<kube::Error> for ClusterError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused { code: status.code, reason: status.reason.clone() },
            error if is_untrusted(&error) => Self::Untrusted(Box::new(error)),
            error => Self::Unavailable(Box::new(error)),
        }
    }
}

fn is_untrusted(error: &(dyn Error + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return matches!(error, rustls::Error::InvalidCertificate(_));
    }
    // The error inside an io::Error is not its source.
    let inner =
        error.downcast_ref::<io::Error>().and_then(io::Error::get_ref).map(|error| error as &(dyn Error + 'static));
    inner.or_else(|| error.source()).is_some_and(is_untrusted)
}

/// What happened to an object that was to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletion {
    /// The object is removed, now or as soon as its dependents are.
    Gone,
    /// There was no such object.
    NotFound,
    /// The object is not the one that was read: it was changed or replaced, and was not deleted.
    Changed,
    /// The object is marked as deleted and stays until its finalizers are removed.
    Held(HeldObject),
}
