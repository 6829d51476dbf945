//! The configure step: fetches the inputs and the algorithm into the job's volume.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use crate::chain::{Chain, Exit};
use crate::process;

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
    async fn fetch(&self, source: &Source, path: &Path) -> anyhow::Result<usize> {
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
struct Source {
    url: String,
    headers: Vec<(String, String)>,
}

/// The files of an input or an algorithm: `url` is a string or a list of them, `remote` an object or a list of them.
fn sources(asset: &Value) -> anyhow::Result<Vec<Source>> {
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

/// The step's work. It reports by the job's status what it did, and by its exit only whether it could.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    let Ok(mut log) = process::open_log(log) else {
        return Exit::Failed(1);
    };
    let (status, problem) = match fetch_inputs(chain, &mut log).await {
        Err(problem) => (31, Some(problem)),
        Ok(()) => match fetch_algorithm(chain, &mut log).await {
            Err(problem) => (32, Some(problem.context("algorithm"))),
            Ok(()) => (30, None),
        },
    };
    if let Some(problem) = problem {
        let _ = writeln!(log, "{problem:#}");
    }
    chain.set_status(status).await;
    Exit::Done
}

async fn fetch_inputs(chain: &Chain<'_>, log: &mut File) -> anyhow::Result<()> {
    for (did, input) in chain.workflow.inputs()? {
        ensure!(!did.contains(['/', '\0']) && did != "..", "input {did}: its id is no name of a directory");
        let directory = chain.volume.data("inputs").join(&did);
        fs::create_dir_all(&directory)?;
        let named = || format!("input {did}");
        for (index, source) in sources(input).with_context(named)?.iter().enumerate() {
            let path = directory.join(index.to_string());
            let size = chain.shared.http.fetch(source, &path).await.with_context(named)?;
            writeln!(log, "input {did}/{index}: {size} bytes")?;
        }
    }
    Ok(())
}

async fn fetch_algorithm(chain: &Chain<'_>, log: &mut File) -> anyhow::Result<()> {
    let path = chain.volume.data("transformations/algorithm");
    fs::create_dir_all(chain.volume.data("transformations"))?;
    let algorithm = &chain.workflow.stage()?["algorithm"];
    let size = match algorithm["rawcode"].as_str() {
        Some(code) if !code.is_empty() => {
            fs::write(&path, code)?;
            code.len()
        }
        _ => chain.shared.http.fetch(sources(algorithm)?.first().context("it has no URL")?, &path).await?,
    };
    fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
    writeln!(log, "algorithm: {size} bytes")?;
    Ok(())
}
