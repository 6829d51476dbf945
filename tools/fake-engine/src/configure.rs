//! The configure step: fetches the inputs and the algorithm into the job's volume.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::chain::{Chain, Exit};
use crate::fetch::sources;
use crate::process;

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
