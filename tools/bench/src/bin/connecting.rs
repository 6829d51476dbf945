//! The floor of a function that connects: with the first request it opens a connection to PostgreSQL and, if CLUSTER_PORT is
//! set, one to the cluster, both with TLS, and uses each once.

use std::path::Path;
use std::sync::Arc;

use lambda_http::{Body, Error, Request, Response, run, service_fn};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main]
async fn main() -> Result<(), Error> {
    rustls::crypto::ring::default_provider().install_default().ok();
    run(service_fn(async |_: Request| {
        let authority = variable("POSTGRES_CA_FILE")?;
        postgres(&authority).await?;
        if let Ok(port) = variable("CLUSTER_PORT") {
            cluster(Path::new(&authority), port.parse()?).await?;
        }
        Ok::<_, Error>(Response::new(Body::from("{}")))
    }))
    .await
}

fn variable(name: &str) -> Result<String, Error> {
    std::env::var(name).map_err(|_| format!("{name} is not set").into())
}

async fn postgres(authority: &str) -> Result<(), Error> {
    let options = PgConnectOptions::new_without_pgpass()
        .host(&variable("POSTGRES_HOST")?)
        .port(variable("POSTGRES_PORT")?.parse()?)
        .username(&variable("POSTGRES_USER")?)
        .password(&variable("POSTGRES_PASSWORD")?)
        .database(&variable("POSTGRES_DB")?)
        .ssl_mode(PgSslMode::VerifyFull)
        .ssl_root_cert(authority);
    let mut connection = PgConnection::connect_with(&options).await?;
    sqlx::query("SELECT 1").execute(&mut connection).await?;
    Ok(())
}

async fn cluster(authority: &Path, port: u16) -> Result<(), Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(("localhost", port)).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(ServerName::try_from("localhost")?, stream).await?;
    stream
        .write_all(b"GET /api/v1/namespaces/ocean-compute HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    // The server may close without a TLS alert.
    stream.read_to_end(&mut answer).await.ok();
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err("the cluster did not answer with 200".into()) }
}
