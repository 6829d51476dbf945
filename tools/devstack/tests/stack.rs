//! `devstack run` and `devstack demo` as a newcomer meets them, with the service's own binary.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use devstack::postgres;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const LIMIT: Duration = Duration::from_secs(60);

/// A directory for one test, or nothing where the service has not been built: cargo builds other packages'
/// binaries for nobody's tests.
fn directory(name: &str) -> Option<PathBuf> {
    let service = Path::new(env!("CARGO_BIN_EXE_devstack")).with_file_name("operator-service");
    if !service.is_file() {
        left_out(name, "operator-service is not built");
        return None;
    }
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("stack-{name}"));
    remove(&path);
    fs::create_dir_all(&path).unwrap();
    Some(path)
}

fn left_out(test: &str, why: &str) {
    println!("left out: {test}: {why}");
    if let Some(report) = std::env::var_os("LEFT_OUT_REPORT") {
        let mut report = fs::File::options().append(true).create(true).open(report).unwrap();
        writeln!(report, "devstack stack {test}: {why}").unwrap();
    }
}

fn remove(path: &Path) {
    postgres::remove(&path.join("postgres")).unwrap();
    postgres::remove(path).unwrap();
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The devstack with nothing of this machine's settings.
fn devstack(directory: &Path) -> Command {
    devstack_at(Path::new(env!("CARGO_BIN_EXE_devstack")), directory)
}

fn devstack_at(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("--directory").arg(directory).stdin(Stdio::null());
    for name in [
        "POSTGRES_HOST",
        "KUBECONFIG",
        "KUBEBUILDER_ASSETS",
        "ENGINE",
        "HOST",
        "PORT",
        "REAP_EVERY",
        "REAP_RETRY_GRACE",
    ] {
        command.env_remove(name);
    }
    command
}

/// A `devstack run` that is up.
struct Running {
    child: Child,
    banner: String,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(directory: &Path, port: u16) -> Self {
        Self::of(devstack(directory), port)
    }

    fn of(mut devstack: Command, port: u16) -> Self {
        let mut child = devstack.arg("run").env("PORT", port.to_string()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (send, lines) = mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        let mut banner = String::new();
        while !banner.contains("Ctrl-C") {
            let line = lines.recv_timeout(LIMIT).unwrap_or_else(|error| panic!("{error} after\n{banner}"));
            banner = banner + &line + "\n";
        }
        Self { child, banner, lines }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits for its end; says the exit code, and what it printed after the banner.
    fn end(mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + LIMIT;
        let code = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status.code();
            }
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                panic!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        (code, self.lines.iter().collect())
    }
}

/// The processes whose command line or environment has to do with the directory: its Postgres, its service, its algorithms.
fn processes(directory: &Path) -> Vec<String> {
    let directory = fs::canonicalize(directory).unwrap().display().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let path = entry.path();
        let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
        let alive = stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']));
        let read = |name: &str| fs::read(path.join(name)).unwrap_or_default();
        let text = [read("cmdline"), read("environ")].concat();
        let text = String::from_utf8_lossy(&text).replace('\0', " ");
        if alive && text.contains(&directory) {
            found.push(text.chars().take(80).collect());
        }
    }
    found
}

fn all_gone(directory: &Path) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = processes(directory);
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "left running: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
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
    let begun = directory.join("engine").join("work").join(id).join("data").join("begun");
    let deadline = Instant::now() + LIMIT;
    while !begun.exists() {
        assert!(Instant::now() < deadline, "the algorithm does not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_demo_shows_a_job_from_request_to_result() {
    let Some(path) = directory("demo") else { return };
    let output = devstack(&path).arg("demo").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
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
        let (_, after) = rest.split_once(expected).unwrap_or_else(|| panic!("no {expected} in\n{text}"));
        rest = after;
    }
    assert!(!text.contains('\u{1b}'), "colours where nobody can see them");
    assert!(!path.join("demo").exists());
    all_gone(&path);
    remove(&path);
}

#[test]
fn the_demo_fails_with_a_reason_where_there_is_no_postgres() {
    let Some(path) = directory("no-postgres") else { return };
    let nobody = free_port().to_string();
    let output = devstack(&path)
        .arg("demo")
        .env("POSTGRES_HOST", "127.0.0.1")
        .env("POSTGRES_PORT", nobody)
        .env("POSTGRES_USER", "nobody")
        .env("POSTGRES_DB", "nothing")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.starts_with("devstack: the demo failed: operator-service migrate failed"), "{text}");
    all_gone(&path);
    remove(&path);
}

