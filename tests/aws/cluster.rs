//! Tokens for EKS, from the real binary to a cluster that requires them.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::State;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fake_kubernetes::eks::Authenticator;
use fake_kubernetes::{Authenticate, Authentication, EmbeddedCluster, Options, User};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use crate::moto::{ACCOUNT, Moto, REGION};
use crate::postgres::certificates;
use crate::process::{Directory, Env, Service, run, stderr};
use crate::support::{Guarded, TestDatabase, left_out};

const ROLE: &str = "operator-service";

fn role_arn(role: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{role}")
}

fn authenticator(moto: &Moto) -> Authenticator {
    Authenticator {
        cluster: "compute".to_owned(),
        sts: moto.url.parse().unwrap(),
        entries: vec![(role_arn(ROLE), "operator-service".to_owned())],
        client: crate::support::client(),
    }
}

/// A cluster that requires tokens.
async fn cluster_with(authenticator: impl Authenticate + 'static) -> Guarded {
    let cluster = EmbeddedCluster::start(Options {
        namespaces: vec!["ocean-compute".to_owned()],
        authenticator: Some(Arc::new(OrAdministrator(authenticator))),
        ..Options::default()
    });
    let cluster = Guarded(cluster.await.unwrap());
    let definition = serde_json::to_value(operator_service::kubernetes::definition()).unwrap();
    let url = format!("{}/apis/apiextensions.k8s.io/v1/customresourcedefinitions", cluster.url());
    let request = crate::support::client().post(url).bearer_auth("administrator").body(definition.to_string());
    let answer = request.header("content-type", "application/json").send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    cluster.clear_requests();
    cluster
}

/// Accepts the test's own token as well.
struct OrAdministrator<A>(A);

impl<A: Authenticate> Authenticate for OrAdministrator<A> {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a> {
        match token {
            Some("administrator") => Box::pin(async { Ok(User { name: "administrator".to_owned() }) }),
            token => self.0.authenticate(token),
        }
    }
}

/// The environment of a service that uses this cluster and database.
async fn env(moto: &Moto, database: &TestDatabase, cluster: &EmbeddedCluster) -> Env {
    let env = moto.and(Env::of(database.variables()));
    env.with("LOCAL_ADMIN", "1")
        .with("EKS_CLUSTER_NAME", "compute")
        .with("EKS_CLUSTER_ENDPOINT", cluster.url())
        .with("EKS_ROLE_ARN", role_arn(ROLE))
}

/// Calls a route that reads the cluster.
async fn list(service: &Service) -> (u16, String) {
    let url = service.url("/api/v1/operator/list");
    let answer = crate::support::client().get(url).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The users whose requests for workflows the cluster received.
fn users(cluster: &EmbeddedCluster) -> Vec<String> {
    cluster.requests().into_iter().filter(|it| it.path.contains("workflows")).map(|it| it.user).collect()
}

#[tokio::test]
async fn the_role_of_a_token_decides_about_access_to_the_cluster() {
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    database.announce("ocean-compute", "{}").await;
    let cluster = cluster_with(authenticator(&moto)).await;
    let env = env(&moto, &database, &cluster).await;

    let service = Service::start(&env).await;
    // The start makes no call.
    assert_eq!(cluster.requests().len(), 0);
    let (status, text) = list(&service).await;
    assert_eq!(status, 200, "{text}{}", service.process.output());
    assert!(users(&cluster).iter().all(|user| user == "operator-service"), "{:?}", users(&cluster));
    assert!(!users(&cluster).is_empty());
    assert!(!service.process.output().contains("k8s-aws-v1"));

    // STS knows another role, the cluster does not.
    let other = Service::start(&env.clone().with("EKS_ROLE_ARN", role_arn("other"))).await;
    let (status, text) = list(&other).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("401"), "{text}");
    // The same holds for the process's own user.
    let own = Service::start(&env.without("EKS_ROLE_ARN")).await;
    assert_eq!(list(&own).await.0, 503);
}

