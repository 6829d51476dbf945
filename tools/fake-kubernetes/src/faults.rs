//! Failures that tests order.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::watch;

use crate::http::Request;

/// The requests that a fault applies to. [`Match::any`] matches all; each further condition excludes some.
#[derive(Clone, Debug, Default)]
pub struct Match {
    verb: Option<String>,
    resource: Option<String>,
    subresource: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    times: Option<usize>,
}

impl Match {
    /// Every request.
    #[must_use]
    pub fn any() -> Self {
        Self::default()
    }

    /// Only this Kubernetes verb: get, list, create, update, patch, delete.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verb = Some(verb.to_owned());
        self
    }

    /// Only this resource, by its plural.
    #[must_use]
    pub fn resource(mut self, plural: &str) -> Self {
        self.resource = Some(plural.to_owned());
        self
    }

    /// Only this subresource: `status`, `log`.
    #[must_use]
    pub fn subresource(mut self, subresource: &str) -> Self {
        self.subresource = Some(subresource.to_owned());
        self
    }

    /// Only in this namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// Only the object of that name.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Only the next `times` requests that match.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    fn matches(&self, request: &Request) -> bool {
        let matches = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|wanted| wanted == found);
        self.times != Some(0)
            && matches(&self.verb, &request.verb)
            && matches(&self.resource, &request.resource)
            && matches(&self.subresource, &request.subresource)
            && matches(&self.namespace, &request.namespace)
            && matches(&self.name, &request.name)
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Delay(Duration),
    Answer(StatusCode, Option<Duration>),
    Drop,
    LoseAnswer,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) answer: Option<(StatusCode, Option<Duration>)>,
    pub(crate) drop: bool,
    pub(crate) lose_answer: bool,
}

/// The faults of one cluster. A fault applies until [`Faults::clear`], or until its [`Match::times`] are used up.
#[derive(Debug)]
pub struct Faults {
    rules: Mutex<Vec<(Match, Fault)>>,
    refusing: watch::Sender<bool>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { rules: Mutex::default(), refusing: watch::Sender::new(false) }
    }

    /// Delays requests before anything else is done. The delays of several faults add up.
    pub fn delay(&self, which: Match, by: Duration) {
        self.add(which, Fault::Delay(by));
    }

    /// Answers with that HTTP status and changes nothing. An invalid code becomes 500.
    pub fn answer(&self, which: Match, status: u16) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.add(which, Fault::Answer(status, None));
    }

    /// Answers 429 with `Retry-After` and changes nothing.
    pub fn throttle(&self, which: Match, retry_after: Duration) {
        let status = StatusCode::TOO_MANY_REQUESTS;
        self.add(which, Fault::Answer(status, Some(retry_after)));
    }

    /// Closes the connection without an answer and changes nothing.
    pub fn drop_connection(&self, which: Match) {
        self.add(which, Fault::Drop);
    }

    /// Carries out the request, then closes the connection without an answer.
    pub fn lose_answer(&self, which: Match) {
        self.add(which, Fault::LoseAnswer);
    }

    /// Refuses connections, as if nothing listened, and closes open ones at their next request.
    pub fn refuse_connections(&self) {
        self.refusing.send_replace(true);
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.lock().clear();
        self.refusing.send_replace(false);
    }

    fn add(&self, which: Match, fault: Fault) {
        self.lock().push((which, fault));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Match, Fault)>> {
        self.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections are refused.
    pub(crate) fn refusing(&self) -> watch::Receiver<bool> {
        self.refusing.subscribe()
    }

    /// What happens to this request. Counts as one of the times of each fault that matches.
    pub(crate) fn plan(&self, request: &Request) -> Plan {
        let mut plan = Plan { drop: *self.refusing.borrow(), ..Plan::default() };
        let mut rules = self.lock();
        for (which, fault) in rules.iter_mut().filter(|(which, _)| which.matches(request)) {
            which.times = which.times.map(|times| times - 1);
            match *fault {
                Fault::Delay(by) => plan.delay += by,
                Fault::Answer(status, retry_after) => plan.answer = Some((status, retry_after)),
                Fault::Drop => plan.drop = true,
                Fault::LoseAnswer => plan.lose_answer = true,
            }
        }
        rules.retain(|(which, _)| which.times != Some(0));
        plan
    }
}