#[test]
fn a_stack_runs_until_it_is_told_to_stop_and_is_found_again() {
    let Some(path) = directory("run") else { return };
    let port = free_port();
    let stack = Running::start(&path, port);
    let curls: Vec<&str> = stack.banner.lines().map(str::trim).filter(|line| line.starts_with("curl ")).collect();
    assert_eq!(curls.len(), 3, "{}", stack.banner);
    assert!(sh(curls[0]).contains(r#""id":"ocean-compute""#));
    assert_eq!(sh(curls[1]).trim(), "[]");
    assert_eq!(sh(curls[2]).trim(), "[]");
    for secret in ["password", "pgpass", "keys/provider"] {
        use std::os::unix::fs::PermissionsExt;
        let file = if secret == "password" { path.join("postgres/password") } else { path.join(secret) };
        let mode = fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        let text = fs::read_to_string(&file).unwrap();
        assert!(!stack.banner.contains(text.trim().rsplit(':').next().unwrap()));
    }

    // A second one in its place, and another program on its port.
    let output = devstack(&path).arg("run").env("PORT", free_port().to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("(process {})", stack.child.id())), "{text}");
    let other = path.join("other");
    let output = devstack(&other).arg("run").env("PORT", port.to_string()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("Operator service") && text.contains("PORT="), "{text}");

    let psql = stack.banner.lines().find_map(|line| line.split_once("PGPASSFILE=")).unwrap().1;
    let psql = format!("PGPASSFILE={psql}");
    let has_psql = Command::new("psql").arg("--version").output().is_ok();
    if has_psql {
        sh(&format!("{psql} -c \"UPDATE envs SET status = 'kept' WHERE false; CREATE TABLE kept ()\""));
    }
    stack.signal(Signal::SIGINT);
    let (code, rest) = stack.end();
    assert_eq!(code, Some(0), "{rest}");
    all_gone(&path);

    let stack = Running::start(&path, port);
    assert!(stack.banner.contains(&psql), "the database's port stays where it is");
    if has_psql {
        sh(&format!("{psql} -c 'SELECT FROM kept'"));
        start_endless_job(&path, &psql);
    }
    // However it ends.
    stack.signal(Signal::SIGKILL);
    let (code, _) = stack.end();
    assert_eq!(code, None);
    all_gone(&path);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());

    let stack = Running::start(&path, port);
    stack.signal(Signal::SIGTERM);
    assert_eq!(stack.end().0, Some(0));
    all_gone(&path);
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
    use std::os::unix::fs::PermissionsExt;
    let Some(path) = directory("reaper") else { return };
    // The devstack runs the service that lies beside it.
    let program = path.join("bin/devstack");
    fs::create_dir_all(path.join("bin")).unwrap();
    fs::hard_link(env!("CARGO_BIN_EXE_devstack"), &program).unwrap();
    let service = path.join("bin/operator-service");
    fs::write(&service, SLOW_REAPER).unwrap();
    fs::set_permissions(&service, PermissionsExt::from_mode(0o755)).unwrap();

    let notes = path.join("notes");
    let mut command = devstack_at(&program, &path);
    command
        .env("REAP_EVERY", "1")
        .env("REAP_DISPATCH_GRACE", "7")
        .env("NOTES", &notes)
        .env("SERVICE", Path::new(env!("CARGO_BIN_EXE_devstack")).with_file_name("operator-service"));
    let stack = Running::of(command, free_port());
    assert!(stack.banner.contains("every 1s"), "{}", stack.banner);
    let begin = "begin 20 7 ocean-compute\n";
    let swept = format!("{begin}end\n{begin}end\n{begin}");
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = fs::read_to_string(&notes).unwrap_or_default();
        if found.len() >= swept.len() {
            assert_eq!(found, swept);
            break;
        }
        assert!(Instant::now() < deadline, "{found}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // In the middle of a sweep.
    stack.signal(Signal::SIGINT);
    assert_eq!(stack.end().0, Some(0));
    all_gone(&path);
    assert_eq!(fs::read_to_string(&notes).unwrap(), swept);
    assert_eq!(fs::read_to_string(path.join("logs/reap.log")).unwrap(), "complaint\n".repeat(3));
    let log = fs::read_to_string(path.join("logs/devstack.log")).unwrap();
    assert_eq!(log.matches("the reaper's sweep failed").count(), 1, "{log}");
    remove(&path);
}
