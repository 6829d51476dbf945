//! The algorithm and filter steps: run a command line as a process of this machine.

use std::fs;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::chain::{Chain, Exit, every};
use crate::objects::quantity;
use crate::process::{Child, Program};

/// Time between two looks at the algorithm's memory.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);
const PAGE: u64 = 4096;

/// The algorithm step. Dropping it kills the algorithm's process group.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    // The path becomes part of a shell's command line. Where it would have to be quoted, the algorithm, which starts in
    // its volume, gets a relative one.
    let mut path = chain.volume.data("transformations/algorithm").display().to_string();
    if !path.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c)) {
        path = "transformations/algorithm".to_owned();
    }
    let limit = chain.workflow.resource("limits_memory", "1Gi").ok().and_then(|limit| quantity(&limit));
    let run = async {
        let mut child = start(chain, &chain.workflow.entrypoint(&path)?, log)?;
        anyhow::Ok(within_memory(&mut child, limit.unwrap_or(f64::INFINITY)).await?)
    };
    match run.await {
        Ok(None) => Exit::OutOfMemory,
        Ok(Some(_)) if chain.shared.options.ignore_exit_code => Exit::Done,
        Ok(Some(status)) => exit(status),
        Err(error) => failed(chain, &error),
    }
}

/// The filter step. Dropping it kills the filter's process group.
pub(super) async fn filter(chain: &Chain<'_>, log: &Path) -> Exit {
    let command = chain.shared.options.filter.as_deref().unwrap_or("true");
    let run = async { anyhow::Ok(start(chain, command, log)?.wait().await?) };
    match run.await {
        Ok(status) => exit(status),
        Err(error) => failed(chain, &error),
    }
}

fn exit(status: ExitStatus) -> Exit {
    match status.code() {
        Some(0) => Exit::Done,
        code => Exit::Failed(code.unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
    }
}

fn failed(chain: &Chain<'_>, error: &anyhow::Error) -> Exit {
    tracing::error!(job = chain.id, "could not run a container: {error:#}");
    Exit::Failed(127)
}

/// Starts a shell with that command line in the job's volume, with the environment that algorithms get.
fn start(chain: &Chain<'_>, command: &str, log: &Path) -> anyhow::Result<Child> {
    let volume = chain.volume.data("");
    let mut program = Program::new("/bin/sh").log(log)?;
    program.stop_signal = Signal::SIGKILL;
    program.command.args(["-c", command]).current_dir(&volume).env_clear();
    program.command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    program.command.envs(chain.workflow.environment(volume.display().to_string().trim_end_matches('/'))?);
    Ok(program.spawn()?)
}

/// Waits for the end of a child; `None` if its process group came to hold more than `limit` bytes. Then all of it is
/// killed, as a kubelet since 1.28 has the kernel do it, and there is no exit code that `tee` could hide.
async fn within_memory(child: &mut Child, limit: f64) -> io::Result<Option<ExitStatus>> {
    let mut tick = every(MEMORY_INTERVAL);
    loop {
        tokio::select! {
            status = child.wait() => return status.map(Some),
            _ = tick.tick() => {}
        }
        if resident_memory(child.id()) as f64 > limit {
            child.signal(Signal::SIGKILL);
            child.wait().await?;
            return Ok(None);
        }
    }
}

/// Bytes of memory that the processes of a group hold; what several of them share counts once for each.
fn resident_memory(group: i32) -> u64 {
    let pages = fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| {
        // proc_pid_stat(5): of the fields after the name, the third is the process group, the 22nd the resident pages.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.get(2)?.parse() == Ok(group) { fields.get(21)?.parse::<u64>().ok() } else { None }
    });
    pages.sum::<u64>() * PAGE
}
