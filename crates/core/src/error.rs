//! What can go wrong, with the facts a reader needs to mend it.

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
    #[error("unknown {what} '{name}'{}", did_you_mean(.nearest))]
    Unknown {
        /// What kind of thing was named.
        what: &'static str,
        /// The name.
        name: String,
        /// The names closest to it.
        nearest: Vec<String>,
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
    /// An [`Error::Unknown`] with the names nearest to `name` among `known`.
    pub fn unknown<'a>(what: &'static str, name: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        Error::Unknown { what, name: name.to_string(), nearest: nearest(name, known) }
    }

    /// An [`Error::Node`].
    pub fn node(node: &str, detail: impl Into<String>) -> Self {
        Error::Node { node: node.to_string(), detail: detail.into() }
    }
}

/// Up to three names among `known` that resemble `name`, the closest first; all of them when they are few and none is close.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = known.into_iter().map(|other| (strsim::jaro_winkler(name, other), other)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    let close: Vec<String> = scored.iter().filter(|(score, _)| *score > 0.75).take(3).map(|(_, n)| (*n).to_string()).collect();
    if close.is_empty() && scored.len() <= 12 { scored.into_iter().map(|(_, n)| n.to_string()).collect() } else { close }
}

fn did_you_mean(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => format!("; did you mean '{one}'?"),
        many => format!("; did you mean one of {}?", many.iter().map(|n| format!("'{n}'")).collect::<Vec<_>>().join(", ")),
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
}
