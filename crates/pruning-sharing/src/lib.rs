//! Parameter pruning and sharing: section 2 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep
//! Neural Networks" (arXiv:1710.09282).
//!
//! Methods that only change values ([`pruning::magnitude`], [`quantization::kmeans_sharing`]) work on any Burn module, not only on a Briquette network:
//!
//! ```
//! use briquette_core::coding;
//! use briquette_pruning_sharing::pruning::magnitude;
//! use briquette_pruning_sharing::quantization::kmeans_sharing;
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

pub mod patches;
pub mod pruning;
pub mod quantization;
pub mod structural;

use briquette_core::pass::Entry;

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<structural::acdc::Acdc>("pruning-sharing"),
    Entry::of::<pruning::apoz::Apoz>("pruning-sharing"),
    Entry::of::<pruning::biased_decay::BiasedDecay>("pruning-sharing"),
    Entry::of::<quantization::binary_connect::BinaryConnect>("pruning-sharing"),
    Entry::of::<quantization::binary_net::BinaryNet>("pruning-sharing"),
    Entry::of::<structural::butterfly::Butterfly>("pruning-sharing"),
    Entry::of::<quantization::bwn::Bwn>("pruning-sharing"),
    Entry::of::<pruning::channel_lasso::ChannelLasso>("pruning-sharing"),
    Entry::of::<structural::circulant::Circulant>("pruning-sharing"),
    Entry::of::<pruning::data_free::DataFree>("pruning-sharing"),
    Entry::of::<quantization::dorefa::Dorefa>("pruning-sharing"),
    Entry::of::<quantization::ecsq::Ecsq>("pruning-sharing"),
    Entry::of::<pruning::entropy::Entropy>("pruning-sharing"),
    Entry::of::<structural::fastfood::Fastfood>("pruning-sharing"),
    Entry::of::<quantization::few_multiplications::FewMultiplications>("pruning-sharing"),
    Entry::of::<pruning::filter_l1::FilterL1>("pruning-sharing"),
    Entry::of::<quantization::fixed_point::FixedPoint>("pruning-sharing"),
    Entry::of::<pruning::fpgm::Fpgm>("pruning-sharing"),
    Entry::of::<pruning::group_brain_damage::GroupBrainDamage>("pruning-sharing"),
    Entry::of::<pruning::hashed::Hashed>("pruning-sharing"),
    Entry::of::<quantization::hessian_kmeans::HessianKmeans>("pruning-sharing"),
    Entry::of::<quantization::huffman::Huffman>("pruning-sharing"),
    Entry::of::<quantization::kmeans_sharing::KmeansSharing>("pruning-sharing"),
    Entry::of::<structural::kronecker::Kronecker>("pruning-sharing"),
    Entry::of::<quantization::learned_step::LearnedStep>("pruning-sharing"),
    Entry::of::<pruning::less_is_more::LessIsMore>("pruning-sharing"),
    Entry::of::<quantization::loss_aware_binarization::LossAwareBinarization>("pruning-sharing"),
    Entry::of::<structural::low_displacement::LowDisplacement>("pruning-sharing"),
    Entry::of::<pruning::magnitude::Magnitude>("pruning-sharing"),
    Entry::of::<pruning::movement::Movement>("pruning-sharing"),
    Entry::of::<pruning::n_m::NM>("pruning-sharing"),
    Entry::of::<pruning::optimal_brain_damage::OptimalBrainDamage>("pruning-sharing"),
    Entry::of::<pruning::optimal_brain_surgeon::OptimalBrainSurgeon>("pruning-sharing"),
    Entry::of::<quantization::pact::Pact>("pruning-sharing"),
    Entry::of::<quantization::product_quantization::ProductQuantization>("pruning-sharing"),
    Entry::of::<pruning::random::Random>("pruning-sharing"),
    Entry::of::<quantization::response_quantization::ResponseQuantization>("pruning-sharing"),
    Entry::of::<pruning::slimming::Slimming>("pruning-sharing"),
    Entry::of::<pruning::soft_weight_sharing::SoftWeightSharing>("pruning-sharing"),
    Entry::of::<quantization::stochastic_rounding::StochasticRounding>("pruning-sharing"),
    Entry::of::<pruning::structured_sparsity::StructuredSparsity>("pruning-sharing"),
    Entry::of::<pruning::taylor::Taylor>("pruning-sharing"),
    Entry::of::<quantization::ternary::Ternary>("pruning-sharing"),
    Entry::of::<pruning::thinet::ThiNet>("pruning-sharing"),
    Entry::of::<quantization::weight_distortion::WeightDistortion>("pruning-sharing"),
    Entry::of::<quantization::xnor_net::XnorNet>("pruning-sharing"),
];
