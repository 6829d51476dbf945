//! Which resources are served: those of [`super::builtin`], and those that CustomResourceDefinitions add.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use serde_json::Value;

use super::{
    builtin::{self, BuiltIn},
    meta,
    schema::Schema,
    store::{Key, State},
    table::Column,
};

/// One served resource in one version.
#[derive(Debug)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) list_kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    /// Whether `/status` is a door of its own.
    pub(crate) status: bool,
    /// The plural with the group, as messages name it: `jobs.batch`, `pods`.
    pub(crate) id: Arc<str>,
    pub(crate) columns: Vec<Column>,
    pub(crate) form: Form,
}

/// Where a resource's rules come from.
#[derive(Debug)]
pub(crate) enum Form {
    /// From the code.
    BuiltIn(&'static BuiltIn),
    /// From the schema of a CustomResourceDefinition.
    Custom(Schema),
}

impl Resource {
    /// `v1`, `batch/v1`.
    pub(crate) fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// The key of one of its objects.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> Key {
        Key::new(&self.id, namespace, name)
    }

    /// The rules of a built-in resource.
    pub(crate) fn built_in(&self) -> Option<&'static BuiltIn> {
        match self.form {
            Form::BuiltIn(built_in) => Some(built_in),
            Form::Custom(_) => None,
        }
    }

    /// The schema of a custom resource.
    pub(crate) fn schema(&self) -> Option<&Schema> {
        match &self.form {
            Form::BuiltIn(_) => None,
            Form::Custom(schema) => Some(schema),
        }
    }
}

/// `v1`, `batch/v1`.
pub(crate) fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// The resource's name with its group: `jobs.batch`, `pods`.
pub(crate) fn id(plural: &str, group: &str) -> Arc<str> {
    if group.is_empty() { plural.into() } else { format!("{plural}.{group}").into() }
}

/// What a definition was made into.
#[derive(Debug)]
struct Defined {
    /// The definition's resourceVersion.
    revision: String,
    versions: Vec<Arc<Resource>>,
}

/// Finds resources.
#[derive(Debug)]
pub(crate) struct Registry {
    built_in: Vec<Arc<Resource>>,
    definitions: Arc<str>,
    /// What definitions were made into, by their names.
    custom: Mutex<HashMap<String, Defined>>,
}

impl Registry {
    /// The built-in resources.
    pub(crate) fn new() -> Self {
        Self {
            built_in: builtin::ALL.iter().map(|row| Arc::new(row.resource())).collect(),
            definitions: id("customresourcedefinitions", "apiextensions.k8s.io"),
            custom: Mutex::default(),
        }
    }

    /// Whether there are built-in resources in that group and version.
    pub(crate) fn has_built_in(&self, group: &str, version: &str) -> bool {
        self.built_in.iter().any(|resource| resource.group == group && resource.version == version)
    }

    /// The resource of that plural.
    pub(crate) fn find(&self, state: &State, group: &str, version: &str, plural: &str) -> Option<Arc<Resource>> {
        let fits = |resource: &&Arc<Resource>| {
            resource.group == group && resource.version == version && resource.plural == plural
        };
        if let Some(found) = self.built_in.iter().find(fits) {
            return Some(Arc::clone(found));
        }
        let key = Key::new(&self.definitions, "", &format!("{plural}.{group}"));
        let definition = state.get(&key)?;
        self.versions(definition).iter().find(fits).cloned()
    }

    /// Any served version of the resource with that id.
    pub(crate) fn by_id(&self, state: &State, id: &str) -> Option<Arc<Resource>> {
        if let Some(found) = self.built_in.iter().find(|resource| &*resource.id == id) {
            return Some(Arc::clone(found));
        }
        let key = Key::new(&self.definitions, "", id);
        self.versions(state.get(&key)?).first().cloned()
    }

    /// All of them, built-in ones first.
    pub(crate) fn all(&self, state: &State) -> Vec<Arc<Resource>> {
        let custom = state.list(&self.definitions, None, None).flat_map(|(_, definition)| self.versions(definition));
        self.built_in.iter().cloned().chain(custom).collect()
    }

    /// The resources that a definition serves, one for each version.
    fn versions(&self, definition: &Value) -> Vec<Arc<Resource>> {
        let mut custom = self.custom.lock().unwrap_or_else(PoisonError::into_inner);
        let revision = meta::text(definition, "resourceVersion");
        if let Some(known) = custom.get(meta::name(definition))
            && known.revision == revision
        {
            return known.versions.clone();
        }
        let versions: Vec<Arc<Resource>> = meta::list(&definition["spec"]["versions"])
            .iter()
            .filter(|version| version["served"] == true)
            .map(|version| Arc::new(from_definition(definition, version)))
            .collect();
        let name = meta::name(definition).to_owned();
        let defined = Defined { revision: revision.to_owned(), versions: versions.clone() };
        custom.insert(name, defined);
        versions
    }
}

/// The resource that one version of a definition describes.
fn from_definition(definition: &Value, version: &Value) -> Resource {
    let spec = &definition["spec"];
    let names = &spec["names"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| meta::list(value).iter().map(text).collect();
    let group = text(&spec["group"]);
    let plural = text(&names["plural"]);
    Resource {
        version: text(&version["name"]),
        kind: text(&names["kind"]),
        list_kind: text(&names["listKind"]),
        singular: text(&names["singular"]),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        status: version["subresources"]["status"].is_object(),
        id: id(&plural, &group),
        columns: Column::of_definition(&version["additionalPrinterColumns"]),
        form: Form::Custom(Schema::new(version["schema"]["openAPIV3Schema"].clone())),
        group,
        plural,
    }
}
