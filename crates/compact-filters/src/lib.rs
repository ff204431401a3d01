//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

pub mod cyclic;
#[cfg(test)]
mod goldens;
pub mod group_equivariant;
mod symmetric;
mod zoo;

use briquette_core::pass::Entry;
use briquette_core::zoo::Arch;

/// The methods of this crate.
pub const METHODS: &[Entry] =
    &[Entry::of::<cyclic::Cyclic>("compact-filters"), Entry::of::<group_equivariant::GroupEquivariant>("compact-filters")];

/// The networks of this crate.
pub const ZOO: &[Arch] = &[zoo::P4CNN, zoo::Z2CNN];
