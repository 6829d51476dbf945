//! EKS: bearer tokens for its clusters, and their endpoints.
//!
//! A token is a presigned `GetCallerIdentity` request: the cluster sends it to STS, which answers with the signer
//! (<https://github.com/kubernetes-sigs/aws-iam-authenticator#api-authorization-from-outside-a-cluster>).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sdk_eks::primitives::{DateTime, DateTimeFormat};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::sign::{Service, Unsigned, presign};
use super::{Account, AwsError, Cause, domain};
use crate::cache::{Cached, Versioned};
use crate::config::EksEndpoint;

/// The prefix of a token.
const TOKEN_PREFIX: &str = "k8s-aws-v1.";
/// The header that names the cluster. It is signed, so that a token is valid for one cluster only.
const CLUSTER_HEADER: &str = "x-k8s-aws-id";
/// The expiry in the URL, as in those of `aws eks get-token`. The cluster ignores it: it accepts signatures of the last
/// 15 minutes.
const URL_EXPIRY: Duration = Duration::from_secs(60);
/// The lifetime that `aws eks get-token` prints.
const PRINTED_LIFETIME: Duration = Duration::from_secs(14 * 60);
/// How long a token is used here: five minutes less than the cluster accepts it, for clocks that differ.
const TOKEN_MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Makes a token for a cluster, signed at this time.
pub fn token(cluster: &str, region: &str, credentials: &Credentials, at: SystemTime) -> Result<SecretString, AwsError> {
    let url = format!("https://sts.{region}.{}/?Action=GetCallerIdentity&Version=2011-06-15", domain(region));
    let headers = [(CLUSTER_HEADER, cluster)];
    let request =
        Unsigned { method: "GET", url: &url, headers: &headers, service: Service::Sts, region, expires: URL_EXPIRY };
    let url = presign(request, credentials, at)?;
    Ok(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(url)).into())
}

/// Tokens for one cluster. A token is used for ten minutes by the wall clock; after that, or when the cluster refuses
/// it, another is made. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TokenSource {
    shared: Arc<Shared>,
}

struct Shared {
    cluster: String,
    account: Account,
    role_arn: Option<String>,
    /// The account in the role, after first use.
    in_role: OnceCell<Account>,
    tokens: Cached<SecretString, AwsError>,
    clock: fn() -> SystemTime,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenSource").field("cluster", &self.cluster).field("role_arn", &self.role_arn).finish()
    }
}

/// A token from a [`TokenSource`].
#[derive(Debug, Clone)]
pub struct Token(Versioned<SecretString>);

impl Token {
    /// The token's text, to follow `Bearer`.
    pub fn secret(&self) -> &SecretString {
        &self.0.value
    }
}

impl TokenSource {
    /// Tokens of the account, or of the role if one is named. Reads nothing yet.
    pub fn new(account: Account, cluster: &str, role_arn: Option<&str>) -> Self {
        Self::with_clock(account, cluster, role_arn, SystemTime::now)
    }

    fn with_clock(account: Account, cluster: &str, role_arn: Option<&str>, clock: fn() -> SystemTime) -> Self {
        Self {
            shared: Arc::new(Shared {
                cluster: cluster.to_owned(),
                account,
                role_arn: role_arn.map(str::to_owned),
                in_role: OnceCell::new(),
                tokens: Cached::default(),
                clock,
            }),
        }
    }

    /// A token that the cluster accepts for at least five more minutes.
    pub async fn token(&self) -> Result<Token, AwsError> {
        self.get(None).await
    }

    /// A token to use in place of one that the cluster refused.
    pub async fn replace(&self, refused: &Token) -> Result<Token, AwsError> {
        self.get(Some(refused.0.version)).await
    }

    async fn get(&self, refused: Option<u64>) -> Result<Token, AwsError> {
        let Shared { cluster, tokens, clock, .. } = &*self.shared;
        let now = clock();
        let cached = tokens.get(now, refused, async || {
            let account = self.account().await;
            let credentials = account.credentials().await?;
            let token = token(cluster, account.region().await?, &credentials, now)?;
            // A token expires with the session that signed it.
            let until = credentials.expiry().map_or(now + TOKEN_MAX_AGE, |end| end.min(now + TOKEN_MAX_AGE));
            Ok((token, until))
        });
        Ok(Token(cached.await?))
    }

    async fn account(&self) -> &Account {
        let Shared { account, role_arn, in_role, .. } = &*self.shared;
        match role_arn {
            None => account,
            Some(role_arn) => in_role.get_or_init(|| account.in_role(role_arn, "operator-service")).await,
        }
    }
}

