//! The load generator: requests that were prepared before, over connections that are kept open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// How long one of two targets is measured until it is the other's turn: what else runs on the machine meets both.
const SLICE: Duration = Duration::from_millis(250);

/// Requests as bytes.
#[derive(Debug)]
pub struct Requests {
    bytes: Vec<Vec<u8>>,
    next: AtomicUsize,
    repeat: bool,
}

impl Requests {
    /// Requests that may be sent any number of times, in turn.
    pub fn repeated(bytes: Vec<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { bytes, next: AtomicUsize::new(0), repeat: true })
    }

    /// Requests that are sent once each. A measurement ends when none is left.
    pub fn once(bytes: Vec<Vec<u8>>) -> Arc<Self> {
        Arc::new(Self { bytes, next: AtomicUsize::new(0), repeat: false })
    }

    fn next(&self) -> Option<&[u8]> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let number = if self.repeat { number % self.bytes.len() } else { number };
        self.bytes.get(number).map(Vec::as_slice)
    }
}

/// A server and what it is sent.
#[derive(Debug, Clone)]
pub struct Target {
    /// The server's address.
    pub address: SocketAddr,
    /// What it is sent.
    pub requests: Arc<Requests>,
}

/// What was measured of a target.
#[derive(Debug, Default)]
pub struct Sample {
    /// The time of the measurement.
    pub seconds: f64,
    /// The time of each request, in seconds.
    pub times: Vec<f64>,
}

impl Sample {
    /// The value below which this part of the times lies.
    pub fn quantile(&self, part: f64) -> f64 {
        let mut times = self.times.clone();
        times.sort_by(f64::total_cmp);
        times
            .get(((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1)))
            .copied()
            .unwrap_or(f64::NAN)
    }

    /// Requests per second.
    pub fn rate(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }
}

/// Measures two targets in alternating slices, each for `time`.
pub async fn alternate(
    one: &Target,
    other: &Target,
    connections: usize,
    time: Duration,
) -> anyhow::Result<[Sample; 2]> {
    let mut samples = [Sample::default(), Sample::default()];
    let slices = (time.as_secs_f64() / SLICE.as_secs_f64()).ceil() as usize;
    for slice in 0..slices.max(1) {
        // Neither is always the first.
        for target in [slice % 2, 1 - slice % 2] {
            run([one, other][target], connections, SLICE, &mut samples[target]).await?;
        }
    }
    for sample in &samples {
        ensure!(!sample.times.is_empty(), "no request was answered");
    }
    Ok(samples)
}

/// Sends requests over this number of connections, each as soon as the one before it is answered.
async fn run(target: &Target, connections: usize, time: Duration, sample: &mut Sample) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for _ in 0..connections {
        open.push(Connection::open(target.address).await?);
    }
    let begun = Instant::now();
    let mut tasks = JoinSet::new();
    for mut connection in open {
        let requests = target.requests.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while begun.elapsed() < time
                && let Some(request) = requests.next()
            {
                let sent = Instant::now();
                connection.exchange(request).await?;
                times.push(sent.elapsed().as_secs_f64());
            }
            anyhow::Ok(times)
        });
    }
    while let Some(times) = tasks.join_next().await {
        sample.times.extend(times??);
    }
    sample.seconds += begun.elapsed().as_secs_f64();
    Ok(())
}

/// A connection to an HTTP/1.1 server.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Opens it.
    pub async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 256 * 1024] })
    }

    /// Sends a request and reads its response, which has to be a 200 with a length. Returns the length of the body.
    pub async fn exchange(&mut self, request: &[u8]) -> anyhow::Result<u64> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let end = loop {
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the connection was closed before a response");
            filled += read;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<u64>().ok());
        let body = String::from_utf8_lossy(&self.buffer[end..filled]);
        ensure!(head.starts_with("http/1.1 200"), "{}: {body}", head.lines().next().unwrap_or_default());
        let Some(length) = length else { bail!("a response has no length: {head}") };
        let mut left = length.saturating_sub((filled - end) as u64);
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "the connection was closed within a response");
            left = left.saturating_sub(read as u64);
        }
        Ok(length)
    }
}
