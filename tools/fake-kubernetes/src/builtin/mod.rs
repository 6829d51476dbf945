//! The resources that need no CustomResourceDefinition: one row each.
//!
//! Adding one means adding a row here, and rules beside this file only if it has any.

pub(crate) mod claims;
mod config_maps;
mod definitions;
mod jobs;
mod namespaces;
mod pods;

use k8s_openapi::{
    api::{batch, core, networking, rbac},
    apiextensions_apiserver::pkg::apis::apiextensions,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    meta::NameRule,
    registry::{self, Form, Resource},
    status::FieldError,
    table::{self, BuiltInColumn, Column},
};

/// A built-in resource and its rules.
#[derive(Debug)]
pub(crate) struct BuiltIn {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short_names: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    status: bool,
    columns: &'static [BuiltInColumn],
    /// Whether `metadata.generation` counts changes of the spec.
    pub(crate) generation: bool,
    /// Whether all can be deleted at once.
    pub(crate) deletes_collections: bool,
    /// Whether a deletion is answered with the object instead of a `Status`.
    pub(crate) returns_deleted: bool,
    /// What happens to dependents when a deletion does not say.
    pub(crate) orphans_by_default: bool,
    /// How names are checked.
    pub(crate) names: NameRule,
    /// Fields that may be selected by, besides name and namespace.
    pub(crate) fields: &'static [&'static str],
    /// Reads an object into its Rust type and back, which finds wrong types and drops unknown fields.
    pub(crate) decode: fn(Value) -> Result<Value, String>,
    /// Fills in what the caller left out; the old object on an update.
    pub(crate) prepare: fn(&mut Value, Option<&Value>),
    /// What is wrong with the object; the old one on an update.
    pub(crate) validate: fn(&Value, Option<&Value>, &mut Vec<FieldError>),
}

impl BuiltIn {
    /// A row with the rules that most have.
    const fn new<T: Serialize + DeserializeOwned>(
        group: &'static str,
        kind: &'static str,
        plural: &'static str,
    ) -> Self {
        Self {
            group,
            version: "v1",
            kind,
            plural,
            short_names: &[],
            categories: &[],
            namespaced: true,
            status: false,
            columns: table::NAME_AND_AGE,
            generation: false,
            deletes_collections: true,
            returns_deleted: false,
            orphans_by_default: false,
            names: NameRule::Subdomain,
            fields: &[],
            decode: round_trip::<T>,
            prepare: |_, _| {},
            validate: |_, _, _| {},
        }
    }

    /// The row as the registry knows resources.
    pub(crate) fn resource(&'static self) -> Resource {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Resource {
            group: self.group.to_owned(),
            version: self.version.to_owned(),
            kind: self.kind.to_owned(),
            list_kind: format!("{}List", self.kind),
            plural: self.plural.to_owned(),
            singular: self.kind.to_lowercase(),
            short_names: texts(self.short_names),
            categories: texts(self.categories),
            namespaced: self.namespaced,
            status: self.status,
            id: registry::id(self.plural, self.group),
            columns: Column::of_built_in(self.columns),
            form: Form::BuiltIn(self),
        }
    }
}