/// Asks EKS for a cluster's endpoint.
pub async fn describe(account: &Account, cluster: &str) -> Result<EksEndpoint, AwsError> {
    let failed = |cause: Cause| AwsError::Cluster(cluster.to_owned(), cause);
    let client = aws_sdk_eks::Client::new(account.sdk().await);
    let response = client.describe_cluster().name(cluster).send().await;
    let response = response.map_err(|error| failed(Cause::of(aws_sdk_eks::Error::from(error))))?;
    let described = response.cluster();
    let url = described.and_then(|described| described.endpoint());
    let url = url.ok_or_else(|| failed(Cause::of("the cluster has no endpoint yet")))?.to_owned();
    let authority = match described.and_then(|described| described.certificate_authority()?.data()) {
        Some(data) => EksEndpoint::parse_authority(data)
            .ok_or_else(|| failed(Cause::of("its certificate authority is not a PEM file")))?,
        None if url.starts_with("https:") => {
            return Err(failed(Cause::of("the cluster has no certificate authority yet")));
        }
        None => Vec::new(),
    };
    Ok(EksEndpoint { url, authority })
}

/// Makes the JSON that `aws eks get-token` prints, for the `exec` section of a kubeconfig. `exec_info` is
/// KUBERNETES_EXEC_INFO, with the API version that kubectl supports.
pub async fn exec_credential(
    account: &Account,
    cluster: &str,
    role_arn: Option<&str>,
    exec_info: Option<&str>,
) -> Result<Value, AwsError> {
    let in_role = match role_arn {
        Some(role_arn) => Some(account.in_role(role_arn, "EKSGetTokenAuth").await),
        None => None,
    };
    let account = in_role.as_ref().unwrap_or(account);
    let now = SystemTime::now();
    let token = token(cluster, account.region().await?, &account.credentials().await?, now)?;
    exec_credential_of(&token, now, exec_info)
}

fn exec_credential_of(token: &SecretString, at: SystemTime, exec_info: Option<&str>) -> Result<Value, AwsError> {
    let end = DateTime::from_secs(DateTime::from(at + PRINTED_LIFETIME).secs());
    let end = end.fmt(DateTimeFormat::DateTime).map_err(|error| AwsError::Signing(Cause::of(error)))?;
    Ok(json!({
        "kind": "ExecCredential",
        "apiVersion": api_version(exec_info),
        "spec": {},
        "status": { "expirationTimestamp": end, "token": token.expose_secret() },
    }))
}

