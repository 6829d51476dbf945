//! Where the objects are: one ordered map, one counter, and the changes of late for those who watch.
//!
//! Everything that reads and then writes does so inside one [`Store::write`], so that no request sees
//! another's halfway. The counter is the `resourceVersion` of the API.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    io,
    ops::Bound,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::Value;
use tokio::sync::watch;

use super::{
    journal::{Entry, Journal},
    logs::Log,
    meta,
};

/// How many changes are remembered. Whoever is further behind gets a 410 and lists again, as after a
/// compaction of etcd.
const HISTORY: usize = 10_000;

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The resource with its group: `jobs.batch`, `pods`.
    pub(crate) resource: Arc<str>,
    /// Empty for what lives in no namespace.
    pub(crate) namespace: String,
    /// The object's name.
    pub(crate) name: String,
}

impl Key {
    /// The key of an object of that resource.
    pub(crate) fn new(resource: &Arc<str>, namespace: &str, name: &str) -> Self {
        Self { resource: Arc::clone(resource), namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Added,
    Modified,
    Deleted,
}

/// One change, as watchers and controllers see it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) event: Event,
    pub(crate) key: Key,
    /// The object after the change; for a deletion as it last was, with the deletion's resourceVersion.
    pub(crate) object: Arc<Value>,
    /// The object before the change.
    pub(crate) previous: Option<Arc<Value>>,
}

/// The changes since then are no longer known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forgotten;

/// Objects with their keys, in order.
pub(crate) type Objects<'a> = Box<dyn Iterator<Item = (&'a Key, &'a Arc<Value>)> + 'a>;

/// The objects, and whoever wants to know when they change.
#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Store {
    /// A store that lives in memory, or in the file at `path` as well.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut state = State::default();
        if let Some(path) = path {
            Journal::replay(path, |entry| state.apply(entry))?;
            state.journal = Some(Journal::create(path, state.snapshot())?);
            state.compacted = state.revision;
        }
        let (changed, _) = watch::channel(state.revision);
        Ok(Self { state: Mutex::new(state), changed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the objects.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    /// Changes the objects; nobody sees anything of it before `change` returns.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = (state.revision, state.log_writes);
        let result = change(&mut state);
        state.save();
        if before != (state.revision, state.log_writes) {
            self.changed.send_replace(state.revision);
        }
        result
    }

    /// Wakes up after each change; its value is the latest resourceVersion.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The objects themselves. Reached through [`Store::read`] and [`Store::write`].
#[derive(Debug, Default)]
pub(crate) struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    by_uid: HashMap<String, Key>,
    dependents: HashMap<String, BTreeSet<Key>>,
    revision: u64,
    history: VecDeque<Change>,
    /// Changes up to this one are forgotten.
    compacted: u64,
    /// By the pod's uid, then by container.
    logs: HashMap<String, BTreeMap<String, Log>>,
    log_writes: u64,
    journal: Option<Journal>,
}

impl State {
    /// The latest resourceVersion.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// The object, if there is one.
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// Whether there is such a namespace, and if so whether it is on its way out.
    pub(crate) fn namespace(&self, name: &str) -> Option<&Arc<Value>> {
        self.objects.get(&Key { resource: "namespaces".into(), namespace: String::new(), name: name.to_owned() })
    }

    /// Whether an object of that uid exists.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Key> {
        self.by_uid.get(uid)
    }

