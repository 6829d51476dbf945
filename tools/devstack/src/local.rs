//! What the devstack reads of its environment, and keeps in its directory: keys, passwords, ports, a lock.

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, bail};
use ring::rand::{SecureRandom, SystemRandom};

/// 32 random bytes.
///
/// # Errors
/// If the operating system has none.
pub fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("no random bytes"))?;
    Ok(bytes)
}

/// The secret kept in that file (64 hex digits), which is created if it is missing.
///
/// # Errors
/// As the operating system reports.
pub fn secret(path: &Path) -> anyhow::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).with_context(|| shown(path))?,
        _ => {}
    }
    let secret = hex::encode(random()?);
    write_private(path, &secret)?;
    Ok(secret)
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// As the operating system reports.
pub fn write_private(path: &Path, content: impl AsRef<[u8]>) -> anyhow::Result<()> {
    let write = || {
        let new = path.with_added_extension("tmp");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(content.as_ref())?;
        fs::rename(&new, path)
    };
    write().with_context(|| shown(path))
}

/// A free port on the loopback address: the one in that file, if it is still free, otherwise a new one, which is
/// written there.
///
/// # Errors
/// As the operating system reports.
pub fn port(path: &Path) -> anyhow::Result<u16> {
    let last = fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
    if let Some(port) = last.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok()) {
        return Ok(port);
    }
    let port = free_port()?;
    write_private(path, port.to_string())?;
    Ok(port)
}

/// A port on the loopback address that is free at the moment.
///
/// # Errors
/// As the operating system reports.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Locks a file for as long as the returned handle lives.
///
/// # Errors
/// If another process has it, or as the operating system reports.
pub fn lock(path: &Path) -> anyhow::Result<File> {
    let mut file = File::options().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let holder = fs::read_to_string(path).unwrap_or_default();
            let directory = shown(path.parent().unwrap_or(path));
            bail!("another devstack (process {holder}) uses {directory}: stop it first");
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| shown(path)),
    }
    file.set_len(0)?;
    file.write_all(std::process::id().to_string().as_bytes())?;
    Ok(file)
}

/// A path as a reader in the current directory would write it.
#[must_use]
pub fn shown(path: &Path) -> String {
    let here = env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).unwrap_or(path).display().to_string()
}

/// A variable of the environment, if it is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
