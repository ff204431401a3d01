//! Low-rank factorization: section 3 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).

pub mod algebra;
pub mod bn_low_rank;
pub mod chain;
mod clock;
pub mod compose;
pub mod cp;
pub mod evbmf;
pub mod factorization;
#[cfg(test)]
mod golden;
pub mod kernel;
pub mod norm;
#[cfg(test)]
mod proof;
pub mod range;
pub mod ranks;
mod resolve;
pub mod separable;
pub mod svd;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<bn_low_rank::BnLowRank>("low-rank"),
    Entry::of::<separable::Separable>("low-rank"),
    Entry::of::<svd::Svd>("low-rank"),
];
