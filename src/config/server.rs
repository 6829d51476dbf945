//! Where `operator-service serve` listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::variables::{Reader, Section, Variable};

const HOST: Variable<IpAddr> = Variable {
    name: "HOST",
    default: IpAddr::V4(Ipv4Addr::LOCALHOST),
    description: "The IP address that `serve` listens on.",
};
const PORT: Variable<u16> =
    Variable { name: "PORT", default: 8050, description: "The port that `serve` listens on; 0 for any free one." };

pub(super) const SECTION: Section = Section { title: "Server", variables: &[&HOST, &PORT] };

/// Where `serve` listens.
#[derive(Debug, Clone, Copy)]
pub struct ServerConfig {
    /// HOST
    pub host: IpAddr,
    /// PORT
    pub port: u16,
}

impl ServerConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Self {
        Self {
            host: reader.value(&HOST, "an IP address, such as 127.0.0.1 or 0.0.0.0"),
            port: reader.value(&PORT, "a port number from 0 to 65535"),
        }
    }

    /// The address and the port.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((self.host, self.port))
    }
}
