//! What can go wrong, with the facts a reader needs to mend it.

use briquette_data::Hint;
use briquette_runtime::ShapeError;

/// Errors of the core and of every scheme.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A node does not fit its inputs.
    #[error("node '{node}': {source}")]
    Shape {
        /// Name of the node.
        node: String,
        /// What does not fit.
        source: ShapeError,
    },
    /// A node cannot do what was asked of it.
    #[error("node '{node}': {detail}")]
    Node {
        /// Name of the node.
        node: String,
        /// What is wrong and what would be right.
        detail: String,
    },
    /// A name that nothing bears.
    #[error("unknown {what} '{name}'{hint}")]
    Unknown {
        /// What kind of thing was named.
        what: &'static str,
        /// The name.
        name: String,
        /// Which it may have meant.
        hint: Hint,
    },
    /// A value outside its range or settings that contradict each other.
    #[error("{0}")]
    Invalid(String),
    /// Training left the finite numbers; the last good state is in the checkpoint.
    #[error("the loss became {loss} in epoch {epoch}; lower the learning rate (now {lr}), set `clip`, or check the data")]
    Diverged {
        /// Epoch, counted from 0.
        epoch: usize,
        /// The loss.
        loss: f64,
        /// Learning rate of the step.
        lr: f64,
    },
    /// The user asked to stop; the run can be resumed.
    #[error("stopped on request")]
    Stopped,
    /// The data set refused, or an image of it can no longer be read.
    #[error(transparent)]
    Data(#[from] briquette_data::Error),
    /// The container or the engine refused.
    #[error(transparent)]
    Runtime(#[from] briquette_runtime::Error),
    /// A file that a pass was told to read does not hold what it should; what is wrong is the source.
    #[error("{file}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A saved state does not fit.
    #[error("saved state: {0}")]
    State(String),
    /// The host (the program around the passes) failed, for example to write a file.
    #[error("{0}")]
    Host(String),
}

/// Result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An [`Error::Unknown`] with what `name` may have meant of what is `known`.
    pub fn unknown<'a>(what: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Error::Unknown { what, name: name.to_string(), hint: Hint::of(name, known) }
    }

    /// Whether settings and a network do not go together, so that others may; otherwise what was asked could not be tried, whatever it was: a
    /// file, the data, the machine or the user came between.
    pub fn refuses(&self) -> bool {
        match self {
            Error::Shape { .. } | Error::Node { .. } | Error::Unknown { .. } | Error::Invalid(_) | Error::Diverged { .. } => true,
            Error::Runtime(error) => !matches!(error, briquette_runtime::Error::Threads { .. }),
            Error::Stopped | Error::Data(_) | Error::File { .. } | Error::State(_) | Error::Host(_) => false,
        }
    }

    /// An [`Error::Node`].
    pub fn node(node: &str, detail: impl Into<String>) -> Self {
        Error::Node { node: node.to_string(), detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_bring_the_nearest() {
        let error = Error::unknown("method", "magnitud", ["magnitude", "huffman", "filter-l1"]);
        assert_eq!(error.to_string(), "unknown method 'magnitud'; did you mean 'magnitude'?");
    }

    #[test]
    fn what_settings_and_a_network_do_not_do_together_is_refused_and_the_rest_has_failed() {
        let refusals = [Error::node("fc1", "keeps nothing"), Error::Invalid("0 bits".into()), Error::unknown("layer", "fc", [])];
        assert!(refusals.iter().all(Error::refuses));
        let threads = briquette_runtime::Error::Threads { threads: 9, reason: "none left".into() };
        let failures = [Error::Stopped, Error::Host("no space left".into()), Error::State("torn".into()), threads.into()];
        assert!(!failures.iter().any(Error::refuses));
        let within = |source| Error::File { file: "teacher.brq".into(), source: Box::new(source) };
        assert!(!within(Error::Invalid("it has no nodes".into())).refuses());
    }
}
