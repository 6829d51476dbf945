//! A real Kubernetes API server: etcd and kube-apiserver from the directory that KUBEBUILDER_ASSETS names
//! (the layout of controller-runtime's envtest). No controllers, no nodes.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use fake_engine::{
    local,
    process::{self, Child, Program},
};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};

/// How long etcd and the API server may take to start.
const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Why there is no API server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory lacks a program.
    #[error("KUBEBUILDER_ASSETS={assets} holds no {program}")]
    Missing {
        /// Where it was looked for.
        assets: String,
        /// What was looked for.
        program: &'static str,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A program ended, or did not become ready.
    #[error("{program} {problem}; the end of {log}:{tail}")]
    Start {
        /// Which.
        program: &'static str,
        /// What happened.
        problem: String,
        /// Its log.
        log: String,
        /// The log's last lines.
        tail: String,
    },
    /// A process could not be started or watched.
    #[error(transparent)]
    Process(#[from] process::Error),
    /// The HTTP client could not be made.
    #[error("could not ask whether kube-apiserver is ready: {0}")]
    Http(#[from] reqwest::Error),
}

/// Where the programs are, and where their state is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The directory with `etcd` and `kube-apiserver`.
    pub assets: PathBuf,
    /// State, keys and logs; kept between starts.
    pub directory: PathBuf,
    /// Whether writes reach the disk.
    pub durable: bool,
}

/// A running API server. Dropping it stops it.
#[derive(Debug)]
pub struct ApiServer {
    server: Child,
    etcd: Child,
    url: String,
    kubeconfig: String,
}

impl ApiServer {
    /// Starts both programs and waits until the API is ready.
    ///
    /// # Errors
    /// Each of [`Error`].
    pub async fn start(options: Options) -> Result<Self, Error> {
        fake_engine::install_tls();
        let program = |program: &'static str| {
            let path = options.assets.join(program);
            path.is_file()
                .then_some(path)
                .ok_or_else(|| Error::Missing { assets: options.assets.display().to_string(), program })
        };
        let (etcd, server) = (program("etcd")?, program("kube-apiserver")?);
        let directory = &options.directory;
        fs::create_dir_all(directory).map_err(file(directory))?;
        let directory = fs::canonicalize(directory).map_err(file(directory))?;
        let deadline = Instant::now() + START_LIMIT;
        let port = |name: &str| {
            let path = directory.join(name);
            local::port(&path).map_err(file(&path))
        };

        let (clients, peers) = (port("etcd-port")?, port("etcd-peer-port")?);
        let clients = format!("http://127.0.0.1:{clients}");
        let peers = format!("http://127.0.0.1:{peers}");
        let log = directory.join("etcd.log");
        let mut program = Program::new(etcd)
            .arg("--name=default")
            .arg(format!("--data-dir={}", directory.join("etcd").display()))
            .arg(format!("--listen-client-urls={clients}"))
            .arg(format!("--advertise-client-urls={clients}"))
            .arg(format!("--listen-peer-urls={peers}"))
            .arg(format!("--initial-advertise-peer-urls={peers}"))
            .arg(format!("--initial-cluster=default={peers}"))
            .log(process::open_log(&log).map_err(file(&log))?);
        if !options.durable {
            program = program.arg("--unsafe-no-fsync");
        }
        let mut etcd = program.spawn()?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let health = http.get(format!("{clients}/health"));
        ready("etcd", &mut etcd, &log, deadline, || health.try_clone()).await?;

        let (key, public_key) = (directory.join("service-account.key"), directory.join("service-account.pub"));
        if !public_key.exists() {
            let (secret, public) = signing_key().map_err(file(&key))?;
            local::write_private(&key, secret.as_bytes()).map_err(file(&key))?;
            local::write_private(&public_key, public.as_bytes()).map_err(file(&public_key))?;
        }
        let token_file = directory.join("token");
        let token = local::secret(&token_file).map_err(file(&token_file))?;
        let tokens = directory.join("tokens.csv");
        local::write_private(&tokens, format!("{token},devstack,devstack,\"system:masters\"\n").as_bytes())
            .map_err(file(&tokens))?;
        let certificates = directory.join("certificates");
        let port = port("port")?;
        let log = directory.join("kube-apiserver.log");
        let mut server = Program::new(server)
            .arg(format!("--etcd-servers={clients}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"))
            .arg(format!("--cert-dir={}", certificates.display()))
            .args([
                "--service-account-issuer=https://kubernetes.default.svc",
                "--api-audiences=https://kubernetes.default.svc",
            ])
            .arg(format!("--service-account-key-file={}", public_key.display()))
            .arg(format!("--service-account-signing-key-file={}", key.display()))
            .arg("--service-cluster-ip-range=10.0.0.0/24")
            .arg(format!("--token-auth-file={}", tokens.display()))
            .args([
                "--authorization-mode=RBAC",
                // There is nobody who would make the service accounts that pods are to have.
                "--disable-admission-plugins=ServiceAccount",
                // 127.0.0.1 is no address for an Endpoints object.
                "--endpoint-reconciler-type=none",
            ])
            .directory(&directory)
            .log(process::open_log(&log).map_err(file(&log))?)
            .spawn()?;
        let url = format!("https://127.0.0.1:{port}");
        let certificate = certificates.join("apiserver.crt");
        ready("kube-apiserver", &mut server, &log, deadline, || {
            // The server makes it while it starts.
            let pem = fs::read(&certificate).ok()?;
            let roots = reqwest::Certificate::from_pem_bundle(&pem).ok()?;
            let client = reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(5))
                .tls_certs_only(roots)
                .build()
                .ok()?;
            Some(client.get(format!("{url}/readyz")).bearer_auth(&token))
        })
        .await?;
        let pem = fs::read(&certificate).map_err(file(&certificate))?;
        Ok(Self { server, etcd, kubeconfig: kubeconfig(&url, &pem, &token), url })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A kubeconfig for it, as YAML, with its administrator's token in it.
    #[must_use]
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Stops both programs.
    ///
    /// # Errors
    /// If the operating system can't tell whether they have ended.
    pub async fn stop(self) -> Result<(), Error> {
        self.server.stop(STOP_LIMIT).await?;
        self.etcd.stop(STOP_LIMIT).await?;
        Ok(())
    }
}

