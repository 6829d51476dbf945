//! The algorithm step: runs the entrypoint for real, as a process of this machine.

use std::{os::unix::process::ExitStatusExt, path::Path};

use nix::sys::signal::Signal;

use super::{chain::Chain, pod::Exit};
use crate::process::{self, Program};

/// The step's work. Dropping it kills the algorithm's process group.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    match start(chain, log) {
        Ok(mut child) => match child.wait().await {
            Ok(_) if chain.shared.options.ignore_exit_code => Exit::Done,
            Ok(status) if status.success() => Exit::Done,
            Ok(status) => Exit::Failed(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())),
            Err(error) => {
                tracing::error!(job = chain.id, %error, "lost sight of the algorithm");
                Exit::Failed(1)
            }
        },
        Err(problem) => {
            tracing::error!(job = chain.id, problem, "could not start the algorithm");
            Exit::Failed(127)
        }
    }
}

fn start(chain: &Chain<'_>, log: &Path) -> Result<process::Child, String> {
    let volume = chain.volume.data();
    for folder in ["outputs", "logs"] {
        std::fs::create_dir_all(volume.join(folder)).map_err(|error| error.to_string())?;
    }
    let path = volume.display().to_string();
    // The path goes into a shell's command line as it is. In a checkout whose own path would not survive that, the
    // algorithm, which starts in its volume, is named from there.
    let harmless = |c: char| c.is_ascii_alphanumeric() || "/._-+,:@".contains(c);
    let algorithm = if path.chars().all(harmless) {
        format!("{path}/transformations/algorithm")
    } else {
        "transformations/algorithm".to_owned()
    };
    let entrypoint = chain.workflow.entrypoint().map_err(|error| error.to_string())?.replace("$ALGO", &algorithm);
    let mut program = Program::new("/bin/sh")
        .args(["-c", &entrypoint])
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
