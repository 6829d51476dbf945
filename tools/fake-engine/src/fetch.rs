//! Downloads: where an input or an algorithm comes from.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// Maximum duration of one download.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

/// Fetches files by their URLs.
pub(super) struct Fetcher {
    /// Through the machine's proxy, if it has one.
    outside: reqwest::Client,
    /// Not through a proxy.
    loopback: reqwest::Client,
}

impl Fetcher {
    pub(super) fn new() -> reqwest::Result<Self> {
        let builder = || reqwest::Client::builder().connect_timeout(Duration::from_secs(10)).timeout(FETCH_LIMIT);
        Ok(Self { outside: builder().build()?, loopback: builder().no_proxy().build()? })
    }

    /// Writes the content to that file; returns its size. Errors never hold the URL, which is a secret.
    pub(super) async fn fetch(&self, source: &Source, path: &Path) -> anyhow::Result<usize> {
        let url: reqwest::Url = source.url.parse().ok().context("its URL is malformed")?;
        let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let mut request = if local { &self.loopback } else { &self.outside }.get(url);
        for (name, value) in &source.headers {
            request = request.header(name, value);
        }
        let response = request.send().await.and_then(reqwest::Response::error_for_status);
        let mut response = response.map_err(reqwest::Error::without_url)?;
        let mut file = tokio::fs::File::create(path).await?;
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            file.write_all(&chunk).await?;
            size += chunk.len();
        }
        file.flush().await?;
        Ok(size)
    }
}

/// Where a file comes from.
pub(super) struct Source {
    url: String,
    headers: Vec<(String, String)>,
}

/// The files of an input or an algorithm: `url` is a string or a list of them, `remote` an object or a list of them.
pub(super) fn sources(asset: &Value) -> anyhow::Result<Vec<Source>> {
    let plain = |url: &Value| -> anyhow::Result<Source> {
        Ok(Source { url: url.as_str().context("a URL is not a string")?.to_owned(), headers: Vec::new() })
    };
    let remote = |remote: &Value| {
        let kind = remote["type"].as_str().unwrap_or("url");
        ensure!(kind == "url", "files of type {kind} cannot be fetched here");
        let headers = remote["headers"].as_object().into_iter().flatten();
        let headers = headers.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()));
        Ok(Source { headers: headers.collect(), ..plain(&remote["url"])? })
    };
    match (&asset["url"], &asset["remote"]) {
        (Value::Array(urls), _) if !urls.is_empty() => urls.iter().map(plain).collect(),
        (url @ Value::String(text), _) if !text.is_empty() => Ok(vec![plain(url)?]),
        (_, Value::Array(files)) => files.iter().map(remote).collect(),
        (_, file @ Value::Object(_)) => Ok(vec![remote(file)?]),
        _ => bail!("it has neither url nor remote"),
    }
}
