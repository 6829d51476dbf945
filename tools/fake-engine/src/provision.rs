//! The configure step: fetches the inputs and the algorithm into the job's volume.

use std::{
    fs::File,
    io::Write,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::{chain::Chain, pod::Exit};
use crate::process;

/// How long one file may take.
const FETCH_LIMIT: Duration = Duration::from_secs(600);

/// Fetches what URLs name.
#[derive(Debug)]
pub(super) struct Fetcher {
    /// With the machine's proxies, if it has any.
    outside: reqwest::Client,
    /// Without: the loopback address is ours alone.
    loopback: reqwest::Client,
}

impl Fetcher {
    pub(super) fn new() -> reqwest::Result<Self> {
        let builder = || {
            reqwest::Client::builder()
                .connect_timeout(Duration::from_secs(10))
                .read_timeout(Duration::from_secs(60))
                .timeout(FETCH_LIMIT)
        };
        Ok(Self { outside: builder().build()?, loopback: builder().no_proxy().build()? })
    }

    /// Writes the content to that file; says how many bytes. Errors never hold the URL, which is a secret.
    async fn fetch(&self, source: &Source, path: &Path) -> Result<u64, String> {
        let url: reqwest::Url = source.url.parse().map_err(|_| "its URL makes no sense".to_owned())?;
        let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
        let client = if local { &self.loopback } else { &self.outside };
        let mut request = client.get(url);
        for (name, value) in &source.headers {
            request = request.header(name, value);
        }
        let failed = |error: reqwest::Error| error.without_url().to_string();
        let mut response = request.send().await.and_then(reqwest::Response::error_for_status).map_err(failed)?;
        let written = |error: std::io::Error| error.to_string();
        let mut file = tokio::fs::File::create(path).await.map_err(written)?;
        let mut size = 0;
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            file.write_all(&chunk).await.map_err(written)?;
            size += chunk.len() as u64;
        }
        file.flush().await.map_err(written)?;
        Ok(size)
    }
}

/// Where a file comes from.
struct Source {
    url: String,
    headers: Vec<(String, String)>,
}

/// The files of an input, or of an algorithm: `url` is a text or a list of them, `remote` an object or a list of them.
fn sources(asset: &Value) -> Result<Vec<Source>, String> {
    let plain = |url: &Value| {
        let url = url.as_str().ok_or("a URL is no text")?;
        Ok(Source { url: url.to_owned(), headers: Vec::new() })
    };
    let remote = |remote: &Value| {
        let kind = remote["type"].as_str().unwrap_or("url");
        if kind != "url" {
            return Err(format!("files of type {kind} can't be fetched here"));
        }
        let mut source = plain(&remote["url"])?;
        for (name, value) in remote["headers"].as_object().into_iter().flatten() {
            source.headers.push((name.clone(), value.as_str().unwrap_or_default().to_owned()));
        }
        Ok(source)
    };
    match (&asset["url"], &asset["remote"]) {
        (Value::Array(urls), _) if !urls.is_empty() => urls.iter().map(plain).collect(),
        (url @ Value::String(text), _) if !text.is_empty() => Ok(vec![plain(url)?]),
        (_, Value::Array(files)) => files.iter().map(remote).collect(),
        (_, file @ Value::Object(_)) => Ok(vec![remote(file)?]),
        _ => Err("it has neither url nor remote".to_owned()),
    }
}

/// The step's work. It reports what it did in the books, and by its exit only whether it could.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    let Ok(mut log) = process::open_log(log) else {
        return Exit::Failed(1);
    };
    let mut say = |text: String| {
        let _ = writeln!(log, "{text}");
    };
    let status = match fetch_inputs(chain, &mut say).await {
        Err(problem) => {
            say(problem);
            31
        }
        Ok(()) => match fetch_algorithm(chain, &mut say).await {
            Err(problem) => {
                say(problem);
                32
            }
            Ok(()) => 30,
        },
    };
    chain.shared.books.set_status(chain.id, status).await;
    chain.rest().await;
    Exit::Done
}

async fn fetch_inputs(chain: &Chain<'_>, say: &mut impl FnMut(String)) -> Result<(), String> {
    let folder = chain.volume.data().join("inputs");
    make(&folder)?;
    for (did, input) in chain.workflow.inputs().map_err(|error| error.to_string())? {
        let name = |problem: String| format!("input {did}: {problem}");
        if did.contains(['/', '\0']) || did == ".." {
            return Err(name("its id makes no name of a folder".to_owned()));
        }
        let folder = folder.join(&did);
        make(&folder)?;
        for (index, source) in sources(input).map_err(name)?.iter().enumerate() {
            let path = folder.join(index.to_string());
            let size = chain.shared.http.fetch(source, &path).await.map_err(name)?;
            say(format!("input {did}/{index}: {size} bytes"));
        }
    }
    Ok(())
}

async fn fetch_algorithm(chain: &Chain<'_>, say: &mut impl FnMut(String)) -> Result<(), String> {
    let name = |problem: String| format!("algorithm: {problem}");
    let folder = chain.volume.data().join("transformations");
    make(&folder)?;
    let path: PathBuf = folder.join("algorithm");
    let stage = chain.workflow.stage().map_err(|error| error.to_string())?;
    let algorithm = &stage["algorithm"];
    let size = match algorithm["rawcode"].as_str().filter(|code| !code.is_empty()) {
        Some(code) => {
            let mut file = File::create(&path).map_err(|error| name(error.to_string()))?;
            file.write_all(code.as_bytes()).map_err(|error| name(error.to_string()))?;
            code.len() as u64
        }
        None => {
            let sources = sources(algorithm).map_err(name)?;
            let source = sources.first().ok_or_else(|| name("it has no URL".to_owned()))?;
            chain.shared.http.fetch(source, &path).await.map_err(name)?
        }
    };
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).map_err(|error| name(error.to_string()))?;
    say(format!("algorithm: {size} bytes"));
    Ok(())
}

fn make(folder: &Path) -> Result<(), String> {
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())
}
