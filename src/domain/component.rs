//! The steps of a job.

use super::JobId;

/// A step of a job. The engine runs each as a Kubernetes Job of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// Fetches the inputs and the algorithm.
    Configure,
    /// Runs the algorithm.
    Algorithm,
    /// Filters the algorithm's outputs.
    Filter,
    /// Publishes the outputs.
    Publish,
}

impl Component {
    /// All steps, in the order in which they run.
    pub const ALL: [Self; 4] = [Self::Configure, Self::Algorithm, Self::Filter, Self::Publish];

    /// The step's name, as in labels and in names of objects.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Configure => "configure",
            Self::Algorithm => "algorithm",
            Self::Filter => "filter",
            Self::Publish => "publish",
        }
    }

    /// The step with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// The name of the step's Kubernetes Job (docs/contract/engine.md, "Objects of a job").
    pub fn job_name(self, job_id: &JobId) -> String {
        format!("{job_id}-{}-job", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_steps_and_of_their_jobs() {
        assert_eq!(Component::ALL.map(Component::as_str), ["configure", "algorithm", "filter", "publish"]);
        for component in Component::ALL {
            assert_eq!(Component::parse(component.as_str()), Some(component));
        }
        assert_eq!(Component::parse("Algorithm"), None);
        assert_eq!(Component::Filter.job_name(&JobId::stored("id")), "id-filter-job");
    }
}
