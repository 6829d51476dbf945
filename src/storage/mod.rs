//! Storage: a job's outputs, at the URLs that the engine stored.

mod addresses;
mod origin;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::header::{ACCEPT_ENCODING, HeaderValue, RANGE};
use reqwest::{Client, Response, StatusCode};

use crate::aws::s3::{Object, ObjectRequest};
use crate::aws::{Account, AwsError};
use crate::config::StorageConfig;
use origin::Origins;

/// How long a presigned URL is valid.
const PRESIGNED_VALIDITY: Duration = Duration::from_secs(5 * 60);

/// Why a file cannot be fetched or deleted. Never contains a URL.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The location is not a URL, or its scheme is neither http nor https.
    #[error("its location is not an http or https URL")]
    Location,
    /// The URL, or one that it redirects to, has an address that is not public.
    #[error("it is at an address that this service does not fetch from (see RESULT_HOSTS_ALLOWED)")]
    Forbidden,
    /// The origin redirects more than five times.
    #[error("its origin redirects too often")]
    Redirects,
    /// The origin took too long to begin its response.
    #[error("its origin did not answer in time")]
    TimedOut,
    /// The origin cannot be reached, or its response is not HTTP.
    #[error("its origin cannot be reached")]
    Unreachable(#[source] reqwest::Error),
    /// The process has no credentials to read or delete the object with.
    #[error("it is in one of OUTPUT_BUCKETS, and this service cannot sign a request for it")]
    Aws(#[from] AwsError),
    /// The key that the origin needs cannot be read.
    #[error("its origin needs a key, which cannot be read")]
    ApiKey(#[source] AwsError),
    /// The origin answered with an error.
    #[error("its origin answered with status {}", .0.as_u16())]
    Status(StatusCode),
}

/// Why a file's content ended too early. Never contains a URL.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The connection was closed, or what arrived is not HTTP.
    #[error("the connection to its origin was interrupted")]
    Interrupted(#[source] reqwest::Error),
    /// The origin sent nothing for longer than RESULT_IDLE_TIMEOUT.
    #[error("its origin sent nothing for too long")]
    Idle,
}

/// Fetches and deletes outputs. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    origins: Origins,
    /// For S3 itself, whose address may not be public.
    s3: Client,
    account: Account,
    config: Arc<StorageConfig>,
}

impl Storage {
    /// Builds the HTTP clients; makes no connection.
    pub fn new(config: &StorageConfig) -> Result<Self, reqwest::Error> {
        // Root certificates are in the binary: reading the system's makes a cold start slower.
        let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let config = Arc::new(config.clone());
        let builder = || {
            Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .redirect(reqwest::redirect::Policy::none())
                // A proxy would resolve names itself, without the check of their addresses.
                .no_proxy()
                .connect_timeout(config.timeout)
                .user_agent(concat!("operator-service/", env!("CARGO_PKG_VERSION")))
        };
        let account = Account::of_process();
        let origins = Origins::new(builder(), config.clone(), account.clone())?;
        Ok(Self { origins, s3: builder().build()?, account, config })
    }

    /// Opens a file. The response has begun and is a success, or the 416 of a range that the file does not have.
    pub async fn open(&self, url: &str, range: Option<&HeaderValue>) -> Result<Response, StorageError> {
        let opened = async {
            match self.object(url) {
                Some(object) => self.read(&object, range).await,
                None => self.origins.open(url, range).await,
            }
        };
        tokio::time::timeout(self.config.timeout, opened).await.unwrap_or(Err(StorageError::TimedOut))
    }

    /// Makes a URL with which anybody can fetch a file from S3 for five minutes; S3 sends `disposition` as its
    /// `Content-Disposition`. `None` if the file is not in one of OUTPUT_BUCKETS. Makes no request.
    pub async fn presigned(&self, url: &str, disposition: &str) -> Result<Option<String>, StorageError> {
        match self.object(url) {
            Some(object) => Ok(Some(self.presign("GET", &object, Some(disposition)).await?)),
            None => Ok(None),
        }
    }

    /// Deletes a file that is in one of OUTPUT_BUCKETS; returns false for any other. A file that does not exist counts
    /// as deleted.
    pub async fn delete(&self, url: &str) -> Result<bool, StorageError> {
        let Some(object) = self.object(url) else { return Ok(false) };
        let deleted = async {
            let url = self.presign("DELETE", &object, None).await?;
            let response = self.s3.delete(url).send().await.map_err(unreachable)?;
            match response.status() {
                status if status.is_success() || status == StatusCode::NOT_FOUND => Ok(true),
                status => Err(StorageError::Status(status)),
            }
        };
        tokio::time::timeout(self.config.timeout, deleted).await.unwrap_or(Err(StorageError::TimedOut))
    }

    /// The content of a response, as it arrives. Only the time in which the content is polled counts as the origin's
    /// idle time: `reqwest`'s own limit would include the time for which a slow caller reads nothing.
    pub fn content(&self, response: Response) -> impl Stream<Item = Result<Bytes, ContentError>> + Send + use<> {
        let limit = self.config.idle_timeout;
        stream::try_unfold(response, move |mut response| async move {
            match tokio::time::timeout(limit, response.chunk()).await {
                Ok(Ok(chunk)) => Ok(chunk.map(|chunk| (chunk, response))),
                Ok(Err(error)) => Err(ContentError::Interrupted(error.without_url())),
                Err(_) => Err(ContentError::Idle),
            }
        })
    }

    fn object(&self, url: &str) -> Option<Object> {
        let StorageConfig { output_buckets, s3_endpoint, .. } = &*self.config;
        Object::of_url(url, output_buckets, s3_endpoint.as_ref())
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
        if is_file(status) { Ok(response) } else { Err(StorageError::Status(status)) }
    }

    async fn presign(&self, method: &str, object: &Object, disposition: Option<&str>) -> Result<String, StorageError> {
        let (region, credentials) = (self.account.region().await?, self.account.credentials().await?);
        let endpoint = self.config.s3_endpoint.as_ref();
        let request =
            ObjectRequest { method, endpoint, default_region: region, disposition, valid_for: PRESIGNED_VALIDITY };
        Ok(object.presigned(request, &credentials, SystemTime::now())?)
    }
}

/// Returns whether a response with this status is about the file: its content, or the range that it does not have.
fn is_file(status: StatusCode) -> bool {
    status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE
}

fn unreachable(error: reqwest::Error) -> StorageError {
    if error.is_timeout() { StorageError::TimedOut } else { StorageError::Unreachable(error.without_url()) }
}
