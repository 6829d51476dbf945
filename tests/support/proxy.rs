//! A proxy to a server, whose connections can be cut.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Everything is passed on.
    Open,
    /// Connections are accepted and closed.
    Cut,
    /// Connections stay, and nothing arrives.
    Silent,
    /// A COMMIT arrives, but the answer to it does not: the connection is cut instead, once.
    LoseCommit,
}

/// Passes connections on. Ends with the test's runtime.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub port: u16,
    mode: watch::Sender<Mode>,
}

impl Proxy {
    /// Starts a proxy that passes everything on.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = watch::Sender::new(Mode::Open);
        let shared = mode.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(pass(client, target, shared.clone()));
            }
        });
        Self { port, mode }
    }

    /// Closes every connection, and every new one.
    pub fn cut(&self) {
        self.mode.send_replace(Mode::Cut);
    }

    /// From now on nothing arrives, and no connection is closed.
    pub fn silence(&self) {
        self.mode.send_replace(Mode::Silent);
    }

    /// The next COMMIT is done, and its connection is cut before the answer arrives.
    pub fn lose_next_commit(&self) {
        self.mode.send_replace(Mode::LoseCommit);
    }

    /// From now on everything is passed on again; connections that were cut stay cut.
    pub fn open(&self) {
        self.mode.send_replace(Mode::Open);
    }
}

async fn pass(client: TcpStream, target: SocketAddr, mode: watch::Sender<Mode>) {
    let mut modes = mode.subscribe();
    if *modes.borrow_and_update() == Mode::Cut {
        return;
    }
    // A server that does not answer does not even take the connection.
    if modes.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut up, mut down) = (modes.clone(), modes.clone());
    let losing = std::sync::atomic::AtomicBool::new(false);
    let upwards = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
            if up.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
                return;
            }
            let commits = buffer[..length].windows(6).any(|word| word == b"COMMIT");
            if commits
                && mode.send_if_modified(|mode| {
                    *mode == Mode::LoseCommit && {
                        *mode = Mode::Open;
                        true
                    }
                })
            {
                losing.store(true, Ordering::SeqCst);
            }
            if to_server.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    let downwards = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            if down.wait_for(|mode| *mode != Mode::Silent).await.is_err() {
                return;
            }
            // This is the answer to the COMMIT, so that it is done.
            if losing.load(Ordering::SeqCst) {
                return;
            }
            if to_client.write_all(&buffer[..length]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = upwards => {}
        () = downwards => {}
        _ = modes.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}
