//! Where results lie: fetching a job's outputs from the URLs that the engine stored.
//!
//! Those URLs are not ours, and in the end not trustworthy: only http and https, no address that is not
//! public unless RESULT_HOSTS_ALLOWED names the host, and every redirect is looked at anew.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, Stream, stream};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::{ACCEPT_ENCODING, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Client, Response, StatusCode};
use secrecy::ExposeSecret;
use url::{Host, Url};

use crate::aws::s3::Object;
use crate::aws::{Account, AwsError};
use crate::config::{HostPattern, StorageConfig};

/// How long a URL that is handed out for an object is good.
const PRESIGNED: Duration = Duration::from_secs(5 * 60);
/// How many redirects are followed.
const REDIRECTS: usize = 5;

/// Why an origin's file cannot be handed out. Never holds a URL.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The URL is none, or not http or https.
    #[error("its location is not an http or https URL")]
    Location,
    /// The URL names an address that is not public, or redirects to one.
    #[error("it lies at an address that this service does not fetch from (see RESULT_HOSTS_ALLOWED)")]
    Forbidden,
    /// The origin redirects on and on.
    #[error("its origin redirects too often")]
    Redirects,
    /// The origin took too long to begin its answer.
    #[error("its origin did not answer in time")]
    TimedOut,
    /// The origin cannot be reached, or does not speak HTTP.
    #[error("its origin cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The object cannot be asked for with the process's own credentials.
    #[error("it lies in one of OUTPUT_BUCKETS, and this service cannot sign a request for it")]
    Aws(#[from] AwsError),
    /// The origin answered with an error.
    #[error("its origin answered with status {}", .0.as_u16())]
    Status(StatusCode),
}

/// Why a file that had begun to arrive is not whole. Never holds a URL.
#[derive(Debug, thiserror::Error)]
pub enum BrokeOff {
    /// The connection broke, or what came was no HTTP.
    #[error("its origin broke off")]
    Connection(#[source] reqwest::Error),
    /// Nothing came for too long.
    #[error("its origin fell silent")]
    Silent,
}

/// Fetches files from result storage. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    client: Client,
    /// For S3 itself, which may well have an address that is not public, and never redirects.
    s3: Client,
    account: Account,
    config: Arc<StorageConfig>,
}

