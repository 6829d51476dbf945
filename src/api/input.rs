//! Reads the parameters of requests (docs/contract/http.md, "Parameters").

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use serde_json::value::RawValue;
use sha3::{Digest, Sha3_256};

use crate::api::error::ApiError;
use crate::auth::{Nonce, ProviderSignature};
use crate::domain::{ChainId, InvalidId};

/// The maximum size of a request's body, in bytes: the engine keeps the workflow twice in a ConfigMap, which holds 1
/// MiB (docs/contract/engine.md, "jobs.workflow").
pub const BODY_LIMIT: usize = 400 * 1024;
/// How long a caller may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// A request that is read from parameters. `S` is the state of the routes, for checks that depend on the configuration.
pub trait FromParams<S>: Sized {
    /// The method and the route, as messages name them.
    const CALL: &'static str;

    /// Reads and checks the parameters, in the order of the contract.
    ///
    /// # Errors
    /// If the request has to change: a 400.
    fn read(params: &Params, state: &S) -> Result<Self, ApiError>;
}

/// Extracts an endpoint's request.
#[derive(Debug)]
pub struct Input<T>(pub T);

impl<S: Send + Sync, T: FromParams<S>> FromRequest<S> for Input<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let query = request.uri().query().unwrap_or_default();
        let params = match query.is_empty() {
            false => Params::from_query(query, T::CALL),
            true => Params::from_body(&read_body(request).await?, T::CALL)?,
        };
        T::read(&params, state).map(Self)
    }
}

/// The parameters of a request: those of its query string if that is not empty, otherwise those of the JSON object in
/// its body, whatever the method. JSON null counts as absent.
#[derive(Debug)]
pub struct Params {
    call: &'static str,
    present: HashMap<String, Param>,
    /// Whether the caller sent no parameter at all, not even a null one.
    none_sent: bool,
}

enum Param {
    Text(String),
    /// Any other JSON value, as it was written: a nonce of 19 digits does not fit a double.
    Json(Box<RawValue>),
}

impl std::fmt::Debug for Param {
    /// Prints the type only: the value may be a signature, or contain data URLs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "text",
            Self::Json(_) => "json",
        })
    }
}

async fn read_body(request: Request) -> Result<Vec<u8>, ApiError> {
    let too_large = || {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("The request's body is larger than {BODY_LIMIT} bytes"))
    };
    let announced = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|length: u64| length > BODY_LIMIT as u64) {
        return Err(too_large());
    }
    let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
    match tokio::time::timeout(BODY_TIMEOUT, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes().to_vec()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ApiError::bad_request("The request's body ended too early")),
        Err(_) => Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request's body did not arrive in time")),
    }
}

