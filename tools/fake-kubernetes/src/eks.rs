//! Authentication as an EKS cluster does it: the rules of aws-iam-authenticator
//! (<https://github.com/kubernetes-sigs/aws-iam-authenticator/blob/master/pkg/token/token.go>), then STS, then the
//! access entries.
//!
//! The signature, and with it the cluster that a token is for, is not checked: only STS can do that, and its stand-ins
//! do not.

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::jiff::civil::DateTime;
use k8s_openapi::jiff::tz::TimeZone;
use reqwest::Url;

use crate::server::{Authenticate, Authentication, User};

/// The prefix of a token.
const PREFIX: &str = "k8s-aws-v1.";
/// The most bytes of a token.
const MAX_TOKEN: usize = 4096;
/// The header that names the cluster.
const CLUSTER_HEADER: &str = "x-k8s-aws-id";
/// The longest age of a signature, whatever validity it claims.
const MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// The parameters that a URL may have, each once.
const PARAMETERS: [&str; 9] = [
    "action",
    "version",
    "x-amz-algorithm",
    "x-amz-credential",
    "x-amz-date",
    "x-amz-expires",
    "x-amz-security-token",
    "x-amz-signature",
    "x-amz-signedheaders",
];

/// Accepts tokens that STS accepts, of callers that an access entry names.
#[derive(Clone, Debug)]
pub struct Authenticator {
    /// The cluster's name.
    pub cluster: String,
    /// The URL of STS: a stand-in such as moto.
    pub sts: Url,
    /// The access entries: ARNs of roles and users, and their user names in the cluster.
    pub entries: Vec<(String, String)>,
    /// The client for STS.
    pub client: reqwest::Client,
}

impl Authenticate for Authenticator {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a> {
        Box::pin(async move {
            let url = check(token.ok_or("no token")?, SystemTime::now())?;
            let arn = self.caller(&url).await?;
            let known = self.entries.iter().find(|(entry, _)| *entry == arn);
            let (_, name) = known.ok_or_else(|| format!("no access entry names {arn}"))?;
            Ok(User { name: name.clone() })
        })
    }
}

impl Authenticator {
    /// Asks STS for the ARN of the caller; of a session, the ARN of its role.
    async fn caller(&self, url: &Url) -> Result<String, String> {
        let mut ask = self.sts.clone();
        ask.set_query(url.query());
        let credential = parameter(url, "x-amz-credential").unwrap_or_default();
        let request = self
            .client
            .get(ask)
            .header(CLUSTER_HEADER, &self.cluster)
            // moto reads the caller from here; STS itself reads the query.
            .header(
                "authorization",
                format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"),
            );
        let response = request.send().await.map_err(|error| error.to_string())?;
        if !response.status().is_success() {
            return Err(format!("STS answered with {}", response.status()));
        }
        let text = response.text().await.map_err(|error| error.to_string())?;
        let arn = text.split_once("<Arn>").and_then(|(_, rest)| rest.split_once("</Arn>"));
        let (arn, _) = arn.ok_or_else(|| format!("STS returned no ARN: {text}"))?;
        Ok(of_role(arn))
    }
}

/// The ARN of a session's role. A session's ARN has another service, and the session's name at its end.
fn of_role(arn: &str) -> String {
    let Some((before, session)) = arn.split_once(":assumed-role/") else {
        return arn.to_owned();
    };
    let role = session.split('/').next().unwrap_or_default();
    format!("{}:role/{role}", before.replacen(":sts:", ":iam:", 1))
}

fn parameter(url: &Url, name: &str) -> Option<String> {
    url.query_pairs().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.into_owned())
}

