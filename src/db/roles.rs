//! The roles of the functions and of the engine (infra/database/roles.sql), and what limits roles.

use std::num::NonZeroU32;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ring::{digest, hmac, pbkdf2};
use secrecy::{ExposeSecret, SecretString};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use super::{Database, DatabaseError};
use crate::aws::secrets;
use crate::config::RolesConfig;

/// Whom the roles are for; each is named after it.
const USERS: [&str; 6] = ["compute", "results", "environments", "admin", "reaper", ENGINE];
/// The engine, whose statements are not this service's to limit.
const ENGINE: &str = "engine";
/// The roles with the prefix `operator_`.
const ROLES: &str = include_str!("../../infra/database/roles.sql");
/// The rounds of PBKDF2, PostgreSQL's default.
const SCRAM_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();

impl Database {
    /// Creates the roles, sets their grants and passwords, and limits roles: what of it `config` asks for. The limits hold
    /// from the next connection on.
    pub(super) async fn prepare_roles(
        &self,
        connection: &mut PgConnection,
        config: &RolesConfig,
    ) -> Result<(), DatabaseError> {
        if config.limits_own {
            let own: String = sqlx::query_scalar("SELECT session_user::text").fetch_one(&mut *connection).await?;
            limit(connection, &own).await?;
        }
        let Some(prefix) = &config.prefix else { return Ok(()) };
        let mut passwords = Vec::new();
        for user in USERS {
            if let Some(secrets) = &config.secrets {
                let role = format!("{prefix}{user}");
                let password = secrets::role(self.account(), &format!("{secrets}{user}"), &role).await;
                passwords.push((role, password.map_err(DatabaseError::RolePassword)?));
            }
        }
        let mut transaction = connection.begin().await?;
        sqlx::raw_sql(AssertSqlSafe(ROLES.replace("operator_", prefix))).execute(&mut *transaction).await?;
        for (role, password) in passwords {
            // As a verifier: a server with log_statement = ddl or all writes the statement to its log.
            let verifier = verifier(&password, Uuid::new_v4().as_bytes());
            transaction.execute(AssertSqlSafe(format!("ALTER ROLE {role} PASSWORD '{verifier}'"))).await?;
        }
        for user in USERS.into_iter().filter(|user| *user != ENGINE) {
            limit(&mut transaction, &format!("{prefix}{user}")).await?;
        }
        Ok(transaction.commit().await?)
    }
}

/// Limits what a statement of a role may take in this database.
async fn limit(connection: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    sqlx::query("SELECT set_config('operator_service.role', $1, false)").bind(role).execute(&mut *connection).await?;
    sqlx::raw_sql(include_str!("role_limits.sql")).execute(connection).await?;
    Ok(())
}

/// What the server stores of a password, and checks logins with (<https://www.rfc-editor.org/rfc/rfc5803>,
/// <https://www.postgresql.org/docs/current/catalog-pg-authid.html>). SASLprep changes no password in ASCII, as Secrets
/// Manager generates them.
fn verifier(password: &SecretString, salt: &[u8]) -> String {
    let mut salted = [0; digest::SHA256_OUTPUT_LEN];
    let password = password.expose_secret().as_bytes();
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, SCRAM_ITERATIONS, salt, password, &mut salted);
    let key = |name: &[u8]| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &salted), name);
    let stored_key = digest::digest(&digest::SHA256, key(b"Client Key").as_ref());
    let [salt, stored_key, server_key] =
        [salt, stored_key.as_ref(), key(b"Server Key").as_ref()].map(|bytes| STANDARD.encode(bytes));
    format!("SCRAM-SHA-256${SCRAM_ITERATIONS}:{salt}${stored_key}:{server_key}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The exchange in RFC 7677: its password and salt, and the server's key that its signature is made with.
    #[test]
    fn verifiers_are_those_of_rfc_7677() {
        let salt = STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let expected = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$\
                        WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";
        assert_eq!(verifier(&"pencil".into(), &salt), expected);
    }

    #[test]
    fn the_file_names_the_roles_and_nothing_else_with_their_prefix() {
        for (at, _) in ROLES.match_indices("operator_") {
            let rest = &ROLES[at + "operator_".len()..];
            assert!(USERS.iter().any(|user| rest.starts_with(user)), "{}", rest.lines().next().unwrap());
        }
    }
}
