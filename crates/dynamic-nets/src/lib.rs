//! Networks that skip work, and networks whose depth and pooling change: section 6 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and
//! Acceleration for Deep Neural Networks" (arXiv:1710.09282).
//!
//! Beside the methods, convolutions by other algorithms: [`winograd`] and [`fft_conv`].

mod balance;
pub mod block_drop;
pub mod detail_preserving_pooling;
mod dropping;
pub mod dynamic_network;
pub mod early_exit;
pub mod fft_conv;
pub mod global_average_pooling;
pub mod mixture_of_experts;
mod pools;
pub mod pyramid_sep_drop;
mod residual;
pub mod s3pool;
pub mod stochastic_depth;
pub mod winograd;
mod wiring;
mod zoo;

use briquette_core::pass::Entry;
use briquette_core::zoo::Arch;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<block_drop::BlockDrop>("dynamic-nets"),
    Entry::of::<detail_preserving_pooling::DetailPreservingPooling>("dynamic-nets"),
    Entry::of::<dynamic_network::DynamicNetwork>("dynamic-nets"),
    Entry::of::<early_exit::EarlyExit>("dynamic-nets"),
    Entry::of::<global_average_pooling::GlobalAveragePooling>("dynamic-nets"),
    Entry::of::<mixture_of_experts::MixtureOfExperts>("dynamic-nets"),
    Entry::of::<pyramid_sep_drop::PyramidSepDrop>("dynamic-nets"),
    Entry::of::<s3pool::S3Pool>("dynamic-nets"),
    Entry::of::<stochastic_depth::StochasticDepth>("dynamic-nets"),
];

/// The networks of this crate's papers.
pub const ZOO: &[Arch] = &[zoo::PYRAMIDNET_20_48, zoo::PYRAMIDNET_110_90];
