//! A port that refuses connections.

use std::fmt;

use tokio::net::TcpSocket;

/// A loopback port on which nothing listens, and that nobody else gets, as long as this is kept.
#[derive(Debug)]
pub struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        Self(socket)
    }
}

impl fmt::Display for ClosedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.local_addr().map_err(|_| fmt::Error)?.port().fmt(f)
    }
}
