//! moto, which simulates AWS, as a process of the test.

use std::path::PathBuf;
use std::time::Duration;

use devstack::process::{Child, Program};
use serde_json::{Value, json};

use crate::process::{Directory, Env};
use crate::support::{eventually, left_out};

pub const REGION: &str = "eu-west-1";
pub const ACCOUNT: &str = "123456789012";

pub struct Moto {
    pub url: String,
    client: reqwest::Client,
    _child: Child,
    _directory: Directory,
}

impl Moto {
    /// Starts moto. `None` if it is not installed; the test is then reported as left out.
    pub async fn start() -> Option<Self> {
        let beside_python =
            std::env::var_os("TEST_PYTHON").map(|python| PathBuf::from(python).with_file_name("moto_server"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let on_path = std::env::split_paths(&path).map(|directory| directory.join("moto_server"));
        let Some(program) = beside_python.into_iter().chain(on_path).find(|program| program.is_file()) else {
            left_out("there is no moto_server (make test installs it)");
            return None;
        };
        let directory = Directory::new();
        let log = directory.file("moto.log");
        let mut program = Program::new(program).log(&log).unwrap();
        program.command.args(["-H", "127.0.0.1", "-p", "0"]);
        let child = program.spawn().unwrap();
        let url = eventually("moto", Duration::from_secs(60), async || {
            let log = std::fs::read_to_string(&log).ok()?;
            let (_, url) = log.split_once("Running on ")?;
            Some(url.split_once('\n')?.0.trim().to_owned())
        })
        .await;
        Some(Self { url, client: crate::support::client(), _child: child, _directory: directory })
    }

    /// The variables of a process that uses it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.url.clone()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY".to_owned()),
        ]
    }

    pub fn and(&self, env: Env) -> Env {
        self.env().into_iter().fold(env, |env, (name, value)| env.with(name, value))
    }

    /// Calls Secrets Manager.
    pub async fn secrets(&self, action: &str, body: Value) -> Value {
        let credential = format!("AKIAIOSFODNN7EXAMPLE/20261122/{REGION}/secretsmanager/aws4_request");
        let request = self.client.post(&self.url).header("x-amz-target", format!("secretsmanager.{action}"));
        let request = request.header("content-type", "application/x-amz-json-1.1").header(
            "authorization",
            format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0"),
        );
        let answer = request.body(body.to_string()).send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Creates a secret. Returns its ARN.
    pub async fn secret(&self, value: &Value) -> String {
        self.named_secret(&crate::support::unique("database"), value).await
    }

    /// Creates a secret with this name. Returns its ARN.
    pub async fn named_secret(&self, name: &str, value: &Value) -> String {
        let body = json!({ "Name": name, "SecretString": value.to_string(),
            "ClientRequestToken": uuid::Uuid::new_v4().to_string() });
        self.secrets("CreateSecret", body).await["ARN"].as_str().unwrap().to_owned()
    }

    /// Changes a secret.
    pub async fn put_secret(&self, secret: &str, value: &Value) {
        let token = uuid::Uuid::new_v4().to_string();
        let body = json!({ "SecretId": secret, "SecretString": value.to_string(), "ClientRequestToken": token });
        self.secrets("PutSecretValue", body).await;
    }

    /// Creates a bucket with an object.
    pub async fn object(&self, bucket: &str, key: &str, content: &[u8]) {
        for (path, content) in [(bucket.to_owned(), &b""[..]), (format!("{bucket}/{key}"), content)] {
            let request = self.client.put(format!("{}/{path}", self.url)).body(content.to_vec());
            let credential = "AKIAIOSFODNN7EXAMPLE/20261122/us-east-1/s3/aws4_request";
            let signature = format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0");
            let answer = request.header("authorization", signature).send().await.unwrap();
            assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        }
    }

    /// The content of an object, if there is one.
    pub async fn content(&self, bucket: &str, key: &str) -> Option<Vec<u8>> {
        let credential = "AKIAIOSFODNN7EXAMPLE/20261122/us-east-1/s3/aws4_request";
        let signature = format!("AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0");
        let request = self.client.get(format!("{}/{bucket}/{key}", self.url)).header("authorization", signature);
        let answer = request.send().await.unwrap();
        match answer.status().as_u16() {
            404 => None,
            200 => Some(answer.bytes().await.unwrap().to_vec()),
            status => panic!("{status}"),
        }
    }
}
