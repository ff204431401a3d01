//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod bicluster;
pub mod bn_low_rank;
pub mod chain;
pub mod compose;
pub mod cp;
pub mod evbmf;
pub mod factorization;
#[cfg(test)]
mod golden;
pub mod kernel;
pub mod learned_separable;
pub mod norm;
#[cfg(test)]
mod proof;
pub mod range;
pub mod ranks;
mod resolve;
pub mod separable;
pub mod svd;
pub mod tensor_train;
mod trials;
pub mod tucker2;

use briquette_core::pass::Entry;
pub use briquette_parts::algebra;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<bicluster::Bicluster>("low-rank"),
    Entry::of::<bn_low_rank::BnLowRank>("low-rank"),
    Entry::of::<cp::Cp>("low-rank"),
    Entry::of::<learned_separable::LearnedSeparable>("low-rank"),
    Entry::of::<separable::Separable>("low-rank"),
    Entry::of::<svd::Svd>("low-rank"),
    Entry::of::<tensor_train::TensorTrain>("low-rank"),
    Entry::of::<tucker2::Tucker2>("low-rank"),
];
