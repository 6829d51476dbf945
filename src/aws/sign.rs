//! Presigns URLs: the signature is in the query
//! (<https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html>).

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SignatureLocation, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::{AwsError, Cause};

/// The characters that are encoded: all but the unreserved ones (RFC 3986).
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The AWS service that a URL is signed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Sts,
    RdsDb,
    S3,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::RdsDb => "rds-db",
            Self::S3 => "s3",
        }
    }
}

/// A request without a body, to be signed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unsigned<'a> {
    /// `GET`, `DELETE`, …
    pub(super) method: &'a str,
    /// The URL as it is sent: encoded, without a fragment.
    pub(super) url: &'a str,
    /// The headers that have to be sent with the request.
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) service: Service,
    pub(super) region: &'a str,
    pub(super) expires: Duration,
}

/// Returns the URL with a signature by these credentials at this time in its query.
pub(super) fn presign(request: Unsigned<'_>, credentials: &Credentials, at: SystemTime) -> Result<String, AwsError> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(request.expires);
    let mut body = SignableBody::Bytes(&[]);
    if request.service == Service::S3 {
        // S3 does not normalize keys, and the user of a presigned URL cannot hash a body in advance.
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        body = SignableBody::UnsignedPayload;
    }
    let identity = credentials.clone().into();
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(request.region)
        .name(request.service.name())
        .time(at)
        .settings(settings)
        .build()
        .map_err(|error| AwsError::Signing(Cause::of(error)))?;
    let headers = request.headers.iter().copied();
    let signable = SignableRequest::new(request.method, request.url, headers, body)
        .map_err(|error| AwsError::Signing(Cause::of(error)))?;
    let signed = sign(signable, &params.into()).map_err(|error| AwsError::Signing(Cause::of(error)))?;

    let (instructions, _) = signed.into_parts();
    let mut url = request.url.to_owned();
    for (name, value) in instructions.params() {
        url.push(if url.contains('?') { '&' } else { '?' });
        url.push_str(name);
        url.push('=');
        url.extend(utf8_percent_encode(value, ENCODED));
    }
    Ok(url)
}
