//! The publish step: puts outputs and logs where they can be fetched, and writes their list to the books.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{chain::Chain, pod::Exit};
use crate::process;

/// The step's work.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    match publish(chain, log) {
        Ok(outputs) => match chain.shared.books.set_outputs(chain.id, &outputs).await {
            Ok(()) => Exit::Done,
            Err(error) => {
                tracing::error!(job = chain.id, %error, "could not write the list of outputs");
                Exit::Failed(1)
            }
        },
        Err(error) => {
            tracing::error!(job = chain.id, %error, "could not publish");
            Exit::Failed(1)
        }
    }
}

fn publish(chain: &Chain<'_>, log: &Path) -> io::Result<Value> {
    let outputs = chain.volume.data().join("outputs");
    let mut files: Vec<(PathBuf, String, &str)> =
        regular_files(&outputs)?.into_iter().map(|name| (outputs.join(&name), name, "output")).collect();
    let mut say = process::open_log(log)?;
    writeln!(say, "{} outputs", files.len())?;
    for (_, name, _) in &files {
        writeln!(say, "output {name}")?;
    }

    let adminlogs = chain.volume.adminlogs();
    for (path, kind) in [
        (chain.volume.data().join("logs/algorithm.log"), "algorithmLog"),
        (adminlogs.join("configure.log"), "configrationLog"),
        (chain.volume.data().join("logs/filter.log"), "filteringLog"),
        (adminlogs.join("publish.log"), "publishLog"),
    ] {
        // An algorithm may have put something else in its log's place.
        let Some(name) = path.file_name().filter(|_| is_regular(&path)) else {
            continue;
        };
        let name = name.to_string_lossy().into_owned();
        files.push((path, name, kind));
    }

    let (shelf, url) = chain.shared.files.shelf()?;
    let mut list = Vec::new();
    for (index, (path, name, kind)) in files.iter().enumerate() {
        // A folder per file: an output may have the name of a log.
        let target = shelf.join(index.to_string()).join(name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        // The cluster still reads the log of the step that is under way.
        if *kind == "publishLog" {
            fs::copy(path, &target)?;
        } else {
            fs::rename(path, &target)?;
        }
        list.push(json!({
            "filename": name,
            "filesize": fs::metadata(&target)?.len(),
            "type": kind,
            "url": format!("{url}{index}/{}", encode(name)),
        }));
    }
    Ok(list.into())
}

fn is_regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

/// The names of all regular files below a folder, with their folders, sorted. Links are left out: they could
/// name any file of this machine.
fn regular_files(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = match fs::read_dir(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && let Ok(name) = entry.path().strip_prefix(folder)
                && let Some(name) = name.to_str()
            {
                names.push(name.to_owned());
            }
        }
    }
    names.sort();
    Ok(names)
}

/// A path as part of a URL.
fn encode(path: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::new();
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}