impl Params {
    fn from_query(query: &str, call: &'static str) -> Self {
        let mut present = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            // Of several with one name the first counts, as in the Python service.
            present.entry(name.into_owned()).or_insert_with(|| Param::Text(value.into_owned()));
        }
        Self { call, present, none_sent: false }
    }

    fn from_body(body: &[u8], call: &'static str) -> Result<Self, ApiError> {
        let none = Self { call, present: HashMap::new(), none_sent: true };
        if body.trim_ascii().is_empty() {
            return Ok(none);
        }
        let body = std::str::from_utf8(body)
            .map_err(|error| ApiError::bad_request(format!("The request's body is not UTF-8: {error}")))?;
        let malformed =
            |error: serde_json::Error| ApiError::bad_request(format!("The request's body is not valid JSON: {error}"));
        let body: &RawValue = serde_json::from_str(body).map_err(malformed)?;
        if !body.get().starts_with('{') {
            return Ok(none);
        }
        let params: HashMap<String, Box<RawValue>> = serde_json::from_str(body.get()).map_err(malformed)?;
        let none_sent = params.is_empty();
        let present = params.into_iter().filter(|(_, value)| value.get() != "null").map(|(name, value)| {
            let text = value.get().starts_with('"').then(|| serde_json::from_str(value.get()).map_err(malformed));
            Ok((name, text.transpose()?.map_or(Param::Json(value), Param::Text)))
        });
        Ok(Self { call, present: present.collect::<Result<_, ApiError>>()?, none_sent })
    }

    /// The digest of what was sent, by which the same request is recognized: of the call and all parameters, in the order
    /// of their names. Without the signature, which is checked and may differ, and without the page of the response.
    pub fn digest(&self) -> [u8; 32] {
        let mut present: Vec<_> = self.present.iter().collect();
        present.retain(|(name, _)| !matches!(name.as_str(), "providerSignature" | "limit" | "offset"));
        present.sort_by_key(|(name, _)| *name);
        let parts = present.into_iter().flat_map(|(name, value)| match value {
            Param::Text(text) => [name.as_str(), "text", text],
            Param::Json(json) => [name.as_str(), "json", json.get()],
        });
        let mut digest = Sha3_256::new();
        for part in std::iter::once(self.call).chain(parts) {
            // With its length: otherwise other parts could give the same text.
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    /// Returns whether the caller sent no parameter at all.
    pub fn is_empty(&self) -> bool {
        self.none_sent
    }

    /// A required parameter, read by one of the methods below.
    pub fn required<'a, T>(
        &'a self,
        name: &str,
        read: impl FnOnce(&'a Self, &str) -> Result<Option<T>, ApiError>,
    ) -> Result<T, ApiError> {
        read(self, name)?.ok_or_else(|| self.missing(name))
    }

    /// The error for a required parameter that is absent.
    pub fn missing(&self, name: &str) -> ApiError {
        ApiError::bad_request(format!("\"{name}\" is required in the call to {}", self.call))
    }

    /// A parameter that has to be text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.present.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => Ok(Some(text)),
            Some(Param::Json(_)) => Err(ApiError::bad_request(format!("\"{name}\" must be text"))),
        }
    }

    /// An identifier. Text of fewer than 2 characters counts as absent.
    pub fn id<T: FromStr<Err = InvalidId>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        let text = self.text(name)?.filter(|text| text.chars().count() >= 2);
        text.map(|text| parse_id(name, text)).transpose()
    }

    /// An identifier, also an empty or one-character one, which does not count as absent.
    pub fn id_of_any_length<T: FromStr<Err = InvalidId>>(&self, name: &str) -> Result<Option<T>, ApiError> {
        self.text(name)?.map(|text| parse_id(name, text)).transpose()
    }

    /// A number, or text that should hold one, as it was written.
    pub fn number_text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.present.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => Ok(Some(text)),
            Some(Param::Json(json)) if is_number(json) => Ok(Some(json.get())),
            Some(Param::Json(_)) => Err(ApiError::bad_request(format!("\"{name}\" must be a number or text"))),
        }
    }

    /// A signature.
    pub fn signature(&self, name: &str) -> Result<Option<ProviderSignature>, ApiError> {
        Ok(self.text(name)?.map(ProviderSignature::sent))
    }

    /// A nonce.
    pub fn nonce(&self, name: &str) -> Result<Option<Nonce>, ApiError> {
        let wrong = || ApiError::bad_request(format!("\"{name}\" must be a decimal number that is not negative"));
        self.number_text(name)?.map(|nonce| Nonce::parse(nonce).ok_or_else(wrong)).transpose()
    }

    /// A whole number that is not negative.
    pub fn count(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let wrong = || ApiError::bad_request(format!("\"{name}\" must be a whole number that is not negative"));
        let count = self.number_text(name)?.map(|text| text.parse().map_err(|_| wrong())).transpose()?;
        match count {
            Some(..0) => Err(wrong()),
            count => Ok(count),
        }
    }

    /// The chain, under either of its names. Empty text counts as absent.
    pub fn chain_id(&self) -> Result<Option<ChainId>, ApiError> {
        let name = if self.present.contains_key("chainId") { "chainId" } else { "chain_id" };
        let Some(text) = self.number_text(name)?.filter(|text| !text.is_empty()) else {
            return Ok(None);
        };
        let as_number = matches!(self.present.get(name), Some(Param::Json(_)));
        let wrong = || ApiError::bad_request(format!("\"{name}\" must be a whole number of at most 78 digits"));
        ChainId::parse(text, as_number).ok_or_else(wrong).map(Some)
    }

    /// Any JSON value; in a query string, every value is text.
    pub fn value(&self, name: &str) -> Result<Option<Value>, ApiError> {
        match self.present.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => Ok(Some(Value::String(text.clone()))),
            Some(Param::Json(json)) => serde_json::from_str(json.get())
                .map(Some)
                .map_err(|error| ApiError::bad_request(format!("\"{name}\" cannot be read: {error}"))),
        }
    }
}

