//! Secrets Manager: the secret with the database's credentials.

use secrecy::SecretString;
use serde::Deserialize;

use super::{Account, AwsError, Cause};

/// A database secret: `username` and `password` alone if RDS manages it, the rest as well if it is from a rotation
/// template (<https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html>).
#[derive(Debug, Clone, Deserialize)]
pub struct DatabaseSecret {
    /// The user.
    pub username: String,
    /// The password.
    pub password: SecretString,
    /// The host's name or address.
    #[serde(default)]
    pub host: Option<String>,
    /// The port; some templates write it as text.
    #[serde(default, deserialize_with = "port")]
    pub port: Option<u16>,
    /// The database's name.
    #[serde(default)]
    pub dbname: Option<String>,
}

fn port<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Port {
        Number(u16),
        Text(String),
    }
    match Option::deserialize(deserializer)? {
        None => Ok(None),
        Some(Port::Number(port)) => Ok(Some(port)),
        Some(Port::Text(text)) => {
            text.parse().map(Some).map_err(|_| serde::de::Error::custom("port is not a port number"))
        }
    }
}

/// Reads the secret's current version.
pub async fn database(account: &Account, arn: &str) -> Result<DatabaseSecret, AwsError> {
    let client = aws_sdk_secretsmanager::Client::new(account.sdk().await);
    let response = client.get_secret_value().secret_id(arn).send().await;
    let response = response.map_err(|error| AwsError::Secret(Cause::of(aws_sdk_secretsmanager::Error::from(error))))?;
    let text = response.secret_string().ok_or_else(|| AwsError::Secret(Cause::of("it is binary, not text")))?;
    parse(text)
}

fn parse(text: &str) -> Result<DatabaseSecret, AwsError> {
    serde_json::from_str(text).map_err(|error| {
        // serde's message may contain the secret.
        let kind = error.classify();
        AwsError::Secret(Cause::of(format!("it is not a JSON object with username and password ({kind:?} error)")))
    })
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn managed_and_rotated_secrets() {
        let managed = parse(r#"{"username":"operator","password":" p\"4 "}"#).unwrap();
        assert_eq!((managed.username.as_str(), managed.password.expose_secret()), ("operator", " p\"4 "));
        assert_eq!((managed.host, managed.port, managed.dbname), (None, None, None));
        for port in ["5433", "\"5433\""] {
            let text = format!(
                r#"{{"engine":"postgres","host":"db","username":"u","password":"p","dbname":"d","port":{port},"more":1}}"#
            );
            let rotated = parse(&text).unwrap();
            let found = (rotated.host.as_deref(), rotated.port, rotated.dbname.as_deref());
            assert_eq!(found, (Some("db"), Some(5433), Some("d")));
        }
    }

    #[test]
    fn errors_do_not_repeat_an_invalid_secret() {
        for text in ["topsecret", r#"{"username":"topsecret"}"#, r#"{"username":"u","password":["topsecret"]}"#] {
            let error = parse(text).unwrap_err();
            let AwsError::Secret(cause) = &error else { panic!("{error}") };
            assert!(!format!("{error} {cause} {error:?}").contains("topsecret"), "{error:?}");
        }
    }
}
