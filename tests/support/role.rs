//! The Role that the service is given in a cluster (infra/kubernetes/environment/role.yaml), and what it asks clusters
//! for.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::ops::Deref;

use fake_kubernetes::{EmbeddedCluster, Request};
use k8s_openapi::api::rbac::v1::Role;

/// An embedded cluster. At its end, whatever the service has asked it for has to be something that the Role allows;
/// else the test has failed.
///
/// Both also go to the file that ROLE_REPORT names, by which scripts/test finds what the Role allows and nobody needs.
#[derive(Debug)]
pub struct Guarded(pub EmbeddedCluster);

impl Deref for Guarded {
    type Target = EmbeddedCluster;

    fn deref(&self) -> &EmbeddedCluster {
        &self.0
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let requests = self.requests();
        let of_the_service = requests.iter().filter(|request| request.user_agent.starts_with("operator-service/"));
        let asked: BTreeSet<String> = of_the_service.map(asked).collect();
        let allowed = allowed();
        if let Some(report) = std::env::var_os("ROLE_REPORT") {
            let mut lines = String::new();
            for (what, list) in [("asked", &asked), ("allowed", &allowed)] {
                list.iter().for_each(|line| writeln!(lines, "{what} {line}").unwrap());
            }
            let mut report = std::fs::OpenOptions::new().create(true).append(true).open(report).unwrap();
            // One write, so that lines of tests that run at once do not mix.
            report.write_all(lines.as_bytes()).unwrap();
        }
        let refused: Vec<_> = asked.difference(&allowed).collect();
        if !std::thread::panicking() {
            assert!(refused.is_empty(), "role.yaml does not allow what the service asked for: {refused:?}");
        }
    }
}

/// `verb resource/subresource group`. A Role allows nothing outside of a namespace, and no path that names no resource.
fn asked(request: &Request) -> String {
    let Request { verb, group, resource, subresource, namespace, path, .. } = request;
    if resource.is_empty() || namespace.is_empty() {
        return format!("{verb} {path}");
    }
    let slash = if subresource.is_empty() { "" } else { "/" };
    format!("{verb} {resource}{slash}{subresource} {group}").trim_end().to_owned()
}

fn allowed() -> BTreeSet<String> {
    let role: Role = serde_saphyr::from_str(include_str!("../../infra/kubernetes/environment/role.yaml")).unwrap();
    let mut allowed = BTreeSet::new();
    for rule in role.rules.unwrap() {
        for group in rule.api_groups.unwrap() {
            for resource in rule.resources.iter().flatten() {
                allowed
                    .extend(rule.verbs.iter().map(|verb| format!("{verb} {resource} {group}").trim_end().to_owned()));
            }
        }
    }
    allowed
}
