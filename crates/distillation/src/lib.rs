//! Knowledge distillation: section 5 of Cheng, Wang, Zhou, Zhang, "A Survey of Model Compression and Acceleration for Deep Neural Networks"
//! (arXiv:1710.09282).
//!
//! A loss of this crate is named by the recipe of any training, `tune = { epochs = 4, distill = { method = "soft-targets", temperature = 4.0 } }`, alone or
//! in a list, or is a pass of its own, `method = "soft-targets"`. The teacher is the network as it was before the pass, or what `teacher` names: a container,
//! an architecture with the file of its weights, `"before-first-pass"`, or a list of these, which teach as one.

pub mod learning;
pub mod soft_targets;
pub mod student;

use briquette_core::pass::Entry;
use briquette_core::teaching::Distillation;

use learning::Learning;
use soft_targets::SoftTargets;

/// The losses of this crate.
pub const DISTILLATIONS: &[Distillation] = &[Distillation::of::<SoftTargets>()];

const HOME: &str = "distillation";

/// The methods of this crate.
pub const METHODS: &[Entry] = &[Entry::of::<Learning<SoftTargets>>(HOME)];
