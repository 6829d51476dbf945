//! The process of the Kubernetes API: fake-kubernetes, on one port as it is, on another behind TLS. A process of its own, so
//! that its work is not the load generator's.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use fake_kubernetes::{EmbeddedCluster, Options};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::stack::NAMESPACE;

/// Serves until the process is ended.
pub async fn serve() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).with_context(|| name.to_owned());
    let addr: SocketAddr = variable("LISTEN")?.parse()?;
    let namespaces = vec![NAMESPACE.to_owned()];
    let cluster = EmbeddedCluster::start(Options { addr, namespaces, ..Options::default() }).await?;
    let definition = tokio::process::Command::new(variable("OPERATOR_SERVICE")?).arg("crd").output().await?;
    let definition: serde_json::Value = serde_saphyr::from_slice(&definition.stdout)?;
    let url = format!("{}/apis/apiextensions.k8s.io/v1/customresourcedefinitions", cluster.url());
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.post(url).body(definition.to_string()).send().await?;
    ensure!(answer.status().is_success(), "the definition was refused: {}", answer.text().await?);

    let certificates = PathBuf::from(variable("CERTIFICATES")?);
    let chain = CertificateDer::pem_file_iter(certificates.join("server.pem"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(certificates.join("server.key"))?;
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    // The last port to listen: then all is ready.
    let listener = TcpListener::bind(variable("LISTEN_TLS")?).await?;
    loop {
        let (client, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let (Ok(mut client), Ok(mut server)) = tokio::join!(acceptor.accept(client), TcpStream::connect(addr)) {
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
            }
        });
    }
}
