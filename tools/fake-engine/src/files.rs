//! Serves published files: each job's below a path that cannot be guessed.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use axum::Router;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower_http::services::ServeDir;
use uuid::Uuid;

/// The server, which ends when it is dropped.
pub(super) struct FileServer {
    address: SocketAddr,
    published: PathBuf,
    _server: JoinSet<io::Result<()>>,
}

impl FileServer {
    /// Serves `directory`/published, on the port of the last start if that is free: finished jobs have URLs with it.
    pub(super) async fn start(directory: &Path) -> io::Result<Self> {
        let published = directory.join("published");
        fs::create_dir_all(&published)?;
        let file = directory.join("port");
        let port = fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Ok(listener) => listener,
            Err(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?,
        };
        let address = listener.local_addr()?;
        fs::write(&file, address.port().to_string())?;
        let router = Router::new().fallback_service(ServeDir::new(&published));
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await });
        Ok(Self { address, published, _server: server })
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// Creates a directory for a job's files; returns it with the URL that it is served under, which ends in a slash.
    pub(super) fn create(&self) -> io::Result<(PathBuf, String)> {
        let key = Uuid::new_v4().simple().to_string();
        let path = self.published.join(&key);
        fs::create_dir(&path)?;
        Ok((path, format!("http://{}/{key}/", self.address)))
    }
}
