//! The ways to log in to Postgres. Each test has a server of its own, which requires passwords.

use std::path::Path;

use devstack::postgres::{Options, Postgres};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::LIMIT;
use crate::moto::Moto;
use crate::process::{Directory, Env, OPERATOR_SERVICE, Service, run, stderr};
use crate::support::{client, eventually, left_out};

/// A Postgres server.
struct Server {
    postgres: Postgres,
    directory: Directory,
}

impl Server {
    /// Starts a server with the schema and a user `operator_test` with this password.
    async fn start(password: &str) -> Self {
        let directory = Directory::new();
        let postgres = Postgres::start(Options::throwaway(directory.file("postgres"))).await.unwrap();
        let server = Self { postgres, directory };
        server.execute("CREATE ROLE operator_test LOGIN SUPERUSER").await;
        server.password(password).await;
        let env = server.env().with("POSTGRES_USER", "operator_test").with("POSTGRES_PASSWORD", password);
        let output = run(&["migrate"], &env).await;
        assert!(output.status.success(), "{}", stderr(&output));
        server
    }

    async fn execute(&self, statement: &str) {
        let mut connection = PgConnection::connect_with(&self.postgres.connect_options("postgres")).await.unwrap();
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Makes the server reload its configuration. It does so before its sessions do, so a session shows when it is
    /// done.
    async fn reload(&self) {
        let mut session = PgConnection::connect_with(&self.postgres.connect_options("postgres")).await.unwrap();
        let loaded = async |session: &mut PgConnection| -> String {
            sqlx::query_scalar("SELECT pg_conf_load_time()::text").fetch_one(session).await.unwrap()
        };
        let before = loaded(&mut session).await;
        session.execute("SELECT pg_reload_conf()").await.unwrap();
        eventually("the server reloads its configuration", LIMIT, async || {
            (loaded(&mut session).await != before).then_some(())
        })
        .await;
    }

    async fn password(&self, password: &str) {
        self.execute(&format!("ALTER ROLE operator_test PASSWORD '{password}'")).await;
    }

    /// The server's address, without a user.
    fn env(&self) -> Env {
        Env::of([("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_DB", "postgres")])
            .with("POSTGRES_PORT", self.postgres.port.to_string())
    }
}

async fn environments(service: &Service) -> (u16, String) {
    let answer = client().get(service.url("/api/v1/operator/environments")).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// The same, repeated if the service had no time for it, as happens on a busy machine. Any other answer counts.
async fn environments_in_time(service: &Service) -> (u16, String) {
    for _ in 0..20 {
        let (status, text) = environments(service).await;
        if !text.contains("did not answer in time") {
            return (status, text);
        }
    }
    panic!("20 requests in a row took too long:\n{}", service.process.output());
}

#[tokio::test]
async fn managed_and_rotated_secrets() {
    let Some(moto) = Moto::start().await else { return };
    let server = Server::start("first").await;
    let managed = moto.secret(&json!({ "username": "operator_test", "password": "first" })).await;
    let service = Service::start(&moto.and(server.env()).with("POSTGRES_SECRET_ARN", managed)).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());

    let rotated = json!({ "engine": "postgres", "username": "operator_test", "password": "first", "host": "127.0.0.1",
        "port": server.postgres.port, "dbname": "postgres" });
    let rotated = moto.secret(&rotated).await;
    let service = Service::start(&moto.and(Env::default()).with("POSTGRES_SECRET_ARN", rotated)).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());

    // The message names the variable and contains nothing secret.
    let env = moto.and(Env::default());
    for (secret, reported) in [
        (moto.secret(&json!({ "username": "operator_test", "password": "first" })).await, "POSTGRES_HOST"),
        (moto.secret(&json!("topsecret")).await, "POSTGRES_SECRET_ARN"),
        ("nowhere".to_owned(), "POSTGRES_SECRET_ARN"),
    ] {
        let service = Service::start(&env.clone().with("POSTGRES_SECRET_ARN", secret)).await;
        let (status, text) = environments(&service).await;
        assert_eq!(status, 503, "{text}");
        assert!(text.contains(reported), "{text}");
        assert!(!service.process.output().contains("topsecret") && !service.process.output().contains("first"));
    }
}

