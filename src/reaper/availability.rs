//! The parts of the cluster that a sweep could not reach, so that it does not wait for them repeatedly.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::domain::Namespace;
use crate::kubernetes::ClusterError;

/// The number of consecutive requests that find the cluster unavailable after which a sweep sends no more.
const MAX_OUTAGES: u32 = 5;

/// What a sweep could not reach so far.
#[derive(Debug, Default)]
pub(super) struct Availability {
    /// The number of consecutive requests that found the cluster unavailable.
    outages: AtomicU32,
    /// The namespaces that may not be read.
    pub(super) forbidden: NamespaceSet,
}

impl Availability {
    /// Records whether the cluster was available. Returns the result unchanged.
    pub(super) fn observe<T>(&self, result: Result<T, ClusterError>) -> Result<T, ClusterError> {
        match &result {
            Err(error) if is_outage(error) => {
                self.outages.fetch_add(1, Ordering::Relaxed);
            }
            _ => self.outages.store(0, Ordering::Relaxed),
        }
        result
    }

    /// Returns whether the sweep is to send no more requests.
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

/// Returns whether an error concerns the whole cluster: any other request would have failed as well.
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