fn round_trip<T: Serialize + DeserializeOwned>(value: Value) -> Result<Value, String> {
    serde_json::from_value::<T>(value).and_then(serde_json::to_value).map_err(|error| error.to_string())
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// Every built-in resource.
pub(crate) static ALL: &[BuiltIn] = &[
    BuiltIn {
        short_names: &["ns"],
        namespaced: false,
        status: true,
        columns: table::NAMESPACES,
        deletes_collections: false,
        names: NameRule::Label,
        fields: &["status.phase"],
        prepare: namespaces::prepare,
        ..BuiltIn::new::<core::v1::Namespace>("", "Namespace", "namespaces")
    },
    BuiltIn {
        short_names: &["po"],
        categories: &["all"],
        status: true,
        columns: table::PODS,
        returns_deleted: true,
        fields: &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "status.nominatedNodeName",
            "status.phase",
            "status.podIP",
        ],
        prepare: pods::prepare,
        validate: pods::validate,
        ..BuiltIn::new::<core::v1::Pod>("", "Pod", "pods")
    },
    BuiltIn {
        short_names: &["cm"],
        columns: table::CONFIG_MAPS,
        validate: config_maps::validate,
        ..BuiltIn::new::<core::v1::ConfigMap>("", "ConfigMap", "configmaps")
    },
    BuiltIn {
        short_names: &["pvc"],
        status: true,
        columns: table::CLAIMS,
        returns_deleted: true,
        prepare: claims::prepare,
        validate: claims::validate,
        ..BuiltIn::new::<core::v1::PersistentVolumeClaim>("", "PersistentVolumeClaim", "persistentvolumeclaims")
    },
    BuiltIn {
        short_names: &["ev"],
        columns: table::EVENTS,
        fields: &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "type",
        ],
        ..BuiltIn::new::<core::v1::Event>("", "Event", "events")
    },
    BuiltIn {
        short_names: &["sa"],
        columns: table::SERVICE_ACCOUNTS,
        returns_deleted: true,
        ..BuiltIn::new::<core::v1::ServiceAccount>("", "ServiceAccount", "serviceaccounts")
    },
    BuiltIn {
        columns: table::SECRETS,
        fields: &["type"],
        prepare: config_maps::prepare_secret,
        validate: config_maps::validate,
        ..BuiltIn::new::<core::v1::Secret>("", "Secret", "secrets")
    },
    BuiltIn {
        short_names: &["quota"],
        status: true,
        returns_deleted: true,
        ..BuiltIn::new::<core::v1::ResourceQuota>("", "ResourceQuota", "resourcequotas")
    },
    BuiltIn { short_names: &["limits"], ..BuiltIn::new::<core::v1::LimitRange>("", "LimitRange", "limitranges") },
    BuiltIn {
        categories: &["all"],
        status: true,
        columns: table::JOBS,
        generation: true,
        orphans_by_default: true,
        fields: &["status.successful"],
        prepare: jobs::prepare,
        validate: jobs::validate,
        ..BuiltIn::new::<batch::v1::Job>("batch", "Job", "jobs")
    },
    BuiltIn {
        short_names: &["netpol"],
        columns: table::NETWORK_POLICIES,
        generation: true,
        ..BuiltIn::new::<networking::v1::NetworkPolicy>("networking.k8s.io", "NetworkPolicy", "networkpolicies")
    },
    BuiltIn {
        columns: table::CREATED_AT,
        names: NameRule::PathSegment,
        ..BuiltIn::new::<rbac::v1::Role>(RBAC, "Role", "roles")
    },
    BuiltIn {
        columns: table::ROLE_BINDINGS,
        names: NameRule::PathSegment,
        ..BuiltIn::new::<rbac::v1::RoleBinding>(RBAC, "RoleBinding", "rolebindings")
    },
    BuiltIn {
        namespaced: false,
        columns: table::CREATED_AT,
        names: NameRule::PathSegment,
        ..BuiltIn::new::<rbac::v1::ClusterRole>(RBAC, "ClusterRole", "clusterroles")
    },
    BuiltIn {
        namespaced: false,
        columns: table::ROLE_BINDINGS,
        names: NameRule::PathSegment,
        ..BuiltIn::new::<rbac::v1::ClusterRoleBinding>(RBAC, "ClusterRoleBinding", "clusterrolebindings")
    },
    BuiltIn {
        short_names: &["crd", "crds"],
        categories: &["api-extensions"],
        namespaced: false,
        status: true,
        columns: table::CREATED_AT,
        generation: true,
        prepare: definitions::prepare,
        validate: definitions::validate,
        ..BuiltIn::new::<apiextensions::v1::CustomResourceDefinition>(
            "apiextensions.k8s.io",
            "CustomResourceDefinition",
            "customresourcedefinitions",
        )
    },
];
