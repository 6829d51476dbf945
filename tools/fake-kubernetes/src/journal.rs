//! The state on disk: one JSON line per change, so that what was answered survives a kill, and what it
//! costs follows the change and not the number of objects.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::store::Key;

/// A journal this much larger than the snapshot it began with is written anew.
const SLACK: u64 = 32 * 1024 * 1024;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "what")]
pub(crate) enum Entry {
    /// An object was created or changed.
    Put { revision: u64, resource: String, object: Arc<Value> },
    /// An object went away.
    Delete { revision: u64, resource: String, namespace: String, name: String },
    /// A pod's container wrote something.
    Log { uid: String, container: String, hex: String, append: bool },
    /// How far the counter was.
    Revision { revision: u64 },
}

impl Entry {
    pub(crate) fn put(revision: u64, key: &Key, object: &Arc<Value>) -> Self {
        Self::Put { revision, resource: key.resource.to_string(), object: Arc::clone(object) }
    }

    pub(crate) fn delete(revision: u64, key: &Key) -> Self {
        Self::Delete {
            revision,
            resource: key.resource.to_string(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        }
    }

    pub(crate) fn log(uid: &str, container: &str, bytes: &[u8], append: bool) -> Self {
        Self::Log { uid: uid.to_owned(), container: container.to_owned(), hex: hex::encode(bytes), append }
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Lines not yet written.
    pending: Vec<u8>,
    /// Bytes written since the snapshot, and the snapshot's own.
    written: u64,
    snapshot: u64,
}

impl Journal {
    /// Reads what an earlier run left, if anything.
    ///
    /// # Errors
    /// If the file is there and can't be read, or is not ours. A last line that was cut off by a crash is
    /// left out: nobody was told that it was done.
    pub(crate) fn replay(path: &Path, mut each: impl FnMut(Entry)) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let complete = line.last() == Some(&b'\n');
            match serde_json::from_slice(&line) {
                Ok(entry) => each(entry),
                Err(_) if !complete => break,
                Err(error) => {
                    let why = format!("{} is no state of an embedded cluster: {error}", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, why));
                }
            }
            line.clear();
        }
        Ok(())
    }

    /// Starts a file with the state as it is.
    pub(crate) fn create(path: &Path, entries: impl Iterator<Item = Entry>) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let (file, snapshot) = write_snapshot(path, entries)?;
        Ok(Self { path: path.to_owned(), file, pending: Vec::new(), written: 0, snapshot })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Notes a change, to be written with the next flush.
    pub(crate) fn append(&mut self, entry: &Entry) {
        match serde_json::to_writer(&mut self.pending, entry) {
            Ok(()) => self.pending.push(b'\n'),
            Err(error) => tracing::error!(%error, "a change can't be written down"),
        }
    }

    /// Writes what was noted.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.written += self.pending.len() as u64;
            let written = self.file.write_all(&self.pending);
            self.pending.clear();
            written?;
        }
        Ok(())
    }

    /// Whether most of it is history.
    pub(crate) fn is_long(&self) -> bool {
        self.written > SLACK + 4 * self.snapshot
    }

    /// Replaces the file by one that holds just the state as it is.
    pub(crate) fn rewrite(&mut self, entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        self.pending.clear();
        (self.file, self.snapshot) = write_snapshot(&self.path, entries)?;
        self.written = 0;
        Ok(())
    }
}

/// Writes beside the file, then takes its place, so that there is always a whole one.
fn write_snapshot(path: &Path, entries: impl Iterator<Item = Entry>) -> io::Result<(File, u64)> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    let mut writer = BufWriter::new(file);
    for entry in entries {
        serde_json::to_writer(&mut writer, &entry)?;
        writer.write_all(b"\n")?;
    }
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let size = file.metadata()?.len();
    Ok((file, size))
}
