//! Who may call the admin routes.

use std::net::IpAddr;

use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::text;
use crate::api::error::ApiError;
use crate::config::Config;

/// Who may call the admin routes (docs/contract/http.md, "Admin routes").
#[derive(Debug, Clone)]
pub enum Admins {
    /// Those whose `Admin` header is one of these, in lower case (ALLOWED_ADMINS). Nobody if the list is empty.
    Listed(Vec<String>),
    /// Everybody who reaches this machine's loopback address by a loopback name.
    AnyoneLocal,
}

impl Admins {
    /// For a Lambda function, or a server that others can reach.
    pub fn listed(config: &Config) -> Self {
        Self::Listed(config.access.allowed_admins.clone().unwrap_or_default())
    }

    /// For a server that listens on this address: open if it is a loopback address and ALLOWED_ADMINS is not set.
    pub fn of_server(config: &Config, listens_on: IpAddr) -> Self {
        match config.access.allowed_admins {
            None if listens_on.is_loopback() => Self::AnyoneLocal,
            _ => Self::listed(config),
        }
    }

    /// The response that refuses a request, if it is refused.
    pub(super) fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        match self {
            Self::AnyoneLocal if is_local(headers) => None,
            Self::AnyoneLocal => {
                let message = "The admin routes are open to requests from this machine only: address them to \
                               localhost, or set ALLOWED_ADMINS";
                Some(ApiError::new(StatusCode::FORBIDDEN, message).into_response())
            }
            Self::Listed(admins) => {
                let given = headers.get("admin").map(|value| value.as_bytes().to_ascii_lowercase()).unwrap_or_default();
                if given.is_empty() {
                    return Some(text(StatusCode::BAD_REQUEST, "Admin header is empty.\nstatus code: 400"));
                }
                // In constant time: neither which one matches nor where a wrong one differs can be measured.
                let matching = |found: Choice, admin: &String| found | admin.as_bytes().ct_eq(&given);
                if bool::from(admins.iter().fold(Choice::from(0), matching)) {
                    return None;
                }
                let message = "Access admin route failed due to invalid admin address.\nstatus code: 401";
                Some(text(StatusCode::UNAUTHORIZED, message))
            }
        }
    }
}

/// Returns whether a request names this machine by a loopback name, and does not come from a page of another site: such
/// a page in the user's browser can send requests to this machine, under a name of its own or without reading the
/// response.
fn is_local(headers: &HeaderMap) -> bool {
    let is_loopback = |authority: &str| {
        let host = match authority.strip_prefix('[') {
            Some(rest) => rest.split(']').next(),
            None => authority.split(':').next(),
        };
        let host = host.unwrap_or_default();
        host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let origin = headers.get(ORIGIN).map(|origin| origin.to_str().unwrap_or_default());
    host.is_some_and(is_loopback)
        && origin.is_none_or(|origin| origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority)))
}
