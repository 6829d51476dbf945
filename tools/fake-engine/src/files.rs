//! Serves what was published: each job's files below a path that can't be guessed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    path::{Component, Path as FsPath, PathBuf},
    sync::Arc,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpListener,
    task::JoinHandle,
};

use crate::local;

/// How much of a file is in memory at a time.
const CHUNK: usize = 64 * 1024;

/// The server, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct FileServer {
    address: SocketAddr,
    before: Option<u16>,
    published: Arc<PathBuf>,
    task: JoinHandle<()>,
}

impl FileServer {
    /// Serves `directory`/published, on the port of the last time if that is free: the books are full of URLs with it.
    pub(super) async fn start(directory: &FsPath) -> io::Result<Self> {
        let published = Arc::new(directory.join("published"));
        std::fs::create_dir_all(&*published)?;
        let file = directory.join("port");
        let before = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, local::port(&file)?)).await?;
        let address = listener.local_addr()?;
        let router = Router::new().route("/{key}/{*path}", get(serve)).with_state(published.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the file server ended");
            }
        });
        Ok(Self { address, before: before.filter(|port| *port != address.port()), published, task })
    }

    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The address of the last time and the one of today, if they are not the same.
    pub(super) fn moved(&self) -> Option<(String, String)> {
        self.before.map(|port| (SocketAddr::new(self.address.ip(), port).to_string(), self.host()))
    }

    /// A new directory for a job's files, and the URL that it is served under (with a slash at its end).
    pub(super) fn shelf(&self) -> io::Result<(PathBuf, String)> {
        let key = hex::encode(local::random::<16>()?);
        let path = self.published.join(&key);
        std::fs::create_dir(&path)?;
        Ok((path, format!("http://{}/{key}/", self.address)))
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One file, or a range of it.
async fn serve(
    State(published): State<Arc<PathBuf>>,
    Path((key, path)): Path<(String, String)>,
    method: Method,
    headers: HeaderMap,
) -> Response {
    match answer(&published, &key, &path, &method, &headers).await {
        Ok(response) => response,
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn answer(
    published: &FsPath,
    key: &str,
    path: &str,
    method: &Method,
    headers: &HeaderMap,
) -> io::Result<Response> {
    let plain = |text: &str| FsPath::new(text).components().all(|part| matches!(part, Component::Normal(_)));
    if !(plain(key) && plain(path)) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let mut file = tokio::fs::File::open(published.join(key).join(path)).await?;
    let metadata = file.metadata().await?;
    if !metadata.is_file() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let length = metadata.len();

    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, first, count) = match range.map(|text| parse_range(text, length)) {
        None | Some(Range::Ignored) => (StatusCode::OK, 0, length),
        Some(Range::Part { first, count }) => (StatusCode::PARTIAL_CONTENT, first, count),
        Some(Range::Unsatisfiable) => {
            let range = format!("bytes */{length}");
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, [(header::CONTENT_RANGE, range)]).into_response());
        }
    };
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        file.seek(io::SeekFrom::Start(first)).await?;
        Body::from_stream(chunks(file, count))
    };
    let mut response = (status, body).into_response();
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type(path)));
    answer.insert(header::CONTENT_LENGTH, count.into());
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {first}-{}/{length}", first + count - 1);
        answer.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).map_err(io::Error::other)?);
    }
    Ok(response)
}

fn chunks(file: tokio::fs::File, count: u64) -> impl stream::Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, count), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
        let read = file.read(&mut buffer).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.truncate(read);
        Ok(Some((Bytes::from(buffer), (file, left - read as u64))))
    })
}

#[derive(Debug, PartialEq)]
enum Range {
    Part {
        first: u64,
        count: u64,
    },
    Unsatisfiable,
    /// Not understood, or several at once: the whole file is an allowed answer (RFC 9110, 14.2).
    Ignored,
}

fn parse_range(text: &str, length: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Ignored;
    };
    let (first, last) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last.min(length.saturating_sub(1))),
        (Ok(first), Err(_)) if last.is_empty() => (first, length.saturating_sub(1)),
        (Err(_), Ok(count)) if first.is_empty() => {
            if count == 0 {
                return Range::Unsatisfiable;
            }
            (length.saturating_sub(count), length.saturating_sub(1))
        }
        _ => return Range::Ignored,
    };
    if first >= length {
        return Range::Unsatisfiable;
    }
    Range::Part { first, count: last - first + 1 }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("csv") => "text/csv",
        Some("json") => "application/json",
        Some("log" | "txt") => "text/plain; charset=utf-8",
        Some("html") => "text/html",
        Some("png") => "image/png",
        Some("jpg" | "jpeg") => "image/jpeg",
        Some("gz") => "application/gzip",
        Some("zip") => "application/zip",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let part = |first, count| Range::Part { first, count };
        assert_eq!(parse_range("bytes=0-0", 10), part(0, 1));
        assert_eq!(parse_range("bytes=2-", 10), part(2, 8));
        assert_eq!(parse_range("bytes=2-99", 10), part(2, 8));
        assert_eq!(parse_range("bytes=-3", 10), part(7, 3));
        assert_eq!(parse_range("bytes=-30", 10), part(0, 10));
        assert_eq!(parse_range("bytes=10-", 10), Range::Unsatisfiable);
        assert_eq!(parse_range("bytes=-0", 10), Range::Unsatisfiable);
        assert_eq!(parse_range("bytes=0-", 0), Range::Unsatisfiable);
        assert_eq!(parse_range("bytes=5-2", 10), Range::Ignored);
        assert_eq!(parse_range("bytes=0-1,4-5", 10), Range::Ignored);
        assert_eq!(parse_range("lines=0-1", 10), Range::Ignored);
    }
}