    /// The objects that name `uid` among their owners.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Key> {
        self.dependents.get(uid).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }

    /// The resources that have objects.
    pub(crate) fn resources(&self) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = Vec::new();
        loop {
            // The first key behind all those of the resource found last.
            let start = match found.last() {
                Some(last) => Key::new(&Arc::from(format!("{last}\0")), "", ""),
                None => Key::new(&Arc::from(""), "", ""),
            };
            match self.objects.range(start..).next() {
                Some((key, _)) => found.push(Arc::clone(&key.resource)),
                None => return found,
            }
        }
    }

    /// The objects of a resource in order, in one namespace or in all, those behind `after` only.
    pub(crate) fn list<'a>(
        &'a self,
        resource: &'a Arc<str>,
        namespace: Option<&'a str>,
        after: Option<&Key>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let start = match after {
            Some(key) => Bound::Excluded(key.clone()),
            None => Bound::Included(Key::new(resource, namespace.unwrap_or_default(), "")),
        };
        self.objects.range((start, Bound::Unbounded)).take_while(move |(key, _)| within(key, resource, namespace))
    }

    /// Like [`State::list`], but as it was at `revision`.
    pub(crate) fn list_at<'a>(
        &'a self,
        revision: u64,
        resource: &'a Arc<str>,
        namespace: Option<&'a str>,
        after: Option<&'a Key>,
    ) -> Result<Objects<'a>, Forgotten> {
        let mut then: BTreeMap<&Key, Option<&Arc<Value>>> = BTreeMap::new();
        for change in self.since(revision)? {
            if within(&change.key, resource, namespace) && after.is_none_or(|key| change.key > *key) {
                then.entry(&change.key).or_insert(change.previous.as_ref());
            }
        }
        let now = self.list(resource, namespace, after);
        if then.is_empty() {
            return Ok(Box::new(now));
        }
        let mut all: BTreeMap<&Key, &Arc<Value>> = now.filter(|(key, _)| !then.contains_key(key)).collect();
        all.extend(then.iter().filter_map(|(key, was)| Some((*key, (*was)?))));
        Ok(Box::new(all.into_iter()))
    }

    /// The changes after `revision`, oldest first.
    pub(crate) fn since(&self, revision: u64) -> Result<impl Iterator<Item = &Change>, Forgotten> {
        if revision < self.compacted {
            return Err(Forgotten);
        }
        let start = self.history.partition_point(|change| change.revision <= revision);
        Ok(self.history.range(start..))
    }

    /// Forgets all changes up to now, as a compaction of etcd does.
    pub(crate) fn forget_history(&mut self) {
        self.history.clear();
        self.compacted = self.revision;
    }

    /// Stores an object under its key and gives it the next resourceVersion.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        meta::set(&mut object, "resourceVersion", Some(self.revision.to_string().into()));
        let object = Arc::new(object);
        let previous = self.insert(key, &object);
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::put(self.revision, key, &object));
        }
        let event = if previous.is_some() { Event::Modified } else { Event::Added };
        self.remember(event, key, Arc::clone(&object), previous);
        object
    }

    /// Takes an object out.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let previous = self.take(key)?;
        self.revision += 1;
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::delete(self.revision, key));
        }
        let mut last = Value::clone(&previous);
        meta::set(&mut last, "resourceVersion", Some(self.revision.to_string().into()));
        let last = Arc::new(last);
        self.remember(Event::Deleted, key, Arc::clone(&last), Some(previous));
        Some(last)
    }

    fn remember(&mut self, event: Event, key: &Key, object: Arc<Value>, previous: Option<Arc<Value>>) {
        self.history.push_back(Change { revision: self.revision, event, key: key.clone(), object, previous });
        while self.history.len() > HISTORY {
            if let Some(oldest) = self.history.pop_front() {
                self.compacted = oldest.revision;
            }
        }
    }

    /// Puts the object into the map and its indexes.
    fn insert(&mut self, key: &Key, object: &Arc<Value>) -> Option<Arc<Value>> {
        let previous = self.objects.insert(key.clone(), Arc::clone(object));
        if let Some(previous) = &previous {
            self.unlink(key, previous);
        }
        self.by_uid.insert(meta::uid(object).to_owned(), key.clone());
        for owner in meta::owners(object) {
            let owner = owner["uid"].as_str().unwrap_or_default().to_owned();
            self.dependents.entry(owner).or_default().insert(key.clone());
        }
        previous
    }

    /// Takes the object out of the map and its indexes, and its logs with it.
    fn take(&mut self, key: &Key) -> Option<Arc<Value>> {
        let previous = self.objects.remove(key)?;
        self.unlink(key, &previous);
        self.logs.remove(meta::uid(&previous));
        Some(previous)
    }

    fn unlink(&mut self, key: &Key, object: &Value) {
        self.by_uid.remove(meta::uid(object));
        for owner in meta::owners(object) {
            let owner = owner["uid"].as_str().unwrap_or_default();
            if let Some(keys) = self.dependents.get_mut(owner) {
                keys.remove(key);
                if keys.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    /// The log of a pod's container.
    pub(crate) fn log(&self, uid: &str, container: &str) -> Option<&Log> {
        self.logs.get(uid)?.get(container)
    }

    /// Appends to the log of a pod's container, or replaces it.
    pub(crate) fn write_log(&mut self, uid: &str, container: &str, bytes: &[u8], append: bool) {
        let log = self.logs.entry(uid.to_owned()).or_default().entry(container.to_owned()).or_default();
        log.write(bytes, append);
        self.log_writes += 1;
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::log(uid, container, bytes, append));
        }
    }

    /// Repeats what the journal says.
    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Put { revision, resource, object } => {
                let key = Key::new(&Arc::from(resource), meta::namespace(&object), meta::name(&object));
                self.insert(&key, &object);
                self.revision = self.revision.max(revision);
            }
            Entry::Delete { revision, resource, namespace, name } => {
                self.take(&Key::new(&Arc::from(resource), &namespace, &name));
                self.revision = self.revision.max(revision);
            }
            Entry::Log { uid, container, hex, append } => {
                let bytes = hex::decode(hex).unwrap_or_default();
                let logs = self.logs.entry(uid).or_default();
                logs.entry(container).or_default().write(&bytes, append);
            }
            Entry::Revision { revision } => self.revision = self.revision.max(revision),
        }
    }

    /// The entries that make this state out of nothing.
    fn snapshot(&self) -> impl Iterator<Item = Entry> {
        let revision = std::iter::once(Entry::Revision { revision: self.revision });
        let objects = self.objects.iter().map(|(key, object)| Entry::put(self.revision, key, object));
        let logs = self.logs.iter().flat_map(|(uid, containers)| {
            containers.iter().map(|(container, log)| Entry::log(uid, container, log.bytes(), false))
        });
        revision.chain(objects).chain(logs)
    }

    /// Writes down what happened since the last time.
    fn save(&mut self) {
        let Some(mut journal) = self.journal.take() else {
            return;
        };
        let saved = if journal.is_long() { journal.rewrite(self.snapshot()) } else { journal.flush() };
        if let Err(error) = saved {
            tracing::error!(path = %journal.path().display(), %error, "the embedded cluster's state can't be written");
        }
        self.journal = Some(journal);
    }
}

fn within(key: &Key, resource: &str, namespace: Option<&str>) -> bool {
    *key.resource == *resource && namespace.is_none_or(|namespace| key.namespace == namespace)
}
