//! Which parts of the cluster a sweep could not reach, so that it does not wait for them again and again.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::domain::Namespace;
use crate::kubernetes::ClusterError;

/// How many requests in a row may find the cluster unavailable until it is not asked any more.
const MAX_OUTAGES: u32 = 5;

/// How the cluster has answered a sweep.
#[derive(Debug, Default)]
pub(super) struct Availability {
    /// How many requests in a row found the cluster unavailable.
    outages: AtomicU32,
    /// The namespaces that may not be read.
    pub(super) forbidden: NamespaceSet,
}

impl Availability {
    /// Records whether the cluster answered, and passes the answer on.
    pub(super) fn observe<T>(&self, answer: Result<T, ClusterError>) -> Result<T, ClusterError> {
        match &answer {
            Err(error) if is_outage(error) => {
                self.outages.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.outages.store(0, Ordering::Relaxed),
        }
        answer
    }

    /// Returns whether the cluster is to be left alone for the rest of the sweep.
    pub(super) fn is_cluster_down(&self) -> bool {
        self.outages.load(Ordering::Relaxed) >= MAX_OUTAGES
    }
}

/// Namespaces, collected concurrently.
#[derive(Debug, Default)]
pub(super) struct NamespaceSet(Mutex<BTreeSet<Namespace>>);

impl NamespaceSet {
    pub(super) fn insert(&self, namespace: &Namespace) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.clone());
    }

    pub(super) fn contains(&self, namespace: &Namespace) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(namespace)
    }
}

/// Returns whether any other request would have failed as well.
pub(super) fn is_outage(error: &ClusterError) -> bool {
    matches!(
        error,
        ClusterError::Unavailable(_)
            | ClusterError::Untrusted(_)
            | ClusterError::TimedOut
            | ClusterError::Aws(_)
            | ClusterError::Configuration(_)
            | ClusterError::Refused { code: 429 | 503 | 504, .. }
    )
}
