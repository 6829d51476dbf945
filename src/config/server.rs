//! Where `operator-service serve` listens.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::variables::{Reader, Section, Unset, Variable};

const HOST: Variable<IpAddr> = Variable {
    name: "HOST",
    default: IpAddr::V4(Ipv4Addr::LOCALHOST),
    description: "The IP address that `serve` listens on.",
};
const PORT: Variable<u16> =
    Variable { name: "PORT", default: 8050, description: "The port that `serve` listens on; 0 for any free one." };
const METRICS_PORT: Variable<Unset> = Variable {
    name: "METRICS_PORT",
    default: Unset("no metrics"),
    description: "The port on which `serve` answers `/metrics` for Prometheus, on HOST too; 0 for any free one. \
        Everyone who can reach it can read it.",
};
const SHUTDOWN_DELAY: Variable<u64> = Variable {
    name: "SHUTDOWN_DELAY",
    default: 0,
    description: "Seconds for which `serve` still accepts requests after SIGTERM or SIGINT, while `/readyz` fails already: \
        as long as load balancers take to notice. Requests in flight then have 30 s to end.",
};

pub(super) const SECTION: Section =
    Section { title: "Server", variables: &[&HOST, &PORT, &METRICS_PORT, &SHUTDOWN_DELAY] };

/// Where `serve` listens.
#[derive(Debug, Clone, Copy)]
pub struct ServerConfig {
    /// HOST
    pub host: IpAddr,
    /// PORT
    pub port: u16,
    /// METRICS_PORT
    pub metrics_port: Option<u16>,
    /// SHUTDOWN_DELAY
    pub shutdown_delay: Duration,
}

impl ServerConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            host: reader.value(&HOST, "an IP address, such as 127.0.0.1 or 0.0.0.0"),
            port: reader.value(&PORT, "a port number from 0 to 65535"),
            metrics_port: reader.optional(&METRICS_PORT, "a port number from 0 to 65535"),
            shutdown_delay: Duration::from_secs(reader.seconds(&SHUTDOWN_DELAY)),
        }
    }
}
