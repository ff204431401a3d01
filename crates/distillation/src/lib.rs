//! Knowledge distillation: section 5 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).
//!
//! An objective of this crate is no pass: any recipe may name one, `tune = { epochs = 4, distill = { method = "soft-targets", temperature = 4.0 } }`,
//! and learns from the network as it was before the pass, or from the container that `teacher` names.

pub mod attention_transfer;
pub mod contrastive;
pub mod decoupled;
pub mod ensemble;
pub mod fitnets;
#[cfg(test)]
mod golden;
pub mod logits;
pub mod neuron_selection;
pub mod pseudo_labels;
pub mod relational;
pub mod selectivity;
pub mod similarity;
pub mod soft_targets;
mod tensors;

use briquette_core::objective::Distillation;

/// The objectives of this crate.
pub const DISTILLATIONS: &[Distillation] = &[soft_targets::ENTRY];
