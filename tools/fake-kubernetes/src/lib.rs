//! An embedded stand-in for the Kubernetes API: what operator-service, the engine, `kubectl get` and `kubectl logs` ask
//! of an API server, and the controllers that they rely on. README.md lists what it does not do.
//!
//! - [`http`]: connections; faults, authentication, routing; [`call`]: a request; [`server`]: what they all share
//! - [`verbs`]: create, get, list, patch and delete; [`logs`]: the logs of pods
//! - [`resources`]: which resources there are; [`objects`]: reading and writing an object; [`validation`]: checking one
//! - [`store`]: the objects and logs; [`journal`]: the same on disk
//! - [`controllers`]: garbage collection, the pods of Jobs, claims, namespaces
//! - [`status`]: refusals; [`table`]: what `kubectl get` prints; [`discovery`]: what is served
//! - [`faults`]: failures that tests order; [`eks`]: authentication as an EKS cluster does it

mod call;
mod controllers;
mod discovery;
pub mod eks;
mod faults;
mod http;
mod journal;
mod labels;
mod logs;
mod objects;
mod resources;
mod server;
mod status;
mod store;
mod table;
mod validation;
mod verbs;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, io};

use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use self::call::Request;
pub use self::faults::{Faults, Match};
use self::server::Server;
pub use self::server::{Authenticate, Authentication, User};
use self::store::{Key, State, Store};

/// How long a shutdown waits for requests in progress.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// The settings of a cluster.
#[derive(Clone)]
pub struct Options {
    /// The address to listen on; port 0 takes a free port.
    pub addr: SocketAddr,
    /// The file that keeps objects and logs across restarts; without one they are kept in memory only.
    pub state: Option<PathBuf>,
    /// Namespaces to create at the start, besides `default`.
    pub namespaces: Vec<String>,
    /// Authenticates every request; without one all requests are accepted.
    pub authenticator: Option<Arc<dyn Authenticate>>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            state: None,
            namespaces: Vec::new(),
            authenticator: None,
        }
    }
}

/// A running cluster. It stops when it is dropped; [`EmbeddedCluster::shutdown`] also waits for that.
pub struct EmbeddedCluster {
    server: Arc<Server>,
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl fmt::Debug for EmbeddedCluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EmbeddedCluster").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl EmbeddedCluster {
    /// Starts a cluster. It accepts connections as soon as this returns.
    ///
    /// # Errors
    /// If the address is in use, the state file can't be read or written, or a namespace's name is not valid.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.addr).await?;
        let addr = listener.local_addr()?;
        let store = Store::open(options.state.as_deref())?;
        for name in std::iter::once("default").chain(options.namespaces.iter().map(String::as_str)) {
            store.write(|state| ensure_namespace(state, name))?;
        }
        let (stop, stopped) = watch::channel(false);
        let server = Arc::new(Server {
            store,
            faults: Faults::new(),
            requests: Mutex::default(),
            authenticator: options.authenticator,
            stop: stopped,
        });
        tokio::spawn(controllers::run(Arc::clone(&server)));
        let task = tokio::spawn(http::serve(Arc::clone(&server), listener, addr));
        Ok(Self { server, addr, stop, task })
    }

    /// The URL of the API.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The address that it listens on.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A kubeconfig file (YAML) for this cluster.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: embedded\n\
             \x20 cluster:\n\
             \x20   server: {}\n\
             users: [{{ name: embedded, user: {{}} }}]\n\
             contexts: [{{ name: embedded, context: {{ cluster: embedded, user: embedded, namespace: default }} }}]\n\
             current-context: embedded\n",
            self.url()
        )
    }

    /// The failures that tests order.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.server.faults
    }

    /// The requests received, in order; of more than 100,000 the latest.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.server.requests().iter().cloned().collect()
    }

    /// Forgets the requests received.
    pub fn clear_requests(&self) {
        self.server.requests().clear();
    }

    /// Forgets earlier states, as a compaction of etcd does: the continue tokens of paged lists expire (410).
    pub fn forget_history(&self) {
        self.server.store.write(State::forget_history);
    }

    /// The resourceVersion of the latest change; the receiver is notified of each change.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.server.store.subscribe()
    }

    /// An object as it is stored. `resource` is the plural with its group: `pods`, `jobs.batch`.
    #[must_use]
    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.server.store.read(|state| state.get(&Key::new(resource, namespace, name)).cloned())
    }

    /// All objects of a resource, ordered by namespace and name. `resource` as for [`Self::object`].
    #[must_use]
    pub fn objects(&self, resource: &str) -> Vec<Arc<Value>> {
        self.server.store.read(|state| state.list(resource, None).map(|(_, object)| Arc::clone(object)).collect())
    }

    /// Waits until `look` returns something, for at most `limit`. It is called at once and after each change.
    pub async fn wait_for<T>(&self, limit: Duration, mut look: impl FnMut(&Self) -> Option<T>) -> Option<T> {
        let mut changed = self.revision();
        let found = async {
            loop {
                changed.mark_unchanged();
                if let Some(found) = look(self) {
                    return Some(found);
                }
                changed.changed().await.ok()?;
            }
        };
        timeout(limit, found).await.ok().flatten()
    }

    /// Stops, and waits for requests in progress, for at most five seconds.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        if timeout(SHUTDOWN_LIMIT, &mut self.task).await.is_err() {
            tracing::warn!("requests to the embedded cluster were still in progress at its end");
            self.task.abort();
        }
    }
}

impl Drop for EmbeddedCluster {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

/// Creates a namespace unless it exists.
fn ensure_namespace(state: &mut State, name: &str) -> io::Result<()> {
    if state.get(&Key::namespace_object(name)).is_some() {
        return Ok(());
    }
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
    match verbs::create(state, &resources::namespaces(), "", namespace) {
        Ok(_) => Ok(()),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidInput, error.to_string())),
    }
}
