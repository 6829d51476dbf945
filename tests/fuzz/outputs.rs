//! Whatever an engine has stored as outputs is read as a list or not at all; nothing that is shown of it, errors included, has
//! a URL; and no URL leads to this network, or to another object of S3 than it names.

use std::error::Error;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use axum::http::HeaderMap;
use operator_service::api::results::FileName;
use operator_service::aws::s3::{Object, ObjectRequest};
use operator_service::domain::output;
use operator_service::domain::workflow::to_ascii_json;
use operator_service::runtime;
use operator_service::storage::{Storage, StorageError};
use serde_json::Value;
use url::{Host, Url};

use crate::service::{CONFIG, RUNTIME};

static STORAGE: LazyLock<Storage> = LazyLock::new(|| runtime::storage(&CONFIG).unwrap());

pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let json: Option<Value> = serde_json::from_str(text).ok();
    let expected = json.as_ref().and_then(Value::as_array).filter(|list| !list.is_empty());
    let outputs = output::parse(text);
    assert_eq!(outputs.as_ref(), expected);
    let Some(outputs) = outputs else { return };

    let shown = output::without_urls(outputs.clone());
    assert_eq!(shown.len(), outputs.len());
    for (index, (shown, stored)) in shown.iter().zip(&outputs).enumerate() {
        let without = stored.as_object().map(|stored| {
            let others = stored.iter().filter(|(name, _)| *name != "url");
            Value::Object(others.map(|(name, value)| (name.clone(), value.clone())).collect())
        });
        assert_eq!(shown.to_string(), without.unwrap_or(Value::Null).to_string());
        let url = output::url(&outputs, index);
        assert_eq!(url, stored.as_object().and_then(|stored| stored.get("url")?.as_str()));
        if let Some(url) = url {
            check_url(url);
        }
    }
    assert_eq!(output::url(&outputs, outputs.len()), None);
    // What the reaper writes back once the outputs have expired.
    let stripped = to_ascii_json(&shown.into());
    let read = output::parse(&stripped).unwrap();
    assert_eq!(read.len(), outputs.len());
    assert!((0..read.len()).all(|index| output::url(&read, index).is_none()));
}

fn check_url(url: &str) {
    FileName::of_origin(&HeaderMap::new(), url).content_disposition();
    if let Some(object) = Object::of_url(url, &["bucket".to_owned(), "buck.et".to_owned()], None) {
        check_object(&object);
    }
    if leads_outside(url) {
        return;
    }
    let error = RUNTIME.block_on(STORAGE.open(url, None)).unwrap_err();
    assert!(matches!(error, StorageError::Location | StorageError::Forbidden), "{url} {error:?}");
    let mut texts = vec![format!("{error} {error:?}")];
    let mut source = error.source();
    while let Some(error) = source {
        texts.push(format!("{error} {error:?}"));
        source = error.source();
    }
    assert!(url.len() < 8 || !texts.concat().contains(url), "{texts:?}");
}

/// The presigned URL names the same object.
fn check_object(object: &Object) {
    let request = ObjectRequest {
        method: "GET",
        endpoint: None,
        default_region: "eu-central-1",
        disposition: Some("attachment;filename=\"a b\""),
        valid_for: Duration::from_secs(300),
    };
    let credentials = aws_credential_types::Credentials::new("key", "secret", None, None, "test");
    let Ok(presigned) = object.presigned(request, &credentials, UNIX_EPOCH) else { return };
    let again = Object::of_url(&presigned, std::slice::from_ref(&object.bucket), None);
    let again = again.map(|object| (object.bucket, object.key));
    assert_eq!(again, Some((object.bucket.clone(), object.key.clone())), "{presigned}");
}

/// Returns whether a request might be sent: the host is a name, or an address that is not surely one of this machine or of a
/// private network.
fn leads_outside(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::from(address),
        Some(Host::Ipv6(address)) => IpAddr::from(address).to_canonical(),
        Some(Host::Domain(_)) => return matches!(url.scheme(), "http" | "https"),
        None => return false,
    };
    match address {
        IpAddr::V4(address) => {
            !(address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified())
        }
        IpAddr::V6(address) => {
            !(address.is_loopback()
                || address.is_unique_local()
                || address.is_unicast_link_local()
                || address.is_unspecified())
        }
    }
}
