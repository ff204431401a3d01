//! Networks whose capacity, depth and pooling change: section 6 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration
//! for Deep Neural Networks" (arXiv:1710.09282).

pub mod early_exit;
mod residual;
pub mod stochastic_depth;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] =
    &[Entry::of::<early_exit::EarlyExit>("dynamic-nets"), Entry::of::<stochastic_depth::StochasticDepth>("dynamic-nets")];