#[tokio::test]
async fn a_secret_rotated_under_load_loses_no_request() {
    let Some(moto) = Moto::start().await else { return };
    let server = Server::start("first").await;
    let secret = moto.secret(&json!({ "username": "operator_test", "password": "first" })).await;
    let env = moto.and(server.env()).with("POSTGRES_SECRET_ARN", &secret).with("POSTGRES_POOL_SIZE", "8");
    let service = Service::start(&env).await;
    assert_eq!(environments(&service).await.0, 200);

    for round in 0..3 {
        let password = format!("round-{round}");
        let value: Value = json!({ "username": "operator_test", "password": password });
        moto.put_secret(&secret, &value).await;
        server.password(&password).await;
        // Idle connections are closed, as after a freeze; new ones need the new password.
        server
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'operator_test' AND state = 'idle'",
            )
            .await;
        let answers = futures_util::future::join_all((0..24).map(|_| environments_in_time(&service))).await;
        for (status, text) in answers {
            assert_eq!(status, 200, "{text}\n{}", service.process.output());
        }
    }
    let output = service.process.output();
    assert!(output.contains("the database refused the login"), "{output}");
    // However many requests there are, the secret is read once for each rotation.
    assert_eq!(output.matches("the database's secret was read").count(), 4, "{output}");
    assert!(!output.contains("round-"), "{output}");
}

#[tokio::test]
async fn migrate_sets_the_passwords_of_the_roles_from_their_secrets() {
    let Some(moto) = Moto::start().await else { return };
    let server = Server::start("first").await;
    // As RDS's master user: no superuser. And a log of all statements.
    server.execute("CREATE ROLE operator_owner LOGIN CREATEROLE PASSWORD 'first'").await;
    server.execute("CREATE DATABASE owned OWNER operator_owner").await;
    server.execute("ALTER SYSTEM SET log_statement = 'all'").await;
    server.reload().await;
    let value = |user: &str, password: &str| json!({ "username": format!("operator_{user}"), "password": password });
    for user in ["compute", "results", "environments", "admin", "reaper"] {
        moto.named_secret(&format!("stack/{user}"), &value(user, &format!("topsecret {user}"))).await;
    }
    // One from a rotation template.
    let engine = json!({ "username": "operator_engine", "password": "topsecret engine", "host": "db", "port": 1 });
    moto.named_secret("stack/engine", &engine).await;
    let env = moto.and(server.env()).with("POSTGRES_DB", "owned");
    let owner = env.clone().with("POSTGRES_USER", "operator_owner").with("POSTGRES_PASSWORD", "first");
    let owner = owner.with("POSTGRES_ROLES", "operator_").with("POSTGRES_ROLE_SECRETS", "stack/");
    let migrate = async || {
        let output = run(&["migrate"], &owner).await;
        assert!(!stderr(&output).contains("topsecret"), "{}", stderr(&output));
        (output.status.success(), stderr(&output))
    };
    for _ in 0..2 {
        let (done, text) = migrate().await;
        assert!(done, "{text}");
    }

    let function = |user: &str| env.clone().with("POSTGRES_SECRET_ARN", format!("stack/{user}"));
    let service = Service::start(&function("environments")).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());
    let other = Service::start(&function("results")).await;
    let (status, text) = environments(&other).await;
    assert_eq!(status, 503);
    assert!(text.contains("The database's user may not do this"), "{text}");
    let login = server.postgres.connect_options("owned");
    let mut engine =
        PgConnection::connect_with(&login.clone().username("operator_engine").password("topsecret engine"))
            .await
            .unwrap();
    engine.execute("SELECT * FROM announce('ocean-compute', '{}', 1)").await.unwrap();
    // The limits of statements are for the functions.
    for (user, expected) in [("reaper", "6s"), ("engine", "0")] {
        let role = login.clone().username(&format!("operator_{user}")).password(&format!("topsecret {user}"));
        let mut connection = PgConnection::connect_with(&role).await.unwrap();
        let limit: String = sqlx::query_scalar("SHOW statement_timeout").fetch_one(&mut connection).await.unwrap();
        assert_eq!(limit, expected, "{user}");
    }

    // A new password, with the next deployment.
    moto.put_secret("stack/environments", &value("environments", "topsecret, too")).await;
    assert!(migrate().await.0);
    server
        .execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'operator_environments'")
        .await;
    assert_eq!(environments_in_time(&service).await.0, 200, "{}", service.process.output());

    moto.put_secret("stack/reaper", &value("results", "topsecret")).await;
    let (done, text) = migrate().await;
    assert!(!done && text.contains("the secret stack/reaper cannot be read"), "{text}");
    assert!(text.contains("its username is not operator_reaper"), "{text}");

    let log = std::fs::read_to_string(&server.postgres.log).unwrap();
    assert!(log.contains("ALTER ROLE operator_engine PASSWORD 'SCRAM-SHA-256$4096:"), "{log}");
    assert!(!log.contains("topsecret"));
}

