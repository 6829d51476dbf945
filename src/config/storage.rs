//! Where outputs may be fetched from, and how.

use std::str::FromStr;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::aws;
use super::variables::{Reader, Section, Unset, Variable};

const RESULT_HOSTS_ALLOWED: Variable<Unset> = Variable {
    name: "RESULT_HOSTS_ALLOWED",
    default: Unset("none"),
    description: "A list of hosts (`name` or `name:port`) that results are fetched from although their addresses are \
        loopback, link-local or private.",
};
const X_API_KEY_WITH_DASHES: Variable<Unset> = Variable {
    name: "X-API-KEY",
    default: Unset("`X_API_KEY`"),
    description: "Sent as header `X-API-KEY` to result origins (IPFS authentication).",
};
const X_API_KEY: Variable<Unset> = Variable {
    name: "X_API_KEY",
    default: Unset("none"),
    description: "As `X-API-KEY`, where a variable's name cannot have dashes.",
};
const CLIENT_ID_WITH_DASH: Variable<Unset> = Variable {
    name: "CLIENT-ID",
    default: Unset("`CLIENT_ID`"),
    description: "Sent as header `CLIENT-ID` to result origins (IPFS authentication).",
};
const CLIENT_ID: Variable<Unset> = Variable {
    name: "CLIENT_ID",
    default: Unset("none"),
    description: "As `CLIENT-ID`, where a variable's name cannot have dashes.",
};
const RESULT_SECRET_ARN: Variable<Unset> = Variable {
    name: "RESULT_SECRET_ARN",
    default: Unset("none"),
    description: "Instead of `X_API_KEY` and `CLIENT_ID`: the ARN or name of a secret in AWS Secrets Manager, a JSON object \
        that holds `X-API-KEY`, `CLIENT-ID` or both. It is read when an origin needs it, and again after five minutes.",
};
const RESULT_API_KEY_HOSTS: Variable<Unset> = Variable {
    name: "RESULT_API_KEY_HOSTS",
    default: Unset("`RESULT_HOSTS_ALLOWED`"),
    description: "A list of the only hosts that these two headers are sent to.",
};
const RESULT_TIMEOUT: Variable<u64> = Variable {
    name: "RESULT_TIMEOUT",
    default: 8,
    description: "Seconds within which an origin's response has to begin. Provider waits 10.",
};
const RESULT_IDLE_TIMEOUT: Variable<u64> = Variable {
    name: "RESULT_IDLE_TIMEOUT",
    default: 60,
    description: "Seconds that an origin may pause within its response.",
};
const OUTPUT_BUCKETS: Variable<Unset> = Variable {
    name: "OUTPUT_BUCKETS",
    default: Unset("none"),
    description: "A list of S3 buckets whose objects are read with the process's own AWS credentials, because the \
        engine stores their URLs unsigned.",
};
const RESULT_STREAM_LIMIT: Variable<Unset> = Variable {
    name: "RESULT_STREAM_LIMIT",
    default: Unset("none; 200000000 in a Lambda function"),
    description: "The maximum bytes of a result in one response; 0: no limit. A larger object of `OUTPUT_BUCKETS` is \
        answered with a 302 to a URL that is valid for five minutes, any other file with a 413: it can be fetched in \
        parts, by `Range`.",
};

pub(super) const SECTION: Section = Section {
    title: "Results",
    variables: &[
        &RESULT_HOSTS_ALLOWED,
        &X_API_KEY_WITH_DASHES,
        &X_API_KEY,
        &CLIENT_ID_WITH_DASH,
        &CLIENT_ID,
        &RESULT_SECRET_ARN,
        &RESULT_API_KEY_HOSTS,
        &RESULT_TIMEOUT,
        &RESULT_IDLE_TIMEOUT,
        &OUTPUT_BUCKETS,
        &RESULT_STREAM_LIMIT,
    ],
};

/// The maximum number of bytes that a Lambda function can stream in one response
/// (<https://docs.aws.amazon.com/lambda/latest/dg/configuration-response-streaming.html>).
const LAMBDA_STREAM_LIMIT: u64 = 200_000_000;

/// Where outputs may be fetched from, and how.
#[derive(Debug, Clone)]
pub struct StorageConfig {
    /// Hosts that are fetched from although their addresses are not public (RESULT_HOSTS_ALLOWED).
    pub hosts_allowed: Vec<HostPattern>,
    /// Hosts that the API key and client id are sent to (RESULT_API_KEY_HOSTS, else RESULT_HOSTS_ALLOWED).
    pub api_key_hosts: Vec<HostPattern>,
    /// What the hosts of `api_key_hosts` are sent.
    pub api_keys: ApiKeys,
    /// How long an origin may take until its response begins (RESULT_TIMEOUT).
    pub timeout: Duration,
    /// How long an origin may pause within its response (RESULT_IDLE_TIMEOUT).
    pub idle_timeout: Duration,
    /// Buckets whose objects are read with the process's own AWS credentials (OUTPUT_BUCKETS).
    pub output_buckets: Vec<String>,
    /// Where S3 is; `None` for AWS's own (AWS_ENDPOINT_URL_S3, else AWS_ENDPOINT_URL).
    pub s3_endpoint: Option<Url>,
    /// The maximum bytes of a result in one response; `None` for no limit (RESULT_STREAM_LIMIT).
    pub stream_limit: Option<u64>,
}

