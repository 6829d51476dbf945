//! get and list

use std::sync::Arc;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{
    answer::Answer,
    call::Call,
    registry::Resource,
    selectors::Selector,
    status::ApiError,
    store::{Forgotten, Key, State, Store},
};

/// One object.
pub(crate) fn get(store: &Store, call: &Call, resource: &Resource) -> Result<Answer, ApiError> {
    let request = &call.request;
    let key = resource.key(&request.namespace, &request.name);
    store
        .read(|state| state.get(&key).cloned())
        .map(|object| Answer::Object(StatusCode::OK, object, Vec::new()))
        .ok_or_else(|| ApiError::not_found(resource, &request.name))
}

/// Where a list goes on: after which object, and as of which resourceVersion.
struct Continue {
    revision: Option<u64>,
    after: Key,
}

impl Continue {
    /// To whoever gets it the token is opaque.
    fn token(&self) -> String {
        let parts = json!([self.revision, self.after.namespace, self.after.name]);
        hex::encode(parts.to_string())
    }

    fn parse(token: &str, resource: &Resource) -> Result<Self, ApiError> {
        let refuse = || {
            ApiError::bad_request("invalid continue token: continue key is not valid: it was not made by this server")
        };
        let parts = hex::decode(token).map_err(|_| refuse())?;
        let (revision, namespace, name): (Option<u64>, String, String) =
            serde_json::from_slice(&parts).map_err(|_| refuse())?;
        Ok(Self { revision, after: resource.key(&namespace, &name) })
    }
}

/// The objects in a namespace, or in all; in pages if asked for. All pages show the state that the first one
/// showed, unless that is forgotten.
///
/// Source: Kubernetes API concepts, "Retrieving large results sets in chunks".
pub(crate) fn list(store: &Store, call: &Call, resource: &Resource) -> Result<Answer, ApiError> {
    let selector = selector(call, resource)?;
    let limit = call.number("limit")?.filter(|limit| *limit > 0);
    let position = call
        .get("continue")
        .filter(|token| !token.is_empty())
        .map(|token| Continue::parse(token, resource))
        .transpose()?;
    let wanted = revision(call.get("resourceVersion").unwrap_or_default())?;
    if position.is_some() && wanted > 0 {
        return Err(ApiError::bad_request("specifying resource version is not allowed when using continue"));
    }
    let exact = call.get("resourceVersionMatch") == Some("Exact");
    store.read(|state| {
        let at = match &position {
            Some(position) => position.revision.unwrap_or(state.revision()),
            None if exact => wanted,
            None => state.revision(),
        };
        let page = Page {
            state,
            call,
            resource,
            selector: &selector,
            after: position.as_ref().map(|position| &position.after),
            limit: limit.and_then(|limit| usize::try_from(limit).ok()),
        };
        page.at(at)
    })
}

/// One page of a list.
struct Page<'a> {
    state: &'a State,
    call: &'a Call,
    resource: &'a Resource,
    selector: &'a Selector,
    after: Option<&'a Key>,
    limit: Option<usize>,
}

impl Page<'_> {
    fn at(&self, revision: u64) -> Result<Answer, ApiError> {
        let namespace = Some(self.call.request.namespace.as_str()).filter(|name| !name.is_empty());
        let mut objects = self
            .state
            .list_at(revision, &self.resource.id, namespace, self.after)
            .map_err(|Forgotten| self.expired())?
            .filter(|(_, object)| self.selector.matches(object));

        let limit = self.limit.unwrap_or(usize::MAX);
        let page: Vec<(&Key, Arc<Value>)> =
            objects.by_ref().take(limit).map(|(key, object)| (key, Arc::clone(object))).collect();
        let left = if self.limit.is_some() { objects.count() } else { 0 };

        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if let Some((last, _)) = page.last().filter(|_| left > 0) {
            let next = Continue { revision: Some(revision), after: Key::clone(last) };
            metadata["continue"] = next.token().into();
            if self.selector.is_empty() {
                metadata["remainingItemCount"] = left.into();
            }
        }
        let objects = page.into_iter().map(|(_, object)| object).collect();
        Ok(Answer::List(objects, metadata))
    }

    /// The refusal carries a token that goes on from the same place with the state of now.
    fn expired(&self) -> ApiError {
        let Some(after) = self.after else {
            return ApiError::expired("The resourceVersion for the provided list is too old.", json!({}));
        };
        let next = Continue { revision: None, after: after.clone() };
        ApiError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list \
            without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
            results. Continuing with the provided token results in an inconsistent list - objects that were created, \
            modified, or deleted between the time the first chunk was returned and now may show up in the list.",
            json!({ "continue": next.token() }),
        )
    }
}

/// What the list or watch is narrowed down to; also by the name in the path, for a watch of one object.
pub(crate) fn selector(call: &Call, resource: &Resource) -> Result<Selector, ApiError> {
    let mut fields = call.request.field_selector.clone();
    if !call.request.name.is_empty() {
        fields = format!("metadata.name={}", call.request.name);
    }
    Selector::parse(resource, Some(&call.request.label_selector), Some(&fields))
}

/// A resourceVersion; an empty one is 0.
pub(crate) fn revision(text: &str) -> Result<u64, ApiError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| {
        ApiError::bad_request(format!(
            "invalid resource version: resourceVersion: Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
        ))
    })
}
