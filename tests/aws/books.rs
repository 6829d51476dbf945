//! The ways to be let into Postgres. Each test has a server of its own, which asks for passwords.

use std::path::Path;

use devstack::postgres::{Options, Postgres};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::LIMIT;
use crate::moto::Moto;
use crate::process::{Directory, Env, OPERATOR_SERVICE, Service, run, stderr};
use crate::support::{client, eventually, left_out};

struct Books {
    server: Postgres,
    directory: Directory,
}

impl Books {
    /// With the schema, and a user `operator_test` with this password.
    async fn start(password: &str) -> Self {
        let directory = Directory::new();
        let server = Postgres::start(Options::throwaway(directory.file("postgres"))).await.unwrap();
        let books = Self { server, directory };
        books.execute("CREATE ROLE operator_test LOGIN SUPERUSER").await;
        books.password(password).await;
        let env = books.env().with("POSTGRES_USER", "operator_test").with("POSTGRES_PASSWORD", password);
        let output = run(&["migrate"], &env).await;
        assert!(output.status.success(), "{}", stderr(&output));
        books
    }

    async fn execute(&self, statement: &str) {
        let mut connection = PgConnection::connect_with(&self.server.connect_options("postgres")).await.unwrap();
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Has the server read its configuration again. It does so before its sessions do, and a session tells when.
    async fn reload(&self) {
        let mut session = PgConnection::connect_with(&self.server.connect_options("postgres")).await.unwrap();
        let loaded = async |session: &mut PgConnection| -> String {
            sqlx::query_scalar("SELECT pg_conf_load_time()::text").fetch_one(session).await.unwrap()
        };
        let before = loaded(&mut session).await;
        session.execute("SELECT pg_reload_conf()").await.unwrap();
        eventually("the server reads its configuration again", LIMIT, async || {
            (loaded(&mut session).await != before).then_some(())
        })
        .await;
    }

    async fn password(&self, password: &str) {
        self.execute(&format!("ALTER ROLE operator_test PASSWORD '{password}'")).await;
    }

    /// Where it is, but not who may in.
    fn env(&self) -> Env {
        Env::of([("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_DB", "postgres")])
            .with("POSTGRES_PORT", self.server.port().to_string())
    }
}

async fn environments(service: &Service) -> (u16, String) {
    let answer = client().get(service.url("/api/v1/operator/environments")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn secrets_of_both_shapes() {
    let Some(moto) = Moto::start().await else { return };
    let books = Books::start("first").await;
    let managed = moto.secret(&json!({ "username": "operator_test", "password": "first" })).await;
    let service = Service::start(&moto.and(books.env()).with("POSTGRES_SECRET_ARN", managed)).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());

    let rotated = json!({ "engine": "postgres", "username": "operator_test", "password": "first", "host": "127.0.0.1",
        "port": books.server.port(), "dbname": "postgres" });
    let rotated = moto.secret(&rotated).await;
    let service = Service::start(&moto.and(Env::default()).with("POSTGRES_SECRET_ARN", rotated)).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());

    // What cannot be is told, and nothing of what is secret.
    let env = moto.and(Env::default());
    for (secret, told) in [
        (moto.secret(&json!({ "username": "operator_test", "password": "first" })).await, "POSTGRES_HOST"),
        (moto.secret(&json!("topsecret")).await, "POSTGRES_SECRET_ARN"),
        ("nowhere".to_owned(), "POSTGRES_SECRET_ARN"),
    ] {
        let service = Service::start(&env.clone().with("POSTGRES_SECRET_ARN", secret)).await;
        let (status, text) = environments(&service).await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains(told), "{text}");
        assert!(!service.process.output().contains("topsecret") && !service.process.output().contains("first"));
    }
}

#[tokio::test]
async fn a_secret_rotated_under_load_loses_no_request() {
    let Some(moto) = Moto::start().await else { return };
    let books = Books::start("first").await;
    let secret = moto.secret(&json!({ "username": "operator_test", "password": "first" })).await;
    let env = moto.and(books.env()).with("POSTGRES_SECRET_ARN", &secret).with("POSTGRES_POOL_SIZE", "8");
    let service = Service::start(&env).await;
    assert_eq!(environments(&service).await.0, 200);

    for round in 0..3 {
        let password = format!("round-{round}");
        let value: Value = json!({ "username": "operator_test", "password": password });
        let token = uuid::Uuid::new_v4().to_string();
        let body = json!({ "SecretId": secret, "SecretString": value.to_string(), "ClientRequestToken": token });
        moto.secrets("PutSecretValue", body).await;
        books.password(&password).await;
        // Those connections that are idle end, as they do after a freeze; the new ones need the new password.
        books
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'operator_test' AND state = 'idle'",
            )
            .await;
        let answers = futures_util::future::join_all((0..24).map(|_| environments(&service))).await;
        for (status, text) in answers {
            assert_eq!(status, 200, "{text}\n{}", service.process.output());
        }
    }
    let output = service.process.output();
    assert!(output.contains("the database refused the login"), "{output}");
    // Many requests, one look at the secret for each rotation.
    assert_eq!(output.matches("the database's secret was read").count(), 4, "{output}");
    assert!(!output.contains("round-"), "{output}");
}

