//! A database of the test's own.

use std::net::SocketAddr;

use operator_service::config::{Config, DatabaseUse, RolesConfig};
use operator_service::db::Database;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection, Row};

use super::{agreement_id, owner, unique, workflow};

/// Whom infra/database/roles.sql has roles for.
const ROLES: [&str; 6] = ["compute", "results", "environments", "admin", "reaper", "engine"];

/// A database for one test, dropped at its end.
#[derive(Debug)]
pub struct TestDatabase {
    /// Its name.
    pub name: String,
    /// For arranging and inspecting rows.
    pub pool: PgPool,
    server: Server,
    has_roles: bool,
}

/// The server that TEST_DATABASE_URL names.
#[derive(Debug, Clone)]
struct Server {
    host: String,
    port: u16,
    user: String,
    password: Option<String>,
    database: String,
}

impl Server {
    fn from_env() -> Self {
        let url = std::env::var("TEST_DATABASE_URL").unwrap_or_else(|_| {
            panic!(
                "TEST_DATABASE_URL has to name a PostgreSQL server and a superuser, such as \
                 postgres://postgres@127.0.0.1:5432/postgres: run `make test`"
            )
        });
        let url = url::Url::parse(&url).expect("TEST_DATABASE_URL is no URL");
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        Self {
            host: url.host_str().unwrap_or("127.0.0.1").to_owned(),
            port: url.port().unwrap_or(5432),
            user: decode(url.username()),
            password: url.password().map(decode),
            database: url.path().trim_start_matches('/').to_owned(),
        }
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        let options = PgConnectOptions::new_without_pgpass().host(&self.host).port(self.port).username(&self.user);
        let options = options.database(database).disable_statement_logging();
        match &self.password {
            Some(password) => options.password(password),
            None => options,
        }
    }

    async fn execute(&self, statement: String) {
        let mut connection = self.options(&self.database).connect().await.expect("TEST_DATABASE_URL cannot be reached");
        connection.execute(AssertSqlSafe(statement)).await.unwrap();
    }
}

