//! A cluster, and a namespace of the test's own in it.

use std::collections::BTreeMap;
use std::time::Duration;

use fake_kubernetes::{EmbeddedCluster, Options};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use operator_service::kubernetes::{WorkFlow, definition};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::role::Guarded;
use super::{eventually, unique};

/// The cluster a test talks to.
pub struct Cluster {
    /// A namespace that no other test uses.
    pub namespace: String,
    /// For arranging and inspecting objects.
    pub client: Client,
    kubeconfig: String,
    embedded: Option<Guarded>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).field("embedded", &self.embedded).finish()
    }
}

impl Cluster {
    /// Connects to the cluster that TEST_KUBECONFIG names, if set, else starts an embedded one.
    pub async fn start() -> Self {
        match std::env::var("TEST_KUBECONFIG").ok().filter(|path| !path.is_empty()) {
            Some(path) => {
                let kubeconfig = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
                Self::connect(kubeconfig, None).await
            }
            None => Self::embedded().await,
        }
    }

    /// Starts an embedded cluster, for tests that order faults.
    pub async fn embedded() -> Self {
        let embedded = Guarded(EmbeddedCluster::start(Options::default()).await.unwrap());
        Self::connect(embedded.kubeconfig(), Some(embedded)).await
    }

    async fn connect(kubeconfig: String, embedded: Option<Guarded>) -> Self {
        super::app::install_crypto();
        let parsed = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.unwrap();
        let client = Client::try_from(config).unwrap();
        install_definition(&client).await;
        let cluster = Self { namespace: unique("test"), client, kubeconfig, embedded };
        cluster.make_namespace(&cluster.namespace).await;
        cluster
    }

