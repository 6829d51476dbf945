//! Files at HTTP origins.
//!
//! The URLs come from engines and are not trusted: only http and https, no address that is not public unless
//! RESULT_HOSTS_ALLOWED names its host, and the same checks on every redirect.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, ClientBuilder, Response};
use secrecy::ExposeSecret;
use url::{Host, Url};

use super::addresses::is_public;
use super::{StorageError, is_file, unreachable};
use crate::aws::secrets::{self, ResultSecret};
use crate::aws::{Account, AwsError};
use crate::cache::Cached;
use crate::config::{ApiKeys, HostPattern, StorageConfig};

/// How many redirects are followed.
const MAX_REDIRECTS: usize = 5;
/// How long a secret is used before it is read again.
const SECRET_MAX_AGE: Duration = Duration::from_secs(5 * 60);

/// Fetches files from HTTP origins. Cheap to clone.
#[derive(Clone)]
pub(super) struct Origins {
    client: Client,
    config: Arc<StorageConfig>,
    account: Account,
    secret: Arc<Cached<ResultSecret, AwsError>>,
}

impl Origins {
    pub(super) fn new(
        builder: ClientBuilder,
        config: Arc<StorageConfig>,
        account: Account,
    ) -> Result<Self, reqwest::Error> {
        let resolver = PublicOnly { allowed: config.hosts_allowed.clone() };
        Ok(Self { client: builder.dns_resolver(resolver).build()?, config, account, secret: Arc::default() })
    }

    /// Opens a file, following redirects.
    pub(super) async fn open(&self, url: &str, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let mut url = Url::parse(url).map_err(|_| StorageError::Location)?;
        for _ in 0..=MAX_REDIRECTS {
            self.check(&url)?;
            let response = self.get(&url, range).await?;
            let status = response.status();
            if is_file(status) {
                return Ok(response);
            }
            let next = response.headers().get(LOCATION).filter(|_| status.is_redirection());
            let Some(next) = next else {
                return Err(StorageError::Status(status));
            };
            let next = next.to_str().map_err(|_| StorageError::Location)?;
            url = url.join(next).map_err(|_| StorageError::Location)?;
        }
        Err(StorageError::Redirects)
    }

    async fn get(&self, url: &Url, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let mut headers = HeaderMap::new();
        // Not compressed: lengths and ranges count the file's own bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(range) = range {
            headers.insert(RANGE, range.clone());
        }
        if self.config.api_key_hosts.iter().any(|host| host.matches(url)) {
            let ResultSecret { api_key, client_id } = self.keys().await.map_err(StorageError::ApiKey)?;
            for (name, value) in [("x-api-key", &api_key), ("client-id", &client_id)] {
                let value = value.as_ref().and_then(|value| HeaderValue::from_str(value.expose_secret()).ok());
                if let Some(mut value) = value {
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
            }
        }
        self.client
            .get(url.clone())
            .headers(headers)
            .send()
            .await
            .map_err(|error| if is_forbidden(&error) { StorageError::Forbidden } else { unreachable(error) })
    }

    async fn keys(&self) -> Result<ResultSecret, AwsError> {
        match &self.config.api_keys {
            ApiKeys::Given { api_key, client_id } => {
                Ok(ResultSecret { api_key: api_key.clone(), client_id: client_id.clone() })
            }
            ApiKeys::Secret(arn) => {
                let now = SystemTime::now();
                let read = async || Ok((secrets::results(&self.account, arn).await?, now + SECRET_MAX_AGE));
                Ok(self.secret.get(now, None, read).await?.value)
            }
        }
    }

    /// Refuses a URL by its scheme, or by its host if that is an address. Names are checked when they are resolved.
    fn check(&self, url: &Url) -> Result<(), StorageError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(StorageError::Location);
        }
        let allowed = &self.config.hosts_allowed;
        if allowed.iter().any(|host| host.matches(url)) {
            return Ok(());
        }
        let public = match url.host() {
            None => return Err(StorageError::Location),
            Some(Host::Ipv4(address)) => is_public(address.into()),
            Some(Host::Ipv6(address)) => is_public(address.into()),
            // The resolver does not learn the port, so a name that is allowed with one port only has to be refused here
            // with any other.
            Some(Host::Domain(_)) => !allowed.iter().any(|host| host.names_host_of(url)),
        };
        if public { Ok(()) } else { Err(StorageError::Forbidden) }
    }
}

fn is_forbidden(error: &reqwest::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<NotPublic>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Resolves names, and leaves out addresses that are not public unless the name is allowed. Checking here makes sure
/// that the address that was checked is the one that is connected to.
struct PublicOnly {
    allowed: Vec<HostPattern>,
}

#[derive(Debug, thiserror::Error)]
#[error("the host has no public address")]
struct NotPublic;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = self.allowed.iter().any(|allowed| allowed.is_host(name.as_str()));
        async move {
            let addresses = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let usable: Vec<SocketAddr> = addresses.filter(|address| allowed || is_public(address.ip())).collect();
            if usable.is_empty() {
                return Err(NotPublic.into());
            }
            Ok(Box::new(usable.into_iter()) as Addrs)
        }
        .boxed()
    }
}
