//! Lists in responses (docs/contract/http.md, "Lists").

use axum::Json;
use axum::http::HeaderValue;
use axum::http::header::LINK;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use url::form_urlencoded::{Serializer, parse};

use crate::db::Page;
use crate::domain::Job;

/// A page of a list, with a `Link` header if the list goes on.
pub(in crate::api) struct Listing<T> {
    jobs: Vec<T>,
    next: Option<String>,
}

impl<T: From<Job>> Listing<T> {
    /// A page. `query` is the request's query string: the link to the next page is the same request with another
    /// `offset`.
    pub(super) fn new(page: Page, query: Option<&str>) -> Self {
        let next = page.next.map(|offset| {
            let others = parse(query.unwrap_or_default().as_bytes()).filter(|(name, _)| name != "offset");
            let query =
                Serializer::new(String::new()).extend_pairs(others).append_pair("offset", &offset.to_string()).finish();
            format!("<?{query}>; rel=\"next\"")
        });
        Self { jobs: page.jobs.into_iter().map(T::from).collect(), next }
    }
}

impl<T: Serialize> IntoResponse for Listing<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.jobs).into_response();
        if let Some(link) = self.next.and_then(|link| HeaderValue::try_from(link).ok()) {
            response.headers_mut().insert(LINK, link);
        }
        response
    }
}