fn file(path: &Path) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.display().to_string();
    move |source| Error::File { path, source }
}

/// Asks until the answer is 200, the program has ended, or the time is over.
async fn ready(
    program: &'static str,
    child: &mut Child,
    log: &Path,
    deadline: Instant,
    request: impl Fn() -> Option<reqwest::RequestBuilder>,
) -> Result<(), Error> {
    loop {
        let mut problem = None;
        if let Some(request) = request() {
            match request.send().await {
                Ok(response) if response.status().is_success() => return Ok(()),
                Ok(response) => problem = Some(format!("answers {}", response.status())),
                Err(error) => problem = Some(error.without_url().to_string()),
            }
        }
        let ended = child.try_wait()?;
        if ended.is_some() || Instant::now() > deadline {
            return Err(Error::Start {
                program,
                problem: ended.map_or_else(
                    || format!("is not ready after {START_LIMIT:?} ({})", problem.unwrap_or_default()),
                    |status| format!("ended while it was starting ({status})"),
                ),
                log: log.display().to_string(),
                tail: process::tail(log, 12),
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A new key for service accounts' tokens, secret and public part, in PEM.
fn signing_key() -> io::Result<(String, String)> {
    /// What precedes the point of a P-256 key in a SubjectPublicKeyInfo (RFC 5480).
    const SPKI: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
        0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let failed = || io::Error::other("no key could be made");
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_ASN1_SIGNING;
    let secret = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| failed())?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, secret.as_ref(), &random).map_err(|_| failed())?;
    let public = [&SPKI, pair.public_key().as_ref()].concat();
    Ok((pem("PRIVATE KEY", secret.as_ref()), pem("PUBLIC KEY", &public)))
}

fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for (index, character) in STANDARD.encode(der).chars().enumerate() {
        if index > 0 && index % 64 == 0 {
            text.push('\n');
        }
        text.push(character);
    }
    text + &format!("\n-----END {label}-----\n")
}

fn kubeconfig(url: &str, certificate: &[u8], token: &str) -> String {
    let certificate = STANDARD.encode(certificate);
    format!(
        "apiVersion: v1
kind: Config
clusters:
- name: devstack
  cluster:
    server: {url}
    certificate-authority-data: {certificate}
users:
- name: devstack
  user:
    token: {token}
contexts:
- name: devstack
  context:
    cluster: devstack
    user: devstack
current-context: devstack
"
    )
}
