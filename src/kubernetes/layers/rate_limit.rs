//! A limit on the rate of requests, with retries of those that the cluster refuses as too many.

use std::future::{Ready, ready};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::http::header::RETRY_AFTER;
use axum::http::{Request, Response, StatusCode};
use kube::client::Body;
use tokio::time::{Instant, Sleep};
use tower::buffer::Buffer;
use tower::layer::layer_fn;
use tower::retry::{Policy, Retry};
use tower::{BoxError, Layer, Service, ServiceBuilder, timeout};

use super::{QUEUE_LENGTH, clone_request};

/// How long the cluster may take to begin its response.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum number of retries of a request that the cluster refuses with 429.
const MAX_RETRIES: u32 = 3;
/// The pause after a 429 that names none.
const DEFAULT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after a 429.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// Sends requests at most at a rate, gives each 10 seconds to be answered, and retries those that the cluster refuses
/// with 429 (too many requests). After a 429 no request is sent for the time that the cluster asks for.
#[derive(Clone)]
pub(in crate::kubernetes) struct RateLimit {
    interval: Duration,
    pause: Pause,
}

impl RateLimit {
    /// Allows this many requests per second.
    pub(in crate::kubernetes) fn new(requests_per_second: NonZeroU32) -> Self {
        Self { interval: Duration::from_secs(1) / requests_per_second.get(), pause: Pause::none() }
    }
}

impl<S> Layer<S> for RateLimit
where
    S: Service<Request<Body>, Error = BoxError> + Send + 'static,
    S::Future: Send,
{
    type Service = Retry<RetryRefused, Buffer<Request<Body>, timeout::future::ResponseFuture<S::Future>>>;

    fn layer(&self, inner: S) -> Self::Service {
        ServiceBuilder::new()
            .retry(RetryRefused { pause: self.pause.clone(), retries: MAX_RETRIES })
            .buffer(QUEUE_LENGTH)
            .rate_limit(1, self.interval)
            .layer(layer_fn(|inner| Pausing::new(inner, self.pause.clone())))
            .timeout(RESPONSE_TIMEOUT)
            .service(inner)
    }
}

/// The time until which no request is sent.
#[derive(Clone)]
struct Pause(Arc<Mutex<Instant>>);

impl Pause {
    fn none() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn end(&self) -> MutexGuard<'_, Instant> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the pause last at least this long from now.
    fn extend(&self, pause: Duration) {
        let mut end = self.end();
        *end = end.max(Instant::now() + pause);
    }
}

/// Accepts no request during a pause. tower's retry delays only the request that was refused, and its rate limit cannot
/// be paused.
struct Pausing<S> {
    inner: S,
    pause: Pause,
    sleep: Pin<Box<Sleep>>,
}

impl<S> Pausing<S> {
    fn new(inner: S, pause: Pause) -> Self {
        let sleep = Box::pin(tokio::time::sleep(Duration::ZERO));
        Self { inner, pause, sleep }
    }
}

impl<S: Service<R>, R> Service<R> for Pausing<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        loop {
            let end = *self.pause.end();
            if Instant::now() >= end {
                return self.inner.poll_ready(context);
            }
            self.sleep.as_mut().reset(end);
            ready!(self.sleep.as_mut().poll(context));
        }
    }

    fn call(&mut self, request: R) -> S::Future {
        self.inner.call(request)
    }
}

