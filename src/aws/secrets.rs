//! Secrets Manager: the database's credentials, and the keys for origins of results.

use secrecy::{ExposeSecret, SecretString};
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

/// The headers for origins of results.
#[derive(Debug, Clone, Deserialize)]
pub struct ResultSecret {
    /// The value of `X-API-KEY`.
    #[serde(default, rename = "X-API-KEY")]
    pub api_key: Option<SecretString>,
    /// The value of `CLIENT-ID`.
    #[serde(default, rename = "CLIENT-ID")]
    pub client_id: Option<SecretString>,
}

/// Reads the current version of the database's secret.
pub async fn database(account: &Account, arn: &str) -> Result<DatabaseSecret, AwsError> {
    let text = read(account, arn).await.map_err(AwsError::Secret)?;
    parse(&text, "username and password").map_err(AwsError::Secret)
}

/// Reads the password of a database role from the secret with this name.
pub async fn role(account: &Account, name: &str, role: &str) -> Result<SecretString, AwsError> {
    let failed = |cause| AwsError::RoleSecret(name.to_owned(), cause);
    let text = read(account, name).await.map_err(failed)?;
    let secret: DatabaseSecret = parse(&text, "username and password").map_err(failed)?;
    if secret.username != role {
        return Err(failed(Cause::of(format!("its username is not {role}"))));
    }
    Ok(secret.password)
}

/// Reads the current version of the secret for origins of results.
pub async fn results(account: &Account, arn: &str) -> Result<ResultSecret, AwsError> {
    let text = read(account, arn).await.map_err(AwsError::ResultSecret)?;
    let secret: ResultSecret = parse(&text, "X-API-KEY and CLIENT-ID").map_err(AwsError::ResultSecret)?;
    if secret.api_key.is_none() && secret.client_id.is_none() {
        return Err(AwsError::ResultSecret(Cause::of("it holds neither X-API-KEY nor CLIENT-ID")));
    }
    let cannot_be_sent = |value: &SecretString| axum::http::HeaderValue::from_str(value.expose_secret()).is_err();
    if [&secret.api_key, &secret.client_id].into_iter().flatten().any(cannot_be_sent) {
        return Err(AwsError::ResultSecret(Cause::of("one of its values is not text that a header can hold")));
    }
    Ok(secret)
}

async fn read(account: &Account, arn: &str) -> Result<String, Cause> {
    let client = aws_sdk_secretsmanager::Client::new(account.sdk().await);
    let response = client.get_secret_value().secret_id(arn).send().await;
    let response = response.map_err(|error| Cause::of(aws_sdk_secretsmanager::Error::from(error)))?;
    let text = response.secret_string().ok_or_else(|| Cause::of("it is binary, not text"))?;
    Ok(text.to_owned())
}

fn parse<T: serde::de::DeserializeOwned>(text: &str, names: &str) -> Result<T, Cause> {
    serde_json::from_str(text).map_err(|error| {
        // serde's message may contain the secret.
        let kind = error.classify();
        Cause::of(format!("it is not a JSON object with {names} ({kind:?} error)"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_and_rotated_secrets() {
        let managed: DatabaseSecret = parse(r#"{"username":"operator","password":" p\"4 "}"#, "").unwrap();
        assert_eq!((managed.username.as_str(), managed.password.expose_secret()), ("operator", " p\"4 "));
        assert_eq!((managed.host, managed.port, managed.dbname), (None, None, None));
        for port in ["5433", "\"5433\""] {
            let text = format!(
                r#"{{"engine":"postgres","host":"db","username":"u","password":"p","dbname":"d","port":{port},"more":1}}"#
            );
            let rotated: DatabaseSecret = parse(&text, "").unwrap();
            let found = (rotated.host.as_deref(), rotated.port, rotated.dbname.as_deref());
            assert_eq!(found, (Some("db"), Some(5433), Some("d")));
        }
    }

    #[test]
    fn errors_do_not_repeat_an_invalid_secret() {
        for text in ["topsecret", r#"{"username":"topsecret"}"#, r#"{"username":"u","password":["topsecret"]}"#] {
            let error = parse::<DatabaseSecret>(text, "username").unwrap_err();
            assert!(!format!("{error} {error:?}").contains("topsecret"), "{error:?}");
        }
    }
}
