//! The certificate of PostgreSQL and of the cluster.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use anyhow::{Context, ensure};
use sqlx::{Executor, PgConnection};
use tokio::process::Command;

/// Makes a certificate for `localhost` that is its own authority.
pub(super) async fn certificate(directory: &Path) -> anyhow::Result<()> {
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "30",
    ]);
    openssl.args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]);
    openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "server.key", "-out", "server.pem"]);
    let output = openssl.current_dir(directory).output().await.context("openssl")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Makes PostgreSQL accept TLS with the certificate.
pub(super) async fn enable(data: &Path, directory: &Path, connection: &mut PgConnection) -> anyhow::Result<()> {
    let owner = fs::metadata(data)?;
    for name in ["server.pem", "server.key"] {
        let copy = data.join(name);
        fs::copy(directory.join(name), &copy)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o600))?;
        chown(&copy, Some(owner.uid()), Some(owner.gid()))?;
    }
    for statement in [
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl = on",
        "SELECT pg_reload_conf()",
    ] {
        connection.execute(statement).await?;
    }
    Ok(())
}
