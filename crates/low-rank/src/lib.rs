//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod algebra;
pub mod bicluster;
mod canonical;
pub mod chain;
#[cfg(test)]
mod golden;
pub mod kernel;
pub mod learned_separable;
pub mod tensor_train;
pub mod tucker2;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[];