impl TestDatabase {
    /// Creates a database without any table.
    pub async fn empty() -> Self {
        let server = Server::from_env();
        let name = unique("test").replace('-', "_");
        server.execute(format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")).await;
        let pool = PgPoolOptions::new().max_connections(4).connect_lazy_with(server.options(&name));
        Self { name, pool, server, has_roles: false }
    }

    /// Creates a database with the service's schema.
    pub async fn migrated() -> Self {
        let database = Self::empty().await;
        database.service().migrate().await.unwrap();
        database
    }

    /// Creates a database with the service's schema and the roles that POSTGRES_ROLES creates, where PUBLIC has no rights.
    pub async fn with_roles() -> Self {
        let mut database = Self::empty().await;
        database.has_roles = true;
        let roles = RolesConfig { prefix: Some(database.role("")), ..RolesConfig::default() };
        // Twice, as by two deployments.
        for _ in 0..2 {
            database.service().migrate_within(std::time::Duration::from_secs(60), &roles).await.unwrap();
        }
        let name = &database.name;
        let mut statements =
            format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC;");
        for user in ROLES {
            let role = database.role(user);
            statements.push_str(&format!("ALTER ROLE {role} PASSWORD '{name}';"));
        }
        database.pool.execute(AssertSqlSafe(statements)).await.unwrap();
        database
    }

    /// The name of one of these roles.
    pub fn role(&self, user: &str) -> String {
        format!("{}_{user}", self.name)
    }

    /// The variables with which the service logs in as one of these roles.
    pub fn login(&self, user: &str) -> [(&'static str, String); 2] {
        [("POSTGRES_USER", self.role(user)), ("POSTGRES_PASSWORD", self.name.clone())]
    }

    /// Creates a database as the Python service left it (python_service.sql), with this number of nonces under
    /// addresses that nobody owns.
    pub async fn of_the_python_service(ownerless_nonces: u32) -> Self {
        let database = Self::empty().await;
        let statements = format!(
            "SET python_service.ownerless_nonces = {ownerless_nonces};\n{}",
            include_str!("../python_service.sql")
        );
        database.pool.execute(sqlx::raw_sql(AssertSqlSafe(statements))).await.unwrap();
        database
    }

    /// The variables by which the service finds it.
    pub fn variables(&self) -> Vec<(String, String)> {
        let Server { host, port, user, password, .. } = &self.server;
        let mut variables = vec![
            ("POSTGRES_HOST".to_owned(), host.clone()),
            ("POSTGRES_PORT".to_owned(), port.to_string()),
            ("POSTGRES_DB".to_owned(), self.name.clone()),
            ("POSTGRES_USER".to_owned(), user.clone()),
        ];
        variables.extend(password.clone().map(|password| ("POSTGRES_PASSWORD".to_owned(), password)));
        variables
    }

    /// The server's address.
    pub async fn address(&self) -> SocketAddr {
        tokio::net::lookup_host((self.server.host.as_str(), self.server.port)).await.unwrap().next().unwrap()
    }

    /// How to connect to it.
    pub fn connect_options(&self) -> PgConnectOptions {
        self.server.options(&self.name)
    }

    /// Opens a connection outside the pool.
    pub async fn connect(&self) -> PgConnection {
        self.connect_options().connect().await.unwrap()
    }

    /// The service's access to it.
    pub fn service(&self) -> Database {
        let variables = self.variables();
        let variable = |name: &str| variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        Database::new(&Config::read(&variable, DatabaseUse::Required).unwrap().database.unwrap())
    }

    /// Ends every other connection, as a restart of the server does.
    pub async fn terminate_connections(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE datname = current_database() AND application_name = 'operator-service'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// Announces an environment, as its engine does, without taking jobs.
    pub async fn announce(&self, namespace: &str, status: &str) {
        self.engine(namespace, status, 0).await;
    }

    /// The engine's call: announces an environment and takes jobs.
    pub async fn engine(&self, namespace: &str, status: &str, limit: i32) -> Vec<String> {
        let rows = sqlx::query("SELECT * FROM announce($1, $2, $3)")
            .bind(namespace)
            .bind(status)
            .bind(limit)
            .fetch_all(&self.pool)
            .await
            .unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    }

    /// The row of a job, as JSON, all columns.
    pub async fn job(&self, job_id: &str) -> Option<serde_json::Value> {
        self.row("SELECT to_jsonb(jobs) FROM jobs WHERE workflowid = $1", job_id).await
    }

    /// The JSON value that a statement returns, if any.
    pub async fn row(&self, statement: &'static str, argument: &str) -> Option<serde_json::Value> {
        let text = format!("SELECT ({statement})::text");
        let value: Option<String> =
            sqlx::query_scalar(AssertSqlSafe(text)).bind(argument).fetch_one(&self.pool).await.unwrap();
        value.map(|value| serde_json::from_str(&value).unwrap())
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        let statement = format!("SELECT count(*) FROM {table}");
        sqlx::query_scalar(AssertSqlSafe(statement)).fetch_one(&self.pool).await.unwrap()
    }

    /// The nonces that the service has recorded for a signer, as they were written, lowest first.
    pub async fn used_nonces(&self, signer: &str) -> Vec<String> {
        sqlx::query_scalar("SELECT nonce FROM usednonces WHERE signer = lower($1) ORDER BY ns")
            .bind(signer)
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    /// Records a nonce as the Python service did.
    pub async fn old_nonce(&self, provider: &str, nonce: Option<&str>) {
        sqlx::query("INSERT INTO nonces (provider, nonce) VALUES ($1, $2)")
            .bind(provider)
            .bind(nonce)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    /// Runs a statement.
    pub async fn execute(&self, statement: &'static str) {
        self.pool.execute(statement).await.unwrap();
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (server, name, has_roles) = (self.server.clone(), self.name.clone(), self.has_roles);
        // A destructor cannot wait in the test's own runtime.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.execute(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)")));
            if has_roles {
                let roles = ROLES.map(|user| format!("{name}_{user}")).join(", ");
                runtime.block_on(server.execute(format!("DROP ROLE IF EXISTS {roles}")));
            }
        });
        dropped.join().ok();
    }
}

/// A row of `jobs`, as engines and services leave them there. [`Stored::default`] is a job that was just accepted.
#[derive(Debug, Clone)]
pub struct Stored {
    pub agreement_id: String,
    pub job_id: String,
    pub owner: Option<String>,
    pub status: Option<i32>,
    pub status_text: Option<String>,
    /// Seconds since the epoch.
    pub created: f64,
    /// Seconds since the epoch; `None` while unfinished.
    pub finished: Option<f64>,
    pub outputs: Option<String>,
    pub namespace: Option<String>,
    pub stopreq: Option<i16>,
    pub removed: Option<i16>,
    pub workflow: Option<String>,
    pub provider: Option<String>,
    pub reason: Option<String>,
    pub valid_until: Option<i64>,
    /// False in rows of the Python service.
    pub signer_verified: bool,
}

impl Default for Stored {
    fn default() -> Self {
        let job_id = uuid::Uuid::new_v4().simple().to_string();
        Self {
            agreement_id: agreement_id(),
            owner: Some(owner()),
            status: Some(1),
            status_text: Some("Warming up".to_owned()),
            created: 1_795_300_414.039_237,
            finished: None,
            outputs: None,
            namespace: Some("ocean-compute".to_owned()),
            stopreq: Some(0),
            removed: Some(0),
            workflow: Some(workflow::document(&job_id, "ocean-compute").to_string()),
            provider: None,
            reason: None,
            valid_until: None,
            signer_verified: true,
            job_id,
        }
    }
}

impl Stored {
    /// A job that its engine is done with.
    pub fn finished() -> Self {
        Self {
            status: Some(70),
            status_text: Some("Job finished".to_owned()),
            finished: Some(1_795_300_500.5),
            ..Self::default()
        }
    }

    /// A job whose algorithm runs.
    pub fn running() -> Self {
        Self { status: Some(40), status_text: Some("Running algorithm".to_owned()), ..Self::default() }
    }

    /// Writes the row.
    pub async fn insert(self, database: &TestDatabase) -> Self {
        sqlx::query(
            "INSERT INTO jobs (agreementid, workflowid, owner, status, statustext, datecreated, datefinished, \
             outputsurl, namespace, stopreq, removed, workflow, provider, reason, validuntil, signerverified) \
             VALUES ($1, $2, $3, $4, $5, to_timestamp($6) AT TIME ZONE 'UTC', to_timestamp($7) AT TIME ZONE 'UTC', \
             $8, $9, $10, $11, $12, $13, $14, $15, $16)",
        )
        .bind(&self.agreement_id)
        .bind(&self.job_id)
        .bind(&self.owner)
        .bind(self.status)
        .bind(&self.status_text)
        .bind(self.created)
        .bind(self.finished)
        .bind(&self.outputs)
        .bind(&self.namespace)
        .bind(self.stopreq)
        .bind(self.removed)
        .bind(&self.workflow)
        .bind(self.provider.as_ref().map(|provider| provider.to_lowercase()))
        .bind(&self.reason)
        .bind(self.valid_until)
        .bind(self.signer_verified)
        .execute(&database.pool)
        .await
        .unwrap();
        self
    }
}
