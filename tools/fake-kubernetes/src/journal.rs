//! The state on disk: one JSON line per change, so that every answered change survives a kill.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Entry {
    /// The resourceVersion at the start of the file.
    Revision(u64),
    /// An object of that resource was created or changed.
    Put(String, Arc<Value>),
    /// An object was removed: resource, namespace, name.
    Delete(String, String, String),
    /// Output of a pod.
    Log {
        /// The pod's.
        uid: String,
        /// The output in base64.
        text: String,
        /// Whether it follows earlier output.
        append: bool,
    },
}

impl Entry {
    pub(crate) fn log(uid: &str, bytes: &[u8], append: bool) -> Self {
        Self::Log { uid: uid.to_owned(), text: STANDARD.encode(bytes), append }
    }

    pub(crate) fn decode(text: &str) -> Vec<u8> {
        STANDARD.decode(text).unwrap_or_default()
    }
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// Lines not yet written.
    pending: Vec<u8>,
}

impl Journal {
    /// Reads the entries of an earlier run, if there is one.
    ///
    /// # Errors
    /// If the file exists and can't be read, or is no journal. A last line that a crash cut off is skipped: its change
    /// was not answered.
    pub(crate) fn replay(path: &Path, mut each: impl FnMut(Entry)) -> io::Result<()> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut reader = BufReader::new(file);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            match serde_json::from_slice(&line) {
                Ok(entry) => each(entry),
                Err(_) if !line.ends_with(b"\n") => break,
                Err(error) => {
                    let message = format!("{} is no state of a fake cluster: {error}", path.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
            line.clear();
        }
        Ok(())
    }

    /// Replaces the file by one with these entries.
    pub(crate) fn create(path: &Path, entries: impl Iterator<Item = Entry>) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        let new = path.with_added_extension("new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let mut writer = BufWriter::new(file);
        for entry in entries {
            serde_json::to_writer(&mut writer, &entry)?;
            writer.write_all(b"\n")?;
        }
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        Ok(Self { path: path.to_owned(), file, pending: Vec::new() })
    }

    /// Adds an entry, which the next flush writes.
    pub(crate) fn append(&mut self, entry: &Entry) {
        match serde_json::to_writer(&mut self.pending, entry) {
            Ok(()) => self.pending.push(b'\n'),
            Err(error) => tracing::error!(%error, "a change of the embedded cluster can't be serialized"),
        }
    }

    /// Writes the entries added since the last flush.
    pub(crate) fn flush(&mut self) {
        if let Err(error) = self.file.write_all(&self.pending) {
            tracing::error!(path = %self.path.display(), %error, "the embedded cluster's state can't be written");
        }
        self.pending.clear();
    }
}
