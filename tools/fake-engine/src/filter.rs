//! The filter step: may change what the algorithm has left before it is published.

use std::path::Path;

use super::{algorithm, chain::Chain, pod::Exit};

/// The step's work. Dropping it kills its process group.
pub(super) async fn run(chain: &Chain<'_>, log: &Path) -> Exit {
    let Some(command) = &chain.shared.options.filter else {
        return Exit::Done;
    };
    match algorithm::start(chain, command, log) {
        Ok(mut child) => algorithm::exit(chain, child.wait().await),
        Err(problem) => {
            tracing::error!(job = chain.id, problem, "could not start the filter");
            Exit::Failed(127)
        }
    }
}
