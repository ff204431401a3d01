//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod algebra;
pub mod evbmf;
pub mod kernel;
pub mod range;
pub mod ranks;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[];
