//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod kernel;

use briquette_core::pass::Entry;
pub use briquette_parts::algebra;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[];
