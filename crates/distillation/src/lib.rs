//! Knowledge distillation: section 5 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).
//!
//! A loss of this crate is named by the recipe of any training, `tune = { epochs = 4, distill = { method = "soft-targets", temperature = 4.0 } }`, alone or
//! in a list, or is a pass of its own, `method = "soft-targets"`. The teacher is the network as it was before the pass, or what `teacher` names: a container,
//! an architecture with the file of its weights, `"before-first-pass"`, or a list of these, which teach as one.
//!
//! Students and teachers may be any Burn modules, for each loss is a function over tensors; regressors and embeddings that learn beside the student are
//! modules, too:
//!
//! ```
//! use briquette_distillation::{attention_transfer, soft_targets};
//! use burn::nn::conv::{Conv2d, Conv2dConfig};
//! use burn::tensor::{Device, Tensor};
//!
//! let device = Device::flex().autodiff();
//! let layer = |channels| -> Conv2d { Conv2dConfig::new([3, channels], [3, 3]).init(&device) };
//! let (teacher, student) = (layer(16), layer(4));
//! let images = Tensor::<4>::ones([2, 3, 8, 8], &device);
//! let maps = student.forward(images.clone());
//! let loss = attention_transfer::attention_transfer(maps, teacher.forward(images).detach(), 2).unwrap();
//!
//! let logits = |value: f32| Tensor::<2>::full([2, 10], value, &device);
//! let loss = loss.mul_scalar(1000.0) + soft_targets::divergence(logits(1.0), logits(2.0), 4.0).mul_scalar(16.0);
//! let gradients = loss.backward();
//! assert!(student.weight.val().grad(&gradients).is_some() && teacher.weight.val().grad(&gradients).is_none());
//! ```

pub mod attention_transfer;
pub mod bayesian_dark_knowledge;
pub mod contrastive;
pub mod decoupled;
pub mod ensemble;
pub mod fitnets;
#[cfg(test)]
mod golden;
pub mod learning;
pub mod logits;
pub mod net2net;
pub mod neuron_selection;
pub mod pseudo_labels;
pub mod relational;
pub mod selectivity;
pub mod similarity;
pub mod soft_targets;
pub mod student;
pub mod taps;
mod tensors;

use briquette_core::pass::Entry;
use briquette_core::teaching::Distillation;

use attention_transfer::AttentionTransfer;
use bayesian_dark_knowledge::BayesianDarkKnowledge;
use contrastive::Contrastive;
use decoupled::Decoupled;
use fitnets::Fitnets;
use learning::Learning;
use logits::Logits;
use net2net::Net2Net;
use neuron_selection::NeuronSelection;
use pseudo_labels::PseudoLabels;
use relational::Relational;
use selectivity::Selectivity;
use similarity::Similarity;
use soft_targets::SoftTargets;

/// The losses of this crate.
pub const DISTILLATIONS: &[Distillation] = &[
    Distillation::of::<AttentionTransfer>(),
    Distillation::of::<Contrastive>(),
    Distillation::of::<Decoupled>(),
    Distillation::of::<Fitnets>(),
    Distillation::of::<Logits>(),
    Distillation::of::<NeuronSelection>(),
    Distillation::of::<Relational>(),
    Distillation::of::<Selectivity>(),
    Distillation::of::<Similarity>(),
    Distillation::of::<SoftTargets>(),
];

const HOME: &str = "distillation";

/// The methods of this crate.
pub const METHODS: &[Entry] = &[
    Entry::of::<Learning<AttentionTransfer>>(HOME),
    Entry::of::<BayesianDarkKnowledge>(HOME),
    Entry::of::<Learning<Contrastive>>(HOME),
    Entry::of::<Learning<Decoupled>>(HOME),
    Entry::of::<Learning<Fitnets>>(HOME),
    Entry::of::<Learning<Logits>>(HOME),
    Entry::of::<Learning<NeuronSelection>>(HOME),
    Entry::of::<Learning<Relational>>(HOME),
    Entry::of::<Learning<Selectivity>>(HOME),
    Entry::of::<Learning<Similarity>>(HOME),
    Entry::of::<Learning<SoftTargets>>(HOME),
    Entry::of::<Net2Net>(HOME),
    Entry::of::<PseudoLabels>(HOME),
];
