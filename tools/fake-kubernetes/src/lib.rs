//! An embedded stand-in for the Kubernetes API: enough of it that `kube` and `kubectl` can't tell the
//! difference in what operator-service, the engine and their operators do.
//!
//! ```text
//! server       from the socket to the verb: faults, authentication, dispatch
//! call         a request taken apart             answer, table   what it is answered with
//! discovery    what is served                    status          refusals, in the real server's words
//! verbs/       create, read, update, delete, watch, log: none of them knows a kind
//! registry     the resources that are served     builtin/        those that need no definition
//! object       an object on its way in           schema/         the rules of custom ones
//! patch, apply the formats of a change           selectors       what a list is narrowed down to
//! store        the objects and their history     journal         the same on disk
//! controllers/ pods of Jobs, garbage collection, namespaces
//! faults       bad days on order                 eks             how an EKS cluster knows its callers
//! quantity     amounts of processor and memory
//! ```
//!
//! Beyond the real API there is one door, for whoever plays the kubelet: `PUT
//! /api/v1/namespaces/{namespace}/pods/{name}/log` (with `append=true` to add to it) stores what `GET` on
//! the same path returns.

mod answer;
mod apply;
mod builtin;
mod call;
mod controllers;
mod discovery;
pub mod eks;
mod faults;
mod journal;
mod json_path;
mod logs;
mod meta;
mod object;
mod patch;
pub mod quantity;
mod registry;
mod schema;
mod selectors;
mod server;
mod status;
mod store;
mod table;
mod verbs;

use std::{
    collections::VecDeque,
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::timeout};

pub use self::{
    call::Request,
    faults::{Faults, Match},
};
use self::{
    registry::Registry,
    store::{Key, Store},
};

/// As many requests are remembered.
const REQUESTS: usize = 100_000;
/// As long may the answers under way take when the cluster is shut down.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// Whom a caller was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user's name, as the cluster's access rules would see it.
    pub name: String,
}

/// What [`Authenticate::authenticate`] returns.
pub type Authentication<'a> = Pin<Box<dyn Future<Output = Result<User, String>> + Send + 'a>>;

/// Finds out who a caller is.
pub trait Authenticate: Send + Sync {
    /// Checks a bearer token; there may be none. An error is the reason, for the log: the caller only hears 401.
    fn authenticate<'a>(&'a self, token: Option<&'a str>) -> Authentication<'a>;
}

/// How a cluster starts.
#[derive(Clone)]
pub struct Options {
    /// Where it listens; port 0 takes a free one.
    pub addr: SocketAddr,
    /// The file that keeps the objects and logs from one start to the next; without one they are gone at the end.
    pub state: Option<PathBuf>,
    /// Namespaces that are there from the start, besides `default`.
    pub namespaces: Vec<String>,
    /// Lets in only those whom it knows; without one everybody is let in.
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

impl fmt::Debug for Options {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Options")
            .field("addr", &self.addr)
            .field("state", &self.state)
            .field("namespaces", &self.namespaces)
            .field("authenticator", &self.authenticator.is_some())
            .finish()
    }
}

/// What all requests share.
struct Api {
    store: Store,
    registry: Registry,
    faults: Faults,
    requests: Mutex<Requests>,
    authenticator: Option<Arc<dyn Authenticate>>,
    /// Turns true when the cluster stops.
    stop: watch::Receiver<bool>,
}

/// The requests of late.
#[derive(Debug, Default)]
struct Requests {
    /// How many came before those that are remembered.
    forgotten: usize,
    list: VecDeque<Request>,
}

impl Requests {
    /// Remembers a request; the number is for [`Requests::set_user`].
    fn add(&mut self, request: Request) -> usize {
        if self.list.len() == REQUESTS {
            self.list.pop_front();
            self.forgotten += 1;
        }
        self.list.push_back(request);
        self.forgotten + self.list.len() - 1
    }

    /// Notes who it was that sent the request, which is known only later.
    fn set_user(&mut self, number: usize, user: &str) {
        let index = number.checked_sub(self.forgotten);
        if let Some(request) = index.and_then(|index| self.list.get_mut(index)) {
            user.clone_into(&mut request.user);
        }
    }

    fn clear(&mut self) {
        self.forgotten += self.list.len();
        self.list.clear();
    }
}

