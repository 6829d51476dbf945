//! What the devstack keeps in a checkout's .local directory: keys, passwords, ports, locks.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use ring::rand::{SecureRandom, SystemRandom};

/// Fresh random bytes.
///
/// # Errors
/// If the operating system has none to give.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the operating system gives no random bytes"))?;
    Ok(bytes)
}

/// The secret kept in that file (hex digits), or a new one if there is none.
///
/// # Errors
/// As the operating system says.
pub fn secret(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => {
            let secret = hex::encode(random::<32>()?);
            write_private(path, secret.as_bytes())?;
            Ok(secret)
        }
    }
}

/// Writes a file that only its owner may read, whole or not at all.
///
/// # Errors
/// As the operating system says.
pub fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tmp");
    let beside = Path::new(&name);
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(beside)?;
    file.write_all(content)?;
    fs::rename(beside, path)
}

/// A free port on the loopback address: the one that file names, if it is still free, else a new
/// one, which is written there. What was printed yesterday then still holds today.
///
/// # Errors
/// As the operating system says.
pub fn port(path: &Path) -> io::Result<u16> {
    let before =
        fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u16>().ok()).filter(|port| *port != 0);
    if let Some(port) = before
        && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    {
        return Ok(port);
    }
    let port = free_port()?;
    write_private(path, port.to_string().as_bytes())?;
    Ok(port)
}

/// A port on the loopback address that is free at the moment.
///
/// # Errors
/// As the operating system says.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// A claim on something that only one process may use at a time. It ends with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of that name, or says with `None` that another process has it.
    ///
    /// # Errors
    /// As the operating system says.
    pub fn take(path: &Path) -> io::Result<Option<Self>> {
        let mut file = File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(std::process::id().to_string().as_bytes())?;
                Ok(Some(Self { _file: file }))
            }
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }

    /// Which process has it, as far as is known.
    #[must_use]
    pub fn holder(path: &Path) -> Option<u32> {
        fs::read_to_string(path).ok()?.trim().parse().ok()
    }
}
