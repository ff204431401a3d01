//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

pub mod depthwise_separable;
pub mod fire;
pub mod inception_factor;
pub mod inverted_residual;
mod rewriting;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<depthwise_separable::DepthwiseSeparable>("compact-filters"),
    Entry::of::<fire::Fire>("compact-filters"),
    Entry::of::<inception_factor::InceptionFactor>("compact-filters"),
    Entry::of::<inverted_residual::InvertedResidual>("compact-filters"),
];
