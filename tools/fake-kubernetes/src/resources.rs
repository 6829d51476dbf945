//! The resources: those of the table below, and those that CustomResourceDefinitions add.

use serde_json::{Value, json};

use crate::objects;
use crate::store::{Key, State};

/// The id of CustomResourceDefinitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
/// The id of Jobs.
pub(crate) const JOBS: &str = "jobs.batch";
/// The id of pods.
pub(crate) const PODS: &str = "pods";
/// The id of PersistentVolumeClaims.
pub(crate) const CLAIMS: &str = "persistentvolumeclaims";
/// Holds a claim while a pod uses it. Source: Kubernetes documentation, "Storage Object in Use Protection".
pub(crate) const PVC_PROTECTION: &str = "kubernetes.io/pvc-protection";

/// A resource in one version.
#[derive(Clone, Debug)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether it has the subresource `status`.
    pub(crate) status: bool,
    /// Whether a deletion returns the object instead of a `Status`.
    pub(crate) returns_deleted: bool,
    /// The `additionalPrinterColumns` of a definition.
    pub(crate) columns: Vec<Value>,
}

impl Resource {
    /// `v1`, `batch/v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The plural with the group: `pods`, `jobs.batch`.
    pub(crate) fn id(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The key of one of its objects.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> Key {
        Key::new(&self.id(), namespace, name)
    }
}

/// Group, kind, plural, short name; whether it is namespaced, has a status, and is returned by a deletion.
type BuiltIn = (&'static str, &'static str, &'static str, &'static str, [bool; 3]);

const NAMESPACE: BuiltIn = ("", "Namespace", "namespaces", "ns", [false, true, false]);
const POD: BuiltIn = ("", "Pod", "pods", "po", [true, true, true]);
const BUILT_IN: [BuiltIn; 6] = [
    NAMESPACE,
    POD,
    ("", "ConfigMap", "configmaps", "cm", [true, false, false]),
    ("", "PersistentVolumeClaim", "persistentvolumeclaims", "pvc", [true, true, true]),
    ("batch", "Job", "jobs", "", [true, true, false]),
    ("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", "crd", [false, true, false]),
];

fn from_table((group, kind, plural, short_name, [namespaced, status, returns_deleted]): &BuiltIn) -> Resource {
    let short_names = Some(*short_name).filter(|name| !name.is_empty());
    Resource {
        group: (*group).to_owned(),
        version: "v1".to_owned(),
        kind: (*kind).to_owned(),
        plural: (*plural).to_owned(),
        short_names: short_names.map(str::to_owned).into_iter().collect(),
        namespaced: *namespaced,
        status: *status,
        returns_deleted: *returns_deleted,
        columns: Vec::new(),
    }
}

/// The resources that a definition serves, one for each version.
fn from_definition(definition: &Value) -> impl Iterator<Item = Resource> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    objects::list(&spec["versions"]).iter().filter(|version| version["served"] == true).map(move |version| Resource {
        group: text(&spec["group"]),
        version: text(&version["name"]),
        kind: text(&spec["names"]["kind"]),
        plural: text(&spec["names"]["plural"]),
        short_names: objects::list(&spec["names"]["shortNames"]).iter().map(text).collect(),
        namespaced: spec["scope"] == "Namespaced",
        status: version["subresources"]["status"].is_object(),
        returns_deleted: false,
        columns: objects::list(&version["additionalPrinterColumns"]).to_vec(),
    })
}

/// All resources.
pub(crate) fn all(state: &State) -> Vec<Resource> {
    let custom = state.list(DEFINITIONS, None).flat_map(|(_, definition)| from_definition(definition));
    BUILT_IN.iter().map(from_table).chain(custom).collect()
}

/// The resource of that group, version and plural.
pub(crate) fn find(state: &State, group: &str, version: &str, plural: &str) -> Option<Resource> {
    if let Some(row) = BUILT_IN.iter().find(|row| row.0 == group && row.2 == plural && version == "v1") {
        return Some(from_table(row));
    }
    let definition = state.get(&Key::new(DEFINITIONS, "", &format!("{plural}.{group}")))?;
    from_definition(definition).find(|resource| resource.version == version)
}

/// The resource of Namespaces.
pub(crate) fn namespaces() -> Resource {
    from_table(&NAMESPACE)
}

/// The resource of pods.
pub(crate) fn pods() -> Resource {
    from_table(&POD)
}

/// Completes a new object as the real server does, as far as clients depend on it.
pub(crate) fn complete(resource: &Resource, object: &mut Value) {
    let status = match resource.id().as_str() {
        "namespaces" => json!({ "phase": "Active" }),
        CLAIMS => {
            objects::add_finalizer(object, PVC_PROTECTION);
            json!({ "phase": "Pending" })
        }
        PODS => json!({ "phase": "Pending" }),
        JOBS => json!({}),
        DEFINITIONS => json!({ "conditions": [{
            "type": "Established",
            "status": "True",
            "lastTransitionTime": objects::now(),
            "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        }] }),
        _ => return,
    };
    objects::set_top(object, "status", Some(status));
}