/// Retries a request that was refused with 429, after the pause that the response asks for.
#[derive(Clone)]
pub(in crate::kubernetes) struct RetryRefused {
    pause: Pause,
    retries: u32,
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for RetryRefused {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Request<Body>, result: &mut Result<Response<B>, BoxError>) -> Option<Self::Future> {
        let refused = result.as_ref().ok().filter(|response| response.status() == StatusCode::TOO_MANY_REQUESTS)?;
        self.retries = self.retries.checked_sub(1)?;
        let seconds = refused.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        self.pause.extend(seconds.map_or(DEFAULT_PAUSE, Duration::from_secs).min(MAX_PAUSE));
        Some(ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        clone_request(request)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tower::ServiceExt;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const BODY: &[u8] = b"a request's body";

    fn rate(requests: u32) -> NonZeroU32 {
        NonZeroU32::new(requests).unwrap()
    }

    /// A server that records when it receives requests, and refuses the first of them with 429.
    #[derive(Clone, Default)]
    struct Server {
        received: Arc<Mutex<Vec<Instant>>>,
        refusals: usize,
        retry_after: Option<&'static str>,
    }

    impl Server {
        /// The server behind the layer.
        fn limited(
            &self,
            requests_per_second: u32,
        ) -> impl Service<Request<Body>, Response = Response<()>> + Clone + use<> {
            let server = self.clone();
            let service = tower::service_fn(move |request: Request<Body>| {
                let server = server.clone();
                async move {
                    assert_eq!(request.into_body().collect_bytes().await?.as_ref(), BODY);
                    let mut received = server.received.lock().unwrap();
                    received.push(Instant::now());
                    let mut response = Response::new(());
                    if received.len() <= server.refusals {
                        *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                        if let Some(retry_after) = server.retry_after {
                            response.headers_mut().insert(RETRY_AFTER, retry_after.parse().unwrap());
                        }
                    }
                    Ok::<_, BoxError>(response)
                }
            });
            RateLimit::new(rate(requests_per_second)).layer(service)
        }

        /// When the requests were received.
        fn times(&self, since: Instant) -> Vec<Duration> {
            self.received.lock().unwrap().iter().map(|at| at.duration_since(since)).collect()
        }
    }

    fn request() -> Request<Body> {
        Request::new(Body::from(BODY.to_vec()))
    }

    /// Makes requests at once. Returns when the server received them, since just before.
    async fn times_of(server: Server, requests_per_second: u32, requests: usize) -> Vec<Duration> {
        let (service, begin) = (server.limited(requests_per_second), Instant::now());
        join_all((0..requests).map(|_| service.clone().oneshot(request()))).await;
        server.times(begin)
    }

    // Times are compared with lower bounds only: on a busy machine requests may be late.

    #[tokio::test]
    async fn requests_are_sent_at_the_rate() {
        let times = times_of(Server::default(), 20, 4).await;
        assert_eq!(times.len(), 4);
        assert!((0..).zip(&times).all(|(turn, at)| *at >= SECOND / 20 * turn), "{times:?}");
    }

    #[tokio::test]
    async fn a_pause_delays_waiting_requests_and_its_unused_turns_are_not_saved_up() {
        let times = times_of(Server { refusals: 1, retry_after: Some("1"), ..Server::default() }, 20, 3).await;
        assert_eq!(times.len(), 4);
        assert!((0..).zip(&times[1..]).all(|(turn, at)| *at >= SECOND + SECOND / 20 * turn), "{times:?}");
    }

    #[tokio::test]
    async fn a_shorter_pause_does_not_end_a_longer_one() {
        let pause = Pause::none();
        pause.extend(5 * SECOND);
        let end = *pause.end();
        pause.extend(SECOND);
        assert_eq!(*pause.end(), end);
    }

    /// How a request ends that is refused a number of times: its status, how often it was sent, and how long it took
    /// until it was last sent.
    async fn refused(refusals: usize, retry_after: Option<&'static str>) -> (StatusCode, usize, Duration) {
        let server = Server { refusals, retry_after, ..Server::default() };
        let begin = Instant::now();
        let response = server.limited(1000).oneshot(request()).await.ok().unwrap();
        let times = server.times(begin);
        (response.status(), times.len(), times[times.len() - 1])
    }

    #[tokio::test]
    async fn a_refused_request_is_repeated_after_the_pause() {
        assert_eq!(refused(0, None).await.1, 1);
        for retry_after in [Some("1"), None, Some("Wed, 21 Oct 2026 07:28:00 GMT")] {
            let (status, times, time) = refused(1, retry_after).await;
            assert_eq!((status, times), (StatusCode::OK, 2));
            assert!(time >= SECOND, "{time:?}");
        }
        let (status, times, _) = refused(99, Some("0")).await;
        assert_eq!((status, times), (StatusCode::TOO_MANY_REQUESTS, 1 + MAX_RETRIES as usize));
    }
}