impl Api {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, resource: &str, namespace: &str, name: &str) -> Key {
        Key::new(&resource.into(), namespace, name)
    }

    /// Makes a namespace unless it is there.
    fn ensure_namespace(&self, name: &str) -> Result<(), status::ApiError> {
        self.store.write(|state| {
            if state.namespace(name).is_some() {
                return Ok(());
            }
            let Some(namespaces) = self.registry.by_id(state, "namespaces") else {
                return Ok(());
            };
            let object = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } });
            verbs::create::insert(state, &namespaces, "", object, false).map(drop)
        })
    }
}

/// A running cluster. It stops when it is dropped; [`EmbeddedCluster::shutdown`] also waits for that.
pub struct EmbeddedCluster {
    api: Arc<Api>,
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    server: JoinHandle<io::Result<()>>,
}

impl fmt::Debug for EmbeddedCluster {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EmbeddedCluster").field("addr", &self.addr).finish_non_exhaustive()
    }
}

impl EmbeddedCluster {
    /// Starts a cluster. It answers as soon as this returns.
    ///
    /// # Errors
    /// If the address is taken, the state can't be read or written, or a namespace's name is none.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.addr).await?;
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let api = Arc::new(Api {
            store: Store::open(options.state.as_deref())?,
            registry: Registry::new(),
            faults: Faults::new(),
            requests: Mutex::default(),
            authenticator: options.authenticator,
            stop: stopped,
        });
        let namespaces = options.namespaces.iter().map(String::as_str);
        for name in std::iter::once("default").chain(namespaces) {
            api.ensure_namespace(name).map_err(|error| {
                let why = format!("namespace {name}: {}", error.status()["message"]);
                io::Error::new(io::ErrorKind::InvalidInput, why)
            })?;
        }
        tokio::spawn(controllers::run(Arc::clone(&api)));
        let server = tokio::spawn(server::serve(Arc::clone(&api), listener, addr));
        Ok(Self { api, addr, stop, server })
    }

    /// Where it listens, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A kubeconfig file (YAML) that leads here.
    #[must_use]
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             clusters:\n\
             - name: embedded\n\
             \x20 cluster:\n\
             \x20   server: {}\n\
             users:\n\
             - name: embedded\n\
             \x20 user: {{}}\n\
             contexts:\n\
             - name: embedded\n\
             \x20 context:\n\
             \x20   cluster: embedded\n\
             \x20   user: embedded\n\
             \x20   namespace: default\n\
             current-context: embedded\n",
            self.url()
        )
    }

    /// Bad days on order.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.api.faults
    }

    /// The requests so far, in the order in which they came; the oldest are forgotten after 100,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.api.requests().list.iter().cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn clear_requests(&self) {
        self.api.requests().clear();
    }

    /// Forgets the history of changes, as a compaction of etcd does: watches and paged lists that began
    /// before get a 410.
    pub fn forget_history(&self) {
        self.api.store.write(store::State::forget_history);
    }

    /// The resourceVersion of the latest change, and how to hear of the next.
    #[must_use]
    pub fn revision(&self) -> watch::Receiver<u64> {
        self.api.store.subscribe()
    }

    /// An object as it is stored. `resource` is the plural with its group: `pods`, `jobs.batch`.
    #[must_use]
    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let key = self.api.key(resource, namespace, name);
        self.api.store.read(|state| state.get(&key).cloned())
    }

    /// All objects of a resource, in the order of namespaces and names. `resource` as for [`Self::object`].
    #[must_use]
    pub fn objects(&self, resource: &str) -> Vec<Arc<Value>> {
        self.api
            .store
            .read(|state| state.list(&resource.into(), None, None).map(|(_, object)| Arc::clone(object)).collect())
    }

    /// Waits until `look` finds what it looks for. It looks now, and again after each change, for at most
    /// `limit`; then the answer is `None`.
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

    /// Stops, and waits until the answers under way are given, for at most five seconds.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        match timeout(SHUTDOWN_LIMIT, &mut self.server).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the embedded cluster ended badly"),
            Ok(Err(error)) => tracing::warn!(%error, "the embedded cluster ended badly"),
            Err(_) => {
                tracing::warn!("the embedded cluster had to be cut off");
                self.server.abort();
            }
        }
    }
}

impl Drop for EmbeddedCluster {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
