//! Weights from elsewhere: PyTorch checkpoints (zip and legacy) and safetensors into a Briquette network.
//!
//! Nothing in a file is executed: pickles are parsed, never run, by `pytorch-reader`, which bounds what it allocates.

mod assign;
mod masks;
mod names;
mod order;
mod read;
mod strangers;

use std::path::PathBuf;

pub use assign::{Table, assign};
pub use read::{Checkpoint, Foreign, read};

/// Why weights could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or is not what its name says.
    #[error("{}: {detail}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The file's tensors do not fit the network.
    #[error("{}: {detail}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Which tensor and layer, with both shapes.
        detail: String,
    },
    /// The network refused.
    #[error(transparent)]
    Core(#[from] briquette_core::Error),
}
