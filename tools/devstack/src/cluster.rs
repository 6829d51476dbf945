//! The cluster that a stack works with.

use std::env;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fake_engine::Cluster as Kind;
use fake_kubernetes::EmbeddedCluster;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::json;

use crate::apiserver::ApiServer;
use crate::local::{self, variable};

/// Maximum time until the cluster serves the new resource.
const DEFINITION_LIMIT: Duration = Duration::from_secs(30);
/// Age of a definition at which kube-apiserver accepts its objects without delay. Its clock has no fractions.
const SETTLE: Duration = Duration::from_secs(3);

/// The API server, and how to reach it.
pub(crate) struct Cluster {
    server: Server,
    /// What it is, in words.
    pub(crate) description: String,
    /// The path of its kubeconfig file.
    pub(crate) kubeconfig: String,
    pub(crate) client: kube::Client,
}

enum Server {
    /// Somebody's, named by KUBECONFIG.
    Foreign,
    Api(Box<ApiServer>),
    Embedded(EmbeddedCluster),
}

impl Cluster {
    /// Connects to the cluster of KUBECONFIG, or starts one: of KUBEBUILDER_ASSETS, or fake-kubernetes.
    pub(crate) async fn start(directory: &Path, durable: bool) -> anyhow::Result<Self> {
        let (server, description, text) = if variable("KUBECONFIG").is_some() {
            (Server::Foreign, "the one that KUBECONFIG names".to_owned(), None)
        } else if let Some(assets) = variable("KUBEBUILDER_ASSETS") {
            let server = ApiServer::start(Path::new(&assets), &directory.join("apiserver"), durable).await?;
            let description = format!("etcd and kube-apiserver of KUBEBUILDER_ASSETS, {}", server.url);
            let text = server.kubeconfig.clone();
            (Server::Api(Box::new(server)), description, Some(text))
        } else {
            let home = directory.join("cluster");
            fs::create_dir_all(&home).with_context(|| local::shown(&home))?;
            let server = EmbeddedCluster::start(fake_kubernetes::Options {
                addr: SocketAddr::from((Ipv4Addr::LOCALHOST, local::port(&home.join("port"))?)),
                state: Some(home.join("objects")),
                ..Default::default()
            });
            let server = server.await.context("the embedded cluster")?;
            let (description, text) = (format!("embedded, {}", server.url()), server.kubeconfig());
            (Server::Embedded(server), description, Some(text))
        };
        let path = directory.join("kubeconfig");
        let options = KubeConfigOptions::default();
        let (mut config, kubeconfig) = match text {
            None => {
                // It may name several files.
                let config = kube::Config::from_kubeconfig(&options).await?;
                (config, env::var("KUBECONFIG")?)
            }
            Some(text) => {
                local::write_private(&path, &text)?;
                let mut config = kube::Config::from_custom_kubeconfig(Kubeconfig::from_yaml(&text)?, &options).await?;
                // The loopback address is not reached through the machine's proxy.
                config.proxy_url = None;
                (config, path.display().to_string())
            }
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(Duration::from_secs(15));
        Ok(Self { server, description, kubeconfig, client: kube::Client::try_from(config)? })
    }

    pub(crate) fn is_foreign(&self) -> bool {
        matches!(self.server, Server::Foreign)
    }

    /// How the engine has to work with it.
    pub(crate) fn kind(&self) -> Kind {
        match self.server {
            Server::Embedded(_) => Kind::Embedded,
            Server::Api(_) | Server::Foreign => Kind::External,
        }
    }

    /// Defines the WorkFlow resource, creates the namespace, and waits until objects can be created.
    pub(crate) async fn prepare(&self, definition: &str, namespace: &str) -> anyhow::Result<()> {
        let definition: CustomResourceDefinition = serde_saphyr::from_str(definition)?;
        let name = definition.metadata.name.clone().unwrap_or_default();
        let definitions: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        match definitions.create(&PostParams::default(), &definition).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                let patch = Patch::Merge(json!({"spec": definition.spec}));
                definitions.patch(&name, &PatchParams::default(), &patch).await?;
            }
            created => drop(created?),
        }
        let mut wanted = Namespace::default();
        wanted.metadata.name = Some(namespace.to_owned());
        match Api::all(self.client.clone()).create(&PostParams::default(), &wanted).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            created => drop(created?),
        }
        let deadline = Instant::now() + DEFINITION_LIMIT;
        loop {
            let conditions =
                definitions.get(&name).await?.status.and_then(|status| status.conditions).unwrap_or_default();
            if let Some(met) = conditions.iter().find(|met| met.type_ == "Established" && met.status == "True") {
                // kube-apiserver delays the first objects of a new resource by two seconds: better here than in
                // somebody's first request.
                if let (Kind::External, Some(since)) = (self.kind(), &met.last_transition_time) {
                    let age = Timestamp::now().duration_since(since.0).try_into().unwrap_or_default();
                    tokio::time::sleep(SETTLE.saturating_sub(age)).await;
                }
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "WorkFlow is not established after {DEFINITION_LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        match self.server {
            Server::Foreign => {}
            Server::Api(server) => server.stop().await?,
            Server::Embedded(cluster) => cluster.shutdown().await,
        }
        Ok(())
    }
}
