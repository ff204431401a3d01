//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod algebra;
pub mod cp;
pub mod kernel;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[];