fn api_version(exec_info: Option<&str>) -> String {
    const KNOWN: [&str; 3] = ["v1", "v1beta1", "v1alpha1"];
    let info: Option<Value> = exec_info.and_then(|info| serde_json::from_str(info).ok());
    let version =
        info.as_ref().and_then(|info| info["apiVersion"].as_str()?.strip_prefix("client.authentication.k8s.io/"));
    let version = version.filter(|version| KNOWN.contains(version)).unwrap_or("v1beta1");
    format!("client.authentication.k8s.io/{version}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU64, Ordering};

    use aws_config::{BehaviorVersion, Region, SdkConfig};
    use aws_credential_types::provider::{SharedCredentialsProvider, future};

    use super::super::vectors;
    use super::*;

    fn url_of(token: &SecretString) -> String {
        let encoded = token.expose_secret().strip_prefix(TOKEN_PREFIX).unwrap();
        String::from_utf8(URL_SAFE_NO_PAD.decode(encoded).unwrap()).unwrap()
    }

    #[test]
    fn tokens_are_those_of_the_aws_command_line() {
        for vector in vectors::all("eks_tokens") {
            let (cluster, region) = (vectors::text(&vector, "cluster"), vectors::text(&vector, "region"));
            let at = vectors::clock(&vector);
            let token = token(cluster, region, &vectors::credentials(&vector), at).unwrap();
            let theirs: SecretString = vector["exec_credential"]["status"]["token"].as_str().unwrap().to_owned().into();
            assert_eq!(vectors::split_url(&url_of(&token)), vectors::split_url(&url_of(&theirs)), "{vector}");

            let mut ours = exec_credential_of(&token, at, None).unwrap();
            ours["status"]["token"] = theirs.expose_secret().into();
            assert_eq!(ours, vector["exec_credential"]);
        }
    }

    /// <https://github.com/kubernetes-sigs/aws-iam-authenticator/blob/master/pkg/token/token.go>, `Verify`
    #[test]
    fn tokens_satisfy_the_verifier() {
        for vector in vectors::all("eks_tokens") {
            let region = vectors::text(&vector, "region");
            let at = vectors::clock(&vector);
            let token = token(vectors::text(&vector, "cluster"), region, &vectors::credentials(&vector), at).unwrap();
            assert!(token.expose_secret().len() <= 4096);
            let url = url::Url::parse(&url_of(&token)).unwrap();
            assert_eq!((url.scheme(), url.path(), url.port()), ("https", "/", None));
            let suffix = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
            assert_eq!(url.host_str().unwrap(), format!("sts.{region}.{suffix}"));
            let names: Vec<String> = url.query_pairs().map(|(name, _)| name.to_lowercase()).collect();
            let once: BTreeSet<&String> = names.iter().collect();
            assert_eq!(once.len(), names.len());
            for name in &names {
                let allowed = [
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
                assert!(allowed.contains(&name.as_str()), "{name}");
            }
        }
    }

    #[test]
    fn the_api_version_is_the_one_that_kubectl_supports() {
        for (info, version) in [
            (None, "v1beta1"),
            (Some(""), "v1beta1"),
            (Some("nonsense"), "v1beta1"),
            (Some(r#"{"apiVersion":"client.authentication.k8s.io/v1"}"#), "v1"),
            (Some(r#"{"apiVersion":"client.authentication.k8s.io/v1alpha1"}"#), "v1alpha1"),
            (Some(r#"{"apiVersion":"client.authentication.k8s.io/v9"}"#), "v1beta1"),
        ] {
            assert_eq!(api_version(info), format!("client.authentication.k8s.io/{version}"), "{info:?}");
        }
    }

    static CLOCK: AtomicU64 = AtomicU64::new(1_795_308_254);

    fn clock() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(CLOCK.load(Ordering::SeqCst))
    }

    #[derive(Debug)]
    struct Counting(Arc<AtomicU64>, Option<SystemTime>);

    impl aws_credential_types::provider::ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            self.0.fetch_add(1, Ordering::SeqCst);
            future::ProvideCredentials::ready(Ok(Credentials::new("AKIDEXAMPLE", "secret", None, self.1, "test")))
        }
    }

    fn account(asked: &Arc<AtomicU64>, end: Option<SystemTime>) -> Account {
        let provider = SharedCredentialsProvider::new(Counting(asked.clone(), end));
        let sdk = SdkConfig::builder().behavior_version(BehaviorVersion::v2026_01_12());
        Account::with(sdk.region(Region::new("eu-west-1")).credentials_provider(provider).build())
    }

    #[tokio::test]
    async fn a_token_is_kept_and_renewed_before_it_expires_even_after_a_freeze() {
        let asked = Arc::default();
        let source = TokenSource::with_clock(account(&asked, None), "compute", None, clock);
        let get = async || source.token().await.unwrap().secret().expose_secret().to_owned();
        let first = get().await;
        CLOCK.fetch_add(9 * 60, Ordering::SeqCst);
        assert_eq!(get().await, first);
        CLOCK.fetch_add(60, Ordering::SeqCst);
        let second = get().await;
        assert_ne!(second, first);
        // The process was frozen for an hour.
        CLOCK.fetch_add(3600, Ordering::SeqCst);
        let third = get().await;
        assert_ne!(third, second);
        assert!(url_of(&third.into()).contains("X-Amz-Date=20261122T015414Z"), "{asked:?}");
    }

    #[tokio::test]
    async fn a_refused_token_is_replaced_and_many_requests_make_one() {
        let asked = Arc::default();
        let source = TokenSource::new(account(&asked, None), "compute", None);
        let all = futures_util::future::join_all((0..100).map(|_| source.token())).await;
        let serials: BTreeSet<u64> = all.iter().map(|token| token.as_ref().unwrap().0.version).collect();
        assert_eq!(serials.len(), 1);
        let refused = source.token().await.unwrap();
        let all = futures_util::future::join_all((0..100).map(|_| source.replace(&refused))).await;
        let others: BTreeSet<u64> = all.iter().map(|token| token.as_ref().unwrap().0.version).collect();
        assert_eq!(others.len(), 1);
        assert_ne!(others, serials);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_token_does_not_outlive_its_credentials() {
        static LATER: AtomicU64 = AtomicU64::new(0);
        let asked = Arc::default();
        let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_308_254);
        let account = account(&asked, Some(begin + Duration::from_secs(120)));
        let source = TokenSource::with_clock(account, "compute", None, || {
            SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_308_254 + LATER.load(Ordering::SeqCst))
        });
        let first = source.token().await.unwrap();
        LATER.store(119, Ordering::SeqCst);
        assert_eq!(source.token().await.unwrap().0.version, first.0.version);
        LATER.store(120, Ordering::SeqCst);
        assert_ne!(source.token().await.unwrap().0.version, first.0.version);
    }

    #[test]
    fn debug_output_does_not_contain_the_token() {
        let token = Token(Versioned { value: "k8s-aws-v1.secret".to_owned().into(), version: 1 });
        assert!(!format!("{token:?}").contains("secret\""));
        assert!(!format!("{token:?}").contains("k8s-aws"));
    }
}
