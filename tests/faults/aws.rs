//! Stands in for STS and Secrets Manager: gives a process its credentials and the password of the database, or answers
//! that there are too many requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::child::{Directory, Env};

pub struct Aws {
    url: String,
    throttles: Arc<AtomicBool>,
    server: JoinHandle<()>,
}

impl Aws {
    pub async fn start(user: &str, password: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let throttles = Arc::new(AtomicBool::new(false));
        let (shared, secret) = (throttles.clone(), json!({ "username": user, "password": password }).to_string());
        let router = Router::new().fallback(async move |headers: HeaderMap| {
            let of_secrets = headers.contains_key("x-amz-target");
            match (shared.load(Ordering::SeqCst), of_secrets) {
                (true, true) => (StatusCode::BAD_REQUEST, json!({ "__type": "ThrottlingException" }).to_string()),
                (true, false) => (StatusCode::BAD_REQUEST, TOO_MANY.to_owned()),
                (false, true) => (StatusCode::OK, json!({ "Name": "database", "SecretString": secret }).to_string()),
                (false, false) => (StatusCode::OK, CREDENTIALS.to_owned()),
            }
            .into_response() as Response
        });
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, throttles, server }
    }

    /// The environment of a process that assumes a role by its web identity and reads the password from a secret.
    pub fn env(&self, env: Env, directory: &Directory) -> Env {
        let token = directory.file("token");
        std::fs::write(&token, "a token").unwrap();
        env.without("POSTGRES_PASSWORD").with("POSTGRES_SECRET_ARN", "database").and(&[
            ("AWS_ENDPOINT_URL", &self.url),
            ("AWS_REGION", "eu-central-1"),
            ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/operator-service"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.to_str().unwrap()),
        ])
    }

    /// Whether requests are refused.
    pub fn throttle(&self, throttles: bool) {
        self.throttles.store(throttles, Ordering::SeqCst);
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// STS's response to AssumeRoleWithWebIdentity.
const CREDENTIALS: &str = "\
<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
  <AssumeRoleWithWebIdentityResult>
    <AssumedRoleUser>
      <Arn>arn:aws:sts::123456789012:assumed-role/operator-service/session</Arn>
      <AssumedRoleId>AROAIOSFODNN7EXAMPLE:session</AssumedRoleId>
    </AssumedRoleUser>
    <Credentials>
      <AccessKeyId>ASIAIOSFODNN7EXAMPLE</AccessKeyId>
      <SecretAccessKey>wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY</SecretAccessKey>
      <SessionToken>session-token</SessionToken>
      <Expiration>2099-01-01T00:00:00Z</Expiration>
    </Credentials>
  </AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>";
const TOO_MANY: &str = "\
<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">
  <Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error>
</ErrorResponse>";
