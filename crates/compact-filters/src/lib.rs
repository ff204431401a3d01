//! Transferred and compact convolutional filters: section 4 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for
//! Deep Neural Networks" (arXiv:1710.09282).

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[];
