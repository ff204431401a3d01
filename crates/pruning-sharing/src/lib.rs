//! Parameter pruning and sharing: section 2 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep
//! Neural Networks" (arXiv:1710.09282).
//!
//! Methods that only change values ([`magnitude`], [`kmeans_sharing`]) work on any Burn module, not only on a Briquette network:
//!
//! ```
//! use briquette_core::coding;
//! use briquette_pruning_sharing::{kmeans_sharing, magnitude};
//! use burn::nn::{Linear, LinearConfig};
//! use burn::tensor::Device;
//!
//! #[derive(burn::module::Module, Debug)]
//! struct Mine {
//!     hidden: Linear,
//!     output: Linear,
//! }
//!
//! let device = Device::flex();
//! let mine = Mine { hidden: LinearConfig::new(20, 30).init(&device), output: LinearConfig::new(30, 5).init(&device) };
//! let mine = magnitude::prune(mine, |_| Some(0.2));
//! let mine = kmeans_sharing::share(mine, |_| Some(8), kmeans_sharing::Init::Linear);
//! let kept: usize = coding::weights(&mine).iter().map(|w| w.values.iter().filter(|v| **v != 0.0).count()).sum();
//! assert_eq!(kept, 120 + 30);
//! ```

#[cfg(test)]
mod handmade;

pub mod acdc;
pub mod apoz;
pub mod biased_decay;
pub mod binary_connect;
pub mod binary_net;
pub mod butterfly;
pub mod bwn;
pub mod channel_lasso;
pub mod circulant;
pub mod data_free;
pub mod dorefa;
pub mod ecsq;
pub mod entropy;
pub mod fastfood;
pub mod few_multiplications;
pub mod filter_l1;
pub mod fixed_point;
pub mod fpgm;
pub mod group_brain_damage;
pub mod hashed;
pub mod hessian_kmeans;
pub mod huffman;
pub mod kmeans_sharing;
pub mod kronecker;
pub mod learned_step;
pub mod less_is_more;
pub mod loss_aware_binarization;
pub mod low_displacement;
pub mod magnitude;
pub mod movement;
pub mod n_m;
pub mod optimal_brain_damage;
pub mod optimal_brain_surgeon;
pub mod pact;
pub mod parts;
pub mod product_quantization;
pub mod random;
pub mod response_quantization;
pub mod slimming;
pub mod soft_weight_sharing;
pub mod stochastic_rounding;
pub mod structured_sparsity;
pub mod taylor;
pub mod ternary;
pub mod thinet;
pub mod weight_distortion;
pub mod xnor_net;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<acdc::Acdc>("pruning-sharing"),
    Entry::of::<apoz::Apoz>("pruning-sharing"),
    Entry::of::<biased_decay::BiasedDecay>("pruning-sharing"),
    Entry::of::<binary_connect::BinaryConnect>("pruning-sharing"),
    Entry::of::<binary_net::BinaryNet>("pruning-sharing"),
    Entry::of::<butterfly::Butterfly>("pruning-sharing"),
    Entry::of::<bwn::Bwn>("pruning-sharing"),
    Entry::of::<channel_lasso::ChannelLasso>("pruning-sharing"),
    Entry::of::<circulant::Circulant>("pruning-sharing"),
    Entry::of::<data_free::DataFree>("pruning-sharing"),
    Entry::of::<dorefa::Dorefa>("pruning-sharing"),
    Entry::of::<ecsq::Ecsq>("pruning-sharing"),
    Entry::of::<entropy::Entropy>("pruning-sharing"),
    Entry::of::<fastfood::Fastfood>("pruning-sharing"),
    Entry::of::<few_multiplications::FewMultiplications>("pruning-sharing"),
    Entry::of::<filter_l1::FilterL1>("pruning-sharing"),
    Entry::of::<fixed_point::FixedPoint>("pruning-sharing"),
    Entry::of::<fpgm::Fpgm>("pruning-sharing"),
    Entry::of::<group_brain_damage::GroupBrainDamage>("pruning-sharing"),
    Entry::of::<hashed::Hashed>("pruning-sharing"),
    Entry::of::<hessian_kmeans::HessianKmeans>("pruning-sharing"),
    Entry::of::<huffman::Huffman>("pruning-sharing"),
    Entry::of::<kmeans_sharing::KmeansSharing>("pruning-sharing"),
    Entry::of::<kronecker::Kronecker>("pruning-sharing"),
    Entry::of::<learned_step::LearnedStep>("pruning-sharing"),
    Entry::of::<less_is_more::LessIsMore>("pruning-sharing"),
    Entry::of::<loss_aware_binarization::LossAwareBinarization>("pruning-sharing"),
    Entry::of::<low_displacement::LowDisplacement>("pruning-sharing"),
    Entry::of::<magnitude::Magnitude>("pruning-sharing"),
    Entry::of::<movement::Movement>("pruning-sharing"),
    Entry::of::<n_m::NM>("pruning-sharing"),
    Entry::of::<optimal_brain_damage::OptimalBrainDamage>("pruning-sharing"),
    Entry::of::<optimal_brain_surgeon::OptimalBrainSurgeon>("pruning-sharing"),
    Entry::of::<pact::Pact>("pruning-sharing"),
    Entry::of::<product_quantization::ProductQuantization>("pruning-sharing"),
    Entry::of::<random::Random>("pruning-sharing"),
    Entry::of::<response_quantization::ResponseQuantization>("pruning-sharing"),
    Entry::of::<slimming::Slimming>("pruning-sharing"),
    Entry::of::<soft_weight_sharing::SoftWeightSharing>("pruning-sharing"),
    Entry::of::<stochastic_rounding::StochasticRounding>("pruning-sharing"),
    Entry::of::<structured_sparsity::StructuredSparsity>("pruning-sharing"),
    Entry::of::<taylor::Taylor>("pruning-sharing"),
    Entry::of::<ternary::Ternary>("pruning-sharing"),
    Entry::of::<thinet::ThiNet>("pruning-sharing"),
    Entry::of::<weight_distortion::WeightDistortion>("pruning-sharing"),
    Entry::of::<xnor_net::XnorNet>("pruning-sharing"),
];
