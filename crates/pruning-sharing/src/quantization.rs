//! Quantization and binarization: section 2.A of the survey.

pub mod bias_correction;
pub mod binary;
pub mod binary_connect;
pub mod binary_net;
pub mod bwn;
pub mod clipped;
pub mod dorefa;
pub mod ecsq;
pub mod few_multiplications;
pub mod fixed_point;
pub mod hessian_kmeans;
pub mod huffman;
pub mod kmeans_sharing;
pub mod learned_step;
pub mod loss_aware_binarization;
pub mod pact;
pub mod product_quantization;
pub mod products;
pub mod response_quantization;
pub mod stochastic_rounding;
pub mod ternary;
pub mod weight_distortion;
pub mod xnor_net;
