//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

pub mod cyclic;
pub mod depthwise_separable;
pub mod fire;
#[cfg(test)]
mod goldens;
pub mod group_equivariant;
pub mod inception_factor;
pub mod inverted_residual;
mod rewriting;
mod symmetric;
mod zoo;

use briquette_core::pass::Entry;
use briquette_core::zoo::Arch;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<cyclic::Cyclic>("compact-filters"),
    Entry::of::<depthwise_separable::DepthwiseSeparable>("compact-filters"),
    Entry::of::<fire::Fire>("compact-filters"),
    Entry::of::<group_equivariant::GroupEquivariant>("compact-filters"),
    Entry::of::<inception_factor::InceptionFactor>("compact-filters"),
    Entry::of::<inverted_residual::InvertedResidual>("compact-filters"),
];

/// The networks of this crate.
pub const ZOO: &[Arch] = &[zoo::P4CNN, zoo::Z2CNN];