/// Puts an authority and the certificate of a server called `localhost` into a directory; false where nothing makes them.
pub fn certificates(directory: &Path) -> bool {
    let python = std::env::var("TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/aws/certificates.py");
    let made = std::process::Command::new(python).arg(script).arg(directory).arg("localhost").output();
    let made = made.is_ok_and(|output| output.status.success());
    if !made {
        left_out("TEST_PYTHON has no cryptography (make test installs it)");
    }
    made
}

#[tokio::test]
async fn the_servers_certificate_is_checked_and_a_function_demands_one() {
    let books = Books::start("first").await;
    let directory = books.server.data().to_owned();
    if !certificates(&directory) {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(&directory).unwrap();
    for file in ["server.pem", "server.key"] {
        std::os::unix::fs::chown(directory.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let ca = books.directory.file("ca.pem");
    std::fs::copy(directory.join("ca.pem"), &ca).unwrap();
    for statement in [
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl = on",
    ] {
        books.execute(statement).await;
    }
    books.reload().await;

    let env = books.env().with("POSTGRES_USER", "operator_test").with("POSTGRES_PASSWORD", "first");
    let ca = ca.to_str().unwrap();
    let full = env.clone().with("POSTGRES_SSLMODE", "verify-full");
    let right = full.clone().with("POSTGRES_CA_FILE", ca).with("POSTGRES_HOST", "localhost");
    let service = Service::start(&right).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());
    // The wrong name, the wrong authority (RDS's), and a function's default, which is verify-full as well.
    for wrong in [
        full.clone().with("POSTGRES_CA_FILE", ca),
        full.with("POSTGRES_HOST", "localhost"),
        env.clone().with("AWS_LAMBDA_FUNCTION_NAME", "environments").with("POSTGRES_HOST", "localhost"),
    ] {
        let service = Service::start(&wrong).await;
        let (status, text) = environments(&service).await;
        assert_eq!(status, 503);
        assert!(text.contains("certificate was refused"), "{text}");
    }

    // IAM authentication: RDS would check the password; this server lets one user in without, the other not at all.
    let hba = directory.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("hostssl all operator_iam all trust\n{rules}")).unwrap();
    books.execute("CREATE ROLE operator_iam LOGIN SUPERUSER").await;
    books.reload().await;
    let iam = right.without("POSTGRES_PASSWORD").with("POSTGRES_IAM_AUTH", "1").without("POSTGRES_SSLMODE");
    // Nobody is there to be asked: the password is made here.
    let iam = iam.and(&[
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_REGION", "eu-west-1"),
        ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ]);
    let service = Service::start(&iam.clone().with("POSTGRES_USER", "operator_iam")).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());
    let service = Service::start(&iam).await;
    assert_eq!(environments(&service).await.0, 503);
    assert_eq!(service.process.output().matches("trying once more with a new one").count(), 1);
    assert!(!service.process.output().contains("X-Amz-Signature"));

    // Elsewhere the default is to take what there is.
    assert_eq!(environments(&Service::start(&env).await).await.0, 200);
}

#[tokio::test]
async fn ways_that_exclude_each_other_are_told_at_the_start() {
    let env = Env::of([("POSTGRES_HOST", "db"), ("POSTGRES_DB", "d"), ("POSTGRES_USER", "u")]);
    for (variables, told) in [
        (&[("POSTGRES_PASSWORD", "p"), ("POSTGRES_IAM_AUTH", "1")][..], "POSTGRES_IAM_AUTH"),
        (&[("POSTGRES_IAM_AUTH", "1"), ("POSTGRES_SSLMODE", "prefer")][..], "POSTGRES_SSLMODE"),
        (&[("EKS_CLUSTER_CA", "xyz")][..], "EKS_CLUSTER_NAME"),
        (&[("EKS_CLUSTER_NAME", "c"), ("EKS_CLUSTER_ENDPOINT", "http://example.org")][..], "EKS_CLUSTER_ENDPOINT"),
        (&[("EKS_CLUSTER_NAME", "c"), ("EKS_CLUSTER_ENDPOINT", "https://example.org")][..], "EKS_CLUSTER_CA"),
    ] {
        let output = run(&["serve"], &env.clone().and(variables)).await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(told), "{told}: {}", stderr(&output));
    }
    assert!(Path::new(OPERATOR_SERVICE).is_file());
}