/// Refuses the first request, as if its token had expired on the way.
#[derive(Clone)]
struct RefusesOnce {
    asked: Arc<AtomicUsize>,
    then: Authenticator,
}

impl Authenticate for RefusesOnce {
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a> {
        if self.asked.fetch_add(1, Ordering::SeqCst) == 0 {
            return Box::pin(async { Err("the first is refused".to_owned()) });
        }
        self.then.authenticate(token)
    }
}

#[tokio::test]
async fn a_request_with_a_refused_token_is_sent_again_with_a_new_one() {
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    database.announce("ocean-compute", "{}").await;
    let refuses = RefusesOnce { asked: Arc::default(), then: authenticator(&moto) };
    let cluster = cluster_with(refuses.clone()).await;
    let service = Service::start(&env(&moto, &database, &cluster).await).await;
    let (status, text) = list(&service).await;
    assert_eq!(status, 200, "{text}");
    assert!(service.process.output().contains("the cluster refused a token"), "{}", service.process.output());
    assert!(refuses.asked.load(Ordering::SeqCst) >= 2);
}

/// Terminates TLS with the certificate in the directory, and forwards to the target.
async fn tls_in_front_of(target: SocketAddr, directory: &Path) -> u16 {
    let certificates =
        CertificateDer::pem_file_iter(directory.join("server.pem")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(directory.join("server.key")).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(certificates, key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                // The client refused the certificate.
                let Ok(mut client) = acceptor.accept(client).await else { return };
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
            });
        }
    });
    port
}

#[tokio::test]
async fn a_cluster_with_a_certificate_of_another_authority_is_refused() {
    let (ours, other) = (Directory::new(), Directory::new());
    if !certificates(&ours.file("")) || !certificates(&other.file("")) {
        return;
    }
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    database.announce("ocean-compute", "{}").await;
    let cluster = cluster_with(authenticator(&moto)).await;
    let port = tls_in_front_of(cluster.addr(), &ours.file("")).await;
    let authority = |directory: &Directory| STANDARD.encode(std::fs::read(directory.file("ca.pem")).unwrap());

    let env = env(&moto, &database, &cluster).await.with("EKS_CLUSTER_ENDPOINT", format!("https://localhost:{port}"));
    let service = Service::start(&env.clone().with("EKS_CLUSTER_CA", authority(&ours))).await;
    let (status, text) = list(&service).await;
    assert_eq!(status, 200, "{text}{}", service.process.output());
    assert!(!users(&cluster).is_empty());

    cluster.clear_requests();
    // Another authority, and another name than the certificate's.
    let elsewhere = env.clone().with("EKS_CLUSTER_ENDPOINT", format!("https://127.0.0.1:{port}"));
    for env in [env.with("EKS_CLUSTER_CA", authority(&other)), elsewhere.with("EKS_CLUSTER_CA", authority(&ours))] {
        let service = Service::start(&env).await;
        let (status, text) = list(&service).await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains("certificate was refused") && text.contains("EKS_CLUSTER_CA"), "{text}");
    }
    assert!(users(&cluster).is_empty());
}

