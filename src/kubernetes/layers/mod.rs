//! The tower layers that every request to the cluster and its response pass.

mod clock;
mod eks_auth;
mod rate_limit;

use axum::http::Request;
use kube::client::Body;

pub(super) use clock::ClusterClock;
pub(super) use eks_auth::EksAuthLayer;
pub(super) use rate_limit::RateLimit;

/// The number of requests that may wait for a service that accepts one at a time.
const QUEUE_LENGTH: usize = 64;

/// Copies a request, so that it can be sent again. `None` if its body is a stream, which no call here sends.
fn clone_request(request: &Request<Body>) -> Option<Request<Body>> {
    let mut copy = Request::new(request.body().try_clone()?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}
