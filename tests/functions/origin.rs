//! A result origin that the tests control: it implements enough of HTTP/1.1 to fail in every way that matters here, and
//! records the requests that it receives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::LIMIT;

/// A write that takes longer is blocked by its reader.
const BLOCKED_AFTER: Duration = Duration::from_millis(1500);

pub struct Origin {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    answers: Mutex<HashMap<String, Answer>>,
    requests: Mutex<Vec<Request>>,
    asked: Notify,
    sent: AtomicU64,
    blocked: watch::Sender<bool>,
}

/// A request that the origin received.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub target: String,
    headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// A response of the origin.
#[derive(Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Whole(Vec<u8>),
    /// As `Whole`, but supports ranges.
    WithRanges(Vec<u8>),
    /// Announces this length, and closes the connection after these bytes.
    ClosesEarly(Vec<u8>, u64),
    /// In chunks, without a length.
    Chunked(Vec<u8>),
    /// In chunks, without the last one: the connection is closed instead.
    ChunkedClosesEarly(Vec<u8>),
    /// Announces this length, and sends nothing after these bytes.
    FallsSilent(Vec<u8>, u64),
    /// Responds when notified.
    Late(Arc<Notify>, Vec<u8>),
    /// Sends the rest when notified.
    Gated(Vec<u8>, Arc<Notify>, Vec<u8>),
    Pattern(u64),
    /// Reads the request and never responds.
    Silent,
    /// Responds with something that is not HTTP.
    Gibberish,
}

impl Answer {
    fn new(status: u16, body: Body) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    pub fn file(content: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Whole(content.into()))
    }

    pub fn file_with_ranges(content: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::WithRanges(content.into()))
    }

    pub fn status(status: u16, content: impl Into<Vec<u8>>) -> Self {
        Self::new(status, Body::Whole(content.into()))
    }

    pub fn redirect(status: u16, location: impl Into<String>) -> Self {
        Self::new(status, Body::Whole(Vec::new())).header("location", location)
    }

    pub fn closes_early(content: impl Into<Vec<u8>>, announced: u64) -> Self {
        Self::new(200, Body::ClosesEarly(content.into(), announced))
    }

    pub fn chunked(content: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Chunked(content.into()))
    }

    pub fn chunked_closes_early(content: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::ChunkedClosesEarly(content.into()))
    }

    pub fn falls_silent(content: impl Into<Vec<u8>>, announced: u64) -> Self {
        Self::new(200, Body::FallsSilent(content.into(), announced))
    }

    pub fn late(gate: &Arc<Notify>, content: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Late(Arc::clone(gate), content.into()))
    }

    pub fn gated(first: impl Into<Vec<u8>>, gate: &Arc<Notify>, rest: impl Into<Vec<u8>>) -> Self {
        Self::new(200, Body::Gated(first.into(), Arc::clone(gate), rest.into()))
    }

    /// This many bytes of [`pattern`], generated while they are sent.
    pub fn pattern(length: u64) -> Self {
        Self::new(200, Body::Pattern(length))
    }

    pub fn silent() -> Self {
        Self::new(0, Body::Silent)
    }

    pub fn gibberish() -> Self {
        Self::new(0, Body::Gibberish)
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

const BLOCK: usize = 64 * 1024;

/// One block of content, different from every other block, so that lost, repeated or swapped bytes are detected.
fn pattern(block: u64) -> Vec<u8> {
    let first = block * (BLOCK as u64 / 8);
    (first..first + BLOCK as u64 / 8).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()).collect()
}

/// Compares received bytes with the pattern.
#[derive(Default)]
pub struct PatternCheck {
    position: u64,
    block: Option<(u64, Vec<u8>)>,
}

impl PatternCheck {
    pub fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let number = self.position / BLOCK as u64;
            let from = (self.position % BLOCK as u64) as usize;
            if self.block.as_ref().is_none_or(|(cached, _)| *cached != number) {
                self.block = Some((number, pattern(number)));
            }
            let (_, block) = self.block.as_ref().unwrap();
            let length = bytes.len().min(BLOCK - from);
            assert!(bytes[..length] == block[from..from + length], "other content from byte {} on", self.position);
            bytes = &bytes[length..];
            self.position += length as u64;
        }
    }

    /// How many bytes were received.
    pub fn length(&self) -> u64 {
        self.position
    }
}

impl Origin {
    pub async fn start() -> Self {
        Self::listen("127.0.0.1:0").await.unwrap()
    }

