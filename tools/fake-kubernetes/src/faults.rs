//! Failures that tests order.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::http::StatusCode;
use tokio::sync::watch;

use crate::call::Request;

/// A field of a request.
type Field = fn(&Request) -> &String;

/// The requests that a fault applies to. [`Match::any`] matches all; each further condition excludes some.
#[derive(Clone, Debug, Default)]
pub struct Match {
    conditions: Vec<(Field, String)>,
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
    pub fn verb(self, verb: &str) -> Self {
        self.only(|request| &request.verb, verb)
    }

    /// Only this resource, by its plural.
    #[must_use]
    pub fn resource(self, plural: &str) -> Self {
        self.only(|request| &request.resource, plural)
    }

    /// Only this subresource: `status`, `log`.
    #[must_use]
    pub fn subresource(self, subresource: &str) -> Self {
        self.only(|request| &request.subresource, subresource)
    }

    /// Only in this namespace.
    #[must_use]
    pub fn namespace(self, namespace: &str) -> Self {
        self.only(|request| &request.namespace, namespace)
    }

    /// Only the object of that name.
    #[must_use]
    pub fn name(self, name: &str) -> Self {
        self.only(|request| &request.name, name)
    }

    /// Only the next `times` requests that match.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = Some(times);
        self
    }

    fn only(mut self, field: Field, value: &str) -> Self {
        self.conditions.push((field, value.to_owned()));
        self
    }

    fn matches(&self, request: &Request) -> bool {
        self.times != Some(0) && self.conditions.iter().all(|(field, value)| field(request) == value)
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) delay: Duration,
    pub(crate) answer: Option<(StatusCode, Option<Duration>)>,
    pub(crate) drop: bool,
    pub(crate) lose_answer: bool,
    pub(crate) truncate_answer: bool,
}

/// The faults of one cluster. A fault applies until [`Faults::clear`], or until its [`Match::times`] are used up.
#[derive(Debug)]
pub struct Faults {
    rules: Mutex<Vec<(Match, Plan)>>,
    refusing: watch::Sender<bool>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self { rules: Mutex::default(), refusing: watch::Sender::new(false) }
    }

    /// Delays requests before anything else is done. The delays of several faults add up.
    pub fn delay(&self, which: Match, by: Duration) {
        self.add(which, Plan { delay: by, ..Plan::default() });
    }

    /// Answers with that HTTP status and changes nothing. An invalid code becomes 500.
    pub fn answer(&self, which: Match, status: u16) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        self.add(which, Plan { answer: Some((status, None)), ..Plan::default() });
    }

    /// Answers 429 with `Retry-After` and changes nothing.
    pub fn throttle(&self, which: Match, retry_after: Duration) {
        let answer = Some((StatusCode::TOO_MANY_REQUESTS, Some(retry_after)));
        self.add(which, Plan { answer, ..Plan::default() });
    }

    /// Closes the connection without an answer and changes nothing.
    pub fn drop_connection(&self, which: Match) {
        self.add(which, Plan { drop: true, ..Plan::default() });
    }

    /// Carries out the request, then closes the connection without an answer.
    pub fn lose_answer(&self, which: Match) {
        self.add(which, Plan { lose_answer: true, ..Plan::default() });
    }

    /// Carries out the request, then closes the connection in the middle of the answer.
    pub fn truncate_answer(&self, which: Match) {
        self.add(which, Plan { truncate_answer: true, ..Plan::default() });
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

    fn add(&self, which: Match, fault: Plan) {
        self.lock().push((which, fault));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Match, Plan)>> {
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
            plan.delay += fault.delay;
            plan.answer = fault.answer.or(plan.answer);
            plan.drop |= fault.drop;
            plan.lose_answer |= fault.lose_answer;
            plan.truncate_answer |= fault.truncate_answer;
        }
        rules.retain(|(which, _)| which.times != Some(0));
        plan
    }
}
