//! The objects: an ordered map and a counter, which is the API's `resourceVersion`; the logs of pods.
//!
//! A request reads and writes within one [`Store::write`], so that no other sees a part of its changes.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::watch;

use crate::journal::{Entry, Journal};
use crate::objects;

/// How many states are kept for paged lists.
const SNAPSHOTS: usize = 64;
/// How much of a log is kept, in bytes from its end.
const LOG_LIMIT: usize = 1024 * 1024;

/// What an object is found by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The plural with its group: `jobs.batch`, `pods`.
    pub(crate) resource: String,
    /// Empty for objects outside namespaces.
    pub(crate) namespace: String,
    /// The object's name.
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self { resource: resource.to_owned(), namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// The key of a Namespace.
    pub(crate) fn namespace_object(name: &str) -> Self {
        Self::new("namespaces", "", name)
    }
}

/// A change, for the controllers.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) key: Key,
    /// The object after the change; if deleted, its last state.
    pub(crate) object: Arc<Value>,
    pub(crate) deleted: bool,
}

/// The end of a pod's output.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Vec<u8>);

impl Log {
    /// What is kept.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Appends to it, or replaces it.
    pub(crate) fn write(&mut self, bytes: &[u8], append: bool) {
        if !append {
            self.0.clear();
        }
        self.0.extend_from_slice(bytes);
        self.0.drain(..self.0.len().saturating_sub(LOG_LIMIT));
    }

    /// The last `lines` lines.
    pub(crate) fn tail(&self, lines: usize) -> &[u8] {
        let body = self.0.strip_suffix(b"\n").unwrap_or(&self.0);
        let mut ends = (0..body.len()).rev().filter(|at| body[*at] == b'\n');
        match lines.checked_sub(1) {
            Some(before) => &self.0[ends.nth(before).map_or(0, |end| end + 1)..],
            None => &[],
        }
    }
}

/// A state of all objects.
pub(crate) type Objects = BTreeMap<Key, Arc<Value>>;

/// The state, and notifications of its changes.
#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
}

impl Store {
    /// Opens a store in memory, or in the file at `path` as well.
    pub(crate) fn open(path: Option<&Path>) -> io::Result<Self> {
        let mut state = State::default();
        if let Some(path) = path {
            Journal::replay(path, |entry| state.apply(entry))?;
            // The controllers continue where they were.
            state.changes = state
                .objects
                .iter()
                .map(|(key, object)| Change { key: key.clone(), object: Arc::clone(object), deleted: false })
                .collect();
            state.journal = Some(Journal::create(path, state.snapshot())?);
        }
        let (changed, _) = watch::channel(state.revision);
        Ok(Self { state: Mutex::new(state), changed })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.lock())
    }

    /// Changes the state, writes the changes to disk, and notifies subscribers.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let before = state.revision;
        let result = change(&mut state);
        if let Some(journal) = &mut state.journal {
            journal.flush();
        }
        if before != state.revision {
            self.changed.send_replace(state.revision);
        }
        result
    }

    /// Notifies of each change; the value is the latest resourceVersion.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

/// The objects, with indexes by uid and by owner.
#[derive(Debug, Default)]
pub(crate) struct State {
    objects: Objects,
    by_uid: HashMap<String, Key>,
    dependents: HashMap<String, BTreeSet<Key>>,
    revision: u64,
    /// Changes that the controllers have not seen.
    changes: VecDeque<Change>,
    /// States that paged lists continue with, by resourceVersion.
    snapshots: BTreeMap<u64, Objects>,
    /// By the pod's uid.
    logs: HashMap<String, Log>,
    journal: Option<Journal>,
}

