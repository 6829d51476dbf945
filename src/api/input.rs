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
