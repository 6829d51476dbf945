//! RDS: passwords made from credentials (IAM database authentication), and the certificate authorities of its servers.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use percent_encoding::utf8_percent_encode;
use secrecy::SecretString;

use super::AwsError;
use super::sign::{ENCODED, Service, Unsigned, presign};

/// How long a password is accepted for new connections; open ones stay open.
const PASSWORD_VALIDITY: Duration = Duration::from_secs(15 * 60);

/// The certificate authorities of RDS in all regions, as a PEM file
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.SSL.html>); RDS Proxy's
/// certificates are from public ones.
pub const AUTHORITIES: &[u8] = include_bytes!("rds-authorities.pem");

/// Makes a password for a database user, signed at this time
/// (<https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAMDBAuth.Connecting.html>).
pub fn password(
    host: &str,
    port: u16,
    user: &str,
    region: &str,
    credentials: &Credentials,
    at: SystemTime,
) -> Result<SecretString, AwsError> {
    let user = utf8_percent_encode(user, ENCODED);
    let url = format!("https://{host}:{port}/?Action=connect&DBUser={user}");
    let request = Unsigned {
        method: "GET",
        url: &url,
        headers: &[],
        service: Service::RdsDb,
        region,
        expires: PASSWORD_VALIDITY,
    };
    let url = presign(request, credentials, at)?;
    Ok(url.trim_start_matches("https://").into())
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    use secrecy::ExposeSecret;

    use super::super::vectors;
    use super::*;

    #[test]
    fn passwords_are_those_of_the_aws_command_line() {
        for vector in vectors::all("rds_tokens") {
            let text = |name| vectors::text(&vector, name);
            let port = vector["port"].as_u64().unwrap() as u16;
            let at = vectors::clock(&vector);
            let credentials = vectors::credentials(&vector);
            let password = password(text("host"), port, text("user"), text("region"), &credentials, at).unwrap();
            assert_eq!(vectors::split_url(password.expose_secret()), vectors::split_url(text("token")));
        }
    }

    #[test]
    fn the_authorities_can_be_read() {
        let mut store = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(AUTHORITIES) {
            store.add(certificate.unwrap()).unwrap();
        }
        assert!(store.len() > 80, "{}", store.len());
    }
}
