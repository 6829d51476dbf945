//! S3: the objects that stored URLs name, and presigned URLs for them.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use percent_encoding::{AsciiSet, percent_decode_str, utf8_percent_encode};
use url::Url;

use super::sign::{ENCODED, Service, Unsigned, presign};
use super::{AwsError, domain};

/// The characters that are encoded in a key: as [`ENCODED`], without the slash.
const ENCODED_IN_KEY: &AsciiSet = &ENCODED.remove(b'/');

/// An object in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// The bucket's name.
    pub bucket: String,
    /// The bucket's region, if the URL names it.
    pub region: Option<String>,
    /// The object's key, decoded.
    pub key: String,
}

/// The request that a presigned URL makes.
#[derive(Debug, Clone, Copy)]
pub struct ObjectRequest<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The URL of S3, if it is not AWS's own.
    pub endpoint: Option<&'a Url>,
    /// The region to use for a bucket whose URL names none.
    pub default_region: &'a str,
    /// The `Content-Disposition` that S3 sends.
    pub disposition: Option<&'a str>,
    /// How long the URL is valid.
    pub valid_for: Duration,
}

impl Object {
    /// The object that a URL of any of S3's forms names
    /// (<https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html>), if it is in one of these buckets.
    /// `endpoint` is S3's URL if it is not AWS's own.
    pub fn of_url(url: &str, buckets: &[String], endpoint: Option<&Url>) -> Option<Self> {
        let url = Url::parse(url).ok()?;
        let path = url.path();
        let path = path.strip_prefix('/').unwrap_or(path);
        let (bucket, region, key) = if url.scheme() == "s3" {
            (url.host_str()?.to_owned(), None, path)
        } else if endpoint.is_some_and(|endpoint| endpoint.origin() == url.origin()) {
            let (bucket, key) = path.split_once('/')?;
            (bucket.to_owned(), None, key)
        } else if matches!(url.scheme(), "http" | "https") && url.port().is_none() {
            let (bucket, region) = bucket_and_region(url.host_str()?)?;
            match bucket {
                Some(bucket) => (bucket, region, path),
                None => {
                    let (bucket, key) = path.split_once('/')?;
                    (bucket.to_owned(), region, key)
                }
            }
        } else {
            return None;
        };
        if key.is_empty() || !buckets.contains(&bucket) {
            return None;
        }
        let key = percent_decode_str(key).decode_utf8().ok()?.into_owned();
        // No URL of S3 names such a key: an HTTP client resolves the dots, and sends another path than was signed.
        if key.split('/').any(|segment| matches!(segment, "." | "..")) {
            return None;
        }
        Some(Self { bucket, region, key })
    }

    /// Makes a URL with which anybody can make a request for the object, signed with these credentials at this time.
    pub fn presigned(
        &self,
        request: ObjectRequest<'_>,
        credentials: &Credentials,
        at: SystemTime,
    ) -> Result<String, AwsError> {
        let ObjectRequest { method, endpoint, default_region, disposition, valid_for } = request;
        let Self { bucket, region, key } = self;
        let region = region.as_deref().unwrap_or(default_region);
        let key = utf8_percent_encode(key, ENCODED_IN_KEY);
        let mut url = match endpoint {
            Some(endpoint) => format!("{}/{bucket}/{key}", endpoint.as_str().trim_end_matches('/')),
            // A bucket with dots cannot be part of the host name: a certificate's wildcard matches one label.
            None if bucket.contains('.') => format!("https://s3.{region}.{}/{bucket}/{key}", domain(region)),
            None => format!("https://{bucket}.s3.{region}.{}/{key}", domain(region)),
        };
        if let Some(disposition) = disposition {
            url.push_str("?response-content-disposition=");
            url.extend(utf8_percent_encode(disposition, ENCODED));
        }
        let service = Service::S3;
        presign(Unsigned { method, url: &url, headers: &[], service, region, expires: valid_for }, credentials, at)
    }
}

/// Parses one of S3's host names: the bucket, if it is part of the name, and the region.
fn bucket_and_region(host: &str) -> Option<(Option<String>, Option<String>)> {
    let host = host.to_ascii_lowercase();
    let service =
        [".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu"].iter().find_map(|end| host.strip_suffix(end))?;
    // From the right: [bucket.]s3[.dualstack][.region] or [bucket.]s3-region. A bucket's name may contain dots, and
    // labels such as s3.
    let labels: Vec<&str> = service.split('.').collect();
    let (begin, region) = match labels.as_slice() {
        [.., "s3"] => (labels.len() - 1, None),
        [.., last] if last.starts_with("s3-") => (labels.len() - 1, last.strip_prefix("s3-")),
        [.., "s3", "dualstack", region] => (labels.len() - 3, Some(*region)),
        [.., "s3", region] => (labels.len() - 2, Some(*region)),
        _ => return None,
    };
    if !region.is_none_or(is_region) {
        return None;
    }
    let bucket = labels[..begin].join(".");
    Some((Some(bucket).filter(|bucket| !bucket.is_empty()), region.map(str::to_owned)))
}