    async fn make_namespace(&self, name: &str) {
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "operator-service-tests": "" } }
        }))
        .unwrap();
        Api::<Namespace>::all(self.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    }

    /// Creates one more namespace that no other test uses.
    pub async fn another_namespace(&self) -> String {
        let name = unique("test");
        self.make_namespace(&name).await;
        name
    }

    /// The service's access to it.
    pub async fn service(&self) -> operator_service::kubernetes::Cluster {
        operator_service::kubernetes::Cluster::from_kubeconfig(&self.kubeconfig).await.unwrap()
    }

    /// A kubeconfig's text.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// The embedded cluster; only for tests that asked for one.
    pub fn stand_in(&self) -> &EmbeddedCluster {
        self.embedded.as_ref().expect("the test has to ask for Cluster::embedded()")
    }

    /// Whether it is an embedded one.
    pub fn is_embedded(&self) -> bool {
        self.embedded.is_some()
    }

    /// Returns whether controllers delete the dependents of deleted objects.
    pub async fn has_controllers(&self) -> bool {
        if self.is_embedded() {
            return true;
        }
        // A controller gives every new namespace its account.
        static FOUND: OnceCell<bool> = OnceCell::const_new();
        *FOUND
            .get_or_init(|| async {
                let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &self.namespace);
                let found = eventually("the default account", Duration::from_secs(10), async || {
                    accounts.get_opt("default").await.unwrap().map(drop)
                });
                tokio::time::timeout(Duration::from_secs(5), found).await.is_ok()
            })
            .await
    }

    /// Creates what the engine creates for a job: ConfigMap, claims, Jobs. Their pods are created by a controller, if
    /// there is one.
    pub async fn engine_objects(&self, namespace: &str, job_id: &str) {
        self.engine_volumes(namespace, job_id).await;
        for component in ["configure", "algorithm", "publish"] {
            self.engine_job(namespace, job_id, component).await;
        }
    }

    /// Makes the ConfigMap and the claims of a job.
    pub async fn engine_volumes(&self, namespace: &str, job_id: &str) {
        let post = PostParams::default();
        let config_map: ConfigMap = serde_json::from_value(json!({
            "metadata": { "name": job_id }, "data": { "workflow.yml": "{}" }
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), namespace).create(&post, &config_map).await.unwrap();
        for claim in ["data", "adminlogs"] {
            let claim: PersistentVolumeClaim = serde_json::from_value(json!({
                "metadata": { "name": format!("{job_id}-{claim}") },
                "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } }
            }))
            .unwrap();
            Api::namespaced(self.client.clone(), namespace).create(&post, &claim).await.unwrap();
        }
    }

    /// Makes one of the engine's Jobs.
    pub async fn engine_job(&self, namespace: &str, job_id: &str, component: &str) {
        self.try_engine_job(namespace, job_id, component).await.unwrap();
    }

    /// As [`Self::engine_job`], where the request may fail.
    pub async fn try_engine_job(&self, namespace: &str, job_id: &str, component: &str) -> kube::Result<()> {
        let labels = json!({ "app": job_id, "workflow": job_id, "component": component });
        let job: Job = serde_json::from_value(json!({
            "metadata": { "name": format!("{job_id}-{component}-job"), "labels": labels },
            "spec": { "template": {
                "metadata": { "labels": labels },
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{ "name": component, "image": "localhost/nothing", "command": ["true"] }]
                }
            }}
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), namespace).create(&PostParams::default(), &job).await.map(drop)
    }

    /// The names of what belongs to a job in a namespace, as `kind/name`, pods left out; sorted.
    pub async fn objects_of(&self, namespace: &str, job_id: &str) -> Vec<String> {
        let all = ListParams::default();
        let mut names = Vec::new();
        let workflows = Api::<WorkFlow>::namespaced(self.client.clone(), namespace).list_metadata(&all).await.unwrap();
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace).list_metadata(&all).await.unwrap();
        let claims =
            Api::<PersistentVolumeClaim>::namespaced(self.client.clone(), namespace).list_metadata(&all).await.unwrap();
        let jobs = Api::<Job>::namespaced(self.client.clone(), namespace).list_metadata(&all).await.unwrap();
        let groups = [
            ("WorkFlow", workflows.items.into_iter().map(|item| item.metadata).collect::<Vec<_>>()),
            ("ConfigMap", maps.items.into_iter().map(|item| item.metadata).collect()),
            ("PersistentVolumeClaim", claims.items.into_iter().map(|item| item.metadata).collect()),
            ("Job", jobs.items.into_iter().map(|item| item.metadata).collect()),
        ];
        for (kind, items) in groups {
            for metadata in items {
                // An object that is being deleted counts as gone: finalizers are for controllers.
                if metadata.deletion_timestamp.is_none()
                    && let Some(rest) = metadata.name.unwrap_or_default().strip_prefix(job_id)
                {
                    names.push(format!("{kind}/{}", rest.trim_start_matches('-')).trim_end_matches('/').to_owned());
                }
            }
        }
        names.sort();
        names
    }

    /// The pods of a job's step.
    pub async fn pods_of(&self, namespace: &str, job_id: &str, component: &str) -> Vec<Pod> {
        let labels = format!("workflow={job_id},component={component}");
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.list(&ListParams::default().labels(&labels)).await.unwrap().items
    }

    /// A job's WorkFlow object as JSON.
    pub async fn workflow(&self, namespace: &str, job_id: &str) -> Option<Value> {
        let api = Api::<WorkFlow>::namespaced(self.client.clone(), namespace);
        api.get_opt(job_id).await.unwrap().map(|workflow| serde_json::to_value(workflow).unwrap())
    }

    /// Registers a job as the service does.
    pub async fn make_workflow(&self, namespace: &str, name: &str) {
        let workflow: WorkFlow = serde_json::from_value(json!({
            "apiVersion": "oceanprotocol.com/v1alpha", "kind": "WorkFlow",
            "metadata": { "name": name, "labels": BTreeMap::from([("workflow", name)]) },
            "spec": { "metadata": { "stages": [] } }
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), namespace).create(&PostParams::default(), &workflow).await.unwrap();
    }

    /// Creates a pod with a log, as if a kubelet had run it. Returns false if the cluster is not an embedded one.
    pub async fn make_pod_with_log(&self, namespace: &str, job_id: &str, component: &str, log: &[u8]) -> bool {
        if !self.is_embedded() {
            return false;
        }
        let name = unique(job_id);
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": name, "labels": { "workflow": job_id, "component": component } },
            "spec": { "containers": [{ "name": component, "image": "localhost/nothing" }] }
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), namespace).create(&PostParams::default(), &pod).await.unwrap();
        self.write_log(namespace, &name, log).await;
        true
    }

    /// Writes a pod's log, as its kubelet does; only in an embedded cluster.
    pub async fn write_log(&self, namespace: &str, pod: &str, log: &[u8]) {
        let url = format!("{}/api/v1/namespaces/{namespace}/pods/{pod}/log", self.stand_in().url());
        let answer = super::client().put(url).body(log.to_vec()).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
}

/// Installs the WorkFlow resource, unless another test has.
async fn install_definition(client: &Client) {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let name = "workflows.oceanprotocol.com";
    let params = PatchParams::apply("operator-service-tests").force();
    api.patch(name, &params, &Patch::Apply(definition())).await.unwrap();
    eventually("the WorkFlow resource", Duration::from_secs(30), async || {
        let established = api.get(name).await.unwrap().status?.conditions?;
        established.iter().any(|it| it.type_ == "Established" && it.status == "True").then_some(())
    })
    .await;
    // An established resource may not be served yet.
    eventually("the WorkFlow resource's list", Duration::from_secs(30), async || {
        Api::<WorkFlow>::namespaced(client.clone(), "default").list(&ListParams::default().limit(1)).await.ok()
    })
    .await;
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.is_embedded() {
            return;
        }
        let (kubeconfig, namespace) = (self.kubeconfig.clone(), self.namespace.clone());
        let deleted = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let parsed = kube::config::Kubeconfig::from_yaml(&kubeconfig).unwrap();
                let config = kube::Config::from_custom_kubeconfig(parsed, &Default::default()).await.unwrap();
                let api = Api::<Namespace>::all(Client::try_from(config).unwrap());
                api.delete(&namespace, &DeleteParams::background()).await.ok();
            });
        });
        deleted.join().ok();
    }
}
