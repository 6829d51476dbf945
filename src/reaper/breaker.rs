//! The circuit breaker: a sweep does not send what cannot succeed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use super::budget::Stop;
use super::report::Duty;
use crate::domain::Namespace;
use crate::kubernetes::ClusterError;

/// The number of consecutive requests that find the cluster unavailable after which a sweep sends no more.
const MAX_OUTAGES: u32 = 5;

/// What a sweep has found unavailable.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    /// The number of consecutive requests that found the cluster unavailable.
    outages: AtomicU32,
    /// The duties that a namespace has refused; `None` for reading it, without which no duty is tried there.
    refused: Mutex<BTreeSet<(Namespace, Option<Duty>)>>,
}

impl Breaker {
    /// Fails if the sweep is to send no more requests.
    pub(super) fn check(&self) -> Result<(), Stop> {
        if self.outages.load(Ordering::Relaxed) < MAX_OUTAGES { Ok(()) } else { Err(Stop::ClusterDown) }
    }

    /// Returns whether a request for a duty may be sent to a namespace.
    pub(super) fn allows(&self, namespace: &Namespace, duty: Option<Duty>) -> bool {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let is_refused = |duty| refused.contains(&(namespace.clone(), duty));
        self.check().is_ok() && !is_refused(None) && !is_refused(duty)
    }

    /// Records how a request ended.
    pub(super) fn observe<T>(&self, namespace: &Namespace, duty: Option<Duty>, result: &Result<T, ClusterError>) {
        match result {
            Err(error) if is_outage(error) => {
                self.outages.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(ClusterError::Refused { code: 401 | 403, .. } | ClusterError::InvalidNamespace) => {
                let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
                refused.insert((namespace.clone(), duty));
            }
            _ => {}
        }
        self.outages.store(0, Ordering::Relaxed);
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