/// Returns whether a label looks like `eu-west-1`, and not like another of S3's endpoints, such as `website-eu-west-1`.
fn is_region(label: &str) -> bool {
    let partition = label.split('-').next().unwrap_or_default();
    matches!(partition.len(), 2 | 4) && label.ends_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::super::vectors;
    use super::*;

    #[test]
    fn signatures_are_those_of_botocore() {
        for vector in vectors::all("s3_urls") {
            let theirs = vectors::text(&vector, "url");
            let unsigned = theirs.split("&X-Amz-").next().unwrap();
            let region = vectors::text(&vector, "region");
            let expires = Duration::from_secs(300);
            let request =
                Unsigned { method: "GET", url: unsigned, headers: &[], service: Service::S3, region, expires };
            let ours = presign(request, &vectors::credentials(&vector), vectors::clock(&vector)).unwrap();
            assert_eq!(vectors::split_url(&ours), vectors::split_url(theirs));
        }
    }

    #[test]
    fn urls_are_those_of_botocore() {
        for vector in vectors::all("s3_urls") {
            let text = |name| vectors::text(&vector, name);
            if text("region") == "us-east-1" {
                // botocore leaves this region out of the host name.
                continue;
            }
            let object = Object { bucket: text("bucket").to_owned(), region: None, key: text("key").to_owned() };
            let request = ObjectRequest {
                method: "GET",
                endpoint: None,
                default_region: text("region"),
                disposition: Some("attachment;filename=\"a b.txt\""),
                valid_for: Duration::from_secs(300),
            };
            let ours = object.presigned(request, &vectors::credentials(&vector), vectors::clock(&vector)).unwrap();
            assert_eq!(vectors::split_url(&ours), vectors::split_url(text("url")));
        }
    }

    #[test]
    fn urls_of_every_form_name_objects() {
        let buckets = ["outputs".to_owned(), "outputs.s3.example.org".to_owned(), "s3".to_owned()];
        let endpoint = Url::parse("http://127.0.0.1:5000").unwrap();
        let found = |url: &str| Object::of_url(url, &buckets, Some(&endpoint)).map(|it| (it.bucket, it.region, it.key));
        let some = |bucket: &str, region: Option<&str>, key: &str| {
            Some((bucket.to_owned(), region.map(str::to_owned), key.to_owned()))
        };
        let west = Some("eu-west-1");
        for (url, object) in [
            ("https://outputs.s3.amazonaws.com/a/b.txt", some("outputs", None, "a/b.txt")),
            ("http://outputs.s3.amazonaws.com/a/b.txt", some("outputs", None, "a/b.txt")),
            ("https://outputs.s3.eu-west-1.amazonaws.com/a%20b%2Bc", some("outputs", west, "a b+c")),
            ("https://outputs.s3-eu-west-1.amazonaws.com/a+b", some("outputs", west, "a+b")),
            ("https://outputs.s3.dualstack.eu-west-1.amazonaws.com/a", some("outputs", west, "a")),
            ("https://s3.eu-west-1.amazonaws.com/outputs/a/b", some("outputs", west, "a/b")),
            ("https://s3.amazonaws.com/outputs/a", some("outputs", None, "a")),
            ("https://outputs.s3.cn-north-1.amazonaws.com.cn/a", some("outputs", Some("cn-north-1"), "a")),
            ("https://outputs.s3.example.org.s3.eu-west-1.amazonaws.com/a", some("outputs.s3.example.org", west, "a")),
            ("https://s3.eu-west-1.amazonaws.com/outputs.s3.example.org/a", some("outputs.s3.example.org", west, "a")),
            ("s3://outputs/a/b", some("outputs", None, "a/b")),
            ("http://127.0.0.1:5000/outputs/a/b", some("outputs", None, "a/b")),
            ("https://s3.eu-west-1.amazonaws.com/outputs/a/%2e%2e%2fb..", None),
            ("https://outputs.s3.amazonaws.com/a%2f.", None),
            ("https://outputs.s3.amazonaws.com/a%2f..b", some("outputs", None, "a/..b")),
            ("https://others.s3.amazonaws.com/a", None),
            ("https://outputs.s3.amazonaws.com/", None),
            ("https://outputs.s3.amazonaws.com.evil.net/a", None),
            ("https://outputs.s3.amazonaws.com:444/a", None),
            ("https://outputs.ec2.eu-west-1.amazonaws.com/a", None),
            ("http://outputs.s3-website-eu-west-1.amazonaws.com/a", None),
            ("http://outputs.s3-website.eu-west-1.amazonaws.com/a", None),
            ("https://outputs.s3-accelerate.amazonaws.com/a", None),
            ("https://example.org/outputs/a", None),
            ("http://127.0.0.1:5001/outputs/a", None),
            ("file:///outputs/a", None),
            ("outputs/a", None),
        ] {
            assert_eq!(found(url), object, "{url}");
        }
    }
}
