//! The algorithm step: runs the entrypoint for real, as a process of this machine.

use std::{os::unix::process::ExitStatusExt, path::Path, process::ExitStatus, time::Duration};

use nix::sys::signal::Signal;

use super::{chain::Chain, objects, pod::Exit};
use crate::process::{self, Program};

/// How often the algorithm's memory is looked at.
const MEMORY_INTERVAL: Duration = Duration::from_millis(100);

/// The step's work. Dropping it kills the algorithm's process group.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    let child = entrypoint(chain).and_then(|entrypoint| start(chain, &entrypoint, log));
    match child {
        Ok(mut child) => match within_memory(&mut child, objects::memory_limit(&chain.workflow)).await {
            None => {
                tracing::info!(job = chain.id, "the algorithm takes more memory than it may");
                Exit::OutOfMemory
            }
            Some(Ok(_)) if chain.shared.options.ignore_exit_code => Exit::Done,
            Some(ended) => exit(chain, ended),
        },
        Err(problem) => {
            tracing::error!(job = chain.id, problem, "could not start the algorithm");
            Exit::Failed(127)
        }
    }
}

/// How a container's process ended.
pub(super) fn exit(chain: &Chain<'_>, ended: Result<ExitStatus, process::Error>) -> Exit {
    match ended {
        Ok(status) if status.success() => Exit::Done,
        Ok(status) => Exit::Failed(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
        Err(error) => {
            tracing::error!(job = chain.id, %error, "lost sight of a process");
            Exit::Failed(1)
        }
    }
}

/// Waits for the algorithm's end. Where its whole process group comes to hold more than it may, it is killed as a
/// whole, as a kubelet since 1.28 has the kernel do it, and there is no status: `tee` could not say anything any more.
async fn within_memory(child: &mut process::Child, limit: Option<u64>) -> Option<Result<ExitStatus, process::Error>> {
    let mut tick = tokio::time::interval(MEMORY_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            ended = child.wait() => return Some(ended),
            _ = tick.tick(), if limit.is_some() => {}
        }
        if limit.is_some_and(|limit| child.resident_memory() > limit) {
            child.signal(Signal::SIGKILL);
            let _ = child.wait().await;
            return None;
        }
    }
}

/// What the algorithm's shell is told.
fn entrypoint(chain: &Chain<'_>) -> Result<String, String> {
    let path = chain.volume.data().display().to_string();
    // The path goes into a shell's command line as it is. In a checkout whose own path would not survive that, the
    // algorithm, which starts in its volume, is named from there.
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    let algorithm = if path.chars().all(harmless) {
        format!("{path}/transformations/algorithm")
    } else {
        "transformations/algorithm".to_owned()
    };
    Ok(chain.workflow.entrypoint().map_err(|error| error.to_string())?.replace("$ALGO", &algorithm))
}

/// Starts a shell with that command line in the job's volume, with what algorithms are promised.
pub(super) fn start(chain: &Chain<'_>, command: &str, log: &Path) -> Result<process::Child, String> {
    let volume = chain.volume.data();
    for folder in ["outputs", "logs"] {
        std::fs::create_dir_all(volume.join(folder)).map_err(|error| error.to_string())?;
    }
    let path = volume.display().to_string();
    let mut program = Program::new("/bin/sh")
        .args(["-c", command])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .directory(&volume)
        .log(process::open_log(log).map_err(|error| error.to_string())?)
        .stop_with(Signal::SIGKILL);
    for (name, value) in chain.workflow.environment(&path).map_err(|error| error.to_string())? {
        program = program.env(name, value);
    }
    program.spawn().map_err(|error| error.to_string())
}
