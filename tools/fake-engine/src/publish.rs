//! The publish step: moves outputs and logs to where they can be fetched, and writes their list to the database.

use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;

use serde_json::{Value, json};

use crate::chain::{Chain, Exit};
use crate::process;

/// The step's work.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    match publish(chain, log) {
        Ok(outputs) => {
            chain.shared.database.set_outputs(chain.id, &outputs).await;
            Exit::Done
        }
        Err(error) => {
            tracing::error!(job = chain.id, %error, "could not publish");
            Exit::Failed(1)
        }
    }
}

fn publish(chain: &Chain<'_>, log: &Path) -> io::Result<Value> {
    let outputs = chain.volume.data("outputs");
    let mut names = Vec::new();
    list_files(&outputs, "", &mut names)?;
    names.sort();
    let mut say = process::open_log(log)?;
    writeln!(say, "{} outputs: {names:?}", names.len())?;

    let outputs = names.into_iter().map(|name| (outputs.join(&name), name, "output"));
    let logs = [
        (chain.volume.data("logs/algorithm.log"), "algorithm.log", "algorithmLog"),
        (chain.volume.adminlog("configure.log"), "configure.log", "configrationLog"),
        (chain.volume.data("logs/filter.log"), "filter.log", "filteringLog"),
        (chain.volume.adminlog("publish.log"), "publish.log", "publishLog"),
    ];
    // An algorithm may have put something else in place of its log.
    let logs = logs.into_iter().filter(|(path, ..)| fs::symlink_metadata(path).is_ok_and(|found| found.is_file()));
    let files = outputs.chain(logs.map(|(path, name, kind)| (path, name.to_owned(), kind)));

    let (directory, url) = chain.shared.files.create()?;
    let mut list = Vec::new();
    for (index, (path, name, kind)) in files.enumerate() {
        // A directory per file: an output may have the name of a log.
        let target = directory.join(index.to_string()).join(&name);
        fs::create_dir_all(target.parent().unwrap_or(&directory))?;
        // Copied, not moved: the pod's log is still read from these.
        let size = fs::copy(path, &target)?;
        let url = format!("{url}{index}/{}", encode(&name));
        list.push(json!({"filename": name, "filesize": size, "type": kind, "url": url}));
    }
    Ok(list.into())
}

/// Collects the paths of all regular files below a directory. Links are left out: they could name any file of this
/// machine.
fn list_files(directory: &Path, prefix: &str, names: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        let kind = entry.file_type()?;
        if kind.is_dir() {
            list_files(&entry.path(), &format!("{name}/"), names)?;
        } else if kind.is_file() {
            names.push(name);
        }
    }
    Ok(())
}

/// Percent-encodes a path for a URL.
fn encode(path: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte);
    path.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
