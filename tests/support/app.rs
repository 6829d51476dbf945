//! The service, as a caller sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Once};

use operator_service::api::admin::Admins;
use operator_service::config::{Config, DatabaseUse};
use operator_service::runtime;
use reqwest::header::HeaderMap;
use serde_json::Value;

use super::{Call, Cluster, Proxy, TestDatabase};

/// Makes ring the process's crypto provider. Needed before the first TLS configuration.
pub fn install_crypto() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        rustls::crypto::ring::default_provider().install_default().ok();
    });
}

/// An HTTP client that follows no redirects and knows no proxy.
pub fn client() -> reqwest::Client {
    install_crypto();
    let roots = rustls::RootCertStore::empty();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .unwrap()
}

/// The service on a free loopback port, until the test's end.
#[derive(Debug)]
pub struct App {
    /// Where it listens, without a slash at the end.
    pub url: String,
    /// Its database.
    pub database: Arc<TestDatabase>,
    /// Its cluster.
    pub cluster: Arc<Cluster>,
    /// DEFAULT_NAMESPACE: the test's own, announced by an engine that takes no job.
    pub namespace: String,
    /// The client that requests are sent with.
    pub client: reqwest::Client,
    server: tokio::task::JoinHandle<()>,
}

/// The settings of the service to start.
#[derive(Debug, Default)]
pub struct AppBuilder {
    variables: BTreeMap<String, String>,
    database: Option<Arc<TestDatabase>>,
    cluster: Option<Arc<Cluster>>,
    unannounced: bool,
    kubeconfig: Option<String>,
}

impl AppBuilder {
    /// Sets an environment variable.
    #[must_use]
    pub fn var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Uses this database instead of a new one.
    #[must_use]
    pub fn database(mut self, database: impl Into<Arc<TestDatabase>>) -> Self {
        self.database = Some(database.into());
        self
    }

    /// Reaches the database through a proxy.
    #[must_use]
    pub fn through(self, proxy: &Proxy) -> Self {
        self.var("POSTGRES_HOST", "127.0.0.1")
            .var("POSTGRES_PORT", proxy.port.to_string())
            .var("POSTGRES_SSLMODE", "disable")
    }

    /// Uses this cluster instead of a new one.
    #[must_use]
    pub fn cluster(mut self, cluster: impl Into<Arc<Cluster>>) -> Self {
        self.cluster = Some(cluster.into());
        self
    }

    /// Does not announce the test's namespace.
    #[must_use]
    pub fn unannounced(mut self) -> Self {
        self.unannounced = true;
        self
    }

    /// Reaches the cluster by this kubeconfig instead of its own.
    #[must_use]
    pub fn kubeconfig(mut self, yaml: &str) -> Self {
        self.kubeconfig = Some(yaml.to_owned());
        self
    }

    /// Starts it.
    pub async fn start(self) -> App {
        install_crypto();
        let database = match self.database {
            Some(database) => database,
            None => Arc::new(TestDatabase::migrated().await),
        };
        let cluster = match self.cluster {
            Some(cluster) => cluster,
            None => Arc::new(Cluster::start().await),
        };
        let mut variables: BTreeMap<String, String> = database.variables().into_iter().collect();
        variables.insert("DEFAULT_NAMESPACE".to_owned(), cluster.namespace.clone());
        // As in `make run`: requests to the admin routes need no header.
        variables.insert("LOCAL_ADMIN".to_owned(), "1".to_owned());
        variables.extend(self.variables);
        if !self.unannounced {
            database.announce(&variables["DEFAULT_NAMESPACE"], "{}").await;
        }

        let config = Config::read(&|name| variables.get(name).cloned(), DatabaseUse::Required).unwrap();
        let config = Arc::new(config);
        let db = runtime::db(&config).unwrap();
        let admins = Admins::configured(&config.access);
        let namespace = config.jobs.default_namespace.clone();
        let service = match &self.kubeconfig {
            Some(yaml) => operator_service::kubernetes::Cluster::from_kubeconfig(yaml).await.unwrap(),
            None => cluster.service().await,
        };
        let router = runtime::server::all_routes(config, db, service, admins).unwrap();

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(async move { axum::serve(listener, router.into_make_service()).await.unwrap() });
        App { url, database, cluster, namespace: namespace.to_string(), client: client(), server }
    }
}

impl App {
    /// Starts the service with the defaults.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts the service with other settings.
    pub fn builder() -> AppBuilder {
        AppBuilder::default()
    }

    /// A second process with the same database and cluster.
    pub fn another_process(&self) -> AppBuilder {
        Self::builder().database(self.database.clone()).cluster(self.cluster.clone())
    }

    /// The URL of an operation.
    pub fn op(&self, operation: &str) -> String {
        format!("{}/api/v1/operator/{operation}", self.url)
    }

    /// Sends a request.
    pub async fn send(&self, call: Call) -> Answer {
        self.send_under(call, "").await
    }

    /// Sends a request to a path with a prefix, such as an API Gateway stage.
    pub async fn send_under(&self, call: Call, prefix: &str) -> Answer {
        Answer::of(call.request(&self.client, &format!("{}{prefix}", self.url)).send().await.unwrap()).await
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// A response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: bytes::Bytes,
}

impl Answer {
    /// Reads the answer to its end.
    pub async fn of(response: reqwest::Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.bytes().await.unwrap() }
    }

    /// A header's text; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The body as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The body as JSON, whatever the status.
    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), "application/json", "{} {}", self.status, self.text());
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The body of a 200 as JSON.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// The status and the text of an error; the body has to be `{"error": "<text>"}` and nothing else.
    #[track_caller]
    pub fn error(&self) -> (u16, String) {
        let body = self.json();
        let Some(Value::String(text)) = body.get("error") else { panic!("{} {body}", self.status) };
        assert_eq!(body, serde_json::json!({ "error": text }));
        (self.status, text.clone())
    }

    /// Asserts that it is this error.
    #[track_caller]
    pub fn is_error(&self, status: u16, text: &str) {
        assert_eq!(self.error(), (status, text.to_owned()));
    }
}