/// Creates an authority and a certificate for a server named `localhost` in a directory. Returns false if Python's
/// cryptography is not installed.
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
async fn the_servers_certificate_is_verified_and_required_in_a_function() {
    let server = Server::start("first").await;
    let directory = server.postgres.data.clone();
    if !certificates(&directory) {
        return;
    }
    use std::os::unix::fs::MetadataExt;
    let owner = std::fs::metadata(&directory).unwrap();
    for file in ["server.pem", "server.key"] {
        std::os::unix::fs::chown(directory.join(file), Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let ca = server.directory.file("ca.pem");
    std::fs::copy(directory.join("ca.pem"), &ca).unwrap();
    for statement in [
        "ALTER SYSTEM SET ssl_cert_file = 'server.pem'",
        "ALTER SYSTEM SET ssl_key_file = 'server.key'",
        "ALTER SYSTEM SET ssl = on",
    ] {
        server.execute(statement).await;
    }
    server.reload().await;

    let env = server.env().with("POSTGRES_USER", "operator_test").with("POSTGRES_PASSWORD", "first");
    let ca = ca.to_str().unwrap();
    let full = env.clone().with("POSTGRES_SSLMODE", "verify-full");
    let right = full.clone().with("POSTGRES_CA_FILE", ca).with("POSTGRES_HOST", "localhost");
    let service = Service::start(&right).await;
    assert_eq!(environments(&service).await.0, 200, "{}", service.process.output());
    // A wrong name, a wrong authority (RDS's), and the default in a function, which is verify-full as well.
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

    // IAM authentication: RDS would check the password; this server accepts any of one user and none of the other.
    let hba = directory.join("pg_hba.conf");
    let rules = std::fs::read_to_string(&hba).unwrap();
    std::fs::write(&hba, format!("hostssl all operator_iam all trust\n{rules}")).unwrap();
    server.execute("CREATE ROLE operator_iam LOGIN SUPERUSER").await;
    server.reload().await;
    let iam = right.without("POSTGRES_PASSWORD").with("POSTGRES_IAM_AUTH", "1").without("POSTGRES_SSLMODE");
    // The password is made without a call: no AWS service is reachable.
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

    // Outside a function the default is to use TLS if the server offers it.
    assert_eq!(environments(&Service::start(&env).await).await.0, 200);
}

#[tokio::test]
async fn variables_that_exclude_each_other_are_reported_at_the_start() {
    let env = Env::of([("POSTGRES_HOST", "db"), ("POSTGRES_DB", "d"), ("POSTGRES_USER", "u")]);
    for (variables, reported) in [
        (&[("POSTGRES_PASSWORD", "p"), ("POSTGRES_IAM_AUTH", "1")][..], "POSTGRES_IAM_AUTH"),
        (&[("POSTGRES_IAM_AUTH", "1"), ("POSTGRES_SSLMODE", "prefer")][..], "POSTGRES_SSLMODE"),
        (&[("EKS_CLUSTER_CA", "xyz")][..], "EKS_CLUSTER_NAME"),
        (&[("EKS_CLUSTER_NAME", "c"), ("EKS_CLUSTER_ENDPOINT", "http://example.org")][..], "EKS_CLUSTER_ENDPOINT"),
        (&[("EKS_CLUSTER_NAME", "c"), ("EKS_CLUSTER_ENDPOINT", "https://example.org")][..], "EKS_CLUSTER_CA"),
    ] {
        let output = run(&["serve"], &env.clone().and(variables)).await;
        assert!(!output.status.success());
        assert!(stderr(&output).contains(reported), "{reported}: {}", stderr(&output));
    }
    assert!(Path::new(OPERATOR_SERVICE).is_file());
}
