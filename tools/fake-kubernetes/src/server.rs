//! What requests and controllers share.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::call::Request;
use crate::faults::Faults;
use crate::store::Store;

/// The number of requests that are remembered.
const REQUESTS: usize = 100_000;

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user name, as the cluster's access rules see it.
    pub name: String,
}

/// The future that [`Authenticate::authenticate`] returns.
pub type Authentication<'a> = Pin<Box<dyn Future<Output = Result<User, String>> + Send + 'a>>;

/// Authenticates callers.
pub trait Authenticate: Send + Sync {
    /// Checks the bearer token, if the request has one. The error is the reason, for the log; the caller gets a 401.
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a>;
}

/// What all requests share.
pub(crate) struct Server {
    pub(crate) store: Store,
    pub(crate) faults: Faults,
    pub(crate) requests: Mutex<VecDeque<Request>>,
    pub(crate) authenticator: Option<Arc<dyn Authenticate>>,
    /// Becomes true when the cluster stops.
    pub(crate) stop: watch::Receiver<bool>,
}

impl Server {
    pub(crate) fn requests(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn record(&self, request: Request) {
        let mut requests = self.requests();
        if requests.len() == REQUESTS {
            requests.pop_front();
        }
        requests.push_back(request);
    }
}
