//! How parameters arrive (contract: `http.md`, "How parameters arrive").

use std::collections::HashMap;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::api::error::ApiError;
use crate::auth::Nonce;

/// The largest body of a request, in bytes: the engine keeps the workflow twice in a ConfigMap, which holds
/// 1 MiB (contract: `engine.md`, "jobs.workflow").
pub const BODY_LIMIT: usize = 400 * 1024;
/// How long a caller may take to send its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest text that the books' columns hold.
const TEXT_LIMIT: usize = 255;

/// The error for a required parameter that is absent.
pub fn required(name: &str, call: &str) -> ApiError {
    ApiError::bad_request(format!("\"{name}\" is required in the call to {call}"))
}

/// The parameters of a request: those of its query string if that holds anything, else those of the JSON
/// object in its body, whatever the method. JSON null counts as absent.
#[derive(Debug, Default)]
pub struct Params {
    present: HashMap<String, Param>,
    /// Nothing was sent, not even a null.
    nothing: bool,
}

enum Param {
    Text(String),
    /// Anything else that JSON knows, as it was written: a nonce of 19 digits fits no double.
    Json(Box<RawValue>),
}

impl std::fmt::Debug for Param {
    /// Says nothing of the value: it may be a signature, or hold data URLs.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Text(_) => "text",
            Self::Json(_) => "json",
        })
    }
}

impl<S: Send + Sync> FromRequest<S> for Params {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let query = request.uri().query().unwrap_or_default();
        if !query.is_empty() {
            return Ok(Self::from_query(query));
        }
        Self::from_body(&read_body(request).await?)
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
    fn from_query(query: &str) -> Self {
        let mut params = HashMap::new();
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            // Of several of one name the first counts, as it did for the old service.
            params.entry(name.into_owned()).or_insert_with(|| Param::Text(value.into_owned()));
        }
        Self { present: params, nothing: false }
    }

    fn from_body(body: &[u8]) -> Result<Self, ApiError> {
        if body.trim_ascii().is_empty() {
            return Ok(Self { nothing: true, ..Self::default() });
        }
        let body = std::str::from_utf8(body)
            .map_err(|error| ApiError::bad_request(format!("The request's body is not UTF-8: {error}")))?;
        let malformed =
            |error: serde_json::Error| ApiError::bad_request(format!("The request's body is not valid JSON: {error}"));
        let body: &RawValue = serde_json::from_str(body).map_err(malformed)?;
        if !body.get().starts_with('{') {
            return Ok(Self { nothing: true, ..Self::default() });
        }
        let params: HashMap<String, Box<RawValue>> = serde_json::from_str(body.get()).map_err(malformed)?;
        let nothing = params.is_empty();
        let present = params.into_iter().filter(|(_, value)| value.get() != "null").map(|(name, value)| {
            let text = value.get().starts_with('"').then(|| serde_json::from_str(value.get()).map_err(malformed));
            Ok((name, text.transpose()?.map_or(Param::Json(value), Param::Text)))
        });
        Ok(Self { present: present.collect::<Result<_, ApiError>>()?, nothing })
    }

    /// Whether nothing was sent.
    pub fn is_empty(&self) -> bool {
        self.nothing
    }

    /// Whether a parameter is there.
    pub fn has(&self, name: &str) -> bool {
        self.present.contains_key(name)
    }

    /// A parameter that has to be text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.present.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => Ok(Some(text)),
            Some(Param::Json(_)) => Err(ApiError::bad_request(format!("\"{name}\" must be text"))),
        }
    }

    /// A parameter that names something in the books: of fewer than 2 characters it counts as absent.
    pub fn name(&self, name: &str) -> Result<Option<String>, ApiError> {
        let text = self.text(name)?.filter(|text| text.chars().count() >= 2);
        text.map(|text| storable(name, text)).transpose()
    }

    /// A parameter that is kept in the books, of any length.
    pub fn storable_text(&self, name: &str) -> Result<Option<String>, ApiError> {
        self.text(name)?.map(|text| storable(name, text)).transpose()
    }

    /// A number, or text that holds one, as it was written.
    pub fn number_text(&self, name: &str) -> Result<Option<&str>, ApiError> {
        match self.present.get(name) {
            None => Ok(None),
            Some(Param::Text(text)) => Ok(Some(text)),
            Some(Param::Json(json)) if is_number(json) => Ok(Some(json.get())),
            Some(Param::Json(_)) => Err(ApiError::bad_request(format!("\"{name}\" must be a number or text"))),
        }
    }

    /// The nonce.
    pub fn nonce(&self) -> Result<Option<Nonce>, ApiError> {
        let nonce = self.number_text("nonce")?;
        let wrong = || ApiError::bad_request("\"nonce\" must be a decimal number that is not negative");
        nonce.map(|nonce| Nonce::parse(nonce).ok_or_else(wrong)).transpose()
    }

    /// A whole number that is not negative, for paging.
    pub fn count(&self, name: &str) -> Result<Option<i64>, ApiError> {
        let wrong = || ApiError::bad_request(format!("\"{name}\" must be a whole number that is not negative"));
        let count = self.number_text(name)?.map(|text| text.parse().map_err(|_| wrong())).transpose()?;
        match count {
            Some(..0) => Err(wrong()),
            count => Ok(count),
        }
    }

    /// The chain, which callers spell in two ways: its text, and its value as it was sent.
    pub fn chain_id(&self) -> Result<Option<(String, Value)>, ApiError> {
        let name = if self.has("chainId") { "chainId" } else { "chain_id" };
        let Some(text) = self.number_text(name)? else {
            return Ok(None);
        };
        let text = storable(name, text)?;
        let value = match self.present.get(name) {
            Some(Param::Json(json)) => serde_json::from_str(json.get()).unwrap_or(Value::Null),
            _ => Value::String(text.clone()),
        };
        Ok(Some((text, value)))
    }

    /// Any JSON value; text of a query string is text.
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

/// What the books' columns hold and the engine can read back: 255 printable ASCII characters
/// (contract: `engine.md`, client encoding LATIN9).
fn storable(name: &str, text: &str) -> Result<String, ApiError> {
    if text.len() > TEXT_LIMIT || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        let message = format!("\"{name}\" may have at most {TEXT_LIMIT} characters, all of them printable ASCII");
        return Err(ApiError::bad_request(message));
    }
    Ok(text.to_owned())
}
