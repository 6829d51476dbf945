//! The private PostgreSQL: kept data, orphans, cleanup.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use devstack::postgres::{self, Options, Postgres};
use sqlx::{Connection, PgConnection};

/// A directory for one test, with nothing in it.
fn directory(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    postgres::remove(&path).unwrap();
    path
}

async fn start(path: &Path) -> Postgres {
    Postgres::start(Options::throwaway(path)).await.unwrap()
}

async fn stop(server: Postgres, path: &Path) {
    server.stop().await.unwrap();
    postgres::remove(path).unwrap();
}

async fn run(server: &Postgres, statement: &'static str) -> String {
    let mut connection = PgConnection::connect_with(&server.connect_options("postgres")).await.unwrap();
    let row: Option<String> = sqlx::query_scalar(statement).fetch_optional(&mut connection).await.unwrap();
    row.unwrap_or_default()
}

/// Whether a process still runs: neither gone nor a zombie.
fn runs(id: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// `devstack with-postgres` of a shell script.
fn with_postgres(directory: &Path, script: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_devstack"));
    command.env_remove("TEST_DATABASE_URL").arg("--directory").arg(directory);
    command.args(["with-postgres", "--", "sh", "-c", script, "sh"]).arg(directory);
    command
}

#[tokio::test]
async fn a_second_start_finds_the_data_of_the_first() {
    let path = directory("keeps");
    let server = start(&path).await;
    assert_eq!(run(&server, "SHOW timezone").await, "UTC");
    assert_eq!(run(&server, "SHOW listen_addresses").await, "127.0.0.1");
    assert_eq!(run(&server, "SHOW unix_socket_directories").await, "");
    run(&server, "CREATE TABLE kept AS SELECT 'here'::text AS value").await;
    let port = server.port;
    server.stop().await.unwrap();

    let server = start(&path).await;
    assert_eq!(run(&server, "SELECT value FROM kept").await, "here");
    assert_eq!(server.port, port, "the port stays where it is while it is free");
    stop(server, &path).await;
}

#[tokio::test]
async fn the_password_is_needed_and_private() {
    let path = directory("password");
    let server = start(&path).await;
    let options = server.connect_options("postgres").password("wrong");
    assert!(PgConnection::connect_with(&options).await.is_err());
    let mode = fs::metadata(path.join("password")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!fs::read_to_string(&server.log).unwrap().contains(&server.password));
    stop(server, &path).await;
}

#[tokio::test]
async fn dropping_it_ends_it() {
    let path = directory("drop");
    let server = start(&path).await;
    let pid_file = server.data.join("postmaster.pid");
    assert!(pid_file.exists());
    drop(server);
    assert!(!pid_file.exists());
    postgres::remove(&path).unwrap();
}

#[tokio::test]
async fn a_pid_file_with_the_id_of_another_program_is_ignored() {
    let path = directory("stale");
    let server = start(&path).await;
    let pid_file = server.data.join("postmaster.pid");
    let text = fs::read_to_string(&pid_file).unwrap();
    server.stop().await.unwrap();
    // The machine went down, and after its return another program has that process id.
    let (_, rest) = text.split_once('\n').unwrap();
    fs::write(&pid_file, format!("{}\n{rest}", std::process::id())).unwrap();
    stop(start(&path).await, &path).await;
}

#[tokio::test]
async fn a_server_that_was_left_running_is_shut_down_first() {
    let path = directory("orphan");
    let server = start(&path).await;
    run(&server, "CREATE TABLE kept AS SELECT 'here'::text AS value").await;
    let pid_file = fs::read_to_string(server.data.join("postmaster.pid")).unwrap();

    // Nobody should do that, but it must not end in two servers on one directory.
    let second = start(&path).await;
    assert!(!runs(pid_file.lines().next().unwrap()));
    assert_eq!(run(&second, "SELECT value FROM kept").await, "here");
    drop(server);
    assert_eq!(run(&second, "SELECT value FROM kept").await, "here");
    stop(second, &path).await;
}

#[test]
fn with_postgres_returns_the_exit_code_and_leaves_nothing() {
    let path = directory("with-postgres");
    let script = r#"test -n "$TEST_DATABASE_URL" && ls "$1"/test-1/postgres/port && exit 7"#;
    let done = with_postgres(&path, script).stdin(Stdio::null()).output().unwrap();
    assert_eq!(done.status.code(), Some(7), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(!path.join("test-1").exists());
    postgres::remove(&path).unwrap();
}

#[test]
fn killing_the_devstack_ends_the_server() {
    let path = directory("killed");
    // The script ends with this test.
    let mut devstack = with_postgres(&path, "echo up; exec cat");
    let mut devstack = devstack.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(devstack.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let home = fs::canonicalize(path.join("test-1/postgres")).unwrap();
    let arguments = |id: &str| {
        let arguments = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&arguments).replace('\0', " ")
    };
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let server: Vec<String> = ids.filter(|id| arguments(id).contains(&format!("{}", home.display()))).collect();
    assert!(!server.is_empty());

    devstack.kill().unwrap();
    let _stdin = devstack.stdin.take();
    devstack.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.iter().any(|id| runs(id)) {
        assert!(Instant::now() < deadline, "the server outlives the devstack");
        std::thread::sleep(Duration::from_millis(50));
    }
    postgres::remove(&path.join("test-1/postgres")).unwrap();
    postgres::remove(&path).unwrap();
}
