//! What can go wrong with a container or a run.

use crate::NotFinite;
use crate::layers::ShapeError;

/// Why a model could not be encoded, read, checked or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bytes do not start with the container's magic.
    #[error("not a briquette container: it does not start with {:?}", crate::container::MAGIC)]
    Magic,
    /// A version of the format that this crate does not read.
    #[error("container version {found} is not known, this build reads version {known}", known = crate::container::VERSION)]
    Version {
        /// The version in the file.
        found: u8,
    },
    /// A section's bytes are not those that were written.
    #[error("checksum {computed:08x} instead of {stored:08x}")]
    Checksum {
        /// CRC-32 in the file.
        stored: u32,
        /// CRC-32 of the bytes read.
        computed: u32,
    },
    /// The bytes end too early.
    #[error("truncated: {needed} byte(s) are needed and {left} are left")]
    Truncated {
        /// Bytes that the next item takes.
        needed: u64,
        /// Bytes that are there.
        left: u64,
    },
    /// Bytes follow the end.
    #[error("{bytes} byte(s) follow the end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A value in the file that no writer produces.
    #[error("corrupt: {detail}")]
    Corrupt {
        /// What was found and what was expected.
        detail: String,
    },
    /// A number beyond what the format allows.
    #[error("{what}: {found} is more than the limit of {limit}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// The number.
        found: u64,
        /// The largest allowed.
        limit: u64,
    },
    /// A tensor's shape and its values disagree.
    #[error("shape {shape:?} does not hold {values} value(s)")]
    Count {
        /// The shape.
        shape: Vec<usize>,
        /// Number of values given.
        values: usize,
    },
    /// More distinct values than a codebook can hold.
    #[error("more than 65536 distinct values do not fit a codebook")]
    Distinct,
    /// A fault inside a named part, a node or a tensor; what it is, is its source.
    #[error("{part}")]
    Within {
        /// The part.
        part: String,
        /// What is wrong with it.
        source: Box<Error>,
    },
    /// A node whose inputs, name or tensors are not what they should be.
    #[error("{detail}")]
    Wiring {
        /// What is wrong, with both sides.
        detail: String,
    },
    /// Shapes that do not fit.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Values that no network can compute with.
    #[error("{}; every output would be wrong: get the weights again, or train anew", listed(tensors))]
    NotFinite {
        /// The tensors, with counts.
        tensors: Vec<NotFinite>,
    },
    /// A pointer that git-LFS leaves in place of a large file.
    #[error("{}", crate::lfs::ADVICE)]
    LfsPointer,
    /// An engine without threads.
    #[error("an engine needs at least one thread")]
    NoThreads,
    /// The operating system gave no threads.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// How many were wanted.
        threads: usize,
        /// The system's answer.
        reason: String,
    },
    /// The input's length is not batch times sample.
    #[error("{batch} sample(s) of shape {shape:?} are {expected} value(s), got {found}")]
    Input {
        /// Samples.
        batch: usize,
        /// Shape of one.
        shape: Vec<usize>,
        /// Values that these are.
        expected: usize,
        /// Values given.
        found: usize,
    },
}

impl Error {
    /// Names the part in which this error arose.
    pub(crate) fn within(self, part: impl Into<String>) -> Self {
        Error::Within { part: part.into(), source: Box::new(self) }
    }

    /// A value that no writer produces.
    pub(crate) fn corrupt(detail: impl Into<String>) -> Self {
        Error::Corrupt { detail: detail.into() }
    }
}

/// The first few of the tensors, and how many more there are.
fn listed(tensors: &[NotFinite]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = tensors.iter().take(SHOWN).map(ToString::to_string).collect();
    let more = if tensors.len() > SHOWN { format!("; and of {} more", tensors.len() - SHOWN) } else { String::new() };
    shown.join("; ") + &more
}