impl Storage {
    /// Prepares for fetching; connects to nobody yet.
    pub fn new(config: &StorageConfig) -> Result<Self, reqwest::Error> {
        // The root certificates are in the binary: reading the system's costs a cold start its time.
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let config = Arc::new(config.clone());
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                // A proxy would resolve names itself, past the guard.
                .no_proxy()
                .connect_timeout(config.timeout)
                .user_agent(concat!("operator-service/", env!("CARGO_PKG_VERSION")))
        };
        let client = builder().dns_resolver(PublicOnly { allowed: config.hosts_allowed.clone() }).build()?;
        Ok(Self { client, s3: builder().build()?, account: Account::of_process(), config })
    }

    /// Opens a file: the answer has begun and is a success, or is the 416 of a range that the file does not have.
    pub async fn open(&self, url: &str, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let opened = async {
            match self.object(url) {
                Some(object) => self.read(&object, range).await,
                None => self.follow(url, range).await,
            }
        };
        tokio::time::timeout(self.config.timeout, opened).await.unwrap_or(Err(StorageError::TimedOut))
    }

    /// A URL by which whoever has it can fetch the file from S3 for some minutes, under the name that `disposition`
    /// gives it; `None` if it does not lie in one of OUTPUT_BUCKETS. Made without a call.
    pub async fn presigned(&self, url: &str, disposition: &str) -> Result<Option<String>, StorageError> {
        match self.object(url) {
            Some(object) => Ok(Some(self.presign("GET", &object, Some(disposition)).await?)),
            None => Ok(None),
        }
    }

    fn object(&self, url: &str) -> Option<Object> {
        let StorageConfig { output_buckets, s3_endpoint, .. } = &*self.config;
        Object::of_url(url, output_buckets, s3_endpoint.as_ref())
    }

    /// Removes a file, if it lies in one of OUTPUT_BUCKETS; false if it does not. One that is not there is removed.
    pub async fn remove(&self, url: &str) -> Result<bool, StorageError> {
        let Some(object) = self.object(url) else { return Ok(false) };
        let removed = async {
            let url = self.presign("DELETE", &object, None).await?;
            let response = self.s3.delete(url).send().await.map_err(unreachable)?;
            match response.status() {
                status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(true),
                status => Err(StorageError::Status(status)),
            }
        };
        tokio::time::timeout(self.config.timeout, removed).await.unwrap_or(Err(StorageError::TimedOut))
    }

    async fn presign(&self, method: &str, object: &Object, disposition: Option<&str>) -> Result<String, StorageError> {
        let (region, credentials) = (self.account.region().await?, self.account.credentials().await?);
        let endpoint = self.config.s3_endpoint.as_ref();
        Ok(object.presigned(method, endpoint, region, disposition, PRESIGNED, &credentials, SystemTime::now())?)
    }

    /// Reads an object with the process's own credentials: the URL that the engine stored is not signed.
    async fn read(&self, object: &Object, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let url = self.presign("GET", object, None).await?;
        let mut request = self.s3.get(url).header(ACCEPT_ENCODING, "identity");
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(response);
        }
        Err(StorageError::Status(status))
    }

    /// The content of an answer, as it comes. The origin's silence counts only while somebody listens: `reqwest`'s own
    /// limit also counts the time in which a slow caller takes nothing.
    pub fn content(&self, answer: Response) -> impl Stream<Item = Result<Bytes, BrokeOff>> + Send + use<> {
        let limit = self.config.idle_timeout;
        stream::try_unfold(answer, move |mut answer| async move {
            match tokio::time::timeout(limit, answer.chunk()).await {
                Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, answer))),
                Ok(Err(error)) => Err(BrokeOff::Connection(error.without_url())),
                Err(_) => Err(BrokeOff::Silent),
            }
        })
    }

    async fn follow(&self, url: &str, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let mut url = Url::parse(url).map_err(|_| StorageError::Location)?;
        for _ in 0..=REDIRECTS {
            self.check(&url)?;
            let response = self.get(&url, range).await?;
            let status = response.status();
            if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
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
        // The file as it is: lengths and ranges count its own bytes.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(range) = range {
            headers.insert(RANGE, range.clone());
        }
        if names(&self.config.api_key_hosts, url) {
            for (name, value) in [("x-api-key", &self.config.api_key), ("client-id", &self.config.client_id)] {
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

    /// Refuses what can be refused by the look of it; names are looked at when they are resolved.
    fn check(&self, url: &Url) -> Result<(), StorageError> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(StorageError::Location);
        }
        if names(&self.config.hosts_allowed, url) {
            return Ok(());
        }
        let public = match url.host() {
            None => return Err(StorageError::Location),
            Some(Host::Ipv4(address)) => is_public(address.into()),
            Some(Host::Ipv6(address)) => is_public(address.into()),
            // The resolver does not learn the port, so a name that is allowed with a certain port only must
            // be refused here with any other.
            Some(Host::Domain(_)) => !self.config.hosts_allowed.iter().any(|allowed| allowed.names_host_of(url)),
        };
        if public { Ok(()) } else { Err(StorageError::Forbidden) }
    }
}

fn names(patterns: &[HostPattern], url: &Url) -> bool {
    patterns.iter().any(|pattern| pattern.matches(url))
}

fn unreachable(error: reqwest::Error) -> StorageError {
    if error.is_timeout() { StorageError::TimedOut } else { StorageError::Unreachable(error.without_url()) }
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

/// Resolves names, and leaves out addresses that are not public unless the name is allowed: what is checked is
/// what is connected to.
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

/// Whether an address is one of the public Internet: not loopback, private, link-local (where clouds keep their
/// metadata), shared, multicast, reserved or a wrapping of such a one
/// (<https://www.iana.org/assignments/iana-ipv4-special-registry>, <https://www.iana.org/assignments/iana-ipv6-special-registry>).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, c, _] = address.octets();
            !(a == 0
                || address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_documentation()
                || a >= 240
                || (a == 100 && b & 0xc0 == 64)
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && b & 0xfe == 18))
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            let embedded = match segments {
                // IPv4-mapped, IPv4-compatible and NAT64 addresses reach the IPv4 address inside.
                [0, 0, 0, 0, 0, 0xffff | 0, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some((high, low)),
                // So do those of 6to4.
                [0x2002, high, low, ..] => Some((high, low)),
                _ => None,
            };
            if let Some((high, low)) = embedded {
                let [a, b] = high.to_be_bytes();
                let [c, d] = low.to_be_bytes();
                return is_public(IpAddr::from([a, b, c, d]));
            }
            // 2000::/3 is all that has been given out; of it, documentation and Teredo are not.
            segments[0] & 0xe000 == 0x2000 && !(segments[0] == 0x2001 && matches!(segments[1], 0 | 0xdb8))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for public in ["1.1.1.1", "8.8.8.8", "100.128.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for not in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.0.192",
            "198.18.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00:ec2::254",
            "fc00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001:0:1::1",
        ] {
            assert!(!is_public(not.parse().unwrap()), "{not}");
        }
    }
}
