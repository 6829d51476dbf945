//! The Kubernetes cluster to use, and how to reach it if it is an EKS cluster.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use url::{Host, Url};

use super::variables::{Reader, Section, Unset, Variable};

const KUBECONFIG: Variable<Unset> = Variable {
    name: "KUBECONFIG",
    default: Unset("~/.kube/config"),
    description: "The kubeconfig of the cluster, unless `EKS_CLUSTER_NAME` is set. Inside a pod none is needed.",
};
const EKS_CLUSTER_NAME: Variable<Unset> = Variable {
    name: "EKS_CLUSTER_NAME",
    default: Unset("none"),
    description: "The name of the EKS cluster to use, with tokens made from the process's AWS credentials.",
};
const EKS_CLUSTER_ENDPOINT: Variable<Unset> = Variable {
    name: "EKS_CLUSTER_ENDPOINT",
    default: Unset("looked up"),
    description: "The URL of its API server. Without it and `EKS_CLUSTER_CA`, `eks:DescribeCluster` is called once.",
};
const EKS_CLUSTER_CA: Variable<Unset> = Variable {
    name: "EKS_CLUSTER_CA",
    default: Unset("looked up"),
    description: "Its certificate authority as EKS returns it: PEM in base64.",
};
const EKS_ROLE_ARN: Variable<Unset> = Variable {
    name: "EKS_ROLE_ARN",
    default: Unset("none"),
    description: "The role that has access to the cluster, if it is not the process's own.",
};

pub(super) const SECTION: Section = Section {
    title: "Cluster",
    variables: &[&KUBECONFIG, &EKS_CLUSTER_NAME, &EKS_CLUSTER_ENDPOINT, &EKS_CLUSTER_CA, &EKS_ROLE_ARN],
};

/// How to reach an EKS cluster with tokens made by this process.
#[derive(Debug, Clone)]
pub struct EksConfig {
    /// EKS_CLUSTER_NAME
    pub name: String,
    /// EKS_CLUSTER_ENDPOINT and EKS_CLUSTER_CA; `None` if EKS has to be called for them.
    pub endpoint: Option<EksEndpoint>,
    /// EKS_ROLE_ARN: the role that has access to the cluster, if it is not the process's own.
    pub role_arn: Option<String>,
}

/// Where a cluster is, and the authority of its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EksEndpoint {
    /// The URL of its API server.
    pub url: String,
    /// The certificates of its authority, in DER; none if the URL is not an https one.
    pub authority: Vec<Vec<u8>>,
}

impl EksEndpoint {
    /// Parses a cluster's authority as EKS returns it: a PEM file in base64.
    pub fn parse_authority(base64: &str) -> Option<Vec<Vec<u8>>> {
        let pem = STANDARD.decode(base64.trim()).ok()?;
        let certificates = CertificateDer::pem_slice_iter(&pem).map(|certificate| Some(certificate.ok()?.to_vec()));
        certificates.collect::<Option<Vec<_>>>().filter(|certificates| !certificates.is_empty())
    }
}

impl EksConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let name = reader.text(&EKS_CLUSTER_NAME);
        let role_arn = reader.text(&EKS_ROLE_ARN);
        let (url, authority) = (reader.text(&EKS_CLUSTER_ENDPOINT), reader.text(&EKS_CLUSTER_CA));
        if name.is_none() && (url.is_some() || authority.is_some() || role_arn.is_some()) {
            let expected = "set where EKS_CLUSTER_ENDPOINT, EKS_CLUSTER_CA or EKS_ROLE_ARN is";
            reader.must_be(EKS_CLUSTER_NAME.name, expected);
        }
        if role_arn.as_ref().is_some_and(|arn| !arn.starts_with("arn:")) {
            reader.must_be(EKS_ROLE_ARN.name, "a role's ARN");
        }
        let authority = match authority.as_deref().map(EksEndpoint::parse_authority) {
            Some(None) => {
                reader.must_be(EKS_CLUSTER_CA.name, "a PEM file in base64, as EKS returns it");
                return None;
            }
            authority => authority.flatten().unwrap_or_default(),
        };
        if url.is_none() && !authority.is_empty() {
            reader.must_be(EKS_CLUSTER_ENDPOINT.name, "set where EKS_CLUSTER_CA is");
        }
        if let Some(url) = &url {
            match Url::parse(url) {
                Ok(url) if url.scheme() == "https" && url.has_host() => {
                    if authority.is_empty() {
                        reader.must_be(EKS_CLUSTER_CA.name, "set where EKS_CLUSTER_ENDPOINT is");
                    }
                }
                // A token must not leave this machine unencrypted.
                Ok(url) if url.scheme() == "http" && is_loopback(&url) => {}
                _ => reader.must_be(EKS_CLUSTER_ENDPOINT.name, "an https URL"),
            }
        }
        Some(Self { name: name?, endpoint: url.map(|url| EksEndpoint { url, authority }), role_arn })
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
