//! `devstack run` and `devstack demo` as a newcomer meets them, with the service's own binary.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use devstack::{local, postgres};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A directory for one test, or nothing where the service has not been built: cargo builds other packages' binaries for
/// nobody's tests.
fn directory(name: &str) -> Option<PathBuf> {
    let service = Path::new(env!("CARGO_BIN_EXE_devstack")).with_file_name("operator-service");
    if !service.is_file() {
        println!("left out: {name}: operator-service is not built");
        if let Some(report) = std::env::var_os("LEFT_OUT_REPORT") {
            let mut report = fs::File::options().append(true).create(true).open(report).unwrap();
            writeln!(report, "devstack stack {name}: operator-service is not built").unwrap();
        }
        return None;
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("stack-{name}"));
    remove(&path);
    fs::create_dir_all(&path).unwrap();
    Some(path)
}

fn remove(path: &Path) {
    postgres::remove(&path.join("postgres")).unwrap();
    postgres::remove(path).unwrap();
}

/// Repeats a check until it holds.
fn until(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The devstack with nothing of this machine's settings.
fn devstack(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--directory").arg(directory).stdin(Stdio::null());
    for name in ["POSTGRES_HOST", "KUBECONFIG", "KUBEBUILDER_ASSETS", "ENGINE", "HOST", "PORT", "REAP_EVERY"] {
        command.env_remove(name);
    }
    command
}

/// Runs a devstack to its end.
fn output(directory: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (Output, String) {
    let mut command = devstack(Path::new(env!("CARGO_BIN_EXE_devstack")), directory);
    let output = command.args(arguments).envs(environment.iter().copied()).output().unwrap();
    let text = [output.stdout.clone(), output.stderr.clone()].concat();
    (output, String::from_utf8(text).unwrap())
}

/// A `devstack run` that is up.
struct Running {
    child: Child,
    banner: String,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(mut devstack: Command, port: u16) -> Self {
        let mut child = devstack.arg("run").env("PORT", port.to_string()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut banner = String::new();
        while !banner.contains("Ctrl-C") {
            let line = lines.recv_timeout(Duration::from_secs(60));
            banner = banner.clone() + &line.unwrap_or_else(|error| panic!("{error} after\n{banner}")) + "\n";
        }
        Self { child, banner, lines }
    }

    /// Sends a signal and waits for the end of all that runs in the directory; returns the exit code and what was
    /// printed after the banner.
    fn end(mut self, signal: Signal, directory: &Path) -> (Option<i32>, String) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
        until("the devstack's end", || self.child.try_wait().unwrap().is_some());
        all_gone(directory);
        (self.child.wait().unwrap().code(), self.lines.iter().collect())
    }
}

/// Waits until no process has the directory in its command line or environment: Postgres, the service, algorithms.
fn all_gone(directory: &Path) {
    let directory = fs::canonicalize(directory).unwrap().display().to_string();
    let of_directory = |path: &Path| {
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let alive = stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']));
        let text = ["cmdline", "environ"].map(|name| fs::read(path.join(name)).unwrap_or_default()).concat();
        alive && String::from_utf8_lossy(&text).contains(&directory)
    };
    let processes = || fs::read_dir("/proc").unwrap().flatten();
    until("the end of all processes", || !processes().any(|process| of_directory(&process.path())));
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).env("NO_PROXY", "*").output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Has the engine run an algorithm that does not end, with a child of its own.
fn start_endless_job(directory: &Path, psql: &str) {
    let id = "0123456789abcdef0123456789abcdef";
    let code = "sleep 300 & echo begun > $VOLUME/begun; sleep 300";
    let workflow = format!(
        r#"{{"metadata": {{"name": "{id}", "labels": {{"workflow": "{id}"}}, "secret": ""}}, "spec": {{"metadata": {{"stages": [{{
            "input": [], "compute": {{}},
            "algorithm": {{"id": "", "rawcode": "{code}", "container": {{"image": "a", "tag": "1", "entrypoint": "sh $ALGO"}}}}
        }}]}}}}}}"#
    );
    let statement = directory.join("statement.sql");
    let row = format!("('agreement', '{id}', 'owner', 1, 'ocean-compute', '{workflow}')");
    let columns = "agreementid, workflowid, owner, status, namespace, workflow";
    fs::write(&statement, format!("INSERT INTO jobs ({columns}) VALUES {row}")).unwrap();
    sh(&format!("{psql} -f {}", statement.display()));
    let begun = directory.join("engine/work").join(id).join("data/begun");
    until("the algorithm's beginning", || begun.exists());
}

#[test]
fn the_demo_shows_a_job_from_request_to_result() {
    let Some(path) = directory("demo") else { return };
    let (output, text) = output(&path, &["demo"], &[]);
    assert!(output.status.success(), "{text}");
    let mut rest = text.as_str();
    for expected in [
        "Warming up",
        "Job started",
        "Configuring volumes",
        "Provisioning success",
        "Running algorithm",
        "Publishing results",
        "Job finished",
        "1960,10,320.28,4.31",
        "the 1960s: 10 years, mean 320.28 ppm",
        "the result is right",
    ] {
        (_, rest) = rest.split_once(expected).unwrap_or_else(|| panic!("no {expected} in\n{text}"));
    }
    assert!(!text.contains('\u{1b}'), "colours where nobody can see them");
    assert!(!path.join("demo").exists());
    all_gone(&path);
    remove(&path);
}

