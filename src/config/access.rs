//! Whose requests are accepted: signers and administrators.

use std::net::IpAddr;
use std::time::Duration;

use super::aws;
use super::variables::{Off, Reader, Section, Unset, Variable};
use crate::auth::Policy;

const SIGNATURE_REQUIRED: Variable<Off> = Variable {
    name: "SIGNATURE_REQUIRED",
    default: Off,
    description: "1: the signer of a request has to be one of `ALLOWED_PROVIDERS`. 0: no signature is refused because \
        of its signer.",
};
const SIGNATURE_STRICT: Variable<Off> = Variable {
    name: "SIGNATURE_STRICT",
    default: Off,
    description: "1: only Provider's form of signature is accepted, which binds owner, job and nonce. 0: those of \
        Ocean Node and Brizo are accepted too.",
};
const ALLOWED_PROVIDERS: Variable<Unset> = Variable {
    name: "ALLOWED_PROVIDERS",
    default: Unset("none"),
    description: "A list of the Ethereum addresses whose signatures are accepted. Required if `SIGNATURE_REQUIRED` is \
        1.",
};
const ALLOWED_ADMINS: Variable<Unset> = Variable {
    name: "ALLOWED_ADMINS",
    default: Unset("none"),
    description: "A list of the values that the header `Admin` of an administrator's request may have. If unset, the \
        admin routes refuse every request, unless `LOCAL_ADMIN` is 1.",
};
const LOCAL_ADMIN: Variable<Off> = Variable {
    name: "LOCAL_ADMIN",
    default: Off,
    description: "1: where `ALLOWED_ADMINS` is unset, the admin routes accept the requests that are sent to a loopback \
        name and through no proxy. For trying the service out on one's own machine: refused in a Lambda function and \
        where `HOST` is not a loopback address. Without effect if `ALLOWED_ADMINS` is set.",
};
const NONCE_WINDOW: Variable<u64> = Variable {
    name: "NONCE_WINDOW",
    default: 300,
    description: "Seconds that a nonce may be below the signer's highest, or ahead of the clock.",
};

pub(super) const SECTION: Section = Section {
    title: "Signatures and administrators",
    variables: &[
        &SIGNATURE_REQUIRED,
        &SIGNATURE_STRICT,
        &ALLOWED_PROVIDERS,
        &ALLOWED_ADMINS,
        &LOCAL_ADMIN,
        &NONCE_WINDOW,
    ],
};

/// The signers and administrators whose requests are accepted.
#[derive(Debug, Clone)]
pub struct AccessConfig {
    /// The policy for signatures and nonces.
    pub policy: Policy,
    /// ALLOWED_ADMINS in lower case; `None` if the variable is unset.
    pub allowed_admins: Option<Vec<String>>,
    /// Whether the admin routes are open to local requests where `allowed_admins` is `None` (LOCAL_ADMIN).
    pub local_admin: bool,
}

impl AccessConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        let signature_required = reader.flag(&SIGNATURE_REQUIRED);
        let allowed_providers = reader.parsed_list(&ALLOWED_PROVIDERS, "a JSON list of Ethereum addresses");
        if signature_required && allowed_providers.as_ref().is_none_or(Vec::is_empty) {
            let expected = "a JSON list of at least one address where SIGNATURE_REQUIRED is 1";
            reader.must_be(ALLOWED_PROVIDERS.name, expected);
        }
        let allowed_admins = reader.list(&ALLOWED_ADMINS);
        let local_admin = reader.flag(&LOCAL_ADMIN);
        if local_admin && aws::is_lambda(reader) {
            reader.must_be(LOCAL_ADMIN.name, "0 or unset in a Lambda function");
        }
        Self {
            policy: Policy {
                signature_required,
                signature_strict: reader.flag(&SIGNATURE_STRICT),
                allowed_providers: allowed_providers.unwrap_or_default(),
                nonce_window: Duration::from_secs(reader.seconds(&NONCE_WINDOW)),
            },
            allowed_admins: allowed_admins.map(|admins| admins.iter().map(|admin| admin.to_lowercase()).collect()),
            local_admin,
        }
    }

    /// Checks what depends on the address that a server listens on.
    pub(super) fn check_server(&self, reader: &mut Reader<'_>, host: IpAddr) {
        if self.local_admin && !host.is_loopback() {
            reader.must_be(LOCAL_ADMIN.name, "0 or unset where HOST is not a loopback address");
        }
    }
}