/// Checks a token by the verifier's rules. Returns the URL in it, or the rule that it violates.
fn check(token: &str, now: SystemTime) -> Result<Url, String> {
    if token.len() > MAX_TOKEN {
        return Err("the token is too long".to_owned());
    }
    let encoded = token.strip_prefix(PREFIX).ok_or("the token has the wrong prefix")?;
    let url = URL_SAFE_NO_PAD.decode(encoded).map_err(|error| error.to_string())?;
    let url = String::from_utf8(url).map_err(|error| error.to_string())?;
    let url = Url::parse(&url).map_err(|error| error.to_string())?;
    if url.scheme() != "https" {
        return Err("the scheme is not https".to_owned());
    }
    let host = url.host_str().unwrap_or_default();
    if !is_sts(host) || url.port().is_some() {
        return Err(format!("{host} is not a host of STS"));
    }
    if url.path() != "/" {
        return Err("the path is not /".to_owned());
    }
    let mut seen = HashSet::new();
    for (name, _) in url.query_pairs() {
        let name = name.to_ascii_lowercase();
        if !PARAMETERS.contains(&name.as_str()) {
            return Err(format!("the parameter {name} is not allowed"));
        }
        if !seen.insert(name.clone()) {
            return Err(format!("the parameter {name} is repeated"));
        }
    }
    let of = |name: &str| parameter(&url, name).ok_or_else(|| format!("the parameter {name} is missing"));
    if of("action")? != "GetCallerIdentity" {
        return Err("the action is not GetCallerIdentity".to_owned());
    }
    if !of("x-amz-signedheaders")?.split(';').any(|name| name.eq_ignore_ascii_case(CLUSTER_HEADER)) {
        return Err(format!("{CLUSTER_HEADER} is not signed"));
    }
    let expires: i64 = of("x-amz-expires")?.parse().map_err(|_| "x-amz-expires is not a number")?;
    if !(0..=900).contains(&expires) {
        return Err("x-amz-expires is not between 0 and 900".to_owned());
    }
    let date = DateTime::strptime("%Y%m%dT%H%M%SZ", of("x-amz-date")?).map_err(|error| error.to_string())?;
    let date: SystemTime = TimeZone::UTC.to_timestamp(date).map_err(|error| error.to_string())?.into();
    if now.duration_since(date).is_ok_and(|age| age > MAX_AGE) {
        return Err("the token is more than 15 minutes old".to_owned());
    }
    Ok(url)
}

/// Whether a host is STS's: the global one or a region's.
fn is_sts(host: &str) -> bool {
    let Some(rest) = host.strip_prefix("sts.") else {
        return false;
    };
    if rest == "amazonaws.com" {
        return true;
    }
    let china = rest.strip_suffix(".amazonaws.com.cn").map(|region| (region, true));
    let region = china.or_else(|| rest.strip_suffix(".amazonaws.com").map(|region| (region, false)));
    region.is_some_and(|(region, china)| !region.contains('.') && region.starts_with("cn-") == china)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATE: u64 = 1_795_308_254;

    fn url() -> String {
        "https://sts.eu-west-1.amazonaws.com/?Action=GetCallerIdentity&Version=2011-06-15\
         &X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20261122%2Feu-west-1%2Fsts%2Faws4_request\
         &X-Amz-Date=20261122T004414Z&X-Amz-Expires=60&X-Amz-SignedHeaders=host%3Bx-k8s-aws-id&X-Amz-Signature=00"
            .to_owned()
    }

    fn verdict(url: &str, age: u64) -> Result<(), String> {
        let token = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(url));
        check(&token, SystemTime::UNIX_EPOCH + Duration::from_secs(DATE + age)).map(drop)
    }

    #[test]
    fn a_valid_token_is_accepted() {
        assert_eq!(verdict(&url(), 0), Ok(()));
        assert_eq!(verdict(&url(), 900), Ok(()));
        let china = url().replace("eu-west-1.amazonaws.com", "cn-north-1.amazonaws.com.cn");
        assert_eq!(verdict(&china, 0), Ok(()));
        assert_eq!(verdict(&url().replace("sts.eu-west-1.", "sts."), 0), Ok(()));
    }

    #[test]
    fn a_token_that_violates_a_rule_is_refused() {
        for (from, to) in [
            ("https://", "http://"),
            ("sts.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com.evil.net"),
            ("sts.eu-west-1.amazonaws.com", "sts.cn-north-1.amazonaws.com"),
            ("sts.eu-west-1.amazonaws.com", "sts.eu-west-1.amazonaws.com:444"),
            (".com/?", ".com/x?"),
            ("GetCallerIdentity", "AssumeRole"),
            ("&Version=", "&x-id=GetCallerIdentity&Version="),
            ("&Version=", "&version=1&Version="),
            ("%3Bx-k8s-aws-id", ""),
            ("Expires=60", "Expires=901"),
            ("Expires=60", "Expires=-1"),
            ("Expires=60", "Expires=x"),
            ("&X-Amz-Date=20261122T004414Z", ""),
            ("20261122T004414Z", "now"),
        ] {
            assert!(url().contains(from), "{from}");
            assert!(verdict(&url().replacen(from, to, 1), 0).is_err(), "{from} → {to}");
        }
        assert!(verdict(&url(), 901).is_err());
        assert!(verdict(&format!("{}&x={}", url(), "0".repeat(4096)), 0).is_err());
        assert!(check(&URL_SAFE_NO_PAD.encode(url()), SystemTime::now()).is_err());
    }
}