impl State {
    /// The latest resourceVersion.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// The key of the object with that uid.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Key> {
        self.by_uid.get(uid)
    }

    /// The objects that name `uid` among their owners.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Key> {
        self.dependents.get(uid).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }

    /// The objects of a resource in order, in one namespace or in all.
    pub(crate) fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        within(&self.objects, resource, namespace)
    }

    /// Everything in a namespace.
    pub(crate) fn content(&self, namespace: &str) -> Vec<Key> {
        self.objects.keys().filter(|key| key.namespace == namespace).cloned().collect()
    }

    /// The objects as they were at `revision`; `None` if that is forgotten.
    pub(crate) fn at(&self, revision: u64) -> Option<&Objects> {
        if revision == self.revision { Some(&self.objects) } else { self.snapshots.get(&revision) }
    }

    /// Keeps the present state for the next pages of a list.
    pub(crate) fn remember(&mut self) {
        self.snapshots.entry(self.revision).or_insert_with(|| self.objects.clone());
        if self.snapshots.len() > SNAPSHOTS {
            self.snapshots.pop_first();
        }
    }

    /// Forgets all states but the present one.
    pub(crate) fn forget_history(&mut self) {
        self.snapshots.clear();
    }

    /// The oldest change that the controllers have not seen.
    pub(crate) fn next_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }

    /// Stores an object, with the next resourceVersion.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        objects::set(&mut object, "resourceVersion", Some(self.revision.to_string().into()));
        let object = Arc::new(object);
        self.insert(key, &object);
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::Put(key.resource.clone(), Arc::clone(&object)));
        }
        self.changes.push_back(Change { key: key.clone(), object: Arc::clone(&object), deleted: false });
        object
    }

    /// Removes an object. Returns its last state.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let object = self.take(key)?;
        self.revision += 1;
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::Delete(key.resource.clone(), key.namespace.clone(), key.name.clone()));
        }
        self.changes.push_back(Change { key: key.clone(), object: Arc::clone(&object), deleted: true });
        Some(object)
    }

    fn insert(&mut self, key: &Key, object: &Arc<Value>) {
        if let Some(previous) = self.objects.insert(key.clone(), Arc::clone(object)) {
            self.unlink(key, &previous);
        }
        self.by_uid.insert(objects::uid(object).to_owned(), key.clone());
        for owner in objects::owners(object) {
            let owner = owner["uid"].as_str().unwrap_or_default().to_owned();
            self.dependents.entry(owner).or_default().insert(key.clone());
        }
    }

    fn take(&mut self, key: &Key) -> Option<Arc<Value>> {
        let object = self.objects.remove(key)?;
        self.unlink(key, &object);
        self.logs.remove(objects::uid(&object));
        Some(object)
    }

    fn unlink(&mut self, key: &Key, object: &Value) {
        self.by_uid.remove(objects::uid(object));
        for owner in objects::owners(object) {
            let owner = owner["uid"].as_str().unwrap_or_default();
            if let Some(keys) = self.dependents.get_mut(owner) {
                keys.remove(key);
                if keys.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }

    /// The log of the pod with that uid.
    pub(crate) fn log(&self, uid: &str) -> Option<&Log> {
        self.logs.get(uid)
    }

    /// Appends to the log of a pod, or replaces it.
    pub(crate) fn write_log(&mut self, uid: &str, bytes: &[u8], append: bool) {
        self.logs.entry(uid.to_owned()).or_default().write(bytes, append);
        if let Some(journal) = &mut self.journal {
            journal.append(&Entry::log(uid, bytes, append));
        }
    }

    /// Repeats an entry of the journal.
    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Revision(revision) => self.revision = revision,
            Entry::Put(resource, object) => {
                let key = Key::new(&resource, objects::namespace(&object), objects::name(&object));
                self.insert(&key, &object);
                let revision = objects::text(&object, "resourceVersion").parse().unwrap_or_default();
                self.revision = self.revision.max(revision);
            }
            Entry::Delete(resource, namespace, name) => {
                self.take(&Key::new(&resource, &namespace, &name));
                self.revision += 1;
            }
            Entry::Log { uid, text, append } => {
                self.logs.entry(uid).or_default().write(&Entry::decode(&text), append);
            }
        }
    }

    /// The entries that make up this state.
    fn snapshot(&self) -> impl Iterator<Item = Entry> {
        let objects = self.objects.iter().map(|(key, object)| Entry::Put(key.resource.clone(), Arc::clone(object)));
        let logs = self.logs.iter().map(|(uid, log)| Entry::log(uid, log.bytes(), false));
        std::iter::once(Entry::Revision(self.revision)).chain(objects).chain(logs)
    }
}

/// The objects of a resource in order, in one namespace or in all.
pub(crate) fn within<'a>(
    objects: &'a Objects,
    resource: &'a str,
    namespace: Option<&'a str>,
) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
    objects.range(Key::new(resource, namespace.unwrap_or_default(), "")..).take_while(move |(key, _)| {
        key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_counts_lines_with_and_without_an_end() {
        for (text, lines, tail) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc", 9, "a\nb\nc"),
            ("a\nb", 0, ""),
            ("", 3, ""),
        ] {
            assert_eq!(Log(text.into()).tail(lines), tail.as_bytes(), "{text:?} {lines}");
        }
    }
}
