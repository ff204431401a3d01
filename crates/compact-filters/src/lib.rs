//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

mod chosen;
pub mod crelu;
pub mod doubly_conv;
mod expansion;
pub mod multi_bias;

use briquette_core::pass::Entry;

pub use chosen::Init;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<crelu::Crelu>("compact-filters"),
    Entry::of::<doubly_conv::DoublyConv>("compact-filters"),
    Entry::of::<multi_bias::MultiBias>("compact-filters"),
];