#[test]
fn the_demo_fails_with_a_reason_where_there_is_no_postgres() {
    let Some(path) = directory("no-postgres") else { return };
    let port = local::free_port().unwrap().to_string();
    let variables =
        [("POSTGRES_HOST", "127.0.0.1"), ("POSTGRES_PORT", &port), ("POSTGRES_USER", "u"), ("POSTGRES_DB", "d")];
    let (output, text) = output(&path, &["demo"], &variables);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("devstack: the demo failed: operator-service migrate failed"), "{text}");
    all_gone(&path);
    remove(&path);
}

#[test]
fn a_stack_runs_until_it_is_stopped_and_finds_its_data_again() {
    let Some(path) = directory("run") else { return };
    let port = local::free_port().unwrap();
    let start = || Running::start(devstack(Path::new(env!("CARGO_BIN_EXE_devstack")), &path), port);
    let stack = start();
    let curls: Vec<&str> = stack.banner.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 3, "{}", stack.banner);
    assert!(sh(curls[0]).contains(r#""id":"ocean-compute""#));
    assert_eq!(sh(curls[1]).trim(), "[]");
    assert_eq!(sh(curls[2]).trim(), "[]");
    for secret in ["postgres/password", "pgpass", "keys/provider"] {
        let file = path.join(secret);
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{secret}");
        let text = fs::read_to_string(&file).unwrap();
        assert!(!stack.banner.contains(text.trim().rsplit(':').next().unwrap()));
    }

    // A second one in its place, and another program on its port.
    let free = local::free_port().unwrap().to_string();
    let (refused, text) = output(&path, &["run"], &[("PORT", &free)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains(&format!("(process {})", stack.child.id())), "{text}");
    let (refused, text) = output(&path.join("other"), &["run"], &[("PORT", &port.to_string())]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text.contains("PORT="), "{text}");

    let psql = stack.banner.lines().find_map(|line| line.split_once("PGPASSFILE=")).unwrap().1;
    let psql = format!("PGPASSFILE={psql}");
    let has_psql = Command::new("psql").arg("--version").output().is_ok();
    if has_psql {
        sh(&format!("{psql} -c \"UPDATE envs SET status = 'kept' WHERE false; CREATE TABLE kept ()\""));
    }
    assert_eq!(stack.end(Signal::SIGINT, &path).0, Some(0));

    let stack = start();
    assert!(stack.banner.contains(&psql), "the database's port stays where it is");
    if has_psql {
        sh(&format!("{psql} -c 'SELECT FROM kept'"));
        start_endless_job(&path, &psql);
    }
    // However it ends.
    assert_eq!(stack.end(Signal::SIGKILL, &path).0, None);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());

    assert_eq!(start().end(Signal::SIGTERM, &path).0, Some(0));
    remove(&path);
}

/// A service whose reaper notes when it begins and ends, takes longer than the time between two sweeps, and then fails.
const SLOW_REAPER: &str = r#"#!/bin/sh
[ "$1" = reap ] || exec "$SERVICE" "$@"
echo report
echo complaint >&2
echo "begin $REAP_RETRY_GRACE $REAP_DISPATCH_GRACE $DEFAULT_NAMESPACE" >> "$NOTES"
sleep 1.2
echo end >> "$NOTES"
exit 3
"#;

#[test]
fn the_reaper_sweeps_once_at_a_time_and_may_fail() {
    let Some(path) = directory("reaper") else { return };
    // The devstack runs the service that lies beside it.
    let program = path.join("bin/devstack");
    fs::create_dir_all(path.join("bin")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_devstack"), &program).unwrap();
    let service = path.join("bin/operator-service");
    fs::write(&service, SLOW_REAPER).unwrap();
    fs::set_permissions(&service, PermissionsExt::from_mode(0o755)).unwrap();

    let notes = path.join("notes");
    let mut command = devstack(&program, &path);
    command
        .env("REAP_EVERY", "1")
        .env_remove("REAP_RETRY_GRACE")
        .env("REAP_DISPATCH_GRACE", "7")
        .env("NOTES", &notes)
        .env("SERVICE", Path::new(env!("CARGO_BIN_EXE_devstack")).with_file_name("operator-service"));
    let stack = Running::start(command, local::free_port().unwrap());
    assert!(stack.banner.contains("every 1s"), "{}", stack.banner);
    let begin = "begin 20 7 ocean-compute\n";
    let swept = format!("{begin}end\n{begin}end\n{begin}");
    let noted = || fs::read_to_string(&notes).unwrap_or_default();
    until("the third sweep", || noted().len() >= swept.len());
    // In the middle of a sweep.
    assert_eq!(stack.end(Signal::SIGINT, &path).0, Some(0));
    assert_eq!(noted(), swept);
    assert_eq!(fs::read_to_string(path.join("logs/reap.log")).unwrap(), "complaint\n".repeat(3));
    let log = fs::read_to_string(path.join("logs/devstack.log")).unwrap();
    assert_eq!(log.matches("the reaper's sweep failed").count(), 1, "{log}");
    remove(&path);
}
