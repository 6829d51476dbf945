//! Who may call the admin routes.

use std::net::IpAddr;

use axum::http::header::{FORWARDED, HOST, HeaderName, ORIGIN, VIA};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConstantTimeEq};

use super::text;
use crate::api::error::ApiError;
use crate::config::AccessConfig;

/// Who may call the admin routes (docs/contract/http.md, "Admin routes").
#[derive(Debug, Clone)]
pub enum Admins {
    /// Those whose `Admin` header is one of these, in lower case (ALLOWED_ADMINS). Nobody if the list is empty.
    Listed(Vec<String>),
    /// Everybody who sends a request to a loopback name, and through no proxy (LOCAL_ADMIN=1).
    AnyoneLocal,
}

impl Admins {
    /// Those that the configuration allows. ALLOWED_ADMINS takes precedence over LOCAL_ADMIN.
    pub fn configured(access: &AccessConfig) -> Self {
        match &access.allowed_admins {
            Some(admins) => Self::Listed(admins.clone()),
            None if access.local_admin => Self::AnyoneLocal,
            None => Self::Listed(Vec::new()),
        }
    }

    /// The response that refuses a request, if it is refused.
    pub(super) fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        match self {
            Self::AnyoneLocal if is_local(headers) => None,
            Self::AnyoneLocal => {
                let message = "With LOCAL_ADMIN=1 the admin routes accept only requests that are sent to localhost \
                               and through no proxy; to admit others, set ALLOWED_ADMINS";
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

/// Returns whether a request names this machine by a loopback name, and comes neither through a proxy nor from a page
/// of another site. A reverse proxy on this machine sends `Host: localhost` on behalf of everybody. A page in the user's
/// browser can send requests to this machine, under a name of its own or without reading the response.
fn is_local(headers: &HeaderMap) -> bool {
    let of_proxy = |name: &HeaderName| [FORWARDED, VIA].contains(name) || name.as_str().starts_with("x-forwarded-");
    if headers.keys().any(of_proxy) {
        return false;
    }
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