    pub async fn listen(address: &str) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let of_server = Arc::clone(&shared);
        let server = tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let shared = Arc::clone(&of_server);
                tokio::spawn(async move {
                    // A client that disconnects is not a failure of the origin.
                    let _ = serve(&shared, connection).await;
                });
            }
        });
        Ok(Self { address, shared, server })
    }

    /// Sets the response to requests for a path.
    pub fn answer(&self, path: &str, answer: Answer) -> &Self {
        self.shared.answers.lock().unwrap().insert(path.to_owned(), answer);
        self
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Waits for a request.
    pub async fn asked(&self) {
        tokio::time::timeout(LIMIT, self.shared.asked.notified()).await.expect("the origin was never asked");
    }

    /// How many bytes of patterns were sent, over all requests.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    /// Waits until the reader of a pattern blocks it.
    pub async fn blocked(&self) {
        let mut blocked = self.shared.blocked.subscribe();
        let wait = blocked.wait_for(|blocked| *blocked);
        tokio::time::timeout(LIMIT, wait).await.expect("the origin was never blocked").unwrap();
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(shared: &Shared, mut connection: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut lines = head.lines();
    let target = lines.next().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    let headers = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let request = Request { target: target.clone(), headers };
    let range = request.header("range").map(str::to_owned);
    shared.requests.lock().unwrap().push(request);
    shared.asked.notify_one();

    let path = target.split('?').next().unwrap_or_default();
    let known = shared.answers.lock().unwrap().get(path).cloned();
    let Answer { status, headers, body } = known.unwrap_or_else(|| Answer::status(404, "no such file"));
    let mut extra = String::new();
    for (name, value) in headers {
        extra.push_str(&format!("{name}: {value}\r\n"));
    }
    let head = |status: u16, framing: String| {
        format!("HTTP/1.1 {status} Whatever\r\n{extra}{framing}\r\nconnection: close\r\n\r\n").into_bytes()
    };
    let length = |length: u64| format!("content-length: {length}");

    match body {
        Body::Whole(content) => {
            connection.write_all(&head(status, length(content.len() as u64))).await?;
            connection.write_all(&content).await?;
        }
        Body::WithRanges(content) => {
            let total = content.len();
            match range.as_deref().map(|range| part(range, total)) {
                None => {
                    connection
                        .write_all(&head(200, format!("{}\r\naccept-ranges: bytes", length(total as u64))))
                        .await?;
                    connection.write_all(&content).await?;
                }
                Some(Some((first, last))) => {
                    let part = &content[first..=last];
                    let framing =
                        format!("content-range: bytes {first}-{last}/{total}\r\n{}", length(part.len() as u64));
                    connection.write_all(&head(206, framing)).await?;
                    connection.write_all(part).await?;
                }
                Some(None) => {
                    connection
                        .write_all(&head(416, format!("content-range: bytes */{total}\r\n{}", length(0))))
                        .await?;
                }
            }
        }
        Body::ClosesEarly(content, announced) => {
            connection.write_all(&head(status, length(announced))).await?;
            connection.write_all(&content).await?;
        }
        Body::Chunked(content) => {
            connection.write_all(&head(status, "transfer-encoding: chunked".to_owned())).await?;
            for chunk in content.chunks(3) {
                connection.write_all(format!("{:x}\r\n", chunk.len()).as_bytes()).await?;
                connection.write_all(chunk).await?;
                connection.write_all(b"\r\n").await?;
            }
            connection.write_all(b"0\r\n\r\n").await?;
        }
        Body::ChunkedClosesEarly(content) => {
            connection.write_all(&head(status, "transfer-encoding: chunked".to_owned())).await?;
            connection.write_all(format!("{:x}\r\n", content.len()).as_bytes()).await?;
            connection.write_all(&content).await?;
            connection.write_all(b"\r\n").await?;
        }
        Body::FallsSilent(content, announced) => {
            connection.write_all(&head(status, length(announced))).await?;
            connection.write_all(&content).await?;
            connection.flush().await?;
            wait_for_hang_up(&mut connection).await;
        }
        Body::Late(gate, content) => {
            gate.notified().await;
            connection.write_all(&head(status, length(content.len() as u64))).await?;
            connection.write_all(&content).await?;
        }
        Body::Gated(first, gate, rest) => {
            connection.write_all(&head(status, length((first.len() + rest.len()) as u64))).await?;
            connection.write_all(&first).await?;
            connection.flush().await?;
            gate.notified().await;
            connection.write_all(&rest).await?;
        }
        Body::Pattern(total) => {
            connection.write_all(&head(status, length(total))).await?;
            let mut position = 0;
            while position < total {
                let block = pattern(position / BLOCK as u64);
                let block = &block[..BLOCK.min((total - position) as usize)];
                let write = connection.write_all(block);
                tokio::pin!(write);
                match tokio::time::timeout(BLOCKED_AFTER, &mut write).await {
                    Ok(written) => written?,
                    Err(_) => {
                        shared.blocked.send_replace(true);
                        write.await?;
                        shared.blocked.send_replace(false);
                    }
                }
                position += block.len() as u64;
                shared.sent.fetch_add(block.len() as u64, Ordering::SeqCst);
            }
        }
        Body::Silent => wait_for_hang_up(&mut connection).await,
        Body::Gibberish => connection.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").await?,
    }
    connection.shutdown().await
}

async fn wait_for_hang_up(connection: &mut TcpStream) {
    while connection.read_u8().await.is_ok() {}
}

/// The first and last byte of a single range, if the file has it.
fn part(range: &str, total: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let last: usize = last.parse().ok()?;
        return Some((total.saturating_sub(last), total.checked_sub(1)?));
    }
    let first: usize = first.parse().ok()?;
    let last = if last.is_empty() { total.checked_sub(1)? } else { last.parse::<usize>().ok()?.min(total - 1) };
    (first <= last).then_some((first, last))
}
