//! The parameter `validUntil`.

use std::time::{SystemTime, UNIX_EPOCH};

use utoipa::openapi::Type;

use crate::api::error::ApiError;
use crate::api::input::Params;
use crate::api::schemas::{number_or_text, schema};

/// A time in the future, in whole seconds since the epoch. Sent as a number, possibly with a fraction, or as text.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) struct ValidUntil(i64);

impl ValidUntil {
    pub(super) fn read(params: &Params) -> Result<Option<Self>, ApiError> {
        let Some(text) = params.number_text("validUntil")? else {
            return Ok(None);
        };
        let seconds = text.parse().ok().filter(|seconds: &f64| seconds.is_finite());
        let seconds = seconds
            .ok_or_else(|| ApiError::bad_request("\"validUntil\" must be a number of seconds since the epoch"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if seconds <= now.as_secs_f64() {
            return Err(ApiError::bad_request("\"validUntil\" is in the past"));
        }
        Ok(Some(Self(seconds as i64)))
    }

    /// Seconds since the epoch.
    pub(super) fn seconds(self) -> i64 {
        self.0
    }
}

schema! {
    ValidUntil => number_or_text(
        Type::Number,
        "A time in the future, in seconds since the epoch.",
        r"^[0-9]+(\.[0-9]+)?$",
        "4102444800",
    );
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::extract::{FromRequest, Request};

    use super::*;
    use crate::api::input::{FromParams, Input};

    struct Sent(Option<ValidUntil>);

    impl<S> FromParams<S> for Sent {
        const CALL: &'static str = "GET:/call";

        fn read(params: &Params, _: &S) -> Result<Self, ApiError> {
            ValidUntil::read(params).map(Self)
        }
    }

    #[tokio::test]
    async fn it_is_a_number_of_seconds_in_the_future() {
        let sent = [
            ("4102444800", Some(4_102_444_800)),
            ("4102444800.9", Some(4_102_444_800)),
            ("4.1e9", Some(4_100_000_000)),
            ("1700000000", None),
            ("0", None),
            ("inf", None),
            ("soon", None),
        ];
        for (text, expected) in sent {
            let request = Request::builder().uri(format!("/?validUntil={text}")).body(Body::empty()).unwrap();
            let read = Input::<Sent>::from_request(request, &()).await.ok();
            assert_eq!(read.map(|Input(Sent(time))| time.unwrap().seconds()), expected, "{text}");
        }
    }
}
