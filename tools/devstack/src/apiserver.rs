//! A real Kubernetes API server: etcd and kube-apiserver from the directory that KUBEBUILDER_ASSETS names (the layout
//! of controller-runtime's envtest). No controllers, no nodes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Certificate, Client, RequestBuilder};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

use crate::local;
use crate::process::{self, Child, Program};

/// Maximum duration of the start of etcd and the API server.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// A running API server. Dropping it stops it.
pub struct ApiServer {
    server: Child,
    etcd: Child,
    /// The URL that it listens on.
    pub url: String,
    /// A kubeconfig for it, as YAML, with its administrator's token in it.
    pub kubeconfig: String,
}

impl ApiServer {
    /// Starts both programs from `assets` and waits until the API is ready. State, keys and logs are in `directory`;
    /// without `durable`, writes do not reach the disk.
    ///
    /// # Errors
    /// If a program is missing or does not become ready.
    pub async fn start(assets: &Path, directory: &Path, durable: bool) -> anyhow::Result<Self> {
        fake_engine::install_tls();
        let program = |name: &str| -> anyhow::Result<Program> {
            let path = assets.join(name);
            ensure!(path.is_file(), "KUBEBUILDER_ASSETS={} holds no {name}", assets.display());
            Ok(Program::new(path).log(&directory.join(name).with_added_extension("log"))?)
        };
        fs::create_dir_all(directory).with_context(|| local::shown(directory))?;
        let deadline = Instant::now() + START_LIMIT;
        let port = |name: &str| local::port(&directory.join(name));

        let (clients, peers) = (port("etcd-port")?, port("etcd-peer-port")?);
        let (clients, peers) = (format!("http://127.0.0.1:{clients}"), format!("http://127.0.0.1:{peers}"));
        let mut etcd = program("etcd")?;
        etcd.command
            .arg("--name=default")
            .arg(format!("--data-dir={}", directory.join("etcd").display()))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=default={peers}"));
        if !durable {
            etcd.command.arg("--unsafe-no-fsync");
        }
        let mut etcd = etcd.spawn()?;
        let builder = || Client::builder().no_proxy().timeout(Duration::from_secs(5));
        let health = builder().build()?.get(format!("{clients}/health"));
        ready("etcd", &mut etcd, directory, deadline, || health.try_clone()).await?;

        let (key, public_key) = (directory.join("service-account.key"), directory.join("service-account.pub"));
        if !public_key.exists() {
            let (secret, public) = signing_key()?;
            local::write_private(&key, secret)?;
            local::write_private(&public_key, public)?;
        }
        let token = local::secret(&directory.join("token"))?;
        let tokens = directory.join("tokens.csv");
        local::write_private(&tokens, format!("{token},devstack,devstack,\"system:masters\"\n"))?;
        let (certificates, port) = (directory.join("certificates"), port("port")?);
        let mut server = program("kube-apiserver")?;
        server
            .command
            .arg(format!("--etcd-servers={clients}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", certificates.display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--api-audiences=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", public_key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg(format!("--token-auth-file={}", tokens.display()))
            .arg("--authorization-mode=RBAC")
            // No controller creates the service accounts that pods are to have, or takes finalizers off claims.
            .arg("--disable-admission-plugins=ServiceAccount,StorageObjectInUseProtection")
            // 127.0.0.1 is not allowed in an Endpoints object.
            .arg("--endpoint-reconciler-type=none")
            .current_dir(directory);
        let mut server = server.spawn()?;
        let url = format!("https://127.0.0.1:{port}");
        let certificate = certificates.join("apiserver.crt");
        ready("kube-apiserver", &mut server, directory, deadline, || {
            // The server creates it while it starts.
            let roots = Certificate::from_pem_bundle(&fs::read(&certificate).ok()?).ok()?;
            let client = builder().tls_certs_only(roots).build().ok()?;
            Some(client.get(format!("{url}/readyz")).bearer_auth(&token))
        })
        .await?;
        let kubeconfig = kubeconfig(&url, &fs::read(&certificate)?, &token);
        Ok(Self { server, etcd, url, kubeconfig })
    }

    /// Stops both programs.
    ///
    /// # Errors
    /// If the operating system cannot tell whether they have ended.
    pub async fn stop(self) -> io::Result<()> {
        self.server.stop(STOP_LIMIT).await?;
        self.etcd.stop(STOP_LIMIT).await.map(drop)
    }
}

/// Repeats a request until it succeeds.
async fn ready(
    program: &str,
    child: &mut Child,
    directory: &Path,
    deadline: Instant,
    request: impl Fn() -> Option<RequestBuilder>,
) -> anyhow::Result<()> {
    let log: PathBuf = directory.join(program).with_added_extension("log");
    loop {
        if let Some(request) = request()
            && request.send().await.is_ok_and(|answer| answer.status().is_success())
        {
            return Ok(());
        }
        let end = || format!("the end of {}:{}", local::shown(&log), process::tail(&log));
        if let Some(status) = child.try_wait()? {
            bail!("{program} ended while it was starting ({status}); {}", end());
        }
        if Instant::now() > deadline {
            bail!("{program} is not ready after {START_LIMIT:?}; {}", end());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A new key for service accounts' tokens, secret and public part, in PEM.
fn signing_key() -> anyhow::Result<(String, String)> {
    /// What precedes the point of a P-256 key in a SubjectPublicKeyInfo (RFC 5480).
    const SPKI: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let secret = EcdsaKeyPair::generate_pkcs8(algorithm, &random).ok().context("no key could be made")?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, secret.as_ref(), &random).ok().context("no key could be made")?;
    let public = [&SPKI, pair.public_key().as_ref()].concat();
    Ok((pem("PRIVATE KEY", secret.as_ref()), pem("PUBLIC KEY", &public)))
}

fn pem(label: &str, der: &[u8]) -> String {
    let text: Vec<char> = STANDARD.encode(der).chars().collect();
    let lines: String = text.chunks(64).map(|line| line.iter().collect::<String>() + "\n").collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

fn kubeconfig(url: &str, certificate: &[u8], token: &str) -> String {
    let certificate = STANDARD.encode(certificate);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: devstack
  cluster: {{server: \"{url}\", certificate-authority-data: {certificate}}}
users:
- name: devstack
  user: {{token: \"{token}\"}}
contexts:
- name: devstack
  context: {{cluster: devstack, user: devstack}}
current-context: devstack
"
    )
}