/// The values of two headers that some origins need.
#[derive(Debug, Clone)]
pub enum ApiKeys {
    /// The values themselves.
    Given {
        /// X-API-KEY or X_API_KEY
        api_key: Option<SecretString>,
        /// CLIENT-ID or CLIENT_ID
        client_id: Option<SecretString>,
    },
    /// The ARN or name of a secret that holds them (RESULT_SECRET_ARN).
    Secret(String),
}

impl ApiKeys {
    fn read(reader: &mut Reader<'_>) -> Self {
        // A Lambda function's environment variables cannot hold a dash.
        let api_key = reader.header_secret([&X_API_KEY_WITH_DASHES, &X_API_KEY]);
        let client_id = reader.header_secret([&CLIENT_ID_WITH_DASH, &CLIENT_ID]);
        match reader.text(&RESULT_SECRET_ARN) {
            Some(_) if api_key.is_some() || client_id.is_some() => {
                reader.must_be(
                    "X_API_KEY, CLIENT_ID and RESULT_SECRET_ARN",
                    "alternatives: set the secret or the others",
                );
                Self::Given { api_key, client_id }
            }
            Some(secret) => Self::Secret(secret),
            None => Self::Given { api_key, client_id },
        }
    }

    /// Returns whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Given { api_key: None, client_id: None })
    }
}

impl StorageConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        const EXPECTED: &str = "a JSON list of host names, each with or without a port";
        let hosts_allowed: Vec<HostPattern> = reader.parsed_list(&RESULT_HOSTS_ALLOWED, EXPECTED).unwrap_or_default();
        let api_key_hosts = reader.parsed_list(&RESULT_API_KEY_HOSTS, EXPECTED);
        let stream_limit = match reader.optional(&RESULT_STREAM_LIMIT, "a whole number of bytes; 0 for no limit") {
            Some(0) => None,
            None if aws::is_lambda(reader) => Some(LAMBDA_STREAM_LIMIT),
            limit => limit,
        };
        Self {
            api_key_hosts: api_key_hosts.unwrap_or_else(|| hosts_allowed.clone()),
            hosts_allowed,
            api_keys: ApiKeys::read(reader),
            timeout: Duration::from_secs(reader.seconds(&RESULT_TIMEOUT)),
            idle_timeout: Duration::from_secs(reader.seconds(&RESULT_IDLE_TIMEOUT)),
            output_buckets: reader.list(&OUTPUT_BUCKETS).unwrap_or_default(),
            s3_endpoint: aws::s3_endpoint(reader),
            stream_limit,
        }
    }
}

/// A host by name or address, with or without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: String,
    port: Option<u16>,
}

impl HostPattern {
    /// Returns whether the URL is on this host, and on this port if the pattern has one.
    pub fn matches(&self, url: &Url) -> bool {
        self.names_host_of(url) && self.port.is_none_or(|port| url.port_or_known_default() == Some(port))
    }

    /// Returns whether the URL is on this host, on any port.
    pub fn names_host_of(&self, url: &Url) -> bool {
        url.host_str().is_some_and(|host| self.is_host(host))
    }

    /// Returns whether a name or address is this host's.
    pub fn is_host(&self, host: &str) -> bool {
        host.trim_matches(['[', ']']).eq_ignore_ascii_case(&self.host)
    }
}

impl FromStr for HostPattern {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        // The URL parser knows how hosts and ports are written, IPv6 addresses included.
        let bare_ipv6 = text.parse::<std::net::Ipv6Addr>().is_ok();
        let authority = if bare_ipv6 { format!("[{text}]") } else { text.to_owned() };
        let url = Url::parse(&format!("results://{authority}")).map_err(|_| ())?;
        let plain = url.path().is_empty() && url.query().is_none() && url.username().is_empty();
        let host = url.host_str().filter(|host| plain && !host.is_empty()).ok_or(())?;
        Ok(Self { host: host.trim_matches(['[', ']']).to_ascii_lowercase(), port: url.port() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_match_with_and_without_a_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        let pattern = |text: &str| text.parse::<HostPattern>().unwrap();
        assert!(pattern("Example.org").matches(&url("https://example.org/a")));
        assert!(pattern("example.org:443").matches(&url("https://example.org/a")));
        assert!(!pattern("example.org:8080").matches(&url("https://example.org/a")));
        assert!(!pattern("example.org").matches(&url("https://example.org.evil.net/a")));
        assert!(pattern("::1").matches(&url("http://[::1]:9/")));
        assert!(pattern("[::1]:9").matches(&url("http://[::1]:9/")));
        for bad in ["", "http://x", "a/b", "user@host"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }
}
