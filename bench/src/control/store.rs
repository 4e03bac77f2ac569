//! What the API server holds: objects by collection as they are sent, a version for every write, and the writes of the recent
//! past for watches. No HTTP.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Writes of a collection that a watch may be behind; one that is further behind has to list anew, as with a real API server.
const HISTORY: usize = 65_536;

/// Namespace (empty: none) and name.
pub type Key = (String, String);

/// One write, as a watch tells it.
#[derive(Clone, Debug)]
pub struct Event {
    /// The version that it made.
    pub version: u64,
    /// Of what.
    pub key: Key,
    /// A line of a watch.
    pub line: Bytes,
}

struct Collection {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Event>,
    told: broadcast::Sender<Event>,
}

impl Default for Collection {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), history: VecDeque::new(), told: broadcast::Sender::new(HISTORY) }
    }
}

/// All collections, by path: "v1/pods", "weft.dev/v1alpha1/meshservices".
#[derive(Default)]
pub struct Store {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    version: u64,
    collections: HashMap<String, Collection>,
}

/// The objects of a collection, and the version that they are of.
pub type Listed = (u64, Vec<(Key, Arc<Value>)>);
/// Writes that came before, and those that come.
pub type Watched = (Vec<Event>, broadcast::Receiver<Event>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an object, new or in place of another. Returns it as stored.
    pub fn put(&self, collection: &str, key: Key, mut object: Value) -> Arc<Value> {
        let mut state = self.lock();
        state.version += 1;
        let version = state.version;
        let held = state.collections.entry(collection.to_owned()).or_default();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let object = Arc::new(object);
        let kind = match held.objects.insert(key.clone(), Arc::clone(&object)) {
            Some(_) => "MODIFIED",
            None => "ADDED",
        };
        held.tell(version, key, kind, &object);
        object
    }

    /// Deletes an object. Returns what it was.
    pub fn delete(&self, collection: &str, key: &Key) -> Option<Arc<Value>> {
        let mut state = self.lock();
        let version = state.version + 1;
        let held = state.collections.get_mut(collection)?;
        let gone = held.objects.remove(key)?;
        let mut object = Value::clone(&gone);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        held.tell(version, key.clone(), "DELETED", &object);
        state.version = version;
        Some(gone)
    }

    /// One object.
    #[must_use]
    pub fn object(&self, collection: &str, key: &Key) -> Option<Arc<Value>> {
        self.lock().collections.get(collection)?.objects.get(key).cloned()
    }

    /// All objects of a collection, in order.
    #[must_use]
    pub fn list(&self, collection: &str) -> Listed {
        let state = self.lock();
        let objects = state.collections.get(collection).into_iter().flat_map(|held| &held.objects);
        (state.version, objects.map(|(key, object)| (key.clone(), Arc::clone(object))).collect())
    }

    /// What was written since a version, and what will be; `None` when that is too long ago.
    #[must_use]
    pub fn watch(&self, collection: &str, since: u64) -> Option<Watched> {
        let mut state = self.lock();
        let held = state.collections.entry(collection.to_owned()).or_default();
        let forgotten = held.history.len() == HISTORY && held.history.front()?.version > since + 1;
        let past = held.history.iter().filter(|event| event.version > since).cloned().collect();
        (!forgotten).then(|| (past, held.told.subscribe()))
    }
}

impl Collection {
    fn tell(&mut self, version: u64, key: Key, kind: &str, object: &Value) {
        let mut line = json!({ "type": kind, "object": object }).to_string();
        line.push('\n');
        let event = Event { version, key, line: line.into() };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event.clone());
        // Nobody need watch.
        let _ = self.told.send(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> Key {
        ("a".into(), "b".into())
    }

    #[tokio::test]
    async fn a_watch_gets_what_came_after_the_list_once_and_in_order() {
        let store = Store::default();
        store.put("v1/pods", key(), json!({ "n": 1 }));
        let (version, listed) = store.list("v1/pods");
        assert_eq!((version, listed.len()), (1, 1));
        store.put("v1/pods", key(), json!({ "n": 2 }));
        let (past, mut coming) = store.watch("v1/pods", version).expect("it is not long ago");
        store.delete("v1/pods", &key());
        assert_eq!(past.len(), 1);
        let line = |event: &Event| serde_json::from_slice::<Value>(&event.line).unwrap_or_default();
        assert_eq!((line(&past[0])["type"].as_str(), past[0].version), (Some("MODIFIED"), 2));
        let gone = coming.recv().await.expect("it was told");
        assert_eq!((line(&gone)["type"].as_str(), gone.version), (Some("DELETED"), 3));
        assert_eq!(line(&gone)["object"]["n"], 2);
        assert!(store.list("v1/pods").1.is_empty());
    }
}