fn is_number(json: &RawValue) -> bool {
    json.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

fn parse_id<T: FromStr<Err = InvalidId>>(name: &str, text: &str) -> Result<T, ApiError> {
    text.parse().map_err(|invalid| ApiError::bad_request(format!("\"{name}\" may have {invalid}")))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::*;
    use crate::domain::JobId;

    fn params(body: &Value) -> Params {
        Params::from_body(body.to_string().as_bytes(), "GET:/call").unwrap()
    }

    #[test]
    fn each_kind_of_parameter_is_read_or_refused() {
        let sent = params(&json!({
            "long": "ab", "short": "a", "empty": "", "number": 7, "digits": "7", "null": null, "list": [1], "negative": -1, "flag": true,
        }));
        let id = |name| sent.id::<JobId>(name).ok().map(|id| id.map(|id| id.to_string()));
        let any_id = |name| sent.id_of_any_length::<JobId>(name).ok().map(|id| id.map(|id| id.to_string()));
        let nonce = |name| sent.nonce(name).ok().map(|nonce| nonce.map(|nonce| nonce.to_string()));
        let some = |text: &str| Some(Some(text.to_owned()));
        for (name, expected) in [("long", some("ab")), ("short", Some(None)), ("null", Some(None)), ("number", None)] {
            assert_eq!(id(name), expected, "{name}");
        }
        for (name, expected) in
            [("long", some("ab")), ("short", some("a")), ("empty", some("")), ("absent", Some(None))]
        {
            assert_eq!(any_id(name), expected, "{name}");
        }
        for (name, expected) in [("number", some("7")), ("digits", some("7")), ("long", None), ("list", None)] {
            assert_eq!(nonce(name), expected, "{name}");
        }
        let counts = [("number", Some(Some(7))), ("digits", Some(Some(7))), ("negative", None), ("absent", Some(None))];
        for (name, expected) in counts {
            assert_eq!(sent.count(name).ok(), expected, "{name}");
        }
        assert_eq!(sent.number_text("negative").unwrap(), Some("-1"));
        assert!(sent.number_text("list").is_err() && sent.number_text("flag").is_err());
        assert_eq!(params(&json!({ "count": 0 })).count("count").unwrap(), Some(0));
        assert!(sent.signature("long").unwrap().is_some() && sent.signature("list").is_err());
        assert_eq!(sent.value("list").unwrap(), Some(json!([1])));
        assert_eq!(sent.value("digits").unwrap(), Some(json!("7")));
        assert_eq!(sent.value("null").unwrap(), None);
        assert_eq!(sent.required("long", Params::text).unwrap(), "ab");
        assert!(sent.required("null", Params::text).is_err());
    }

    #[test]
    fn a_chain_has_two_names_and_empty_text_is_none() {
        let chain = |sent: Value| params(&sent).chain_id().ok().map(|chain| chain.map(|chain| chain.to_json()));
        for (sent, expected) in [
            (json!({ "chainId": 1 }), Some(Some(json!(1)))),
            (json!({ "chain_id": "1" }), Some(Some(json!("1")))),
            (json!({ "chain_id": 2, "chainId": 1 }), Some(Some(json!(1)))),
            (json!({ "chainId": "" }), Some(None)),
            (json!({}), Some(None)),
            (json!({ "chainId": "x" }), None),
        ] {
            assert_eq!(chain(sent.clone()), expected, "{sent}");
        }
    }

    #[test]
    fn only_what_has_no_parameter_is_empty() {
        for empty in ["", " ", "{}", "[]", "1"] {
            assert!(Params::from_body(empty.as_bytes(), "").unwrap().is_empty(), "{empty}");
        }
        assert!(!params(&json!({ "a": null })).is_empty());
        assert!(!Params::from_query("a=b", "").is_empty());
    }

    #[test]
    fn a_digest_is_of_all_but_the_signature_and_the_page() {
        let digest = |sent: Value| params(&sent).digest();
        let first = digest(json!({ "a": "1", "b": "2" }));
        for same in [
            json!({ "b": "2", "a": "1" }),
            json!({ "a": "1", "b": "2", "providerSignature": "x", "limit": 1, "offset": 1, "c": null }),
        ] {
            assert_eq!(digest(same.clone()), first, "{same}");
        }
        for other in [json!({ "a": 1, "b": "2" }), json!({ "a": "1" }), json!({ "a": "1b", "": "2" }), json!({})] {
            assert_ne!(digest(other.clone()), first, "{other}");
        }
        assert_ne!(Params::from_query("a=1&b=2", "PUT:/call").digest(), first);
        assert_eq!(Params::from_query("a=1&b=2", "GET:/call").digest(), first);
    }

    /// Reads the body of a request, and returns the status if it is refused.
    async fn refusal(length: Option<usize>, body: Body) -> Option<StatusCode> {
        let mut request = Request::new(body);
        if let Some(length) = length {
            request.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        read_body(request).await.err().map(|error| error.into_response().status())
    }

    #[tokio::test]
    async fn a_body_has_a_limit_and_an_end() {
        assert_eq!(BODY_LIMIT, 409_600);
        let bytes = |length| Body::from(vec![b' '; length]);
        assert_eq!(refusal(None, bytes(BODY_LIMIT)).await, None);
        assert_eq!(refusal(None, bytes(BODY_LIMIT + 1)).await, Some(StatusCode::PAYLOAD_TOO_LARGE));
        assert_eq!(refusal(Some(BODY_LIMIT), bytes(1)).await, None);
        assert_eq!(refusal(Some(BODY_LIMIT + 1), bytes(1)).await, Some(StatusCode::PAYLOAD_TOO_LARGE));
        let interrupted =
            Body::from_stream(futures_util::stream::iter([Err::<Vec<u8>, _>(std::io::Error::other("lost"))]));
        assert_eq!(refusal(None, interrupted).await, Some(StatusCode::BAD_REQUEST));
    }

    #[test]
    fn a_value_is_not_shown() {
        let sent = params(&json!({ "a": "secret", "b": ["secret"] }));
        let shown = format!("{sent:?}");
        assert!(shown.contains("text") && shown.contains("json") && !shown.contains("secret"), "{shown}");
    }
}