#[tokio::test]
async fn without_an_endpoint_eks_is_called_once() {
    let Some(moto) = Moto::start().await else { return };
    let database = TestDatabase::migrated().await;
    database.announce("ocean-compute", "{}").await;
    let cluster = cluster_with(authenticator(&moto)).await;

    // The clusters in moto have invented endpoints; this EKS returns the embedded cluster's.
    let calls = Arc::new(AtomicUsize::new(0));
    let answer = json!({ "cluster": { "name": "compute", "endpoint": cluster.url(), "status": "ACTIVE" } });
    let router = axum::Router::new()
        .route(
            "/clusters/compute",
            axum::routing::get(async |State((calls, answer)): State<(Arc<AtomicUsize>, Value)>| {
                calls.fetch_add(1, Ordering::SeqCst);
                axum::Json(answer)
            }),
        )
        .with_state((calls.clone(), answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let eks = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

    let env = env(&moto, &database, &cluster).await.without("EKS_CLUSTER_ENDPOINT").with("AWS_ENDPOINT_URL_EKS", eks);
    let service = Service::start(&env).await;
    assert_eq!(calls.load(Ordering::SeqCst), 0);
    let (first, second) = tokio::join!(list(&service), list(&service));
    assert_eq!((first.0, second.0), (200, 200), "{}", first.1);
    assert_eq!(list(&service).await.0, 200);
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    // There is no such cluster in moto.
    let service = Service::start(&env.without("AWS_ENDPOINT_URL_EKS")).await;
    let (status, text) = list(&service).await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("the endpoint of the cluster compute cannot be read from EKS"), "{text}");
}

#[tokio::test]
async fn eks_token_prints_the_same_as_the_aws_command_line() {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let known = std::process::Command::new(&python).args(["-c", "import awscli"]).output();
    if !known.is_ok_and(|output| output.status.success()) {
        return left_out("there is no awscli in TEST_PYTHON (make test installs it)");
    }
    let Some(moto) = Moto::start().await else { return };
    for region in [REGION, "cn-north-1", "us-gov-west-1"] {
        for token in [None, Some("session/token==")] {
            let mut env = moto.and(Env::default()).without("AWS_REGION");
            if let Some(token) = token {
                env = env.with("AWS_SESSION_TOKEN", token);
            }
            let ours = run(&["eks-token", "--cluster-name", "compute", "--region", region], &env).await;
            assert!(ours.status.success(), "{}", stderr(&ours));
            let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
            let url = url_of(&ours);
            let at = url.split("X-Amz-Date=").nth(1).unwrap();
            // 20261122T004414Z → 2026-11-22T00:44:14Z
            let clock =
                format!("{}-{}-{}T{}:{}:{}Z", &at[..4], &at[4..6], &at[6..8], &at[9..11], &at[11..13], &at[13..15]);
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws/vectors.py");
            let arguments =
                [script, "live", &clock, "eks", "get-token", "--cluster-name", "compute", "--region", region];
            // Without our endpoint, which awscli would sign for.
            let theirs = crate::process::run_program(&python, &arguments, &env.without("AWS_ENDPOINT_URL")).await;
            assert!(theirs.status.success(), "{}", stderr(&theirs));
            let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
            assert_eq!(parameters(&url), parameters(&url_of(&theirs)));
            for name in ["kind", "apiVersion", "spec"] {
                assert_eq!(ours[name], theirs[name]);
            }
            assert_eq!(ours["status"]["expirationTimestamp"], theirs["status"]["expirationTimestamp"]);
        }
    }

    // With a role, the credentials are from STS.
    let env = moto.and(Env::default());
    let arguments = ["eks-token", "--cluster-name", "compute", "--role-arn", &role_arn(ROLE)];
    let output = run(&arguments, &env).await;
    let url = url_of(&serde_json::from_slice(&output.stdout).unwrap());
    assert!(url.contains("X-Amz-Security-Token=") && !url.contains("AKIAIOSFODNN7EXAMPLE"), "{url}");
    // Without a region, the message names the variable.
    let output = run(&["eks-token", "--cluster-name", "compute"], &env.without("AWS_REGION")).await;
    assert!(!output.status.success());
    assert!(stderr(&output).contains("AWS_REGION"), "{}", stderr(&output));
}

fn url_of(credential: &Value) -> String {
    let token = credential["status"]["token"].as_str().unwrap().strip_prefix("k8s-aws-v1.").unwrap();
    String::from_utf8(URL_SAFE_NO_PAD.decode(token).unwrap()).unwrap()
}

fn parameters(url: &str) -> (String, Vec<(String, String)>) {
    let url = url::Url::parse(url).unwrap();
    let mut parameters: Vec<_> = url.query_pairs().into_owned().collect();
    parameters.sort();
    (url.host_str().unwrap().to_owned(), parameters)
}
