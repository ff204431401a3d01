//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

mod chosen;
pub mod crelu;
pub mod cyclic;
pub mod depthwise_separable;
pub mod doubly_conv;
mod expansion;
pub mod fire;
#[cfg(test)]
mod goldens;
pub mod group_equivariant;
pub mod inception_factor;
pub mod inverted_residual;
pub mod multi_bias;
mod rewriting;
mod symmetric;
mod zoo;

use briquette_core::pass::Entry;
use briquette_core::zoo::Arch;

pub use chosen::Init;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<crelu::Crelu>("compact-filters"),
    Entry::of::<cyclic::Cyclic>("compact-filters"),
    Entry::of::<depthwise_separable::DepthwiseSeparable>("compact-filters"),
    Entry::of::<doubly_conv::DoublyConv>("compact-filters"),
    Entry::of::<fire::Fire>("compact-filters"),
    Entry::of::<group_equivariant::GroupEquivariant>("compact-filters"),
    Entry::of::<inception_factor::InceptionFactor>("compact-filters"),
    Entry::of::<inverted_residual::InvertedResidual>("compact-filters"),
    Entry::of::<multi_bias::MultiBias>("compact-filters"),
];

/// The networks of this crate.
pub const ZOO: &[Arch] = &[zoo::ALL_CNN_C_P4, zoo::ALL_CNN_C_P4M, zoo::P4CNN, zoo::RESNET_44_P4, zoo::RESNET_44_P4M, zoo::Z2CNN];
